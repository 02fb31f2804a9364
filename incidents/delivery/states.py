"""How a ticket stands, in words that an engineer can act on. One place, for the API and the console alike."""

from dataclasses import dataclass
from datetime import UTC, datetime

from incidents.models import PlatformPause, Ticket
from platforms.catalog import PLATFORMS


@dataclass(frozen=True)
class TicketState:
    """`name` is in sync, pending, retrying, failed, paused or not needed; `words` say more."""

    name: str
    words: str
    next_attempt_at: datetime | None = None


def state_of(ticket: Ticket, *, enabled: bool, pause: PlatformPause | None = None) -> TicketState:
    """`pause`: the one in force at the ticket's platform."""
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
    name = "retrying" if ticket.failing_since else "pending"
    if pause:
        return TicketState(name, f"waits: {pause_in_words(pause)}", max(filter(None, (ticket.due_at, pause.until))))
    if ticket.failing_since:
        return TicketState(name, f"{changes} behind: {ticket.last_error}", ticket.due_at)
    return TicketState(name, f"{changes} behind", ticket.due_at)


def pause_in_words(pause: PlatformPause) -> str:
    """Who makes us wait, until when and why."""
    does = "asked us to wait" if pause.asked else "fails again and again and is left alone"
    until = pause.until.astimezone(UTC).strftime("%H:%M:%S")
    return f"{PLATFORMS[pause.platform].label} {does} until {until} UTC: {pause.reason}"


def difference(ticket: Ticket) -> str:
    """What the ticket was seen to show instead of what it should, for a person to decide; empty where all is well."""
    if not ticket.differs:
        return ""
    return f"{PLATFORMS[ticket.platform].label} says {ticket.seen_status}, the incident is {ticket.incident.status}"
