"""The OpenAPI document: complete, readable, true. Its examples fit it, and so does what the API answers."""

import json
import re
from datetime import UTC, datetime

import pytest
from django.core.management import call_command
from django.urls import URLPattern
from jsonschema import Draft202012Validator, FormatChecker
from rest_framework import serializers

from config.current import current
from incidents.api import shapes, urls
from incidents.models import Anomaly, Incident, Ticket

ERRORS_OF_ALL = {"401", "403", "429", "503"}
ERRORS_OF_BODIES = {"400", "413", "415"}
PUBLIC = {"health", "ready", "receiveWebhook"}


@pytest.fixture(scope="module")
def schema(tmp_path_factory) -> dict:
    """As the command writes it, which fails on a warning."""
    path = tmp_path_factory.mktemp("schema") / "openapi.json"
    call_command("spectacular", "--format", "openapi-json", "--file", str(path), "--fail-on-warn", "--validate")
    return json.loads(path.read_text())


def operations(schema: dict) -> dict[str, dict]:
    """By operationId, each with its method and path."""
    return {
        operation["operationId"]: operation | {"method": method.upper(), "path": path}
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def fits(schema: dict, part: dict, value: object) -> list[str]:
    """What is wrong with a value, by a part of the document."""
    whole = part | {"components": schema["components"]}
    errors = Draft202012Validator(whole, format_checker=FormatChecker()).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in errors]


def answered(schema: dict, operation: dict, status: object) -> dict | None:
    content = operation["responses"][str(status)].get("content", {})
    return content.get("application/json", {}).get("schema")


class TestTheDocument:
    def test_is_openapi_3_1_and_says_what_it_is_about(self, schema):
        assert schema["openapi"] == "3.1.0"
        assert schema["info"]["title"] == "Ticketing Agent"
        assert schema["info"]["description"]

    def test_has_every_operation_once(self, schema):
        ids = [one["operationId"] for methods in schema["paths"].values() for one in methods.values()]
        assert len(ids) == len(set(ids))
        assert all(re.fullmatch("[a-z]+[A-Za-z]*", one) for one in ids)
        assert set(ids) >= {
            "listIncidents", "getIncident", "acknowledgeIncident", "resolveIncident", "escalateIncident",
            "reopenIncident", "batchUpdateIncidents", "sendAnomalies", "getAudit", "getConfig", "updatePlatforms",
            "updateRouting", "updateAnomalySettings", "updateLlmSettings", "testConnection", "testLlm", "getLlmStatus",
            "retryTickets", "listTickets", "getDrill", "beginDrill", "health", "ready", "metrics",
        }  # fmt: skip

    def test_has_no_alias_of_another_path(self, schema):
        assert not [path for path in schema["paths"] if "/ticketing/" in path or path.endswith("/")]
        assert "/api/v1/incidents/batch" in schema["paths"]
        assert "/api/incidents/{id}/acknowledge" in schema["paths"]

    def test_tells_of_each_operation_what_it_does_and_needs_and_answers(self, schema):
        schemes = [{"apiKey": []}, {"consoleLogin": []}]
        for name, operation in operations(schema).items():
            assert operation["summary"], name
            assert operation["tags"], name
            assert operation["security"] == ([] if name in PUBLIC else schemes), name
            expected = set() if name in PUBLIC else ERRORS_OF_ALL
            if "requestBody" in operation:
                expected = expected | ERRORS_OF_BODIES
            assert expected <= set(operation["responses"]), name
            for status, answer in operation["responses"].items():
                assert answer["description"] or status == "200", (name, status)
                if int(status) >= 400 and name not in PUBLIC:
                    assert answered(schema, operation, status) == {"$ref": "#/components/schemas/Error"}, name

    def test_tells_of_moves_that_they_may_be_refused_and_of_reads_that_nothing_changed(self, schema):
        known = operations(schema)
        for name in ("acknowledgeIncident", "resolveIncident", "escalateIncident", "reopenIncident"):
            assert {"404", "409"} <= set(known[name]["responses"])
        for name in ("listIncidents", "getIncident"):
            assert "304" in known[name]["responses"]
        headers = known["listIncidents"]["responses"]["200"]["headers"]
        assert set(headers) == {"ETag", "Link", "X-Total-Count"}

    def test_names_its_components_readably(self, schema):
        names = set(schema["components"]["schemas"])
        assert not [name for name in names if "RequestRequest" in name or "Patched" in name or "Serializer" in name]
        assert {"Incident", "IncidentDetail", "AnomalyRequest", "BatchRequest", "Error"} <= names

    def test_describes_the_credentials(self, schema):
        schemes = schema["components"]["securitySchemes"]
        assert set(schemes) == {"apiKey", "consoleLogin"}
        assert schemes["apiKey"]["scheme"] == "bearer"
        assert schemes["consoleLogin"]["in"] == "cookie"

    def test_its_examples_fit_it(self, schema):
        seen = 0
        for name, operation in operations(schema).items():
            parts = [("request", operation.get("requestBody", {}).get("content", {}))]
            parts += [(status, answer.get("content", {})) for status, answer in operation["responses"].items()]
            for where, content in parts:
                for medium in content.values():
                    for example in medium.get("examples", {}).values():
                        assert fits(schema, medium["schema"], example["value"]) == [], (name, where)
                        seen += 1
        assert seen >= 25

    def test_every_documented_example_is_there(self, schema):
        text = json.dumps(schema)
        for piece in (
            '"acknowledgedAt": "2024-03-01T15:35:00Z"', '"escalatedTo": ["pagerduty"]', '"minimumScore": 0.9',
            '"updated": ["pagerduty", "slack"]', '"message": "Invalid routing key"',
            '"details": "Escalated to pagerduty"',
            '"error": "Connection timeout after 5s"', '"message": "LLM connection successful"', '"routingKey": "****"',
        ):  # fmt: skip
            assert piece in text, piece


