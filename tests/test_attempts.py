"""Claims, leases and the fence, with real threads, processes and sockets; and what a sick platform may delay."""

import itertools
import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.db.models import F
from django.utils import timezone

from config.current import current
from incidents import lifecycle
from incidents.delivery import attempts, lanes
from incidents.delivery.attempts import attempt_next
from incidents.models import Incident, PlatformPause, Ticket
from platforms.catalog import PLATFORMS
from platforms.contract import PlatformError
from tests.standins import Standins
from tests.waiting import best, stop, until

ALL_SEVERITIES = ("critical", "high", "medium", "low")
SHORT = attempts.Times(deadline=0.4, lease=0.8)


def in_thread(function, *args):
    """Runs in a thread of its own with a database connection of its own."""

    def run():
        try:
            return function(*args)
        finally:
            connection.close()

    return ThreadPoolExecutor(1).submit(run)


def tickets_of(api, incident_id: str) -> dict[str, dict]:
    return {ticket["platform"]: ticket for ticket in api.get(f"/api/incidents/{incident_id}").json()["tickets"]}


def due() -> None:
    Ticket.objects.behind().update(due_at=timezone.now() - timedelta(seconds=1))


def move(api, incident_id: str, name: str) -> None:
    assert api.post(f"/api/incidents/{incident_id}/{name}").status_code == 200


@pytest.fixture
def only(connect, api):
    """One platform enabled, and everything routed to it."""

    def enable(name: str) -> Standins:
        standins = connect(name)
        routing = {severity: [name] for severity in ALL_SEVERITIES}
        assert api.patch("/api/v1/config/routing", routing, format="json").status_code == 200
        return standins

    return enable


@pytest.fixture
def short_leases(monkeypatch):
    monkeypatch.setattr(attempts, "PAGING", SHORT)


def is_stopped(worker: subprocess.Popen) -> bool:
    assert worker.poll() is None, worker.stderr.read()
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.django_db(transaction=True)
class TestTheClaim:
    def test_one_of_two_threads_has_it(self, only, send):
        standins = only("pagerduty")
        send()
        standins.pagerduty.fault("late", seconds=0.3)
        claimed = threading.Event()
        first = in_thread(attempt_next, "pagerduty", claimed.set)
        assert claimed.wait(60)
        assert attempt_next("pagerduty") is False
        assert first.result(60) is True
        assert len(standins.pagerduty.seen) == 1

    def test_many_threads_and_processes_send_each_ticket_once(self, only, send, start_worker):
        standins = only("pagerduty")
        send(*({"service": f"service-{n}"} for n in range(24)))
        code = "attempts.PAGING = attempts.Times(60, 90)\nwhile attempts.attempt_next('pagerduty'): pass"
        workers = [start_worker(code) for _ in range(2)]

        def drain():
            while Ticket.objects.behind().exists():
                attempt_next("pagerduty")

        threads = [in_thread(drain) for _ in range(3)]
        for thread in threads:
            thread.result(120)
        for worker in workers:
            assert worker.wait(120) == 0, worker.stderr.read()
        assert standins.pagerduty.pages == len(standins.pagerduty.seen) == 24
        assert set(Ticket.objects.values_list("claim", flat=True)) == {1}

    def test_what_a_slow_platform_took_is_asked_about_next_time_and_not_sent_again(self, only, send, monkeypatch):
        monkeypatch.setattr("platforms.opsgenie._PAUSES", (0.05,))
        opsgenie = only("opsgenie").opsgenie
        opsgenie.lag = 1
        send()

        def attempt():
            due()
            attempt_next("opsgenie")
            return not Ticket.objects.behind().exists()

        until(attempt, seconds=60)
        [[alert]] = opsgenie.alerts.values()
        assert alert.count == 1
        assert Ticket.objects.get().taken is None

    def test_what_a_platform_took_and_forgot_is_sent_again(self, only, send, monkeypatch):
        monkeypatch.setattr("platforms.opsgenie._PAUSES", (0.05,))
        opsgenie = only("opsgenie").opsgenie
        opsgenie.lag = 600
        send()
        assert attempt_next("opsgenie")
        taken = Ticket.objects.get().taken
        opsgenie.lag = 0
        due()
        assert attempt_next("opsgenie")
        assert Ticket.objects.behind().get().taken == taken, "waited for since the same moment"
        long_ago = (timezone.now() - attempts.TAKEN_FOR - timedelta(seconds=1)).isoformat()
        Ticket.objects.update(taken=taken | {"at": long_ago})
        due()
        assert attempt_next("opsgenie")
        assert not Ticket.objects.behind().exists()

    def test_what_a_lost_claim_learned_is_not_noted(self, only, send):
        standins = only("slack")
        send()
        standins.slack.fault("status", code=404, body="no_service", work=False)
        claimed, go_on = threading.Event(), threading.Event()
        first = in_thread(attempt_next, "slack", lambda: (claimed.set(), go_on.wait(60)))
        assert claimed.wait(60)
        Ticket.objects.update(claim=F("claim") + 1, lease_until=timezone.now() + timedelta(seconds=30))
        go_on.set()
        assert first.result(60)
        ticket = Ticket.objects.get()
        assert (ticket.parked_at, ticket.last_error) == (None, "")
        assert ticket.lease_until is not None

    def test_a_change_meanwhile_stays_due(self, only, send, api, work):
        standins = only("pagerduty")
        [incident_id] = send()["incidents"]
        claimed, go_on = threading.Event(), threading.Event()
        first = in_thread(attempt_next, "pagerduty", lambda: (claimed.set(), go_on.wait(60)))
        assert claimed.wait(60)
        time.sleep(0.02)
        standins.pagerduty.fault("late", seconds=0.3)
        go_on.set()
        until(lambda: standins.pagerduty.pages == 1)
        move(api, incident_id, "acknowledge")
        assert first.result(60)
        ticket = Ticket.objects.get()
        assert (ticket.shown_version, ticket.wanted_version) == (1, 2)
        assert ticket.due_at is not None
        work()
        [alerts] = standins.pagerduty.alerts.values()
        assert alerts[-1].state == "acknowledged"


