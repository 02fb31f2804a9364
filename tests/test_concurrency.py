"""Many clients at once against real server processes that share a database: everything happens exactly once."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import psycopg
import pytest
from django.db import connection
from django.db.models import Sum

from auditlog.models import Entry
from config import keys
from config.changes import patch_platforms
from config.current import KEPT_SECONDS
from incidents.lifecycle import MOVES
from incidents.models import Anomaly, Counter, Incident, SeenEvent, Ticket
from incidents.times import timestamp
from tests.waiting import until
from ticketing import web
from ticketing.processes import ROOT
from ticketing.processes import web as web_command

pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="about PostgreSQL's connections")

CLIENTS = 16
PATIENCE = 120.0  # seconds until a client that repeats its request gives up
REACHES = {"critical": ["pagerduty", "slack"], "high": ["slack"]}


class Server:
    """A web process on a listening socket that outlives it: a client that comes meanwhile waits for the next one."""

    def __init__(self) -> None:
        self.listener = web.listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.start()

    def start(self) -> None:
        fd = self.listener.fileno()
        environment = os.environ | {"DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "ticketing.settings"}
        self.process = subprocess.Popen(
            (sys.executable, *web_command(fd)[1:]),
            cwd=ROOT,
            env=environment,
            pass_fds=(fd,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.kill()
            self.listener.close()


def database_url() -> str:
    of = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{of['NAME']}"
    return f"postgresql://{of['USER']}:{of['PASSWORD']}@{of['HOST']}:{of['PORT']}/{of['NAME']}"


class Client:
    """One connection that is kept, as a producer keeps it."""

    def __init__(self, server: Server, key: str = "") -> None:
        self.wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict]:
        try:
            self.wire.request("POST", path, json.dumps(body), self.headers | headers)
            response = self.wire.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException):
            self.wire.close()
            raise

    def send(self, items: object) -> dict:
        status, reply = self.post("/api/v1/anomalies", items)
        assert status == 200, reply
        return reply

    def send_until_taken(self, items: object, statuses: Tally) -> dict:
        """Repeats until a 2xx, as a producer must who wants to lose nothing."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                status, reply = self.post("/api/v1/anomalies", items)
            except (OSError, http.client.HTTPException):
                statuses["cut off"] += 1
                continue
            statuses[status] += 1
            if status == 200:
                return reply
        raise AssertionError(f"Not taken within {PATIENCE} s: {statuses}")


@pytest.fixture(scope="module")
def servers(django_db_setup, django_db_blocker) -> Iterator[list[Server]]:
    with django_db_blocker.unblock():
        running = [Server(), Server()]
    yield running
    for server in running:
        server.stop()
    with django_db_blocker.unblock():
        Counter.objects.all().delete()  # which they have written at their end, when no test tidies up any more


