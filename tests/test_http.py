import contextlib
import gzip
import http.client
import ipaddress
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from platforms.contract import PlatformError
from platforms.egress import Egress
from platforms.http import Caller
from platforms.sockets import LeaseLost, clock
from tests.waiting import time_begins_with, until

LOOPBACK = Egress(["127.0.0.0/8"])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Accepts on 127.0.0.1 and lets `answer(connection, request)` do what it likes; keeps what was asked."""

    def __init__(self, answer, tls=None):
        self.answer, self.tls = answer, tls
        self.requests, self.connections = [], 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path="/"):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with contextlib.suppress(OSError), contextlib.closing(connection):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            while request := _read_request(connection):
                self.requests.append(request)
                if self.answer(connection, request) is False:
                    connection.close()
                    return

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def _read_request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def serve():
    servers = []

    def start(answer, tls=None):
        if isinstance(answer, bytes):
            whole = answer
            answer = lambda connection, request: connection.sendall(whole)  # noqa: E731
        servers.append(Server(answer, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def caller(seconds=60.0, **options):
    return Caller(**{"egress": LOOPBACK, "seconds": seconds, **options})


def failed(server, *, call=None, method="POST", **options):
    with pytest.raises(PlatformError) as caught:
        (call or caller()).request(method, server if isinstance(server, str) else server.url(), **options)
    return caught.value


def reply(status, body=b"", *headers):
    lines = [f"HTTP/1.1 {status} Some Reason", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# What a request is


def test_a_reply_tells_status_headers_text_and_json(serve):
    server = serve(reply(201, '{"née": 1}'.encode(), "X-One: two"))
    found = caller().request("PUT", server.url("/a?b=1"), json={"ü": "<x>"}, params={"c": "d e"}, headers={"X-Y": "z"})
    assert (found.status, found.headers["x-one"], found.text, found.json()) == (201, "two", '{"née": 1}', {"née": 1})
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /a?b=1&c=d+e HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}".encode() in head
    assert b"Accept-Encoding: identity" in head
    assert b"Content-Type: application/json" in head
    assert b"X-Y: z" in head
    assert body == b'{"\\u00fc": "<x>"}'


def test_basic_credentials_are_utf8_and_a_raw_body_goes_out_as_it_is(serve):
    server = serve(OK)
    caller().request("POST", server.url(), auth=("zoë", "påss"), body=b"{broken")
    assert b"Authorization: Basic em/Dqzpww6Vzcw==" in server.requests[0]
    assert server.requests[0].endswith(b"\r\n\r\n{broken")


def test_one_attempt_uses_one_connection_and_leaves_none_behind(serve):
    server = serve(OK)
    call = caller()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        call.request("GET", server.url())
    assert server.connections == 1
    del call
    if before:
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # the server's end closes after ours


def test_a_connection_that_the_server_closed_between_two_requests_is_replaced(serve):
    closed = threading.Semaphore(0)

    def answer(connection, request):
        connection.sendall(OK)
        connection.close()
        closed.release()
        return False

    server, call = serve(answer), caller()
    for _ in range(2):
        assert call.request("GET", server.url()).text == "ok"
        assert closed.acquire(timeout=60)
    assert server.connections == 2


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\n", "schlüssel", "…", "\x00"])
def test_a_header_that_cannot_be_sent_is_refused_before_anything_leaves(serve, value):
    server = serve(OK)
    error = failed(server, headers={"Authorization": f"Bearer {value}"})
    assert error.permanent
    assert not error.in_doubt
    assert value not in error.message
    assert server.connections == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "nonsense", "http:///x", "http://a\\@b/"])
def test_what_is_no_http_url_is_a_permanent_error(url):
    assert failed(url).permanent


# Deadline


DEADLINE = 1.0
# Bounds what ends at a deadline, however busy the machine: what it waits for would go on for much longer.
SOON_AFTER = 10.0
MUCH_LONGER = 60.0


def _drip(first, part):
    def answer(connection, request):
        connection.sendall(first)
        for _ in range(int(MUCH_LONGER / 0.05)):
            connection.sendall(part)  # fails once the client has left
            time.sleep(0.05)

    return answer


def _silence(connection, request):
    connection.settimeout(MUCH_LONGER)
    connection.recv(1)  # until the client leaves


@pytest.mark.parametrize(
    "answer",
    [
        _silence,
        _drip(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        _drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"a"),
        _drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        _drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        _drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silence", "headers", "body", "chunks", "chunk size", "100 Continue"],
)
def test_a_slow_answer_ends_at_the_deadline_in_doubt(serve, answer, monkeypatch):
    server, started = serve(answer), time.monotonic()
    time_begins_with(lambda: server.requests, monkeypatch)
    error = failed(server, call=caller(DEADLINE), json={})
    assert DEADLINE <= time.monotonic() - started < SOON_AFTER
    assert (error.message, error.in_doubt, error.permanent) == ("Connection timeout after 1s", True, False)


def test_the_deadline_is_one_for_all_requests_of_an_attempt(serve, monkeypatch):
    server = serve(OK)
    monkeypatch.setattr("platforms.sockets.clock", lambda: 300.0 * len(server.requests))  # each answer takes so long
    call = caller(1000)

    def ask_often():
        for _ in range(20):
            call.request("GET", server.url())

    with pytest.raises(PlatformError, match="timeout"):
        ask_often()
    assert len(server.requests) == 4


def test_a_server_that_accepts_but_never_shakes_hands_is_not_in_doubt():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        error = failed(f"https://127.0.0.1:{silent.getsockname()[1]}/", call=caller(0.3), json={})
    assert time.monotonic() - started < SOON_AFTER
    assert (error.message, error.in_doubt, error.permanent) == ("Connection timeout after 0.3s", False, False)


def test_a_slow_lookup_ends_at_the_deadline(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: over.wait(MUCH_LONGER) and [])
    started = time.monotonic()
    error = failed("https://slow.example/", call=caller(0.2))
    over.set()
    assert time.monotonic() - started < SOON_AFTER
    assert (error.message, error.in_doubt) == ("Connection timeout after 0.2s", False)


def test_an_upload_that_nobody_reads_ends_at_the_deadline_in_doubt(monkeypatch):
    begun, over = threading.Event(), threading.Event()

    def hear_one_byte():
        with deaf.accept()[0] as connection:
            if connection.recv(1):
                begun.set()
            over.wait(MUCH_LONGER)

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        threading.Thread(target=hear_one_byte, daemon=True).start()
        time_begins_with(begun.is_set, monkeypatch)
        body = b"x" * 50_000_000
        error = failed(f"http://127.0.0.1:{deaf.getsockname()[1]}/", call=caller(DEADLINE), body=body)
        over.set()
    assert error.in_doubt
    assert "timeout" in error.message


def test_nothing_is_sent_once_the_deadline_has_passed(serve):
    server = serve(OK)
    error = failed(server, call=caller(5, started=clock() - 6), json={})
    assert (error.message, error.in_doubt) == ("Connection timeout after 5s", False)
    assert server.connections == 0


def test_a_worker_whose_lease_went_while_it_connected_sends_nothing(serve):
    """The lease is asked right before the first byte leaves, not only before connecting."""
    server, answers = serve(OK), iter([False, True])
    error = failed(server, call=caller(lease_lost=lambda: next(answers)), json={})
    assert isinstance(error, LeaseLost)
    assert not error.in_doubt
    until(lambda: server.connections == 1)
    assert server.requests == []


def test_a_worker_that_slept_past_its_deadline_while_it_connected_sends_nothing(serve):
    server, naps = serve(OK), iter([0, 0.4])
    error = failed(server, call=caller(0.3, lease_lost=lambda: time.sleep(next(naps))), json={})
    assert (error.message, error.in_doubt) == ("Connection timeout after 0.3s", False)
    assert server.requests == []


def test_a_stopped_process_sends_nothing_after_its_deadline(serve):
    """The real thing: SIGSTOP while it waits for the first answer, SIGCONT past the deadline."""
    gate = threading.Event()
    server = serve(lambda connection, request: gate.wait(60) and connection.sendall(OK))
    code = f"""
