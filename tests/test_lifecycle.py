"""What an incident does: moves with their traces, all or nothing; constraints that hold without our code."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import Max
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from auditlog.models import Entry, Unchangeable
from config.changes import patch_platforms
from incidents import intake, lifecycle
from incidents.lifecycle import Moved, Refused
from incidents.models import Anomaly, DayCounter, DedupLock, Incident, ModelHealth, SeenEvent, Ticket, lease
from platforms.catalog import PLATFORMS
from tests.refusals import MESSAGE, refusing

pytestmark = pytest.mark.django_db

EVENT = {"service": "payment-api", "severity": "critical", "score": 4.2}


def opened(**more) -> Incident:
    [result] = intake.accept([EVENT | more], actor="key:producer")
    return Incident.objects.get(pk=result.incident_id)


def move(name: str, *incidents: Incident, actor: str = "user:anna", **more) -> list[Moved | Refused]:
    return lifecycle.move(name, [incident.pk for incident in incidents], actor=actor, **more)


def actions(incident: Incident) -> list[tuple[str, str]]:
    return [(entry.action, entry.actor) for entry in lifecycle.audit_of(incident.pk)]


def state(*incidents: Incident) -> tuple:
    """All that a move may change."""
    ids = [incident.pk for incident in incidents]
    return (
        list(Incident.objects.filter(pk__in=ids).order_by("pk").values()),
        list(Ticket.objects.filter(incident__in=ids).order_by("pk").values()),
        list(Entry.objects.order_by("pk").values()),
    )


class TestMoves:
    # open, acknowledged, escalated, resolved × the four moves: what becomes of it, or None where it is refused.
    @pytest.mark.parametrize(
        ("path", "allowed"),
        [
            ([], {"acknowledge": True, "escalate": True, "resolve": True, "reopen": False}),
            (["acknowledge"], {"acknowledge": False, "escalate": True, "resolve": True, "reopen": True}),
            (["escalate"], {"acknowledge": True, "escalate": False, "resolve": True, "reopen": True}),
            (["resolve"], {"acknowledge": None, "escalate": None, "resolve": False, "reopen": True}),
        ],
    )
    def test_each_move_is_made_or_refused_as_its_state_says(self, path, allowed):
        for name, expected in allowed.items():
            incident = opened(service=name)
            for before in path:
                move(before, incident)
            known = state(incident)
            [result] = move(name, incident, actor="user:ben")
            if expected:
                assert result.changed
                assert actions(incident)[-1] == (lifecycle.MOVES[name].past, "user:ben")
                assert Incident.objects.get(pk=incident.pk).status == lifecycle.MOVES[name].leads_to
            else:
                assert state(incident) == known
                assert isinstance(result, Moved if expected is False else Refused)

    def test_a_refusal_says_who_did_what_and_when(self):
        incident = opened()
        move("resolve", incident)
        [refused] = move("acknowledge", incident)
        at = Incident.objects.get(pk=incident.pk).resolved_at
        assert refused.message == (
            f"{incident.pk} was resolved by user:anna at {at:%Y-%m-%dT%H:%M:%SZ}. "
            "It cannot be acknowledged before it is reopened."
        )

    def test_past_times_are_kept_until_a_reopen_clears_them(self):
        incident = opened()
        move("acknowledge", incident)
        move("escalate", incident)
        move("resolve", incident)
        incident.refresh_from_db()
        assert None not in (incident.acknowledged_at, incident.escalated_at, incident.resolved_at)
        move("reopen", incident)
        incident.refresh_from_db()
        assert [incident.acknowledged_at, incident.escalated_at, incident.resolved_at] == [None] * 3
        assert [incident.acknowledged_by, incident.escalated_by, incident.resolved_by] == [""] * 3
        assert incident.reopened_at <= incident.updated_at
        assert len(actions(incident)) == 5

    def test_each_entry_tells_what_a_replay_needs(self):
        incident = opened()
        move("acknowledge", incident, note="on it", request_id="r1")
        entry = lifecycle.audit_of(incident.pk).last()
        assert entry.data == {"from": "open", "to": "acknowledged", "note": "on it", "platforms": []}
        assert (entry.request_id, entry.details) == ("r1", "Status changed from open to acknowledged")

    def test_many_ids_are_moved_each_on_its_own_in_the_order_given(self):
        first, second, third = (opened(service=name) for name in "abc")
        move("resolve", second)
        ids = [third.pk, "inc-20200101-001", second.pk, first.pk, third.pk]
        results = lifecycle.move("acknowledge", ids, actor="user:anna")
        assert [(type(r), r.incident.pk if isinstance(r, Moved) else r.id) for r in results] == [
            (Moved, third.pk),
            (Refused, "inc-20200101-001"),
            (Refused, second.pk),
            (Moved, first.pk),
        ]
        assert [r.unknown for r in results if isinstance(r, Refused)] == [True, False]

    def test_moving_many_costs_as_many_queries_as_moving_two(self):
        def cost(number: int) -> int:
            found = intake.accept([EVENT | {"service": f"{number}-{n}"} for n in range(number)], actor="x")
            with CaptureQueriesContext(connection) as captured:
                lifecycle.move("acknowledge", [result.incident_id for result in found], actor="user:anna")
            return len([query for query in captured if "config_" not in query["sql"]])  # read twice a second

        # SQLite writes 999 values in a statement, so many audit entries are several.
        assert cost(2) == cost(100 if connection.vendor == "sqlite" else 1000)

    @pytest.mark.parametrize("table", ["auditlog_entry", "incidents_ticket"])
    @pytest.mark.parametrize("name", ["acknowledge", "escalate", "resolve"])
    def test_a_move_that_leaves_no_trace_is_not_made(self, connect, name, table):
        connect("pagerduty")
        incidents = [opened(service=service) for service in "ab"]
        known = state(*incidents)
        with refusing(table, "UPDATE" if table == "incidents_ticket" else "INSERT"):
            with pytest.raises(DatabaseError, match=MESSAGE):
                move(name, *incidents)
        assert state(*incidents) == known
        assert all(result.changed for result in move(name, *incidents))


class TestUpdatedAt:
    def test_it_never_goes_back_even_where_a_clock_does(self):
        incident = opened()
        ahead = timezone.now() + timedelta(hours=1)
        Incident.objects.filter(pk=incident.pk).update(updated_at=ahead)
        move("acknowledge", incident)
        opened()
        move("resolve", incident)
        opened(timestamp=(timezone.now() + timedelta(seconds=5)).isoformat())
        incident.refresh_from_db()
        assert (incident.status, incident.anomaly_count) == ("open", 3)
        assert incident.updated_at == ahead

    def test_it_is_what_the_move_returned(self):
        incident = opened()
        [moved] = move("acknowledge", incident)
        incident.refresh_from_db()
        assert incident.updated_at == moved.incident.updated_at >= moved.incident.acknowledged_at


class TestEscalation:
    def test_goes_to_the_enabled_platforms_that_page_people(self, connect):
        connect("pagerduty", "opsgenie", "slack")
        incident = opened(severity="low")
        assert Ticket.objects.get().platform == "slack"
        [moved] = move("escalate", incident)
        assert moved.incident.escalated_to == ["pagerduty", "opsgenie"]
        assert Incident.objects.get().platforms == ["slack", "pagerduty", "opsgenie"]
        assert sorted(Ticket.objects.values_list("platform", "wanted_version")) == [
            ("opsgenie", 1),
            ("pagerduty", 1),
            ("slack", 2),
        ]

    def test_raises_the_ticket_that_is_there_and_makes_no_second(self, connect):
        connect("pagerduty")
        incident = opened()
        move("escalate", incident)
        assert list(Ticket.objects.values_list("platform", "wanted_version")) == [("pagerduty", 2)]

    def test_goes_to_those_routed_for_critical_where_nobody_is_paged(self, connect):
        connect("slack", "jira", "servicenow")
        incident = opened(severity="medium")
        [moved] = move("escalate", incident)
        assert moved.incident.escalated_to == ["slack", "jira"]
        assert sorted(Ticket.objects.values_list("platform", flat=True)) == ["jira", "slack"]

    def test_with_nobody_to_tell_it_says_so(self):
        incident = opened()
        [moved] = move("escalate", incident)
        assert (moved.incident.status, moved.incident.escalated_to) == ("escalated", [])
        assert lifecycle.audit_of(incident.pk).last().details.endswith("nobody was told")

    def test_a_disabled_platform_is_not_escalated_to(self, connect):
        connect("pagerduty", "opsgenie")
        patch_platforms({"opsgenie": {"enabled": False}}, actor="system")
        [moved] = move("escalate", opened())
        assert moved.incident.escalated_to == ["pagerduty"]


class TestTickets:
    def test_each_move_wants_more_of_each_ticket_at_once(self, connect):
        connect("pagerduty", "slack")
        incident = opened()
        parked = Ticket.objects.filter(platform="slack")
        parked.update(due_at=None, parked_at=timezone.now(), attempts=9)
        for name in ("acknowledge", "resolve", "reopen"):
            move(name, incident)
        assert set(Ticket.objects.values_list("wanted_version", "parked_at", "attempts")) == {(4, None, 0)}
        assert Ticket.objects.filter(due_at__isnull=False).count() == 2

    def test_a_retry_makes_it_due_and_is_audited(self, connect):
        connect("slack")
        opened()
        Ticket.objects.update(shown_version=1, due_at=None, parked_at=timezone.now(), attempts=7)
        ticket = lifecycle.retry_ticket(Ticket.objects.get().pk, actor="user:anna", request_id="r1")
        assert (ticket.wanted_version, ticket.parked_at, ticket.attempts) == (2, None, 0)
        assert ticket.due_at is not None
        entry = Entry.objects.about(f"ticket:{ticket.incident_id}:slack").get()
        assert (entry.action, entry.actor, entry.request_id) == ("sent again", "user:anna", "r1")

    def test_a_retry_of_one_that_is_behind_wants_no_more_than_before(self, connect):
        connect("slack")
        opened()
        assert lifecycle.retry_ticket(Ticket.objects.get().pk, actor="user:anna").wanted_version == 1

    def test_creating_anew_forgets_the_old_record_and_silences_who_is_at_it(self, connect):
        connect("jira")
        opened()
        Ticket.objects.update(
            remote_id="OPS-1", remote_url="https://j/OPS-1", shown={"status": "open"}, shown_version=1, claim=3
        )
        ticket = lifecycle.retry_ticket(Ticket.objects.get().pk, actor="user:anna", anew=True)
        assert (ticket.generation, ticket.remote_id, ticket.shown, ticket.claim) == (2, "", {}, 4)
        assert ticket.previous_links == ["https://j/OPS-1"]
        assert ticket.key.endswith("-2")

    def test_an_unknown_ticket_is_none(self):
        assert lifecycle.retry_ticket(1, actor="user:anna") is None

    def test_a_retry_that_leaves_no_trace_is_not_made(self, connect):
        connect("slack")
        incident = opened()
        known = state(incident)
        with refusing("auditlog_entry"), pytest.raises(DatabaseError, match=MESSAGE):
            lifecycle.retry_ticket(Ticket.objects.get().pk, actor="user:anna", anew=True)
        assert state(incident) == known


class TestRootCause:
    @pytest.fixture
    def asked(self, connect, monkeypatch) -> Incident:
        """An incident whose tickets were just made, and whose cause a worker is asking for under claim 1."""
        monkeypatch.setattr(lifecycle, "WAIT_FOR_CAUSE_SECONDS", 600)
        connect("pagerduty", "slack", "llm")
        health = {"provider": "openai", "model": "m", "available": True, "checked_at": timezone.now()}
        changed_at = lifecycle.current().llm.changed_at
        ModelHealth.objects.create(**health, settings_at=changed_at)
        incident = opened()
        Incident.objects.update(model_claim=1, model_lease_until=lease(30))
        return incident

    def waiting(self) -> set[str]:
        return set(Ticket.objects.filter(due_at__gt=lease(0)).values_list("platform", flat=True))

    def test_only_those_whom_nobody_waits_at_wait_for_it(self, asked):
        assert self.waiting() == {"slack"}

    def test_nobody_waits_for_a_model_that_is_not_well(self, connect):
        connect("slack", "llm")
        opened()
        assert self.waiting() == set()

    def test_the_answer_replaces_the_rules_and_the_tickets_want_it(self, asked):
        assert lifecycle.cause_arrived(asked.pk, 1, text="The pool is full.", model="gpt", seconds=2.1)
        incident = Incident.objects.get()
        assert (incident.root_cause, incident.fallback, incident.cause_model) == ("The pool is full.", False, "gpt")
        assert incident.cause_seconds == 2.1
        assert incident.cause_at > asked.cause_at
        assert (incident.model_due_at, incident.model_lease_until) == (None, None)
        assert self.waiting() == set()
        assert set(Ticket.objects.values_list("wanted_version", flat=True)) == {2}
        assert (incident.severity, incident.status) == ("critical", "open")

    def test_a_failure_leaves_the_rules_answer_and_nobody_waiting(self, asked):
        assert lifecycle.cause_failed(asked.pk, 1, error="over budget", again_in=60)
        incident = Incident.objects.get()
        assert (incident.root_cause, incident.fallback, incident.cause_error) == (asked.root_cause, True, "over budget")
        assert incident.model_due_at is not None
        assert incident.model_lease_until is None
        assert self.waiting() == set()
        assert set(Ticket.objects.values_list("wanted_version", flat=True)) == {1}

    def test_a_final_failure_is_not_asked_again(self, asked):
        lifecycle.cause_failed(asked.pk, 1, error="no", again_in=None)
        assert Incident.objects.get().model_due_at is None

    @pytest.mark.parametrize("claim", [0, 2])
    def test_who_does_not_hold_the_claim_has_no_say(self, asked, claim):
        known = state(asked)
        assert not lifecycle.cause_arrived(asked.pk, claim, text="x", model="m", seconds=2.1)
        assert not lifecycle.cause_failed(asked.pk, claim, error="x", again_in=None)
        assert state(asked) == known

    def test_an_answer_counts_once(self, asked):
        assert lifecycle.cause_arrived(asked.pk, 1, text="first", model="m", seconds=2.1)
        assert not lifecycle.cause_arrived(asked.pk, 1, text="second", model="m", seconds=2.1)
        assert Incident.objects.get().root_cause == "first"

    def test_an_answer_without_its_tickets_is_not_kept(self, asked):
        known = state(asked)
        with refusing("incidents_ticket", "UPDATE"), pytest.raises(DatabaseError, match=MESSAGE):
            lifecycle.cause_arrived(asked.pk, 1, text="x", model="m", seconds=2.1)
        assert state(asked) == known


class TestConstraints:
    """They hold for whoever writes past our code."""

    def refused(self, sql: str, *values: object) -> None:
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(sql, values)

    @pytest.mark.parametrize(
        "change",
        [
            "severity = 'dire'",
            "status = 'closed'",
            "anomaly_score = -1",
            "anomaly_count = 0",
            "last_anomaly_at = '2001-01-01 00:00:00'",
        ],
    )
    def test_of_an_incident(self, change):
        opened()
        self.refused(f"UPDATE incidents_incident SET {change}")
        self.refused("UPDATE incidents_incident SET anomaly_score = %s", float("inf"))

    @pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite stores NaN as NULL, which is refused too")
    def test_of_numbers_that_are_none(self):
        opened()
        self.refused("UPDATE incidents_incident SET anomaly_score = 'NaN'")
        self.refused("UPDATE incidents_anomaly SET score = 'NaN'")

    def test_of_an_anomaly(self):
        opened()
        self.refused("UPDATE incidents_anomaly SET score = -1")
        self.refused("UPDATE incidents_anomaly SET score = %s", float("inf"))

    def test_of_a_ticket(self, connect):
        connect("slack", "jira")
        opened()
        self.refused("UPDATE incidents_ticket SET platform = 'jira'")
        self.refused("UPDATE incidents_ticket SET shown_version = wanted_version + 1")

    def test_of_keys(self):
        opened(eventId="e1")
        now = timezone.now()
        self.refused("INSERT INTO incidents_seenevent (event_id, seen_at) VALUES ('e1', %s)", now.isoformat())
        self.refused(
            "INSERT INTO incidents_deduplock (service, severity) VALUES (%s, %s)", EVENT["service"], EVENT["severity"]
        )
        self.refused("INSERT INTO incidents_daycounter (day, last) VALUES (%s, 1)", str(DayCounter.objects.get().day))
        assert (SeenEvent.objects.count(), DedupLock.objects.count()) == (1, 1)

    def test_an_incident_of_the_same_id_is_refused(self):
        incident = opened()
        DayCounter.objects.update(last=0)
        with pytest.raises(IntegrityError), transaction.atomic():
            opened(service="other")
        assert Incident.objects.get() == incident
        assert Anomaly.objects.count() == 1

    def test_audit_entries_are_neither_changed_nor_deleted(self):
        opened()
        entry = Entry.objects.get()
        for attempt in (entry.save, entry.delete, Entry.objects.all().delete, lambda: Entry.objects.update(actor="x")):
            with pytest.raises(Unchangeable):
                attempt()


def test_every_platform_is_known_to_the_tickets():
    assert max(map(len, PLATFORMS)) <= Ticket._meta.get_field("platform").max_length


def test_opening_many_incidents_gives_each_its_token_and_number():
    results = intake.accept([EVENT | {"service": f"s{n}"} for n in range(50)], actor="x")
    assert len({result.incident_id for result in results}) == 50
    assert Incident.objects.values("token").distinct().count() == 50
    assert Incident.objects.aggregate(last=Max("number"))["last"] == DayCounter.objects.get().last == 50


def test_a_note_is_cut_and_kept():
    incident = opened()
    move("acknowledge", incident, note="x" * 3000)
    assert len(lifecycle.audit_of(incident.pk).last().data["note"]) == lifecycle.LONGEST_NOTE


def test_times_of_an_event_are_kept_to_the_microsecond():
    incident = opened(timestamp="2026-03-04T05:06:07.000001Z")
    assert incident.first_anomaly_at == datetime(2026, 3, 4, 5, 6, 7, 1, UTC)