@pytest.fixture
def server() -> Iterator[Server]:
    """One that a test may kill."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def platforms(transactional_db) -> None:
    """Two platforms, which every server knows of before anything is sent."""
    settings = {
        "pagerduty": {"enabled": True, "routingKey": "a" * 32},
        "slack": {"enabled": True, "webhookUrl": "https://hooks.slack.com/services/T1/B1/x"},
    }
    patch_platforms(settings, actor="system")
    time.sleep(KEPT_SECONDS)  # what the contract says that others may go on with what they knew


def at_once(number: int, job: Callable[[int], object]) -> list:
    """What `job` returned for each of so many threads, which begin together."""
    together = threading.Barrier(number, timeout=PATIENCE)

    def run(n: int) -> object:
        together.wait()
        return job(n)

    with ThreadPoolExecutor(number) as pool:
        return [done.result(2 * PATIENCE) for done in [pool.submit(run, n) for n in range(number)]]


def event(service: str, severity: str = "critical", event_id: str | None = None) -> dict:
    item = {"service": service, "severity": severity, "score": 1.0}
    return item | ({"eventId": event_id} if event_id else {})


def outcomes(replies: Iterable[dict]) -> Tally:
    return Tally(result["outcome"] for reply in replies for result in reply["results"])


def check_books(events: list[dict]) -> None:
    """Each of the events, by its id, was counted once, and each fault has one incident with all that belongs to it."""
    distinct = {item["eventId"]: (item["service"], item["severity"]) for item in events}
    faults = Tally(distinct.values())
    incidents = {(i.service, i.severity): i for i in Incident.objects.all()}
    assert {fault: incident.anomaly_count for fault, incident in incidents.items()} == faults
    assert Incident.objects.count() == len(faults)
    assert Anomaly.objects.count() == SeenEvent.objects.count() == len(distinct)
    assert set(Anomaly.objects.values_list("event_id", "incident_id")) == {
        (event_id, incidents[fault].pk) for event_id, fault in distinct.items()
    }
    entries = Entry.objects.filter(subject__startswith="incident:").values_list("subject", "action")
    assert sorted(entries) == sorted((incident.subject, "created") for incident in incidents.values())
    tickets = sorted((incidents[fault].pk, name) for fault in faults for name in REACHES[fault[1]])
    assert sorted(Ticket.objects.values_list("incident_id", "platform")) == tickets


# --- Intake -----------------------------------------------------------------------------------------------------------


def test_the_same_and_different_faults_from_everywhere_are_counted_exactly(servers, platforms):
    chance = random.Random(1)
    everything = [
        event(chance.choice("abcde"), chance.choice(["critical", "high"]), f"e{n}") for n in range(CLIENTS * 60)
    ]
    repeated = chance.sample(everything, 100)

    def shares() -> list[list[dict]]:
        shuffled = everything + repeated
        chance.shuffle(shuffled)
        return [shuffled[n::CLIENTS] for n in range(CLIENTS)]

    def produce(n: int) -> list[dict]:
        client, share, replies = Client(servers[n % 2]), mine[n], []
        while share:
            size = (1, 1, 4, 25)[len(replies) % 4]
            replies.append(client.send(share[0] if size == 1 else share[:size]))
            del share[:size]
        return replies

    mine = shares()
    counted = outcomes(reply for replies in at_once(CLIENTS, produce) for reply in replies)
    assert counted == {
        "created": Incident.objects.count(),
        "deduplicated": len(everything) - Incident.objects.count(),
        "redelivered": len(repeated),
    }
    check_books(everything)


def test_batches_that_bring_the_same_new_services_in_any_order_all_succeed(servers, platforms):
    services = [f"new-{n}" for n in range(60)]

    def produce(n: int) -> dict:
        order = random.Random(n).sample(services, len(services))
        return Client(servers[n % 2]).send([event(service, "high", f"{n}-{service}") for service in order])

    replies = at_once(CLIENTS, produce)
    assert outcomes(replies) == {"created": len(services), "deduplicated": (CLIENTS - 1) * len(services)}
    check_books([event(service, "high", f"{n}-{service}") for service in services for n in range(CLIENTS)])


def test_one_event_from_everywhere_at_once_counts_once_and_everybody_is_told_the_incident(servers, platforms):
    replies = at_once(CLIENTS, lambda n: Client(servers[n % 2]).send(event("a", "high", "e1")))
    assert outcomes(replies) == {"created": 1, "redelivered": CLIENTS - 1}
    assert {tuple(reply["incidents"]) for reply in replies} == {(Incident.objects.get().pk,)}
    check_books([event("a", "high", "e1")])


# --- Moves ------------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """One request to move, and what was answered."""

    actor: str
    move: str
    ids: list[str]
    status: int
    reply: dict
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


def replay(entries: list[Entry]) -> tuple[str, str]:
    """The state that an incident's audit leads to, and who brought it there. Each entry begins where the last ended."""
    assert entries[0].action == "created"
    for before, after in pairwise(entries):
        assert after.data["from"] == before.data["to"]
        assert after.timestamp >= before.timestamp
        assert after.data["from"] in MOVES[_name_of(after.action)].allowed_from
        assert after.data["to"] == MOVES[_name_of(after.action)].leads_to
    return entries[-1].data["to"], entries[-1].actor


def _name_of(past: str) -> str:
    return next(move.name for move in MOVES.values() if move.past == past)