from platforms.http import Caller
from platforms.egress import Egress
for _ in range(20):  # a slow machine may not come to send the first one in time
    call = Caller(egress=Egress(["127.0.0.0/8"]), seconds=2.5)
    try:
        call.request("GET", {server.url("/1")!r})
    except Exception as error:
        if not error.in_doubt:
            continue
    break
try:
    call.request("GET", {server.url("/2")!r})
except Exception as error:
    print(error, error.in_doubt)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        until(lambda: server.requests)
        process.send_signal(19)
        gate.set()
        time.sleep(2.6)
        process.send_signal(18)
        out, _ = process.communicate(timeout=60)
    assert out == "Connection timeout after 2.5s False\n"
    assert len(server.requests) == 1


# Broken connections


def test_a_refused_connection_is_not_in_doubt():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # it does not listen, and nobody else can
        port = closed.getsockname()[1]
        error = failed(f"http://127.0.0.1:{port}/secret/path", json={})
    assert error.message == f"Cannot connect to 127.0.0.1 port {port}: Connection refused"
    assert (error.in_doubt, error.permanent) == (False, False)


def test_an_unknown_name_is_not_in_doubt(monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failed("https://nowhere.invalid/secret")
    assert (error.message, error.in_doubt, error.permanent) == (
        "Cannot find the address of nowhere.invalid",
        False,
        False,
    )


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"garbage\r\n\r\n"])
def test_a_connection_cut_after_the_request_is_in_doubt(serve, answer):
    error = failed(serve(lambda connection, request: connection.sendall(answer) or False), json={})
    assert (error.in_doubt, error.permanent) == (True, False)


