"""The broker loses everything, dies, is full or forgets, beat is there twice or not at all, a ticket kills its worker:
every page leaves, once, and the workers hear again by themselves.
"""

import contextlib
import http.client
import json
import os
import time
from datetime import UTC, datetime
from itertools import count

import pytest
import redis

from incidents.delivery import core
from tests.rig import Rig
from tests.waiting import best, until
from ticketing import health, processes

PATIENCE = 300.0
HEARS_AGAIN = 15.0  # seconds


class BrokerRig(Rig):
    """The product with a broker that can be spoken to."""

    def begin(self) -> None:
        self.argv["second-beat"] = [*self.argv["beat"][:-1], f"{self.argv['beat'][-1]}-of-the-second"]
        self.numbers = count()
        super().begin()
        self.redis = redis.Redis(unix_socket_path=str(processes.broker_socket(self.data_dir)))

    def open(self, number: int) -> set[str]:
        return {self.post(f"fault-{next(self.numbers)}") for _ in range(number)}

    def paged(self, incidents: set[str], seconds: float = PATIENCE) -> None:
        until(lambda: incidents <= set(self.paged_at()), seconds, "pages")

    def hears_since(self, moment: float) -> bool:
        """Have both workers heard the broker since then?"""
        rows = self.query("SELECT at FROM incidents_pulse WHERE name LIKE 'hears:%'")
        return sum(_seconds(at) > moment for (at,) in rows) >= 2

    def hear_again(self) -> float:
        began = time.time()
        until(lambda: self.hears_since(began), PATIENCE, "the workers to hear again")
        return time.time() - began

    def missing(self) -> list[str]:
        return json.loads(self.text("/ready"))["missing"]

    def metric(self, sample: str) -> float:
        text = self.text("/metrics")
        return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{sample} ")))

    def text(self, path: str) -> str:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(client):
            client.request("GET", path)
            return client.getresponse().read().decode()

    def judge(self, incidents: set[str]) -> dict[str, int]:
        until(lambda: self.behind() == 0, PATIENCE, "tickets in step")
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        assert not ended, f"ended: {ended}"
        pages = [self.pages(name) for name in ("pagerduty", "opsgenie")]
        lost = sum(len(incidents - set(of)) for of in pages)
        return {"tried": len(incidents), "lost": lost, "doubled": sum(of.total() - len(of) for of in pages)}


def _seconds(at) -> float:
    return at.timestamp() if not isinstance(at, str) else datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()


@pytest.fixture
def rig(tmp_path, request):
    """On SQLite: the broker is the same whatever the database is."""
    rig = BrokerRig(tmp_path, f"sqlite:///{tmp_path / 'broker.sqlite3'}", **getattr(request, "param", {}))
    try:
        rig.begin()
        until(lambda: rig.hears_since(0), PATIENCE, "the workers to hear")
        yield rig
    finally:
        rig.end()


@pytest.fixture
def thoroughly(faults) -> None:
    if not faults.thorough:
        pytest.skip("takes a minute: make faults")


pytestmark = [
    pytest.mark.django_db,  # so that it runs for SQLite, whose database it uses
    pytest.mark.skipif(os.environ["ENGINE"] != "sqlite", reason="the broker is the same whatever the database is"),
]


@pytest.mark.fault("B8")
def test_a_broker_that_loses_everything_loses_no_page_and_is_heard_again(rig, faults):
    incidents, took = set(), []

    def lose_everything(how: str) -> float:
        incidents.update(rig.open(10))
        if how == "flush":
            rig.redis.flushall()
        else:
            rig.kill("broker")
            incidents.update(rig.open(5))
            rig.start("broker")
        heard = rig.hear_again()
        incidents.update(rig.open(10))
        rig.paged(incidents)
        return heard

    for how in ("flush", "kill") * (5 if faults.thorough else 1):
        took.append(best(lambda how=how: lose_everything(how), HEARS_AGAIN))
    figures = rig.judge(incidents)
    assert max(took) <= HEARS_AGAIN
    faults.verdict(**figures, times=len(took), heard_again_within=f"{max(took):.1f} s")