FUNCTIONS = [
    (shapes.incident_json, shapes.IncidentSerializer),
    (shapes.ticket_json, shapes.TicketSerializer),
    (shapes.anomaly_json, shapes.AnomalySerializer),
    (shapes.detail_json, shapes.IncidentDetailSerializer),
]


@pytest.fixture
def written(everywhere, api, send, work) -> dict:
    """What each function writes, of an incident that has been through everything."""
    everywhere.jira.fault("status", times=None, code=400, body="no")
    [incident_id] = send({"eventId": "one", "message": "x", "z_score": 1.5})["incidents"]
    send({"severity": "low"})
    for name in ("acknowledge", "escalate", "resolve"):
        api.post(f"/api/incidents/{incident_id}/{name}")
    work()
    incident, others = Incident.objects.get(pk=incident_id), list(Incident.objects.exclude(pk=incident_id))
    anomalies = list(Anomaly.objects.filter(incident=incident))
    return {
        shapes.incident_json: [shapes.incident_json(one) for one in (incident, *others)],
        shapes.ticket_json: [shapes.ticket_json(one, current(), shapes.pauses()) for one in Ticket.objects.all()],
        shapes.anomaly_json: [shapes.anomaly_json(one) for one in anomalies],
        shapes.detail_json: [shapes.detail_json(incident, current(), anomalies, others, shapes.pauses())],
    }


class TestFunctionsAndSerializersAgree:
    @pytest.mark.parametrize(("function", "serializer"), FUNCTIONS, ids=lambda one: getattr(one, "__name__", ""))
    def test_on_names_in_their_order(self, written, function, serializer):
        for one in written[function]:
            assert list(one) == list(serializer().fields)

    @pytest.mark.parametrize(("function", "serializer"), FUNCTIONS, ids=lambda one: getattr(one, "__name__", ""))
    def test_on_types(self, written, schema, function, serializer):
        component = serializer.__name__.removesuffix("Serializer").replace("Anomaly", "RecentAnomaly")
        assert written[function]
        for one in written[function]:
            assert fits(schema, {"$ref": f"#/components/schemas/{component}"}, one) == []

    def test_nothing_that_may_be_null_is_promised_not_to_be(self, written):
        for function, serializer in FUNCTIONS:
            for one in written[function]:
                for name, field in serializer().fields.items():
                    assert one[name] is not None or field.allow_null, name

    def test_every_serializer_is_used(self):
        mine = {
            one for one in vars(shapes).values() if isinstance(one, type) and issubclass(one, serializers.Serializer)
        }
        assert len(mine) >= 20
        assert all(isinstance(pattern, URLPattern) or pattern.url_patterns for pattern in urls.urlpatterns)


