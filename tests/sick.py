"""A server that treats whoever connects in one bad way, and remembers for how long each stayed."""

import contextlib
import gzip
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

MEGABYTE = 1024 * 1024
HTML = b"<!DOCTYPE html><html><head><title>Please wait</title></head><body>Your instance is hibernating.</body></html>"
BOMB = gzip.compress(bytes(100 * MEGABYTE), 9)

Behaviour = Callable[["Sick", socket.socket], None]


@dataclass
class Visit:
    """One connection. `seconds`: until the visitor left, None while it is there."""

    seconds: float | None = None
    requests: int = 0


class Sick:
    """Listens while it is entered. `redirects_to`: where it sends people."""

    def __init__(
        self, behave: Behaviour, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.behave = behave
        self.tls = tls
        self.visits: list[Visit] = []
        self.redirects_to = ""
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, port), backlog=128)
        self.host, self.port = self._listener.getsockname()

    def __enter__(self) -> "Sick":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *list(self._open)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def requests(self) -> int:
        return sum(visit.requests for visit in self.visits)

    def stays(self) -> list[float]:
        """Seconds that those stayed who have left."""
        return [visit.seconds for visit in self.visits if visit.seconds is not None]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.visits.append(Visit())
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection, self.visits[-1]), daemon=True).start()

    def _serve(self, connection: socket.socket, visit: Visit) -> None:
        began = time.monotonic()
        try:
            with contextlib.suppress(OSError), contextlib.closing(self._wrapped(connection)) as wrapped:
                while self.behave is hang or _read_request(wrapped):
                    visit.requests += 1
                    self.behave(self, wrapped)
        finally:
            visit.seconds = time.monotonic() - began
            self._open.discard(connection)
            connection.close()

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        return self.tls.wrap_socket(connection, server_side=True) if self.tls else connection


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += connection.recv(65536)
    return head


# -- Behaviours. OSError: the visitor has left.


def hang(sick: Sick, connection: socket.socket) -> None:
    while connection.recv(65536):
        pass
    raise ConnectionAbortedError


def drip(sick: Sick, connection: socket.socket) -> None:
    """A byte a second, and a look whether somebody is still there in between."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100:
        connection.sendall(bytes([byte]))
        if select.select([connection], [], [], 1.0)[0] and not connection.recv(65536):
            raise ConnectionAbortedError


def answer(status: int, body: bytes = b"", headers: Mapping[str, str | Callable[[], str]] | None = None) -> Behaviour:
    def behave(sick: Sick, connection: socket.socket) -> None:
        told = {name: value if isinstance(value, str) else value() for name, value in (headers or {}).items()}
        lines = [f"HTTP/1.1 {status} Sick", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in told.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    return behave


def reset_in_the_body(sick: Sick, connection: socket.socket) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"status": "succ')
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionAbortedError


def huge(sick: Sick, connection: socket.socket) -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {100 * MEGABYTE}\r\n\r\n".encode())
    for _ in range(100):
        connection.sendall(b"x" * MEGABYTE)


def redirect(sick: Sick, connection: socket.socket) -> None:
    answer(307, headers={"Location": sick.redirects_to})(sick, connection)


def in_two_minutes() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)


def later(value: str | Callable[[], str]) -> Behaviour:
    return answer(429, b"Too many requests", {"Retry-After": value})


bomb = answer(200, BOMB, {"Content-Type": "application/json", "Content-Encoding": "gzip"})
html = answer(200, HTML, {"Content-Type": "text/html"})
unwell = answer(503)
