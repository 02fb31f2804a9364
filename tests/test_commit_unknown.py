"""Whether a commit was made is unknown: the connection is cut around it, or the database's own process dies in it.

The client is told 503, and whoever repeats the request finds it made once: before, or now.
"""

import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from rest_framework.test import APIClient

from auditlog.models import Entry
from config import current, keys
from incidents.models import Anomaly, Incident, SeenEvent, Ticket
from tests import engines, forks

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="about a database that is reached over a network"),
]
CHUNK = 65536
BACKEND = b"K\x00\x00\x00\x0c"  # PostgreSQL's word of the number of the process that serves the connection
COMMIT = b"COMMIT"


class Proxy:
    """Stands between one session and its database, and is told of each thing that the session sends."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.sent: list[bytes] = []
        self.backend = 0  # its process
        self.cut_at: int | None = None  # the connection ends at the n-th of them, from 0
        self.answered = False  # it has come to the database, whose answer is lost
        self.before: Callable[[bytes], None] = lambda data: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.target)) as server:
                try:
                    self._carry(client, server)
                except OSError:
                    pass  # one of the two has gone

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        cut = False
        while True:
            for source in select([client, server], [], [])[0]:
                data = source.recv(CHUNK)
                if not data or (cut and source is server):
                    return
                if source is server:
                    if (at := data.find(BACKEND)) >= 0 and not self.backend:
                        [self.backend] = struct.unpack_from("!I", data, at + len(BACKEND))
                    client.sendall(data)
                    continue
                cut = len(self.sent) == self.cut_at
                self.sent.append(data)
                if cut and not self.answered:
                    return
                self.before(data)
                server.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Callable[[], Proxy]]:
    """Makes proxies to the tests' database, or to another."""
    made: list[Proxy] = []

    def make(port: int | None = None) -> Proxy:
        made.append(Proxy(port or int(connection.settings_dict["PORT"])))
        return made[-1]

    yield make
    for one in made:
        one.close()


def session(job: Callable[[], object], **settings: object) -> object:
    """What a thread returns that has a database session of its own, with other settings than ours."""

    def run() -> object:
        connection.settings_dict = connection.settings_dict | settings
        try:
            return job()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(60)


def post(key: str, path: str, body: object) -> tuple[int, dict]:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {key}")
    response = client.post(path, body, format="json")
    return response.status_code, response.json()


def event(name: str) -> dict:
    return {"service": name, "severity": "critical", "score": 4.2, "eventId": name}


def books(name: str) -> tuple[int, ...]:
    """How many there are of what one event must leave one of each: incidents, anomalies, and so on."""
    incidents = Incident.objects.filter(service=name)
    entries = Entry.objects.filter(subject__in=[incident.subject for incident in incidents])
    counted = sum(incidents.values_list("anomaly_count", flat=True))
    events = Anomaly.objects.filter(event_id=name), SeenEvent.objects.filter(event_id=name)
    return len(incidents), counted, entries.count(), *(rows.count() for rows in events)


@pytest.mark.fault("B3")
def test_a_connection_that_is_cut_around_a_commit_is_503_and_a_repeat_counts_once(connect, client_of, proxy, faults):
    connect("pagerduty", "slack")
    _, key = keys.create(name="producer", role="producer", actor="system")
    through = proxy()
    current._kept = None
    status, _ = session(lambda: post(key, "/api/v1/anomalies", event("whole")), PORT=through.port)
    assert status == 200
    sent = through.sent
    [commit] = [number for number, data in enumerate(sent) if COMMIT in data]
    cuts = [(number, answered) for number in range(len(sent) - 1) for answered in (False, True)]
    told: Counter = Counter()
    lost = doubled = 0
    for number, answered in cuts if faults.thorough else [(commit, False), (commit, True)]:
        name = f"cut-{number}-{answered}"
        through = proxy()
        through.cut_at, through.answered = number, answered
        current._kept = None  # what is read of the configuration is read through the proxy too
        status, _ = session(lambda name=name: post(key, "/api/v1/anomalies", event(name)), PORT=through.port)
        at = next((at for at, data in enumerate(through.sent) if COMMIT in data), None)
        committed = at is not None and (at < number or answered)
        assert status == 503 or (status == 200 and committed and at < number), (number, answered)
        status, reply = post(key, "/api/v1/anomalies", event(name))
        assert status == 200
        [outcome] = [result["outcome"] for result in reply["results"]]
        assert outcome == ("redelivered" if committed else "created"), (number, answered)
        lost += books(name) < (1, 1, 1, 1, 1)
        doubled += books(name) > (1, 1, 1, 1, 1)
        assert Ticket.objects.filter(incident__service=name).count() == 2
        told[outcome] += 1
    faults.verdict(tried=sum(told.values()), lost=lost, doubled=doubled, **told)


class Cluster:
    """A database server of our own that may die. What it said is committed is on its disk."""

    def __init__(self, folder) -> None:
        # What it has written survives its death; only the machine's would need more.
        options = ("max_connections=20", "shared_buffers=16MB", "fsync=off")
        self.url = url = engines._start_postgres(folder, options)
        self.settings = {"PORT": url.rpartition(":")[2].partition("/")[0], "NAME": "postgres", "HOST": "127.0.0.1"}
        self.port = int(self.settings["PORT"])

    def is_back(self) -> None:
        """Waits until it has recovered."""
        deadline = time.monotonic() + 120
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def prepare(self) -> str:
        """Tables, and a producer's key."""
        call_command("migrate", verbosity=0)
        return keys.create(name="producer", role="producer", actor="system")[1]


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """Where a server may run that is not ours: pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="ticketing-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def killed_at(call: str, pid: int) -> Iterator[None]:
    """The process dies at its next call of this name."""
    argv = (forks.STRACE, "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when=1")
    with subprocess.Popen((*argv, "-p", str(pid)), stderr=subprocess.PIPE) as strace:
        assert b"attached" in strace.stderr.readline()
        try:
            yield
        finally:
            strace.send_signal(signal.SIGTERM)


@pytest.mark.fault("B3")
@pytest.mark.skipif(not forks.strace_works(), reason="needs strace, and the right to trace a process")
def test_a_database_that_dies_in_a_commit_is_503_and_a_repeat_counts_once(proxy, faults, own_folder):
    if not faults.thorough:
        pytest.skip("starts a database server of its own: make faults")
    cluster = Cluster(own_folder / "postgres")
    key = session(cluster.prepare, **cluster.settings)
    told: Counter = Counter()
    # Nothing of it is written; it is written, and nobody is told.
    for call in ("pwrite64", "sendto"):
        for seed in faults.seeds():
            name = f"{call}-{seed}"
            through = proxy(cluster.port)
            with ExitStack() as traced:

                def die(data: bytes, through=through, traced=traced, call=call) -> None:
                    if COMMIT in data:
                        traced.enter_context(killed_at(call, through.backend))

                through.before = die
                current._kept = None
                there = cluster.settings | {"PORT": through.port}
                status, _ = session(lambda name=name: post(key, "/api/v1/anomalies", event(name)), **there)
            assert status == 503
            cluster.is_back()
            _, reply = session(lambda name=name: post(key, "/api/v1/anomalies", event(name)), **cluster.settings)
            [outcome] = [result["outcome"] for result in reply["results"]]
            assert session(lambda name=name: books(name), **cluster.settings) == (1, 1, 1, 1, 1)
            told[outcome] += 1
    faults.verdict(tried=sum(told.values()), **told)
