"""Rehearsals: what the last days would have been under other settings, by the intake's own rules."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from config.current import read
from incidents import intake
from incidents.models import Anomaly, Incident
from incidents.rehearsal import Heard, fold, rehearse

BEGIN = datetime(2024, 3, 1, 3, 0, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def heard(minute: float, service: str = "a", severity: str = "high", score: float = 1.0) -> Heard:
    return Heard(service, severity, BEGIN + timedelta(minutes=minute), score)


def test_the_window_slides_and_both_its_ends_belong_to_it():
    assert fold([heard(0), heard(15), heard(30)], 0, QUARTER) == {"high": 1}
    assert fold([heard(0), heard(15.1)], 0, QUARTER) == {"high": 2}
    assert fold([heard(30), heard(15), heard(0)], 0, QUARTER) == {"high": 1}


def test_services_and_severities_are_apart_and_a_score_equal_to_the_minimum_opens():
    rows = [heard(0), heard(0, "b"), heard(0, severity="low"), heard(0, "c", score=0.9), heard(0, "d", score=1.0)]
    assert fold(rows, 1.0, QUARTER) == {"high": 3, "low": 1}


def test_what_is_below_the_score_widens_nothing():
    rows = [heard(0), heard(14, score=0.1), heard(28)]
    assert fold(rows, 0.5, QUARTER) == {"high": 2}


@pytest.mark.django_db
@how(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from("ab"), st.sampled_from(["high", "low"]), st.floats(0, 2)),
        max_size=25,
    )
)
def test_a_rehearsal_of_the_settings_in_force_counts_what_the_intake_opened(rows):
    Anomaly.objects.all().delete()
    Incident.objects.all().delete()
    begin = timezone.now() - timedelta(hours=5)
    items = [
        {"service": s, "severity": v, "score": x, "timestamp": (begin + timedelta(minutes=m)).isoformat()}
        for m, s, v, x in rows
    ]
    for item in items:
        intake.accept([item], actor="system")
    as_it_is = (read().minimum_score, read().lookback)
    found = rehearse(before=as_it_is, after=as_it_is)
    assert found.then.total() == found.now.total() == Incident.objects.count()
    assert not found.cut


@pytest.mark.django_db
def test_too_many_are_counted_from_the_newest_and_it_says_so(django_assert_num_queries):
    at = timezone.now() - timedelta(hours=1)
    items = [{"service": f"s{n}", "severity": "low", "score": 1, "timestamp": at.isoformat()} for n in range(12)]
    intake.accept(items, actor="system")
    Anomaly.objects.filter(service="s0").update(received_at=timezone.now() - timedelta(days=8))
    with django_assert_num_queries(1):
        whole = rehearse(before=(0, QUARTER), after=(2, QUARTER))
    assert (whole.now, whole.then, whole.cut) == ({"low": 11}, {}, False)
    part = rehearse(before=(0, QUARTER), after=(0, QUARTER), most=5)
    assert (part.now, part.cut) == ({"low": 5}, True)
    assert part.since > timezone.now() - timedelta(days=1)
