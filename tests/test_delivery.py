"""Tickets end up showing what the incident is: over real sockets, at stand-ins that misbehave on demand."""

import pytest

from incidents.delivery import notices
from incidents.delivery.attempts import attempt_next
from incidents.models import Ticket

pytestmark = pytest.mark.django_db


def states(api, incident_id: str) -> dict[str, str]:
    tickets = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
    return {ticket["platform"]: ticket["state"] for ticket in tickets}


def in_sync(api, incident_id: str) -> bool:
    return set(states(api, incident_id).values()) == {"in sync"}


def move(api, incident_id: str, name: str) -> None:
    response = api.post(f"/api/incidents/{incident_id}/{name}")
    assert response.status_code == 200, response.content


@pytest.fixture
def incident_id(everywhere, send, work) -> str:
    [incident_id] = send()["incidents"]
    work()
    return incident_id


class TestOneIncidentAtEveryPlatform:
    def test_opens_one_ticket_each(self, everywhere, api, incident_id):
        assert in_sync(api, incident_id)
        assert everywhere.pagerduty.pages == 1
        assert everywhere.opsgenie.pages == 1
        assert len(everywhere.jira.issues) == 1
        assert len(everywhere.servicenow.records) == 1
        assert len(everywhere.slack.messages) == 1

    def test_follows_every_move(self, everywhere, api, incident_id, work):
        for name in ("acknowledge", "escalate", "acknowledge", "resolve", "reopen", "resolve"):
            move(api, incident_id, name)
            work()
            assert in_sync(api, incident_id), name
        assert len(everywhere.jira.issues) == 1
        assert len(everywhere.servicenow.records) == 1
        assert everywhere.pagerduty.pages == 2  # it was opened twice
        assert everywhere.opsgenie.pages == 2

    def test_moves_in_quick_succession_coalesce(self, everywhere, api, incident_id, work):
        for name in ("acknowledge", "escalate", "resolve", "reopen", "acknowledge", "resolve"):
            move(api, incident_id, name)
        before = len(everywhere.slack.messages)
        work()
        assert in_sync(api, incident_id)
        assert len(everywhere.slack.messages) == before + 1
        assert everywhere.pagerduty.pages == 1

    def test_a_join_touches_no_ticket(self, everywhere, api, send, incident_id, work):
        before = [standin.counts for standin in everywhere]
        send({}, {})
        work()
        assert [standin.counts for standin in everywhere] == before


class TestResolvedBeforeAnybodyWasTold:
    def test_nobody_is_woken_and_the_record_is_kept(self, everywhere, api, send, work):
        [incident_id] = send()["incidents"]
        move(api, incident_id, "resolve")
        work()
        assert everywhere.pagerduty.pages == everywhere.opsgenie.pages == 0
        assert not everywhere.slack.messages
        assert len(everywhere.jira.issues) == len(everywhere.servicenow.records) == 1
        assert states(api, incident_id) == {
            "pagerduty": "not needed",
            "opsgenie": "not needed",
            "slack": "not needed",
            "jira": "in sync",
            "servicenow": "in sync",
        }


class TestAnUnknownOutcome:
    """The platform did the work, and its answer was lost."""

    @pytest.mark.parametrize("name", ["pagerduty", "opsgenie", "jira", "servicenow"])
    def test_doubles_nothing(self, connect, api, send, work, name):
        standins = connect(name)
        api.patch("/api/v1/config/routing", {"critical": [name]}, format="json")
        standins[name].fault("lost", times=1, method="POST")
        [incident_id] = send()["incidents"]
        work(later=True)
        assert in_sync(api, incident_id)
        assert {
            "pagerduty": lambda: standins.pagerduty.pages,
            "opsgenie": lambda: standins.opsgenie.pages,
            "jira": lambda: len(standins.jira.issues),
            "servicenow": lambda: len(standins.servicenow.records),
        }[name]() == 1

    def test_slack_may_repeat_once_and_says_so(self, connect, api, send, work):
        standins = connect("slack")
        standins.slack.fault("lost", times=1)
        [incident_id] = send()["incidents"]
        work(later=True)
        [ticket] = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
        assert (ticket["state"], ticket["mayBeDoubled"], len(standins.slack.messages)) == ("in sync", True, 2)

    def test_slack_repeats_no_second_time(self, connect, api, send, work):
        standins = connect("slack")
        standins.slack.fault("lost", times=5)
        [incident_id] = send()["incidents"]
        work(later=True)
        assert states(api, incident_id) == {"slack": "failed"}
        assert len(standins.slack.messages) == 2


