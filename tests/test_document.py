"""The API document's examples, each by request and answer to the letter; then what the design decided beside them."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.utils import timezone

from auditlog.models import Entry
from config.changes import patch_routing
from config.current import DEFAULTS, current
from incidents import lifecycle
from incidents.models import Incident, Ticket
from platforms.catalog import PLATFORMS

pytestmark = pytest.mark.django_db

BEGINNING = datetime(2024, 3, 1, 15, 30, tzinfo=UTC)
PREFIXES = ["/api/incidents", "/api/v1/incidents", "/api/ticketing/api/incidents", "/api/ticketing/api/v1/incidents"]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
THREE = {
    "pagerduty": {"enabled": True, "routingKey": "your-pagerduty-routing-key"},
    "jira": {
        "enabled": True,
        "baseUrl": "https://org.atlassian.net",
        "apiToken": "a-token-of-jira",
        "userEmail": "anna@example.com",
    },
    "slack": {"enabled": True, "webhookUrl": "https://hooks.slack.com/services/T.../B.../..."},
}


@pytest.fixture
def clock():
    with time_machine.travel(BEGINNING, tick=False) as clock:
        yield clock


@pytest.fixture
def patch(api):
    def change(part: str, body: object, expect: int = 200) -> dict:
        response = api.patch(f"/api/v1/config/{part}", body, format="json")
        assert response.status_code == expect, response.content
        return response.json()

    return change


@pytest.fixture
def three(patch):
    """The document's three platforms, in the document's order."""
    patch("platforms", THREE)
    patch("routing", {"critical": ["pagerduty", "jira", "slack"]})


@pytest.fixture
def incident_id(clock, three, send) -> str:
    """The incident of the document's examples."""
    [incident_id] = send(
        {
            "title": "High error rate on payment-api",
            "affectedServices": ["payment-api", "order-engine", "notification-svc"],
            "traceId": "abcdef1234567890",
        }
    )["incidents"]
    return incident_id


def read(api, path: str, **how):
    """The answer, read to its end: a list without limit is streamed, and holds a cursor until then."""
    answer = api.get(path, **how)
    answer.getvalue()
    return answer


def listed(api, path: str = "/api/incidents", query: dict | None = None) -> list[dict]:
    answer = api.get(path, query)
    assert answer.status_code == 200, answer.getvalue()
    return json.loads(answer.getvalue())  # a whole list is streamed


def at(clock, minute: int, hour: int = 15) -> None:
    clock.move_to(BEGINNING.replace(hour=hour, minute=minute))


class TestIncidentsToTheLetter:
    @pytest.mark.parametrize("path", PREFIXES)
    def test_the_list(self, api, incident_id, path):
        documented = {
            "id": "inc-20240301-001",
            "title": "High error rate on payment-api",
            "severity": "critical",
            "status": "open",
            "service": "payment-api",
            "anomalyScore": 4.2,
            "affectedServices": ["payment-api", "order-engine", "notification-svc"],
            "traceId": "abcdef1234567890",
            "createdAt": "2024-03-01T15:30:00Z",
            "updatedAt": "2024-03-01T15:30:00Z",
            "platforms": ["pagerduty", "jira", "slack"],
        }
        [shown] = listed(api, path)
        assert {name: shown[name] for name in documented} == documented
        assert list(shown)[: len(documented)] == list(documented)

    @pytest.mark.parametrize("path", PREFIXES)
    def test_acknowledge_resolve_escalate(self, api, clock, incident_id, path):
        def move(name: str) -> dict:
            response = api.post(f"{path}/{incident_id}/{name}")
            assert response.status_code == 200
            return response.json()

        at(clock, 35)
        assert move("acknowledge") == {
            "id": "inc-20240301-001",
            "status": "acknowledged",
            "acknowledgedAt": "2024-03-01T15:35:00Z",
        }
        at(clock, 45)
        assert move("escalate") == {
            "id": "inc-20240301-001",
            "status": "escalated",
            "escalatedAt": "2024-03-01T15:45:00Z",
            "escalatedTo": ["pagerduty"],
        }
        at(clock, 0, hour=16)
        assert move("resolve") == {
            "id": "inc-20240301-001",
            "status": "resolved",
            "resolvedAt": "2024-03-01T16:00:00Z",
        }

    def test_the_audit_trail(self, api, clock, incident_id):
        at(clock, 35)
        api.post(f"/api/incidents/{incident_id}/acknowledge")
        at(clock, 45)
        api.post(f"/api/incidents/{incident_id}/escalate")
        at(clock, 0, hour=16)
        api.post(f"/api/incidents/{incident_id}/resolve")
        for path in ("/api/v1/audit", "/api/ticketing/api/v1/audit"):
            answer = api.get(path, {"incident_id": incident_id}).json()
            actors = [entry.pop("actor") for entry in answer["entries"]]
            assert actors == ["key:admin-tests"] * 4
            assert answer == {
                "incident_id": "inc-20240301-001",
                "entries": [
                    {
                        "action": "created",
                        "timestamp": "2024-03-01T15:30:00Z",
                        "details": "Incident created from anomaly detection",
                    },
                    {
                        "action": "acknowledged",
                        "timestamp": "2024-03-01T15:35:00Z",
                        "details": "Status changed from open to acknowledged",
                    },
                    {"action": "escalated", "timestamp": "2024-03-01T15:45:00Z", "details": "Escalated to pagerduty"},
                    {
                        "action": "resolved",
                        "timestamp": "2024-03-01T16:00:00Z",
                        "details": "Status changed to resolved",
                    },
                ],
            }

    @pytest.mark.parametrize("path", PREFIXES)
    def test_batch(self, api, clock, send, path):
        ids = send({"service": "a"}, {"service": "b"}, {"service": "c"})["incidents"]
        assert ids == ["inc-20240301-001", "inc-20240301-002", "inc-20240301-003"]
        answer = api.post(f"{path}/batch", {"ids": ids, "action": "acknowledge"}, format="json").json()
        assert answer.pop("failed") == []
        assert answer == {"updated": 3, "action": "acknowledge", "ids": ids}


