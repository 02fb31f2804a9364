"""The address that platforms' webhooks are sent to. What proves who calls is in the webhook, not in a credential."""

from django.http import Http404, UnreadablePostError
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import APIException, ParseError, UnsupportedMediaType
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from incidents import inbound
from incidents.api import shapes
from platforms.catalog import PLATFORMS
from platforms.contract import Forged, Unreadable

KINDS = ("application/json", "application/x-www-form-urlencoded")
MESSAGE = inline_serializer(
    "InboundAnswer", {"status": serializers.ChoiceField(["ok"]), "message": serializers.CharField()}
)
DESCRIPTION = (
    "Acknowledges, resolves or reopens the incident that the webhook is about, as `<platform>:<person>`. Open only "
    "where the platform's `webhookSecret` is set. PagerDuty (V3 webhooks), Jira (`X-Hub-Signature`) and Slack "
    "(interactivity) sign with it; OpsGenie and ServiceNow send it as `X-Webhook-Secret` or as a bearer token. What is "
    "unknown, late, an echo of our own doing, or sent again has no effect, and is answered 200."
)
PROBLEMS = {
    401: "The signature or secret is missing or wrong, or no webhook secret is set for this platform.",
    404: "There is no such platform.",
    503: "The database cannot be used. Send it again after Retry-After.",
}


class NotProven(APIException):
    status_code = 401
    default_detail = PROBLEMS[401]


class Inbound(APIView):
    authentication_classes = []
    permission_classes = []

    @extend_schema(
        operation_id="receiveWebhook",
        summary="Take in a platform's webhook",
        description=DESCRIPTION,
        parameters=[OpenApiParameter("platform", str, OpenApiParameter.PATH, enum=list(PLATFORMS))],
        request=dict.fromkeys(KINDS, OpenApiTypes.OBJECT),
        responses={200: MESSAGE}
        | {status: OpenApiResponse(shapes.ErrorSerializer, told) for status, told in PROBLEMS.items()},
        tags=["Inbound webhooks"],
    )
    def post(self, request: Request, platform: str) -> Response:
        if platform not in PLATFORMS:
            raise Http404(f"There is no such platform. Known are {', '.join(PLATFORMS)}.")
        body = _raw_body(request)
        try:
            heard = inbound.receive(platform, request.headers, body, request_id=request.id)
        except Forged as problem:
            raise NotProven from problem
        except Unreadable as problem:
            raise ParseError(str(problem)) from problem
        return Response({"status": "ok", "message": f"Moved: {heard.move}." if heard.move else f"Ignored: {heard.why}"})


def _raw_body(request: Request) -> bytes:
    """Byte for byte, which is what was signed. Django refuses one that is announced as larger than 10 MiB."""
    if request.content_type.partition(";")[0].strip().lower() not in KINDS:
        raise UnsupportedMediaType(request.content_type[:100])
    try:
        return request._request.body
    except UnreadablePostError as problem:
        raise ParseError("The body broke off before its end.") from problem
