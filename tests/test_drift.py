"""What a ticket really shows is looked at now and then; a difference is shown, counted, and left to a person."""

from datetime import timedelta

import pytest
from django.db.models import F
from django.utils import timezone

from config.changes import patch_platforms
from incidents import lifecycle
from incidents.delivery import looks
from incidents.models import Incident, PlatformPause, Pulse, Ticket
from platforms.catalog import PLATFORMS
from platforms.contract import Seen

READABLE = ("jira", "servicenow", "opsgenie")
LIST = "/admin/incidents/incident/"


@pytest.fixture
def look(db):
    """As if all waiting between looks were over."""

    def run() -> bool:
        hour = timedelta(hours=1)
        Pulse.objects.filter(name__startswith="look:").update(at=F("at") - hour)
        Ticket.objects.update(shown_at=F("shown_at") - hour, looked_at=F("looked_at") - hour)
        return looks.look_next()

    looks.look_next()  # makes the rows that give turns
    return run


@pytest.fixture
def incident_id(everywhere, send, work) -> str:
    [incident_id] = send()["incidents"]
    work()
    return incident_id


def requests(standins) -> int:
    return sum(len(standins[name].seen) for name in PLATFORMS)


def differences(api, incident_id: str) -> dict[str, str]:
    tickets = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
    return {ticket["platform"]: ticket["difference"] for ticket in tickets if ticket["difference"]}


def resolved_elsewhere(standins) -> None:
    """Somebody resolves all three there."""
    standins.jira.move(next(iter(standins.jira.issues)), "Done")
    next(iter(standins.servicenow.records.values()))["state"] = "6"
    next(iter(standins.opsgenie.alerts.values()))[0].status = "closed"


class TestWhatIsSeen:
    def test_of_a_ticket_as_it_should_be_is_no_difference(self, api, everywhere, incident_id, look):
        assert look()
        assert differences(api, incident_id) == {}
        tickets = {t["platform"]: t for t in api.get(f"/api/incidents/{incident_id}").json()["tickets"]}
        seen = {name: tickets[name]["seenStatus"] for name in tickets}
        assert seen == {"pagerduty": None, "jira": "To Do", "servicenow": "New", "opsgenie": "open", "slack": None}
        assert all(tickets[name]["seenAt"] for name in READABLE)

    def test_is_told_where_it_is_something_else_and_nothing_is_changed(self, api, everywhere, incident_id, look):
        resolved_elsewhere(everywhere)
        columns = ("wanted_version", "shown_version", "shown", "due_at")
        before = list(Ticket.objects.order_by("pk").values(*columns))
        effects = {name: dict(everywhere[name].counts) for name in READABLE}
        look()
        assert differences(api, incident_id) == {
            "jira": "Jira says Done, the incident is open",
            "servicenow": "ServiceNow says Resolved, the incident is open",
            "opsgenie": "OpsGenie says closed, the incident is open",
        }
        assert list(Ticket.objects.order_by("pk").values(*columns)) == before
        assert {name: dict(everywhere[name].counts) for name in READABLE} == effects
        assert Incident.objects.get().status == "open"

    @pytest.mark.parametrize(
        ("moves", "open_fits", "acknowledged_fits"),
        [
            ((), True, False),
            (("acknowledge",), False, True),
            (("escalate",), True, True),
            (("acknowledge", "escalate"), True, True),
            (("acknowledge", "reopen"), True, True),
        ],
    )
    def test_fits_as_the_incidents_state_says(self, connect, send, moves, open_fits, acknowledged_fits):
        connect("jira")
        [incident_id] = send()["incidents"]
        for move in moves:
            lifecycle.move(move, [incident_id], actor="user:anna")
        ticket = Ticket.objects.get()
        assert looks._fits(ticket, "open") == open_fits
        assert looks._fits(ticket, "acknowledged") == acknowledged_fits
        assert not looks._fits(ticket, "resolved")
        assert not looks._fits(ticket, "gone")

    def test_a_reopened_incident_is_as_the_platforms_show_it(self, api, everywhere, incident_id, work, look):
        for move in ("resolve", "reopen"):
            api.post(f"/api/incidents/{incident_id}/{move}")
            work()
        look()
        assert differences(api, incident_id) == {}

    def test_an_escalated_and_then_acknowledged_one_too(self, api, everywhere, incident_id, work, look):
        for move in ("escalate", "acknowledge"):
            api.post(f"/api/incidents/{incident_id}/{move}")
            work()
            look()
            assert differences(api, incident_id) == {}

    def test_a_record_that_is_gone(self, api, everywhere, incident_id, look):
        everywhere.jira.remove(next(iter(everywhere.jira.issues)))
        everywhere.servicenow.remove(next(iter(everywhere.servicenow.records)))
        everywhere.opsgenie.alerts.clear()
        look()
        for name in READABLE:
            label = PLATFORMS[name].label
            assert differences(api, incident_id)[name] == f"{label} says Not found, the incident is open"

    def test_a_wrong_token_is_no_lost_record(self, api, everywhere, incident_id, look):
        patch_platforms({"jira": {"apiToken": "wrong"}, "servicenow": {"password": "wrong"}}, actor="system")
        look()
        assert differences(api, incident_id) == {}
        assert set(Ticket.objects.filter(seen_at__isnull=False).values_list("platform", flat=True)) == {"opsgenie"}

    def test_a_hostile_status_is_text(self, api, everywhere, incident_id, look, admin_client):
        everywhere.jira.fault(
            "status",
            times=None,
            method="GET",
            code=200,
            body='{"fields": {"status": {"name": "<script>\\n' + "x" * 300 + '", "statusCategory": {"key": "done"}}}}',
        )
        look()
        said = differences(api, incident_id)["jira"]
        assert "\n" not in said
        assert len(said) < 200
        page = admin_client.get(f"{LIST}{incident_id}/").content.decode()
        assert "&lt;script&gt;" in page
        assert "<script>\n" not in page