class TestConfigurationToTheLetter:
    def test_the_whole(self, api, three, patch):
        patch("routing", DEFAULTS["routing"])
        for path in ("/api/v1/config", "/api/ticketing/api/v1/config"):
            shown = api.get(path).json()
            jira = shown["platforms"]["jira"]
            assert jira == {
                "enabled": True,
                "baseUrl": "https://org.atlassian.net",
                "apiToken": "****",
                "userEmail": "anna@example.com",
            }
            shown["platforms"]["jira"] = {"enabled": jira["enabled"], "baseUrl": jira["baseUrl"]}
            assert shown == {
                "platforms": {
                    "pagerduty": {"enabled": True, "routingKey": "****"},
                    "jira": {"enabled": True, "baseUrl": "https://org.atlassian.net"},
                    "servicenow": {"enabled": False},
                    "opsgenie": {"enabled": False},
                    "slack": {"enabled": True, "webhookUrl": "****"},
                },
                "routing": {
                    "critical": ["pagerduty", "slack", "jira"],
                    "high": ["jira", "slack"],
                    "medium": ["jira"],
                    "low": ["slack"],
                },
                "anomaly": {"minimumScore": 0.85, "lookbackWindow": "15m"},
                "llm": {"provider": "openai", "model": "gpt-4"},
            }

    def test_platforms(self, patch):
        body = {
            "pagerduty": {"enabled": True, "routingKey": "your-pagerduty-routing-key"},
            "slack": {"enabled": True, "webhookUrl": "https://hooks.slack.com/services/T.../B.../..."},
        }
        assert patch("platforms", body) == {"status": "ok", "updated": ["pagerduty", "slack"]}

    @pytest.mark.parametrize(
        ("platform", "required"),
        [
            ("pagerduty", ["routingKey"]),
            ("jira", ["baseUrl", "apiToken", "userEmail"]),
            ("servicenow", ["instanceUrl", "username", "password"]),
            ("opsgenie", ["apiKey"]),
            ("slack", ["webhookUrl"]),
        ],
    )
    def test_required_fields(self, patch, platform, required):
        answer = patch("platforms", {platform: {"enabled": True}}, expect=400)
        assert sorted(answer["errors"]) == sorted(f"{platform}.{name}" for name in required)

    def test_routing(self, patch):
        body = {
            "critical": ["pagerduty", "slack", "jira"],
            "high": ["jira", "slack"],
            "medium": ["jira"],
            "low": ["slack"],
        }
        assert patch("routing", body) == {"status": "ok", "routing": body}

    def test_anomaly(self, patch):
        body = {"minimumScore": 0.9, "lookbackWindow": "30m"}
        assert patch("anomaly", body) == {"status": "ok", "anomaly": body}
        assert patch("anomaly", {"lookbackWindow": "15m"})["anomaly"] == {"minimumScore": 0.9, "lookbackWindow": "15m"}

    def test_llm(self, patch):
        answer = patch("llm", {"provider": "openai", "model": "gpt-4", "apiKey": "sk-..."})
        assert answer == {"status": "ok", "llm": {"provider": "openai", "model": "gpt-4", "apiKey": "****"}}


class TestConnectivityToTheLetter:
    def test_a_connection_that_works(self, connect, api):
        connect("slack")
        answer = api.post("/api/v1/test-connection", {"platform": "slack"}, format="json")
        assert answer.status_code == 200
        assert answer.json() == {"status": "ok", "platform": "slack", "message": "Connection successful"}

    @pytest.mark.parametrize("platform", list(PLATFORMS))
    def test_every_platform_is_tested_without_a_trace(self, everywhere, api, platform):
        answer = api.post("/api/v1/test-connection", {"platform": platform}, format="json").json()
        assert (answer["status"], answer["platform"]) == ("ok", platform)
        assert answer["message"].startswith("Connection successful")
        assert not everywhere[platform].effects

    def test_a_connection_that_fails(self, connect, api):
        standins = connect("pagerduty")
        standins.pagerduty.fault("status", times=1, code=400, body="Invalid routing key")
        answer = api.post("/api/v1/test-connection", {"platform": "pagerduty"}, format="json")
        assert answer.status_code == 200
        assert list(answer.json()) == ["status", "platform", "message"]
        assert answer.json()["status"] == "error"
        assert answer.json()["platform"] == "pagerduty"

    def test_a_platform_without_settings_says_what_is_missing(self, api):
        answer = api.post("/api/v1/test-connection", {"platform": "jira"}, format="json")
        assert answer.status_code == 200
        assert answer.json()["status"] == "error"
        assert "baseUrl" in answer.json()["message"]

    def test_an_unknown_platform_is_a_400(self, api):
        answer = api.post("/api/v1/test-connection", {"platform": "teams"}, format="json")
        assert answer.status_code == 400
        assert list(answer.json()["errors"]) == ["platform"]

    def test_a_model_that_works(self, connect, api):
        connect("llm")
        assert api.post("/api/v1/test-llm").json() == {
            "status": "ok",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "message": "LLM connection successful",
        }
        assert api.get("/api/v1/llm-status").json() == {
            "status": "ok",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "available": True,
        }

    def test_a_model_that_cannot_be_reached(self, connect, api):
        standins = connect("llm")
        standins.llm.fault("status", times=None, code=500)
        tested = api.post("/api/v1/test-llm")
        assert tested.status_code == 200
        assert list(tested.json()) == ["status", "provider", "model", "message"]
        assert tested.json()["status"] == "error"
        seen = api.get("/api/v1/llm-status")
        assert seen.status_code == 200
        assert list(seen.json()) == ["status", "provider", "model", "available", "error"]
        assert (seen.json()["status"], seen.json()["available"]) == ("degraded", False)
        assert seen.json()["error"]

    def test_the_status_is_that_of_the_last_check_until_the_settings_change(self, connect, api, patch):
        standins = connect("llm")
        assert api.get("/api/v1/llm-status").json()["available"] is True
        asked = standins.llm.served
        standins.llm.fault("status", times=None, code=500)
        assert api.get("/api/v1/llm-status").json()["available"] is True
        assert standins.llm.served == asked
        patch("llm", {"model": "gpt-4"})
        assert api.get("/api/v1/llm-status").json()["available"] is False