@pytest.mark.django_db(transaction=True)
class TestTheFence:
    def test_who_slept_through_the_deadline_sends_nothing(self, only, send, short_leases):
        standins = only("pagerduty")
        send()
        assert attempt_next("pagerduty", lambda: time.sleep(SHORT.deadline + 0.05))
        assert not standins.pagerduty.seen
        ticket = Ticket.objects.get()
        assert ticket.in_doubt is False, "nothing left, so nothing is in doubt"
        assert ticket.last_error

    def test_a_worker_that_was_stopped_wakes_to_a_resolved_incident(self, only, send, api, start_worker):
        standins = only("pagerduty")
        [incident_id] = send()["incidents"]
        worker = start_worker(
            "import os, signal\n"
            f"attempts.PAGING = attempts.Times({SHORT.deadline}, lease=600)\n"
            "attempts.attempt_next('pagerduty', lambda: os.kill(os.getpid(), signal.SIGSTOP))"
        )
        until(lambda: Ticket.objects.filter(claim=1).exists() and is_stopped(worker))
        assert attempt_next("pagerduty") is False, "it is still held"
        Ticket.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        assert attempt_next("pagerduty")
        move(api, incident_id, "resolve")
        assert attempt_next("pagerduty")
        seen = len(standins.pagerduty.seen)

        time.sleep(SHORT.deadline)
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.wait(60) == 0
        assert "lease was lost" in worker.stderr.read()
        assert len(standins.pagerduty.seen) == seen
        assert standins.pagerduty.pages == 1
        [alerts] = standins.pagerduty.alerts.values()
        assert alerts[-1].state == "resolved"
        assert tickets_of(api, incident_id)["pagerduty"]["state"] == "in sync"

    def test_a_worker_that_was_killed_after_its_claims_is_taken_over(
        self, everywhere, send, api, work, start_worker
    ):
        [incident_id] = send()["incidents"]
        worker = start_worker(
            "import os, signal, threading\n"
            "from platforms.catalog import PLATFORMS\n"
            f"attempts.PAGING = attempts.OTHER = attempts.Times({SHORT.deadline}, {SHORT.lease})\n"
            "everybody = threading.Barrier(len(PLATFORMS))\n"
            "def claimed():\n"
            "    everybody.wait()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "for name in PLATFORMS:\n"
            "    threading.Thread(target=attempts.attempt_next, args=(name, claimed)).start()"
        )
        assert worker.wait(120) == -signal.SIGKILL
        for name in PLATFORMS:
            until(lambda name=name: attempt_next(name))
        work(later=True)
        assert not Ticket.objects.behind().exists()
        assert everywhere.pagerduty.pages == everywhere.opsgenie.pages == 1
        assert len(everywhere.jira.issues) == len(everywhere.servicenow.records) == len(everywhere.slack.messages) == 1
        marked = {name for name, ticket in tickets_of(api, incident_id).items() if ticket["mayBeDoubled"]}
        assert marked == {"slack"}


