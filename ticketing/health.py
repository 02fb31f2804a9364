"""Whether this process lives, and whether the whole is ready: what is missing is named, silence is not health."""

from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, Max, Min
from django.db.models.functions import Coalesce
from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.response import Response
from rest_framework.views import APIView

from config import rotation
from incidents import pulses
from incidents.console import listing
from incidents.delivery.states import pause_in_words
from incidents.models import PlatformPause, Ticket
from incidents.times import timestamp
from platforms.catalog import PLATFORMS
from ticketing.access import nobody

SWEEP = "No worker sweeps: no ticket is delivered. Start a Celery worker."
BEAT = "Beat is silent: the model's health is not checked. Start Celery beat, and a worker for it."
BROKER = "No worker hears the broker: tickets leave by the sweep, beat's work is not done. Start the broker."
SILENCE = {pulses.SWEEP: SWEEP, pulses.BEAT: BEAT, pulses.BROKER: BROKER}

_migrated = False


def missing() -> list[str]:
    """What keeps the product from doing its work, in words; empty when it is ready."""
    try:
        if _unmigrated():
            return ["The database has migrations to apply: run manage.py migrate."]
        seen = set(pulses.lately().values_list("kind", flat=True))
        unreadable = rotation.unreadable()
    except (DatabaseError, InterfaceError):
        connection.close()
        return ["The database cannot be reached."]
    return [*([unreadable] if unreadable else []), *(SILENCE[name] for name in pulses.silent(seen))]


def late() -> list[str]:
    """What does not arrive, since when and why: a line per platform. It makes nothing less ready to take in more."""
    enabled, resting = listing.enabled_platforms().values("platform"), PlatformPause.objects.in_force()
    waiting = Ticket.objects.behind().filter(platform__in=resting.values("platform")).filter(platform__in=enabled)
    rows = (listing.late_tickets(timezone.now()) | waiting).order_by().values("platform")
    # One of the reasons will do: what fails at a platform mostly fails for the same.
    rows = rows.annotate(number=Count("pk"), since=Min(Coalesce("failing_since", "due_at")), why=Max("last_error"))
    try:
        found = list(rows.order_by("platform"))
        pauses = {pause.platform: pause_in_words(pause) for pause in resting}
    except (DatabaseError, InterfaceError):
        connection.close()
        return []  # `missing` says so
    said = []
    for row in found:
        many = "1 ticket is" if row["number"] == 1 else f"{row['number']:,} tickets are"
        since = f" since {timestamp(row['since'])}" if row["since"] else ""
        reason = pauses.get(row["platform"]) or row["why"]
        why = f": {reason}" if reason else "."
        said.append(f"{PLATFORMS[row['platform']].label}: {many} behind{since}{why}")
    return said


def _unmigrated() -> bool:
    """Once applied, migrations stay applied: the plan is made until then only."""
    global _migrated
    if not _migrated:
        executor = MigrationExecutor(connection)
        _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return not _migrated


STATE = inline_serializer("State", {"status": serializers.CharField()})
READINESS = inline_serializer(
    "Readiness",
    {
        "status": serializers.CharField(),
        "missing": serializers.ListField(child=serializers.CharField()),
        "late": serializers.ListField(child=serializers.CharField(), help_text="What does not arrive, and why."),
    },
)


class Health(APIView):
    authentication_classes = ()
    permission_classes = ()

    @extend_schema(
        operation_id="health", summary="Whether this process answers", responses=STATE, auth=[], tags=["Health"]
    )
    def get(self, request):
        return Response({"status": "ok"})


class Ready(APIView):
    permission_classes = ()

    def perform_authentication(self, request):
        """A probe whose key has ended is told what anybody is told: the product is no less ready for it."""
        try:
            super().perform_authentication(request)
        except AuthenticationFailed:
            request.user = nobody()

    @extend_schema(
        operation_id="ready",
        summary="Whether database, migrations, workers and the clock are there",
        responses={200: READINESS, 503: OpenApiResponse(READINESS, "Something is missing.")},
        auth=[],
        tags=["Health"],
    )
    def get(self, request):
        problems = missing()
        told = {"missing": problems} if request.user.is_authenticated else {}
        if request.user.may("viewer"):
            told["late"] = late()
        return Response({"status": "unavailable" if problems else "ok"} | told, 503 if problems else 200)
