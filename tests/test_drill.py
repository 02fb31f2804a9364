"""A fire drill goes the whole way to every enabled platform, is resolved by itself, and is in nobody's numbers."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from django.utils import timezone

from auditlog.models import Entry
from config.changes import patch_platforms
from incidents import drill
from incidents.delivery import lanes
from incidents.models import Incident, Pulse, Ticket
from platforms.catalog import PLATFORMS
from tests.waiting import stop, until

DRILL = "/api/v1/drill"
CONFIRM = "/admin/incidents/incident/drill/"
LIST = "/admin/incidents/incident/"


def begin(api, *, expect: int = 200) -> dict:
    answer = api.post(DRILL)
    assert answer.status_code == expect, answer.content
    return answer.json()


def proven(api) -> dict[str, str | None]:
    return {one["platform"]: one["lastProvenAt"] for one in api.get(DRILL).json()["platforms"]}


class TestTheWholeWay:
    def test_to_each_enabled_platform_whatever_the_routing_and_back(self, api, connect, work):
        standins = connect()
        routing = {severity: [] for severity in ("critical", "high", "medium", "low")}
        api.patch("/api/v1/config/routing", routing, format="json")
        begun = begin(api)
        assert begun["platforms"] == list(PLATFORMS)
        assert set(proven(api).values()) == {None}
        drill.end_due()
        assert Incident.objects.get().status == "open"
        work()
        [alert] = standins.pagerduty.alerts.values()
        assert alert[0].summary.startswith("[Drill]")
        assert alert[0].state == "triggered"
        drill.end_due()
        incident = Incident.objects.get(pk=begun["incidentId"])
        assert (incident.status, incident.resolved_by, incident.drill) == ("resolved", "system", True)
        work()
        assert alert[0].state == "resolved"
        assert [issue.category for issue in standins.jira.issues.values()] == ["done"]
        assert [record["state"] for record in standins.servicenow.records.values()] == ["6"]
        assert all(one.status == "closed" for [one] in standins.opsgenie.alerts.values())
        assert all("[Drill]" in message.text for message in standins.slack.messages[:1])
        assert None not in proven(api).values()
        assert [(e.action, e.actor) for e in Entry.objects.about(incident.subject)] == [
            ("created", "key:admin-tests"),
            ("resolved", "system"),
        ]

    def test_asks_no_model(self, api, connect, work):
        standins = connect("slack", "llm")
        begin(api)
        work()
        assert not standins.llm.requests
        assert Incident.objects.get().model_due_at is None

    def test_a_platform_that_fails_is_not_proven_and_the_drill_ends_all_the_same(self, api, connect, work):
        standins = connect("pagerduty", "slack")
        standins.slack.fault("status", times=None, code=500)
        begin(api)
        work()
        drill.end_due()
        assert Incident.objects.get().status == "open"
        Incident.objects.update(created_at=F("created_at") - drill.LONGEST)
        drill.end_due()
        assert Incident.objects.get().status == "resolved"
        assert Entry.objects.get(action="resolved").data["note"].startswith(f"{drill.NOT_PROVEN} Slack: 500")
        told = proven(api)
        assert told["pagerduty"]
        assert told["slack"] is None

    def test_a_real_ticket_proves_a_platform_too(self, api, connect, send, work):
        connect("slack")
        send()
        work()
        assert proven(api)["slack"]
        scrape = api.get("/metrics").content.decode()
        assert 'ticketing_platform_proven_seconds{platform="jira"} +Inf' in scrape
        assert 'ticketing_platform_proven_seconds{platform="slack"} +Inf' not in scrape


@pytest.mark.django_db(transaction=True)
def test_a_worker_sees_it_through_by_itself_and_looks_at_what_tickets_show(connect, api, monkeypatch):
    monkeypatch.setattr(lanes, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(lanes, "PULSE_SECONDS", 0.1)
    standins = connect("pagerduty", "jira")
    begun = begin(api)["incidentId"]
    sweep = lanes.Sweep({"tickets"}, chores=[drill.end_due])
    try:
        until(lambda: Incident.objects.get(pk=begun).status == "resolved")
        until(lambda: not Ticket.objects.behind().exists())
        assert [issue.category for issue in standins.jira.issues.values()] == ["done"]
        Incident.objects.update(drill=False)  # else it is resolved again
        api.post(f"/api/incidents/{begun}/reopen")
        until(lambda: not Ticket.objects.behind().exists())
        hour = timedelta(hours=1)
        Ticket.objects.update(shown_at=F("shown_at") - hour)
        Pulse.objects.filter(name="look:jira").update(at=F("at") - hour)
        until(lambda: Ticket.objects.get(platform="jira").seen_status == "To Do")
    finally:
        stop(sweep)


class TestBeginning:
    def test_needs_a_platform(self, api):
        assert "No platform is enabled" in begin(api, expect=409)["message"]
        assert not Incident.objects.exists()

    def test_one_at_a_time(self, api, connect, work):
        connect("slack")
        first = begin(api)["incidentId"]
        assert first in begin(api, expect=409)["message"]
        work()
        drill.end_due()
        assert begin(api)["incidentId"] != first

    @pytest.mark.django_db(transaction=True)
    def test_one_where_two_begin_at_once(self, connect):
        connect("slack")

        def one(_: int) -> bool:
            try:
                return bool(drill.begin(actor="user:anna"))
            except drill.Refused:
                return False
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(one, range(4))) == 1
        assert Incident.objects.filter(drill=True).count() == 1

    def test_by_the_command(self, connect):
        connect("slack")
        out = StringIO()
        call_command("drill", stdout=out)
        assert out.getvalue() == f"{Incident.objects.get().pk} goes to slack.\n"
        with pytest.raises(CommandError, match="under way"):
            call_command("drill")

    def test_by_the_clock_only_where_it_is_asked_for(self, connect, settings, work):
        connect("slack")
        assert settings.DRILL_SCHEDULE_HOURS == 0
        assert drill.begin_if_due() is None
        settings.DRILL_SCHEDULE_HOURS = 24
        first = drill.begin_if_due()
        assert first
        work()
        drill.end_due()
        assert drill.begin_if_due() is None
        Incident.objects.update(created_at=timezone.now() - timedelta(hours=24))
        assert drill.begin_if_due()

    def test_the_clock_waits_for_a_platform(self, db, settings):
        settings.DRILL_SCHEDULE_HOURS = 1
        assert drill.begin_if_due() is None


class TestRealFaults:
    def test_a_service_of_the_same_name_opens_its_own(self, api, connect, send):
        connect("slack")
        begun = begin(api)["incidentId"]
        [real] = send({"service": drill.SERVICE, "severity": drill.SEVERITY})["incidents"]
        assert real != begun
        assert not Incident.objects.get(pk=real).drill

    def test_are_counted_without_it(self, api, connect, send, admin_client):
        connect("slack")
        begun = begin(api)["incidentId"]
        [real] = send()["incidents"]
        scrape = api.get("/metrics").content.decode()
        assert 'ticketing_incidents_active{severity="critical",status="open"} 1' in scrape
        assert 'ticketing_root_causes_last_hour{source="rules"} 1' in scrape
        active = admin_client.get(LIST).content.decode()
        assert f'data-id="{real}"' in active
        assert f'data-id="{begun}"' not in active
        assert "<b>1</b> Open" in admin_client.get("/admin/").content.decode()
        assert f'data-id="{begun}"' in admin_client.get(f"{LIST}?view=all").content.decode()
        assert [one["id"] for one in api.get("/api/incidents?limit=9").json() if one["drill"]] == [begun]


class TestTheConsole:
    def test_asks_first_and_names_who_is_woken(self, connect, admin_client, work):
        connect("pagerduty", "jira")
        page = admin_client.get(CONFIRM).content.decode()
        assert "PagerDuty: whoever is on call there is woken." in page
        assert "Jira: a ticket or message is made and resolved." in page
        assert admin_client.post(CONFIRM).status_code == 200
        assert not Incident.objects.exists()
        answer = admin_client.post(CONFIRM, {"confirmed": "1"})
        incident = Incident.objects.get()
        assert answer.headers["Location"] == f"{LIST}{incident.pk}/"
        assert Entry.objects.get(action="created").actor == "user:admin"
        work()
        overview = admin_client.get("/admin/").content.decode()
        assert incident.pk in overview
        assert re.search(r">\d+s</time> ago", overview)

    def test_says_where_there_is_nothing_to_prove(self, db, admin_client):
        assert "No platform is enabled" in admin_client.get(CONFIRM).content.decode()
        assert "No platform is enabled" in admin_client.post(CONFIRM, {"confirmed": "1"}, follow=True).content.decode()

    def test_a_disabled_platform_is_left_out(self, api, connect):
        connect("slack", "jira")
        patch_platforms({"jira": {"enabled": False}}, actor="system")
        assert begin(api)["platforms"] == ["slack"]
        assert set(Ticket.objects.values_list("platform", flat=True)) == {"slack"}
