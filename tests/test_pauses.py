"""A platform that asks for a rest gets one: short where people are paged, plain to see, ended by whoever acts."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from auditlog.models import Entry
from config.changes import patch_platforms
from incidents import lifecycle
from incidents.delivery.lanes import beat
from incidents.models import PlatformPause, Ticket, lease

pytestmark = pytest.mark.django_db

RETRY = "/api/v1/tickets/retry"
HOUR = {"Retry-After": "3600"}


def ticket(api, incident_id: str) -> dict:
    [one] = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
    return one


def rests_for(platform: str, seconds: float, since: datetime) -> bool:
    """Whether the platform is left alone for so long from some moment between `since` and now."""
    [pause] = PlatformPause.objects.in_force().filter(platform=platform).annotate(now=Now())
    rest, step = timedelta(seconds=seconds), timedelta(milliseconds=1)  # of SQLite's clock
    return since - step + rest <= pause.until <= pause.now + rest


@pytest.fixture
def throttled(connect, send, work):
    """PagerDuty answered one incident's page with 429 and an hour; it would take everything now."""
    standins = connect("pagerduty")
    standins.pagerduty.fault("status", times=1, code=429, headers=HOUR)
    send()
    work()
    assert standins.pagerduty.pages == 0
    return standins


@pytest.fixture
def later(throttled, send) -> str:
    """A critical incident opened while PagerDuty is left alone."""
    [incident_id] = send({"service": "checkout"})["incidents"]
    return incident_id


class TestItsLength:
    @pytest.mark.parametrize(("platform", "seconds"), [("pagerduty", 60), ("slack", 3600)])
    def test_is_a_minute_at_most_where_people_are_paged_and_an_hour_elsewhere(
        self, connect, send, work, platform, seconds
    ):
        connect(platform)[platform].fault("status", times=1, code=429, headers=HOUR)
        send()
        began = timezone.now()
        work()
        assert rests_for(platform, seconds, began)


class TestItShows:
    def test_on_each_ticket_that_waits_for_it(self, api, throttled, later, work):
        work()
        told = ticket(api, later)
        until = PlatformPause.objects.get().until
        assert told["state"] == "pending"
        assert told["message"].startswith(
            f"waits: PagerDuty asked us to wait until {until.astimezone(UTC):%H:%M:%S} UTC: 429 "
        )
        assert datetime.fromisoformat(told["nextAttemptAt"]) >= until.replace(microsecond=0)
        [first] = [one for one in api.get("/api/v1/tickets?state=retrying").json() if one["id"] != told["id"]]
        assert first["message"] == told["message"]

    def test_in_the_console_too(self, admin_client, api, later):
        said = ticket(api, later)["message"].partition(" UTC")[0]
        assert said in admin_client.get(f"/admin/incidents/incident/{later}/").content.decode()
        assert said in admin_client.get("/admin/incidents/incident/").content.decode()

    def test_in_an_open_list_once_it_begins_and_once_it_ends(self, admin_client, connect, send):
        connect("pagerduty")
        send()
        tags = [admin_client.get("/admin/incidents/incident/", headers={"X-Fragment": "1"})["ETag"]]
        for change in (
            lambda: PlatformPause.objects.create(platform="pagerduty", until=lease(30), reason="429", asked=True),
            lambda: PlatformPause.objects.end("pagerduty"),
        ):
            change()
            tags.append(admin_client.get("/admin/incidents/incident/", headers={"X-Fragment": "1"})["ETag"])
        assert tags[0] != tags[1] != tags[2]

    def test_when_the_breaker_opened_it_says_so(self, api, connect, send):
        connect("pagerduty")
        [incident_id] = send()["incidents"]
        PlatformPause.objects.create(platform="pagerduty", until=lease(60), reason="500 oh", failures=6)
        assert "waits: PagerDuty fails again and again and is left alone until " in ticket(api, incident_id)["message"]

    def test_not_on_tickets_that_wait_for_somebody_else(self, api, connect, send, work):
        connect("pagerduty", "slack")
        [incident_id] = send()["incidents"]
        work()
        PlatformPause.objects.create(platform="pagerduty", until=lease(30), reason="429", asked=True)
        told = {one["message"] for one in api.get(f"/api/incidents/{incident_id}").json()["tickets"]}
        assert told == {"in sync"}

    def test_at_ready_at_once(self, api, throttled, later):
        for name in ("beat", "sweep:one:1"):
            beat(name)
        Ticket.objects.filter(incident=later).update(failing_since=None)
        answer = api.get("/ready")
        assert answer.status_code == 200
        [line] = answer.json()["late"]
        assert line.startswith("PagerDuty: 2 tickets are behind since ")
        assert "PagerDuty asked us to wait until " in line

    def test_in_the_metrics_while_it_is_in_force(self, api, throttled):
        sample = 'ticketing_platform_paused{platform="pagerduty"} '
        assert f"{sample}1" in api.get("/metrics").content.decode()
        patch_platforms({"pagerduty": {"enabled": False}}, actor="system")
        assert f"{sample}0" in api.get("/metrics").content.decode()

    def test_and_is_read_once_for_all_tickets(self, settled, api, send, throttled):
        def cost() -> int:
            api.get("/api/v1/tickets")  # whatever is kept for a moment is read
            with CaptureQueriesContext(connection) as captured:
                assert api.get("/api/v1/tickets").json()
            return len(captured)

        few = cost()
        send(*({"service": f"t-{n}"} for n in range(20)))
        assert cost() == few


