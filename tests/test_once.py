"""Two requests at once about the same thing: the database's constraints decide, and nothing else would."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import pytest
from django.db import connection, transaction

from incidents import intake
from incidents.models import Anomaly, DedupLock, Incident, SeenEvent
from tests.missing import without_constraint, without_primary_key
from tests.waiting import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time"),
]
PATIENCE = 60.0
WAITING = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"


def overlapping(*events: dict) -> None:
    """Two events come at once: the second while the transaction of the first is not committed yet."""
    taken, commit = threading.Event(), threading.Event()
    sessions: list[int] = []

    def first() -> None:
        with transaction.atomic():
            intake.accept([events[0]], actor="system")
            taken.set()
            assert commit.wait(PATIENCE)

    def second() -> None:
        connection.ensure_connection()
        sessions.append(connection.connection.info.backend_pid)
        intake.accept([events[1]], actor="system")

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(by_itself, first)]
        assert taken.wait(PATIENCE)
        running.append(pool.submit(by_itself, second))
        until(lambda: running[1].done() or is_blocked(sessions), PATIENCE)
        commit.set()
        for one in running:
            one.result(PATIENCE)


def by_itself(job: Callable[[], object]) -> None:
    try:
        job()
    finally:
        connection.close()


def is_blocked(sessions: list[int]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(WAITING, sessions or [0])
        return cursor.fetchone() is not None


def event(event_id: str) -> dict:
    return {"service": "payment-api", "severity": "critical", "score": 4.2, "eventId": event_id}


@pytest.mark.fault("B5")
@pytest.mark.parametrize(
    ("missing", "incidents"),
    [(nullcontext, 1), (lambda: without_constraint(DedupLock, "one_lock_per_fault"), 2)],
    ids=["as it is", "without the lock's constraint"],
)
def test_the_first_two_events_of_a_fault_make_one_incident(
    faults, missing: Callable[[], AbstractContextManager], incidents: int
):
    with missing():
        overlapping(event("one"), event("two"))
        assert Incident.objects.count() == incidents
    faults.verdict(tried=1, noticed=incidents - 1)


@pytest.mark.fault("B5")
@pytest.mark.parametrize(
    ("missing", "anomalies"),
    [(nullcontext, 1), (lambda: without_primary_key(SeenEvent), 2)],
    ids=["as it is", "without the key of seen events"],
)
def test_an_event_that_comes_twice_counts_once(faults, missing: Callable[[], AbstractContextManager], anomalies: int):
    with missing():
        overlapping(event("same"), event("same"))
        assert Anomaly.objects.count() == anomalies
    faults.verdict(tried=1, noticed=anomalies - 1)
