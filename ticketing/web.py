"""The web server: waitress, which reads requests in its own loop, so that a slow client holds none of our threads.

What waitress leaves open is settled here: a byte stream that a proxy could read differently is refused and the
connection closed; refusals are told in our JSON and reach a client that is still sending; a request must arrive at a
sensible pace; an ending server finishes what it has begun.
"""

import errno
import json
import logging
import re
import resource
import socket
import time
import uuid
from collections.abc import Callable

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError, TransferEncodingNotImplemented
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest, Error, RequestEntityTooLarge

log = logging.getLogger(__name__)

THREADS = 8
HEADER_LIMIT = 64 * 1024
IDLE_SECONDS = 75  # longer than nginx keeps its own end (60 s): a proxy must not find the connection closed
# A request must be here after this many seconds, and one more for each of so many bytes.
ARRIVAL_SECONDS = 20
ARRIVAL_BYTES = 1000
LINGER_SECONDS = 5
LINGER_BYTES = 64 * 1024 * 1024
STOP_SECONDS = 7  # the supervisor kills after 8
LAST_UPLOAD_SECONDS = 2

CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
TRANSFER_ENCODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError where the address cannot be had."""
    if not 0 <= port <= 65535:  # getaddrinfo would take the remainder
        raise OSError(errno.EINVAL, "a port is a number up to 65535")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def create(application: Callable, listener: socket.socket, *, body_limit: int, threads: int = THREADS) -> "Server":
    """A server for `listener`, not yet running. Bodies of more than `body_limit` bytes are answered with 413."""
    adjustments = Adjustments(
        ident=None,
        threads=threads,
        connection_limit=_connection_limit(),
        channel_timeout=IDLE_SECONDS,
        cleanup_interval=1,
        asyncore_use_poll=True,
        recv_bytes=65536,
        max_request_header_size=HEADER_LIMIT,
        max_request_body_size=body_limit + 1024 * 1024,  # with what chunks add; the parser counts exactly
        # A reader who stalls must hold no thread either: what he does not fetch waits in a file.
        outbuf_high_watermark=2**40,
        log_socket_errors=False,
        # The application decides whom it believes; a request that came through a proxy must not look local to it.
        clear_untrusted_proxy_headers=False,
        server_name="no-host.invalid",
    )
    adjustments.body_limit = body_limit
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(threads)
    return Server(
        application,
        map={},
        _sock=listener,
        dispatcher=dispatcher,
        adj=adjustments,
        bind_socket=False,
        sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
    )


def _connection_limit() -> int:
    """As many as the open files allow: a connection with a large body or reply has a second file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return 10_000 if soft == resource.RLIM_INFINITY else min(10_000, (soft - 100) // 2)


class RequestTimeout(Error):
    code = 408
    reason = "Request Timeout"


class ChunkedBody:
    """A chunked body, read by the letter: lines end with CR LF and nothing else, and are short."""

    completed = False
    error: Error | None = None

    def __init__(self, buffer: OverflowableBuffer) -> None:
        self.buffer = buffer
        self.line = b""
        self.remain = 0  # of the current chunk
        self.expected = "size"  # or "end" of a chunk, or "trailer"
        self.trailers = 0

    def __len__(self) -> int:
        return len(self.buffer)

    def getfile(self):
        return self.buffer.getfile()

    def getbuf(self) -> OverflowableBuffer:
        return self.buffer

    def received(self, data: bytes) -> int:
        """Takes what belongs to this body and says how much that was."""
        at = 0
        while at < len(data) and not self.completed and not self.error:
            if self.remain:
                piece = data[at : at + self.remain]
                self.buffer.append(piece)
                self.remain -= len(piece)
                at += len(piece)
                continue
            end = data.find(b"\n", at) + 1
            self.line += data[at : end or len(data)]
            at = end or len(data)
            if len(self.line) > 1024:
                self._refuse()
            elif end:
                line, self.line = self.line, b""
                self._read_line(line)
        return at

    def _read_line(self, line: bytes) -> None:
        text = line.removesuffix(b"\r\n")
        if text == line:
            self._refuse()
        elif self.expected == "size":
            size = CHUNK_SIZE.fullmatch(text)
            if not size:
                return self._refuse()
            self.remain = int(size[1], 16)
            self.expected = "end" if self.remain else "trailer"
        elif self.expected == "end":
            self.expected = "size"
            if text:
                self._refuse()
        elif not text:
            self.completed = True
        else:
            self.trailers += 1  # read and dropped
            if self.trailers > 20:
                self._refuse()

    def _refuse(self) -> None:
        self.error = BadRequest("chunks")


class Parser(HTTPRequestParser):
    """Refuses what two readers could understand in two ways (RFC 9112, 6.1 and 11.2)."""

    # waitress names them in its log even where a request had none.
    path = command = ""

    def __init__(self, adj: Adjustments) -> None:
        super().__init__(adj)
        self.began = time.monotonic()

    def received(self, data: bytes) -> int:
        taken = super().received(data)
        if self.chunked and self.completed and not self.error and len(self.body_rcv) > self.adj.body_limit:
            self.error = RequestEntityTooLarge("body")
        if self.completed:
            self.expect_continue = False  # nothing is left to send, or a refusal is the answer to "may I send it?"
        return taken

    def parse_header(self, header_plus: bytes) -> None:
        if re.search(rb"\r\n[ \t]", header_plus):
            raise ParsingError("folded header")
        try:
            super().parse_header(header_plus)
        except TransferEncodingNotImplemented as error:
            raise ParsingError("transfer encoding") from error
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("version")
        host = self.headers.get("HOST")
        if host is None and self.version == "1.1" or host and "," in host:
            raise ParsingError("host")
        encodings = TRANSFER_ENCODING.findall(header_plus)
        if encodings:
            once = len(encodings) == 1 and encodings[0].strip(b" \t").lower() == b"chunked"
            if not once or self.version == "1.0" or "CONTENT_LENGTH" in self.headers:
                raise ParsingError("transfer encoding")
            self.body_rcv = ChunkedBody(OverflowableBuffer(self.adj.inbuf_overflow))
        elif self.content_length > self.adj.body_limit:
            self.content_length = self.adj.max_request_body_size  # what waitress refuses

    def late(self, now: float) -> bool:
        """Does it come more slowly than any honest client sends?"""
        received = self.header_bytes_received + self.body_bytes_received
        return now - self.began > ARRIVAL_SECONDS + received / ARRIVAL_BYTES


class Refusal(ErrorTask):
    """What the server itself has to say, in the API's shape, without a word on who says it."""

    def execute(self) -> None:
        code, reason = self.request.error.code, self.request.error.reason
        request_id = uuid.uuid4().hex
        log.info("Refused: %s", self._message(code), extra={"status": code, "request_id": request_id})
        self.status = f"{code} {reason}"
        body = json.dumps({"status": "error", "message": self._message(code), "errors": {}}).encode()
        self.response_headers += [
            ("Content-Type", "application/json"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Request-ID", request_id),
        ]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)

    def _message(self, code: int) -> str:
        return {
            400: "This is not a well-formed HTTP/1.1 request.",
            408: "The request took too long to arrive.",
            413: f"The body is larger than {self.channel.adj.body_limit} bytes.",
            431: f"The headers are larger than {HEADER_LIMIT} bytes.",
        }.get(code, "Something went wrong here; it is in our log.")


class Answer(WSGITask):
    def execute(self) -> None:
        if self.channel.server.stopping:
            self.set_close_on_finish()
        super().execute()

    def write(self, data: bytes) -> None:
        if self.request.command != "HEAD":
            return super().write(data)
        # The headers alone: a body would be read as the next answer.
        super().write(b"")
        self.chunked_response = False


class Channel(HTTPChannel):
    """One connection."""

    task_class = Answer
    error_task_class = Refusal
    parser_class = Parser
    refused = False
    lingering = 0  # bytes read since the refusal was sent, from 1 up

    def service(self) -> None:
        self.refused = self.requests[0].error is not None
        super().service()

    def handle_write(self) -> None:
        if not (self.refused and self.close_when_flushed):
            return super().handle_write()
        self._flush_exception(self._flush_some)
        if self.will_close:
            self.handle_close()
        elif not self.total_outbufs_len:
            self._linger()

    def _linger(self) -> None:
        """Closing while the client still sends would reset the connection, and the refusal would be lost with it."""
        self.close_when_flushed = False
        self.lingering = 1
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()

    def readable(self) -> bool:
        return bool(self.lingering and not self.will_close) or super().readable()

    def handle_read(self) -> None:
        if not self.lingering:
            return super().handle_read()
        try:
            self.lingering += len(self.recv(self.adj.recv_bytes))
        except OSError:
            self.handle_close()
        if self.lingering > LINGER_BYTES:
            self.will_close = True

    def busy(self) -> bool:
        return bool(self.requests or self.total_outbufs_len)

    def give_up(self) -> None:
        """Answers 408 to a request that is not here in time."""
        with self.requests_lock:
            if self.request is None or self.requests:
                return
            self.request.error = RequestTimeout("")
            self.requests.append(self.request)
            self.request = None
        self.server.add_task(self)


class Server(TcpWSGIServer):
    channel_class = Channel
    stopping = False

    def handle_accept(self) -> None:
        """Takes several at once: a round of the loop costs more, the more connections there are."""
        for _ in range(64):
            before = len(self._map)
            super().handle_accept()
            if len(self._map) == before or before >= self.adj.connection_limit:
                return

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        clock = time.monotonic()
        for channel in list(self.active_channels.values()):
            if channel.lingering:
                channel.will_close |= channel.last_activity < now - LINGER_SECONDS
            elif channel.request is not None and not channel.requests and channel.request.late(clock):
                channel.give_up()

    def stop(self) -> None:
        """Ends `run` when what was begun is finished. May be called from a signal handler."""
        self.stopping = True
        try:
            self.pull_trigger()
        except OSError:  # it looked up by itself, has ended, and left no trigger to pull
            pass

    def run(self) -> None:
        while not self.stopping:
            wasyncore.loop(timeout=1, use_poll=True, map=self._map, count=1)
        wasyncore.dispatcher.close(self)  # nobody new; a supervisor's copy of the socket keeps the others waiting
        began = time.monotonic()
        while (passed := time.monotonic() - began) < STOP_SECONDS:
            wasyncore.loop(timeout=0.05, use_poll=True, map=self._map, count=1)
            pending = [c for c in self.active_channels.values() if self._pending(c, passed)]
            for channel in set(self.active_channels.values()).difference(pending):
                channel.will_close = True
            if not pending:
                break
        wasyncore.loop(timeout=0, use_poll=True, map=self._map, count=1)
        self.task_dispatcher.shutdown(timeout=0.2)
        wasyncore.close_all(self._map)

    @staticmethod
    def _pending(channel: Channel, passed: float) -> bool:
        return channel.busy() or passed < LAST_UPLOAD_SECONDS and channel.request is not None
