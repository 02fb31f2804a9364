"""One HTTP/1.1 listener: sockets in, `Request`s out, `Answer`s back. Knows nothing of any vendor."""

import base64
import binascii
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.ports import free_port

BODY_LIMIT = 64 * 1024 * 1024


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # as sent, still percent-encoded, without the query
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def json(self) -> Any:
        """The body as JSON; ValueError where it is not (NaN and broken UTF-8 included)."""
        return json.loads(self.body.decode("utf-8"), parse_constant=_no_constant)

    @property
    def is_json(self) -> bool:
        return self.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"

    def basic(self) -> tuple[str, str] | None:
        """User and password of Basic authentication, or None."""
        scheme, _, code = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, colon, password = base64.b64decode(code.strip(), validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return (user, password) if colon else None


@dataclass(frozen=True)
class Answer:
    """`body` is sent as JSON unless it is text or bytes."""

    status: int
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, *, head_only: bool = False) -> bytes:
        content_type, payload = "application/json;charset=UTF-8", self.body
        if isinstance(payload, str):
            content_type, payload = "text/plain;charset=utf-8", payload.encode()
        elif not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        headers = {"Content-Type": content_type, "Content-Length": str(len(payload)), **self.headers}
        if self.status == 204:
            del headers["Content-Length"], headers["Content-Type"]
        lines = [f"HTTP/1.1 {self.status} Stand-in", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1") + (b"" if head_only else payload)


class Wire:
    """What may be done to one client's connection, politely or not."""

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self.connection = connection
        self.stopping = stopping
        self.open = True
        self.rude = False
        self.first_byte_at = 0.0  # of the latest request, by this machine's clock

    def send(self, data: bytes) -> None:
        try:
            self.connection.sendall(data)
        except OSError:  # the client has gone: its business
            self.open = False

    def drip(self, data: bytes, seconds: float) -> None:
        for offset in range(len(data)):
            if not self.open or self.stopping.is_set():
                return
            self.send(data[offset : offset + 1])
            self.stopping.wait(seconds)

    def wait_for_the_client_to_leave(self) -> None:
        self.open = False
        try:
            while self.connection.recv(65536):
                pass
        except OSError:
            pass

    def close(self) -> None:
        self.open = False

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rude, self.open = True, False


# Called when the head of a request has been read; `body()` reads the rest (None: the client stopped half way).
Serve = Callable[["Wire", str, str, Mapping[str, str], Callable[[], bytes | None]], None]


class _Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, connection: socket.socket, peer: tuple, wire: Wire, serve: Serve) -> None:
        self.wire, self.serve = wire, serve
        super().__init__(connection, peer, None)

    def handle_one_request(self) -> None:
        self.rfile.peek(1)  # returns with the first byte
        self.wire.first_byte_at = time.time()
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.serve(self.wire, self.command, self.path, headers, self._body)
        if not self.wire.open:
            self.close_connection = True

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > BODY_LIMIT:
            self.wire.send(Answer(411, "Length Required", {"Connection": "close"}).encode())
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def log_message(self, *args: object) -> None:
        """Silence: tests look at the state instead."""


class Listener:
    """Accepts on one port, a daemon thread per connection; may be stopped and started on the same port."""

    def __init__(self, serve: Serve, host: str, port: int) -> None:
        self._serve, self.host, self.port = serve, host, port
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._socket: socket.socket | None = None
        self.stopping = threading.Event()
        self.accepted = 0

    @property
    def connected(self) -> int:
        return len(self._connections)

    @property
    def busy(self) -> bool:
        """Whether anybody is connected, or waits to be."""
        listening = self._socket
        if listening is not None:
            waiting = select.poll()
            waiting.register(listening, select.POLLIN)
            if waiting.poll(0):
                return True
        return self.connected > 0

    def start(self) -> None:
        if self._socket is not None:
            return
        self.stopping = threading.Event()
        self.port = self.port or free_port(self.host)
        self._socket = socket.create_server((self.host, self.port), backlog=256)
        self._accepting = threading.Thread(target=self._accept, args=(self._socket, self.stopping), daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Refuse new connections and cut those that stand."""
        listening, self._socket = self._socket, None
        if listening is None:
            return
        self.stopping.set()
        try:  # accept() does not notice that its socket is closed: wake it with a connection
            socket.create_connection((self.host, self.port), timeout=30).close()
        except OSError:
            pass
        self._accepting.join(timeout=30)  # the port stays open for as long as accept() holds it
        listening.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _accept(self, listening: socket.socket, stopping: threading.Event) -> None:
        while True:
            try:
                connection, peer = listening.accept()
            except OSError:
                return
            if stopping.is_set():
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                self._connections.add(connection)
            threading.Thread(target=self._converse, args=(connection, peer, stopping), daemon=True).start()

    def _converse(self, connection: socket.socket, peer: tuple, stopping: threading.Event) -> None:
        wire = Wire(connection, stopping)
        try:
            _Conversation(connection, peer, wire, self._serve)
        except OSError:  # cut by the client or by stop()
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            if not wire.rude:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            connection.close()


def split_target(target: str) -> tuple[str, dict[str, list[str]]]:
    """A request target as path and query."""
    parts = urlsplit(target)
    return parts.path, parse_qs(parts.query, keep_blank_values=True)
