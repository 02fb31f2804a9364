"""The product and its stand-ins as processes, for the tests that kill, starve or mislead the real thing."""

import http.client
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.ports import free_port
from tests.waiting import until
from ticketing import processes
from ticketing.processes import ROOT
from ticketing.supervisor import end_with_parent

EVERYWHERE = ["pagerduty", "jira", "servicenow", "opsgenie", "slack"]


def request(address: str, method: str, path: str, body=None, timeout: float = 60.0) -> tuple[int, object]:
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
    app: str = "tests.hasty"  # the Celery application that workers and beat run
    workers: int = 2
    llm: bool = False  # with the stand-in's language model
    more: dict[str, str] = field(default_factory=dict)  # environment
    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)  # events, by their ids
    kills: int = 0

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
            **self.more,
        }
        self.argv = {
            "standins": [sys.executable, "-m", "tests.standins", "--ledger", str(self.ledger)],
            "broker": list(processes.broker(self.data_dir).argv),
            "web": list(processes.web()),
            "beat": self.by_app(processes.beat(self.data_dir)),
            **{name: self.by_app(processes.worker()) for name in self.worker_names},
        }

    @property
    def worker_names(self) -> list[str]:
        return [f"worker-{number}" for number in range(1, self.workers + 1)]

    def by_app(self, argv: tuple[str, ...]) -> list[str]:
        return [self.app if word == "ticketing" else word for word in argv]

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
            self.kills += 1
        for name in names:
            self.running.pop(name).wait()

    def begin(self) -> None:
        migrate = [sys.executable, "manage.py", "migrate", "-v", "0"]
        subprocess.run(migrate, cwd=ROOT, env=self.environment, check=True)
        self.start("standins", *(["broker"] if self.broker else []), "web", *self.worker_names)
        self.standins = json.loads(self.running["standins"].stdout.readline())
        until(lambda: self.answers("/health"), 120, "the web server")
        enable = {name: {"enabled": True} | self.standins[name] for name in EVERYWHERE}
        self.configure("platforms", enable)
        self.configure("routing", dict.fromkeys(("critical", "high", "medium", "low"), EVERYWHERE))
        if self.llm:
            self.configure("llm", self.standins["llm"])
        until(lambda: self.answers("/ready") is not None and self.sweeps(), 120, "the workers")

    def configure(self, section: str, changes: dict) -> None:
        status, answer = self.api("PATCH", f"/api/v1/config/{section}", changes)
        assert status == 200, answer

    def sweeps(self) -> bool:
        return self.query("SELECT count(*) FROM incidents_pulse WHERE name LIKE 'sweep:%'")[0][0] >= self.workers

    def answers(self, path: str) -> int | None:
        try:
            return request(self.url, "GET", path)[0]
        except (OSError, http.client.HTTPException):
            return None

    def api(self, method: str, path: str, body=None, seconds: float = 120.0) -> tuple[int, object]:
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
        self.sent.add(event_id)
        body = {"service": event_id, "severity": "critical", "score": 4.2, "title": event_id, "eventId": event_id}
        status, answer = self.api("POST", "/api/v1/anomalies", body | event)
        assert status == 200, answer
        [incident_id] = answer["incidents"] or [None]
        return incident_id

    def open(self, name: str, count: int) -> list[str]:
        """So many critical incidents at once."""
        events = [
            {"service": f"{name}-{n}", "severity": "critical", "score": 4.2, "title": f"{name}-{n}"}
            for n in range(count)
        ]
        status, answer = self.api("POST", "/api/v1/anomalies", events)
        assert (status, answer["created"]) == (200, count)
        return answer["incidents"]

    def delivered(self, name: str, count: int, *, at: Sequence[str] = EVERYWHERE) -> float:
        """Seconds until so many incidents, opened at once, show at these platforms."""
        began = time.monotonic()
        self.open(name, count)
        self.shows(at)
        return time.monotonic() - began

    def shows(self, at: Sequence[str]) -> None:
        """Waits until all is in step at these platforms."""
        listed = ", ".join(f"'{one}'" for one in at)
        late = f"SELECT count(*) FROM incidents_ticket WHERE shown_version < wanted_version AND platform IN ({listed})"
        until(lambda: self.query(late)[0][0] == 0, words=f"tickets at {listed}")

    def move(self, incident_id: str, name: str) -> None:
        status, answer = self.api("POST", f"/api/incidents/{incident_id}/{name}")
        assert status == 200, answer

    def standin(self, name: str, method: str, path: str, body=None):
        settings = self.standins[name]
        address = next(value for value in settings.values() if value.startswith("http://"))
        return request(address, method, path, body)[1]

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

    def paged_at(self, platform: str = "pagerduty") -> dict[str, float]:
        found = (e for e in self.effects() if (e["platform"], e["effect"]) == (platform, "page"))
        return {e["key"].rpartition("-")[0]: e["at"] for e in found}

    def sqlite(self) -> sqlite3.Connection:
        return sqlite3.connect(self.database_url.removeprefix("sqlite:///"), timeout=60)

    def query(self, sql: str) -> list[tuple]:
        if self.database_url.startswith("sqlite"):
            with closing(self.sqlite()) as database:
                return database.execute(sql).fetchall()
        with psycopg.connect(self.database_url) as database:
            return database.execute(sql).fetchall()

    def change(self, sql: str) -> None:
        """An UPDATE behind the product's back. NOW is the database's clock."""
        if self.database_url.startswith("sqlite"):
            now = "STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')"
            with closing(self.sqlite()) as database, database:
                database.execute(sql.replace("NOW", now))
            return
        with psycopg.connect(self.database_url) as database:
            database.execute(sql.replace("NOW", "now()"))

    def wait_no_longer(self) -> None:
        """As if all waiting for a platform were over."""
        self.change("UPDATE incidents_platformpause SET until = NOW")
        self.change("UPDATE incidents_ticket SET due_at = NOW WHERE due_at IS NOT NULL")

    def send_again_what_may_be_doubled(self) -> None:
        """As a person does with a message that was sent twice without an answer: nothing sends it a third time."""
        given_up = "SELECT count(*) FROM incidents_ticket WHERE platform = 'slack' AND parked_at IS NOT NULL"
        if self.query(f"{given_up} AND may_be_doubled")[0][0]:
            self.api("POST", "/api/v1/tickets/retry", {"platform": "slack"})

    def behind(self) -> int:
        return self.query("SELECT count(*) FROM incidents_ticket WHERE shown_version < wanted_version")[0][0]

    def has_paged(self) -> bool:
        sql = "SELECT count(*) FROM incidents_ticket WHERE platform = 'pagerduty' AND shown_version < wanted_version"
        return self.query(sql)[0][0] == 0

    def end(self) -> None:
        self.kill(*self.running)


def late(latencies: list[float]) -> float:
    """The 99th percentile."""
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * 0.99))]


def page_latency(rig: Rig, count: int = 30, pause: float = 0.05) -> float:
    """That of so many pages, from before the request."""
    posted = {}
    for _ in range(count):
        began = time.time()
        posted[rig.post(f"calm-{len(rig.sent)}")] = began
        time.sleep(pause)
    until(lambda: set(posted) <= set(rig.paged_at()), words="pages")
    paged = rig.paged_at()
    return late([paged[incident] - began for incident, began in posted.items()])
