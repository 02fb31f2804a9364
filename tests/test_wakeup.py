"""Wake-ups through a broker that is killed, full or frozen: they cost nobody anything, and come back when it does."""

import math
import os
import signal
import subprocess
import time

import pytest
import redis
from celery import Celery, current_app

from incidents import counters, wakeup
from tests.ports import free_port
from tests.waiting import until
from ticketing.processes import broker


class Broker:
    """A Valkey on a port of its own, that can be mistreated."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        argv = (*broker(self.folder).argv, "--port", str(self.port), "--bind", "127.0.0.1")
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port)
        until(self.answers)

    def answers(self) -> bool:
        try:
            return self.client.ping()
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def waiting(self) -> int:
        return self.client.llen("tickets")


@pytest.fixture
def other_broker(tmp_path):
    broker = Broker(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture
def publisher(other_broker):
    before = current_app._get_current_object()
    app = Celery("wakeups", broker=other_broker.url)
    # Long, so that whoever waited for a frozen broker would be seen.
    app.conf.broker_transport_options = {"socket_timeout": 60, "socket_connect_timeout": 60}
    app.set_default()
    yield wakeup._Publisher()
    app.close()
    before.set_default()


def wakes(publisher, broker: Broker) -> bool:
    """A wake-up arrives, or the next: one may be lost with a connection from before."""
    before, left_at = broker.waiting(), -math.inf

    def arrived() -> bool:
        nonlocal left_at
        if time.monotonic() - left_at > 1:
            left_at = time.monotonic()
            publisher.leave("tickets", {"slack"})
        return broker.waiting() > before

    return until(arrived)


def test_a_killed_broker_is_found_again(publisher, other_broker):
    assert wakes(publisher, other_broker)
    other_broker.kill()
    publisher.leave("tickets", {"slack"})
    other_broker.start()
    until(lambda: not publisher.words)
    assert wakes(publisher, other_broker)


def test_a_broker_that_has_forgotten_everything_is_told_anew(publisher, other_broker):
    assert wakes(publisher, other_broker)
    other_broker.client.flushall()
    assert wakes(publisher, other_broker)


def test_a_full_broker_stops_nothing_for_ever(publisher, other_broker, caplog):
    assert wakes(publisher, other_broker)
    other_broker.client.config_set("maxmemory", "1mb")
    for _ in range(3):
        publisher.leave("tickets", {"slack"})
        until(lambda: not publisher.words)
    until(lambda: "No wake-up could be published" in caplog.text)
    assert caplog.text.count("No wake-up could be published") == 1, "once a minute, not per wake-up"
    until(lambda: counters._pending[counters.WAKEUPS_LOST.sample(queue="tickets")] >= 3)
    other_broker.client.config_set("maxmemory", "256mb")
    assert wakes(publisher, other_broker)


def test_a_frozen_broker_holds_nobody(publisher, other_broker):
    assert wakes(publisher, other_broker)
    os.kill(other_broker.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for _ in range(1000):
            publisher.leave("tickets", {"slack", "jira"})
        assert time.monotonic() - began < 30  # whoever waited for the broker would wait for a minute
    finally:
        os.kill(other_broker.process.pid, signal.SIGCONT)
    assert wakes(publisher, other_broker)


def test_a_burst_becomes_a_handful_of_messages(publisher, other_broker):
    for _ in range(1000):
        publisher.leave("tickets", {"slack"})
    until(lambda: not publisher.words)
    assert other_broker.waiting() < 300