@pytest.mark.django_db
class TestTheBreaker:
    @pytest.fixture(autouse=True)
    def breaks_outlast_the_test(self, monkeypatch):
        seconds = attempts._break
        monkeypatch.setattr(attempts, "_break", lambda *failing: 100 * seconds(*failing))

    def failures(self) -> PlatformPause:
        return PlatformPause.objects.get()

    def fail(self, times: int, work) -> None:
        for _ in range(times):
            due()
            PlatformPause.objects.update(until=timezone.now() - timedelta(seconds=1))
            work()

    def test_opens_after_failures_in_a_row_and_closes_with_success(self, only, send, work):
        standins = only("pagerduty")
        send({"service": "one"}, {"service": "two"})
        fault = standins.pagerduty.fault("status", times=None, code=500)
        self.fail(6, work)  # then it is open
        assert self.failures().until > timezone.now()
        due()
        used = fault.used
        assert attempt_next("pagerduty") is False
        assert fault.used == used, "an open breaker lets nothing through"
        standins.pagerduty.clear_faults()
        work(later=True)
        assert self.failures().failures == 0
        assert standins.pagerduty.pages == 2

    def test_stays_closed_for_one_poison_ticket(self, only, send, work):
        standins = only("pagerduty")
        [poisoned] = send({"service": "poison"})["incidents"]
        standins.pagerduty.fault("status", times=8, code=500)
        self.fail(8, work)
        assert self.failures().until <= timezone.now()
        send({"service": "healthy"})
        work()
        assert standins.pagerduty.pages == 1, "the other one left at once"

    def test_the_longer_rest_counts(self, only, send, work):
        standins = only("slack")
        send({"service": "one"}, {"service": "two"})
        standins.slack.fault("status", code=429, headers={"Retry-After": "120"})
        work()
        PlatformPause.objects.update(reason="first")
        pause = self.failures().until
        attempts._note_failure(current().platforms["slack"], 0, PlatformError("429", pause=True, retry_after=1), 1.0)
        assert self.failures().until == pause


