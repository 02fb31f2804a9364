"""A worker that dies at any of its system calls on the network, or hears no answer, leaves one ticket all the same.

strace kills it there; without strace there is nothing to see of that. What a client of PostgreSQL sends goes through
the same calls, so there they are many: `make faults` tries all, with three seeds.
"""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from incidents.delivery import attempts
from incidents.models import Ticket
from platforms.catalog import PLATFORMS
from tests import forks
from tests.deliveries import ACTIONS, Action, Delivery, Judge, Tally, database_url
from tests.missing import NO_FENCE, without_constraint
from tests.standins import Standins

pytestmark = pytest.mark.django_db(transaction=True)
needs_strace = pytest.mark.skipif(not forks.strace_works(), reason="needs strace, and the right to trace a process")

LATEST_PAGE = 9.0  # seconds after a death, with one more for the sweep that finds the ticket
DEADLINE = 0.3  # seconds that an attempt has which sleeps through them
# Of how many calls of one name a sample may draw: on SQLite all of them are on the way to the platform.
DRAWN_FROM = 3 if connection.vendor == "sqlite" else 30
LIKELY = [forks.Point(call, number + 1) for call in forks.CALLS for number in range(DRAWN_FROM)]
PAIRS = 4
CREATE, _, ESCALATE, _, RESOLVE, _ = ACTIONS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each action at each platform by itself where all is tried, so that the table tells of each."""
    if "actions" not in metafunc.fixturenames:
        return
    if metafunc.config.getoption("faults") == "all":
        cells = [pytest.param(name, (a,), id=f"{name}-{a.name}") for name in PLATFORMS for a in ACTIONS]
    else:
        cells = [pytest.param(name, ACTIONS, id=name) for name in PLATFORMS]
    metafunc.parametrize(("platform", "actions"), cells)


@pytest.fixture(scope="module")
def forked(django_db_setup, django_db_blocker) -> Iterator[forks.Forks]:
    with django_db_blocker.unblock():
        process = forks.Forks(database_url(), networks=Standins.NETWORKS)
    yield process
    process.stop()


@pytest.fixture
def delivery(connect, api, send, platform) -> Delivery:
    standins = connect(platform)
    routing = {severity: [platform] for severity in ("critical", "high", "medium", "low")}
    assert api.patch("/api/v1/config/routing", routing, format="json").status_code == 200
    yield Delivery(standins, platform, send)
    standins.jira.resolution = "absent"


def tries(faults, actions: tuple[Action, ...], some: int = 2) -> list[tuple[int, Action]]:
    return [(seed, action) for seed in faults.seeds() for action in faults.sample(actions, some)]


def vary(delivery: Delivery, dice: random.Random) -> None:
    """What else may differ at a platform."""
    if delivery.platform == "jira":
        delivery.standin.lag = dice.uniform(0, 30)
        delivery.standin.resolution = dice.choice(("absent", "optional", "required"))
    if delivery.platform == "opsgenie":
        delivery.standin.lag = dice.choice((0, 0.06))


def verdict(faults, tally: Tally) -> None:
    assert not tally.told, tally.told[:5]
    figures = {"marked": tally.marked} if tally.marked else {}
    if tally.slowest:
        figures["latest_page"] = f"{tally.slowest:.1f} s"
    faults.verdict(tried=tally.tried, lost=tally.lost, doubled=tally.doubled, claims=tally.most_claims, **figures)


# --- B1 ---------------------------------------------------------------------------------------------------------------


def points_of(delivery: Delivery, action: Action, forked: forks.Forks, faults, tally: Tally) -> list[forks.Point]:
    """All the calls that the delivery makes, or some that it may make."""
    if not faults.thorough:
        return faults.sample(LIKELY, 1)
    delivery.begin(action)
    points = forked.work(delivery.platform).points()
    Judge(delivery, action, tally).judge("undisturbed")
    return points


@needs_strace
@pytest.mark.fault("B1")
def test_a_worker_that_dies_at_any_call_leaves_one_ticket(delivery, forked, faults, platform, actions):
    tally = Tally()
    for seed, action in tries(faults, actions):
        dice = random.Random(f"{seed} {platform} {action.name}")
        vary(delivery, dice)
        for point in points_of(delivery, action, forked, faults, tally):
            vary(delivery, dice)
            delivery.begin(action)
            judge = Judge(delivery, action, tally)
            forked.work(platform, point)
            delivery.platform_rests()
            judge.note_a_death()
            delivery.settle()
            judge.judge((seed, action.name, point))
            if PLATFORMS[platform].pages:
                tally.slowest = max(tally.slowest, delivery.waited)
    assert tally.slowest < LATEST_PAGE
    verdict(faults, tally)


@needs_strace
@pytest.mark.fault("B1")
def test_a_worker_that_dies_after_another_has_died_leaves_one_ticket(delivery, forked, faults, platform, actions):
    tally = Tally()
    for seed, action in tries(faults, actions, 1):
        dice = random.Random(f"{seed} {platform} {action.name} twice")
        for _ in range(PAIRS if faults.thorough else 1):
            points = dice.choices(LIKELY, k=2)
            vary(delivery, dice)
            delivery.begin(action)
            judge = Judge(delivery, action, tally)
            for point in points:
                forked.work(platform, point)
                delivery.platform_rests()
                judge.note_a_death()
                delivery.pass_time((delivery.next_due() or 0) + 0.001)
            delivery.settle()
            judge.judge((seed, action.name, points))
            if PLATFORMS[platform].pages:
                tally.slowest = max(tally.slowest, delivery.waited)
    assert tally.slowest < 2 * LATEST_PAGE
    verdict(faults, tally)


# --- B18 --------------------------------------------------------------------------------------------------------------


def lose_answers(delivery: Delivery, action: Action, faults, tally: Tally, dice: random.Random) -> None:
    """One answer of a delivery, whichever; and all of a minute."""
    delivery.begin(action)
    delivery.settle()
    before = len(delivery.standin.seen)
    requests = faults.sample(range(before), 1)
    for lost in [*requests, None]:
        vary(delivery, dice)
        delivery.begin(action)
        judge = Judge(delivery, action, tally)
        judge.repeatable = 1
        every = {"times": None} if lost is None else {"times": 1, "skip": lost}
        delivery.standin.fault("lost", rst=dice.choice((True, False)), **every)
        delivery.settle(60)
        delivery.standin.clear_faults()
        delivery.settle()
        judge.judge((action.name, "all answers of a minute" if lost is None else f"answer {lost + 1}"))


@pytest.mark.fault("B18")
def test_an_answer_that_is_lost_after_the_work_is_done_leaves_one_ticket(delivery, faults, platform, actions):
    tally = Tally()
    for seed, action in tries(faults, actions):
        lose_answers(delivery, action, faults, tally, random.Random(f"{seed} {platform} {action.name}"))
    verdict(faults, tally)


# --- B4 ---------------------------------------------------------------------------------------------------------------


SHORT = f"""
from incidents.delivery import attempts
attempts.PAGING = attempts.OTHER = attempts.Times(deadline={DEADLINE}, lease=30)
"""


def sleep_through_a_lease(delivery: Delivery, forked: forks.Forks, code: str) -> tuple[Tally, int]:
    """A worker that is to create a ticket is stopped before its first request. Another does so, and shows that the
    incident is resolved. Then the first wakes. Returns how many requests it made, too."""
    tally = Tally()
    delivery.begin(CREATE)
    judge = Judge(delivery, RESOLVE, tally)
    with forked.sleep(delivery.platform, SHORT + code) as wake:
        assert not attempts.attempt_next(delivery.platform), "it is still held"
        time.sleep(DEADLINE)
        delivery.settle()
        delivery.move("resolve")
        delivery.settle()
        before = len(delivery.standin.seen)
        assert not wake().killed
    delivery.platform_rests()
    judge.judge("slept through its lease")
    return tally, len(delivery.standin.seen) - before


@pytest.mark.fault("B4")
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_worker_that_slept_through_its_lease_sends_nothing(delivery, forked, faults):
    tally, requests = sleep_through_a_lease(delivery, forked, "")
    assert requests == 0
    verdict(faults, tally)


# --- Without a safeguard ----------------------------------------------------------------------------------------------
# A suite that stays green without what it is to prove proves nothing.


@pytest.mark.fault("B4")
@pytest.mark.parametrize("platform", ["pagerduty", "opsgenie", "slack"])
def test_without_the_fence_who_slept_doubles(delivery, forked, faults):
    tally, requests = sleep_through_a_lease(delivery, forked, NO_FENCE)
    assert requests
    assert tally.doubled, tally
    faults.verdict(tried=tally.tried, noticed=tally.doubled)


@pytest.mark.fault("B18")
@pytest.mark.parametrize("platform", ["jira", "servicenow"])
def test_without_the_look_up_a_lost_answer_doubles(delivery, faults, monkeypatch, platform):
    monkeypatch.setattr(type(PLATFORMS[platform]), "find", lambda *_: None)
    tally = Tally()
    delivery.begin(CREATE)
    delivery.standin.fault("lost", method="POST")
    delivery.settle()
    Judge(delivery, CREATE, tally).judge("lost answer")
    assert tally.doubled, tally
    faults.verdict(tried=tally.tried, noticed=tally.doubled)


@pytest.mark.fault("B18")
@pytest.mark.parametrize("platform", ["jira"])
def test_with_a_search_that_is_asked_too_early_only_a_lost_answer_doubles(delivery, faults, monkeypatch, platform):
    monkeypatch.setattr(type(PLATFORMS[platform]), "search_lag", 0.0)
    tally = Tally()
    delivery.standin.lag = 29.0
    delivery.begin(CREATE)
    delivery.standin.fault("lost", method="POST", path="/issue$")
    delivery.settle()
    Judge(delivery, CREATE, tally).judge("lost answer")
    assert tally.doubled, tally
    faults.verdict(tried=tally.tried, noticed=tally.doubled)


def two_workers_at_once(delivery: Delivery) -> Tally:
    """One looks for something to do while the other is about to ask the platform."""
    tally = Tally()
    delivery.begin(CREATE)
    claimed, looked = threading.Event(), threading.Event()

    def first() -> None:
        attempts.attempt_next(delivery.platform, lambda: (claimed.set(), looked.wait(60)))
        connection.close()

    with ThreadPoolExecutor(1) as pool:
        attempt = pool.submit(first)
        assert claimed.wait(60)
        attempts.attempt_next(delivery.platform)
        looked.set()
        attempt.result(60)
    delivery.settle()
    Judge(delivery, CREATE, tally).judge("two at once")
    return tally


@pytest.mark.fault("B4")
@pytest.mark.parametrize("platform", ["slack"])
def test_of_two_workers_at_once_one_delivers(delivery, faults):
    verdict(faults, two_workers_at_once(delivery))


@pytest.mark.fault("B4")
@pytest.mark.parametrize("platform", ["slack"])
def test_without_a_lease_two_workers_at_once_double(delivery, faults, monkeypatch):
    monkeypatch.setattr(attempts, "OTHER", attempts.Times(deadline=60, lease=-1))
    tally = two_workers_at_once(delivery)
    assert tally.doubled, tally
    faults.verdict(tried=tally.tried, noticed=tally.doubled)


@pytest.mark.fault("B1")
@pytest.mark.parametrize("platform", ["slack"])
def test_without_the_unique_constraint_an_escalation_makes_a_second_ticket(delivery, faults):
    tally = Tally()
    with without_constraint(Ticket, "one_ticket_per_platform"):
        delivery.begin(ESCALATE)
        delivery.settle()
        Judge(delivery, ESCALATE, tally).judge("escalated")
    assert tally.doubled, tally
    faults.verdict(tried=tally.tried, noticed=tally.doubled)
