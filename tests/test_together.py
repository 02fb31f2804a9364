"""On SQLite the short writes of many threads share a transaction, and none pays for another's failure."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, connection

from incidents.delivery import together
from incidents.models import Pulse

SECONDS = 20

pytestmark = pytest.mark.django_db(transaction=True)


def note(name: str) -> tuple[str, int]:
    Pulse.objects.create(name=name, at="2026-01-01T00:00:00Z")
    return name, threading.get_ident()


def together_with(acts: list) -> list:
    """What comes of writes that all wait for the turn of another: results, or errors."""
    holds, go_on = threading.Event(), threading.Event()

    def closing(act):
        try:
            return together.write(act)
        except IntegrityError as error:
            return error
        finally:
            connection.close()

    def hold() -> None:
        holds.set()
        assert go_on.wait(SECONDS)

    with ThreadPoolExecutor(len(acts) + 1) as pool:
        first = pool.submit(closing, hold)
        assert holds.wait(SECONDS)
        others = [pool.submit(closing, act) for act in acts]
        deadline = time.monotonic() + SECONDS
        while connection.vendor == "sqlite" and len(together._waiting) < len(acts):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        go_on.set()
        first.result(SECONDS)
        return [other.result(SECONDS) for other in others]


def test_those_who_wait_are_written_by_one_of_them():
    results = together_with([lambda n=n: note(f"writer-{n}") for n in range(5)])
    assert [name for name, _ in results] == [f"writer-{n}" for n in range(5)]
    writers = {thread for _, thread in results}
    assert len(writers) == (1 if connection.vendor == "sqlite" else 5)
    assert Pulse.objects.filter(name__startswith="writer-").count() == 5


def test_what_fails_fails_for_itself():
    Pulse.objects.create(name="there already", at="2026-01-01T00:00:00Z")
    acts = [lambda: note("before"), lambda: note("there already"), lambda: note("after")]
    before, failed, after = together_with(acts)
    assert isinstance(failed, IntegrityError)
    assert (before[0], after[0]) == ("before", "after")
    assert Pulse.objects.filter(name__in=["before", "after"]).count() == 2


def test_whatever_is_raised_reaches_who_asked_and_holds_up_nobody():
    def break_down():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together.write(break_down)
    assert together.write(lambda: note("later"))[0] == "later"