@pytest.mark.fault("B9")
@pytest.mark.usefixtures("thoroughly")
@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_broker_without_memory_costs_a_second_and_one_line_a_minute(rig, faults, policy):
    rig.redis.config_set("maxmemory-policy", policy)
    used = rig.redis.info("memory")["used_memory"]
    rig.redis.config_set("maxmemory", "1mb" if policy == "noeviction" else str(used + 2_000_000))
    began = time.monotonic()
    incidents = set()
    while time.monotonic() - began < 70:  # longer than a watchdog that took it for deafness would wait
        incidents |= rig.open(3)
        if policy != "noeviction":
            rig.redis.set(f"ballast-{len(incidents)}", bytes(100_000))
        time.sleep(0.5)
    rig.paged(incidents)
    minutes = 1 + (time.monotonic() - began) // 60
    for log in rig.folder.glob("*.log"):
        assert log.read_text().count("No wake-up could be published") <= minutes + 1, log.name
    lost = rig.metric('ticketing_wakeups_lost_total{queue="tickets"}')
    assert lost or rig.redis.info("stats")["evicted_keys"]
    rig.redis.config_set("maxmemory", "256mb")
    took = rig.hear_again()
    figures = rig.judge(incidents)
    faults.verdict(**figures, wakeups_lost=f"{lost:.0f}", heard_again_within=f"{took:.1f} s")


@pytest.mark.fault("B10")
@pytest.mark.usefixtures("thoroughly")
def test_two_beats_double_nothing_and_none_is_named_within_a_minute(rig, faults):
    rig.start("beat", "second-beat")
    until(lambda: rig.answers("/ready") == 200, PATIENCE, "readiness")
    incidents = rig.open(20)
    time.sleep(20)  # both have sent what is due every 15 s
    rig.paged(incidents)
    rig.kill("beat", "second-beat")
    began = time.monotonic()
    until(lambda: rig.answers("/ready") == 503, PATIENCE, "the missing beat to be noticed")
    took = time.monotonic() - began
    assert rig.missing() == [health.BEAT]
    assert took <= 61
    incidents |= rig.open(20)
    rig.paged(incidents, 10)
    figures = rig.judge(incidents)
    rig.start("beat")
    until(lambda: rig.answers("/ready") == 200, PATIENCE, "readiness")
    faults.verdict(**figures, named_after=f"{took:.0f} s")


@pytest.mark.fault("B11")
@pytest.mark.usefixtures("thoroughly")
@pytest.mark.parametrize("rig", [{"app": "tests.poisoned"}], indirect=True)
def test_a_ticket_of_which_workers_die_is_given_up_and_hurts_no_other(rig, faults):
    poison = rig.post("poison")
    began, deaths, incidents = time.monotonic(), 0, {poison}

    def given_up() -> str:
        """Why, once it is. Whoever died is started again, as the supervisor does."""
        nonlocal deaths
        for name in rig.worker_names:
            if rig.running[name].poll() is not None:
                deaths += 1
                rig.running.pop(name)
                rig.start(name)
        sql = f"SELECT last_error FROM incidents_ticket WHERE incident_id = '{poison}' AND platform = 'jira'"
        return next((why for (why,) in rig.query(f"{sql} AND parked_at IS NOT NULL")), "")

    why = ""
    while not why:
        assert time.monotonic() - began < 300
        incidents |= rig.open(1)
        time.sleep(1)
        why = given_up()
    took = time.monotonic() - began
    rig.paged(incidents)
    assert why == "Each attempt ended without an outcome, as if the worker died of it."
    assert any("Jira" in line and "worker died" in line for line in json.loads(rig.text("/ready"))["late"])
    assert deaths <= core.POISON_ATTEMPTS <= took / 6 + 1, "once for each lease, and no more"
    settled = "SELECT count(*) FROM incidents_ticket WHERE shown_version < wanted_version AND parked_at IS NULL"
    until(lambda: rig.query(settled) == [(0,)], PATIENCE, "all the others in step")
    [(parked,)] = rig.query("SELECT count(*) FROM incidents_ticket WHERE parked_at IS NOT NULL AND platform <> 'slack'")
    assert parked == 1
    pages = [rig.pages(name) for name in ("pagerduty", "opsgenie")]
    lost, doubled = sum(len(incidents - set(of)) for of in pages), sum(of.total() - len(of) for of in pages)
    faults.verdict(tried=len(incidents), lost=lost, doubled=doubled, deaths=deaths, given_up_after=f"{took:.0f} s")
