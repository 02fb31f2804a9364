"""What is behind can be listed and read at /ready, and all that failed at a platform is sent again at once."""

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from auditlog.models import Entry
from config.changes import patch_platforms
from incidents import lifecycle
from incidents.delivery.lanes import beat
from incidents.models import Incident, Ticket

RETRY = "/api/v1/tickets/retry"
LIST = "/admin/incidents/incident/"


@pytest.fixture
def refused(connect, send, work):
    """Three incidents whose tickets Jira refused for good, and one that Slack shows."""
    standins = connect("jira", "slack")
    standins.jira.fault("status", times=None, code=400, body='{"errorMessages": ["no such project"], "errors": {}}')
    send(*({"service": f"s-{n}"} for n in range(3)))
    work(later=True)
    assert Ticket.objects.filter(platform="jira", parked_at__isnull=False).count() == 3
    return standins


def again(api, body: dict, *, expect: int = 200) -> dict:
    answer = api.post(RETRY, body, format="json")
    assert answer.status_code == expect, answer.content
    return answer.json()


class TestAllThatFailedAtAPlatform:
    def test_is_sent_again_after_its_settings_were_mended(self, api, refused, work):
        refused.jira.clear_faults()
        told = again(api, {"platform": "jira"})
        assert told["retried"] == 3
        assert {(t["platform"], t["state"], t["lastError"] is None) for t in told["tickets"]} == {
            ("jira", "retrying", False)
        }
        work()
        assert len(refused.jira.issues) == 3
        assert not Ticket.objects.behind().exists()
        assert again(api, {"platform": "jira"}) == {"retried": 0, "tickets": []}

    def test_leaves_a_trace_for_the_platform_and_for_each_ticket(self, api, refused):
        again(api, {"platform": "jira"})
        [entry] = Entry.objects.about("platform:jira")
        assert (entry.action, entry.actor, entry.details) == (
            "sent again",
            "key:admin-tests",
            "Jira: 3 failed tickets to be sent again",
        )
        assert Entry.objects.filter(subject__startswith="ticket:", action="sent again").count() == 3

    def test_where_nothing_failed_leaves_none(self, api, refused):
        assert again(api, {"platform": "slack"})["retried"] == 0
        assert not Entry.objects.filter(action="sent again").exists()

    def test_costs_the_same_however_many_there_are(self, settled, api, refused, send, work):
        def cost() -> int:
            with CaptureQueriesContext(connection) as captured:
                lifecycle.retry_platform("jira", actor="user:anna")
            return len(captured)

        few = cost()
        send(*({"service": f"t-{n}"} for n in range(30)))
        work(later=True)
        assert Ticket.objects.filter(platform="jira", parked_at__isnull=False).count() == 33
        assert cost() == few

    def test_takes_what_is_tried_again_by_itself_and_leaves_what_merely_waits(self, api, connect, send, work):
        connect("slack").slack.fault("status", times=1, code=500)
        send({"service": "a"})
        work()
        send({"service": "b"})
        assert again(api, {"platform": "slack"})["retried"] == 1
        assert Ticket.objects.filter(due_at__lte=Now(), attempts=0).count() == 2

    def test_is_a_request_like_any_other(self, api, db):
        for body in ({"platform": "x"}, {"platform": 1}, {"platform": None}, {"platform": "jira", "ids": [1]}):
            again(api, body, expect=400)

    def test_by_a_button_of_the_overview(self, refused, admin_client, work):
        assert "Send 3 again" in admin_client.get("/admin/").content.decode()
        refused.jira.clear_faults()
        answer = admin_client.post(f"{LIST}retry/jira/", follow=True)
        assert "3 Jira tickets are sent again now." in answer.content.decode()
        work()
        assert len(refused.jira.issues) == 3
        assert "No Jira ticket has failed" in admin_client.post(f"{LIST}retry/jira/", follow=True).content.decode()
        assert admin_client.post(f"{LIST}retry/x/").status_code == 404

    def test_by_a_button_where_the_platform_is_configured_or_its_undelivered_are_listed(
        self, refused, admin_client, work
    ):
        assert "Send 3 failed again" in admin_client.get("/admin/config/").content.decode()
        button = "Send all that failed at Jira again"
        assert button in admin_client.get(f"{LIST}?view=undelivered&platform=jira").content.decode()
        assert button not in admin_client.get(f"{LIST}?view=undelivered").content.decode()
        refused.jira.clear_faults()
        admin_client.post(f"{LIST}retry/jira/")
        work()
        assert "failed again" not in admin_client.get("/admin/config/").content.decode()


