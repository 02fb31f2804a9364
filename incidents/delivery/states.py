"""How a ticket stands, in words that an engineer can act on. One place, for the API and the console alike."""

from dataclasses import dataclass
from datetime import datetime

from incidents.models import Ticket
from platforms.catalog import PLATFORMS


@dataclass(frozen=True)
class TicketState:
    """`name` is in sync, pending, retrying, failed, paused or not needed; `words` say more."""

    name: str
    words: str
    next_attempt_at: datetime | None = None


def state_of(ticket: Ticket, *, enabled: bool) -> TicketState:
    behind = ticket.wanted_version - ticket.shown_version
    if not behind:
        if ticket.created_remotely_at is None:
            return TicketState("not needed", "resolved before anybody was told")
        return TicketState("in sync", "in sync")
    if ticket.parked_at:
        return TicketState("failed", f"failed: {ticket.last_error}")
    changes = "1 change" if behind == 1 else f"{behind} changes"
    if not enabled:
        return TicketState("paused", f"{changes} behind: the platform is disabled")
    if ticket.failing_since:
        return TicketState("retrying", f"{changes} behind: {ticket.last_error}", ticket.due_at)
    return TicketState("pending", f"{changes} behind", ticket.due_at)


def difference(ticket: Ticket) -> str:
    """What the ticket was seen to show instead of what it should, for a person to decide; empty where all is well."""
    if not ticket.differs:
        return ""
    return f"{PLATFORMS[ticket.platform].label} says {ticket.seen_status}, the incident is {ticket.incident.status}"