class TestDeduplicationToTheLetter:
    def test_a_duplicate_counts_and_refreshes_and_opens_nothing(self, api, clock, send, incident_id):
        at(clock, 40)
        assert send({"score": 1.0})["deduplicated"] == 1
        [shown] = listed(api)
        assert shown["anomalyCount"] == 2
        assert shown["updatedAt"] == "2024-03-01T15:40:00Z"
        assert shown["anomalyScore"] == 4.2
        assert len(api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"]) == 1

    @pytest.mark.parametrize("other", [{"service": "order-engine"}, {"severity": "high"}])
    def test_another_service_or_severity_is_another_incident(self, send, incident_id, other):
        assert send(other)["created"] == 1

    @pytest.mark.parametrize(("minutes", "outcome"), [(15, "deduplicated"), (16, "created")])
    def test_the_window_decides_and_includes_its_end(self, clock, send, incident_id, minutes, outcome):
        clock.shift(timedelta(minutes=minutes))
        assert send()["results"][0]["outcome"] == outcome

    def test_the_window_can_be_set(self, clock, send, patch, incident_id):
        patch("anomaly", {"lookbackWindow": "30m"})
        clock.shift(timedelta(minutes=30))
        assert send()["deduplicated"] == 1


# --- What the design decided ------------------------------------------------------------------------------------------


class TestMoves:
    ALLOWED = {
        "open": {"acknowledge", "escalate", "resolve"},
        "acknowledged": {"escalate", "resolve", "reopen"},
        "escalated": {"acknowledge", "resolve", "reopen"},
        "resolved": {"reopen"},
    }
    LEADS_TO = {"acknowledge": "acknowledged", "escalate": "escalated", "resolve": "resolved", "reopen": "open"}
    WAY = {"open": [], "acknowledged": ["acknowledge"], "escalated": ["escalate"], "resolved": ["resolve"]}

    @pytest.mark.parametrize("name", LEADS_TO)
    @pytest.mark.parametrize("status", ALLOWED)
    def test_the_table(self, api, clock, incident_id, status, name):
        at(clock, 35)
        for step in self.WAY[status]:
            assert api.post(f"/api/incidents/{incident_id}/{step}").status_code == 200
        before = api.get(f"/api/incidents/{incident_id}").json()
        at(clock, 50)
        answer = api.post(f"/api/incidents/{incident_id}/{name}")
        after = api.get(f"/api/incidents/{incident_id}").json()
        entries = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"]
        if name in self.ALLOWED[status]:
            assert answer.status_code == 200
            assert after["status"] == self.LEADS_TO[name]
            assert len(entries) == len(self.WAY[status]) + 2
        elif status == self.LEADS_TO[name]:
            assert answer.status_code == 200
            assert after == before
        else:
            assert answer.status_code == 409
            assert answer.json() == {
                "status": "error",
                "message": f"inc-20240301-001 was resolved by key:admin-tests at 2024-03-01T15:35:00Z. "
                f"It cannot be {self.LEADS_TO[name]} before it is reopened.",
                "errors": {},
            }
            assert after == before
            assert len(entries) == len(self.WAY[status]) + 1

    @pytest.mark.parametrize("name", ["acknowledge", "escalate", "resolve"])
    def test_asking_again_keeps_the_first_time_and_adds_no_entry(self, api, clock, incident_id, name):
        at(clock, 35)
        first = api.post(f"/api/incidents/{incident_id}/{name}").json()
        at(clock, 50)
        assert api.post(f"/api/incidents/{incident_id}/{name}").json() == first
        assert len(api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"]) == 2

    def test_past_times_stay_until_a_reopen_clears_them(self, api, clock, incident_id):
        at(clock, 35)
        api.post(f"/api/incidents/{incident_id}/acknowledge")
        at(clock, 45)
        api.post(f"/api/incidents/{incident_id}/escalate")
        at(clock, 50)
        api.post(f"/api/incidents/{incident_id}/resolve")
        shown = api.get(f"/api/incidents/{incident_id}").json()
        assert shown["acknowledgedAt"] == "2024-03-01T15:35:00Z"
        assert shown["escalatedAt"] == "2024-03-01T15:45:00Z"
        assert shown["resolvedAt"] == "2024-03-01T15:50:00Z"
        assert shown["acknowledgedBy"] == shown["escalatedBy"] == shown["resolvedBy"] == "key:admin-tests"
        at(clock, 55)
        answer = api.post(f"/api/incidents/{incident_id}/reopen")
        assert answer.json() == {"id": incident_id, "status": "open", "reopenedAt": "2024-03-01T15:55:00Z"}
        shown = api.get(f"/api/incidents/{incident_id}").json()
        for name in ("acknowledgedAt", "acknowledgedBy", "escalatedAt", "escalatedBy", "resolvedAt", "resolvedBy"):
            assert shown[name] is None, name
        assert shown["escalatedTo"] == []
        last = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"][-1]
        assert (last["action"], last["details"]) == ("reopened", "Status changed from resolved to open")

    def test_an_unknown_incident_is_a_404(self, api, db):
        for name in ("acknowledge", "escalate", "resolve", "reopen"):
            answer = api.post(f"/api/incidents/inc-20240301-999/{name}")
            assert answer.status_code == 404
            assert answer.json()["status"] == "error"
        assert api.get("/api/incidents/inc-20240301-999").status_code == 404
        assert api.get("/api/v1/audit", {"incident_id": "inc-20240301-999"}).status_code == 404

    def test_a_note_goes_to_the_audit(self, api, incident_id):
        api.post(f"/api/incidents/{incident_id}/acknowledge", {"note": "Looking at it."}, format="json")
        entry = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"][-1]
        assert (entry["details"], entry["note"]) == ("Status changed from open to acknowledged", "Looking at it.")

    def test_a_later_anomaly_reopens_a_resolved_incident_and_an_earlier_one_counts_only(
        self, api, clock, send, incident_id
    ):
        at(clock, 35)
        api.post(f"/api/incidents/{incident_id}/resolve")
        at(clock, 36)
        assert send({"timestamp": "2024-03-01T15:34:00Z"})["results"] == [
            {"index": 0, "outcome": "deduplicated", "incidentId": incident_id}
        ]
        assert send()["results"] == [{"index": 0, "outcome": "reopened", "incidentId": incident_id}]
        entry = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"][-1]
        assert entry["action"] == "reopened"
        assert entry["details"].startswith("Status changed from resolved to open")


class TestEscalation:
    def escalated(self, api, incident_id) -> dict:
        return api.post(f"/api/incidents/{incident_id}/escalate").json()

    def test_goes_to_all_enabled_platforms_that_page(self, api, patch, incident_id):
        patch("platforms", {"opsgenie": {"enabled": True, "apiKey": "a-key"}})
        assert self.escalated(api, incident_id)["escalatedTo"] == ["pagerduty", "opsgenie"]
        shown = api.get(f"/api/incidents/{incident_id}").json()
        assert shown["platforms"] == ["pagerduty", "jira", "slack", "opsgenie"]
        assert sorted(ticket["platform"] for ticket in shown["tickets"]) == ["jira", "opsgenie", "pagerduty", "slack"]

    def test_goes_to_those_routed_for_critical_where_none_pages(self, api, patch, send):
        patch("platforms", {name: THREE[name] for name in ("jira", "slack")})
        [incident_id] = send({"severity": "low"})["incidents"]
        assert self.escalated(api, incident_id)["escalatedTo"] == ["slack", "jira"]

    def test_says_in_the_audit_that_nobody_could_be_told(self, api, send):
        [incident_id] = send()["incidents"]
        assert self.escalated(api, incident_id)["escalatedTo"] == []
        entry = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"][-1]
        assert entry["action"] == "escalated"
        assert "nobody was told" in entry["details"]

    def test_tickets_nothing_twice(self, api, incident_id):
        self.escalated(api, incident_id)
        assert Ticket.objects.filter(incident_id=incident_id, platform="pagerduty").count() == 1


class TestBatch:
    def batch(self, api, expect: int = 200, **body) -> dict:
        answer = api.post("/api/v1/incidents/batch", body, format="json")
        assert answer.status_code == expect, answer.content
        return answer.json()

    def test_each_id_on_its_own(self, api, send):
        ids = send({"service": "a"}, {"service": "b"}, {"service": "c"})["incidents"]
        api.post(f"/api/incidents/{ids[0]}/resolve")
        api.post(f"/api/incidents/{ids[1]}/acknowledge")
        asked = [ids[2], "nonsense", ids[0], ids[1], "inc-20240301-999", ids[2]]
        answer = self.batch(api, ids=asked, action="acknowledge")
        assert answer["updated"] == 2
        assert answer["ids"] == [ids[2], ids[1]]
        assert [failure["id"] for failure in answer["failed"]] == ["nonsense", ids[0], "inc-20240301-999"]
        assert "was resolved by key:admin-tests" in answer["failed"][1]["message"]
        assert all(failure["message"] for failure in answer["failed"])

    @pytest.mark.parametrize("action", ["acknowledge", "resolve", "escalate"])
    def test_its_actions(self, api, send, action):
        ids = send({"service": "a"}, {"service": "b"})["incidents"]
        answer = self.batch(api, ids=ids, action=action)
        assert answer == {"updated": 2, "action": action, "ids": ids, "failed": []}
        assert {shown["status"] for shown in listed(api)} == {TestMoves.LEADS_TO[action]}

    @pytest.mark.parametrize("action", ["reopen", "delete", "", None, 1, ["acknowledge"], {}])
    def test_no_other_actions(self, api, send, action):
        answer = self.batch(api, ids=send()["incidents"], action=action, expect=400)
        assert list(answer["errors"]) == ["action"]

    def test_a_note_goes_to_every_audit(self, api, send):
        ids = send({"service": "a"}, {"service": "b"})["incidents"]
        self.batch(api, ids=ids, action="resolve", note="Rolled back.")
        for incident_id in ids:
            entry = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"][-1]
            assert entry["note"] == "Rolled back."


class TestTheList:
    @pytest.fixture
    def five(self, api, clock, patch, send) -> list[str]:
        """Five incidents, a minute apart, oldest first."""
        patch("platforms", {"jira": THREE["jira"], "slack": THREE["slack"]})
        faults = [("a", "low", 1), ("b", "critical", 5), ("c", "high", 3), ("d", "medium", 2), ("e", "critical", 4)]
        ids = []
        for minute, (service, severity, score) in enumerate(faults):
            at(clock, 30 + minute)
            title = f"Fault 100% of {service.upper()}_x"
            ids += send({"service": service, "severity": severity, "score": score, "title": title})["incidents"]
        api.post(f"/api/incidents/{ids[1]}/acknowledge")
        api.post(f"/api/incidents/{ids[2]}/resolve")
        return ids

    def numbers(self, api, five, query: dict) -> str:
        """Which of the five are listed, in their order."""
        return "".join(str(five.index(shown["id"]) + 1) for shown in listed(api, query=query))

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ({}, "54321"),
            ({"status": "open"}, "541"),
            ({"status": "acknowledged,resolved"}, "32"),
            ({"status": ""}, "54321"),
            ({"severity": "critical, low"}, "521"),
            ({"service": "a"}, "1"),
            ({"service": "a,d,zzz"}, "41"),
            ({"service": "A"}, ""),
            ({"platform": "jira"}, "5432"),
            ({"platform": "slack"}, "5321"),
            ({"platform": "jira,slack"}, "54321"),
            ({"platform": "pagerduty"}, ""),
            ({"since": "2024-03-01T15:32:00Z"}, "543"),
            ({"since": "2024-03-01T16:32:00+01:00"}, "543"),
            ({"since": "2024-03-01T15:32:00"}, "543"),
            ({"since": "2024-03-01 15:32:00"}, "543"),
            ({"since": "2024-03-01T16:32:00 01:00"}, "543"),
            ({"since": "2024-03-02"}, ""),
            ({"until": "2024-03-01T15:32:00Z"}, "21"),
            ({"since": "2024-03-01T15:31:00Z", "until": "2024-03-01T15:33:00Z"}, "32"),
            ({"q": "fault"}, "54321"),
            ({"q": "of c_"}, "3"),
            ({"q": "100%"}, "54321"),
            ({"q": "%"}, "54321"),
            ({"q": "of%x"}, ""),
            ({"q": "f_C"}, ""),
            ({"q": "301-004"}, "4"),
            ({"q": "' OR 1=1 --"}, ""),
            ({"service": "a') OR ('1'='1"}, ""),
            ({"status": "open", "severity": "critical"}, "5"),
            ({"ordering": "createdAt"}, "12345"),
            ({"ordering": "-createdAt"}, "54321"),
            ({"ordering": "anomalyScore"}, "14352"),
            ({"ordering": "-anomalyScore"}, "25341"),
            ({"ordering": "severity"}, "52341"),
            ({"ordering": "-severity"}, "14352"),
            ({"ordering": "anomalyCount"}, "54321"),
        ],
    )
    def test_filters_and_orderings(self, api, five, query, expected):
        assert self.numbers(api, five, query) == expected

    @pytest.mark.parametrize(
        ("query", "named"),
        [
            ({"status": "closed"}, "status"),
            ({"severity": "P1"}, "severity"),
            ({"platform": "teams"}, "platform"),
            ({"since": "yesterday"}, "since"),
            ({"until": "2024-13-01"}, "until"),
            ({"q": "x" * 201}, "q"),
            ({"ordering": "password"}, "ordering"),
            ({"ordering": "-id);--"}, "ordering"),
            ({"ordering": "--createdAt"}, "ordering"),
            ({"limit": "0"}, "limit"),
            ({"limit": "-1"}, "limit"),
            ({"limit": "1001"}, "limit"),
            ({"limit": "1e9"}, "limit"),
            ({"limit": "9" * 40}, "limit"),
            ({"limit": "abc"}, "limit"),
            ({"limit": "٣"}, "limit"),
            ({"limit": ""}, "limit"),
            ({"cursor": "abc"}, "cursor"),
            ({"limit": "2", "cursor": "abc"}, "cursor"),
            ({"status__password": "x"}, "status__password"),
            ({"_connector": "OR"}, "_connector"),
            ({"id__in": "x"}, "id__in"),
            ({"format": "xml"}, "format"),
            ({"status": ["open", "resolved"]}, "status"),
        ],
    )
    def test_mistakes_are_named(self, api, query, named):
        answer = api.get("/api/incidents", query)
        assert answer.status_code == 400
        assert answer.json()["status"] == "error"
        assert list(answer.json()["errors"]) == [named]

    def test_nothing_is_an_empty_array(self, api, db):
        answer = api.get("/api/incidents")
        assert b"".join(answer.streaming_content) == b"[]"
        assert answer["Content-Type"] == "application/json"

    @pytest.mark.parametrize("ordering", ["", *(sign + name for sign in ("", "-") for name in (
        "createdAt", "updatedAt", "lastAnomalyAt", "anomalyScore", "anomalyCount", "severity"))])  # fmt: skip
    def test_pages_hold_everything_once_in_order(self, api, five, ordering):
        query = {"ordering": ordering} if ordering else {}
        whole = self.numbers(api, five, query)
        found, answer = "", api.get("/api/incidents", query | {"limit": 2})
        for _ in range(3):
            assert answer["X-Total-Count"] == "5"
            found += "".join(str(five.index(shown["id"]) + 1) for shown in answer.json())
            if "Link" not in answer:
                break
            url, rel = re.fullmatch(r"<(http://testserver/api/incidents\?[^>]*)>; (.*)", answer["Link"]).groups()
            assert rel == 'rel="next"'
            answer = api.get(url)
        assert found == whole

    def test_a_page_keeps_its_filters_and_its_prefix(self, api, five):
        answer = api.get("/api/ticketing/api/v1/incidents", {"limit": 1, "status": "open", "q": "100%"})
        assert answer["X-Total-Count"] == "3"
        url = answer["Link"].partition(">")[0].removeprefix("<")
        assert url.startswith("http://testserver/api/ticketing/api/v1/incidents?")
        following = api.get(url)
        assert [shown["id"] for shown in following.json()] == [five[3]]

    def test_a_cursor_of_another_ordering_is_refused(self, api, five):
        link = api.get("/api/incidents", {"limit": 1})["Link"]
        cursor = re.search(r"cursor=([^&>]*)", link)[1]
        answer = api.get("/api/incidents", {"limit": 1, "ordering": "severity", "cursor": cursor})
        assert answer.status_code == 400
        assert list(answer.json()["errors"]) == ["cursor"]

    def test_an_incident_that_comes_between_two_pages_moves_nothing(self, api, five, send):
        first = api.get("/api/incidents", {"limit": 3})
        send({"service": "new"})
        second = api.get(first["Link"].partition(">")[0].removeprefix("<"))
        assert [shown["id"] for shown in first.json() + second.json()] == five[::-1]


