"""One attempt's HTTP requests: guarded, under one deadline, no secret in errors.

`requests` takes proxies, netrc, CA bundles, redirects and cookies from its Session, so there is no Session: prepared
requests go straight to an adapter of ours, whose connections `sockets` dials.
"""

import base64
import html
import http.client
import json as jsonlib
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import requests
import urllib3

from platforms.contract import PlatformError
from platforms.egress import Egress
from platforms.sockets import MAX_BODY, Adapter, Fence, dial, tls_context

PART = 16384  # bytes
KEPT_PARTS = 4  # of a reply that is too large or too late: enough to tell what it says
MAX_MESSAGE = 300
MAX_RETRY_AFTER = 3600.0
USER_AGENT = "ticketing-agent"

_TEXT_CHARSETS = {"utf-8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "windows-1252"}
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?|")


@dataclass(frozen=True)
class Reply:
    """What came back, whole. `headers` ignores case; `body` is decompressed and at most 1 MiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        found = re.search(r"charset=\"?([\w-]+)", self.headers.get("Content-Type", ""))
        charset = found[1].lower() if found and found[1].lower() in _TEXT_CHARSETS else "utf-8"
        return self.body.decode("utf-8-sig" if charset == "utf-8" else charset, "replace")

    def json(self) -> Any:
        """The body as JSON. Raises PlatformError, in doubt, where it is none: perhaps the platform never answered."""
        try:
            return jsonlib.loads(self.body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise PlatformError(f"{self.status} The reply is not JSON", in_doubt=True, status=self.status) from None


class Caller:
    """Makes the requests of one attempt. Not for several threads."""

    def __init__(
        self,
        *,
        egress: Egress,
        seconds: float,
        secrets: Collection[str] = (),
        lease_lost: Callable[[], bool] | None = None,
        started: float | None = None,
        ca_file: str | None = None,
    ) -> None:
        """`seconds` are for all requests together, counted from `started`, a reading of `clock()` (default: now).

        `lease_lost` is asked immediately before a request leaves. `ca_file` (PEM) is trusted beside the public CAs.
        """
        self._fence = Fence(seconds, started, lease_lost)
        self._secrets = frozenset(secret for secret in secrets if secret)
        self._mask = _mask(self._secrets)
        self._adapter = Adapter(partial(dial, egress, self._fence), tls_context(ca_file))

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        body: bytes | None = None,
        auth: tuple[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
    ) -> Reply:
        """One request: `json` or `body`, Basic `auth` (UTF-8). Returns the reply to a 2xx or an `expect`ed status.

        Raises PlatformError for everything else. `in_doubt` is False exactly when nothing of the request left this
        machine or the platform said that it did nothing.
        """
        self._fence.begin()
        prepared = self._prepare(method, url, dict(headers or {}), json, body, auth, params)
        try:
            answer = self._adapter.send(prepared, stream=True)
            try:
                reply, broken = self._read(answer)
            finally:
                answer.close()
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise self._fence.broken(error) from None
        if not (200 <= reply.status < 300 or reply.status in expect):
            raise self.failure(reply)
        if broken:
            raise broken
        return reply

    def failure(self, reply: Reply, text: str = "") -> PlatformError:
        """The error that a reply amounts to, told by `text` or else by the start of its body."""
        status = reply.status
        if 300 <= status < 400:
            return PlatformError(f"{status} redirect refused", permanent=True, status=status)
        message = self.clean(f"{status} {text or _summary(reply)}")
        wait = _retry_after(reply.headers)
        if status == 429 or (status == 503 and wait is not None):
            return PlatformError(message, pause=True, retry_after=wait, status=status)
        if 400 <= status < 500 and status != 408:
            return PlatformError(message, permanent=True, status=status)
        return PlatformError(message, in_doubt=True, retry_after=wait, status=status)

    def clean(self, text: str) -> str:
        """Foreign text fit for a message: one line, no secret, control characters escaped, 300 characters at most."""
        text = " ".join(self._mask(text).split())
        text = self._mask("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
        return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"

    def close(self) -> None:
        """Ends the connections kept for a next request; the end of the caller does so too."""
        self._adapter.close()

    def _prepare(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        json: Any,
        body: bytes | None,
        auth: tuple[str, str] | None,
        params: Mapping[str, str] | None,
    ) -> requests.PreparedRequest:
        if auth is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(auth).encode(errors="replace")).decode()
        self._hide(headers, auth)
        for name, value in headers.items():
            if not _HEADER_VALUE.fullmatch(value):
                raise PlatformError(f"The {name} header would hold characters that cannot be sent", permanent=True)
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if json is not None:
            body = jsonlib.dumps(json, allow_nan=False).encode()
            headers.setdefault("Content-Type", "application/json")
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
            if not sound or "\\" in url:
                raise ValueError
            return requests.Request(method, url, headers=headers, data=body, params=params).prepare()
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError):
            raise PlatformError("The address is not a valid URL", permanent=True) from None

    def _hide(self, headers: Mapping[str, str], auth: tuple[str, str] | None) -> None:
        """What this request authenticates with is a secret too, whether it was named as one or not."""
        found = {auth[1]} if auth and auth[1] else set()
        for name, value in headers.items():
            if name.lower() in ("authorization", "x-api-key") and value.split():
                found.add(value.split()[-1])
        if not found <= self._secrets:
            self._secrets |= found
            self._mask = _mask(self._secrets)

    def _read(self, answer: requests.Response) -> tuple[Reply, PlatformError | None]:
        """The reply, and what went wrong while its body was read: a refusal is one however much of its text arrives."""
        parts: list[bytes] = []
        size, broken = 0, None
        try:
            if not 300 <= answer.status_code < 400:
                for part in answer.raw.stream(PART, decode_content=True):
                    size += len(part)
                    if size > MAX_BODY:
                        raise self._fence.too_big()
                    parts.append(part)
        except PlatformError as error:
            broken = error
            del parts[KEPT_PARTS:]  # a lane's threads may all meet such a reply at once
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            broken = self._fence.broken(error)
        return Reply(answer.status_code, answer.headers, b"".join(parts)), broken


def _mask(secrets: Collection[str]) -> Callable[[str], str]:
    """Replaces every secret, however it is written: as it is, in a URL, in JSON, in HTML, in a Basic header."""
    forms: set[str] = set()
    for secret in secrets:
        forms |= {secret, html.escape(secret), quote_plus(secret, errors="replace")}
        forms |= {quote(secret, safe=safe, errors="replace") for safe in ("/", "")}
        forms |= {jsonlib.dumps(secret)[1:-1], jsonlib.dumps(secret, ensure_ascii=False)[1:-1]}
        forms |= {base64.b64encode(secret.encode(errors="replace")).decode()}
        if "://" in secret:  # the secret of a webhook is its path, and servers quote that
            path = re.sub(r"^[^:]*://[^/]*", "", secret)
            forms |= {part for part in (path, path.strip("/"), path.rpartition("/")[2]) if len(part) >= 8}
    forms.discard("")
    if not forms:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)), re.IGNORECASE)
    return lambda text: pattern.sub("****", text)


def _summary(reply: Reply) -> str:
    """What a reply's body says in a few words; where it is a web page, its title."""
    text = reply.text.strip()
    if text.startswith("<"):
        title = re.search(r"<title[^<>]{0,200}>([^<]{1,300})", text[:20000], re.IGNORECASE)
        text = html.unescape(title[1]) if title else ""
    return text or http.client.responses.get(reply.status, "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, an hour at most; None where the platform says nothing usable. RFC 9110 section 10.2.3."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        # Against the server's own clock, where it shows it: only the difference counts.
        now = _http_date(headers.get("Date", ""))
        seconds = _http_date(value) - (time.time() if math.isnan(now) else now)
    return min(seconds, MAX_RETRY_AFTER) if math.isfinite(seconds) and seconds >= 0 else None


def _http_date(text: str) -> float:
    """Seconds since 1970, NaN where it is no date."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


class _Nothing(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


# urllib3 logs the path of what it requests, and Slack's is a secret. Filters outlive whatever configures logging later.
for _name in ("connection", "connectionpool", "poolmanager", "response", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_Nothing())