def test_moves_of_everybody_on_the_same_incidents_replay_from_the_audit(servers, platforms):
    incidents = [Client(servers[0]).send(event(f"s{n}"))["incidents"][0] for n in range(4)]
    texts = [keys.create(name=f"k{n}", role="responder", actor="system")[1] for n in range(4)]

    def meddle(n: int) -> list[Asked]:
        chance, client, asked = random.Random(n), Client(servers[n % 2], texts[n % 4]), []
        for _ in range(8):
            name, request_id = chance.choice(list(MOVES)), uuid.uuid4().hex
            many = name != "reopen" and chance.random() < 0.4
            ids = chance.sample(incidents, 3 if many else 1)
            path = "/api/incidents/batch" if many else f"/api/incidents/{ids[0]}/{name}"
            body = {"ids": ids, "action": name} if many else {}
            status, reply = client.post(path, body, **{"X-Request-ID": request_id})
            asked.append(Asked(f"key:k{n % 4}", name, ids, status, reply, request_id))
        return asked

    asked = [one for many in at_once(32, meddle) for one in many]
    assert {one.status for one in asked} <= {200, 409}
    history = {incident_id: list(Entry.objects.about(f"incident:{incident_id}")) for incident_id in incidents}
    for incident_id, entries in history.items():
        incident = Incident.objects.get(pk=incident_id)
        state, actor = replay(entries)
        assert incident.status == state
        assert getattr(incident, f"{state}_by", actor) == actor
        versions = set(incident.tickets.values_list("wanted_version", flat=True))
        assert versions == {len(entries)}  # one for opening, one for each move
    for one in asked:
        check_answer(one, history)


def check_answer(asked: Asked, history: dict[str, list[Entry]]) -> None:
    """An accepted move has one entry, or was made before; a refused one has none."""
    for incident_id in asked.ids:
        entries = [entry for entry in history[incident_id] if entry.request_id == asked.request_id]
        accepted = incident_id in asked.reply["ids"] if len(asked.ids) > 1 else asked.status == 200
        assert len(entries) <= accepted
        for entry in entries:
            assert (_name_of(entry.action), entry.actor) == (asked.move, asked.actor)
        if len(asked.ids) == 1 and accepted and asked.move != "reopen":
            past = MOVES[asked.move].past
            told = asked.reply[f"{past}At"]
            assert told in [timestamp(e.timestamp) for e in entries or history[incident_id] if e.action == past]


def test_anomalies_and_moves_at_once_lose_neither(servers, platforms):
    [incident_id] = Client(servers[0]).send(event("a", "critical", "first"))["incidents"]

    def work(n: int) -> list[dict]:
        client, replies = Client(servers[n % 2]), []
        for step in range(10):
            if n % 2:
                replies.append(client.send([event("a", "critical", f"{n}-{step}-{i}") for i in range(3)]))
            else:
                client.post(f"/api/incidents/{incident_id}/{('resolve', 'acknowledge')[step % 2]}", {})
        return replies

    counted = outcomes(reply for replies in at_once(CLIENTS, work) for reply in replies)
    incident = Incident.objects.get()
    assert incident.anomaly_count == 1 + counted.total() == Anomaly.objects.count()
    entries = list(Entry.objects.about(incident.subject))
    assert replay(entries)[0] == incident.status
    assert sum(entry.action == "reopened" for entry in entries) == counted["reopened"]


# --- What dies --------------------------------------------------------------------------------------------------------


