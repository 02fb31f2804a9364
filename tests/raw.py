"""Requests as a web server hands them to the application: header for header, byte for byte, nothing made polite.

Django's test client begins behind the point where a request is read; this begins before it.
"""

import io
import json
from contextlib import contextmanager
from dataclasses import dataclass

from django.core.signals import request_finished, request_started
from django.db import close_old_connections

from ticketing.wsgi import application


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self):
        return json.loads(self.body)


def send(method: str, target: str, body: bytes = b"", *, peer: str = "127.0.0.1", host: str = "testserver", **headers):
    """`target`: path and query, percent-encoded as on the wire. Headers by name with _ for -, such as Content_Type."""
    path, _, query = target.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": _unquoted(path),
        "QUERY_STRING": query,
        "SERVER_NAME": "no-host.invalid",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": peer,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if host:
        environ["HTTP_HOST"] = host
    for name, value in headers.items():
        name = name.upper()
        environ[name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"] = value
    answered: list = []
    with _connection_kept():
        reply = application(environ, lambda status, headers, exc_info=None: answered.extend((status, headers)))
        try:
            content = b"".join(reply)
        finally:
            reply.close()
    return Reply(int(answered[0].split()[0]), {name.lower(): value for name, value in answered[1]}, content)


@contextmanager
def _connection_kept():
    """The test's transaction is on the connection that a request would end."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    try:
        yield
    finally:
        for signal in (request_started, request_finished):
            signal.connect(close_old_connections)


def _unquoted(path: str) -> str:
    """As WSGI wants it: the bytes of the path, each as one character."""
    pieces = path.encode("latin-1").split(b"%")
    whole = pieces[0]
    for piece in pieces[1:]:
        try:
            whole += bytes([int(piece[:2], 16)]) + piece[2:]
        except ValueError:
            whole += b"%" + piece
    return whole.decode("latin-1")