class TestAPlatformThatFails:
    def test_a_permanent_error_parks_visibly_and_can_be_sent_again(self, connect, api, send, work):
        standins = connect("pagerduty")
        standins.pagerduty.fault("status", times=1, code=400, body="Invalid routing key")
        [incident_id] = send()["incidents"]
        work()
        [ticket] = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
        assert ticket["state"] == "failed"
        assert "Invalid routing key" in ticket["lastError"]
        response = api.post("/api/v1/tickets/retry", {"ids": [ticket["id"]]}, format="json")
        assert response.json()["retried"] == 1
        work()
        assert in_sync(api, incident_id)

    def test_a_429_pauses_the_platform_and_costs_no_attempt(self, connect, api, send, work):
        standins = connect("pagerduty", "slack")
        standins.slack.fault("status", times=1, code=429, headers={"Retry-After": "30"})
        [incident_id] = send()["incidents"]
        work()
        assert states(api, incident_id) == {"pagerduty": "in sync", "slack": "retrying"}
        assert Ticket.objects.get(platform="slack").attempts == 0
        send({"service": "other"})
        work()
        assert len(standins.slack.messages) == 0
        work(later=True)
        assert len(standins.slack.messages) == 2

    def test_disabling_pauses_and_enabling_goes_on(self, connect, api, send, work):
        standins = connect("slack")
        standins.slack.fault("status", times=1, code=500)
        [incident_id] = send()["incidents"]
        work()
        api.patch("/api/v1/config/platforms", {"slack": {"enabled": False}}, format="json")
        work(later=True)
        assert states(api, incident_id) == {"slack": "paused"}
        api.patch("/api/v1/config/platforms", {"slack": {"enabled": True}}, format="json")
        work(later=True)
        assert in_sync(api, incident_id)
        assert len(standins.slack.messages) == 2 or Ticket.objects.get().may_be_doubled


class TestReopenedFromAcknowledged:
    """PagerDuty takes a trigger for the alert that is there, acknowledged too, and tells nobody."""

    @pytest.fixture
    def acknowledged(self, connect, api, send, work):
        standins = connect("pagerduty")
        [incident_id] = send()["incidents"]
        work()
        move(api, incident_id, "acknowledge")
        work()
        return standins.pagerduty, incident_id

    def alerts(self, pagerduty) -> list:
        [alerts] = pagerduty.alerts.values()
        return alerts

    def test_people_are_paged_anew(self, acknowledged, api, work):
        pagerduty, incident_id = acknowledged
        for pages in (2, 3):
            move(api, incident_id, "reopen")
            work()
            assert (pagerduty.pages, self.alerts(pagerduty)[-1].state) == (pages, "triggered")
            assert in_sync(api, incident_id)
            move(api, incident_id, "acknowledge")
            work()
            assert self.alerts(pagerduty)[-1].state == "acknowledged"

    @pytest.mark.parametrize("before", [0, 1])
    def test_once_whatever_is_unknown(self, acknowledged, api, work, before):
        """Of the resolve, or of the trigger that follows it."""
        pagerduty, incident_id = acknowledged
        move(api, incident_id, "reopen")
        for _ in range(before):
            assert attempt_next("pagerduty")
        pagerduty.fault("lost", times=3)
        work(later=True)
        assert (pagerduty.pages, self.alerts(pagerduty)[-1].state) == (2, "triggered")
        assert in_sync(api, incident_id)

    def test_in_two_attempts_of_which_each_sends_one_event(self, acknowledged, api):
        pagerduty, incident_id = acknowledged
        move(api, incident_id, "reopen")
        assert attempt_next("pagerduty")
        assert (pagerduty.pages, self.alerts(pagerduty)[-1].state) == (1, "resolved")
        assert states(api, incident_id) == {"pagerduty": "pending"}
        assert Ticket.objects.get().shown["status"] == "resolved"
        assert attempt_next("pagerduty")
        assert pagerduty.pages == 2
        assert in_sync(api, incident_id)

    def test_nobody_is_where_it_was_resolved_or_acknowledged_in_between(self, acknowledged, api, work):
        pagerduty, incident_id = acknowledged
        for name, state in (("acknowledge", "acknowledged"), ("resolve", "resolved")):
            move(api, incident_id, "reopen")
            move(api, incident_id, name)
            work()
            assert (pagerduty.pages, self.alerts(pagerduty)[-1].state) == (1, state)
        assert in_sync(api, incident_id)

    def test_escalating_does_not_page_again(self, acknowledged, api, work):
        pagerduty, incident_id = acknowledged
        move(api, incident_id, "escalate")
        work()
        assert (pagerduty.pages, self.alerts(pagerduty)[-1].severity) == (1, "critical")
        assert in_sync(api, incident_id)


class TestWhoReopenedIt:
    def test_is_told_whoever_it_was(self, connect, api, send, work):
        standins = connect("slack")
        [incident_id] = send()["incidents"]
        work()
        for expected, reopen in (
            ("key:admin-tests", lambda: move(api, incident_id, "reopen")),
            ("key:admin-tests (new anomaly)", send),
        ):
            move(api, incident_id, "resolve")
            work()
            reopen()
            work()
            assert api.get(f"/api/incidents/{incident_id}").json()["reopenedBy"] == expected
            assert f"Reopened by {expected}." in str(standins.slack.messages[-1])


class TestANote:
    def test_goes_with_its_own_move(self, connect, api, send, work, monkeypatch):
        """A resolve that comes while an acknowledge is told: its note is not told with the acknowledge."""
        standins = connect("slack")
        [incident_id] = send()["incidents"]
        work()
        move(api, incident_id, "acknowledge")
        build = notices.wanted

        def overtaken(ticket, shown):
            monkeypatch.undo()
            response = api.post(f"/api/incidents/{incident_id}/resolve", {"note": "Rolled back."}, format="json")
            assert response.status_code == 200
            return build(ticket, shown)

        monkeypatch.setattr(notices, "wanted", overtaken)
        work()
        _, acknowledged, resolved = [str(message.blocks) for message in standins.slack.messages]
        assert "Rolled back." not in acknowledged
        assert "Rolled back." in resolved