class Stream:
    """Clients that send batches with event ids and repeat each until it is taken, while something is done to them. The
    last of each is sent once that is done."""

    def __init__(self, *servers: Server, clients: int = 4, batches: int = 25, size: int = 20) -> None:
        self.servers, self.clients = servers, clients
        self.batches = [
            [[event(f"s{i % 7}", "critical", f"{c}-{b}-{i}") for i in range(size)] for b in range(batches)]
            for c in range(clients)
        ]
        self.statuses: Tally = Tally()
        self.taken = 0
        self.progress = threading.Condition()
        self.may_end = threading.Event()

    def wait_for(self, taken: int) -> None:
        with self.progress:
            assert self.progress.wait_for(lambda: self.taken >= taken, PATIENCE), self.statuses

    def produce(self, n: int) -> None:
        client = Client(self.servers[n % len(self.servers)])
        for number, batch in enumerate(self.batches[n], 1):
            if number == len(self.batches[n]):
                assert self.may_end.wait(2 * PATIENCE)
            client.send_until_taken(batch, self.statuses)
            with self.progress:
                self.taken += 1
                self.progress.notify_all()

    @contextmanager
    def flowing(self) -> Iterator[None]:
        with ThreadPoolExecutor(self.clients) as pool:
            done = [pool.submit(self.produce, n) for n in range(self.clients)]
            try:
                yield
            finally:
                self.may_end.set()
            for one in done:
                one.result(2 * PATIENCE)

    def check(self) -> None:
        everything = [item for batches in self.batches for batch in batches for item in batch]
        check_books(everything)
        client = Client(self.servers[0])
        replies = [client.send_until_taken(batch, Tally()) for batches in self.batches for batch in batches]
        assert outcomes(replies) == {"redelivered": len(everything)}
        assert Incident.objects.aggregate(total=Sum("anomaly_count"))["total"] == len(everything)


def test_a_web_process_that_is_killed_again_and_again_loses_and_doubles_nothing(server, platforms):
    stream = Stream(server)
    with stream.flowing():
        for taken in (1, 30, 60):
            stream.wait_for(taken)
            server.kill()
            server.start()
    assert set(stream.statuses) <= {200, "cut off"}
    assert stream.statuses["cut off"]
    stream.check()


@on_postgresql
def test_lost_connections_to_the_database_are_503_and_lose_nothing(servers, platforms):
    stream = Stream(*servers, batches=40)
    chance = random.Random(3)
    with stream.flowing():
        for taken in range(3, 150, 6):
            stream.wait_for(taken)
            end_a_connection(chance)
        with held_up("incidents_incident"):
            stream.may_end.set()
            until(lambda: end_a_connection(chance, "AND wait_event_type = 'Lock'"), PATIENCE)
    assert set(stream.statuses) <= {200, 503}
    assert stream.statuses[503]
    stream.check()


def end_a_connection(chance: random.Random, of: str = "") -> bool:
    """One of those that another process has; `of`: more that must be true of it. Whether there was any."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            f"AND backend_type = 'client backend' {of} ORDER BY pid"
        )
        if pids := [pid for (pid,) in cursor.fetchall()]:
            cursor.execute("SELECT pg_terminate_backend(%s)", [chance.choice(pids)])
        return bool(pids)


@contextmanager
def held_up(table: str) -> Iterator[None]:
    """Requests that need the table wait in the middle of their transaction."""
    with psycopg.connect(database_url()) as session:
        session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


@on_postgresql
def test_a_database_that_has_become_read_only_is_503_until_it_is_writable_again(servers, platforms):
    clients = [Client(server) for server in servers for _ in range(4)]
    for n, client in enumerate(clients):
        client.send(event("a", "critical", f"before-{n}"))
    with read_only():
        for n, client in enumerate(clients):
            for _ in range(2):
                assert client.post("/api/v1/anomalies", event("a", "critical", f"meanwhile-{n}"))[0] == 503
    statuses: Tally = Tally()
    for n, client in enumerate(clients):
        client.send_until_taken(event("a", "critical", f"meanwhile-{n}"), statuses)
    assert set(statuses) <= {200, 503}
    assert statuses[503] <= 2 * web.THREADS  # once for each connection that was opened to the old primary
    sent = [f"{when}-{n}" for when in ("before", "meanwhile") for n in range(len(clients))]
    check_books([event("a", "critical", event_id) for event_id in sent])


@contextmanager
def read_only() -> Iterator[None]:
    """The servers' sessions find a database that takes no writes, as those of a former primary do, and keep them."""
    name = connection.settings_dict["NAME"]
    with psycopg.connect(database_url(), autocommit=True) as session:
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> ALL(%s)"
        ours = [session.info.backend_pid, connection.connection.info.backend_pid]
        session.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            session.execute(ends, [name, ours])
            yield
        finally:
            session.execute("SET default_transaction_read_only = off")
            session.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
