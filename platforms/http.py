"""The only module that opens sockets: one attempt's HTTP requests, guarded, under one deadline, no secret in errors.

How it holds: every connection is dialled by us (the address judged is the address connected to), and every socket sets
the time that is left before each read, write and handshake. `requests` takes proxies, netrc, CA bundles, redirects and
cookies from its Session, so there is no Session: prepared requests go straight to its adapter.
"""

import base64
import errno
import html
import http.client
import ipaddress
import json as jsonlib
import logging
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.wait import wait_for_read, wait_for_write

from platforms.contract import PlatformError
from platforms.egress import Egress

MAX_BODY = 1024 * 1024  # bytes of a reply, after decompression
MAX_WIRE = 4 * MAX_BODY  # bytes read for one request: bounds endless headers, chunk sizes and empty gzip members too
PART = 16384  # bytes
KEPT_PARTS = 4  # of a reply that is too large or too late: enough to tell what it says
MAX_MESSAGE = 300
MAX_RETRY_AFTER = 3600.0
USER_AGENT = "ticketing-agent"

_TEXT_CHARSETS = {"utf-8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "windows-1252"}
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?|")


class LeaseLost(PlatformError):
    """The worker no longer holds what it works on. Nothing of this request was sent."""


def clock() -> float:
    """Seconds on a clock that never jumps and, where the platform can, goes on while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


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
        self._fence = _Fence(seconds, clock() if started is None else started, lease_lost)
        self._secrets = frozenset(secret for secret in secrets if secret)
        self._mask = _mask(self._secrets)
        self._adapter = _Adapter(partial(_dial, egress, self._fence), _tls_context(ca_file))

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


class _Fence:
    """The time that an attempt has, and what is known of the request in hand."""

    def __init__(self, seconds: float, started: float, lease_lost: Callable[[], bool] | None) -> None:
        self._seconds = seconds
        self._end = started + seconds
        self._lease_lost = lease_lost
        self.sent = False  # whether a byte of the request may have left
        self.received = 0  # bytes of the reply so far, as they came

    def begin(self) -> None:
        self.sent = False
        self.received = 0
        self.permit()

    def remaining(self) -> float:
        """Seconds left, more than none."""
        left = self._end - clock()
        if left <= 0:
            raise self.timeout()
        return left

    def permit(self) -> None:
        """Asked immediately before bytes leave: a worker that slept must not send what is no longer wanted."""
        if not self.sent and self._lease_lost is not None and self._lease_lost():
            raise LeaseLost("The lease was lost; nothing was sent")
        self.remaining()  # last: whatever was asked before took time

    def count(self, size: int) -> None:
        self.received += size
        if self.received > MAX_WIRE:
            raise self.too_big()

    def timeout(self) -> PlatformError:
        return PlatformError(f"Connection timeout after {self._seconds:g}s", in_doubt=self.sent)

    def too_big(self) -> PlatformError:
        return PlatformError("The reply is larger than 1 MiB", in_doubt=self.sent)

    def broken(self, error: Exception) -> PlatformError:
        """For what the libraries raise. Their texts hold URLs, so only the kind is told."""
        if isinstance(error, urllib3.exceptions.DecodeError):
            return PlatformError("The reply is compressed in a way that cannot be read", in_doubt=self.sent)
        when = "before the reply was complete" if self.sent else "before the request left"
        return PlatformError(f"Connection broken {when}", in_doubt=self.sent)


class _Fenced:
    """What both kinds of socket do before they touch the network. Reads and writes by other ways are not used."""

    fence: _Fence
    whole = True  # a write that failed took nothing

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.fence.remaining())
        try:
            size = super().recv_into(*args)
        except TimeoutError:
            raise self.fence.timeout() from None
        self.fence.count(size)
        return size

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Never waits inside a write: however long we slept, the fence is asked right before each one."""
        view = memoryview(data).cast("B")
        while view:
            self.settimeout(0)
            before = self.fence.sent
            self.fence.permit()
            self.fence.sent = True
            try:
                view = view[self.send(view, flags) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self.fence.sent = before if self.whole else True
                wait_for_write(self, self.fence.remaining())
            except ssl.SSLWantReadError:
                wait_for_read(self, self.fence.remaining())
            except OSError:
                self.fence.sent = before if self.whole else True
                raise


class _PlainSocket(_Fenced, socket.socket):
    pass


class _TlsSocket(_Fenced, ssl.SSLSocket):
    whole = False  # part of a record may be out


class _TlsContext(ssl.SSLContext):
    sslsocket_class = _TlsSocket

    def wrap_socket(self, sock: _PlainSocket, **options: Any) -> _TlsSocket:
        fence = sock.fence
        try:
            tls = super().wrap_socket(sock, do_handshake_on_connect=False, **options)
            try:
                tls.fence = fence
                tls.settimeout(fence.remaining())
                tls.do_handshake()
            except BaseException:
                tls.close()
                raise
            return tls
        except ssl.SSLCertVerificationError as error:
            raise PlatformError(f"TLS certificate not accepted: {error.verify_message}") from None
        except TimeoutError:
            raise fence.timeout() from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "closed"
            raise PlatformError(f"TLS connection failed: {reason}") from None


@lru_cache(maxsize=8)
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Made once: reading the CAs takes longer than a request. `certifi`'s, whatever the environment says."""
    context = _TlsContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options |= ssl.OP_NO_COMPRESSION
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.load_verify_locations(requests.certs.where())
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


class _PlainConnection(HTTPConnection):
    def __init__(self, *args: Any, dial: Callable[..., socket.socket], **options: Any) -> None:
        super().__init__(*args, **options)
        self._dial = partial(dial, tls=False)

    def _new_conn(self) -> socket.socket:
        return self._dial(self._dns_host, self.port)


class _TlsConnection(HTTPSConnection):
    def __init__(self, *args: Any, dial: Callable[..., socket.socket], **options: Any) -> None:
        super().__init__(*args, **options)
        self._dial = partial(dial, tls=True)

    def _new_conn(self) -> socket.socket:
        return self._dial(self._dns_host, self.port)


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Requests' adapter, with our connections in its pools and our CAs for all of them."""

    def __init__(self, dial: Callable[..., socket.socket], context: ssl.SSLContext) -> None:
        self._dial = dial
        self._context = context
        super().__init__(pool_connections=4, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        manager = urllib3.PoolManager(connections, maxsize=maxsize, block=block, ssl_context=self._context)
        manager.pool_classes_by_scheme = {
            "http": partial(_PlainPool, dial=self._dial),
            "https": partial(_TlsPool, dial=self._dial),
        }
        self.poolmanager = manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Keeps the context's CAs: requests would read its bundle into it again for every request."""
        conn.cert_reqs = "CERT_REQUIRED"


def _dial(egress: Egress, fence: _Fence, host: str, port: int, *, tls: bool) -> _PlainSocket:
    """A connected socket to one of the host's addresses, all of which were judged."""
    addresses = _resolve(host, port, fence)
    refusals = {ip: egress.dial_refusal(ip, port, tls=tls) for _, (ip, *_) in addresses}
    if host == "localhost":  # has two addresses, of which one may be allowed
        addresses = [found for found in addresses if not refusals[found[1][0]]] or addresses
    for _, (ip, *_) in addresses:
        if why := refusals[ip]:
            # A name may only have been answered wrongly just now; an address stays what it is.
            raise PlatformError(
                f"Connection to {host} refused by this agent: {why}", permanent=_is_ip(host) or host == "localhost"
            )
    problem: OSError | None = None
    for index, (family, sockaddr) in enumerate(addresses):
        try:
            return _connect(family, sockaddr, fence, share=len(addresses) - index)
        except OSError as error:
            problem = error
    if problem is None or problem.errno is None:  # our own timeout, not the kernel's
        raise fence.timeout()
    raise PlatformError(f"Cannot connect to {host} port {port}: {problem.strerror}")


Resolved = list[tuple[int, tuple[Any, ...]]]


def _resolve(host: str, port: int, fence: _Fence) -> Resolved:
    """The host's addresses, looked up within the deadline: the system's resolver has none, so it gets a thread."""
    if _is_ip(host):
        return _lookup(host, port)
    found: list[Resolved | OSError] = []

    def look_up() -> None:
        try:
            found.append(_lookup(host, port))
        except (OSError, UnicodeError) as error:
            found.append(error if isinstance(error, OSError) else OSError("not a valid name"))

    thread = threading.Thread(target=look_up, name="resolve", daemon=True)
    thread.start()
    thread.join(fence.remaining())
    if not found:
        raise fence.timeout()
    if isinstance(found[0], OSError) or not found[0]:
        raise PlatformError(f"Cannot find the address of {host}")
    return found[0]


def _lookup(host: str, port: int) -> Resolved:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [(family, sockaddr) for family, _, _, _, sockaddr in answers]


def _connect(family: int, sockaddr: tuple[Any, ...], fence: _Fence, *, share: int) -> _PlainSocket:
    """Connects to this very address, in a fair part of the time left, so that a dead one leaves some for the others."""
    sock = _PlainSocket(family, socket.SOCK_STREAM)
    try:
        sock.fence = fence
        sock.settimeout(fence.remaining() / share)
        sock.connect(sockaddr)
        if ipaddress.ip_address(sock.getpeername()[0]) != ipaddress.ip_address(sockaddr[0]):
            raise OSError(errno.EADDRNOTAVAIL, "connected to another address")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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