def test_a_reset_in_the_middle_of_the_body_is_in_doubt(serve):
    def answer(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        return False

    assert failed(serve(answer), json={}).in_doubt


# What a status means


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422])
def test_a_refusal_is_permanent(serve, status):
    error = failed(serve(reply(status, b"no_service")))
    assert (error.permanent, error.in_doubt, error.pause, error.status) == (True, False, False, status)
    assert error.message == f"{status} no_service"


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 529])
def test_a_servers_trouble_is_worth_another_try_and_in_doubt(serve, status):
    error = failed(serve(reply(status)))
    assert (error.permanent, error.in_doubt, error.pause, error.retry_after) == (False, True, False, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0), ("120", 120), ("1.5", 1.5), ("99999", 3600), ("1e400", None), ("nan", None), ("-5", None),
        ("soon", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("1, 2", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)  # fmt: skip
def test_too_many_requests_pauses_for_as_long_as_it_says(serve, value, seconds):
    error = failed(serve(reply(429, b"slow", f"Retry-After: {value}")))
    assert (error.permanent, error.in_doubt, error.pause, error.retry_after) == (False, False, True, seconds)


def test_a_date_to_retry_after_is_read_by_the_servers_own_clock(serve):
    now = datetime.now(UTC)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert 30 < failed(serve(reply(429, b"", f"Retry-After: {later}"))).retry_after < 91
    wrong = format_datetime(now + timedelta(seconds=60), usegmt=True)
    assert failed(serve(reply(429, b"", f"Retry-After: {later}", f"Date: {wrong}"))).retry_after == 30


def test_unavailable_with_a_time_to_come_back_pauses_too(serve):
    error = failed(serve(reply(503, b"", "Retry-After: 7")))
    assert (error.pause, error.retry_after, error.in_doubt) == (True, 7, False)


def test_an_expected_status_is_returned(serve):
    assert caller().request("GET", serve(reply(404, b"x")).url(), expect={404}).status == 404


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_its_target_never_contacted(serve, status):
    target = serve(OK)
    server = serve(reply(status, b"x" * 1000, f"Location: {target.url('/stolen')}"))
    error = failed(server, headers={"Authorization": "Bearer t0ken"}, json={})
    assert (error.message, error.permanent, error.in_doubt) == (f"{status} redirect refused", True, False)
    assert target.connections == 0
    assert len(server.requests) == 1


# Size


def _endless(head, part):
    def answer(connection, request):
        connection.sendall(head)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                connection.sendall(part)
        return False

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        _endless(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n", b"x" * 65536),
        _endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        _endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        _endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
        _endless(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 3000),
        _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3000),
    ],
    ids=["length", "no length", "chunks", "chunk size", "empty gzip members", "100 Continue"],
)
def test_an_endless_reply_is_given_up_with_flat_memory(serve, answer):
    server = serve(answer)
    tracemalloc.start()
    try:
        error = failed(server, call=caller())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # urllib3 itself gives up on a chunk size that has no end.
    assert error.message in ("The reply is larger than 1 MiB", "Connection broken before the reply was complete")
    assert error.in_doubt
    assert peak < 12_000_000


@pytest.mark.parametrize("layers", [1, 2])
def test_a_compression_bomb_is_given_up_with_flat_memory(serve, layers):
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b"\0" * 1_000_000) for _ in range(100)) + packer.flush()
    if layers == 2:
        bomb = gzip.compress(bomb)
    server = serve(reply(200, bomb, f"Content-Encoding: {', '.join(['gzip'] * layers)}"))
    tracemalloc.start()
    try:
        error = failed(server)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.message == "The reply is larger than 1 MiB"
    assert peak < 10_000_000


