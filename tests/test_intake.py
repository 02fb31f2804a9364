"""Which incident an anomaly belongs to: rule by rule through the API, then random streams against an oracle."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from auditlog.models import Entry
from config.changes import patch_anomaly
from incidents import intake, lifecycle, turns
from incidents.models import LARGEST_FLOAT, Anomaly, DayCounter, Incident, SeenEvent, Ticket
from tests.oracle import KINDS, Fault, Oracle, Sent
from tests.refusals import MESSAGE, refusing

pytestmark = pytest.mark.django_db

MICROSECOND = timedelta(microseconds=1)
WINDOW = timedelta(minutes=15)  # the default
NOW = datetime.now(UTC)


def at(moment: datetime) -> str:
    return moment.isoformat()


def outcome(reply: dict) -> str:
    [result] = reply["results"]
    return result["outcome"]


def only() -> Incident:
    return Incident.objects.get()


@pytest.fixture
def resolved(send) -> Incident:
    """An incident that was resolved just now, after one anomaly ten minutes ago."""
    [incident_id] = send({"timestamp": at(datetime.now(UTC) - timedelta(minutes=10))})["incidents"]
    lifecycle.move("resolve", [incident_id], actor="user:anna")
    return Incident.objects.get(pk=incident_id)


class TestRules:
    def test_an_anomaly_opens_an_incident_with_what_it_tells(self, send):
        told = {"title": "Down", "traceId": "t1", "environment": "prod"}
        reply = send({"timestamp": "2026-01-02T03:04:05.678901Z"} | told)
        assert {name: reply[name] for name in ("received", "created", "incidents")} == {
            "received": 1,
            "created": 1,
            "incidents": [only().pk],
        }
        incident = only()
        assert (incident.title, incident.trace_id, incident.environment) == ("Down", "t1", "prod")
        assert incident.first_anomaly_at == incident.last_anomaly_at == datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
        assert incident.affected_services == ["payment-api"]
        assert incident.root_cause
        assert incident.fallback

    def test_ids_count_up_within_the_utc_day_past_999(self, send):
        first = only_id(send())
        assert first == f"inc-{only().created_at:%Y%m%d}-001"
        DayCounter.objects.update(last=999)
        assert only_id(send({"service": "other"})) == first.removesuffix("001") + "1000"

    @pytest.mark.parametrize("away", [WINDOW, -WINDOW])
    def test_both_ends_of_the_window_are_part_of_it(self, send, away):
        send({"timestamp": at(NOW - timedelta(hours=1))})
        assert outcome(send({"timestamp": at(NOW - timedelta(hours=1) + away)})) == "deduplicated"

    @pytest.mark.parametrize("away", [WINDOW + MICROSECOND, -WINDOW - MICROSECOND])
    def test_a_microsecond_outside_the_window_is_a_new_incident(self, send, away):
        send({"timestamp": at(NOW - timedelta(hours=1))})
        assert outcome(send({"timestamp": at(NOW - timedelta(hours=1) + away)})) == "created"

    def test_the_window_slides_with_the_anomalies(self, send):
        for minutes in (60, 50, 40, 30, 70):
            send({"timestamp": at(NOW - timedelta(minutes=minutes))})
        incident = only()
        assert incident.anomaly_count == 5
        assert incident.last_anomaly_at - incident.first_anomaly_at == timedelta(minutes=40)

    def test_another_severity_or_service_is_another_fault(self, send):
        send({}, {"severity": "high"}, {"service": "Payment-API"}, {"service": " payment-api "})
        assert sorted(Incident.objects.values_list("service", "severity", "anomaly_count")) == [
            ("Payment-API", "critical", 1),
            ("payment-api", "critical", 2),
            ("payment-api", "high", 1),
        ]

    def test_a_join_counts_and_keeps_the_highest_score_and_all_services(self, send):
        send({"affectedServices": ["a", "b"]}, {"score": 9, "affectedServices": ["c", "a"]}, {"score": 5})
        incident = only()
        assert (incident.anomaly_count, incident.anomaly_score) == (3, 9)
        assert incident.affected_services == ["a", "b", "c"]

    def test_a_join_leaves_platforms_tickets_and_audit_alone(self, send, everywhere):
        send()
        before = list(Ticket.objects.order_by("pk").values())
        send({}, {})
        assert list(Ticket.objects.order_by("pk").values()) == before
        assert Entry.objects.about(only().subject).count() == 1

    def test_below_the_minimum_score_nothing_opens_or_joins_but_the_event_is_kept(self, send):
        reply = send({"score": 0.85}, {"score": 0.8499, "eventId": "e1"})
        assert [result["outcome"] for result in reply["results"]] == ["created", "belowThreshold"]
        assert reply["incidents"] == [only().pk]
        assert only().anomaly_count == 1
        kept = Anomaly.objects.get(event_id="e1")
        assert (kept.incident, kept.score, kept.payload) == (None, 0.8499, None)
        assert outcome(send({"score": 0.8499, "eventId": "e1"})) == "redelivered"

    def test_an_event_later_than_the_resolution_reopens(self, send, resolved):
        assert outcome(send({"timestamp": at(resolved.resolved_at + MICROSECOND)})) == "reopened"
        incident = only()
        assert (incident.status, incident.resolved_at, incident.resolved_by) == ("open", None, "")
        entries = Entry.objects.about(incident.subject)
        assert [entry.action for entry in entries] == ["created", "resolved", "reopened"]
        assert list(entries)[-1].data == {"from": "resolved", "to": "open", "platforms": []}

    def test_an_event_no_later_than_the_resolution_is_counted_only(self, send, resolved):
        assert outcome(send({"timestamp": at(resolved.resolved_at)})) == "deduplicated"
        incident = only()
        assert (incident.status, incident.anomaly_count) == ("resolved", 2)
        assert incident.resolved_at == resolved.resolved_at

    def test_one_batch_reopens_once(self, send, resolved):
        later = at(resolved.resolved_at + timedelta(seconds=1))
        reply = send({"timestamp": later}, {"timestamp": later})
        assert [result["outcome"] for result in reply["results"]] == ["reopened", "deduplicated"]
        assert only().anomaly_count == 3

    def test_an_unresolved_incident_is_preferred_to_a_newer_resolved_one(self, send):
        base = NOW - timedelta(hours=2)
        [burning] = send({"timestamp": at(base)})["incidents"]
        [newer] = send({"timestamp": at(base + 2 * WINDOW)})["incidents"]
        lifecycle.move("resolve", [newer], actor="user:anna")
        assert send({"timestamp": at(base + WINDOW)})["incidents"] == [burning]

    def test_of_several_unresolved_ones_the_newest_is_joined(self, send):
        base = NOW - timedelta(hours=2)
        send({"timestamp": at(base + 2 * WINDOW)})
        [newest] = send({"timestamp": at(base)})["incidents"]
        assert send({"timestamp": at(base + WINDOW)})["incidents"] == [newest]

    def test_the_same_event_twice_has_no_effect(self, send):
        for _ in range(2):
            reply = send({"eventId": "e1"}, {"eventId": "e2"}, {"eventId": "e1"})
        assert [result["outcome"] for result in reply["results"]] == ["redelivered"] * 3
        assert {result["incidentId"] for result in reply["results"]} == {only().pk}
        assert only().anomaly_count == Anomaly.objects.count() == SeenEvent.objects.count() == 2

    def test_an_idempotency_key_makes_a_request_repeatable(self, send):
        key = {"Idempotency-Key": "k1"}
        assert send({}, {}, **key)["deduplicated"] == 1
        assert send({}, {}, **key)["redelivered"] == 2
        assert only().anomaly_count == 2

    def test_a_bad_item_costs_its_neighbours_nothing(self, send):
        reply = send({"score": "high"}, {}, {"service": ""})
        assert [result["outcome"] for result in reply["results"]] == ["rejected", "created", "rejected"]
        assert [error["index"] for error in reply["errors"]] == [0, 2]

    def test_a_dry_run_tells_and_changes_nothing(self, api, send):
        send({"eventId": "e1"})
        items = [
            {"service": name, "severity": "critical", "score": 1, "eventId": event_id}
            for name, event_id in (("payment-api", "e1"), ("payment-api", "e2"), ("new", "e3"), ("new", "e4"))
        ]
        for _ in range(2):
            reply = api.post("/api/v1/anomalies?dryRun=true", items, format="json").json()
            told = [(result["outcome"], result["incidentId"]) for result in reply["results"]]
            known = only().pk
            assert told == [("redelivered", known), ("deduplicated", known), ("created", None), ("deduplicated", None)]
        assert only().anomaly_count == Anomaly.objects.count() == SeenEvent.objects.count() == 1

    def test_tickets_go_to_the_platforms_that_are_routed_and_enabled(self, send, connect):
        connect("slack", "opsgenie")
        send()
        assert only().platforms == ["slack"]
        assert list(Ticket.objects.values_list("platform", flat=True)) == ["slack"]

    def test_an_incident_lists_at_most_200_services(self, send):
        send(*({"affectedServices": [f"s{n}-{i}" for i in range(150)]} for n in range(3)))
        assert len(only().affected_services) == 200


def test_what_was_sent_is_stored_to_the_last_bit_whatever_it_holds():
    patch_anomaly({"minimumScore": 0}, actor="system")
    chance = random.Random(5)
    scores = [0.1 + 0.2, 1e-300, LARGEST_FLOAT, 1 / 3, *(chance.lognormvariate(0, 20) for _ in range(200))]
    strange = '\'; DROP TABLE x; -- \\ "%s" {} \u2028 \u00e9\U0001f525\n'
    base = {"severity": "low", "title": strange, "n": 2**63 - 1, strange: [strange, None, 1e22]}
    alone = [base | {"service": f"s{n}", "score": score} for n, score in enumerate(scores)]
    joined = [base | {"service": "s", "score": score} for score in scores]
    intake.accept([*alone, joined[0]], actor="local")
    intake.accept(joined[1:], actor="local")
    stored = list(Anomaly.objects.order_by("id").values_list("score", "title", "payload"))
    for (score, title, payload), item in zip(stored, alone, strict=False):
        # PostgreSQL writes the payload's numbers out: 1e22 comes back as an integer.
        assert (score, title, payload | {"score": float(payload["score"])}) == (item["score"], strange, item)
    assert [score for score, *_ in stored[len(alone) :]] == scores
    assert Incident.objects.get(service="s").anomaly_score == LARGEST_FLOAT


def only_id(reply: dict) -> str:
    [incident_id] = reply["incidents"]
    return incident_id


class TestCost:
    def queries(self, items: list[dict]) -> int:
        intake.accept([{"service": "warm", "severity": "low", "score": 1}], actor="local")
        with CaptureQueriesContext(connection) as captured:
            intake.accept(items, actor="local")
        # The configuration is read twice a second, whatever is asked.
        return len([q for q in captured if "SAVEPOINT" not in q["sql"] and "config_" not in q["sql"]])

    def items(self, number: int, services: int) -> list[dict]:
        return [
            {"service": f"{services}-{n % services}", "severity": "high", "score": 1, "eventId": f"{number}-{n}"}
            for n in range(number)
        ]

    @pytest.mark.skipif(connection.vendor == "sqlite", reason="its statements take fewer parameters")
    def test_a_batch_costs_as_many_queries_whatever_its_size(self):
        assert self.queries(self.items(40, 20)) == self.queries(self.items(4000, 2001))
        assert self.queries(self.items(80, 20)) == self.queries(self.items(4500, 20)) <= 7

    def test_a_join_costs_few_queries(self):
        self.queries(self.items(2, 1))
        assert self.queries([{"service": "1-0", "severity": "high", "score": 1, "eventId": "e"}]) <= 5

    def test_ten_thousand_faults_of_one_service_in_one_batch_are_told_apart(self):
        patch_anomaly({"lookbackWindow": "1s"}, actor="system")
        start = NOW - timedelta(days=1)
        items = [
            {"service": "s", "severity": "low", "score": 1, "timestamp": at(start + timedelta(seconds=8 * n))}
            for n in range(10_000)
        ]
        random.Random(1).shuffle(items)
        results = intake.accept(items, actor="local")
        assert {result.outcome for result in results} == {"created"}
        assert len({result.incident_id for result in results}) == 10_000


# --- Against the oracle -----------------------------------------------------------------------------------------------

_worlds = count()


class World:
    """Services of its own, so that many worlds share a database, and the oracle of what happens there."""

    def __init__(self, minimum_score: float = 0.5, minutes: int = 10) -> None:
        self.name = f"w{next(_worlds)}"
        self.oracle = Oracle(0, timedelta())
        self.faults: dict[str, Fault] = {}
        self.configure(minimum_score, minutes)

    def configure(self, minimum_score: float, minutes: int) -> None:
        patch_anomaly({"minimumScore": minimum_score, "lookbackWindow": f"{minutes}m"}, actor="system")
        self.oracle.minimum_score, self.oracle.window = minimum_score, timedelta(minutes=minutes)

    def item(self, sent: Sent) -> dict:
        item = sent.as_item()
        item["service"] = f"{self.name}-{sent.service}"
        if sent.event_id:
            item["eventId"] = f"{self.name}-{sent.event_id}"
        return item

    def send(self, events: list[Sent]) -> None:
        """Sends them as one batch, and compares what became of each."""
        results = intake.accept([self.item(sent) for sent in events], actor="key:producer")
        for result, (expected, fault) in zip(results, self.oracle.take_all(events), strict=True):
            assert result.outcome == expected
            assert (result.incident_id is None) == (fault is None)
            if fault is not None:
                assert self.faults.setdefault(result.incident_id, fault) is fault

    def move(self, incident_id: str, name: str) -> None:
        fault = self.faults[incident_id]
        [moved] = lifecycle.move(name, [incident_id], actor="user:anna")
        if name == "resolve" and fault.resolved_at is None:
            fault.resolved_at = moved.incident.resolved_at
            fault.history.append("resolved")
        elif name == "reopen" and fault.resolved_at is not None:
            fault.reopened()

    def compare(self) -> None:
        mine = {i.pk: i for i in Incident.objects.filter(service__startswith=f"{self.name}-")}
        assert mine.keys() == self.faults.keys()
        assert len(self.faults) == len(self.oracle.faults)
        for incident_id, fault in self.faults.items():
            assert _stored(mine[incident_id]) == _expected(fault, self.name)

    def causes(self) -> list[str]:
        told = Incident.objects.filter(service__startswith=f"{self.name}-").order_by("created_at", "number")
        return [cause.replace(self.name, "w") for cause in told.values_list("root_cause", flat=True)]

    def compare_all(self) -> None:
        self.compare()
        anomalies = Anomaly.objects.filter(service__startswith=f"{self.name}-")
        assert anomalies.count() == self.oracle.below + sum(fault.count for fault in self.oracle.faults)
        assert SeenEvent.objects.filter(event_id__startswith=f"{self.name}-").count() == len(self.oracle.seen)
        for incident_id, fault in self.faults.items():
            entries = Entry.objects.about(f"incident:{incident_id}")
            assert [entry.action for entry in entries] == fault.history


def _stored(incident: Incident) -> tuple:
    return (
        *(incident.service, incident.severity, incident.anomaly_count, incident.anomaly_score),
        *(incident.first_anomaly_at, incident.last_anomaly_at, incident.affected_services),
        *(incident.status, incident.resolved_at),
        *(incident.cause_category, incident.evidence.get("message", ""), incident.trace_id),
    )


def _expected(fault: Fault, world: str) -> tuple:
    affected = [f"{world}-{name}" if name == fault.service else name for name in fault.affected]
    return (
        *(f"{world}-{fault.service}", fault.severity, fault.count, fault.score),
        *(fault.first, fault.last, affected),
        *("resolved" if fault.resolved_at else "open", fault.resolved_at),
        *(KINDS[fault.says], fault.says, fault.trace),
    )


def moments() -> st.SearchStrategy[datetime]:
    """Times that meet the edges of windows of 5 and 10 minutes, before and after now, or miss them by a microsecond."""
    return st.builds(
        lambda steps, off: NOW + timedelta(minutes=5) * steps + off * MICROSECOND,
        st.integers(-8, 5),
        st.integers(-1, 1),
    )


def events() -> st.SearchStrategy[Sent]:
    return st.builds(
        Sent,
        service=st.sampled_from("ab"),
        severity=st.sampled_from(["critical", "low"]),
        score=st.sampled_from([0.4, 0.5, 0.9, 4.2]),
        at=moments(),
        event_id=st.none() | st.integers(0, 30).map("e{}".format),
        affected=st.lists(st.sampled_from(["x", "y", "z"]), max_size=3).map(tuple),
        says=st.sampled_from(["", "", "", *KINDS]),
        trace=st.sampled_from(["", "t1", "t2"]),
    )


class Streams(RuleBasedStateMachine):
    """Batches, redeliveries, moves and changes of the settings in any order."""

    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule(batch=st.lists(events(), min_size=1, max_size=12))
    def send(self, batch: list[Sent]) -> None:
        self.world.send(batch)

    @precondition(lambda self: self.world.faults)
    @rule(data=st.data(), name=st.sampled_from(["resolve", "resolve", "reopen"]))
    def move(self, data: st.DataObject, name: str) -> None:
        self.world.move(data.draw(st.sampled_from(sorted(self.world.faults))), name)

    @precondition(lambda self: any(fault.resolved_at for fault in self.world.oracle.faults))
    @rule(data=st.data(), off=st.integers(-1, 1))
    def send_around_a_resolution(self, data: st.DataObject, off: int) -> None:
        fault = data.draw(st.sampled_from([fault for fault in self.world.oracle.faults if fault.resolved_at]))
        self.world.send([Sent(fault.service, fault.severity, 1.0, fault.resolved_at + off * MICROSECOND)])

    @rule(minimum_score=st.sampled_from([0.4, 0.5, 0.9]), minutes=st.sampled_from([5, 10]))
    def configure(self, minimum_score: float, minutes: int) -> None:
        self.world.configure(minimum_score, minutes)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "world"):
            self.world.compare()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.compare_all()


# The same examples in every run; no shrinking, which takes minutes with a database behind it.
STEADY = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_database_and_oracle_agree_whatever_happens():
    run_state_machine_as_test(Streams, settings=settings(STEADY, max_examples=60, stateful_step_count=15))


@settings(STEADY, max_examples=40)
@given(stream=st.lists(events(), min_size=2, max_size=40), data=st.data())
def test_a_stream_ends_the_same_however_it_is_cut_into_batches(stream, data):
    cuts = data.draw(st.sets(st.integers(1, len(stream) - 1)))
    whole, parts, single = World(), World(), World()
    whole.send(stream)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        parts.send(stream[start:end])
    for sent in stream:
        single.send([sent])
    for world in (whole, parts, single):
        world.compare_all()
    assert whole.oracle.faults == parts.oracle.faults == single.oracle.faults
    assert whole.causes() == parts.causes() == single.causes()


@pytest.mark.parametrize("seed", range(3))
def test_a_long_shuffled_stream_with_redeliveries_agrees(seed):
    chance = random.Random(seed)
    stream = [
        Sent(
            service=chance.choice("abc"),
            severity=chance.choice(["critical", "high"]),
            score=round(chance.random(), 2),
            at=NOW + chance.uniform(-300, 300) * timedelta(minutes=1),
            event_id=f"e{n}",
        )
        for n in range(1500)
    ]
    stream += chance.sample(stream, 150)
    chance.shuffle(stream)
    world = World()
    while stream:
        size = chance.choice([1, 3, 40, 400])
        world.send(stream[:size])
        del stream[:size]
        if world.faults and chance.random() < 0.7:
            world.move(chance.choice(sorted(world.faults)), chance.choice(["resolve", "reopen"]))
    world.compare_all()


# --- When it cannot be done -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["auditlog_entry", "incidents_ticket", "incidents_anomaly", "incidents_daycounter"])
def test_nothing_is_kept_of_an_intake_that_cannot_be_finished(connect, table):
    connect("pagerduty")
    items = [{"service": "s", "severity": "critical", "score": 1, "eventId": f"e{n}"} for n in range(3)]
    known = Entry.objects.count()
    with refusing(table), pytest.raises(DatabaseError, match=MESSAGE):
        intake.accept(items, actor="local")
    for model in (SeenEvent, Incident, Anomaly, Ticket, DayCounter):
        assert not model.objects.exists(), model
    assert Entry.objects.count() == known
    assert [result.outcome for result in intake.accept(items, actor="local")] == ["created", *["deduplicated"] * 2]


# --- Together ---------------------------------------------------------------------------------------------------------


def together(requests: dict[str, list[dict]]) -> dict[str, list[str] | Exception]:
    """Lets these requests, by their ids, all wait for one turn. Returns the outcomes of each, or what it raised."""

    def run(request_id: str) -> list[str] | Exception:
        try:
            results = intake.accept(requests[request_id], actor=f"key:{request_id}", request_id=request_id)
            return [result.outcome for result in results]
        except DatabaseError as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(len(requests)) as pool:
        shared = intake._turns
        shared._busy = True  # as while another's transaction is under way
        done = {}
        for number, request_id in enumerate(requests, 1):
            done[request_id] = pool.submit(run, request_id)
            while len(shared._waiting) < number:
                assert not done[request_id].done()
                time.sleep(0.001)
        shared._pass_on()
        return {request_id: future.result(120) for request_id, future in done.items()}


@pytest.mark.django_db(transaction=True)
class TestTogether:
    def item(self, service: str, **more: object) -> dict:
        return {"service": service, "severity": "low", "score": 1.0} | more

    def test_requests_that_wait_share_a_transaction_and_each_keeps_its_author(self):
        requests = {f"r{n}": [self.item(f"s{n}"), self.item("all", eventId=f"e{n % 2}")] for n in range(4)}
        assert together(requests) == {
            "r0": ["created", "created"],
            "r1": ["created", "deduplicated"],
            "r2": ["created", "redelivered"],
            "r3": ["created", "redelivered"],
        }
        assert Incident.objects.values("created_at").distinct().count() == 1
        entries = Entry.objects.filter(subject__startswith="incident:").order_by("id")
        assert [(e.actor, e.request_id) for e in entries] == [(f"key:{r}", r) for r in ("r0", "r0", "r1", "r2", "r3")]

    def test_a_reopening_is_told_of_the_request_that_brought_it(self):
        [first] = intake.accept([self.item("s")], actor="local")
        lifecycle.move("resolve", [first.incident_id], actor="user:anna")
        later = at(datetime.now(UTC) + timedelta(minutes=1))
        assert together({"a": [self.item("other")], "b": [self.item("s", timestamp=later)]})["b"] == ["reopened"]
        entry = lifecycle.audit_of(first.incident_id).last()
        assert (entry.action, entry.actor, entry.request_id) == ("reopened", "key:b", "b")

    def test_one_that_cannot_be_taken_fails_alone(self):
        requests = {name: [self.item(name, eventId=name), self.item("all")] for name in ("a", "poison", "b")}
        with refusing("incidents_anomaly", when="NEW.service = 'poison'"):
            ended = together(requests)
        assert MESSAGE in str(ended.pop("poison"))
        assert ended == {"a": ["created", "created"], "b": ["created", "deduplicated"]}
        assert set(SeenEvent.objects.values_list("event_id", flat=True)) == {"a", "b"}
        assert not Incident.objects.filter(service="poison").exists()
        assert not intake._turns._waiting

    def test_more_than_fits_is_taken_in_several_turns(self, monkeypatch):
        monkeypatch.setattr(turns, "MOST_TOGETHER", 5)
        ended = together({f"r{n}": [self.item(f"s{n}") for _ in range(3 if n else 7)] for n in range(5)})
        assert [outcomes[0] for outcomes in ended.values()] == ["created"] * 5
        assert Incident.objects.count() == 5
        assert Anomaly.objects.count() == 19
