"""What tickets say in plain text, and how it is made to fit."""

import json
from datetime import UTC, datetime

import pytest

from platforms import text
from platforms.contract import Note, Notice

AT = datetime(2024, 3, 1, 15, 30, tzinfo=UTC)


def notice(**changed) -> Notice:
    given = {
        "key": "inc-20240301-001-k3y",
        "incident_id": "inc-20240301-001",
        "title": "High error rate on payment-api",
        "description": "upstream timed out",
        "severity": "critical",
        "status": "open",
        "escalated": False,
        "service": "payment-api",
        "affected_services": ("payment-api", "order-engine"),
        "score": 4.2,
        "anomaly_count": 7,
        "root_cause": "The pool is exhausted.",
        "fallback": False,
        "link": "https://tickets.example/i/inc-20240301-001",
        "opened_at": AT,
    }
    return Notice(**{**given, **changed})


def test_a_text_that_fits_is_left_alone_to_the_last_character():
    assert text.cut("x" * 130, 130) == "x" * 130
    assert text.cut("x" * 131, 130) == "x" * 129 + "…"


def test_three_hundred_emoji_are_cut_by_characters_and_none_is_split():
    assert text.cut("🔥" * 300, 130) == "🔥" * 129 + "…"
    assert text.cut("🔥" * 300, 130, text.units) == "🔥" * 64 + "…"


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_smallest_limits_leave_the_ellipsis(limit):
    assert text.cut("🔥🔥🔥", limit, text.units) == "…"


def test_a_joiner_is_not_left_before_the_ellipsis():
    assert text.cut("👩\u200d👩\u200d👧 family", 3) == "👩…"


def test_line_ends_of_all_systems_become_one_and_what_cannot_be_shown_goes():
    assert text.clean("a\r\nb\rc\u2028d\x00\x1b[31m\u202ee\U000e0041\tf") == "a\nb\nc\nd[31me\tf"


def test_a_lone_surrogate_becomes_a_character_that_can_be_encoded():
    assert text.clean("a\ud800b\uffff").encode() == "a\ufffdb\ufffd".encode()


def test_one_line_is_one_line():
    assert text.one_line("  High\r\nerror\trate \n") == "High error rate"


def test_the_headline_keeps_the_id_however_long_the_title_is():
    line = text.headline(notice(title="ü" * 400), 130)
    assert len(line) == 130
    assert line.endswith("… [inc-20240301-001]")


def test_a_blank_title_names_the_service():
    assert text.title(notice(title=" \n\x00")) == "Anomaly on payment-api"


def test_the_summary_has_everything_a_responder_asks_for():
    said = text.summary(notice(notes=(Note("user:anna", "looking\nat it", AT),)), 4000)
    for part in (
        "High error rate on payment-api",
        "Incident: inc-20240301-001",
        "Severity: critical",
        "Service: payment-api",
        "Affected services: payment-api, order-engine",
        "Anomaly score: 4.2",
        "Anomalies: 7",
        "Opened: 2024-03-01 15:30:00 UTC",
        "Root cause:\nThe pool is exhausted.",
        "user:anna: looking\nat it",
        "Details:\nupstream timed out",
        "https://tickets.example/i/inc-20240301-001",
    ):
        assert part in said


def test_a_cause_that_the_rules_gave_says_so():
    assert "fallback" in text.summary(notice(fallback=True), 4000)
    assert "fallback" not in text.summary(notice(), 4000)


def test_when_the_summary_is_cut_the_link_and_the_facts_stay():
    said = text.summary(notice(description="x" * 20_000, root_cause="y" * 20_000), 4000)
    assert text.units(said) <= 4000
    assert "Anomalies: 7" in said
    assert notice().link in said


def test_two_hundred_affected_services_are_counted_where_they_do_not_fit():
    shown = text.services(notice(affected_services=tuple(f"service-{n:03}-{'x' * 190}" for n in range(200))))
    assert text.units(shown) <= 1000
    assert shown.endswith("and 196 more")


def test_an_affected_service_too_long_for_the_list_is_cut():
    assert text.services(notice(affected_services=("x" * 5000, "b"))) == "x" * 249 + "…, b"


def test_a_link_that_is_no_web_address_is_left_out():
    for link in ("javascript:alert(1)", "", "https://a.example/<b>", "https://a.example/x|y", "https://a.example/a b"):
        assert text.link(notice(link=link)) == ""
        assert "http" not in text.summary(notice(link=link), 4000)


def test_facts_are_at_most_nine_lines_none_of_them_empty():
    rows = text.facts(notice(environment="prod\nEU", trace_id="abc", escalated=True, status="acknowledged"))
    assert len(rows) == 9
    assert ("Environment", "prod EU") in rows
    assert all(value and "\n" not in value for _, value in rows)
    assert "Trace" not in dict(text.facts(notice()))


def test_the_status_says_whether_it_stands_escalated():
    assert text.status(notice(escalated=True, status="acknowledged")) == "acknowledged (escalated)"
    assert text.status(notice(escalated=True, status="escalated")) == "escalated"
    assert text.status(notice()) == "open"


def test_several_moves_are_one_sentence_that_ends_with_the_latest():
    said = notice(actor="anna\n")
    assert text.moves(said, ("acknowledge", "reopen", "acknowledge", "cause")) == "Reopened, then acknowledged by anna."
    assert text.moves(notice(), ("resolve",)) == "Resolved."
    assert text.moves(said, ("cause", "note")) == ""


def test_a_comment_ends_with_the_link_even_when_it_is_cut():
    said = text.comment(notice(root_cause="z" * 20_000), ("cause",), 1000)
    assert text.units(said) == 1000
    assert said.endswith(notice().link)
    assert text.comment(notice(), (), 1000) == ""


def test_too_many_notes_keep_the_latest():
    many = tuple(Note("user:anna", f"{n} " + "x" * 1500, AT) for n in range(10))
    said = text.notes(notice(notes=many))
    assert text.units(said) <= 4010
    assert said.startswith("…\n")
    assert "user:anna: 9 " in said


def test_json_units_count_what_escapes_take():
    assert text.json_units('a"\n🔥') == len(json.dumps('a"\n')) - 2 + 2
