"""The database goes away in every way it can, under load: a client sees 200 or 503 and nothing else, what was answered
with 200 is there, nothing is half there, and the product goes on by itself within seconds.
"""

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import requests

from tests.clusters import Cluster, Volume
from tests.engines import NOBODY
from tests.ports import free_port
from tests.proxy import Proxy
from tests.rig import EVERYWHERE, ROOT, Rig, request
from tests.waiting import until

on_postgresql = pytest.mark.skipif(os.environ["ENGINE"] != "postgres", reason="about PostgreSQL")
on_sqlite = pytest.mark.skipif(os.environ["ENGINE"] != "sqlite", reason="about SQLite")

PRODUCERS = 4
BATCH = 10
PAUSE = 0.05  # seconds between a producer's batches: 200 events a second and more on a free machine
RECOVERY = 5.0  # seconds from the server's first answer until everybody has got his 200
PATIENCE = 300.0
SERVICES = 12


class Producers:
    """Send batches of new events as long as they flow; each batch is repeated until it is taken."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.statuses: Counter = Counter()
        self.reasons: set[str] = set()
        self.others: list[str] = []  # answers that nobody may get
        self.sent: list[set[str]] = [set() for _ in range(PRODUCERS)]
        self.taken_at = [0.0] * PRODUCERS
        self.number = 0
        self.stopped = threading.Event()

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        with ThreadPoolExecutor(PRODUCERS) as pool:
            done = [pool.submit(self._produce, n) for n in range(PRODUCERS)]
            try:
                self.recovered(time.monotonic())
                yield
            finally:
                self.stopped.set()
                for one in done:
                    one.result(PATIENCE)

    def _produce(self, n: int) -> None:
        batch = 0
        while not self.stopped.is_set():
            ids = [f"{n}-{batch}-{i}" for i in range(BATCH)]
            self.sent[n].update(ids)
            # Each batch joins what is there; now and then one opens an incident.
            services = [f"s{(batch + i) % SERVICES}" for i in range(BATCH)]
            if batch % 10 == 5:
                services[-1] = f"new-{n}-{batch}"
            body = [
                {"service": service, "severity": "critical", "score": 1.0, "eventId": event_id}
                for service, event_id in zip(services, ids, strict=True)
            ]
            self._until_taken(body)
            self.taken_at[n] = time.monotonic()
            batch += 1
            time.sleep(PAUSE)

    def _until_taken(self, body: list[dict]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                status, answer = request(self.rig.url, "POST", "/api/v1/anomalies", body, timeout=60)
            except (OSError, http.client.HTTPException, ValueError) as error:
                status, answer = 0, repr(error)
            self.statuses[status] += 1
            if status == 200:
                return
            if status == 503:
                self.reasons.add(answer["message"])
            else:
                self.others.append(f"{status} {answer}")
            assert time.monotonic() < deadline, f"not taken: {self.statuses}"
            time.sleep(0.05)

    def recovered(self, since: float) -> float:
        """Waits until each producer has got a 200, and returns the seconds since then."""
        until(lambda: min(self.taken_at) > since, PATIENCE, f"events to be taken again: {self.statuses}")
        return max(self.taken_at) - since

    def refused(self, times: int = 1) -> None:
        """Waits for so many more 503."""
        goal = self.statuses[503] + times
        until(lambda: self.statuses[503] >= goal, PATIENCE, "a 503")


def judge(rig: Rig, producers: Producers) -> dict[str, int]:
    """Everything sent is stored exactly once, with all that belongs to it, and told to the platforms exactly once."""
    until(lambda: rig.behind() == 0, PATIENCE, "tickets in step")
    assert not producers.others
    assert set(producers.statuses) <= {200, 503}
    assert all(process.poll() is None for process in rig.running.values()), "a process has ended"

    sent = set().union(*producers.sent)
    stored = Counter(event_id for (event_id,) in rig.query("SELECT event_id FROM incidents_anomaly"))
    lost, doubled = len(sent - set(stored)), sum(stored.values()) - len(stored)
    assert set(stored) <= sent
    [(counted,)] = rig.query("SELECT sum(anomaly_count) FROM incidents_incident")
    assert counted == len(stored), "half a batch"
    assert len(rig.query("SELECT event_id FROM incidents_seenevent")) == len(stored)

    incidents = {incident for (incident,) in rig.query("SELECT id FROM incidents_incident")}
    services = rig.query("SELECT DISTINCT service FROM incidents_anomaly")
    doubled += len(incidents) - len(services)
    audited = rig.query("SELECT subject FROM auditlog_entry WHERE action = 'created' AND subject LIKE 'incident:%'")
    assert sorted(subject for (subject,) in audited) == sorted(f"incident:{incident}" for incident in incidents)
    assert len(rig.query("SELECT id FROM incidents_ticket")) == len(incidents) * len(EVERYWHERE)
    for platform in ("pagerduty", "opsgenie"):
        pages = rig.pages(platform)
        lost += len(incidents - set(pages))
        doubled += sum(pages.values()) - len(pages)
    for platform in ("jira", "servicenow"):
        made = sum((e["platform"], e["effect"]) == (platform, "ticket") for e in rig.effects())
        lost, doubled = lost + max(0, len(incidents) - made), doubled + max(0, made - len(incidents))
    return {"tried": len(sent), "lost": lost, "doubled": doubled}


@pytest.fixture
def thoroughly(faults) -> None:
    if not faults.thorough:
        pytest.skip("takes a minute: make faults")


@pytest.fixture
def rigs(open_folder):
    """Starts the product on a database; ends with whatever else is handed to `after`."""
    with contextlib.ExitStack() as after:

        def start(database_url: str, **how) -> Rig:
            rig = Rig(open_folder / "rig", database_url, **how)
            after.callback(rig.end)
            rig.begin()
            return rig

        (open_folder / "rig").mkdir()
        start.after = after
        yield start


@pytest.fixture
def cluster(open_folder, rigs) -> Cluster:
    (open_folder / "postgres").mkdir()
    cluster = Cluster(open_folder / "postgres")
    rigs.after.callback(cluster.end)
    return cluster.create()


def seconds(found: list[float]) -> str:
    return f"{max(found):.1f} s"


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@on_postgresql
@pytest.mark.fault("B12")
def test_a_server_that_restarts_costs_nothing_but_a_503(rigs, cluster, faults):
    rig = rigs(cluster.url)
    producers, took = Producers(rig), []
    with producers.flowing():
        for how in ("fast", "immediate", "kill") * 3 if faults.thorough else ("kill",) * 4:
            cluster.end(how)
            producers.refused(PRODUCERS)
            cluster.start()
            took.append(producers.recovered(time.monotonic()))
            if not faults.thorough and took[-1] <= RECOVERY:
                break  # else the machine was busy
            time.sleep(faults.dice.uniform(0, 2))
    figures = judge(rig, producers)
    assert (max if faults.thorough else min)(took) <= RECOVERY
    faults.verdict(**figures, restarts=len(took), refused=producers.statuses[503], recovered_within=seconds(took))


@on_postgresql
@pytest.mark.fault("B13")
@pytest.mark.usefixtures("thoroughly")
def test_backends_that_are_terminated_at_random_cost_nothing_but_a_503(rigs, cluster, faults):
    rig = rigs(cluster.url)
    producers, ended = Producers(rig), 0
    one = (
        "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1) AS one"
    )
    with producers.flowing(), psycopg.connect(cluster.url, autocommit=True) as session:
        finish = time.monotonic() + 60
        while time.monotonic() < finish:
            ended += session.execute(one).rowcount
            time.sleep(0.1)
        took = [producers.recovered(time.monotonic())]
    figures = judge(rig, producers)
    assert max(took) <= RECOVERY
    faults.verdict(**figures, terminated=ended, refused=producers.statuses[503], recovered_within=seconds(took))


@on_postgresql
@pytest.mark.fault("B14")
@pytest.mark.usefixtures("thoroughly")
def test_after_a_failover_nobody_stays_with_the_old_primary(rigs, cluster, open_folder, faults):
    proxy = Proxy(cluster.port)
    rigs.after.callback(proxy.close)
    rig = rigs(cluster.url.replace(f":{cluster.port}/", f":{proxy.port}/"))
    standby = cluster.standby(open_folder / "standby")
    rigs.after.callback(standby.end)
    producers = Producers(rig)
    with producers.flowing():
        # The old primary takes no writes, and keeps its connections: seen from a client it is in good health.
        cluster.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        producers.refused(PRODUCERS)
        assert request(rig.url, "GET", "/api/incidents?limit=1")[0] == 200
        time.sleep(10)
        proxy.switch(standby.port)
        standby.execute("SELECT pg_promote()")
        promoted = time.monotonic()
        took = [producers.recovered(promoted)]
        opened = rig.post("after-the-failover", service="after-the-failover")
        producers.sent[0].add("after-the-failover")
        until(lambda: opened in rig.paged_at(), PATIENCE, "the first page after the failover")
        paged = time.monotonic() - promoted
        # Whoever still has a connection there has not written since.
        until(lambda: not _others(cluster), 2 * RECOVERY, "connections to the old primary to be dropped")
    figures = judge(rig, producers)
    assert max(took) <= RECOVERY
    faults.verdict(
        **figures, refused=producers.statuses[503], recovered_within=seconds(took), first_page=f"{paged:.1f} s"
    )


def _others(cluster: Cluster) -> list[tuple]:
    """What is asked of the old primary by connections of the product that did so within the last seconds."""
    return cluster.execute(
        "SELECT query FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
        "AND state_change > now() - interval '3 seconds'"
    )


@pytest.fixture
def volume(open_folder, rigs):
    def make(name: str, megabytes: int, owner: int = NOBODY) -> Volume:
        try:
            volume = Volume(open_folder / name, megabytes, owner)
        except OSError as error:
            pytest.skip(f"a small volume cannot be mounted here: {error}")
        rigs.after.callback(volume.close)
        return volume

    return make


@on_postgresql
@pytest.mark.fault("B15")
@pytest.mark.usefixtures("thoroughly")
def test_a_full_data_volume_is_told_and_heals_once_there_is_room(rigs, volume, open_folder, faults):
    disk = volume("disk", 80)
    (open_folder / "postgres").mkdir()
    wal = volume("wal", 128)
    cluster = Cluster(open_folder / "postgres", data=disk.path / "data", wal=wal.path / "wal")
    rigs.after.callback(cluster.end)
    cluster.create()
    rig = rigs(cluster.url)
    producers, took = Producers(rig), []
    with producers.flowing():
        for _ in range(3):
            disk.fill()
            producers.refused(3 * PRODUCERS)
            assert any("no space left" in reason for reason in producers.reasons)
            disk.make_room()
            took.append(producers.recovered(time.monotonic()))
            time.sleep(1)
    figures = judge(rig, producers)
    assert max(took) <= RECOVERY
    faults.verdict(**figures, refused=producers.statuses[503], recovered_within=seconds(took))



@on_postgresql
@pytest.mark.fault("B15")
@pytest.mark.usefixtures("thoroughly")
def test_a_full_log_volume_stops_the_server_and_what_was_delivered_meanwhile_is_found(
    rigs, volume, open_folder, faults
):
    wal = volume("wal", 128)
    (open_folder / "postgres").mkdir()
    cluster = Cluster(open_folder / "postgres", wal=wal.path / "wal")
    rigs.after.callback(cluster.end)
    cluster.create()
    rig = rigs(cluster.url, app="ticketing")  # with the production's deadlines
    producers = Producers(rig)
    slow = {"kind": "late", "seconds": 12, "method": "POST", "path": "/issue$"}  # the server stops before that
    with producers.flowing():
        rig.standin("jira", "POST", "/_faults", slow)
        opened = rig.post("delivered-not-noted", service="delivered-not-noted")
        producers.sent[0].add("delivered-not-noted")
        until(lambda: opened in made_at_jira(rig), PATIENCE, "the issue")
        # It is made, and its answer on the way: there is nowhere to note it.
        wal.fill()
        until(lambda: not cluster.is_up(), PATIENCE, "the server to stop")
        producers.refused(PRODUCERS)
        until(lambda: any("An attempt of jira lost the database" in log for log in said(rig)), PATIENCE, "the answer")
        wal.make_room()
        cluster.start()
        took = [producers.recovered(time.monotonic())]
    figures = judge(rig, producers)
    assert max(took) <= RECOVERY
    faults.verdict(**figures, refused=producers.statuses[503], recovered_within=seconds(took))


def said(rig: Rig) -> list[str]:
    return [log.read_text() for log in rig.folder.glob("*.log")]


def made_at_jira(rig: Rig) -> set[str]:
    labels = [e["labels"] for e in rig.effects() if (e["platform"], e["effect"]) == ("jira", "ticket")]
    return {label.rpartition("-")[0] for each in labels for label in each if label.startswith("inc-")}


# --- SQLite -----------------------------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.fault("B15")
@pytest.mark.usefixtures("thoroughly")
def test_a_full_disk_under_sqlite_is_told_and_heals_once_there_is_room(rigs, volume, faults):
    disk = volume("disk", 80, owner=os.getuid())
    rig = rigs(f"sqlite:///{disk.path / 'ticketing.sqlite3'}")
    producers, took = Producers(rig), []
    with producers.flowing():
        for _ in range(3):
            disk.fill()
            producers.refused(3 * PRODUCERS)
            assert any("no space left" in reason for reason in producers.reasons)
            disk.make_room()
            took.append(producers.recovered(time.monotonic()))
            time.sleep(1)
    figures = judge(rig, producers)
    assert max(took) <= RECOVERY
    faults.verdict(**figures, refused=producers.statuses[503], recovered_within=seconds(took))


@on_sqlite
@pytest.mark.fault("B16")
def test_four_processes_share_a_file_and_nobody_is_told_that_it_is_locked(rigs, open_folder, faults):
    rig = rigs(f"sqlite:///{open_folder / 'shared.sqlite3'}")
    port = free_port()
    rig.argv["second-web"] = ["env", f"PORT={port}", *rig.argv["web"]]
    rig.start("second-web")
    console = signed_in(rig, f"http://127.0.0.1:{port}")
    producers, read = Producers(rig), Counter()
    wanted = 10_000 if faults.thorough else 400
    with producers.flowing():
        while sum(map(len, producers.sent)) < wanted:
            for path in ("/admin/incidents/incident/", "/admin/", "/api/incidents?limit=50", "/metrics"):
                read[console(path).status_code] += 1
            time.sleep(0.05)
    figures = judge(rig, producers)
    assert set(read) == set(producers.statuses) == {200}
    assert not any("is locked" in log for log in said(rig))
    faults.verdict(**figures, reads=sum(read.values()))


def signed_in(rig: Rig, url: str) -> Callable[[str], requests.Response]:
    """A person at the console of the web server at `url`: reads a page."""
    account = {"DJANGO_SUPERUSER_USERNAME": "anna", "DJANGO_SUPERUSER_PASSWORD": "a-good-one"}
    account["DJANGO_SUPERUSER_EMAIL"] = "anna@example.com"
    create = [sys.executable, "manage.py", "createsuperuser", "--noinput"]
    subprocess.run(create, cwd=ROOT, env=rig.environment | account, check=True, stdout=subprocess.DEVNULL)
    until(lambda: _listens(url), PATIENCE, "the second web server")
    session = requests.Session()
    session.get(f"{url}/admin/login/", timeout=60)
    [token] = [cookie.value for cookie in session.cookies if cookie.name.startswith("csrf")]
    form = {"username": "anna", "password": "a-good-one", "csrfmiddlewaretoken": token}
    assert session.post(f"{url}/admin/login/?next=/admin/", form, timeout=60).url == f"{url}/admin/"
    return lambda path: session.get(f"{url}{path}", timeout=60, allow_redirects=False)


def _listens(url: str) -> bool:
    try:
        return request(url, "GET", "/health")[0] == 200
    except (OSError, http.client.HTTPException):
        return False
