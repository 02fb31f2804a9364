"""What is kept how long, and that nothing else goes."""

from datetime import timedelta

import pytest
from django.utils import timezone

from auditlog.models import Entry
from config.changes import patch_platforms
from config.models import PlatformState, PlatformVersion
from incidents import intake, lifecycle, retention
from incidents.models import Anomaly, Incident, Pulse, SeenEvent, Ticket

pytestmark = pytest.mark.django_db

EVENT = {"service": "payment-api", "severity": "critical", "score": 1.0}


def take(*items: dict) -> None:
    intake.accept([EVENT | item for item in items], actor="key:producer")


def with_payload() -> list[str]:
    return list(Anomaly.objects.filter(payload__isnull=False).order_by("pk").values_list("event_id", flat=True))


def test_event_ids_are_remembered_as_long_as_the_setting_says(settings):
    settings.EVENT_IDS_KEPT_DAYS = 30
    take({"eventId": "old"}, {"eventId": "new"})
    now = timezone.now()
    SeenEvent.objects.filter(event_id="old").update(seen_at=now - timedelta(days=30, seconds=1))
    SeenEvent.objects.filter(event_id="new").update(seen_at=now - timedelta(days=29, hours=23))
    retention.prune()
    assert list(SeenEvent.objects.values_list("event_id", flat=True)) == ["new"]
    assert Anomaly.objects.count() == 2


def test_old_anomalies_go_and_the_incident_stays_as_it_is(settings):
    settings.ANOMALIES_KEPT_DAYS = 90
    take({"eventId": "old"}, {"eventId": "new"}, {"eventId": "below", "score": 0.1})
    before = (list(Incident.objects.values()), list(Ticket.objects.values()), list(Entry.objects.values()))
    Anomaly.objects.exclude(event_id="new").update(received_at=timezone.now() - timedelta(days=90, seconds=1))
    retention.prune()
    assert list(Anomaly.objects.values_list("event_id", flat=True)) == ["new"]
    assert (list(Incident.objects.values()), list(Ticket.objects.values()), list(Entry.objects.values())) == before


def test_much_is_deleted_in_chunks(monkeypatch):
    monkeypatch.setattr(retention, "CHUNK", 7)
    take(*({"eventId": f"e{n}"} for n in range(50)))
    SeenEvent.objects.update(seen_at=timezone.now() - timedelta(days=400))
    Anomaly.objects.update(received_at=timezone.now() - timedelta(days=400))
    retention.prune()
    assert not SeenEvent.objects.exists()
    assert not Anomaly.objects.exists()
    assert Incident.objects.get().anomaly_count == 50


def test_whole_events_are_kept_of_the_first_20_the_latest_20_and_the_highest():
    for n in range(60):
        take({"eventId": f"e{n:02}", "score": 9.0 if n in (30, 35) else 1.0})
    retention.prune()
    expected = [f"e{n:02}" for n in (*range(20), 30, *range(40, 60))]
    assert with_payload() == expected
    retention.prune()
    assert with_payload() == expected
    assert Anomaly.objects.count() == 60


def test_a_batch_keeps_the_same_whole_events_as_one_by_one():
    items = [{"eventId": f"e{n:02}", "score": 9.0 if n in (30, 35) else 1.0} for n in range(60)]
    take(*items[:5])
    take(*items[5:])
    retention.prune()
    assert with_payload() == [f"e{n:02}" for n in (*range(20), 30, *range(40, 60))]


def test_of_few_anomalies_all_are_kept_whole():
    take(*({"eventId": f"e{n}"} for n in range(40)))
    retention.prune()
    assert len(with_payload()) == 40


def test_incidents_are_trimmed_each_on_its_own():
    take(*({"eventId": f"{service}{n}", "service": service} for n in range(50) for service in "ab"))
    retention.prune()
    for service in "ab":
        assert Anomaly.objects.filter(service=service, payload__isnull=False).count() == 40


def test_the_pulse_of_what_no_longer_runs_is_forgotten():
    now = timezone.now()
    Pulse.objects.create(name="sweep:gone:1", at=now - timedelta(days=2))
    Pulse.objects.create(name="beat", at=now)
    retention.prune()
    assert list(Pulse.objects.values_list("name", flat=True)) == ["beat"]


class TestReplacedSettings:
    """What a platform was configured with once, secrets and all."""

    @pytest.fixture(autouse=True)
    def replaced(self, connect):
        """PagerDuty's key was replaced a day ago, after an incident was opened; the older key has gone before it."""
        connect("pagerduty")
        patch_platforms({"pagerduty": {"routingKey": "0" * 32}}, actor="system")
        take({"eventId": "e"})
        patch_platforms({"pagerduty": {"routingKey": "1" * 32}}, actor="system")
        self.age(timedelta(days=1))

    def age(self, by: timedelta) -> None:
        PlatformVersion.objects.update(created_at=timezone.now() - by)

    def resolve(self, ago: timedelta) -> None:
        lifecycle.move("resolve", [Incident.objects.get().pk], actor="user:anna")
        Incident.objects.update(resolved_at=timezone.now() - ago)

    def keys(self) -> list[str]:
        retention.prune()
        return [version.settings["routingKey"][0] for version in PlatformVersion.objects.order_by("number")]

    def test_are_kept_while_a_ticket_of_an_incident_that_burns_was_made_with_them(self):
        assert self.keys() == ["0", "1"]
        assert self.keys() == ["0", "1"]
        assert Ticket.objects.get().settings_version.settings["routingKey"] == "0" * 32

    def test_are_kept_for_seven_days_after_that(self):
        self.resolve(timedelta(days=6, hours=23))
        assert self.keys() == ["0", "1"]

    def test_go_then_and_the_ticket_stays_and_takes_todays(self, connect, work):
        self.resolve(timedelta(days=7, seconds=1))
        before = Ticket.objects.values().get()
        assert self.keys() == ["1"]
        assert Ticket.objects.values().get() == before | {"settings_version_id": None}
        lifecycle.move("reopen", [Incident.objects.get().pk], actor="user:anna")
        pages = connect("pagerduty").pagerduty.pages
        work(later=True)
        assert connect("pagerduty").pagerduty.pages == pages + 1
        assert Ticket.objects.get().settings_version == PlatformVersion.objects.latest("number")

    def test_of_today_stay_however_old_they_are(self):
        self.resolve(timedelta(days=900))
        self.age(timedelta(days=900))
        assert self.keys() == ["1"]
        Ticket.objects.all().delete()
        PlatformState.objects.update(enabled=False)
        assert self.keys() == ["1"]

    def test_stay_for_an_hour_with_whoever_read_them_before_the_change(self):
        Ticket.objects.all().delete()
        self.age(timedelta(minutes=59))
        assert len(self.keys()) == 3
        self.age(timedelta(minutes=61))
        assert self.keys() == ["1"]

    def test_go_in_chunks(self, monkeypatch):
        monkeypatch.setattr(retention, "CHUNK", 2)
        for n in range(7):
            take({"service": f"s{n}"})
            patch_platforms({"pagerduty": {"routingKey": f"{n % 2}" * 32}}, actor="system")
        self.age(timedelta(days=30))
        Incident.objects.update(status="resolved", resolved_at=timezone.now() - timedelta(days=8))
        assert self.keys() == ["0"]
        assert Ticket.objects.count() == 8
