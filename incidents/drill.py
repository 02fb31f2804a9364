"""Fire drills: a marked incident goes the whole way to every enabled platform, and is resolved again by itself.

A drill is an incident like any other, but for its mark: it comes from no anomaly and none joins it, it asks no model,
goes to all platforms whatever the routing, and is left out of the numbers that tell of real faults.
"""

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.utils import timezone

from config.current import current
from config.models import PlatformState
from incidents import lifecycle
from incidents.intake import give_ids
from incidents.lifecycle import Author
from incidents.models import DedupLock, Incident, Severity, Ticket
from platforms.catalog import PLATFORMS

log = logging.getLogger(__name__)

SERVICE = "fire-drill"
TITLE = "[Drill] Test of the way to every platform: nothing is wrong"
ABOUT = (
    "This is a drill. It proves that what we send arrives, and is resolved by itself once every platform has accepted "
    "its ticket, or after five minutes. Nobody has to do anything."
)
CAUSE = "None: this is a drill."
NOT_PROVEN = "Not accepted within five minutes."
# The way that must be known to work is the one that wakes people.
SEVERITY = Severity.CRITICAL
LONGEST = timedelta(minutes=5)


class Refused(Exception):
    """There is no drill to be had now. The message is for people."""


def begin(*, actor: str, request_id: str = "") -> Incident:
    """Opens a drill at every enabled platform. Raises Refused where none is enabled, or a drill is under way."""
    with transaction.atomic():
        _lock()
        under_way = _under_way().first()
        if under_way:
            raise Refused(f"A drill is under way: {under_way.pk}. It ends by itself within minutes.")
        return _open(Author(actor, request_id))


def begin_if_due() -> Incident | None:
    """Opens a drill where DRILL_SCHEDULE_HOURS says that it is time for one. Safe to ask as often as one likes."""
    every = timedelta(hours=settings.DRILL_SCHEDULE_HOURS)
    if every <= timedelta(0):
        return None
    with transaction.atomic():
        _lock()
        latest = last()
        due = latest is None or timezone.now() - latest.created_at >= every
        if not due or not current().enabled() or _under_way().exists():
            return None
        return _open(Author("system"))


def _lock() -> None:
    """Until the end of the transaction nobody else begins a drill."""
    DedupLock.objects.bulk_create([DedupLock(service=SERVICE, severity=SEVERITY)], ignore_conflicts=True)
    DedupLock.objects.select_for_update().get(service=SERVICE, severity=SEVERITY)


def _open(author: Author) -> Incident:
    config = current()
    if not config.enabled():
        raise Refused("No platform is enabled: there is no way to be proven.")
    now = timezone.now()
    incident = Incident(
        title=TITLE,
        description=ABOUT,
        service=SERVICE,
        severity=SEVERITY,
        affected_services=[SERVICE],
        anomaly_score=0.0,
        first_anomaly_at=now,
        last_anomaly_at=now,
        created_at=now,
        updated_at=now,
        root_cause=CAUSE,
        cause_at=now,
        drill=True,
    )
    give_ids([incident], now.date())
    lifecycle.open_incidents([(incident, author)], config)
    return incident


def _under_way():
    return Incident.objects.active().filter(drill=True).order_by("-created_at")


def end_due() -> None:
    """Resolves drills whose tickets all arrived, or that have taken long enough."""
    for incident in _under_way():
        behind = list(incident.tickets.behind().order_by("pk"))
        if not behind:
            lifecycle.move("resolve", [incident.pk], actor="system")
        elif timezone.now() - incident.created_at >= LONGEST:
            # Once it is resolved, what was never told is not needed any more, and its error is forgotten.
            missed = "; ".join(f"{PLATFORMS[one.platform].label}: {one.last_error or 'not reached'}" for one in behind)
            log.error("Drill failed: %s", missed, extra={"incident": incident.pk})
            lifecycle.move("resolve", [incident.pk], actor="system", note=f"{NOT_PROVEN} {missed}")


# --- What is known of them --------------------------------------------------------------------------------------------


def last() -> Incident | None:
    return newest().first()


def newest() -> QuerySet[Incident]:
    return Incident.objects.filter(drill=True).order_by("-created_at")[:1]


def last_proven() -> dict[str, datetime | None]:
    return dict(proofs().values_list("platform", "proven"))


def proofs() -> QuerySet[PlatformState]:
    """When each platform that was ever configured last accepted a ticket, of a drill or of a real fault."""
    accepted = Ticket.objects.filter(platform=OuterRef("platform"), created_remotely_at__isnull=False)
    latest = accepted.order_by(F("created_remotely_at").desc()).values("created_remotely_at")[:1]
    return PlatformState.objects.annotate(proven=Subquery(latest)).order_by()