class TestTheList:
    def test_tells_what_is_behind_since_when_and_why(self, api, refused):
        listed = api.get("/api/v1/tickets").json()
        assert [(t["platform"], t["state"]) for t in listed] == [("jira", "failed")] * 3
        assert sorted(t["incidentId"] for t in listed) == sorted(Incident.objects.values_list("pk", flat=True))
        assert all("no such project" in t["lastError"] and t["failingSince"] for t in listed)

    def test_by_state_and_platform(self, api, connect, send, work):
        connect("jira", "slack", "pagerduty").slack.fault("status", times=None, code=500)
        send()
        work()
        patch_platforms({"jira": {"enabled": False}}, actor="system")
        Ticket.objects.filter(platform="jira").update(shown_version=0, due_at=Now())
        send({"service": "another"})

        def listed(query: str) -> list[tuple[str, str]]:
            return sorted((t["platform"], t["state"]) for t in api.get(f"/api/v1/tickets?{query}").json())

        assert listed("state=retrying") == [("slack", "retrying")]
        assert listed("state=pending") == [("pagerduty", "pending"), ("slack", "pending")]
        assert listed("state=paused") == [("jira", "paused")]
        assert listed("state=failed") == listed("state=differing") == []
        assert len(listed("")) == len(listed("state=behind")) == 4
        assert listed("platform=pagerduty") == [("pagerduty", "pending")]
        assert len(listed("limit=1")) == 1

    @pytest.mark.parametrize("query", ["state=x", "platform=x", "limit=0", "limit=1001", "limit=x", "page=2"])
    def test_refuses_what_it_does_not_know(self, api, query):
        assert api.get(f"/api/v1/tickets?{query}").status_code == 400

    def test_costs_the_same_however_many_there_are(self, settled, api, refused, send):
        def cost() -> int:
            api.get("/api/v1/tickets?state=behind")  # whatever is kept for a moment is read
            with CaptureQueriesContext(connection) as captured:
                api.get("/api/v1/tickets?state=behind")
            return len(captured)

        few = cost()
        send(*({"service": f"t-{n}"} for n in range(30)))
        assert cost() == few


class TestReady:
    def test_names_what_is_late_to_who_may_read_it_and_stays_ready(self, api, client, client_of, refused):
        for name in ("beat", "sweep:one:1"):
            beat(name)
        answer = api.get("/ready")
        assert answer.status_code == 200
        [line] = answer.json()["late"]
        assert line.startswith("Jira: 3 tickets are behind since 20")
        assert "no such project" in line
        assert "late" not in client_of("producer").get("/ready").json()
        assert "late" not in client.get("/ready", headers={"X-Forwarded-For": "10.0.0.1"}).json()

    def test_is_silent_where_nothing_is(self, api, connect, send, work):
        connect("slack")
        send()
        work()
        assert api.get("/ready").json()["late"] == []


def test_the_oldest_due_ticket_is_told(api, connect, send):
    connect("slack")
    send()
    Ticket.objects.update(due_at=Now())
    name = 'ticketing_tickets_due_oldest_seconds{platform="slack"} '
    [line] = [line for line in api.get("/metrics").content.decode().splitlines() if line.startswith(name)]
    assert 0 <= float(line.removeprefix(name)) < 60
