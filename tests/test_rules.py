"""The root cause that rules can tell: in an engineer's words, from the evidence, and no more than it says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incidents.causes import rules
from incidents.causes.faults import FAULTS
from incidents.causes.rules import MAX_FINDING
from incidents.evidence import Evidence, Impact, LogLine


def explain(evidence=None, **changes):
    about = {
        "service": "checkout",
        "severity": "high",
        "score": 0.9,
        "anomaly_count": 1,
        "trace_id": "",
        "affected_services": ("checkout",),
        "evidence": evidence or Evidence(),
    }
    return rules.explain(**about | changes)


def log(*messages, level="ERROR", service="checkout"):
    return tuple(LogLine(message, "2026-11-24T09:00:00Z", service, level) for message in messages)


# Which kind of fault


@pytest.mark.parametrize(
    ("words", "category"),
    [
        ("write /var/lib/x: no space left on device", "disk"),
        ("HikariPool-1 - Connection is not available, request timed out after 30000ms", "database_pool"),
        ("database connection pool exhausted: lock timeout", "database_pool"),
        ("FATAL: sorry, too many clients already", "database_pool"),
        ("ERROR: deadlock detected", "database"),
        ("[instance: 7c1f] memory limit: 96000.00 MB, free: 95488.00 MB", "resource_accounting"),
        ("Recalculating schedule, headroom=<memory:0, vCores:-27>", "resource_exhaustion"),
        ("accept: too many open files", "resource_exhaustion"),
        ("java.lang.OutOfMemoryError: Java heap space", "out_of_memory"),
        ("Memory cgroup out of memory: Killed process 4242 (node)", "out_of_memory"),
        ("x509: certificate has expired or is not yet valid", "tls"),
        ("javax.net.ssl.SSLHandshakeException: PKIX path building failed", "tls"),
        ("Stripe API returned 500: rate limit exceeded on /v1/charges", "rate_limit"),
        ("HTTP status 429", "rate_limit"),
        ("authentication failure; logname= uid=0 tty=ssh rhost=192.0.2.7 user=root", "authentication"),
        ("Failed password for invalid user admin from 192.0.2.7", "authentication"),
        ("[client 192.0.2.9] Directory index forbidden by rule: /srv/www/", "access_denied"),
        ("getaddrinfo ENOTFOUND billing.internal", "dns"),
        ("dial tcp 10.0.0.7:5432: connect: connection refused", "connection"),
        ("NoRouteToHostException: no route to host from a to b:9000 failed on socket timeout exception", "connection"),
        ("context deadline exceeded", "timeout"),
        ("Read timed out. (read timeout=5)", "timeout"),
        ("Segmentation fault (core dumped)", "crash"),
        ("container killed by the applicationmaster", "crash"),
        ("mod_jk child workerEnv in error state 9", "dependency"),
        ("upstream returned 503", "dependency"),
        ("TypeError: cannot read properties of undefined", "application"),
        ("the weather is fine", "unknown"),
        ("GET /items took 429 ms, sent 500 bytes", "unknown"),
    ],
)
def test_the_words_of_a_log_line_tell_the_kind_of_fault(words, category):
    assert explain(Evidence(log_lines=log(words))).category == category
    assert explain(Evidence(template=words.lower())).category == category


@pytest.mark.parametrize(
    ("named", "category"),
    [
        ("out_of_memory", "out_of_memory"),
        ("memory_exhaustion", "out_of_memory"),
        ("timeout", "timeout"),
        ("connection_failure", "connection"),
        ("authentication", "authentication"),
        ("auth_failure", "authentication"),
        ("rate_limit", "rate_limit"),
        ("tls_error", "tls"),
        ("resource_exhaustion", "resource_exhaustion"),
        ("crash", "crash"),
        ("request_failure", "unknown"),
        ("error_rate_spike", "unknown"),
        ("fatal_error", "unknown"),
        ("unknown", "unknown"),
    ],
)
def test_without_words_the_producers_category_is_taken_where_it_says_something(named, category):
    assert explain(Evidence(category=named)).category == category
    assert explain(Evidence(category="unknown", anomaly_type=named)).category == category


def test_where_the_words_contradict_the_category_they_win_and_the_text_says_so():
    finding = explain(
        Evidence(category="out_of_memory", template="recalculating schedule, headroom=<memory:0, vcores:-27>")
    )
    assert finding.category == "resource_exhaustion"
    assert 'The producer\'s category is "out_of_memory", but the error template says otherwise' in finding.text
    assert "Confidence low" in finding.text


def test_where_the_words_are_more_precise_than_the_category_it_is_no_contradiction():
    finding = explain(Evidence(category="timeout", template="database connection pool exhausted: lock timeout"))
    assert finding.category == "database_pool"
    assert "more precise" in finding.text
    assert "otherwise" not in finding.text


def test_the_log_around_an_event_outweighs_one_stray_template():
    lines = log(*["mod_jk child workerEnv in error state 6"] * 5)
    finding = explain(
        Evidence(category="authentication", template="directory index forbidden by rule", log_lines=lines)
    )
    assert finding.category == "dependency"
    assert "5 of 5 log lines" in finding.text


def test_the_service_it_started_in_is_believed_before_those_it_reached():
    lines = log("upstream failed", "circuit breaker open", service="front") + log(
        "no space left on device", service="store"
    )
    chain = Evidence(causal_chain=("store", "front"), log_lines=lines)
    assert explain(chain, service="front").category == "disk"


def test_a_category_that_no_word_confirms_says_so():
    text = explain(Evidence(category="timeout", log_lines=log("the weather is fine"))).text
    assert "Nothing in the log's words confirms the category" in text
    assert "Confidence low" in text


def test_a_signal_is_the_last_resort():
    finding = explain(Evidence(category="unknown", signal_weights={"severity": 1.0, "pattern:oom": 0.95}))
    assert finding.category == "out_of_memory"
    assert 'Confidence low: only the signal "pattern:oom"' in finding.text


def test_sentences_of_the_detector_are_no_evidence_of_a_fault():
    own = "Anomaly detected: score=0.65 [pattern:oom=0.95, structural:category:out_of_memory=0.30] for checkout"
    assert explain(Evidence(message=own)).category == "unknown"


def test_one_event_in_three_spellings_counts_once():
    same = "Rate limit exceeded"
    once = Evidence(raw_error=same, template=same.lower(), message=same, log_lines=log(same))
    assert "Confidence low" in explain(once).text
    agreed = Evidence(category="rate_limit", template=same.lower(), log_lines=log(same, "429 too many requests"))
    assert "Confidence high" in explain(agreed).text


# What is said


def test_a_request_failure_reads_from_the_root_to_what_it_hit():
    evidence = Evidence(
        anomaly_type="request_failure",
        category="rate_limit",
        raw_error="Warehouse API returned 429: rate limit exceeded",
        causal_chain=("warehouse", "checkout"),
        request_flow=("front", "checkout", "warehouse"),
        root_cause_service="warehouse",
        root_cause_span_id="c1",
        impact=Impact(0.33, ("checkout",), "low"),
        log_lines=log("Warehouse API returned 429: rate limit exceeded", service="warehouse"),
        signal_weights={"severity": 1.0},
        error_rate=0.143,
        z_score=4.58,
    )
    text = explain(evidence, service="warehouse", trace_id="4bf92f35", anomaly_count=12).text
    assert text.splitlines() == [
        "Points to a rate limit in warehouse: calls were refused because too many were made or a quota is used up. "
        'Confidence fair: the raw error message, the log line, the category "rate_limit".',
        "Started in: warehouse (causal chain warehouse -> checkout, span c1).",
        "Hit: checkout (blast radius 0.33, user impact low, request flow front -> checkout -> warehouse).",
        "Evidence: log line (ERROR, warehouse, 2026-11-24T09:00:00Z) "
        '"Warehouse API returned 429: rate limit exceeded".',
        "Measured: anomaly score 0.9, severity high; 12 anomalies so far; error rate 14%; "
        "z-score 4.58 (4.6 standard deviations above its usual); strongest signals severity 1.",
        "Look first at: the quota and the call rate towards the one that refuses, retries that add to it, "
        "and what raised the traffic; trace 4bf92f35 shows the request.",
    ]


def test_without_any_evidence_it_says_what_is_missing_and_where_to_look():
    finding = explain()
    assert finding.category == "unknown"
    assert "cannot be told" in finding.text
    assert "no log line, template or error message came with the event" in finding.text
    assert "Look first at: the service's log around that time" in finding.text


def test_an_unknown_fault_still_quotes_the_line_that_cries():
    lines = log("all is well", level="INFO") + log("Frobnicator misaligned")
    assert '"Frobnicator misaligned"' in explain(Evidence(log_lines=lines)).text


def test_the_addresses_behind_failed_logins_are_named():
    lines = log(*["authentication failure; rhost=192.0.2.7 user=root"] * 3, "authentication failure; rhost=192.0.2.8")
    assert "named there: 192.0.2.7 (3x), 192.0.2.8" in explain(Evidence(log_lines=lines)).text


def test_services_hit_are_those_beside_the_origin():
    assert "Hit: a, b." in explain(affected_services=("checkout", "a", "b")).text
    assert "Hit:" not in explain().text


def test_a_rate_below_the_usual_is_called_so():
    assert "z-score -2 (2.0 standard deviations below its usual)" in explain(Evidence(z_score=-2.0)).text


# Hostile evidence


def test_hostile_text_is_quoted_in_one_line_with_nothing_invisible_in_it():
    hostile = 'x" timed out\r\nPoints to nothing.\x1b[2J \u202egnp\u200b <!channel> {{7*7}} \U000e0041'
    text = explain(Evidence(log_lines=log(hostile, service="a\nb"), category="x\ny")).text
    assert '"x\' timed out Points to nothing. [2J gnp <!channel> {{7*7}}"' in text
    assert not any(line.startswith("Points to nothing") for line in text.splitlines())
    assert "(ERROR, a b, " in text


def test_the_advice_survives_the_longest_names():
    long = tuple(f"{number}" + "s" * 199 for number in range(50))
    evidence = Evidence(
        causal_chain=long,
        request_flow=long,
        impact=Impact(1.0, long, "u" * 200),
        log_lines=log("timed out " * 200, service="s" * 200),
        signal_weights=dict.fromkeys(long, 1.0),
        category="c" * 200,
    )
    text = explain(evidence, service="s" * 200, trace_id="t" * 200, affected_services=long).text
    assert len(text) <= MAX_FINDING
    assert text.splitlines()[-1].startswith("Look first at: the latency")


some_text = st.text(max_size=80) | st.sampled_from(["timeout", "out of memory", "\ud800", "\x00", "a" * 2000])
some_texts = st.lists(some_text, max_size=4).map(tuple)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=200)
@given(
    st.builds(
        Evidence,
        anomaly_type=some_text, message=some_text, category=some_text, template=some_text, raw_error=some_text,
        endpoint=some_text, z_score=numbers, error_rate=numbers, causal_chain=some_texts, request_flow=some_texts,
        span_ids=some_texts, root_cause_service=some_text, root_cause_span_id=some_text,
        impact=st.none() | st.builds(Impact, numbers, some_texts, some_text),
        signal_weights=st.dictionaries(some_text, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        log_lines=st.lists(st.builds(LogLine, some_text, some_text, some_text, some_text), max_size=4).map(tuple),
    )
)  # fmt: skip
def test_whatever_the_evidence_the_answer_is_useful_short_and_the_same_each_time(evidence):
    finding = explain(evidence)
    assert finding == explain(evidence)
    assert finding.category in {fault.category for fault in FAULTS} | {"unknown"}
    assert 0 < len(finding.text) <= MAX_FINDING
    assert 5 <= len(finding.text.splitlines()) <= 7
    assert finding.text.splitlines()[-1].startswith("Look first at: ")
    finding.text.encode()


def test_every_fault_of_the_table_can_be_reached_and_is_told_apart():
    categories = [fault.category for fault in FAULTS]
    assert len(set(categories)) == len(categories)
    aliases = [alias for fault in FAULTS for alias in fault.aliases]
    assert len(set(aliases)) == len(aliases)
    assert all(fault.words for fault in FAULTS)
