"""What a ticket should show: the incident as a platform is told of it."""

import hashlib
from dataclasses import replace
from datetime import datetime

from django.conf import settings

from incidents.delivery.core import Level, moved_there
from incidents.lifecycle import audit_of
from incidents.models import Incident, Status, Ticket
from platforms.contract import Note, Notice

MOVES = ("acknowledged", "escalated", "resolved", "reopened")


def link(incident_id: str) -> str:
    """Where a person reads about the incident and acts on it."""
    return f"{settings.PUBLIC_URL}/i/{incident_id}"


def shown(ticket: Ticket) -> Level | None:
    """The level that a ticket shows, as far as is known: what was last accepted, or what somebody did there since."""
    accepted = Level.from_json(ticket.shown)
    heard = Level.from_json(ticket.heard) if ticket.heard_version > ticket.shown_version else None
    return moved_there(accepted, heard) if accepted and heard else accepted


def wanted(ticket: Ticket, shown: Level | None) -> tuple[Level, Notice]:
    """The level a ticket should show, and the notice that says so, with the notes it has not shown yet."""
    incident = ticket.incident
    notes = _notes(incident, after=shown.note if shown else 0)
    level = replace(
        moved_to(incident),
        cause=_digest(incident.root_cause) if _cause_has_changed(incident) else "",
        note=max((number for number, _ in notes), default=shown.note if shown else 0),
    )
    return level, _notice(ticket, incident, tuple(note for _, note in notes))


def _cause_has_changed(incident: Incident) -> bool:
    """Whether it is another than the one that every ticket begins with."""
    return bool(incident.cause_model) or incident.cause_at > incident.created_at


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def moved_to(incident: Incident) -> Level:
    """The level that an incident's moves have brought it to."""
    return Level(
        status=incident.status,
        escalated=incident.escalated_at is not None,
        moved=_moment(last_move(incident)),
        opened=_moment(incident.reopened_at),
    )


def last_move(incident: Incident) -> datetime | None:
    return max(filter(None, (getattr(incident, f"{name}_at") for name in MOVES)), default=None)


def _moment(at: datetime | None) -> str:
    return at.isoformat() if at else ""


def _notes(incident: Incident, *, after: int) -> list[tuple[int, Note]]:
    """Up to the state in hand: what was said with a move that came since belongs to the next message."""
    if last_move(incident) is None:
        return []
    said = audit_of(incident.pk).filter(timestamp__lte=incident.updated_at)
    entries = said.filter(pk__gt=after, data__has_key="note")
    return [(e.pk, Note(e.actor, e.data["note"], e.timestamp)) for e in entries]


def _notice(ticket: Ticket, incident: Incident, notes: tuple[Note, ...]) -> Notice:
    return Notice(
        key=ticket.key,
        incident_id=incident.pk,
        title=incident.title,
        description=incident.description,
        severity=incident.severity,
        status=incident.status,
        escalated=incident.escalated_at is not None,
        service=incident.service,
        affected_services=tuple(incident.affected_services),
        score=incident.anomaly_score,
        anomaly_count=incident.anomaly_count,
        root_cause=incident.root_cause,
        fallback=incident.fallback,
        link=link(incident.pk),
        opened_at=incident.created_at,
        environment=incident.environment,
        trace_id=incident.trace_id,
        actor=_actor(incident),
        notes=notes,
        previous_link=ticket.previous_links[-1] if ticket.previous_links else "",
    )


def _actor(incident: Incident) -> str:
    """Who brought it into its state: an incident that never moved was opened by nobody in particular."""
    return incident.reopened_by if incident.status == Status.OPEN else getattr(incident, f"{incident.status}_by")


def needed_since(ticket: Ticket) -> datetime:
    """When the ticket was last asked for: a fault long past must not page, one that burns again must."""
    incident = ticket.incident
    return max(filter(None, (ticket.created_at, incident.reopened_at, incident.escalated_at)))
