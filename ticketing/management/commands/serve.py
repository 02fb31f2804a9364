"""`manage.py serve`: answers HTTP on HOST:PORT, or on a socket that a supervisor hands over."""

import signal
import socket
import sys

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from incidents import counters
from ticketing import web
from ticketing.wsgi import application


class Command(BaseCommand):
    help = "Runs the web server."
    requires_system_checks = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("--fd", type=int, help="a listening socket to use instead of HOST:PORT")

    def handle(self, *args, fd: int | None, **options) -> None:
        try:
            listener = socket.socket(fileno=fd) if fd is not None else web.listen(settings.HOST, settings.PORT)
        except OSError as error:
            raise CommandError(f"cannot listen on {settings.HOST}:{settings.PORT}: {error.strerror}.") from error
        server = web.create(application, listener, body_limit=settings.REQUEST_BODY_LIMIT)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        # The loop that reads and writes for all shares one lock with the threads that answer; with Python's own 5 ms a
        # finished answer waits longer for the loop's turn than it took to make.
        sys.setswitchinterval(0.001)
        counters.start()
        server.run()
        counters.stop()