@pytest.mark.django_db(transaction=True)
class TestASickPlatform:
    """Lanes as in a worker; one platform is ill."""

    @pytest.fixture
    def sweep(self, everywhere, monkeypatch):
        # Whoever waited for the platform that is ill would wait for longer than this test.
        for kind in ("PAGING", "OTHER"):
            monkeypatch.setattr(attempts, kind, attempts.Times(deadline=300, lease=400))
        sweep = lanes.Sweep({"tickets"})
        yield sweep
        for standin in everywhere:
            standin.clear_faults()
            standin.down()  # cuts what hangs, so that no thread outlives the test's database
        stop(sweep)
        for standin in everywhere:
            standin.up()

    @pytest.mark.parametrize(
        ("sick", "kind", "options"),
        [
            ("jira", "hang", {}),
            ("pagerduty", "hang", {}),
            ("servicenow", "drip", {"seconds": 1}),
            ("slack", "status", {"code": 429, "headers": {"Retry-After": "60"}}),
        ],
    )
    def test_delays_its_own_tickets_only(self, everywhere, sweep, send, sick, kind, options):
        everywhere[sick].fault(kind, times=None, **options)
        send(*({"service": f"ill-{n}"} for n in range(10)))  # enough to fill its lane
        until(lambda: everywhere[sick].seen or everywhere[sick].listener.connected)
        send({"service": "another"})
        others = Ticket.objects.exclude(platform=sick)
        pages = others.filter(platform__in=["pagerduty", "opsgenie"])
        until(lambda: not pages.behind().exists())
        until(lambda: not others.behind().exists())
        assert Ticket.objects.behind().filter(platform=sick).count() == 11
        paging = everywhere.opsgenie if sick == "pagerduty" else everywhere.pagerduty
        assert paging.pages == 11

    def test_those_who_page_look_at_once_and_the_others_let_them_go_first(self, sweep):
        graces = {name: lane.grace for name, lane in sweep.lanes.items() if name in PLATFORMS}
        assert {name for name, grace in graces.items() if grace == 0} == {"pagerduty", "opsgenie"}
        assert max(graces.values()) < 0.1

    def test_in_a_burst_pages_leave_first(self, everywhere, sweep, send):
        bursts = itertools.count()

        def messages_before_most_pages() -> int:
            everywhere.reset()
            burst = next(bursts)
            send(*({"service": f"burst-{burst}-{n}"} for n in range(40)))
            until(lambda: not Ticket.objects.behind().exists())
            paged = [effect["at"] for effect in everywhere.pagerduty.effects if effect["effect"] == "page"]
            told = [effect["at"] for effect in everywhere.slack.effects]
            assert len(paged) == len(told) == 40
            return sum(at < paged[29] for at in told)

        # Once more where the machine stood still for as long as others wait for pages.
        assert best(messages_before_most_pages, 14) < 15, "each lane had a fifth of the worker"


@pytest.mark.django_db
class TestTheOrder:
    def drain(self) -> None:
        while attempt_next("pagerduty"):
            pass

    def events(self, standins) -> list[str]:
        """In the order in which they were sent."""
        sent = [json.loads(seen.body) for seen in standins.pagerduty.seen]
        return [f"{event['event_action']} {event['dedup_key'].rpartition('-')[0]}" for event in sent]

    def test_critical_goes_first(self, only, send):
        standins = only("pagerduty")
        for severity in ("low", "medium", "high", "critical"):
            send({"service": "a", "severity": severity}, {"service": "b", "severity": severity})
        self.drain()
        told = [alerts[0].severity for alerts in standins.pagerduty.alerts.values()]
        assert told == ["critical", "critical", "error", "error", "warning", "warning", "info", "info"]

    def test_of_equally_urgent_ones_a_page_goes_before_what_is_known_already(self, only, send, api):
        standins = only("pagerduty")
        known = send({"service": "a"}, {"service": "b"})["incidents"]
        self.drain()
        for incident_id in known:
            move(api, incident_id, "acknowledge")
        [new] = send({"service": "c"})["incidents"]
        [less] = send({"service": "d", "severity": "high"})["incidents"]
        standins.pagerduty.seen.clear()
        self.drain()
        acknowledged = [f"acknowledge {incident_id}" for incident_id in known]
        assert self.events(standins) == [f"trigger {new}", *acknowledged, f"trigger {less}"]

    def test_whom_somebody_escalates_for_does_not_wait_for_the_backlog(self, only, send, api):
        """Neither where people have been told of it before, nor where they are told now."""
        standins = only("pagerduty")
        [known] = send({"service": "a", "severity": "low"})["incidents"]
        self.drain()
        [unknown] = send({"service": "b", "severity": "low"})["incidents"]
        backlog = send(*({"service": f"s-{n}", "severity": "high"} for n in range(3)))["incidents"]
        for incident_id in (known, unknown):
            move(api, incident_id, "escalate")
        standins.pagerduty.seen.clear()
        self.drain()
        order = list(dict.fromkeys(one.partition(" ")[2] for one in self.events(standins)))
        assert (set(order[:2]), set(order[2:])) == ({known, unknown}, set(backlog))

    def test_is_that_of_an_index_however_many_wait(self, only, send):
        only("pagerduty")
        send(*({"service": f"s-{n}"} for n in range(300)))
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        plan = Ticket.objects.due("pagerduty")[:8].explain()
        assert "ticket_due" in plan
        assert "sort" not in plan.lower()
        assert "temp b-tree" not in plan.lower()


