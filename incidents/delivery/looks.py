"""Looks now and then at what tickets really show, where a platform can be read, and notes where that differs.

It changes nothing by itself: a difference is for a person to decide. It gives way to deliveries: a few looks a minute
at each platform over all processes, none while a ticket there is due, while the platform rests, or after trouble.
"""

import logging
from datetime import UTC, datetime, timedelta

from django.db.models import F, Q
from django.db.models.functions import Now

from config.changes import egress
from config.current import PlatformConfig, current
from incidents.delivery.attempts import credentials
from incidents.models import IN_FORCE, Incident, PlatformPause, Pulse, Status, Ticket, lease
from platforms.catalog import PLATFORMS
from platforms.contract import Category, PlatformError, Remote, Seen
from platforms.http import Caller

log = logging.getLogger(__name__)

EVERY_SECONDS = 15.0  # from one look at a platform to the next
AFTER_TROUBLE_SECONDS = 120.0
DEADLINE_SECONDS = 10.0
FRESH = timedelta(minutes=1)  # what was just shown is as it was shown
AGAIN_AFTER = timedelta(minutes=5)
NEVER = datetime(2000, 1, 1, tzinfo=UTC)
# What a ticket may be at while its incident is in a status.
FITTING: dict[str, tuple[Category, ...]] = {
    Status.OPEN: ("open",),
    Status.ACKNOWLEDGED: ("acknowledged",),
    Status.ESCALATED: ("open", "acknowledged"),  # it keeps the state that it had
    Status.RESOLVED: ("resolved",),
}


def look_next() -> bool:
    """One look at each platform whose turn it is. False where there was nothing to look at."""
    looked = [_look(name) for name, platform in PLATFORMS.items() if platform.readable]
    return any(looked)


def _look(name: str) -> bool:
    config = current().platforms[name]
    if not config.enabled or config.missing or not _takes_turn(name) or _gives_way(name):
        return False
    ticket = _longest_unseen(name)
    if ticket is None:
        return False
    # Before it is asked: whatever becomes of this look, the next is at another ticket.
    Ticket.objects.filter(pk=ticket.pk).update(looked_at=Now())
    ids = {"incident": ticket.incident_id, "ticket": ticket.pk, "platform": name}
    try:
        seen = _ask(ticket, config)
    except PlatformError as error:
        log.warning("look: %s", error.message, extra=ids)
        rest = max(AFTER_TROUBLE_SECONDS, error.retry_after or 0.0)
        Pulse.objects.filter(name=_turn(name)).update(at=lease(rest - EVERY_SECONDS))
        return True
    if seen is not None and _note(ticket, seen):
        log.warning("Ticket shows %s, the incident is %s.", seen.status, ticket.incident.status, extra=ids)
    return True


def _gives_way(name: str) -> bool:
    resting = PlatformPause.objects.filter(IN_FORCE | Q(failures__gt=0), platform=name)
    return resting.exists() or Ticket.objects.due(name).exists()


def _turn(name: str) -> str:
    return f"look:{name}"


def _takes_turn(name: str) -> bool:
    """Whether this process may look now. The row decides for all of them."""
    turn = Pulse.objects.filter(name=_turn(name))
    due = turn.filter(at__lte=lease(-EVERY_SECONDS))
    if due.exists():  # asked first: mostly it is not, and asking locks nothing
        return bool(due.update(at=Now()))
    if not turn.exists():
        Pulse.objects.bulk_create([Pulse(name=_turn(name), at=NEVER)], ignore_conflicts=True)
    return False


def _longest_unseen(name: str) -> Ticket | None:
    """Of the tickets in step of unresolved incidents."""
    in_step = Ticket.objects.filter(
        platform=name,
        incident__in=Incident.objects.active(),
        shown_version=F("wanted_version"),
        created_remotely_at__isnull=False,
        shown_at__lt=lease(-FRESH.total_seconds()),
    )
    rows = in_step.filter(Q(looked_at=None) | Q(looked_at__lt=lease(-AGAIN_AFTER.total_seconds())))
    rows = rows.select_related("incident", "settings_version")
    return rows.order_by(F("looked_at").asc(nulls_first=True), "pk").first()


def _ask(ticket: Ticket, config: PlatformConfig) -> Seen | None:
    _, settings = credentials(ticket, config)
    caller = Caller(
        egress=egress(),
        seconds=DEADLINE_SECONDS,
        secrets=[settings[f.name] for f in config.platform.fields if f.secret and settings.get(f.name)],
    )
    remote = Remote(ticket.remote_id, ticket.remote_url, ticket.remote_data)
    return config.platform.look(caller, settings, remote, ticket.key)


def _note(ticket: Ticket, seen: Seen) -> bool:
    """Whether it differs. Nothing is noted where the ticket has come to want something else, or somebody is at it."""
    differs = not _fits(ticket, seen.category)
    same = Ticket.objects.filter(pk=ticket.pk, claim=ticket.claim, wanted_version=ticket.wanted_version)
    noted = same.update(
        seen_at=Now(),
        seen_status=seen.status[:100],
        seen_category=seen.category,
        seen_version=ticket.wanted_version,
        seen_differs=differs,
    )
    return bool(noted and differs)


def _fits(ticket: Ticket, category: Category) -> bool:
    incident = ticket.incident
    if category in FITTING[incident.status]:
        return True
    # Where a record cannot go back to its first state (ServiceNow), one that was reopened is being worked on.
    reopened = incident.reopened_at is not None or ticket.heard_version > 0
    return incident.status == Status.OPEN and reopened and category == "acknowledged"
