"""What platforms tell us by their webhooks: which incident it is about, whether it counts, and the move that it is.

The rules that keep two directions from chasing each other: what we did ourselves is not taken for somebody's doing,
what is older than the incident's latest move undoes nothing, and the platform that told us is not told in return.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from config.current import current
from incidents import counters, lifecycle
from incidents.delivery import notices
from incidents.delivery.core import Level
from incidents.lifecycle import Refused
from incidents.models import InboundEvent, Incident, Status, Ticket
from platforms import text
from platforms.contract import Forged, Inbound, Unreadable

log = logging.getLogger(__name__)

REMEMBERED = timedelta(days=30)  # an event's id; what is older is never taken in
ECHO = timedelta(seconds=5)  # by how much a platform's clock may run ahead of ours
RECORD_OLDER = timedelta(minutes=1)  # the same, between an incident's beginning and its record's
KEY = re.compile(r"(inc-\d{8}-\d{3,9})-([0-9a-f]{10})(?:-\d{1,5})?", re.ASCII)
ID_IN_TITLE = re.compile(r"(.+) \[(inc-\d{8}-\d{3,9})\]", re.ASCII | re.DOTALL)
REMOTE_ID = re.compile(r"[\x21-\x7e]{1,300}")
SHOWS = {
    "acknowledge": Status.ACKNOWLEDGED,
    "begin": Status.ACKNOWLEDGED,
    "unacknowledge": Status.OPEN,
    "reopen": Status.OPEN,
    "resolve": Status.RESOLVED,
}


@dataclass(frozen=True)
class Heard:
    """What came of a webhook. `move`: the one that was made, if any; `why`: why there was none."""

    incident_id: str = ""
    move: str = ""
    why: str = ""


def receive(platform: str, headers: Mapping[str, str], body: bytes, *, request_id: str = "") -> Heard:
    """Takes in a webhook: one transaction, no network. `headers` are looked up in any case.

    Raises Forged and Unreadable as the platform's `read` does.
    """
    config = current().platforms[platform]
    now = timezone.now()
    try:
        event = config.platform.read(config.settings, headers, body, now)
    except Forged as problem:
        log.warning("Refused a webhook: %s.", problem, extra={"platform": platform})
        counters.count(counters.WEBHOOKS, platform=platform, outcome="refused")
        raise
    except Unreadable:
        counters.count(counters.WEBHOOKS, platform=platform, outcome="unreadable")
        raise
    heard = Heard(why="It moves no incident.") if event is None else _take_in(platform, event, now, request_id)
    counters.count(counters.WEBHOOKS, platform=platform, outcome="moved" if heard.move else "ignored")
    ids = {"incident": heard.incident_id, "platform": platform}
    if heard.move:
        log.info("Heard: %s.", lifecycle.MOVES[heard.move].past, extra=ids)
    else:
        log.info("Heard and ignored: %s", heard.why, extra=ids)
    return heard


def _take_in(platform: str, event: Inbound, now: datetime, request_id: str) -> Heard:
    found = _ticket_of(platform, event)
    if found is None:
        return Heard(why="No incident has such a ticket.")
    with transaction.atomic():
        _, first = InboundEvent.objects.get_or_create(platform=platform, event=event.event, defaults={"seen_at": now})
        if not first:
            return Heard(found.incident_id, why="It was taken in before.")
        # In the order in which every move locks them.
        incident = Incident.objects.select_for_update().get(pk=found.incident_id)
        ticket = Ticket.objects.select_for_update().get(pk=found.pk)
        at = min(event.at or now, now)
        shown = notices.shown(ticket) or Level("open")
        why = _too_late(incident, at, now) or _echo(event, ticket, shown, at)
        move = "" if why else _move(event, incident, ticket, shown, at)
        if not move:
            return Heard(incident.pk, why=why or f"The incident is {incident.status}, which this does not change.")
        actor = f"{platform}:{event.by}"
        [result] = lifecycle.move(move, [incident.pk], actor=actor, request_id=request_id, at=at)
        if isinstance(result, Refused):
            return Heard(incident.pk, why=result.message)
        if not result.changed:
            return Heard(incident.pk, why=f"The incident is {incident.status} already.")
        if event.shows:
            _keep_from_telling_it(ticket, shown, incident, result.incident)
    return Heard(incident.pk, move=move)


# --- Which ticket -----------------------------------------------------------------------------------------------------


def _ticket_of(platform: str, event: Inbound) -> Ticket | None:
    """By our key, else by the record's id, else by its title. Never for a record that a newer one has replaced, or for
    a copy that somebody made of it."""
    tickets = Ticket.objects.filter(platform=platform).select_related("incident")
    remote_ids = [remote_id for remote_id in event.remote_ids if REMOTE_ID.fullmatch(remote_id)]
    keys = [key for key in event.keys if KEY.fullmatch(key)]
    if keys:
        found = tickets.filter(incident__in=[KEY.fullmatch(key)[1] for key in keys])
        return next((one for one in found if one.key in keys and _is_of(one, remote_ids)), None)
    if remote_ids:
        return tickets.filter(remote_id__in=remote_ids).order_by("-pk").first()
    return _ticket_by_title(tickets, event)


def _is_of(ticket: Ticket, remote_ids: list[str]) -> bool:
    """Whether the record is the ticket's, as far as both tell."""
    known = {ticket.remote_id, *ticket.remote_data.values()}
    return not remote_ids or not ticket.remote_id or bool(known.intersection(remote_ids))


