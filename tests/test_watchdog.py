"""A worker that lives and does not work ends itself; one whose database or broker is away does not."""

import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from incidents import watchdog
from incidents.delivery import lanes
from incidents.models import Pulse
from tests.proxy import Proxy
from tests.test_wakeup import Broker
from tests.waiting import until
from ticketing import health, processes

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor == "sqlite", reason="the watchdog is the same whatever the database is"),
]

# A worker's threads without Celery; `{case}` says what is wrong with them.
THREADS = """
import time
from incidents import watchdog
from incidents.delivery import lanes
watchdog.LOOK_SECONDS = 0.1
lanes.STOPPING_SECONDS = 0.1
{case}
sweep = lanes.Sweep({{"tickets"}})
dog = watchdog.Watchdog(sweep, watchdog.echo_queue())
dog.heard_at = time.monotonic()
sweep.wake(["slack"])
"""
# Who cannot work says so, and lives on for longer than the watchdog would wait.
LIVES_ON = """
import logging, threading

class Hears(logging.Handler):
    said = threading.Event()
    def emit(self, record):
        if {words!r} in record.getMessage():
            self.said.set()

logging.getLogger("incidents").addHandler(Hears())
"""
DOES_NOT_WORK = {
    "has not swept for 4 s although the database answers": """
watchdog.SWEEP_SECONDS = 4
lanes.Sweep.once = lambda self: time.sleep(999)
""",
    "has not swept for": """
watchdog.SWEEP_SECONDS = 4
lanes.Sweep._run = lambda self: None  # its thread is dead
""",
    "has held an attempt of slack for 2 s": """
watchdog.ATTEMPT_SECONDS = 2
lanes.attempt_next = lambda *_: time.sleep(999)
""",
    "has lost a thread of slack": "lanes.attempt_next = lambda *_: exit()",
    # Nobody is there to hear.
    "has heard nothing for 2 s although the broker takes messages": "watchdog.ECHO_SECONDS = 2",
}
CANNOT_WORK = {
    "The database cannot be used (OperationalError); the sweep goes on.": """
watchdog.SWEEP_SECONDS = 4
from django.db import connections
connections.databases["default"] |= {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": "1"}
""",
    "No wake-up could be published": """
from celery import current_app
watchdog.ECHO_SECONDS = 2
current_app.conf.broker_url = "redis://127.0.0.1:1/0"
""",
}


def test_whoever_does_not_work_ends_and_says_why(start_worker):
    code = {words: THREADS.format(case=case) + "time.sleep(300)" for words, case in DOES_NOT_WORK.items()}
    started = {words: start_worker(each) for words, each in code.items()}
    for words, worker in started.items():
        assert worker.wait(300) == watchdog.STATUS, words
        assert words in worker.stderr.read()


def test_whoever_cannot_work_for_want_of_database_or_broker_waits(start_worker):
    rest = "Hears.said.wait(240)\ntime.sleep(6)"
    code = {words: THREADS.format(case=case) + rest for words, case in CANNOT_WORK.items()}
    started = {words: start_worker(LIVES_ON.format(words=words) + each) for words, each in code.items()}
    for words, worker in started.items():
        assert worker.wait(300) == 0, words
        assert words in worker.stderr.read()


@pytest.mark.fault("B10")
def test_ready_names_who_is_silent_the_beat_or_the_broker(api, faults):
    def missing() -> list[str]:
        return api.get("/ready").json()["missing"]

    for name in ("sweep:one:1", "hears:one:1", "beat"):
        lanes.beat(name)
    assert missing() == []
    minute = timezone.now() - timedelta(seconds=61)
    Pulse.objects.filter(name="beat").update(at=minute)
    assert missing() == [health.BEAT]
    Pulse.objects.filter(name="hears:one:1").update(at=minute)
    assert missing() == [health.BROKER]
    Pulse.objects.filter(name="sweep:one:1").update(at=minute)
    assert len(missing()) == 2
    faults.verdict(tried=4)


class Worker:
    """A whole worker whose broker is reached through a proxy."""

    def __init__(self, port: int, database_url: str, log) -> None:
        self.log = log
        environment = os.environ | {"BROKER_URL": f"redis://127.0.0.1:{port}/0", "DATABASE_URL": database_url}
        argv = ["tests.watched" if word == "ticketing" else word for word in processes.worker()]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                (sys.executable, *argv[1:]), cwd=processes.ROOT, env=environment, stdout=output, stderr=output
            )

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start_whole_worker(tmp_path, test_database_url):
    started = []

    def start(port: int) -> Worker:
        started.append(Worker(port, test_database_url, tmp_path / f"{len(started)}.log"))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path)
    broker.proxy = Proxy(broker.port)
    yield broker
    broker.proxy.close()
    broker.kill()


def hearing(metrics: str) -> int:
    [line] = [line for line in metrics.splitlines() if line.startswith("ticketing_worker_hears ")]
    return int(line.split()[1])


@pytest.mark.fault("B8")
def test_a_worker_deaf_to_a_broker_that_answers_ends_itself_but_not_for_ever(start_whole_worker, broker, api, faults):
    def metrics() -> str:
        return api.get("/metrics").content.decode()

    first = start_whole_worker(broker.proxy.port)
    until(lambda: hearing(metrics()) == 1, 180)
    broker.proxy.mute = b"BRPOP"
    began = time.monotonic()
    assert first.process.wait(300) == watchdog.STATUS
    took = time.monotonic() - began
    assert "has heard nothing for 5 s although the broker takes messages" in first.said()
    assert 'ticketing_watchdog_exits_total{reason="deaf"} 1' in metrics()
    until(lambda: hearing(metrics()) == 0, 180)  # at the latest when what it told last is old

    if faults.thorough:
        # One that is deaf from its start would be so after another start, too.
        second = start_whole_worker(broker.proxy.port)
        with pytest.raises(subprocess.TimeoutExpired):
            second.process.wait(30)
        broker.proxy.mute = b""
        broker.proxy.cut()
        until(lambda: hearing(metrics()) == 1, 180)
        # And where the broker is gone there is nothing to hear.
        broker.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            second.process.wait(30)
    faults.verdict(tried=1, ended_after=f"{took:.1f} s")