class TestETags:
    def test_that_of_the_list_changes_with_a_change_that_began_earlier(self, api, incident_id, send):
        """Another incident was changed later, by its clock, and committed before."""
        [other] = send({"service": "other"})["incidents"]
        ahead = timezone.now() + timedelta(hours=1)
        Incident.objects.filter(pk=other).update(updated_at=ahead, cause_at=ahead)
        changes = [
            lambda: lifecycle.move("acknowledge", [incident_id], actor="user:anna"),
            lambda: lifecycle.move("escalate", [incident_id], actor="user:anna"),
            lambda: lifecycle.move("acknowledge", [incident_id], actor="user:anna"),
            lambda: lifecycle.move("resolve", [incident_id], actor="user:anna"),
            lambda: lifecycle.move("reopen", [incident_id], actor="user:anna"),
            lambda: send(),
            lambda: send({"score": 9.9, "affectedServices": ["more"]}),
            lambda: Incident.objects.filter(pk=incident_id).update(cause_at=ahead - timedelta(minutes=1)),
            lambda: Incident.objects.filter(pk=other).update(anomaly_count=7),
            lambda: Incident.objects.filter(pk=other).update(status="resolved"),
        ]
        for path in ("/api/incidents", "/api/incidents?limit=1", "/api/incidents?severity=critical"):
            assert read(api, path, headers={"If-None-Match": read(api, path)["ETag"]}).status_code == 304
        for number, change in enumerate(changes):
            tag = read(api, "/api/incidents")["ETag"]
            change()
            assert read(api, "/api/incidents", headers={"If-None-Match": tag}).status_code == 200, number

    def test_what_is_unchanged_is_a_304_without_a_body(self, api, incident_id):
        for path in ("/api/incidents", "/api/incidents?limit=5", f"/api/incidents/{incident_id}"):
            first = read(api, path)
            assert first["ETag"].startswith('W/"')
            again = read(api, path, headers={"If-None-Match": first["ETag"]})
            assert again.status_code == 304, path
            assert again.content == b""
            assert again["ETag"] == first["ETag"]

    def test_weak_comparison_lists_and_the_star(self, api, incident_id):
        tag = read(api, "/api/incidents")["ETag"]
        for given in (tag.removeprefix("W/"), f'"x", {tag}', "*"):
            assert read(api, "/api/incidents", headers={"If-None-Match": given}).status_code == 304, given
        assert read(api, "/api/incidents", headers={"If-None-Match": '"x"'}).status_code == 200

    def test_whatever_changes_changes_the_tag(self, api, send, incident_id):
        paths = ("/api/incidents", f"/api/incidents/{incident_id}")
        tags = [read(api, path)["ETag"] for path in paths]

        def both_changed() -> bool:
            nonlocal tags
            before, tags = tags, [read(api, path)["ETag"] for path in paths]
            return all(one != other for one, other in zip(before, tags, strict=True))

        send()
        with time_machine.travel(BEGINNING + timedelta(minutes=1)):
            send()
            assert both_changed()
            api.post(f"/api/incidents/{incident_id}/acknowledge")
            assert both_changed()
            send({"severity": "high"})  # another incident of the same service, which the first one names
            assert both_changed()

    def test_a_model_that_failed_shows(self, api, incident_id):
        tag = api.get(f"/api/incidents/{incident_id}")["ETag"]
        Incident.objects.update(cause_error="Connection timeout after 5s")
        answer = api.get(f"/api/incidents/{incident_id}", headers={"If-None-Match": tag})
        assert answer.status_code == 200
        assert answer.json()["rootCauseError"] == "Connection timeout after 5s"