def _ticket_by_title(tickets, event: Inbound) -> Ticket | None:
    """The id in a title may be that of another installation's incident, or of one before a backup was restored: the
    whole title must be the incident's, and its record no older than the incident."""
    titled = ID_IN_TITLE.fullmatch(event.title)
    if titled is None or event.record_since is None:
        return None
    ticket = tickets.filter(incident=titled[2]).first()
    if ticket is None or event.record_since < ticket.incident.created_at - RECORD_OLDER:
        return None
    return ticket if text.one_line(ticket.incident.title) == titled[1] else None


# --- Whether it counts ------------------------------------------------------------------------------------------------


def _too_late(incident: Incident, at: datetime, now: datetime) -> str:
    if at < now - REMEMBERED:
        return "It is older than what is remembered."
    latest = notices.last_move(incident) or incident.created_at
    return "The incident has moved since." if at < latest else ""


def _echo(event: Inbound, ticket: Ticket, shown: Level, at: datetime) -> str:
    """Why it is, or may be, what we did there ourselves; empty where it is somebody else's doing."""
    if not event.maybe_ours:
        return ""
    if ticket.lease_until is not None or ticket.in_doubt:
        return "It may be an echo of the attempt that is under way."
    since = _shows_since(ticket, shown)
    if SHOWS[event.deed] == shown.status or (since and at <= since + ECHO):
        return "It is an echo of what we did."
    return ""


def _shows_since(ticket: Ticket, shown: Level) -> datetime | None:
    """Since when the record is as the ticket shows: since somebody put it so, or since we did, at the latest."""
    heard = Level.from_json(ticket.heard)
    if heard and heard.moved == shown.moved:
        return datetime.fromisoformat(heard.moved)
    return ticket.shown_at


def _move(event: Inbound, incident: Incident, ticket: Ticket, shown: Level, at: datetime) -> str:
    """The move that was meant, or none."""
    if event.deed in ("acknowledge", "resolve"):
        return event.deed
    if incident.status == Status.RESOLVED and event.deed in ("reopen", "begin"):
        # Only of a record that was resolved can it be meant so. One that we were just resolving is told again.
        since = _shows_since(ticket, shown)
        return "reopen" if shown.status == Status.RESOLVED and (since is None or at > since) else ""
    if event.deed == "begin":
        return "acknowledge"
    return "reopen" if incident.status == Status.ACKNOWLEDGED else ""


# --- No loop back -----------------------------------------------------------------------------------------------------


def _keep_from_telling_it(ticket: Ticket, shown: Level, before: Incident, moved: Incident) -> None:
    """Notes that the platform shows the move already, so that the attempt which is now due finds nothing to do.

    Not where a request of ours for an earlier move may still be carried out there, after what was heard: then the
    platform is told again, so that it ends up right.
    """
    at_work = ticket.lease_until is not None and shown.moved != notices.moved_to(before).moved
    if at_work or ticket.in_doubt:
        return
    level = notices.moved_to(moved)
    Ticket.objects.filter(pk=ticket.pk).update(heard=level.as_json(), heard_version=F("wanted_version"))
