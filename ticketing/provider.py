"""The OpenID provider: where it is asked, and what its tokens are believed to say.

Whatever is sent goes through `platforms.http`, as to any platform: https alone, no private address outside of
EGRESS_ALLOWED_NETWORKS, no redirect, no proxy of the environment, one deadline for all requests of a login. The library
whose views `ticketing.signin` uses would open sockets of its own without any of it; nothing of that part is called.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import jwt
from django.conf import settings
from django.utils.crypto import constant_time_compare

from platforms.contract import PlatformError
from platforms.egress import Egress
from platforms.http import Caller, Reply

log = logging.getLogger(__name__)

LOGIN_SECONDS = 5.0
MOST_AT_ONCE = 3  # of the web server's threads: a provider that hangs must not hold them all
KEPT_SECONDS = 3600.0
KEYS_ASKED_AGAIN = 60.0  # a token signed with an unknown key is no reason to ask more often
LEEWAY_SECONDS = 60
ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
ASYMMETRIC = [name for names in ALGORITHMS.values() for name in names]
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


class Unreachable(Exception):
    """The provider cannot be asked now, or does not answer as one. The text is for the log."""


class Untrue(Exception):
    """What was brought back from the provider is not to be believed. The text is for the log."""


@dataclass(frozen=True)
class Endpoints:
    authorization: str
    token: str
    keys: str
    userinfo: str = ""


@dataclass(frozen=True)
class _Kept:
    """What the provider published, and when it was read (by `time.monotonic`)."""

    issuer: str
    endpoints: Endpoints
    read_at: float
    keys: tuple[dict, ...] = ()
    keys_read_at: float = float("-inf")


_kept: _Kept | None = None
_under_way = threading.BoundedSemaphore(MOST_AT_ONCE)


def forget() -> None:
    global _kept
    _kept = None


@contextmanager
def asked() -> Iterator[Caller]:
    """A caller for one login's requests."""
    if not _under_way.acquire(blocking=False):
        raise Unreachable("too many logins wait for the provider")
    caller = Caller(
        egress=Egress(settings.EGRESS_ALLOWED_NETWORKS), seconds=LOGIN_SECONDS, secrets=[settings.SSO.client_secret]
    )
    try:
        yield caller
    except PlatformError as error:
        raise Unreachable(str(error)) from error
    finally:
        caller.close()
        _under_way.release()


def endpoints() -> Endpoints:
    """Where the browser is sent, and what we ask: as the provider publishes it, read anew each hour."""
    if _kept is None or _kept.issuer != settings.SSO.issuer or time.monotonic() - _kept.read_at > KEPT_SECONDS:
        with asked() as caller:
            _discover(caller)
    return _kept.endpoints


def _discover(caller: Caller) -> None:
    global _kept
    issuer = settings.SSO.issuer
    told = _object(caller.request("GET", issuer.rstrip("/") + "/.well-known/openid-configuration"))
    if told.get("issuer") != issuer:
        raise Unreachable(f"the provider says that its issuer is {str(told.get('issuer'))[:200]!r}, not {issuer!r}")
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint")
    found = [_address(told, name) for name in names]
    if not all(found[:3]):
        raise Unreachable(f"the provider must publish {', '.join(names[:3])}, all by https")
    _kept = _Kept(issuer, Endpoints(*found), time.monotonic())


def _address(told: Mapping, name: str) -> str:
    address = told.get(name)
    schemes = ("https://", "http://") if settings.LOCAL_MODE else ("https://",)
    return address if isinstance(address, str) and address.startswith(schemes) else ""