class TestFieldsBesideTheDocumented:
    ADDED = {
        "anomalyCount", "acknowledgedAt", "acknowledgedBy", "escalatedAt", "resolvedAt", "resolvedBy",
        "firstAnomalyAt", "lastAnomalyAt", "rootCause", "fallback", "drill",
    }  # fmt: skip
    DETAIL = {
        "description", "environment", "tenantId", "escalatedBy", "escalatedTo", "reopenedAt", "reopenedBy",
        "rootCauseModel", "rootCauseSeconds", "rootCauseError", "evidence", "tickets", "anomalies",
        "otherOpenIncidents",
    }  # fmt: skip

    def test_the_list_has_the_promised_ones(self, api, incident_id):
        [shown] = listed(api)
        assert set(list(shown)[11:]) == self.ADDED
        assert shown["fallback"] is True
        assert "payment-api" in shown["rootCause"]
        for name in ("acknowledgedAt", "acknowledgedBy", "escalatedAt", "resolvedAt", "resolvedBy"):
            assert shown[name] is None

    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_one_incident_tells_all_there_is(self, api, clock, send, incident_id, prefix):
        [other] = send({"severity": "high"})["incidents"]
        send({"eventId": "e-2", "error_category": "out_of_memory"})
        shown = api.get(f"{prefix}/{incident_id}").json()
        assert set(list(shown)[22:]) == self.DETAIL
        assert [anomaly["eventId"] for anomaly in shown["anomalies"]] == ["e-2", None]
        assert shown["otherOpenIncidents"] == [other]
        tickets = {ticket["platform"]: ticket for ticket in shown["tickets"]}
        assert set(tickets) == {"pagerduty", "jira", "slack"}
        assert {ticket["state"] for ticket in tickets.values()} == {"pending"}

    def test_every_time_is_rfc_3339_in_utc(self, api, incident_id):
        api.post(f"/api/incidents/{incident_id}/acknowledge")
        shown = api.get(f"/api/incidents/{incident_id}").json()
        times = {name: value for name, value in shown.items() if name.endswith("At") and value}
        assert len(times) >= 5
        assert all(RFC3339.fullmatch(value) for value in times.values()), times


