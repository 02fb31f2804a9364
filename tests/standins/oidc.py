"""An OpenID provider: discovery, authorize, token, keys and userinfo, by the letter, with RS256 signed by hand.

Not one of the platforms, so it is started alone. Whoever comes to `/authorize` is `person`, at once; what the ID token
says can be spoilt by `spoil`, a function of its header and claims, and by `sign_with`.
"""

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.standins.standin import Ledger, Refused, Standin
from tests.standins.wire import Answer, Request

CODE_SECONDS = 60


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


class OpenIDProvider(Standin):
    name = "oidc"
    routes = (
        ("GET", "/realm/.well-known/openid-configuration", "discovery"),
        ("GET", "/realm/authorize", "authorize"),
        ("POST", "/realm/token", "token"),
        ("GET", "/realm/keys", "keys"),
        ("GET", "/realm/userinfo", "userinfo"),
    )
    client_id = "ticketing"
    client_secret = "standin+secret/of 0123456789"
    redirect_uri = ""  # the one that is registered

    def __init__(self, ledger: Path | None = None) -> None:
        self.key_id = "first"
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        super().__init__(Ledger(ledger))

    @property
    def issuer(self) -> str:
        return f"{self.url}/realm"

    def forget(self) -> None:
        self.person: dict[str, Any] | None = {
            "sub": "f3a1",
            "preferred_username": "anna",
            "email": "anna@example.com",
            "groups": ["/ops"],
        }
        self.only_in_userinfo: set[str] = set()
        self.spoil: Callable[[dict, dict], None] = lambda header, claims: None
        self.sign_with = self.key
        self.published: dict[str, object] = {}  # in the place of what discovery says
        self.key_id = "first"
        self.codes: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}

    def refusal(self, code: int, message: str = "") -> Answer:
        return Answer(code, {"error": message or "invalid_request"})

    def discovery(self, request: Request) -> Answer:
        base = self.issuer
        told = {
            "issuer": base,
            "authorization_endpoint": f"{base}/authorize",
            "token_endpoint": f"{base}/token",
            "jwks_uri": f"{base}/keys",
            "userinfo_endpoint": f"{base}/userinfo",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }
        return Answer(200, told | self.published)

    def authorize(self, request: Request) -> Answer:
        asked = {name: values[0] for name, values in request.query.items() if len(values) == 1}
        if asked.get("client_id") != self.client_id or asked.get("redirect_uri") != self.redirect_uri:
            return self.refusal(400, "unauthorized_client")  # never back to an address that is not registered
        sound = (
            asked.get("response_type") == "code"
            and "openid" in asked.get("scope", "").split()
            and asked.get("code_challenge_method") == "S256"
            and len(asked.get("code_challenge", "")) == 43
            and all(len(asked.get(name, "")) >= 32 for name in ("state", "nonce"))
        )
        back = {"state": asked.get("state", "")}
        if not sound:
            back["error"] = "invalid_request"
        elif self.person is None:
            back["error"] = "access_denied"
        else:
            back["code"] = secrets.token_urlsafe(24)
            self.codes[back["code"]] = asked | {"at": time.time(), "person": dict(self.person)}
        return Answer(302, "", {"Location": f"{self.redirect_uri}?{urlencode(back)}"})

    def token(self, request: Request) -> Answer:
        given = {name: values[0] for name, values in parse_qs(request.body.decode()).items() if len(values) == 1}
        if (given.get("client_id"), given.get("client_secret")) != (self.client_id, self.client_secret):
            return self.refusal(401, "invalid_client")
        asked = self.codes.pop(given.get("code", ""), None)  # for once
        challenge = base64url(hashlib.sha256(given.get("code_verifier", "").encode()).digest())
        if (
            asked is None
            or given.get("grant_type") != "authorization_code"
            or time.time() - asked["at"] > CODE_SECONDS
            or given.get("redirect_uri") != asked["redirect_uri"]
            or challenge != asked["code_challenge"]
        ):
            return self.refusal(400, "invalid_grant")
        access = secrets.token_urlsafe(24)
        self.tokens[access] = asked["person"]
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": self.client_id, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims |= {name: value for name, value in asked["person"].items() if name not in self.only_in_userinfo}
        self.effect("login", person=asked["person"]["sub"])
        told = {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": self.id_token(claims)}
        return Answer(200, told, {"Cache-Control": "no-store"})

    def id_token(self, claims: dict[str, Any]) -> str:
        header = {"alg": "RS256", "typ": "JWT", "kid": self.key_id}
        self.spoil(header, claims)
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self.sign_with.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64url(signature if header['alg'] != 'none' else b'')}"

    def keys(self, request: Request) -> Answer:
        return Answer(200, {"keys": [self.public(self.key) | {"kid": self.key_id}]})

    def public(self, key: rsa.RSAPrivateKey) -> dict[str, str]:
        numbers = key.public_key().public_numbers()
        told = {"n": base64url(as_bytes(numbers.n)), "e": base64url(as_bytes(numbers.e))}
        return {"kty": "RSA", "use": "sig", "alg": "RS256"} | told

    def userinfo(self, request: Request) -> Answer:
        person = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if person is None:
            raise Refused(self.refusal(401, "invalid_token"))
        return Answer(200, person)
