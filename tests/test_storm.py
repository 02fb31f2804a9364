"""The real thing under fire: web, workers and broker as processes that are killed at random, and afterwards every
platform must show exactly what the incidents are.

STORM=long takes ten times as long, with the production's times. STORM_SEED chooses another storm.
"""

import http.client
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.engines import _free_port as free_port
from ticketing import processes
from ticketing.supervisor import end_with_parent

ROOT = Path(__file__).resolve().parent.parent
LONG = os.environ.get("STORM") == "long"
SEED = int(os.environ.get("STORM_SEED", 1))
INCIDENTS = 2000 if LONG else 150
KILLS = 60 if LONG else 7
REST_SECONDS = 240 if LONG else 60
PAGING, RECORDS = ("pagerduty", "opsgenie"), ("jira", "servicenow")
EVERYWHERE = ["pagerduty", "jira", "servicenow", "opsgenie", "slack"]
# What people do to an incident. No state twice, so that each of its messages is different from the others.
STORIES = ((), ("acknowledge",), ("acknowledge", "resolve"), ("escalate",), ("escalate", "acknowledge", "resolve"))


def until(condition, seconds: float, words: str):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {words}"
        time.sleep(0.05)
    return found


def request(address: str, method: str, path: str, body=None, timeout: float = 5.0) -> tuple[int, object]:
    parts = urlsplit(address)
    client = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        client.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        response = client.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        client.close()