def test_a_compressed_reply_within_the_limit_is_read(serve):
    server = serve(reply(200, gzip.compress(b"x" * 1024 * 1024), "Content-Encoding: gzip"))
    assert len(caller().request("GET", server.url()).body) == 1024 * 1024


def test_a_reply_that_lies_about_its_compression_is_in_doubt(serve):
    error = failed(serve(reply(200, b"plain", "Content-Encoding: gzip")))
    assert error.in_doubt
    assert "compressed" in error.message


def test_a_refusal_with_an_endless_text_is_still_a_refusal(serve):
    server = serve(_endless(b"HTTP/1.1 400 Bad\r\n\r\n", b"no " * 20000))
    error = failed(server)
    assert (error.permanent, error.status) == (True, 400)
    assert len(error.message) == 300


@pytest.mark.parametrize("body", [b"<html>", b"", b"NaN", b"[" * 100_000, b"\xff", b'{"a": Infinity}', b"1" * 5000])
def test_a_reply_that_is_no_json_is_in_doubt(serve, body):
    found = caller().request("GET", serve(reply(200, body)).url())
    with pytest.raises(PlatformError) as caught:
        found.json()
    assert caught.value.in_doubt


# Secrets


SECRETS = {
    "plain": "s3cr3t/+key&<1>",
    "quoted": 'pa"ss\\wörd',
    "url": "https://hooks.slack.com/services/T00/B00/abcdefghijklmnop",
}


@pytest.mark.parametrize(
    "leak",
    [
        "s3cr3t/+key&<1>", "s3cr3t%2F%2Bkey%26%3C1%3E", "s3cr3t%2f%2bkey%26%3c1%3e", "s3cr3t/+key&amp;&lt;1&gt;",
        r'pa\"ss\\w\u00f6rd', "/services/T00/B00/abcdefghijklmnop", "abcdefghijklmnop", "czNjcjN0LytrZXkmPDE+",
        "dXNlcjpzM2NyM3QvK2tleSY8MT4=",
    ],
)  # fmt: skip
def test_no_form_of_a_secret_comes_through_an_error(serve, leak):
    server = serve(reply(400, f"bad: {leak} in request".encode()))
    call = caller(secrets=SECRETS.values())
    assert failed(server, call=call, auth=("user", SECRETS["plain"])).message == "400 bad: **** in request"


def test_what_a_request_authenticates_with_is_a_secret_without_being_named(serve):
    server = serve(reply(400, b"key abc123 of bad"))
    assert failed(server, headers={"Authorization": "GenieKey abc123"}).message == "400 key **** of bad"


def test_control_characters_are_escaped_and_long_texts_cut(serve):
    error = failed(serve(reply(400, b"a\r\n{\x1b[31m\x00}\xe2\x80\xae" + b"x" * 1000)))
    assert error.message.startswith("400 a {\\x1b[31m\\x00}\\u202exxx")
    assert len(error.message) == 300


def test_a_web_page_is_told_by_its_title(serve):
    page = b"<html><head><title>502 Bad &amp; gone</title></head>" + b"<p>x</p>" * 100
    assert failed(serve(reply(502, page))).message == "502 502 Bad & gone"
    assert failed(serve(reply(502, b""))).message == f"502 {http.client.responses[502]}"


def test_no_path_in_errors_or_logs(serve, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="urllib3")
    path = "/services/T00/B00/topsecret?token=topsecret"
    broken = [b"", b"HTTP/1.1 200 OK\r\n: bad header\r\nContent-Length: 2\r\n\r\nok", reply(500), reply(302)]
    for answer in broken:
        server = serve(lambda connection, request, answer=answer: connection.sendall(answer) or False)
        with contextlib.suppress(PlatformError):
            caller().request("POST", server.url(path), json={})
        assert server.requests
    message = failed(f"http://127.0.0.1:1{path}").message
    assert "topsecret" not in message + caplog.text


# Guard


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]",
     "localhost", "localhost.", "[::127.0.0.1]", "[64:ff9b::7f00:1]"],
)  # fmt: skip
def test_nothing_is_sent_to_a_private_address_however_it_is_written(serve, host):
    server = serve(OK)
    for scheme in ("http", "https"):
        error = failed(f"{scheme}://{host}:{server.port}/", call=caller(egress=Egress()), json={})
        assert not error.in_doubt
        # Not every resolver knows the name with a dot.
        assert "refused by this agent" in error.message or host == "localhost."
    assert server.connections == 0