def redeem(caller: Caller, *, code: str, verifier: str, nonce: str, redirect_uri: str) -> dict:
    """Who signed in, as the provider claims it, for the code that their browser brought. Raises `Untrue`."""
    sso = settings.SSO
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "client_id": sso.client_id,
        "client_secret": sso.client_secret,
        "code_verifier": verifier,
    }
    reply = caller.request(
        "POST", _kept.endpoints.token, headers=FORM, body=urlencode(form).encode(), expect=(400, 401, 403)
    )
    told = _object(reply)
    if reply.status != 200:
        raise Untrue(f"the provider refused the code: {reply.status} {caller.clean(str(told.get('error', '')))}")
    claims = _verified(caller, told.get("id_token"), nonce)
    if groups_of(claims) is None and _kept.endpoints.userinfo:
        claims = _with_userinfo(caller, claims, str(told.get("access_token", "")))
    return claims


def groups_of(claims: Mapping) -> set[str] | None:
    """A person's groups, or None where nothing is said of them. `realm_access.roles` is a claim within a claim, unless
    there is one of that very name."""
    told: object = claims
    claim = settings.SSO.groups_claim
    for name in [claim] if claim in claims else claim.split("."):
        told = told.get(name) if isinstance(told, Mapping) else None
    if told is None:
        return None
    return {name for name in (told if isinstance(told, list) else [told]) if isinstance(name, str)}


def _with_userinfo(caller: Caller, claims: dict, access_token: str) -> dict:
    """Some providers tell groups only where they are asked who a token is for."""
    headers = {"Authorization": f"Bearer {access_token}", "Accept": "application/json"}
    more = _object(caller.request("GET", _kept.endpoints.userinfo, headers=headers))
    if more.get("sub") != claims["sub"]:
        raise Untrue("the provider's userinfo is about somebody else")
    return more | claims


def _verified(caller: Caller, token: object, nonce: str) -> dict:
    """An ID token's claims (OpenID Connect Core 1.0, 3.1.3.7)."""
    sso = settings.SSO
    try:
        header = jwt.get_unverified_header(token if isinstance(token, str) else "")
        key = _key(caller, header.get("kid"), header.get("alg"))
        claims = jwt.decode(
            token,
            key,
            algorithms=[header["alg"]],
            audience=sso.client_id,
            issuer=sso.issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
    except jwt.PyJWTError as error:
        raise Untrue(f"the ID token: {type(error).__name__}") from error
    if not constant_time_compare(str(claims.get("nonce", "")), nonce) or not nonce:
        raise Untrue("the ID token was made for another login (nonce)")
    if claims.get("azp", sso.client_id) != sso.client_id:
        raise Untrue("the ID token was made for another client (azp)")
    if not claims["sub"] or len(claims["sub"]) > 255:
        raise Untrue("the ID token names nobody")
    return claims


def _key(caller: Caller, key_id: object, algorithm: object) -> object:
    """The provider's public key for such a token. An unknown one may be new, so the keys are read again."""
    global _kept
    if algorithm not in ASYMMETRIC:
        raise Untrue(f"the ID token is signed by {str(algorithm)[:20]!r}")
    for age in (KEPT_SECONDS, KEYS_ASKED_AGAIN):
        if time.monotonic() - _kept.keys_read_at > age:
            keys = _object(caller.request("GET", _kept.endpoints.keys)).get("keys")
            known = tuple(key for key in keys if isinstance(key, dict)) if isinstance(keys, list) else ()
            _kept = _Kept(_kept.issuer, _kept.endpoints, _kept.read_at, known, time.monotonic())
        fitting = [
            key
            for key in _kept.keys
            if algorithm in ALGORITHMS.get(key.get("kty"), ())
            and key.get("use", "sig") == "sig"
            and key.get("alg", algorithm) == algorithm
            and key_id in (None, key.get("kid"))
        ]
        if len(fitting) == 1:
            try:
                return jwt.PyJWK(fitting[0], algorithm).key
            except jwt.PyJWTError as error:
                raise Untrue("the provider's key cannot be read") from error
    raise Untrue("the ID token is signed with a key that the provider does not publish")


def _object(reply: Reply) -> dict:
    try:
        told = json.loads(reply.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise Unreachable("the provider's answer is no JSON object")
    return told