@pytest.mark.django_db
class TestEveryMisbehaviour:
    """Once per platform and change, with the work done all the same or not: nothing is doubled, nothing left behind."""

    # What happens, and whether the work is done all the same.
    MISBEHAVIOURS = (
        ("status", {"code": 500}, False),
        ("status", {"code": 500}, True),
        ("status", {"code": 503, "headers": {"Retry-After": "1"}}, False),
        ("status", {"code": 429, "headers": {"Retry-After": "garbage"}}, False),
        ("hang", {}, False),
        ("lost", {"rst": True}, True),
        ("late", {"seconds": 0.8}, True),
        ("drip", {"seconds": 0.2}, True),
        ("reset", {"when": "after"}, False),
        ("reset", {"when": "mid"}, True),
        ("html", {}, False),
        ("html", {}, True),
        ("empty", {}, False),
        ("empty", {}, True),
        ("huge", {"megabytes": 8}, True),
        ("gzipbomb", {"megabytes": 30}, True),
        ("redirect", {}, False),
        ("malformed", {"what": "json"}, False),
        ("malformed", {"what": "json"}, True),
        ("malformed", {"what": "length"}, True),
        ("malformed", {"what": "head"}, True),
    )

    def settle(self, api, incident_id: str, work) -> None:
        work(later=True)
        failed = [t["id"] for t in tickets_of(api, incident_id).values() if t["state"] == "failed"]
        if failed:
            api.post("/api/v1/tickets/retry", {"ids": failed}, format="json")
            work(later=True)
        assert {t["state"] for t in tickets_of(api, incident_id).values()} == {"in sync"}

    @pytest.mark.parametrize(("kind", "options", "done"), MISBEHAVIOURS)
    def test_ends_in_one_ticket_that_is_right(self, everywhere, send, api, work, monkeypatch, kind, options, done):
        def misbehave():
            for name in PLATFORMS:
                everywhere[name].fault(kind, method="POST", work=done, **options)

        def give(seconds: float) -> None:
            for times in ("PAGING", "OTHER"):
                monkeypatch.setattr(attempts, times, attempts.Times(deadline=seconds, lease=30))

        def settle():
            if kind in ("hang", "late", "drip"):
                # Who is held up is given up soon; who is not has time, however busy the machine is.
                give(0.6)
                for name in PLATFORMS:
                    attempt_next(name)
                give(10)
            self.settle(api, incident_id, work)

        misbehave()
        [incident_id] = send()["incidents"]
        settle()
        misbehave()
        move(api, incident_id, "acknowledge")
        settle()
        misbehave()
        move(api, incident_id, "resolve")
        settle()

        assert everywhere.pagerduty.pages == everywhere.opsgenie.pages == 1
        [[alert]] = everywhere.pagerduty.alerts.values()
        [[ops]] = everywhere.opsgenie.alerts.values()
        [issue] = everywhere.jira.issues.values()
        [record] = everywhere.servicenow.records.values()
        assert (alert.state, ops.status, issue.category, record["state"]) == ("resolved", "closed", "done", "6")
        messages = len(everywhere.slack.messages)
        assert 3 <= messages <= 6
        assert messages == 3 or tickets_of(api, incident_id)["slack"]["mayBeDoubled"]


@pytest.mark.django_db
class TestAHostWithAWrongClock:
    """Leases, waits and ages go by the database's clock and a monotonic one."""

    @pytest.mark.parametrize("hours", [-48, -1, 1, 48])
    def test_neither_gives_up_nor_waits_nor_sends_twice(self, everywhere, send, api, time_machine, hours):
        [incident_id] = send()["incidents"]
        true = timezone.now()
        time_machine.move_to(true + timedelta(hours=hours))
        for name in PLATFORMS:
            assert attempt_next(name)
            assert not attempt_next(name)
        ticket = Ticket.objects.get(platform="pagerduty")
        assert abs(ticket.created_remotely_at - true) < timedelta(minutes=1)
        time_machine.move_to(true)
        assert {ticket["state"] for ticket in tickets_of(api, incident_id).values()} == {"in sync"}
        assert everywhere.pagerduty.pages == everywhere.opsgenie.pages == len(everywhere.jira.issues) == 1


