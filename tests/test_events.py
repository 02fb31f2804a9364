"""What producers send becomes one typed event, or a reason that its author understands."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from incidents.events import MAX_PAYLOAD, Rejected, read
from incidents.evidence import Evidence
from tests.waiting import cpu_seconds

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
LEAST = {"service": "payment-api", "severity": "critical", "score": 4.2}

BRIDGE = {
    "event_id": "1f0a52a4-5f3c-4a43-8a3e-2a1d3d0f7c11",
    "@timestamp": "2026-11-24T09:15:08.632480+00:00",
    "detected_at": "2026-11-24T09:15:08.632480+00:00",
    "tenant_id": "shop",
    "anomaly_type": "error_rate_spike",
    "severity": "high",
    "service": "cart",
    "message": "Error rate spike: z=3.10 rate=0.400 for cart",
    "description": "Error rate spike detected for service 'cart'",
    "anomaly_score": 0.65,
    "affected_endpoint": "/cart/items",
    "affected_services": ["cart"],
    "evidence_logs": [],
    "status": "open",
    "environment": "shop-prod",
    "z_score": 3.1,
    "error_rate": 0.4,
    "detection_mode": "windowed",
    "signal_weights": {"severity": 1.0, "pattern:timeout": 0.7},
    "error_template": "read timed out after <n> ms",
    "error_category": "timeout",
    "window_buckets": 3,
}
REQUEST_FAILURE = {
    "event_id": "8c2f",
    "timestamp": "2026-11-24T09:15:08.663611+00:00",
    "anomaly_type": "request_failure",
    "severity": "high",
    "service": "Warehouse",
    "description": "Request failure in Warehouse causing cascade: Warehouse -> Checkout",
    "anomaly_score": 0.9,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "span_ids": ["a1", "b1"],
    "affected_services": ["Front", "Checkout", "Warehouse"],
    "request_flow": ["Front", "Checkout", "Warehouse"],
    "request_trace": [
        {
            "timestamp": "2026-11-24T09:15:00Z",
            "service": "Front",
            "level": "INFO",
            "message": "POST /buy",
            "span_id": "a1",
        },
        {
            "timestamp": "2026-11-24T09:15:01Z",
            "service": "Warehouse",
            "level": "ERROR",
            "message": "429 Too Many Requests",
        },
    ],
    "error_message": "<n> too many requests",
    "raw_error_message": "429 Too Many Requests",
    "causal_chain": ["Warehouse", "Checkout"],
    "root_cause_service": "Warehouse",
    "root_cause_span_id": "b1",
    "error_category": "rate_limit",
    "blast_radius": {"impact_score": 0.33, "affected_downstream": ["Checkout"], "estimated_user_impact": "low"},
    "root_cause": "",
}
FLINK = {
    "event_id": "57ed",
    "detected_at": "2026-11-24T09:18:01.578401283Z",
    "anomaly_type": "memory_exhaustion",
    "anomaly_score": 0.85,
    "severity": "critical",
    "service": "billing",
    "message": "java.lang.OutOfMemoryError: Java heap space\n\tat Billing.run",
    "trace_id": "",
    "span_ids": [],
    "causal_chain": ["billing"],
    "evidence_logs": [{"@timestamp": "2026-11-24T09:18:00Z", "service": "billing", "level": "FATAL", "message": "OOM"}],
}


def event(**changes):
    return read(LEAST | changes, now=NOW)


def refusal(**changes):
    with pytest.raises(Rejected) as caught:
        event(**changes)
    return caught.value.message


def test_the_least_that_is_an_event():
    least = event()
    assert (least.service, least.severity, least.score, least.at) == ("payment-api", "critical", 4.2, NOW)
    assert (least.event_id, least.trace_id, least.affected_services) == (None, "", ())
    assert least.title == "anomaly on payment-api"
    assert least.payload == LEAST


def test_the_api_names_are_read():
    read_ = event(
        eventId="e-1",
        title="High error rate",
        description="since noon",
        traceId="abcdef",
        affectedServices=["a", "b"],
        timestamp="2026-11-24T09:00:00Z",
    )
    assert (read_.event_id, read_.title, read_.description, read_.trace_id) == (
        "e-1",
        "High error rate",
        "since noon",
        "abcdef",
    )
    assert read_.affected_services == ("a", "b")
    assert read_.at == datetime(2026, 11, 24, 9, tzinfo=UTC)


def test_a_spike_of_the_bridge_is_read():
    spike = read(BRIDGE, now=NOW)
    assert (spike.event_id, spike.score, spike.environment, spike.tenant_id) == (
        BRIDGE["event_id"],
        0.65,
        "shop-prod",
        "shop",
    )
    assert spike.at == datetime(2026, 11, 24, 9, 15, 8, 632480, tzinfo=UTC)
    assert spike.title == "Error rate spike: z=3.10 rate=0.400 for cart"
    evidence = spike.evidence
    assert (evidence.category, evidence.template, evidence.endpoint) == (
        "timeout",
        "read timed out after <n> ms",
        "/cart/items",
    )
    assert (evidence.z_score, evidence.error_rate, evidence.window_buckets) == (3.1, 0.4, 3)
    assert evidence.signal_weights == {"severity": 1.0, "pattern:timeout": 0.7}


def test_a_request_failure_is_read():
    failure = read(REQUEST_FAILURE, now=NOW)
    assert failure.title == "request_failure on Warehouse"
    assert failure.affected_services == ("Front", "Checkout", "Warehouse")
    evidence = failure.evidence
    assert (evidence.causal_chain, evidence.root_cause_span_id) == (("Warehouse", "Checkout"), "b1")
    assert (evidence.impact.score, evidence.impact.downstream, evidence.impact.users) == (0.33, ("Checkout",), "low")
    assert [line.level for line in evidence.log_lines] == ["INFO", "ERROR"]
    assert evidence.log_lines[1].at == "2026-11-24T09:15:01Z"
    assert evidence.template == "<n> too many requests"


def test_an_event_of_flink_is_read():
    crash = read(FLINK, now=NOW)
    assert crash.at.microsecond == 578401
    assert crash.title == "java.lang.OutOfMemoryError: Java heap space"
    assert crash.trace_id == ""
    assert crash.evidence.log_lines[0].loud


@pytest.mark.parametrize("sample", [BRIDGE, REQUEST_FAILURE, FLINK, LEAST])
def test_evidence_survives_being_stored(sample):
    evidence = read(sample, now=NOW).evidence
    assert Evidence.from_json(json.loads(json.dumps(evidence.as_json()))) == evidence


def test_of_several_names_the_first_that_is_not_null_wins():
    assert event(score=None, anomalyScore=None, anomaly_score=0.5).score == 0.5
    assert event(score=1, anomaly_score=2).score == 1
    assert event(eventId=None, event_id="b").event_id == "b"
    assert event(detected_at=None, timestamp="2026-11-24T08:00:00Z").at.hour == 8
    several = {"@timestamp": "2026-11-24T07:00:00Z", "timestamp": "2026-11-24T08:00:00Z"}
    assert event(**several).at.hour == 7
    assert event(detected_at="2026-11-24T06:00:00Z", **several).at.hour == 6


@pytest.mark.parametrize("item", [None, 1, "x", [], [LEAST], True])
def test_what_is_no_object_is_refused(item):
    with pytest.raises(Rejected, match="JSON object"):
        read(item, now=NOW)


@pytest.mark.parametrize("field", ["service", "severity", "score"])
def test_a_missing_field_is_named(field):
    assert f"{field} is missing" in refusal(**{field: None})


# Score


@pytest.mark.parametrize(
    "score",
    [float("nan"), float("inf"), -1, -0.001, "4.2", True, False, [], {}]
    + [pytest.param(10**400, id="400 digits"), pytest.param(10**5000, id="5,000 digits")],
)
def test_a_score_that_is_no_finite_number_of_zero_or_more_is_refused(score):
    assert "score" in refusal(score=score)


@pytest.mark.parametrize("score", [0, 0.3, 1, 4.2, 1e300, 2**63])
def test_any_finite_score_of_zero_or_more_is_taken_as_it_is(score):
    assert event(score=score).score == score


def test_a_refused_score_is_called_by_the_name_it_was_sent_under():
    assert refusal(score=None, anomaly_score="high").startswith("anomaly_score must be a number")


def test_of_several_times_an_empty_one_counts_as_absent():
    moment = datetime(2026, 11, 24, 9, 15, 1, tzinfo=UTC)
    assert event(detected_at="", timestamp="2026-11-24T09:15:01Z").at == moment
    assert (
        event(**{"detectedAt": None, "detected_at": "", "@timestamp": "2026-11-24T09:15:01Z", "timestamp": ""}).at
        == moment
    )
    assert event(detected_at="", timestamp="").at == NOW
    assert refusal(detected_at="", timestamp="soon").startswith("timestamp is not a time")


# Severity


@pytest.mark.parametrize("severity", ["critical", "CRITICAL", " Critical "])
def test_severity_comes_in_any_case(severity):
    assert event(severity=severity).severity == "critical"


@pytest.mark.parametrize("severity", ["", "urgent", 1, ["high"], "cri\u0000tical"])
def test_another_severity_is_refused(severity):
    assert refusal(severity=severity) == "severity must be critical, high, medium or low"


# Service


def test_service_is_trimmed_and_otherwise_left_alone():
    assert event(service="  Zahlung-Übersicht ../%2e \u200bx ").service == "Zahlung-Übersicht ../%2e \u200bx"
    assert event(service="s" * 200).service == "s" * 200


@pytest.mark.parametrize(
    "service", ["a\u0000", "a\nb", "a\x1bb", "a\u0085b", "a\u202eb", "a\u2066b", "a\u2028b", "a\ud800"]
)
def test_a_service_with_a_control_character_is_refused(service):
    assert refusal(service=service).startswith("service holds a control character (U+")


@pytest.mark.parametrize(
    ("service", "reason"), [("", "empty"), (" \n ", "empty"), ("s" * 201, "200 at most"), (1, "a text")]
)
def test_a_service_that_is_no_name_is_refused(service, reason):
    assert reason in refusal(service=service)


# Event id


def test_an_item_without_an_event_id_gets_the_fallback():
    assert read(LEAST, now=NOW, fallback_id="batch:0").event_id == "batch:0"
    assert read(LEAST | {"eventId": "own"}, now=NOW, fallback_id="batch:0").event_id == "own"


@pytest.mark.parametrize("event_id", ["", "e" * 201, 7, True, ["e"], "e\u0000", "e\ud800", "a\nb"])
def test_an_event_id_that_cannot_be_remembered_is_refused(event_id):
    assert refusal(event_id=event_id).startswith("event_id ")


# Time


@pytest.mark.parametrize(
    ("written", "micros"),
    [("", 0), (".5", 500000), (".632", 632000), (".632480", 632480), (".578401283", 578401), (",25", 250000)],
)
def test_fractions_have_up_to_nine_digits(written, micros):
    assert event(timestamp=f"2026-11-24T09:18:01{written}Z").at == datetime(2026, 11, 24, 9, 18, 1, micros, UTC)


@pytest.mark.parametrize(
    ("written", "hour"),
    [
        ("2026-11-24T09:00:00", 9),
        ("2026-11-24 09:00:00Z", 9),
        ("2026-11-24T09:00Z", 9),
        ("2026-11-24T09:00:00+02:00", 7),
        ("2026-11-24T09:00:00-0100", 10),
        ("2026-11-24t09:00:00z", 9),
    ],
)
def test_a_time_without_zone_is_utc_and_zones_are_converted(written, hour):
    assert event(timestamp=written).at == datetime(2026, 11, 24, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("0001-01-01T00:00:00+14:00", "before the year 2000"),
        ("9999-12-31T23:59:59-14:00", "after the year 9999"),
        ("9999-12-31T23:59:59Z", "more than a day ahead"),
        ("1969-12-31T23:59:59Z", "before the year 2000"),
        ("1999-12-31T23:59:59Z", "before the year 2000"),
        ("2000-01-01T00:00:00+01:00", "before the year 2000"),
        ("2026-11-25T10:00:00.000001Z", "more than a day ahead"),
        ("2026-11-24T09:00:00.123456789012Z", "more than 9 digits"),
        ("2016-12-31T23:59:60Z", "leap second"),
        ("2026-11-23T24:00:00Z", "00:00 of the next day"),
        ("2026-02-30T00:00:00Z", "is not a time"),
        ("2026-13-01T00:00:00Z", "is not a time"),
        ("0000-01-01T00:00:00Z", "is not a time"),
        ("2026-11-24T09:00:00+25:00", "no such zone"),
        ("2026-11-24T09:00:00 CET", "is not a time"),
        ("2026-11-24", "is not a time"),
        ("20261124T090000Z", "is not a time"),
        ("٢٠٢٦-11-24T09:00:00Z", "is not a time"),
        ("yesterday", "is not a time"),
        ("2026-11-24T09:00:00Z\u0000", "is not a time"),
        (1732440000, "numbers are not read as times"),
        (1732440000000.5, "numbers are not read as times"),
        pytest.param(10**5000, "numbers are not read as times", id="5,000 digits"),
        (True, "must be a text"),
        ({}, "must be a text"),
    ],
)
def test_a_time_outside_the_span_or_no_time_at_all_is_refused_with_its_reason(written, reason):
    message = refusal(timestamp=written)
    assert message.startswith("timestamp ")
    assert reason in message


def test_both_ends_of_the_span_are_inside():
    assert event(timestamp="2000-01-01T00:00:00Z").at.year == 2000
    assert event(timestamp="2026-11-25T10:00:00Z").at == NOW + timedelta(days=1)


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_time_is_the_moment_of_arrival(nothing):
    assert event(timestamp=nothing).at == NOW


# Texts


def test_texts_are_mended_and_cut_never_refused():
    mended = event(title="a\u0000b\ud800c", description="d\udfff" + "x" * 30_000, traceId="t\u0000", message="\u0000")
    assert mended.title == "a\ufffdb\ufffdc"
    assert mended.description == "d\ufffd" + "x" * 19_998
    assert mended.trace_id == "t\ufffd"
    assert event(title="t" * 501).title == "t" * 500


def test_evidence_is_mended_in_keys_and_values():
    mended = event(signal_weights={"a\ud800": 1, "b\u0000": 2, "nan": float("nan"), "text": "1", "yes": True})
    assert mended.evidence.signal_weights == {"a\ufffd": 1.0, "b\ufffd": 2.0}
    assert set(mended.payload["signal_weights"]) == {"a\ufffd", "b\ufffd", "nan", "text", "yes"}


@pytest.mark.parametrize("field", ["title", "description", "traceId", "trace_id"])
def test_a_text_of_the_wrong_type_is_refused_by_name(field):
    assert refusal(**{field: 5}) == f"{field} must be a text"


@pytest.mark.parametrize(
    ("title", "message", "expected"),
    [
        ("Given", "m", "Given"),
        ("  ", "\n first \nsecond", "first"),
        (None, "one", "one"),
        (None, "  ", "crash on payment-api"),
        ("\u200b\u2060 \ufeff", "\u200d\nfirst", "first"),
        ("\u3164", "\u202e\u00ad", "crash on payment-api"),
        ("\u200b!", "m", "\u200b!"),
        ("", 5, "crash on payment-api"),
    ],
)
def test_a_blank_title_is_the_first_line_of_the_message_else_type_on_service(title, message, expected):
    assert event(title=title, message=message, anomaly_type="crash").title == expected


def test_affected_services_keep_their_order_and_are_bounded():
    assert event(affectedServices=["b", " a ", "b", "", None, "c\u0000"]).affected_services == ("b", "a", "c\ufffd")
    many = event(affectedServices=[f"s{n}" for n in range(300)])
    assert (len(many.affected_services), many.affected_services[-1]) == (200, "s199")
    assert refusal(affectedServices="a") == "affectedServices must be a list of texts"
    assert refusal(affected_services=["a", 5]) == "affected_services[1] must be a text"


@pytest.mark.parametrize("wrong", [5, "text", [5], {"a": 5}, True, [[]], [{}], {}, {"impact_score": []}])
def test_producers_fields_of_a_wrong_type_are_passed_over(wrong):
    fields = (
        "environment tenant_id message anomaly_type error_category error_template z_score error_rate window_buckets "
        "causal_chain request_flow span_ids signal_weights evidence_logs request_trace blast_radius root_cause_service"
    ).split()
    assert event(**dict.fromkeys(fields, wrong)).service == "payment-api"


def test_evidence_is_bounded():
    bounded = event(
        evidence_logs=[{"message": "m" * 3000, "level": "INFO"}] * 30 + [{"message": "the cause", "level": "ERROR"}],
        signal_weights={f"w{n}": n for n in range(80)},
        causal_chain=[f"c{n}" for n in range(80)],
    ).evidence
    assert (len(bounded.log_lines), len(bounded.signal_weights), len(bounded.causal_chain)) == (20, 50, 50)
    assert len(bounded.log_lines[0].message) == 2000
    assert bounded.log_lines[-1].message == "the cause", "what cries is kept before what is routine"


# Payload


def nested(levels):
    value = "bottom"
    for _ in range(levels):
        value = [value]
    return value


def test_depth_is_bounded():
    assert event(extra=nested(63))
    for levels in (64, 200, 300, 900):
        assert "nested too deeply" in refusal(extra=nested(levels))
    assert "nested too deeply" in refusal(extra=nested(64), title="\ud800")
    assert event(extra=[[]] * 1000)


def test_the_payload_is_what_was_sent_made_fit_to_be_stored():
    sent = event(extra={"nan": float("nan"), "huge": 10**400, "k\ud800": ["\u0000", None, True, 1.5]})
    assert sent.payload["extra"] == {"nan": None, "huge": None, "k\ufffd": ["\ufffd", None, True, 1.5]}


def test_a_huge_item_is_stored_by_its_main_fields():
    huge = event(extra="x" * 1_000_000, error_category="timeout", description="why")
    assert len(json.dumps(huge.payload)) < 10_000
    assert (huge.payload["service"], huge.payload["description"]) == ("payment-api", "why")
    assert huge.payload["error_category"] == huge.evidence.category == "timeout"
    assert "1000" in huge.payload["truncated"]
    assert event(extra="x" * (MAX_PAYLOAD - 500)).payload["extra"]


def test_the_item_itself_is_left_alone():
    item = LEAST | {"title": "\ud800", "affectedServices": ["a", "a"]}
    before = json.dumps(item)
    read(item, now=NOW)
    assert json.dumps(item) == before


def event_or_reason(item):
    try:
        return read(item, now=NOW)
    except Rejected as refused:
        return refused.message


any_text = st.text(st.characters(codec=None, categories=None), max_size=30) | st.sampled_from(["\ud800", "\u0000", ""])
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
known = st.sampled_from(
    sorted({*BRIDGE, *REQUEST_FAILURE, *FLINK, "eventId", "traceId", "affectedServices", "title", "timestamp", "score"})
)


@settings(max_examples=300)
@given(
    base=st.sampled_from([{}, LEAST, BRIDGE, REQUEST_FAILURE, FLINK]),
    changes=st.dictionaries(known | any_text, any_json, max_size=6),
)
@example(base=LEAST, changes={"timestamp": "9999-12-31T23:59:59.999999-14:00"})
def test_any_json_is_an_event_that_can_be_stored_or_a_reason(base, changes):
    got = event_or_reason(base | changes)
    if isinstance(got, str):
        assert got.encode()
        return
    texts = [got.title, got.description, got.trace_id, got.environment, got.tenant_id, *got.affected_services]
    stored = json.dumps(
        [got.service, got.event_id, texts, got.payload, got.evidence.as_json()], allow_nan=False, ensure_ascii=False
    )
    stored.encode()
    assert "\\u0000" not in stored.replace("\\\\", "")
    assert Evidence.from_json(got.evidence.as_json()) == got.evidence
    assert datetime(2000, 1, 1, tzinfo=UTC) <= got.at <= NOW + timedelta(days=1)


@given(any_json)
def test_no_item_whatever_is_more_than_refused(item):
    assert event_or_reason(item)


def test_ten_thousand_items_are_read_within_a_breath():
    items = [REQUEST_FAILURE | {"event_id": str(number)} for number in range(10_000)]

    def read_all() -> None:
        for item in items:
            read(item, now=NOW)

    assert cpu_seconds(read_all) < 1.5