class TestIntake:
    def test_its_answer(self, api, clock, send):
        answer = send(
            {"service": "a", "eventId": "one"},
            {"service": "a"},
            {"service": "b", "score": 0.1},
            {"service": "a", "eventId": "one"},
            {"severity": "urgent"},
        )
        assert answer == {
            "received": 5,
            "created": 1,
            "deduplicated": 1,
            "reopened": 0,
            "belowThreshold": 1,
            "redelivered": 1,
            "rejected": 1,
            "incidents": ["inc-20240301-001"],
            "results": [
                {"index": 0, "outcome": "created", "incidentId": "inc-20240301-001"},
                {"index": 1, "outcome": "deduplicated", "incidentId": "inc-20240301-001"},
                {"index": 2, "outcome": "belowThreshold", "incidentId": None},
                {"index": 3, "outcome": "redelivered", "incidentId": "inc-20240301-001"},
                {"index": 4, "outcome": "rejected", "incidentId": None},
            ],
            "errors": [{"index": 4, "message": "severity must be critical, high, medium or low"}],
        }

    @pytest.mark.parametrize("path", ["/api/v1/anomalies", "/api/ticketing/api/v1/anomalies"])
    @pytest.mark.parametrize("score", ["score", "anomalyScore", "anomaly_score"])
    def test_one_object_by_either_name(self, api, path, score):
        answer = api.post(path, {"service": "a", "severity": "HIGH", score: 1}, format="json")
        assert (answer.status_code, answer.json()["created"]) == (200, 1)

    def test_a_single_bad_object_is_a_400(self, api, db):
        answer = api.post("/api/v1/anomalies", {"service": "a", "severity": "high"}, format="json")
        assert answer.status_code == 400
        assert "score is missing" in answer.json()["message"]

    def test_a_score_equal_to_the_minimum_opens(self, send):
        assert send({"score": 0.85})["created"] == 1
        assert send({"score": 0.8499999, "service": "b"})["belowThreshold"] == 1

    @pytest.mark.parametrize("flag", ["true", "1", "TRUE"])
    def test_a_dry_run_says_it_and_changes_nothing(self, api, flag):
        body = [{"service": "a", "severity": "high", "score": 1, "eventId": "one"}] * 2
        for _ in range(2):
            answer = api.post(f"/api/v1/anomalies?dryRun={flag}", body, format="json").json()
            assert (answer["created"], answer["redelivered"], answer["incidents"]) == (1, 1, [])
        assert listed(api) == []

    def test_a_dry_run_is_true_or_false(self, api, db):
        answer = api.post("/api/v1/anomalies?dryRun=maybe", {}, format="json")
        assert answer.status_code == 400

    def test_an_idempotency_key_makes_a_repeat_harmless(self, send):
        first = send({"service": "a"}, {"service": "b"}, **{"Idempotency-Key": "K"})
        again = send({"service": "a"}, {"service": "b"}, **{"Idempotency-Key": "K"})
        assert (first["created"], again["redelivered"]) == (2, 2)
        assert again["incidents"] == first["incidents"]
        assert send({"service": "a", "eventId": "K:1"})["redelivered"] == 1

    @pytest.mark.parametrize("key", ["two words", "x" * 201, "ä"])
    def test_an_idempotency_key_is_printable_ascii(self, send, key):
        answer = send(expect=400, **{"Idempotency-Key": key})
        assert list(answer["errors"]) == ["Idempotency-Key"]