@pytest.mark.django_db
class TestCredentials:
    OTHER_KEY = "another0pagerduty0routing0key032"

    def test_of_the_same_account_change_under_an_open_ticket(self, only, send, api, work):
        standins = only("jira")
        [incident_id] = send()["incidents"]
        work()
        body = {"jira": {"apiToken": "expired"}}
        assert api.patch("/api/v1/config/platforms", body, format="json").status_code == 200
        move(api, incident_id, "acknowledge")
        work()
        assert tickets_of(api, incident_id)["jira"]["state"] == "failed"
        body = {"jira": {"apiToken": standins.jira.settings()["apiToken"]}}
        assert api.patch("/api/v1/config/platforms", body, format="json").status_code == 200
        move(api, incident_id, "resolve")
        work()
        assert tickets_of(api, incident_id)["jira"]["state"] == "in sync"

    def test_of_another_account_are_for_new_tickets_only(self, only, send, api, work):
        standins = only("pagerduty")
        standins.pagerduty.keys = (*standins.pagerduty.keys[:1], self.OTHER_KEY)
        [old] = send({"service": "old"})["incidents"]
        work()
        body = {"pagerduty": {"routingKey": self.OTHER_KEY}}
        assert api.patch("/api/v1/config/platforms", body, format="json").status_code == 200
        [new] = send({"service": "new"})["incidents"]
        move(api, old, "resolve")
        work()
        alerts = {key.rpartition("-")[0]: alerts[0] for key, alerts in standins.pagerduty.alerts.items()}
        assert alerts[old].state == "resolved"
        assert (alerts[old].routing_key, alerts[new].routing_key) == standins.pagerduty.keys


@pytest.mark.django_db
class TestRecordsThatAreNoMore:
    def test_a_closed_record_is_followed_by_another_that_links_back(self, only, send, api, work):
        standins = only("servicenow")
        [incident_id] = send()["incidents"]
        work()
        move(api, incident_id, "resolve")
        work()
        [first] = standins.servicenow.records
        url = tickets_of(api, incident_id)["servicenow"]["url"]
        standins.servicenow.close(first)
        move(api, incident_id, "reopen")
        work()
        [_, second] = standins.servicenow.records.values()
        assert second["correlation_id"].endswith("-2")
        assert url in second["description"]
        ticket = Ticket.objects.get()
        assert (ticket.generation, ticket.previous_links, ticket.shown_version) == (2, [url], ticket.wanted_version)
        assert not PlatformPause.objects.filter(failures__gt=0).exists()

    def test_an_old_incident_too_gets_its_new_record(self, only, send, api, work):
        standins = only("servicenow")
        [incident_id] = send()["incidents"]
        work()
        long_ago = timezone.now() - timedelta(days=3)
        Incident.objects.update(created_at=long_ago)
        Ticket.objects.update(created_at=long_ago)
        [first] = standins.servicenow.records
        standins.servicenow.close(first)
        move(api, incident_id, "acknowledge")
        work()
        assert len(standins.servicenow.records) == 2
        assert tickets_of(api, incident_id)["servicenow"]["state"] == "in sync"

    def test_an_issue_that_is_gone_parks_until_it_is_created_anew(self, only, send, api, work):
        standins = only("jira")
        [incident_id] = send()["incidents"]
        work()
        [key] = standins.jira.issues
        url = tickets_of(api, incident_id)["jira"]["url"]
        standins.jira.issues.clear()
        move(api, incident_id, "acknowledge")
        work()
        ticket = tickets_of(api, incident_id)["jira"]
        assert ticket["state"] == "failed"
        assert key in ticket["lastError"]
        assert "create the ticket anew" in ticket["lastError"]

        lifecycle.retry_ticket(ticket["id"], actor="user:anna", anew=True)
        work()
        [issue] = standins.jira.issues.values()
        assert issue.category == "indeterminate"
        assert [label for label in issue.labels if label.startswith(incident_id)][0].endswith("-2")
        assert tickets_of(api, incident_id)["jira"]["state"] == "in sync"
        assert Ticket.objects.get().previous_links == [url]
