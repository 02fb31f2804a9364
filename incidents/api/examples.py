"""The examples of the API document, for the OpenAPI document."""

from drf_spectacular.utils import OpenApiExample

INCIDENT = {
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
    "anomalyCount": 1,
    "acknowledgedAt": None,
    "acknowledgedBy": None,
    "escalatedAt": None,
    "resolvedAt": None,
    "resolvedBy": None,
    "firstAnomalyAt": "2024-03-01T15:30:00Z",
    "lastAnomalyAt": "2024-03-01T15:30:00Z",
    "rootCause": "Out of memory in payment-api.",
    "fallback": True,
    "drill": False,
}
IDS = ["inc-20240301-001", "inc-20240301-002", "inc-20240301-003"]
ANOMALY = {"service": "payment-api", "severity": "critical", "score": 4.2, "title": "High error rate on payment-api"}


def _answer(name: str, value: object) -> OpenApiExample:
    return OpenApiExample(name, value=value, response_only=True, status_codes=["200"])


def _request(name: str, value: object) -> OpenApiExample:
    return OpenApiExample(name, value=value, request_only=True)


LIST = [_answer("One incident", INCIDENT)]
ACKNOWLEDGED = [
    _answer("Acknowledged", {"id": IDS[0], "status": "acknowledged", "acknowledgedAt": "2024-03-01T15:35:00Z"})
]
RESOLVED = [_answer("Resolved", {"id": IDS[0], "status": "resolved", "resolvedAt": "2024-03-01T16:00:00Z"})]
ESCALATED = [
    _answer(
        "Escalated",
        {
            "id": IDS[0],
            "status": "escalated",
            "escalatedAt": "2024-03-01T15:45:00Z",
            "escalatedTo": ["pagerduty"],
        },
    )
]
REOPENED = [_answer("Reopened", {"id": IDS[0], "status": "open", "reopenedAt": "2024-03-01T16:10:00Z"})]
BATCH = [
    _request("Acknowledge three", {"ids": IDS, "action": "acknowledge"}),
    _answer("Acknowledged", {"updated": 3, "action": "acknowledge", "ids": IDS, "failed": []}),
]
AUDIT = [
    _answer(
        "Created, acknowledged, escalated, resolved",
        {
            "incident_id": IDS[0],
            "entries": [
                {
                    "action": "created",
                    "timestamp": "2024-03-01T15:30:00Z",
                    "details": "Incident created from anomaly detection",
                    "actor": "key:detector",
                },
                {
                    "action": "acknowledged",
                    "timestamp": "2024-03-01T15:35:00Z",
                    "details": "Status changed from open to acknowledged",
                    "actor": "user:anna",
                },
                {
                    "action": "escalated",
                    "timestamp": "2024-03-01T15:45:00Z",
                    "details": "Escalated to pagerduty",
                    "actor": "user:anna",
                },
                {
                    "action": "resolved",
                    "timestamp": "2024-03-01T16:00:00Z",
                    "details": "Status changed to resolved",
                    "actor": "user:anna",
                },
            ],
        },
    )
]
INTAKE = [
    _request("One anomaly", ANOMALY),
    _answer(
        "Created",
        {
            "received": 1,
            "created": 1,
            "deduplicated": 0,
            "reopened": 0,
            "belowThreshold": 0,
            "redelivered": 0,
            "rejected": 0,
            "incidents": [IDS[0]],
            "results": [{"index": 0, "outcome": "created", "incidentId": IDS[0]}],
            "errors": [],
        },
    ),
]
LLM_STATUS = [
    _answer("Healthy", {"status": "ok", "provider": "openai", "model": "gpt-4", "available": True}),
    _answer(
        "Unreachable",
        {
            "status": "degraded",
            "provider": "openai",
            "model": "gpt-4",
            "available": False,
            "error": "Connection timeout after 5s",
        },
    ),
]
TEST_LLM = [
    _answer(
        "Success",
        {"status": "ok", "provider": "openai", "model": "gpt-4", "message": "LLM connection successful"},
    ),
    _answer(
        "Failure",
        {"status": "error", "provider": "openai", "model": "gpt-4", "message": "Connection timeout after 5s"},
    ),
]
RETRY = [_request("One incident", {"incidentId": IDS[0]}), _request("One platform", {"platform": "jira"})]
DRILL = [_answer("Begun", {"status": "ok", "incidentId": IDS[1], "platforms": ["pagerduty", "jira"]})]
