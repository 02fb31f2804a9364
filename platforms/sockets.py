"""The only module that opens sockets: with a deadline for all of them together, to addresses that were judged.

Each connection is dialled by us, so that the address judged is the address connected to, and each socket sets the time
that is left before every read, write and handshake.
"""

import errno
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.wait import wait_for_read, wait_for_write

from platforms.contract import PlatformError
from platforms.egress import Egress

MAX_BODY = 1024 * 1024  # bytes of a reply, after decompression
MAX_WIRE = 4 * MAX_BODY  # bytes read for one request: bounds endless headers, chunk sizes and empty gzip members too


class LeaseLost(PlatformError):
    """The worker no longer holds what it works on. Nothing of this request was sent."""


def clock() -> float:
    """Seconds on a clock that never jumps and, where the platform can, goes on while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Fence:
    """The time that an attempt has, and what is known of the request in hand."""

    def __init__(self, seconds: float, started: float | None, lease_lost: Callable[[], bool] | None) -> None:
        self._seconds = seconds
        self._end = (clock() if started is None else started) + seconds
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

    fence: Fence
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
def tls_context(ca_file: str | None) -> ssl.SSLContext:
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


class Adapter(HTTPAdapter):
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


def dial(egress: Egress, fence: Fence, host: str, port: int, *, tls: bool) -> _PlainSocket:
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


def _resolve(host: str, port: int, fence: Fence) -> Resolved:
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


def _connect(family: int, sockaddr: tuple[Any, ...], fence: Fence, *, share: int) -> _PlainSocket:
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
