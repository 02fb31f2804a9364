"""`manage.py up`: the whole product on one machine, in the foreground. `make run` calls it."""

import os
import shlex
import signal
import socket
import sys
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connection, connections
from django.db.migrations.executor import MigrationExecutor

from config import rotation
from ticketing import processes, web
from ticketing.claim import Busy, Claim
from ticketing.supervisor import Supervisor, end_with_parent
from ticketing.terminal import Output

EVENT = '{"service": "checkout", "severity": "critical", "score": 0.97, "title": "Twelve times the usual errors"}'

UP = """
  Ticketing Agent is up. Ctrl-C ends it.

    API      {url}/api/incidents
    Console  {url}/admin/
    Docs     {url}/api/docs

  A login for the console:
    {manage} createsuperuser --noinput

  The first incident:
    curl -s {url}/api/v1/anomalies -H 'Content-Type: application/json'{key} \\
      -d '{event}'

  Only scores of at least minimumScore (0.85 until you change it) open incidents. Producers often send 0.3 to 0.65:
    curl -s -X PATCH {url}/api/v1/config/anomaly -H 'Content-Type: application/json'{key} \\
      -d '{{"minimumScore": 0.3}}'

"""


class Command(BaseCommand):
    help = "Runs everything the product needs: web, worker, beat, and a broker unless BROKER_URL is set."
    requires_system_checks = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("--with-parent", action="store_true", help="end when whoever started this does")
        parser.add_argument("--demo", action="store_true", help="with stand-in platforms, and a week of faults")

    def handle(self, *args, with_parent: bool, demo: bool, **options) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to end in order
        parent = os.getppid()
        if with_parent:
            end_with_parent(parent, signal.SIGTERM)
        claim = _claim(settings.DATA_DIR)
        listener = _listen(settings.HOST, settings.PORT)
        if demo:
            _begin_anew(settings.DATA_DIR)
        _migrate()
        with_broker = not os.environ.get("BROKER_URL", "").strip()
        if with_broker:
            _own_folder(processes.broker_socket(settings.DATA_DIR).parent)
        product = processes.product(settings.DATA_DIR, web_fd=listener.fileno(), with_broker=with_broker)
        if demo:
            product.append(processes.demo())
        supervisor = Supervisor(
            product, claim=claim, output=Output(sys.stdout.fileno(), [process.name for process in product])
        )
        supervisor.checks.append(Greeting(listener, supervisor))
        if with_parent:
            supervisor.checks.append(ParentWatch(parent, supervisor))
        supervisor.run()


def _claim(directory: Path) -> Claim:
    try:
        return Claim(directory)
    except Busy as busy:
        raise CommandError(
            f"it already runs in {directory} (process {busy.pid}). For a second copy: DATA_DIR=… PORT=… make run"
        ) from busy
    except OSError as error:
        raise CommandError(f"DATA_DIR={directory} cannot be used: {error.strerror}.") from error


def _begin_anew(directory: Path) -> None:
    """The stand-ins remember nothing of an earlier demo, so its database goes. Nobody else's does."""
    mark, database = directory / "demo", directory / "ticketing.sqlite3"
    if database.exists() and not mark.exists():
        raise CommandError(f"{directory} holds somebody's data. Run the demo in a DATA_DIR of its own.")
    mark.touch()
    for file in directory.glob("ticketing.sqlite3*"):
        file.unlink()


def _listen(host: str, port: int) -> socket.socket:
    """The supervisor holds the socket, so that connections wait while the web server is started again."""
    try:
        return web.listen(host, port)
    except OSError as error:
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another port: PORT=… make run"
        ) from error


def _migrate() -> None:
    """Only when something is to be done: looking takes a tenth of the time."""
    try:
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            call_command("migrate", interactive=False, verbosity=0)
        if sentence := rotation.unreadable():
            raise CommandError(f"refused to start. {sentence} Give it, or see manage.py reencrypt --forget-unreadable.")
    except OperationalError as error:
        raise CommandError(f"the database does not answer: {str(error).splitlines()[0]}") from error
    finally:
        connections.close_all()


def _own_folder(folder: Path) -> None:
    """The broker's socket lies in a folder that nobody else could have put there."""
    if folder == settings.DATA_DIR:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise CommandError(f"{folder} belongs to somebody else; remove it or choose a shorter DATA_DIR.")


class Greeting:
    """Tells, once the web server answers, where everything is."""

    def __init__(self, listener: socket.socket, supervisor: Supervisor) -> None:
        self.host, self.port = listener.getsockname()[:2]
        if self.host in ("0.0.0.0", "::"):
            self.host = "127.0.0.1" if self.host == "0.0.0.0" else "::1"
        self.supervisor = supervisor
        self.socket: socket.socket | None = None

    def __call__(self) -> float | None:
        try:
            answer = self._answer()
        except OSError:
            self.socket = None
            return 0.5
        if not answer:
            return 0.05
        self.supervisor.output.text(self._text())
        return None

    def _answer(self) -> bool:
        """The connection waits in the listening socket's queue until the web server is there."""
        if not self.socket:
            self.socket = socket.create_connection((self.host, self.port), timeout=1)
            self.socket.setblocking(False)
            name = next((host.lstrip(".") for host in settings.ALLOWED_HOSTS if host != "*"), "localhost")
            self.socket.send(f"GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        try:
            answer = self.socket.recv(64)
        except BlockingIOError:
            return False
        self.socket.close()
        self.socket = None
        return answer.startswith(b"HTTP/1.1 200")

    def _text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        account = ("USERNAME=me", "PASSWORD=choose-one", "EMAIL=me@localhost")
        login = " ".join(f"DJANGO_SUPERUSER_{word}" for word in account)
        given = [name for name in ("LOCAL_MODE", "DATA_DIR") if os.environ.get(name)]
        same = [f"{name}={shlex.quote(os.environ[name])}" for name in given]
        if os.environ.get("DATABASE_URL"):
            same.append('DATABASE_URL="$DATABASE_URL"')  # it may hold a password
        python = sys.executable.removeprefix(f"{os.getcwd()}/")
        return UP.format(
            url=f"http://{host}:{self.port}",
            manage=f"{login} \\\n      {' '.join(same)} {shlex.quote(python)} manage.py",
            event=EVENT,
            key="" if settings.LOCAL_MODE else " -H 'Authorization: Bearer tka_…'",
        )


class ParentWatch:
    """Ends the product when the process that started it was asked to end and told nobody.

    GNU make passes SIGTERM on, but relies on the terminal for SIGINT and SIGHUP: sent to make alone, it waits for us
    and we for it. What it does do is to put these signals' handling back to the default.
    """

    def __init__(self, parent: int, supervisor: Supervisor) -> None:
        self.parent = parent
        self.supervisor = supervisor
        self.caught = self._caught()

    def __call__(self) -> float | None:
        if self.caught & ~self._caught():
            self.supervisor.stop()
            return None
        return 0.5

    def _caught(self) -> int:
        """The set of signals that the parent handles itself. Empty where the system does not tell."""
        try:
            lines = Path(f"/proc/{self.parent}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
