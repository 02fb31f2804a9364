"""Clients that cost little: one thread over raw sockets that are kept, requests made of bytes, replies barely read.

`saturate`: each client sends the next request when it has its answer. `paced`: requests leave when they are due, and
a server that stalls does not slow down who measures it.
"""

import heapq
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

STALLED_SECONDS = 120.0


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    sent_at: float  # wall clock, right before the request left
    seconds: float


@dataclass
class Slice:
    """What one stretch of saturation came to."""

    requests: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


class Failed(Exception):
    """The server did not answer as it should: there is nothing to measure."""


class Connection:
    """One client's socket, with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.whole = 0  # length of the reply, once its head is here
        self.head_ends = 0
        self.sent_at = self.began = 0.0

    def send(self, request: bytes) -> None:
        self.received, self.whole = b"", 0
        self.sent_at, self.began = time.time(), time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> Reply | None:
        """The reply, once it is complete."""
        data = self.socket.recv(262_144)
        if not data:
            raise Failed("The server has closed the connection.")
        self.received += data
        if not self.whole:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return None
            self.head_ends = end + 4
            self.whole = self.head_ends + _length(self.received[:end].lower())
        if len(self.received) < self.whole:
            return None
        seconds = time.perf_counter() - self.began
        return Reply(int(self.received[9:12]), self.received[self.head_ends :], self.sent_at, seconds)

    def ask(self, request: bytes) -> Reply:
        """Sends and waits."""
        self.send(request)
        self.socket.settimeout(STALLED_SECONDS)
        while (reply := self.receive()) is None:
            pass
        return _good(reply)

    def close(self) -> None:
        self.socket.close()


def _length(head: bytes) -> int:
    if head[9:12] == b"304":
        return 0
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise Failed("A reply without a Content-Length.")
    return int(head[at + 17 :].split(b"\r\n", 1)[0])


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request's bytes. Headers by name with _ for -."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    if method != "GET":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def saturate(port: int, make: Callable[[], bytes], *, clients: int, seconds: float) -> Slice:
    """Keeps `clients` connections busy for so many seconds."""
    done = Slice()
    connections = [Connection(port) for _ in range(clients)]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        began = time.perf_counter()
        end = began + seconds
        for connection in connections:
            connection.send(make())
        under_way = len(connections)
        while under_way:
            for key, _ in _ready(selector, STALLED_SECONDS):
                connection = key.data
                if (reply := connection.receive()) is None:
                    continue
                _good(reply)
                under_way -= 1
                now = time.perf_counter()
                if now < end or not done.requests:  # one at least, however short the slice
                    done.requests += 1
                    done.latencies.append(reply.seconds)
                    done.seconds = max(seconds, now - began)
                if now < end:
                    connection.send(make())
                    under_way += 1
    for connection in connections:
        connection.close()
    return done


def paced(port: int, due: Iterable[tuple[float, str, bytes]], *, connections: int = 32) -> dict[str, list[Reply]]:
    """Sends each request so many seconds after the beginning. The replies by the requests' names."""
    waiting = list(due)
    heapq.heapify(waiting)
    free = [Connection(port) for _ in range(connections)]
    everyone = list(free)
    names: dict[int, str] = {}
    replies: dict[str, list[Reply]] = {}
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for connection in everyone:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while waiting or len(free) < len(everyone):
            now = time.perf_counter() - began
            while waiting and free and waiting[0][0] <= now:
                _, name, content = heapq.heappop(waiting)
                connection = free.pop()
                names[id(connection)] = name
                connection.send(content)
            pause = max(0.0, waiting[0][0] - now) if waiting and free else STALLED_SECONDS
            for key, _ in _ready(selector, pause, stalled=not (waiting and free)):
                if (reply := key.data.receive()) is not None:
                    replies.setdefault(names.pop(id(key.data)), []).append(_good(reply))
                    free.append(key.data)
    for connection in everyone:
        connection.close()
    return replies


def _ready(selector: selectors.BaseSelector, seconds: float, *, stalled: bool = True) -> list:
    found = selector.select(seconds)
    if not found and stalled:
        raise Failed(f"No answer within {seconds:g} s.")
    return found


def _good(reply: Reply) -> Reply:
    if not 200 <= reply.status < 300 and reply.status != 304:
        raise Failed(f"{reply.status}: {reply.body[:200].decode(errors='replace')}")
    return reply
