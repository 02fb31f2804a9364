"""The web server on real sockets: nobody waits for somebody else's slow upload, odd bytes never become a request."""

import http.client
import json
import socket
import threading
import time

import pytest

from tests.ports import free_port
from tests.waiting import until
from ticketing import web

LIMIT = 100_000
OK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Site:
    """A tiny application behind our server; it remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.environ: dict = {}
        self.gate = threading.Event()
        listener = web.listen("127.0.0.1", free_port())
        self.address = listener.getsockname()
        self.server = web.create(self.answer, listener, body_limit=LIMIT, threads=4)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def answer(self, environ, start_response):
        body = environ["wsgi.input"].read()
        self.environ = environ
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], len(body)))
        if environ["PATH_INFO"] == "/slow":
            self.gate.wait(60)
        if environ["PATH_INFO"] == "/broken":
            raise ValueError("the application's own mistake")
        reply = b"x" * 40_000_000 if environ["PATH_INFO"] == "/large" else b"hello"
        start_response("200 OK", [("Content-Length", str(len(reply)))])
        return [reply]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)

    def exchange(self, raw: bytes) -> bytes:
        """Everything that comes back until the server closes."""
        with self.connect() as client:
            client.sendall(raw)
            return read_all(client)

    def stop(self) -> None:
        self.gate.set()
        self.server.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(web, "LINGER_SECONDS", 60)  # a test may be slower than a client is given time to be
    site = Site()
    yield site
    site.stop()


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def refusal(raw: bytes) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of a reply after which the server closed. Raises if another reply followed."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body)


def test_sixty_stalled_uploads_delay_nobody(site, monkeypatch):
    monkeypatch.setattr(web, "ARRIVAL_SECONDS", 600)  # whoever waited for one of them would wait in vain
    stalled = [site.connect() for _ in range(60)]
    for client in stalled:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nx")
    took = []
    for _ in range(30):
        for client in stalled:
            client.sendall(b"x")
        began = time.monotonic()
        reply = http.client.HTTPConnection(*site.address, timeout=60)
        reply.request("GET", "/")
        assert reply.getresponse().read() == b"hello"
        reply.close()
        took.append(time.monotonic() - began)
    for client in stalled:
        client.close()
    assert sorted(took)[len(took) // 4] < 1  # as far as the machine does not delay all at once
    assert {path for _, path, _ in site.seen} == {"/"}


def test_stalled_readers_of_large_replies_hold_no_thread(site):
    stalled = [site.connect() for _ in range(6)]
    for client in stalled:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1) == b"H"
    reply = http.client.HTTPConnection(*site.address, timeout=60)
    reply.request("GET", "/")
    assert reply.getresponse().read() == b"hello"
    for client in [*stalled, reply]:
        client.close()


def test_a_request_that_takes_too_long_to_arrive_is_answered_with_408(site, monkeypatch):
    monkeypatch.setattr(web, "ARRIVAL_SECONDS", 0.1)
    clients = [site.connect(), site.connect()]
    clients[0].sendall(b"GET / HT")
    clients[1].sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nx")
    for client in clients:
        with client:
            status, _, body = refusal(read_all(client))
        assert status == 408
        assert body == {"status": "error", "message": "The request took too long to arrive.", "errors": {}}
    assert site.seen == []


def test_a_body_over_the_limit_is_answered_with_413_even_while_it_is_being_sent(site):
    headers = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {50 * LIMIT}\r\n\r\n".encode()
    status, sent, body = refusal(site.exchange(headers + b"x" * 50 * LIMIT))
    assert status == 413
    assert body == {"status": "error", "message": "The body is larger than 100000 bytes.", "errors": {}}
    assert sent["content-type"] == "application/json"
    assert sent["connection"] == "close"
    assert len(sent["x-request-id"]) == 32
    assert site.seen == []


def test_a_client_that_asks_first_is_told_not_to_send_too_much(site):
    headers = f"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
    assert refusal(site.exchange(headers.encode()))[0] == 413


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413)])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_is_exact(site, size, status, chunked):
    client = http.client.HTTPConnection(*site.address, timeout=60)
    pieces = [b"x" * 1000] * (size // 1000) + [b"x" * (size % 1000)]
    body = iter(filter(None, pieces)) if chunked else b"".join(pieces)
    client.request("POST", "/", body, encode_chunked=chunked)
    assert client.getresponse().status == status
    client.close()
    assert site.seen == ([("POST", "/", size)] if status == 200 else [])


def test_headers_over_the_limit_are_answered_with_431(site):
    raw = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"x" * 1_000_000 + b"\r\n\r\n"
    assert refusal(site.exchange(raw))[0] == 431
    assert site.seen == []


HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
        POST + b"Content-Length: +1\r\n\r\nx",
        POST + b"Content-Length: 0x1\r\n\r\nx",
        POST + b"Content-Length: 1_0\r\n\r\nxxxxxxxxxx",
        POST + b"Content-Length: -1\r\n\r\nx",
        POST + b"Content-Length:\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\n\r\nx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 2000,
        b"GET / HTTP/1.1\nHost: localhost\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET / extra HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    ],
    ids=repr,
)
def test_bytes_that_two_readers_could_take_differently_are_refused_and_what_follows_never_runs(site, raw):
    status, _, body = refusal(site.exchange(raw + HIDDEN))
    assert status == 400
    assert body == {"status": "error", "message": "This is not a well-formed HTTP/1.1 request.", "errors": {}}
    assert "/hidden" not in [path for _, path, _ in site.seen]


def test_well_formed_chunks_make_a_body(site):
    headers = POST + b"Transfer-Encoding: Chunked\r\nConnection: close\r\n\r\n"
    assert site.exchange(headers + b"3;a=b\r\nabc\r\n02\r\nde\r\n0\r\nTrailer: x\r\n\r\n").endswith(b"hello")
    assert site.seen == [("POST", "/", 5)]


def test_requests_on_one_connection_are_answered_in_turn(site):
    assert site.exchange(OK + OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).count(b"hello") == 2


def test_head_is_answered_without_a_body(site):
    raw = site.exchange(OK.replace(b"GET", b"HEAD") + OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    head, second = raw.split(b"\r\n\r\n", 1)
    assert b"Content-Length: 5" in head
    assert second.startswith(b"HTTP/1.1 200 OK")


def test_no_reply_names_the_software_behind_it(site):
    for raw in (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"nonsense\r\n\r\n"):
        reply = site.exchange(raw).lower()
        assert b"server:" not in reply
        assert b"waitress" not in reply


def test_the_application_sees_that_a_request_came_through_a_proxy(site):
    site.exchange(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nForwarded: for=192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\n"
        b"X_Forwarded_Host: evil\r\nConnection: close\r\n\r\n"
    )
    assert site.environ["HTTP_FORWARDED"] == "for=192.0.2.1"
    assert site.environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert site.environ["REMOTE_ADDR"] == "127.0.0.1"
    assert "HTTP_X_FORWARDED_HOST" not in site.environ


def test_a_mistake_of_the_application_is_answered_in_json(site):
    status, _, body = refusal(site.exchange(b"GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert (status, body["status"]) == (500, "error")
    assert "own mistake" not in body["message"]


def test_an_ending_server_finishes_what_it_has_begun_and_takes_nothing_new(site, monkeypatch):
    monkeypatch.setattr(web, "STOP_SECONDS", 60)
    idle = site.connect()
    running = site.connect()
    running.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: site.seen)
    site.server.stop()
    assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        site.connect()
    site.gate.set()
    reply = read_all(running)
    assert reply.startswith(b"HTTP/1.1 200 OK")
    assert reply.endswith(b"hello")
    idle.close()
    running.close()
