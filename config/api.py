"""The REST door to the configuration: reading it, its four changes, and testing a platform's connection."""

from django.urls import path
from drf_spectacular.utils import OpenApiExample, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from config import changes, probes
from config.current import DEFAULTS, SEVERITIES, current
from platforms.catalog import PLATFORMS

PLATFORM_NAMES = serializers.ListField(child=serializers.ChoiceField(list(PLATFORMS)))
ROUTING = inline_serializer("Routing", dict.fromkeys(SEVERITIES, PLATFORM_NAMES))
ROUTING_CHANGE = inline_serializer(
    "Routing",
    {
        severity: serializers.ListField(child=serializers.ChoiceField(list(PLATFORMS)), required=False)
        for severity in SEVERITIES
    },
)
ANOMALY = inline_serializer(
    "AnomalySettings",
    {"minimumScore": serializers.FloatField(min_value=0), "lookbackWindow": serializers.CharField()},
)
ANOMALY_CHANGE = inline_serializer(
    "AnomalySettings",
    {
        "minimumScore": serializers.FloatField(min_value=0, required=False),
        "lookbackWindow": serializers.CharField(required=False),
    },
)
LLM_SETTINGS = {
    "provider": serializers.CharField(required=False),
    "model": serializers.CharField(required=False),
    "apiKey": serializers.CharField(required=False),
    "baseUrl": serializers.CharField(required=False),
}
LLM = inline_serializer("LlmSettings", LLM_SETTINGS)
PLATFORM_SETTINGS = {
    name: inline_serializer(
        f"{platform.label.replace(' ', '')}Settings",
        {"enabled": serializers.BooleanField(required=False)}
        | {f.name: serializers.CharField(required=False, help_text=f.help) for f in platform.fields},
        required=False,
    )
    for name, platform in PLATFORMS.items()
}
PLATFORM_CHANGE = inline_serializer("PlatformSettings", PLATFORM_SETTINGS)
CONFIG = inline_serializer(
    "Configuration", {"platforms": PLATFORM_CHANGE, "routing": ROUTING, "anomaly": ANOMALY, "llm": LLM}
)
STATUS = {"status": serializers.ChoiceField(["ok"])}
ROUTING_EXAMPLE = DEFAULTS["routing"]


def _asks(value: object) -> OpenApiExample:
    return OpenApiExample("Request", value=value, request_only=True)


def _answers(name: str, value: object) -> OpenApiExample:
    return OpenApiExample(name, value=value, response_only=True, status_codes=["200"])


def _object(request: Request) -> dict:
    if not isinstance(request.data, dict):
        raise ValidationError("The body must be an object with the settings to change.")
    return request.data


class Config(APIView):
    role = "viewer"

    @extend_schema(
        operation_id="getConfig",
        summary="The whole configuration, secrets masked",
        responses=CONFIG,
        examples=[
            _answers(
                "Configuration",
                {
                    "platforms": {
                        "pagerduty": {"enabled": True, "routingKey": "****"},
                        "jira": {"enabled": True, "baseUrl": "https://org.atlassian.net"},
                        "servicenow": {"enabled": False},
                        "opsgenie": {"enabled": False},
                        "slack": {"enabled": True, "webhookUrl": "****"},
                    },
                    **DEFAULTS,
                },
            )
        ],
        tags=["Configuration"],
    )
    def get(self, request: Request) -> Response:
        return Response(current().shown())


class _Change(APIView):
    """A PATCH of one part: all or nothing, and only what is named."""

    role = "admin"


class Platforms(_Change):
    @extend_schema(
        operation_id="updatePlatforms",
        summary="Change platforms' settings",
        request=PLATFORM_CHANGE,
        responses={
            200: inline_serializer("PlatformsUpdated", STATUS | {"updated": PLATFORM_NAMES}),
        },
        examples=[
            _asks(
                {
                    "pagerduty": {"enabled": True, "routingKey": "your-pagerduty-routing-key"},
                    "slack": {"enabled": True, "webhookUrl": "https://hooks.slack.com/services/T.../B.../..."},
                }
            ),
            _answers("Updated", {"status": "ok", "updated": ["pagerduty", "slack"]}),
        ],
        tags=["Configuration"],
    )
    def patch(self, request: Request) -> Response:
        updated = changes.patch_platforms(_object(request), actor=request.user.actor, request_id=request.id)
        return Response({"status": "ok", "updated": updated})