class TestConfigurationRules:
    def test_a_change_is_seen_at_once_also_by_who_was_reading_just_then(self, settled, meanwhile):
        with meanwhile("config_section", lambda: patch_routing({"low": ["jira"]}, actor="user:root")):
            current()
        assert current().routing["low"] == ["jira"]

    def test_a_patch_changes_only_what_is_named(self, api, three, patch):
        before = api.get("/api/v1/config").json()
        patch("platforms", {"slack": {"enabled": False}})
        after = api.get("/api/v1/config").json()
        before["platforms"]["slack"]["enabled"] = False
        assert after == before

    def test_what_get_shows_patch_accepts(self, api, three, patch):
        patch("llm", {"apiKey": "sk-1", "baseUrl": "https://llm.example.com/v1"})
        before = api.get("/api/v1/config").json()
        for part in ("platforms", "routing", "anomaly", "llm"):
            patch(part, before[part])
        assert api.get("/api/v1/config").json() == before

    def test_one_mistake_spoils_all_and_every_mistake_is_named(self, api, patch):
        before = api.get("/api/v1/config").json()
        answer = patch(
            "platforms",
            {
                "pagerduty": {"enabled": True, "routingKey": "good"},
                "jira": {"enabled": "yes", "baseUrl": "ftp://x", "colour": "red"},
                "slack": {"webhookUrl": 5},
                "teams": {"enabled": True},
                "opsgenie": None,
            },
            expect=400,
        )
        named = {"jira.enabled", "jira.baseUrl", "jira.colour", "slack.webhookUrl", "teams", "opsgenie"}
        assert set(answer["errors"]) == named
        assert api.get("/api/v1/config").json() == before
        for part, body, names in [
            ("routing", {"critical": ["jira"], "urgent": [], "low": ["teams"]}, {"urgent", "low"}),
            ("anomaly", {"minimumScore": -1, "lookbackWindow": "1y", "x": 1}, {"minimumScore", "lookbackWindow", "x"}),
            ("llm", {"model": "", "provider": "acme", "colour": 1}, {"model", "provider", "colour"}),
        ]:
            assert set(patch(part, body, expect=400)["errors"]) == names
            assert api.get("/api/v1/config").json() == before

    def test_the_mask_keeps_a_secret_and_is_a_mistake_where_there_is_none(self, api, three, patch, connect):
        patch("platforms", {"pagerduty": {"routingKey": "****"}})
        assert api.get("/api/v1/config").json()["platforms"]["pagerduty"]["routingKey"] == "****"
        answer = patch("platforms", {"opsgenie": {"apiKey": "****"}}, expect=400)
        assert list(answer["errors"]) == ["opsgenie.apiKey"]
        assert list(patch("llm", {"apiKey": "****"}, expect=400)["errors"]) == ["apiKey"]

    @pytest.mark.parametrize(
        "value", ["***", "*****", "****x", "", " ", None, " **** ", "\u0000", "a\nb", 1, ["x"], {}]
    )
    def test_anything_like_a_mask_or_like_nothing_is_refused(self, api, three, patch, value):
        answer = patch("platforms", {"pagerduty": {"routingKey": value}}, expect=400)
        assert list(answer["errors"]) == ["pagerduty.routingKey"]

    @pytest.mark.parametrize(
        ("part", "body", "named"),
        [
            ("platforms", {"jira": {"baseUrl": "https://other.atlassian.net"}}, "jira.apiToken"),
            ("platforms", {"jira": {"baseUrl": "https://other.atlassian.net", "apiToken": "****"}}, "jira.apiToken"),
            ("platforms", {"pagerduty": {"apiUrl": "https://events.eu.pagerduty.com"}}, "pagerduty.routingKey"),
            ("llm", {"baseUrl": "https://llm.example.com/v1"}, "apiKey"),
        ],
    )
    def test_a_moved_address_needs_the_secret_again(self, api, three, patch, part, body, named):
        patch("llm", {"apiKey": "sk-1"})
        before = api.get("/api/v1/config").json()
        assert list(patch(part, body, expect=400)["errors"]) == [named]
        assert api.get("/api/v1/config").json() == before

    def test_a_moved_address_is_taken_with_the_secret(self, api, three, patch):
        patch("platforms", {"jira": {"baseUrl": "https://other.atlassian.net", "apiToken": "new"}})
        assert api.get("/api/v1/config").json()["platforms"]["jira"]["baseUrl"] == "https://other.atlassian.net"

    @pytest.mark.parametrize("text", ["1s", "90s", "15m", "2h", "1d", "30d"])
    def test_durations(self, api, patch, text):
        assert patch("anomaly", {"lookbackWindow": text})["anomaly"]["lookbackWindow"] == text

    @pytest.mark.parametrize("text", ["0s", "31d", "15", "m", "1.5h", "-5m", "15 m", "15M", "٣m", "", 15, None, "P1D"])
    def test_no_durations(self, patch, text):
        assert list(patch("anomaly", {"lookbackWindow": text}, expect=400)["errors"]) == ["lookbackWindow"]

    def test_a_required_setting_of_an_enabled_platform_stays(self, api, three, patch):
        assert list(patch("platforms", {"jira": {"userEmail": ""}}, expect=400)["errors"]) == ["jira.userEmail"]

    def test_an_optional_setting_is_removed_by_an_empty_text(self, api, three, patch):
        patch("platforms", {"jira": {"projectKey": "OPS"}})
        assert api.get("/api/v1/config").json()["platforms"]["jira"]["projectKey"] == "OPS"
        patch("platforms", {"jira": {"projectKey": ""}})
        assert "projectKey" not in api.get("/api/v1/config").json()["platforms"]["jira"]

    def test_changes_are_audited_by_name_without_secrets(self, api, three, patch):
        entry = Entry.objects.about("config:platform:jira").get()
        assert (entry.actor, entry.action) == ("key:admin-tests", "changed")
        assert entry.details == (
            "Jira: enabled, baseUrl set to https://org.atlassian.net, userEmail set to anna@example.com, "
            "apiToken replaced"
        )
        assert "a-token-of-jira" not in json.dumps(entry.data)

    def test_a_change_that_changes_nothing_leaves_no_entry(self, three, patch):
        before = Entry.objects.count()
        patch("platforms", THREE)
        patch("routing", {"critical": ["pagerduty", "jira", "slack"]})
        patch("platforms", {})
        assert Entry.objects.count() == before

    def test_the_end_of_opsgenie_is_no_matter_of_the_api(self, patch, api):
        answer = patch("platforms", {"opsgenie": {"enabled": True, "apiKey": "a-key"}})
        assert answer == {"status": "ok", "updated": ["opsgenie"]}
        assert api.get("/api/v1/config").json()["platforms"]["opsgenie"] == {"enabled": True, "apiKey": "****"}


class TestPaths:
    @pytest.mark.parametrize(
        "path", ["/api/incidents/", "/api//incidents", "/api/v2/incidents", "/api/ticketing/incidents", "/api", "/nope"]
    )
    def test_no_other_paths_and_no_redirects(self, api, path):
        answer = api.get(path)
        assert answer.status_code == 404
        assert answer.json()["status"] == "error"

    def test_another_method_is_a_405_in_json(self, api):
        answer = api.delete("/api/incidents")
        assert answer.status_code == 405
        assert answer.json()["status"] == "error"
        assert "GET" in answer["Allow"]

    def test_every_reply_has_its_request_id(self, api):
        for path in ("/api/incidents", "/nope", "/health", "/api/incidents/x"):
            assert re.fullmatch("[0-9a-f]{32}", read(api, path)["X-Request-ID"])
        assert api.get("/health", headers={"X-Request-ID": "mine-1"})["X-Request-ID"] == "mine-1"
        assert api.get("/health", headers={"X-Request-ID": "a b\r\n"})["X-Request-ID"] != "a b\r\n"

    def test_health_needs_nothing_and_says_ok(self, client):
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/api/ticketing/health").json() == {"status": "ok"}