class TestItStaysOutOfTheWay:
    def test_a_few_looks_a_minute_however_many_tickets_and_processes_there_are(
        self, everywhere, send, work, look, monkeypatch
    ):
        monkeypatch.setattr(looks, "EVERY_SECONDS", 600.0)
        send(*({"service": f"s-{n}"} for n in range(5)))
        work()
        before = len(everywhere.jira.seen)
        assert look()
        assert not looks.look_next()  # another process, at once
        assert len(everywhere.jira.seen) == before + 1

    def test_the_longest_unseen_is_next(self, everywhere, send, work, look):
        send(*({"service": f"s-{n}"} for n in range(3)))
        work()
        for _ in range(3):
            look()
        assert Ticket.objects.filter(platform="jira", seen_at__isnull=False).count() == 3

    def test_not_what_was_shown_or_seen_just_now(self, everywhere, incident_id, look):
        Pulse.objects.filter(name__startswith="look:").update(at=F("at") - timedelta(hours=1))
        assert not looks.look_next()
        look()
        Pulse.objects.filter(name__startswith="look:").update(at=F("at") - timedelta(hours=1))
        assert not looks.look_next()

    def test_nothing_of_resolved_incidents(self, api, everywhere, incident_id, work, look):
        api.post(f"/api/incidents/{incident_id}/resolve")
        work()
        assert not look()

    def test_none_while_a_ticket_there_is_due(self, api, everywhere, incident_id, send, look):
        send({"service": "another"})
        before = requests(everywhere)
        assert not look()
        assert requests(everywhere) == before

    def test_none_while_the_platform_rests_or_fails_or_is_disabled(self, everywhere, incident_id, look):
        patch_platforms({"opsgenie": {"enabled": False}}, actor="system")
        PlatformPause.objects.create(platform="jira", until=timezone.now() + timedelta(minutes=1), reason="429")
        PlatformPause.objects.create(platform="servicenow", until=timezone.now(), reason="500", failures=1)
        assert not look()

    def test_trouble_gives_the_platform_a_rest_from_looks_and_pauses_no_delivery(
        self, everywhere, incident_id, send, work, look
    ):
        everywhere.jira.fault("status", times=None, method="GET", code=429, headers={"Retry-After": "600"})
        look()
        assert not PlatformPause.objects.filter(platform="jira", until__gt=timezone.now()).exists()
        assert Pulse.objects.get(name="look:jira").at > timezone.now() + timedelta(minutes=9)
        everywhere.jira.clear_faults()
        send({"service": "another"})
        work()
        assert len(everywhere.jira.issues) == 2

    def test_what_changed_meanwhile_is_not_noted(self, everywhere, incident_id):
        ticket = Ticket.objects.select_related("incident").get(platform="jira")
        lifecycle.move("acknowledge", [incident_id], actor="user:anna")
        assert not looks._note(ticket, Seen("Done", "resolved"))
        ticket.refresh_from_db()
        assert ticket.seen_at is None


class TestWhatAPersonDecides:
    @pytest.fixture
    def differing(self, everywhere, incident_id, look) -> str:
        resolved_elsewhere(everywhere)
        look()
        return incident_id

    def test_the_tickets_are_set_again(self, api, everywhere, differing, work, look):
        ids = list(Ticket.objects.differing().values_list("pk", flat=True))
        assert len(ids) == 3
        assert api.post("/api/v1/tickets/retry", {"ids": ids}, format="json").json()["retried"] == 3
        work()
        assert {issue.category for issue in everywhere.jira.issues.values()} == {"new"}
        assert {record["state"] for record in everywhere.servicenow.records.values()} == {"2"}
        [alerts] = everywhere.opsgenie.alerts.values()
        assert [alert.status for alert in alerts] == ["closed", "open"]
        assert differences(api, differing) == {}
        look()
        assert differences(api, differing) == {}

    def test_the_incident_is_moved(self, api, everywhere, differing, work):
        api.post(f"/api/incidents/{differing}/resolve")
        assert differences(api, differing) == {}
        work()
        assert not Ticket.objects.behind().exists()

    def test_it_was_moved_back_there(self, api, everywhere, differing, look):
        everywhere.jira.move(next(iter(everywhere.jira.issues)), "To Do")
        look()
        assert "jira" not in differences(api, differing)

    def test_a_lost_record_is_created_anew_from_the_page(self, everywhere, incident_id, look, work, admin_client):
        everywhere.jira.remove(next(iter(everywhere.jira.issues)))
        look()
        page = admin_client.get(f"{LIST}{incident_id}/").content.decode()
        assert "Jira says Not found, the incident is open" in page
        assert "Create anew" in page
        ticket = Ticket.objects.get(platform="jira")
        admin_client.post(f"{LIST}{incident_id}/tickets/{ticket.pk}/", {"anew": "1"})
        work()
        assert len(everywhere.jira.issues) == 1
        assert "Not found" not in admin_client.get(f"{LIST}{incident_id}/").content.decode()

    def test_the_page_the_list_and_the_metrics_tell(self, api, differing, admin_client):
        page = admin_client.get(f"{LIST}{differing}/").content.decode()
        assert "Jira says Done, the incident is open" in page
        assert "Set it again" in page
        assert "Jira ticket differs" in page
        assert "Jira says Done, the incident is open" in admin_client.get(LIST).content.decode()
        assert 'ticketing_tickets_differing{platform="jira"} 1' in api.get("/metrics").content.decode()
        listed = api.get("/api/v1/tickets?state=differing").json()
        assert sorted(ticket["platform"] for ticket in listed) == sorted(READABLE)