@dataclass
class Rig:
    """The product and its stand-ins, as processes with a name."""

    folder: Path
    database_url: str
    broker: bool = True
    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data_dir = self.folder / "data"
        self.data_dir.mkdir()
        self.ledger = self.folder / "ledger"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        broker_url = processes.broker_url(self.data_dir) if self.broker else f"redis://127.0.0.1:{free_port()}/0"
        self.environment = os.environ | {
            "DATA_DIR": str(self.data_dir),
            "DATABASE_URL": self.database_url,
            "BROKER_URL": broker_url,
            "PORT": str(self.port),
            "HOST": "127.0.0.1",
            "LOCAL_MODE": "1",
            "EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        hasty = ["tests.hasty" if word == "ticketing" and not LONG else word for word in processes.worker()]
        self.argv = {
            "standins": [sys.executable, "-m", "tests.standins", "--ledger", str(self.ledger)],
            "broker": list(processes.broker(self.data_dir).argv),
            "web": list(processes.web()),
            "worker-1": hasty,
            "worker-2": hasty,
        }

    def start(self, *names: str) -> None:
        parent = os.getpid()
        for name in names:
            with (self.folder / f"{name}.log").open("a") as log:
                self.running[name] = subprocess.Popen(
                    self.argv[name],
                    cwd=ROOT,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if name == "standins" else log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=lambda: end_with_parent(parent, 9),
                )
            self.started[name] = time.time()

    def kill(self, *names: str) -> None:
        for name in names:
            self.running[name].kill()
        for name in names:
            self.running.pop(name).wait()

    def begin(self) -> None:
        migrate = [sys.executable, "manage.py", "migrate", "-v", "0"]
        subprocess.run(migrate, cwd=ROOT, env=self.environment, check=True)
        self.start("standins", *(["broker"] if self.broker else []), "web", "worker-1", "worker-2")
        self.standins = json.loads(self.running["standins"].stdout.readline())
        until(lambda: self.answers("/health"), 30, "the web server")
        enable = {name: {"enabled": True} | self.standins[name] for name in EVERYWHERE}
        assert self.api("PATCH", "/api/v1/config/platforms", enable)[0] == 200
        routing = dict.fromkeys(("critical", "high", "medium", "low"), EVERYWHERE)
        assert self.api("PATCH", "/api/v1/config/routing", routing)[0] == 200
        until(lambda: self.answers("/ready") is not None and self.sweeps(), 30, "the workers")

    def sweeps(self) -> bool:
        return self.query("SELECT count(*) FROM incidents_pulse WHERE name LIKE 'sweep:%'")[0][0] >= 2

    def answers(self, path: str) -> int | None:
        try:
            return request(self.url, "GET", path)[0]
        except (OSError, http.client.HTTPException):
            return None

    def api(self, method: str, path: str, body=None, seconds: float = 20.0) -> tuple[int, object]:
        """As a client that repeats itself until it is heard."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                status, answer = request(self.url, method, path, body)
            except (OSError, http.client.HTTPException, ValueError):
                status, answer = 0, None
            if status not in (0, 503):
                assert status < 500, answer
                return status, answer
            assert time.monotonic() < deadline, f"{method} {path} is not heard"
            time.sleep(0.1)

    def post(self, event_id: str, **event) -> str:
        body = {"service": event_id, "severity": "critical", "score": 4.2, "title": event_id, "eventId": event_id}
        status, answer = self.api("POST", "/api/v1/anomalies", body | event)
        assert status == 200, answer
        [incident_id] = answer["incidents"] or [None]
        return incident_id

    def standin(self, name: str, method: str, path: str, body=None):
        settings = self.standins[name]
        address = next(value for value in settings.values() if value.startswith("http://"))
        return request(address, method, path, body, timeout=20)[1]

    def state(self, name: str) -> dict:
        whole = self.standin(name, "GET", "/_state")
        return whole.get("state", whole)

    def effects(self) -> list[dict]:
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def pages(self, platform: str) -> Counter:
        """By incident."""
        found = (e["key"] for e in self.effects() if (e["platform"], e["effect"]) == (platform, "page"))
        return Counter(key.rpartition("-")[0] for key in found)

    def paged_at(self) -> dict[str, float]:
        found = (e for e in self.effects() if (e["platform"], e["effect"]) == ("pagerduty", "page"))
        return {e["key"].rpartition("-")[0]: e["at"] for e in found}

    def query(self, sql: str) -> list[tuple]:
        if self.database_url.startswith("sqlite"):
            with sqlite3.connect(self.database_url.removeprefix("sqlite:///"), timeout=20) as database:
                return database.execute(sql).fetchall()
        with psycopg.connect(self.database_url) as database:
            return database.execute(sql).fetchall()

    def behind(self) -> int:
        return self.query("SELECT count(*) FROM incidents_ticket WHERE shown_version < wanted_version")[0][0]

    def has_paged(self) -> bool:
        sql = "SELECT count(*) FROM incidents_ticket WHERE platform = 'pagerduty' AND shown_version < wanted_version"
        return self.query(sql)[0][0] == 0

    def end(self) -> None:
        self.kill(*self.running)


@pytest.fixture
def rig(tmp_path):
    """Made with a database of its own, in the engine that is tested."""
    rigs, databases = [], []
    server = os.environ["DATABASE_URL"] if os.environ["ENGINE"] == "postgres" else ""

    def make(**options) -> Rig:
        url = f"sqlite:///{tmp_path / 'storm.sqlite3'}"
        if server:
            name = f"storm_{os.getpid()}_{len(databases)}"
            with psycopg.connect(server, autocommit=True) as database:
                database.execute(f"CREATE DATABASE {name}")
            databases.append(name)
            url = f"{server.rpartition('/')[0]}/{name}"
        rigs.append(Rig(tmp_path, url, **options))
        rigs[-1].begin()
        return rigs[-1]

    yield make
    for each in rigs:
        each.end()
    for name in databases:
        with psycopg.connect(server, autocommit=True) as database:
            database.execute(f"DROP DATABASE {name} WITH (FORCE)")


def late(latencies: list[float]) -> float:
    """The 99th percentile."""
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * 0.99))]


def page_latencies(rig: Rig, count: int, pause: float) -> list[float]:
    posted = {}
    for number in range(count):
        began = time.time()
        posted[rig.post(f"calm-{number}")] = began
        time.sleep(pause)
    until(lambda: set(posted) <= set(rig.paged_at()), 20, "pages")
    paged = rig.paged_at()
    return [paged[incident] - began for incident, began in posted.items()]


@pytest.mark.django_db  # so that it runs in each engine
def test_a_storm_with_kills_ends_in_what_the_incidents_are(rig):
    rig = rig()
    rig.standin("jira", "POST", "/_options", {"lag": 20 if LONG else 2})

    assert late(page_latencies(rig, 30, 0.05)) <= 2.0

    storm(rig, random.Random(SEED))
    until(rig.has_paged, REST_SECONDS, "the storm's pages")
    assert pages_after_restart(rig) <= 10.0
    until(lambda: rig.behind() == 0, REST_SECONDS, "tickets in step")
    judge(rig, KILLS + 3)


def storm(rig: Rig, dice: random.Random) -> None:
    """Incidents and moves from a few clients, while somebody kills processes and starts them again."""
    stories = [(f"storm-{number}", dice.choice(STORIES)) for number in range(INCIDENTS)]

    def live(name: str, moves: tuple[str, ...]) -> None:
        incident_id = rig.post(name)
        for move in moves:
            status, answer = rig.api("POST", f"/api/incidents/{incident_id}/{move}")
            assert status == 200, answer

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(live, *story) for story in stories]
        # Here and not in a thread: what a thread has started dies with the thread.
        for number in range(KILLS):
            time.sleep(dice.uniform(0.5, 1.5))
            grown = [name for name in rig.running if time.time() - rig.started[name] > 2 and name != "standins"]
            victim = ("worker-1", "broker", "web")[number] if number < 3 else dice.choice([*grown, "worker-2"])
            rig.kill(victim)
            time.sleep(dice.uniform(0.0, 0.5))
            rig.start(victim)
        for client in clients:
            client.result(REST_SECONDS)


def pages_after_restart(rig: Rig) -> float:
    """Everything that delivers dies at once, with work in hand. Seconds from the start until the last page is out."""
    waiting = {rig.post(f"dark-{number}") for number in range(3)}
    rig.kill("worker-1", "worker-2", "broker")
    waiting |= {rig.post(f"darker-{number}") for number in range(5)}
    rig.start("broker", "worker-1", "worker-2")
    began = time.time()
    until(lambda: waiting <= set(rig.paged_at()), 20, "pages after a restart")
    return max(rig.paged_at()[incident] for incident in waiting) - began


def judge(rig: Rig, kills: int) -> None:
    status, incidents = rig.api("GET", "/api/incidents")
    assert status == 200
    incidents = {incident["id"]: incident for incident in incidents}
    assert len(incidents) == INCIDENTS + 30 + 3 + 5
    tickets = {
        (incident, platform): (doubled, told)
        for incident, platform, parked, doubled, told in rig.query(
            "SELECT incident_id, platform, parked_at, may_be_doubled, created_remotely_at IS NOT NULL "
            "FROM incidents_ticket"
        )
        if not parked
    }
    assert len(tickets) == 5 * len(incidents), "given up"

    burning = {incident for incident, now in incidents.items() if now["status"] != "resolved"}
    for platform in PAGING:
        pages = rig.pages(platform)
        assert set(pages.values()) == {1}
        # What was resolved before anybody was told pages nobody.
        assert burning <= set(pages) <= set(incidents)
        assert all(tickets[incident, platform][1] for incident in pages)

    for platform in RECORDS:
        made = Counter(incident_of_record(effect) for effect in rig.effects() if is_record(effect, platform))
        assert made == dict.fromkeys(incidents, 1)

    alerts = {"open": "triggered", "escalated": "triggered", "acknowledged": "acknowledged", "resolved": "resolved"}
    for key, history in rig.state("pagerduty")["alerts"].items():
        assert history[-1]["state"] == alerts[incidents[key.rpartition("-")[0]]["status"]], key
    for key, history in rig.state("opsgenie")["alerts"].items():
        incident = incidents[key.rpartition("-")[0]]
        assert (history[-1]["status"] == "closed") == (incident["status"] == "resolved"), key
        if incident["status"] != "resolved":
            assert history[-1]["acknowledged"] == (incident["status"] == "acknowledged"), key
    for key, record in rig.state("servicenow")["records"].items():
        status = incidents[record["correlation_id"].rpartition("-")[0]]["status"]
        wanted = {"resolved": "6", "acknowledged": "2"}.get(status)
        assert wanted is None or record["state"] == wanted, (key, status)
        assert record["state"] != "6" or status == "resolved"
    for key, issue in rig.state("jira")["issues"].items():
        status = incidents[incident_of_labels(issue["fields"]["labels"])]["status"]
        assert (issue["category"] == "done") == (status == "resolved"), (key, status)
        assert status != "acknowledged" or issue["category"] == "indeterminate"

    messages = Counter(effect["text"] for effect in rig.effects() if effect["platform"] == "slack")
    repeated = {text for text, count in messages.items() if count > 1}
    assert sum(messages.values()) - len(messages) <= kills * 4, "as many as a lane has threads may die with a worker"
    for text in repeated:
        incident = text.rpartition("[")[2].rstrip("]")
        assert tickets[incident, "slack"][0], f"not marked: {text}"
    told = {text.rpartition("[")[2].rstrip("]") for text in messages}
    assert told == {incident for incident in incidents if tickets[incident, "slack"][1]}


def is_record(effect: dict, platform: str) -> bool:
    return (effect["platform"], effect["effect"]) == (platform, "ticket")


def incident_of_record(effect: dict) -> str:
    if effect["platform"] == "jira":
        return incident_of_labels(effect["labels"])
    return effect["correlation_id"].rpartition("-")[0]


def incident_of_labels(labels: list[str]) -> str:
    [label] = [label for label in labels if label.startswith("inc-")]
    return label.rpartition("-")[0]


def test_without_a_broker_every_page_leaves_by_the_sweep(rig):
    rig = rig(broker=False)
    latencies = []
    for number in range(40):
        began = time.monotonic()
        rig.post(f"dark-{number}")
        latencies.append(time.monotonic() - began)
    assert late(latencies) < 1.0, "a request never waits for the broker"
    assert late(page_latencies(rig, 30, 0.05)) <= 3.0
    until(lambda: rig.behind() == 0, 30, "tickets in step")
    assert set(rig.pages("pagerduty").values()) == {1}
    assert sum(rig.pages("pagerduty").values()) == sum(rig.pages("opsgenie").values()) == 70
