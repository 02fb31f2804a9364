"""The product as in production, its stand-ins and its floor, as processes on this machine: all end with this one."""

import atexit
import base64
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import closing
from http.cookiejar import CookieJar
from pathlib import Path

import psycopg

from tests.bench.load import Connection, Failed, request
from tests.engines import NOT_OURS
from tests.engines import _start_postgres as start_postgres
from ticketing import processes, web
from ticketing.processes import ROOT
from ticketing.supervisor import end_with_parent

# Where a critical incident goes unless somebody says otherwise.
PLATFORMS = ("pagerduty", "slack", "jira")
PATIENCE = 300.0
PASSWORD = "the-benchmark-asks"


class Rig:
    """`engine`: postgres, with the durability it has by default, or sqlite, as the product sets it up."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.running: dict[str, subprocess.Popen] = {}
        self.ports: dict[str, int] = {}

    def __enter__(self) -> "Rig":
        self.folder = Path(tempfile.mkdtemp(prefix="ticketing-bench-"))
        # After PostgreSQL has ended, which writes to it.
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.running.values():
                if process.poll() is None:
                    process.send_signal(number)
            for process in self.running.values():
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    continue

    def _start(self) -> None:
        self.folder.chmod(0o711)  # PostgreSQL's user passes through
        data_dir = self.folder / "data"
        data_dir.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        self.environment |= {
            "DATA_DIR": str(data_dir),
            "DATABASE_URL": "",
            "BROKER_URL": processes.broker_url(data_dir),
            "LOCAL_MODE": "0",
            "SECRET_KEY": secrets.token_urlsafe(40),
            "ENCRYPTION_KEYS": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "ALLOWED_HOSTS": "127.0.0.1",
            "RATE_LIMIT_PER_SECOND": "0",  # one key sends as much as all producers together
            "EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8",
            "DJANGO_SETTINGS_MODULE": "ticketing.settings",
        }
        if self.engine == "postgres":
            self.environment["DATABASE_URL"] = start_postgres(self.folder / "postgres", ())
        self.key = self.python("-m", "tests.bench.data", "begin", PASSWORD)
        self._start_product(data_dir)
        for kind in ("drf", "plain"):
            self._serve(kind, lambda fd, kind=kind: (sys.executable, "-m", "tests.bench.floor", str(fd), kind))
        self._configure()

    def _start_product(self, data_dir: Path) -> None:
        self.start("standins", (sys.executable, "-m", "tests.standins"), stdout=subprocess.PIPE)
        self.standins = json.loads(self.running["standins"].stdout.readline())
        self.start("broker", processes.broker(data_dir).argv)
        self._serve("web", processes.web)
        self._serve("local", processes.web, LOCAL_MODE="1")
        self.start("worker", processes.worker())
        self.start("beat", processes.beat(data_dir))

    def _serve(self, name: str, argv, **environment: str) -> None:
        listener = web.listen("127.0.0.1", 0)
        self.ports[name] = listener.getsockname()[1]
        self.start(name, argv(listener.fileno()), keep=listener.fileno(), PORT=str(self.ports[name]), **environment)
        listener.close()

    def start(self, name: str, argv, *, keep: int | None = None, stdout=None, **environment: str) -> None:
        parent = os.getpid()
        address = f"http://127.0.0.1:{environment.get('PORT', 1)}"
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=self.environment | {"PUBLIC_URL": address} | environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                pass_fds=() if keep is None else (keep,),
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(parent, signal.SIGKILL),
            )

    def python(self, *words: str, **environment: str) -> str:
        environment = self.environment | {"PUBLIC_URL": "http://127.0.0.1:1"} | environment
        done = subprocess.run(
            (sys.executable, *words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        if done.returncode:
            raise Failed(f"{' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def _configure(self) -> None:
        for name in ("web", "local", "drf", "plain"):
            # The sockets listen already: who asks too early waits.
            Connection(self.ports[name]).ask(request("GET", "/floor" if name in ("drf", "plain") else "/health"))
        client = Connection(self.ports["web"])
        body = json.dumps({name: {"enabled": True} | self.standins[name] for name in PLATFORMS}).encode()
        client.ask(self.request("PATCH", "/api/v1/config/platforms", body))
        self.wait_for("SELECT count(*) > 0 FROM incidents_pulse WHERE name LIKE 'sweep:%'", "the worker")

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """With the key, as a producer or a dashboard sends it."""
        return request(method, path, body, Authorization=f"Bearer {self.key}")

    def session(self) -> str:
        """The cookies of somebody who has logged in to the console."""
        address = f"http://127.0.0.1:{self.ports['web']}/admin/login/"
        jar = CookieJar()
        browser = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(jar), urllib.request.ProxyHandler({})
        )
        browser.open(address, timeout=PATIENCE).close()
        token = next(cookie.value for cookie in jar if cookie.name.startswith("csrf"))
        form = {"csrfmiddlewaretoken": token, "username": "bench", "password": PASSWORD, "next": "/health"}
        browser.open(address, urllib.parse.urlencode(form).encode(), timeout=PATIENCE).close()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)

    def query(self, sql: str) -> list[tuple]:
        if self.engine == "sqlite":
            with closing(sqlite3.connect(self.folder / "data" / "ticketing.sqlite3", timeout=20)) as database:
                return database.execute(sql).fetchall()
        with psycopg.connect(self.environment["DATABASE_URL"]) as database:
            return database.execute(sql).fetchall()

    def wait_for(self, sql: str, words: str) -> None:
        """Until the query's first value is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.query(sql)[0][0]:
            if time.monotonic() > deadline:
                raise Failed(f"Waited in vain for {words}: {(self.folder / 'worker.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def settle(self) -> None:
        self.wait_for("SELECT count(*) = 0 FROM incidents_ticket WHERE due_at IS NOT NULL", "tickets in step")

    def arrivals(self, platform: str) -> list[dict]:
        """The latest requests of a stand-in, with the moment of each one's first byte."""
        return json.loads(Connection(self.standin_port(platform)).ask(request("GET", "/_arrivals")).body)

    def standin_port(self, platform: str) -> int:
        address = next(value for value in self.standins[platform].values() if value.startswith("http://"))
        return urllib.parse.urlsplit(address).port

    def memory(self, name: str) -> float | None:
        """The process's share of the machine's memory in MiB, shared pages by halves (PSS)."""
        try:
            text = Path(f"/proc/{self.running[name].pid}/smaps_rollup").read_text()
        except OSError:
            return None
        return int(text.partition("\nPss:")[2].split()[0]) / 1024

