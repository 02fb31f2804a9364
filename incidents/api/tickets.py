"""The endpoints of tickets: what is behind and why, and sending it again."""

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from config.current import Current, current
from incidents import lifecycle
from incidents.api import examples, shapes
from incidents.api.views import UNKNOWN, existing, object_of, query
from incidents.models import Ticket
from platforms.catalog import PLATFORMS

MOST_LISTED = 1000
USUAL_LIMIT = 100
MOST_NAMED = 100
STATES = ("behind", "failed", "retrying", "pending", "paused", "differing")
PARAMETERS = ("platform", "state", "limit")


class Tickets(APIView):
    role = "viewer"

    @extend_schema(
        operation_id="listTickets",
        summary="Tickets that do not show what they should, oldest first",
        description=(
            "`behind` is all of `failed`, `retrying`, `pending` and `paused`. `differing`: seen to show something else "
            "at the platform."
        ),
        parameters=[
            query("platform", "Only those of one platform.", enum=list(PLATFORMS)),
            query("state", "Default behind.", enum=list(STATES)),
            OpenApiParameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MOST_LISTED},
                description=f"How many at most. Default {USUAL_LIMIT}.",
            ),
        ],
        responses={200: shapes.TicketSerializer(many=True)},
        tags=["Tickets"],
    )
    def get(self, request: Request) -> Response:
        params = request.query_params
        if unknown := [name for name in params if name not in PARAMETERS]:
            raise ValidationError({unknown[0][:50]: f"Unknown parameter. Known are {', '.join(PARAMETERS)}."})
        config = current()
        rows = _in_state(_choice(params.get("state") or "behind", "state", STATES), config)
        if platform := params.get("platform"):
            rows = rows.filter(platform=_choice(platform, "platform", tuple(PLATFORMS)))
        found = rows.select_related("incident").order_by("created_at", "pk")[: _limit(params.get("limit"))]
        resting = shapes.pauses()
        return Response([shapes.ticket_json(ticket, config, resting) for ticket in found])


def _in_state(state: str, config: Current) -> QuerySet[Ticket]:
    """The tickets that `delivery.states` calls so."""
    if state == "differing":
        return Ticket.objects.differing()
    behind = Ticket.objects.behind()
    if state == "behind":
        return behind
    if state == "failed":
        return behind.filter(parked_at__isnull=False)
    used = [name for name, platform in config.platforms.items() if platform.enabled]
    waiting = behind.filter(parked_at=None)
    if state == "paused":
        return waiting.exclude(platform__in=used)
    return waiting.filter(platform__in=used, failing_since__isnull=state == "pending")


def _choice(value: str, name: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValidationError({name: f"Must be one of {', '.join(known)}."})
    return value


def _limit(text: str | None) -> int:
    if text is None:
        return USUAL_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MOST_LISTED):
        raise ValidationError({"limit": f"Must be a whole number from 1 to {MOST_LISTED}."})
    return int(text)


class RetryTickets(APIView):
    role = "responder"

    @extend_schema(
        operation_id="retryTickets",
        summary="Send tickets again now, whatever they wait for",
        description=(
            "Those that `ids` names; those of `incidentId` that are behind; or all of a `platform` that failed, the "
            f"oldest {lifecycle.RETRIED_AT_ONCE:,} of them at most. A platform that we were to leave alone for a while "
            f"is asked again at once, whether or not anything failed there. `tickets` shows {MOST_NAMED} at most."
        ),
        request=shapes.RetryRequestSerializer,
        responses={200: shapes.RetryResponseSerializer} | UNKNOWN,
        examples=examples.RETRY,
        tags=["Tickets"],
    )
    def post(self, request: Request) -> Response:
        body = object_of(request)
        who = {"actor": request.user.actor, "request_id": request.id}
        if sum(name in body for name in ("ids", "incidentId", "platform")) > 1:
            raise ValidationError("Name tickets by ids, by incidentId or by platform, not by several of them.")
        if "platform" in body:
            platform = body["platform"]
            retried = lifecycle.retry_platform(
                _choice(platform if isinstance(platform, str) else "", "platform", tuple(PLATFORMS)), **who
            ).tickets
        else:
            again = [lifecycle.retry_ticket(ticket_id, **who) for ticket_id in _tickets_named(body)]
            retried = [ticket.pk for ticket in again if ticket]
        config, resting = current(), shapes.pauses()
        shown = Ticket.objects.filter(pk__in=retried[:MOST_NAMED]).select_related("incident").order_by("pk")
        told = [shapes.ticket_json(ticket, config, resting) for ticket in shown]
        return Response({"retried": len(retried), "tickets": told})


def _tickets_named(body: dict) -> list[int]:
    """The tickets of `ids`, or those of one incident that do not show what they should."""
    ids, incident_id = body.get("ids"), body.get("incidentId")
    if isinstance(incident_id, str):
        behind = Ticket.objects.behind().filter(incident_id=existing(incident_id))
        return list(behind.order_by("pk").values_list("pk", flat=True))
    whole = isinstance(ids, list) and all(type(i) is int and 0 < i < 2**63 for i in ids)
    if not whole or not 1 <= len(ids) <= MOST_NAMED:
        raise ValidationError(
            {"ids": "Name 1 to 100 tickets by their numbers, an incident by incidentId, or a platform."}
        )
    return list(Ticket.objects.filter(pk__in=ids).order_by("pk").values_list("pk", flat=True))