class TestWhatTheAPIAnswers:
    """Each operation, well and badly used: the answer is one that the document tells of, in the shape that it tells."""

    BODIES = {
        "sendAnomalies": [
            {"service": "b", "severity": "high", "score": 1},
            [{"service": "b", "severity": "high", "score": 1}, {}],
            [{"service": "c", "severity": "low", "score": 0}],
            {"service": 1},
        ],
        "acknowledgeIncident": [{}, {"note": "x"}, {"note": 1}],
        "escalateIncident": [{}, []],
        "resolveIncident": [{"note": None}],
        "reopenIncident": [{"note": "again"}],
        "batchUpdateIncidents": [{"ids": ["ID", "x"], "action": "acknowledge"}, {"ids": [], "action": "resolve"}, {}],
        "updatePlatforms": [{"slack": {"enabled": False}}, {"slack": {"enabled": True, "x": 1}}, {"x": 1}],
        "updateRouting": [{"low": ["jira"]}, {"x": 1}],
        "updateAnomalySettings": [{"minimumScore": 0.5}, {"lookbackWindow": 1}],
        "updateLlmSettings": [{"model": "gpt-4o-mini"}, {"provider": "x"}],
        "testConnection": [{"platform": "slack"}, {"platform": "jira"}, {"platform": "x"}],
        "retryTickets": [{"incidentId": "ID"}, {"ids": [1]}, {"ids": ["1"]}, {"platform": "jira"}, {"platform": "x"}],
    }

    def test_is_what_the_document_says(self, schema, everywhere, connect, api, send, work):
        connect("llm")
        [incident_id] = send()["incidents"]
        work()
        seen = set()
        for name, operation in operations(schema).items():
            path = operation["path"].replace("{id}", incident_id)
            for body in self.BODIES.get(name, [None]):
                body = json.loads(json.dumps(body).replace('"ID"', f'"{incident_id}"'))
                query = f"?incident_id={incident_id}" if name == "getAudit" else ""
                answer = api.generic(
                    operation["method"], path + query, json.dumps(body) if body is not None else "", "application/json"
                )
                self.check(schema, operation, answer)
                seen.add((name, answer.status_code))
        assert {status for _, status in seen} >= {200, 400}
        assert {name for name, _ in seen} == set(operations(schema))

    def test_is_so_too_where_it_refuses(self, schema, db, client, api, client_of):
        producer = client_of("producer")
        for name, operation in operations(schema).items():
            if name in PUBLIC:
                continue
            path = operation["path"].replace("{id}", "inc-20240301-999")
            for caller, expected in ((client, {401}), (producer, {403, 200, 400}), (api, None)):
                answer = caller.generic(operation["method"], path, b"[", content_type="application/json")
                self.check(schema, operation, answer)
                assert expected is None or answer.status_code in expected, name
            if "requestBody" in operation:
                for kind, expected in (("text/plain", 415), ("application/json", 413)):
                    body = b" " * (10 * 1024 * 1024 + 1) if expected == 413 else b"{}"
                    answer = api.generic(operation["method"], path, body, content_type=kind)
                    self.check(schema, operation, answer)
                    assert answer.status_code == expected, name

    def check(self, schema, operation, answer) -> None:
        name = operation["operationId"]
        assert str(answer.status_code) in operation["responses"], (name, answer.status_code)
        part = answered(schema, operation, answer.status_code)
        if part:
            assert answer["Content-Type"] == "application/json"
            assert fits(schema, part, json.loads(answer.getvalue())) == [], name


class TestThePages:
    def test_the_schema_is_served_as_the_command_writes_it(self, db, schema, client_of):
        answer = client_of("viewer").get("/api/schema")
        assert answer["Content-Type"].startswith(("application/json", "application/vnd.oai.openapi+json"))
        assert answer.json() == schema

    def test_the_docs_page_lives_with_its_policy(self, db, client_of):
        """Scripts and images of our own files only: what the page needs beside them it does without."""
        reader = client_of("viewer")
        page = reader.get("/api/docs")
        assert page["Content-Type"].startswith("text/html")
        policy = page["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        html = page.content.decode()
        assert "</html>" in html
        assert not re.findall(r"<script(?![^>]*\bsrc=)[^>]*>\s*\S", html)
        assert not re.findall(r"\son\w+=", html)
        sources = re.findall(r"""(?:src|href)=["']([^"']+)["']""", html)
        assert len(sources) >= 3
        for source in sources:
            assert source.startswith("/"), source
            answer = reader.get(source)
            assert answer.status_code == 200, source
        assert any("swagger-ui" in source for source in sources)


def test_times_are_what_the_document_calls_date_time(schema):
    part = schema["components"]["schemas"]["Incident"]["properties"]["createdAt"]
    assert part == {"type": "string", "format": "date-time"}
    assert fits(schema, part, shapes.timestamp(datetime(2024, 3, 1, 15, 30, tzinfo=UTC))) == []