class TestItEnds:
    @pytest.mark.parametrize("body", ["ids", "incidentId", "platform"])
    def test_when_somebody_sends_again(self, api, throttled, later, work, body):
        failing = Ticket.objects.exclude(incident=later).get()
        named = {"ids": [ticket(api, later)["id"]], "incidentId": later, "platform": "pagerduty"}[body]
        answer = api.post(RETRY, {body: named}, format="json").json()
        assert answer["retried"] == 1
        assert not answer["tickets"][0]["message"].startswith("waits")
        failing.refresh_from_db()
        assert failing.failing_since is not None, "since when it fails stays known"
        work()
        assert throttled.pagerduty.pages == 2

    def test_where_nothing_failed_yet_and_it_is_audited(self, connect, send, work):
        standins = connect("pagerduty")
        send()
        PlatformPause.objects.create(platform="pagerduty", until=lease(50), reason="429", asked=True)
        work()
        assert standins.pagerduty.pages == 0
        assert lifecycle.retry_platform("pagerduty", actor="user:anna") == lifecycle.SentAgain([], pause_ended=True)
        [entry] = Entry.objects.about("platform:pagerduty")
        assert (entry.action, entry.actor) == ("pause ended", "user:anna")
        work()
        assert standins.pagerduty.pages == 1

    @pytest.mark.parametrize(
        "changes", [[{"enabled": False}, {"enabled": True}], [{"webhookSecret": "another-secret"}]]
    )
    def test_with_a_change_of_the_platforms_settings(self, throttled, later, work, changes):
        work()
        assert throttled.pagerduty.pages == 0
        for change in changes:
            patch_platforms({"pagerduty": change}, actor="system")
        work()
        assert throttled.pagerduty.pages == 2

    def test_and_the_new_settings_are_told_their_own(self, throttled, later, work):
        throttled.pagerduty.fault("status", times=1, code=429, headers={"Retry-After": "40"})
        patch_platforms({"pagerduty": {"webhookSecret": "another-secret"}}, actor="system")
        began = timezone.now()
        work()
        assert rests_for("pagerduty", 40, began)
        work()
        assert throttled.pagerduty.pages == 0

    def test_though_a_ticket_that_failed_for_long_is_not_given_up_by_it(self, connect, api, send, work):
        """Who sends it again asks for it anew: one more failure is not the end."""
        standins = connect("pagerduty")
        [incident_id] = send()["incidents"]
        work()
        standins.pagerduty.fault("status", times=1, code=500)
        long_ago = timezone.now() - timedelta(days=2)
        api.post(f"/api/incidents/{incident_id}/acknowledge")
        Ticket.objects.update(failing_since=long_ago, created_at=long_ago)
        api.post(RETRY, {"incidentId": incident_id}, format="json")
        work()
        assert ticket(api, incident_id)["state"] == "retrying"
        assert Ticket.objects.get().failing_since == long_ago