def _names(monkeypatch, *answers):
    """Lets every name have these addresses, one list per question."""
    asked, real = iter(answers), socket.getaddrinfo

    def look_up(host, port, *args, **options):
        if host[0].isdigit():
            return real(host, port, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(asked)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_is_looked_up_once_and_what_was_judged_is_dialled(serve, monkeypatch):
    server = serve(OK)
    _names(monkeypatch, ["127.0.0.1"])  # a second question would find no answer
    call = caller(egress=Egress(["127.0.0.1/32"]))
    assert call.request("GET", f"http://rebind.example:{server.port}/").text == "ok"
    assert f"Host: rebind.example:{server.port}".encode() in server.requests[0]


def test_one_private_address_among_several_refuses_the_name_for_now(serve, monkeypatch):
    server = serve(OK)
    _names(monkeypatch, ["127.0.0.1", "10.0.0.1"])
    error = failed(f"http://two.example:{server.port}/", call=caller(egress=LOOPBACK))
    assert "a private address" in error.message
    assert not error.permanent
    assert server.connections == 0


def test_a_dead_address_leaves_time_for_the_next(serve, monkeypatch):
    server = serve(OK)
    _names(monkeypatch, ["127.0.0.2", "127.0.0.1"])  # nobody listens at the first
    assert caller().request("GET", f"http://two.example:{server.port}/").text == "ok"


def test_localhost_uses_the_address_that_is_allowed(serve):
    server = serve(OK)
    assert caller().request("GET", f"http://localhost:{server.port}/").text == "ok"


def test_the_environment_has_no_say(serve, monkeypatch, tmp_path):
    proxy, server = serve(OK), serve(OK)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url())
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    caller().request("GET", server.url())
    assert proxy.connections == 0
    assert b"authorization" not in server.requests[0].lower()


# TLS


def _certificate(folder, name, host="127.0.0.1", days=10):
    """A self-signed certificate for a host, as a server's context and the file to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    alternative = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=20))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file = folder / f"{name}.key"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, str(file)


def test_tls_works_with_a_ca_that_is_trusted(serve, tmp_path):
    context, ca_file = _certificate(tmp_path, "good")
    server = serve(OK, tls=context)
    call = caller(ca_file=ca_file)
    assert call.request("POST", server.url(), body=b"x" * 3_000_000).text == "ok"
    assert call.request("GET", server.url()).text == "ok"
    assert server.connections == 1
    assert len(server.requests[0]) > 3_000_000


def test_the_name_in_the_url_is_asked_of_the_server_and_checked(serve, tmp_path, monkeypatch):
    context, ca_file = _certificate(tmp_path, "named", host="jira.example")
    asked = []
    context.sni_callback = lambda sock, name, context: asked.append(name)
    server = serve(OK, tls=context)
    _names(monkeypatch, ["127.0.0.1"])
    caller(ca_file=ca_file).request("GET", f"https://jira.example:{server.port}/")
    assert asked == ["jira.example"]


@pytest.mark.parametrize(
    ("options", "trusted", "says"),
    [
        ({}, False, "self-signed certificate"),
        ({"days": -1}, True, "certificate has expired"),
        ({"host": "other.example"}, True, "IP address mismatch"),
    ],
)
def test_a_wrong_certificate_is_told_and_nothing_is_sent(serve, tmp_path, options, trusted, says):
    context, ca_file = _certificate(tmp_path, "wrong", **options)
    server = serve(OK, tls=context)
    error = failed(server, call=caller(ca_file=ca_file if trusted else None), json={})
    assert error.message.startswith(f"TLS certificate not accepted: {says}")
    assert (error.in_doubt, error.permanent) == (False, False)
    assert server.requests == []


def test_a_server_without_tls_is_told_from_a_broken_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 Bad\r\n\r\n"), daemon=True).start()
        error = failed(f"https://127.0.0.1:{listener.getsockname()[1]}/")
    assert error.message.startswith("TLS connection failed")
    assert not error.in_doubt


def test_a_drip_inside_tls_ends_at_the_deadline_too(serve, tmp_path, monkeypatch):
    context, ca_file = _certificate(tmp_path, "drip")
    server = serve(_drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"a"), tls=context)
    started = time.monotonic()
    time_begins_with(lambda: server.requests, monkeypatch)
    error = failed(server, call=caller(DEADLINE, ca_file=ca_file), json={})
    assert time.monotonic() - started < SOON_AFTER
    assert (error.message, error.in_doubt) == ("Connection timeout after 1s", True)