class Routing(_Change):
    @extend_schema(
        operation_id="updateRouting",
        summary="Change which platforms each severity goes to",
        request=ROUTING_CHANGE,
        responses={200: inline_serializer("RoutingUpdated", STATUS | {"routing": ROUTING})},
        examples=[_asks(ROUTING_EXAMPLE), _answers("Updated", {"status": "ok", "routing": ROUTING_EXAMPLE})],
        tags=["Configuration"],
    )
    def patch(self, request: Request) -> Response:
        routing = changes.patch_routing(_object(request), actor=request.user.actor, request_id=request.id)
        return Response({"status": "ok", "routing": routing})


class Anomaly(_Change):
    @extend_schema(
        operation_id="updateAnomalySettings",
        summary="Change the score that opens an incident, and the window of deduplication",
        request=ANOMALY_CHANGE,
        responses={200: inline_serializer("AnomalyUpdated", STATUS | {"anomaly": ANOMALY})},
        examples=[
            _asks({"minimumScore": 0.9, "lookbackWindow": "30m"}),
            _answers("Updated", {"status": "ok", "anomaly": {"minimumScore": 0.9, "lookbackWindow": "30m"}}),
        ],
        tags=["Configuration"],
    )
    def patch(self, request: Request) -> Response:
        anomaly = changes.patch_anomaly(_object(request), actor=request.user.actor, request_id=request.id)
        return Response({"status": "ok", "anomaly": anomaly})


class Llm(_Change):
    @extend_schema(
        operation_id="updateLlmSettings",
        summary="Change the language model's settings",
        request=LLM,
        responses={200: inline_serializer("LlmUpdated", STATUS | {"llm": LLM})},
        examples=[
            _asks({"provider": "openai", "model": "gpt-4", "apiKey": "sk-..."}),
            _answers("Updated", {"status": "ok", "llm": {"provider": "openai", "model": "gpt-4", "apiKey": "****"}}),
        ],
        tags=["Configuration"],
    )
    def patch(self, request: Request) -> Response:
        llm = changes.patch_llm(_object(request), actor=request.user.actor, request_id=request.id)
        return Response({"status": "ok", "llm": llm})


class TestConnection(APIView):
    role = "admin"

    @extend_schema(
        operation_id="testConnection",
        summary="Check a platform's address and credentials without leaving a trace",
        request=inline_serializer("TestConnection", {"platform": serializers.ChoiceField(list(PLATFORMS))}),
        responses={
            200: inline_serializer(
                "TestConnectionResult",
                {
                    "status": serializers.ChoiceField(["ok", "error"]),
                    "platform": serializers.CharField(),
                    "message": serializers.CharField(),
                },
            ),
        },
        examples=[
            _asks({"platform": "pagerduty"}),
            _answers("Success", {"status": "ok", "platform": "pagerduty", "message": "Connection successful"}),
            _answers("Failure", {"status": "error", "platform": "pagerduty", "message": "Invalid routing key"}),
        ],
        tags=["Configuration"],
    )
    def post(self, request: Request) -> Response:
        name = _object(request).get("platform")
        if not isinstance(name, str) or name not in PLATFORMS:
            raise ValidationError({"platform": f"Must be one of {', '.join(PLATFORMS)}."})
        result = probes.test_platform(name)
        return Response({"status": "ok" if result.ok else "error", "platform": name, "message": result.message})


urlpatterns = [
    path("api/v1/config", Config.as_view()),
    path("api/v1/config/platforms", Platforms.as_view()),
    path("api/v1/config/routing", Routing.as_view()),
    path("api/v1/config/anomaly", Anomaly.as_view()),
    path("api/v1/config/llm", Llm.as_view()),
    path("api/v1/test-connection", TestConnection.as_view()),
]
