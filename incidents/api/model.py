"""The endpoints about the language model: what the last check saw, and a check now."""

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from config.current import current
from incidents.api import examples
from incidents.causes import health

LLM_STATUS = inline_serializer(
    "LlmStatus",
    {
        "status": serializers.ChoiceField(["ok", "degraded"]),
        "provider": serializers.CharField(),
        "model": serializers.CharField(),
        "available": serializers.BooleanField(),
        "error": serializers.CharField(required=False),
    },
)
LLM_TEST = inline_serializer(
    "LlmTest",
    {
        "status": serializers.ChoiceField(["ok", "error"]),
        "provider": serializers.CharField(),
        "model": serializers.CharField(),
        "message": serializers.CharField(),
    },
)


class LlmStatus(APIView):
    role = "viewer"

    @extend_schema(
        operation_id="getLlmStatus",
        summary="Whether the language model can be reached",
        responses=LLM_STATUS,
        examples=examples.LLM_STATUS,
        tags=["Language model"],
    )
    def get(self, request: Request) -> Response:
        seen = health.status()
        told = {
            "status": "ok" if seen.available else "degraded",
            "provider": seen.provider,
            "model": seen.model,
            "available": seen.available,
        }
        return Response(told if seen.available else told | {"error": seen.error})


class TestLlm(APIView):
    role = "admin"

    @extend_schema(
        operation_id="testLlm",
        summary="Check the language model now",
        request=None,
        responses=LLM_TEST,
        examples=examples.TEST_LLM,
        tags=["Language model"],
    )
    def post(self, request: Request) -> Response:
        config = current().llm
        error = health.probe(config)
        return Response(
            {
                "status": "error" if error else "ok",
                "provider": config.provider,
                "model": config.model,
                "message": error or "LLM connection successful",
            }
        )
