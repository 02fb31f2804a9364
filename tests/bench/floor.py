"""`python -m tests.bench.floor FD KIND`: the product's web server in front of the floor, or of nothing at all.

Kind `drf` is the view in `floor_views`; `plain` is a WSGI application that says the same few bytes to all, so that what
the clients themselves can reach is known.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.bench.floor_settings"

from django.core.wsgi import get_wsgi_application  # noqa: E402

from ticketing import web  # noqa: E402

BODY_LIMIT = 10 * 1024 * 1024
SAID = b'{"received":1}'


def plain(environ: dict, start_response: Callable) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(SAID)))])
    return [SAID]


def main(fd: str, kind: str) -> None:
    application = plain if kind == "plain" else get_wsgi_application()
    server = web.create(application, socket.socket(fileno=int(fd)), body_limit=BODY_LIMIT)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    sys.setswitchinterval(0.001)  # as `manage.py serve`
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
