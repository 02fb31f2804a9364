"""The newcomer's first read: one fault's whole way, from a producer's anomaly to tickets that end up closed.

Everything here goes through the HTTP API, and every ticket over a real socket to a stand-in of its platform.
"""

import pytest

pytestmark = pytest.mark.django_db

# What a detector puts out for a Java service that runs out of memory, in its own words.
CRASH = {
    "event_id": "57ed42ef-e782-47e2-ac57-3b7f6699def0",
    "detected_at": "2026-03-09T06:00:01.578401283Z",
    "anomaly_type": "memory_exhaustion",
    "anomaly_score": 0.91,
    "severity": "critical",
    "service": "payment-service",
    "message": "java.lang.OutOfMemoryError: Java heap space",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "affected_services": ["payment-service", "checkout"],
    "evidence_logs": [
        {
            "@timestamp": "2026-03-09T05:59:50Z",
            "service": "payment-service",
            "level": "FATAL",
            "message": "java.lang.OutOfMemoryError: Java heap space",
        }
    ],
}


def test_from_an_anomaly_to_closed_tickets(everywhere, api, work):
    # Nothing opens below the score, and what did not open is not lost without a word.
    quiet = api.post("/api/v1/anomalies", CRASH | {"event_id": "quiet", "anomaly_score": 0.4}, format="json").json()
    assert quiet["belowThreshold"] == 1

    # A storm of one fault is one incident …
    storm = [CRASH | {"event_id": f"storm-{number}"} for number in range(25)]
    answer = api.post("/api/v1/anomalies", storm, format="json").json()
    assert (answer["created"], answer["deduplicated"]) == (1, 24)
    [incident_id] = answer["incidents"]

    # … and what is delivered twice counts once.
    assert api.post("/api/v1/anomalies", storm, format="json").json()["redelivered"] == 25

    # The cause is there at once, by rules from the evidence.
    incident = api.get(f"/api/incidents/{incident_id}").json()
    assert incident["anomalyCount"] == 25
    assert incident["fallback"] is True
    assert "out of memory" in incident["rootCause"].lower()
    assert "Java heap space" in incident["rootCause"]

    # A worker opens one ticket on each platform, and each names the incident, the cause and the way back.
    work()
    assert everywhere.pagerduty.pages == everywhere.opsgenie.pages == 1
    assert len(everywhere.jira.issues) == len(everywhere.servicenow.records) == len(everywhere.slack.messages) == 1
    for standin in (everywhere[name] for name in ("pagerduty", "jira", "servicenow", "opsgenie", "slack")):
        told = " ".join(request.body.decode() for request in standin.seen if request.method == "POST")
        for text in (incident_id, "payment-service", "Java heap space", f"/i/{incident_id}"):
            assert text in told, f"{standin.name} was not told {text}"

    # An engineer takes it, wakes more people, and ends it with a word on why.
    assert api.post(f"/api/incidents/{incident_id}/acknowledge").json()["status"] == "acknowledged"
    assert api.post(f"/api/incidents/{incident_id}/escalate").json()["escalatedTo"] == ["pagerduty", "opsgenie"]
    note = {"note": "Heap doubled, leak in the cart cache found."}
    assert api.post(f"/api/incidents/{incident_id}/resolve", note, format="json").json()["status"] == "resolved"
    work()

    # The tickets say so, all of them, and nobody was woken twice.
    tickets = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
    assert {ticket["platform"]: ticket["state"] for ticket in tickets} == {
        "pagerduty": "in sync",
        "jira": "in sync",
        "servicenow": "in sync",
        "opsgenie": "in sync",
        "slack": "in sync",
    }
    assert everywhere.pagerduty.pages == everywhere.opsgenie.pages == 1

    # The audit tells who did what.
    entries = api.get("/api/v1/audit", {"incident_id": incident_id}).json()["entries"]
    assert [(entry["action"], entry["details"], entry["actor"]) for entry in entries] == [
        ("created", "Incident created from anomaly detection", "key:admin-tests"),
        ("acknowledged", "Status changed from open to acknowledged", "key:admin-tests"),
        ("escalated", "Escalated to pagerduty, opsgenie", "key:admin-tests"),
        ("resolved", "Status changed to resolved", "key:admin-tests"),
    ]
