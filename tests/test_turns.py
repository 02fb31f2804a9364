"""Requests that share transactions: who waits for whom, and for how long."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from incidents import turns
from incidents.events import Event, read
from incidents.lifecycle import Author
from incidents.turns import Result, Sent, Turns

PATIENCE = 120.0


def event(service: str) -> Event:
    return read({"service": service, "severity": "low", "score": 1}, now=datetime.now(UTC))


def sent(*services: str) -> Sent:
    return Sent([event(service) for service in services], Author("local"))


class Transactions:
    """In place of the database: notes which services were taken in together, and holds transactions as it is told."""

    def __init__(self) -> None:
        self.begun: list[list[str]] = []
        self.changed = threading.Condition()
        self.held: dict[str, threading.Event] = {}

    def __call__(self, together: list[Sent]) -> list[Result]:
        services = [event.service for one in together for event in one.events]
        with self.changed:
            self.begun.append(services)
            self.changed.notify_all()
        for service in services:
            if service in self.held:
                assert self.held[service].wait(PATIENCE)
            if service == "poison":
                raise ValueError(service)
        return [Result("created", service) for service in services]

    def hold(self, service: str) -> Callable[[], None]:
        """Transactions with an event of this service end when what is returned is called."""
        self.held[service] = threading.Event()
        return self.held[service].set

    def wait_for(self, *services: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: list(services) in self.begun, PATIENCE), self.begun


@pytest.fixture
def transactions() -> Transactions:
    return Transactions()


@pytest.fixture
def shared(transactions) -> Turns:
    return Turns(transactions)


@pytest.fixture
def send(shared):
    """Sends a request in a thread of its own, and returns when it waits, or is under way."""
    with ThreadPoolExecutor(16) as pool:
        yield lambda *services: pool.submit(shared.take_in, sent(*services))


def joined(shared: Turns, number: int, send: Callable[..., Future], *services: str) -> Future:
    """A request that waits as one of so many."""
    future = send(*services)
    while len(shared._waiting) < number and not future.done():
        time.sleep(0.001)
    return future


def test_who_comes_meanwhile_is_in_the_next_transaction_with_all_others_who_did(shared, transactions, send):
    end = transactions.hold("a")
    first = send("a")
    transactions.wait_for("a")
    others = [joined(shared, number, send, f"s{number}", "all") for number in (1, 2, 3)]
    end()
    assert [result.incident_id for result in first.result(PATIENCE)] == ["a"]
    assert [[r.incident_id for r in other.result(PATIENCE)] for other in others] == [
        ["s1", "all"],
        ["s2", "all"],
        ["s3", "all"],
    ]
    assert transactions.begun == [["a"], ["s1", "all", "s2", "all", "s3", "all"]]


def test_who_is_done_does_not_wait_for_the_transaction_after(shared, transactions, send):
    ends = {service: transactions.hold(service) for service in "abd"}
    first = send("a")
    transactions.wait_for("a")
    b, c = joined(shared, 1, send, "b"), joined(shared, 2, send, "c")
    ends["a"]()
    transactions.wait_for("b", "c")
    d = joined(shared, 1, send, "d")
    ends["b"]()
    transactions.wait_for("d")
    assert [future.result(PATIENCE)[0].incident_id for future in (first, b, c)] == ["a", "b", "c"]
    assert not d.done()
    ends["d"]()
    assert d.result(PATIENCE)[0].incident_id == "d"


def test_a_transaction_begins_when_it_is_as_full_as_the_last_two_on_average(shared, transactions, send, monkeypatch):
    monkeypatch.setattr(turns, "GATHER_SECONDS", PATIENCE)
    shared._sizes = (1, 5)
    futures = [joined(shared, number, send, f"s{number}") for number in (1, 2, 3)]
    assert all(future.result(PATIENCE) for future in futures)
    assert transactions.begun == [["s1", "s2", "s3"]]


def test_who_comes_alone_after_a_storm_waits_for_a_moment_only(shared, transactions):
    shared._sizes = (8, 8)
    assert shared.take_in(sent("a")) == [Result("created", "a")]
    assert shared.take_in(sent("b")) == [Result("created", "b")]
    assert shared._wanted() == 1


def test_one_that_fails_fails_alone(shared, transactions, send):
    end = transactions.hold("a")
    send("a")
    transactions.wait_for("a")
    b, poison, c = (joined(shared, n, send, name) for n, name in enumerate(("b", "poison", "c"), 1))
    end()
    assert [future.result(PATIENCE)[0].incident_id for future in (b, c)] == ["b", "c"]
    with pytest.raises(ValueError, match="poison"):
        poison.result(PATIENCE)
    assert not shared._busy
