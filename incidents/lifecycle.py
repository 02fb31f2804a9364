"""What an incident does, from open to resolved and back: each change with its audit entry and what its tickets should
now show, in one transaction. Every door comes through here; none of it talks to the network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Greatest, Now
from django.utils import timezone

from auditlog import models as auditlog
from config.current import Current, current
from incidents import wakeup
from incidents.delivery.core import Level
from incidents.models import SEVERITY_RANK, Incident, ModelHealth, PlatformPause, Status, Ticket, lease, subject
from incidents.times import timestamp
from platforms.catalog import PLATFORMS

LONGEST_NOTE = 2000
LONGEST_ACTOR = 200
MOVES_AT_ONCE = 1000
RETRIED_AT_ONCE = 5000
# How long tickets that people read at leisure wait for the model's answer, so that their first text carries it.
WAIT_FOR_CAUSE_SECONDS = 5
ASKED_AGAIN_SECONDS = 60
MOST_URGENT = min(SEVERITY_RANK.values())


@dataclass(frozen=True)
class Move:
    """One thing a person can do to an incident."""

    name: str  # as the API calls it
    leads_to: Status
    allowed_from: frozenset[Status]
    past: str  # as the audit calls it


MOVES = {
    move.name: move
    for move in (
        Move("acknowledge", Status.ACKNOWLEDGED, frozenset({Status.OPEN, Status.ESCALATED}), "acknowledged"),
        Move("escalate", Status.ESCALATED, frozenset({Status.OPEN, Status.ACKNOWLEDGED}), "escalated"),
        Move("resolve", Status.RESOLVED, frozenset({Status.OPEN, Status.ACKNOWLEDGED, Status.ESCALATED}), "resolved"),
        Move("reopen", Status.OPEN, frozenset({Status.ACKNOWLEDGED, Status.ESCALATED, Status.RESOLVED}), "reopened"),
    )
}


@dataclass(frozen=True)
class Moved:
    """The incident is in the state asked for; `changed` tells whether this call brought it there."""

    incident: Incident
    changed: bool


@dataclass(frozen=True)
class Refused:
    """The incident is as it was. `unknown`: there is none of this id."""

    id: str
    message: str
    unknown: bool = False
    incident: Incident | None = None


@dataclass(frozen=True)
class Author:
    """Who is behind a change, as the audit names them, and the request it came with."""

    actor: str
    request_id: str = ""


# --- Opening ----------------------------------------------------------------------------------------------------------


def open_incidents(opened: Sequence[tuple[Incident, Author]], config: Current) -> None:
    """Writes new incidents with their audit entries and tickets. Call it inside the intake's transaction."""
    if not opened:
        return
    incidents = [incident for incident, _ in opened]
    ask_model = config.llm.configured and not all(incident.drill for incident in incidents)
    model_healthy = ask_model and _model_is_healthy(config)
    for incident in incidents:
        incident.platforms = config.enabled() if incident.drill else config.routed(incident.severity)
        incident.model_due_at = incident.created_at if ask_model and not incident.drill else None
    Incident.objects.bulk_create(incidents)
    auditlog.write(
        auditlog.entry(
            incident.subject,
            "created",
            actor=author.actor,
            details="Incident created as a drill" if incident.drill else "Incident created from anomaly detection",
            at=incident.created_at,
            request_id=author.request_id,
            to=Status.OPEN.value,
            platforms=incident.platforms,
        )
        for incident, author in opened
    )
    _create_tickets([(i, name) for i in incidents for name in i.platforms], config, wait_for_cause=model_healthy)
    if ask_model:
        wakeup.wake("causes", {"incidents"})


def _model_is_healthy(config: Current) -> bool:
    health = ModelHealth.objects.first()
    return bool(health and health.available and health.settings_at == config.llm.changed_at)


def _create_tickets(pairs: Sequence[tuple[Incident, str]], config: Current, *, wait_for_cause: bool) -> None:
    Ticket.objects.bulk_create(
        (
            Ticket(
                incident=incident,
                platform=name,
                urgency=_urgency(incident),
                settings_version_id=config.platforms[name].version_id,
                due_at=lease(WAIT_FOR_CAUSE_SECONDS) if wait_for_cause and not PLATFORMS[name].pages else Now(),
            )
            for incident, name in pairs
        ),
        ignore_conflicts=True,
    )
    wakeup.wake("tickets", {name for _, name in pairs})


def _urgency(incident: Incident) -> int:
    """Whom somebody escalated for is told before the backlog, however low the fault was thought to be."""
    return MOST_URGENT if incident.status == Status.ESCALATED else SEVERITY_RANK[incident.severity]


# --- Moving -----------------------------------------------------------------------------------------------------------


def move(
    name: str,
    ids: Iterable[str],
    *,
    actor: str,
    note: str = "",
    request_id: str = "",
    at: datetime | None = None,
) -> list[Moved | Refused]:
    """Makes one move on each incident on its own, in the order given. Constant number of queries. Raises nothing.

    `at`: when it was made elsewhere, not before the incidents' latest moves.
    """
    wanted = MOVES[name]
    ids = list(dict.fromkeys(ids))
    with transaction.atomic():
        locked = {i.id: i for i in Incident.objects.select_for_update().filter(pk__in=ids).order_by("pk")}
        results = [_decide(wanted, incident_id, locked.get(incident_id)) for incident_id in ids]
        moving = [result.incident for result in results if isinstance(result, Moved) and result.changed]
        if moving:
            _apply(wanted, moving, actor=actor, note=note[:LONGEST_NOTE], request_id=request_id, at=at)
    return results


def reopen_for_anomaly(incidents: Sequence[Incident], author: Author, *, now: datetime) -> None:
    """Resolved incidents that burn again, already locked by the intake."""
    who = {"actor": author.actor, "request_id": author.request_id}
    _apply(MOVES["reopen"], incidents, **who, note="", why="new anomaly", now=now)


def _decide(wanted: Move, incident_id: str, incident: Incident | None) -> Moved | Refused:
    if incident is None:
        return Refused(incident_id, f"There is no incident {incident_id[:100]}.", unknown=True)
    if incident.status == wanted.leads_to:
        return Moved(incident, changed=False)
    if incident.status in wanted.allowed_from:
        return Moved(incident, changed=True)
    message = f"{state_in_words(incident)} It cannot be {wanted.past} before it is reopened."
    return Refused(incident_id, message, incident=incident)


def state_in_words(incident: Incident) -> str:
    """Who brought the incident into its state, and when."""
    by = getattr(incident, f"{incident.status}_by", "")
    at = getattr(incident, f"{incident.status}_at", None)
    words = f"{incident.id} was {incident.status}" + (f" by {by}" if by else "")
    return words + (f" at {timestamp(at)}." if at else ".")


def _apply(
    wanted: Move,
    incidents: Sequence[Incident],
    *,
    actor: str,
    note: str,
    request_id: str,
    why: str = "",
    now: datetime | None = None,
    at: datetime | None = None,
) -> None:
    """The row, its audit entry and what the tickets should show. The incidents are locked and may make the move.

    `at`: when it was made, where we hear of it later.
    """
    now = now or timezone.now()
    at = at or now
    config = current()
    targets = config.escalation() if wanted.name == "escalate" else []
    entries = [
        auditlog.entry(
            incident.subject,
            wanted.past,
            actor=actor,
            details=_details(wanted, incident, targets) + (f" by a {why}" if why else ""),
            at=at,
            request_id=request_id,
            **{"from": incident.status, "to": wanted.leads_to.value},
            note=note,
            platforms=targets,
        )
        for incident in incidents
    ]
    by = f"{actor[: LONGEST_ACTOR - len(why) - 3]} ({why})" if why else actor
    changes = _changes(wanted, targets, actor=by, at=at)
    ids = [incident.pk for incident in incidents]
    Incident.objects.filter(pk__in=ids).update(**changes, updated_at=Greatest(F("updated_at"), Value(now)))
    for incident in incidents:
        for field, value in changes.items():
            setattr(incident, field, value)
        incident.updated_at = max(incident.updated_at, now)
    auditlog.write(entries)
    tickets_want_more(ids, **({"urgency": _urgency(incidents[0])} if wanted.name == "escalate" else {}))
    if targets:
        _escalate_to(incidents, targets, config)


def _details(wanted: Move, incident: Incident, targets: list[str]) -> str:
    if wanted.name == "escalate":
        if targets:
            return f"Escalated to {', '.join(targets)}"
        return "Escalated, but no platform that could be told is enabled: nobody was told"
    if wanted.name == "resolve":
        return "Status changed to resolved"
    return f"Status changed from {incident.status} to {wanted.leads_to}"


def _changes(wanted: Move, targets: list[str], *, actor: str, at: datetime) -> dict:
    if wanted.name == "reopen":
        # The incident begins anew; what was before stands in the audit.
        times = {f"{state}_at": None for state in ("acknowledged", "escalated", "resolved")}
        names = {f"{state}_by": "" for state in ("acknowledged", "escalated", "resolved")}
        return {"status": Status.OPEN, "reopened_at": at, "reopened_by": actor, "escalated_to": [], **times, **names}
    changes = {"status": wanted.leads_to, f"{wanted.past}_at": at, f"{wanted.past}_by": actor}
    return changes | ({"escalated_to": targets} if wanted.name == "escalate" else {})


def tickets_want_more(incident_ids: Sequence[str], *, due_at: Case | Now | None = None, **changes: object) -> None:
    """The incidents' tickets no longer show what they should: they are due at once, those given up too."""
    tickets = Ticket.objects.filter(incident_id__in=incident_ids)
    more = F("wanted_version") + 1
    tickets.update(wanted_version=more, due_at=due_at or Now(), parked_at=None, attempts=0, **changes)
    wakeup.wake("tickets", set(PLATFORMS))


def _escalate_to(incidents: Sequence[Incident], targets: list[str], config: Current) -> None:
    """Tickets where there are none yet; those that exist are raised by `tickets_want_more`."""
    by_platforms: dict[tuple[str, ...], list[Incident]] = {}
    for incident in incidents:
        by_platforms.setdefault(tuple(incident.platforms), []).append(incident)
    for platforms, group in by_platforms.items():
        more = [*platforms, *(name for name in targets if name not in platforms)]
        if len(more) > len(platforms):
            Incident.objects.filter(pk__in=[i.pk for i in group]).update(platforms=more)
            for incident in group:
                incident.platforms = more
    _create_tickets([(i, name) for i in incidents for name in targets], config, wait_for_cause=False)


# --- Root cause -------------------------------------------------------------------------------------------------------


def cause_arrived(incident_id: str, claim: int, *, text: str, model: str, seconds: float) -> bool:
    """The model's answer replaces the rules', and the tickets are brought up to date. False where it came too late.

    `seconds`: that the model took to answer.
    """
    return _cause_settled(
        incident_id,
        claim,
        root_cause=text,
        cause_model=model[:100],
        cause_seconds=seconds,
        cause_error="",
        fallback=False,
        model_due_at=None,
    )


def cause_failed(incident_id: str, claim: int, *, error: str, again_in: float | None) -> bool:
    """The rules' answer stands, and the tickets wait no longer. `again_in`: seconds until the model is asked again."""
    return _cause_settled(
        incident_id, claim, cause_error=error[:500], model_due_at=None if again_in is None else lease(again_in)
    )


def cause_improved(incident_ids: Sequence[str]) -> None:
    """The rules came to know a cause, in a row that the intake holds and has written: tickets are brought up to date.

    Those not tried yet go on waiting for the model. They want more like the others: an attempt may be under way.
    """
    if not incident_ids:
        return
    waiting = When(shown_version=0, attempts=0, due_at__isnull=False, then=F("due_at"))
    tickets_want_more(incident_ids, due_at=Case(waiting, default=Now()))


def ask_model_again(incident_id: str) -> bool:
    """The model is asked anew, however long ago the fault, once in a minute at most; the cause stays until it answers.

    False where it is being asked, or was a moment ago. The cause is not the incident's state, so it is not audited.
    """
    idle = Incident.objects.filter(pk=incident_id, model_due_at=None)
    rested = idle.exclude(model_asked_again_at__gte=lease(-ASKED_AGAIN_SECONDS))
    asked = rested.update(model_due_at=Now(), model_asked_again_at=Now(), model_attempts=0, cause_error="")
    if asked:
        wakeup.wake("causes", {"incidents"})
    return bool(asked)


def _cause_settled(incident_id: str, claim: int, **changes: object) -> bool:
    answered = "root_cause" in changes
    with transaction.atomic():
        mine = Incident.objects.filter(pk=incident_id, model_claim=claim, model_lease_until__isnull=False)
        if answered:
            changes["cause_at"] = timezone.now()
        if not mine.update(model_lease_until=None, **changes):
            return False
        if answered:
            tickets_want_more([incident_id])
        else:
            waiting = Ticket.objects.filter(incident_id=incident_id, shown_version=0, attempts=0, due_at__gt=Now())
            waiting.update(due_at=Now())
            wakeup.wake("tickets", set(PLATFORMS))
    return True


# --- Tickets ----------------------------------------------------------------------------------------------------------


def retry_ticket(ticket_id: int, *, actor: str, anew: bool = False, request_id: str = "") -> Ticket | None:
    """Sends a ticket again now, whatever it waits for: a pause of its platform ends. `anew`: as a new record, where the
    old one is lost. Since when it fails stays known.

    None where there is no such ticket.
    """
    with transaction.atomic():
        ticket = Ticket.objects.select_for_update().filter(pk=ticket_id).first()
        if ticket is None:
            return None
        # Asked for now, so it is not too old to be created, however old the fault.
        changes: dict = {"due_at": Now(), "parked_at": None, "attempts": 0, "created_at": timezone.now()}
        if ticket.differs and not anew:
            changes |= _as_seen(ticket)
        if anew:
            changes |= {
                "generation": F("generation") + 1,
                "remote_id": "",
                "remote_url": "",
                "remote_data": {},
                "created_remotely_at": None,
                "shown": {},
                "heard_version": 0,
                "in_doubt": False,
                "lookups": 0,
                "previous_links": [*ticket.previous_links, *filter(None, [ticket.remote_url])],
            }
            # Whoever is at the old record has no say any more.
            changes |= {"claim": F("claim") + 1, "lease_until": None}
        if ticket.shown_version == ticket.wanted_version:
            changes["wanted_version"] = F("wanted_version") + 1
        Ticket.objects.filter(pk=ticket_id).update(**changes)
        auditlog.write(
            [
                auditlog.entry(
                    f"ticket:{ticket.incident_id}:{ticket.platform}",
                    "created anew" if anew else "sent again",
                    actor=actor,
                    details=f"{PLATFORMS[ticket.platform].label} ticket of {ticket.incident_id} to be "
                    + ("created anew" if anew else "sent again"),
                    at=timezone.now(),
                    request_id=request_id,
                )
            ]
        )
        PlatformPause.objects.end(ticket.platform)
        wakeup.wake("tickets", {ticket.platform})
    ticket.refresh_from_db()
    return ticket


def _as_seen(ticket: Ticket) -> dict:
    """The ticket shows what was seen there, so that the attempt which is now due puts it right."""
    shown = Level.from_json(ticket.shown)
    if shown is None or ticket.seen_category == "gone":
        return {}
    heard = replace(shown, status=ticket.seen_category, moved=ticket.seen_at.isoformat())
    return {"heard": heard.as_json(), "heard_version": F("wanted_version") + 1}


@dataclass(frozen=True)
class SentAgain:
    tickets: list[int]
    pause_ended: bool


def retry_platform(platform: str, *, actor: str, request_id: str = "") -> SentAgain:
    """Sends all of a platform's tickets that fail or were given up again now: the oldest, 5,000 at most, in a constant
    number of queries. A pause of the platform ends, so that what merely waits for it goes too.
    """
    label = PLATFORMS[platform].label
    with transaction.atomic():
        # Whoever holds one this moment makes it due, or notes what came of it: waiting for them could end in a circle.
        rows = Ticket.objects.failing().filter(platform=platform).select_for_update(skip_locked=True)
        found = dict(rows.order_by("created_at").values_list("pk", "incident_id")[:RETRIED_AT_ONCE])
        now = timezone.now()
        about = {"actor": actor, "at": now, "request_id": request_id}
        pause_ended = PlatformPause.objects.end(platform)
        if pause_ended:
            details = f"{label}: asked again at once, its pause is over"
            auditlog.write([auditlog.entry(f"platform:{platform}", "pause ended", details=details, **about)])
            wakeup.wake("tickets", {platform})
        if not found:
            return SentAgain([], pause_ended)
        changes = {"due_at": Now(), "parked_at": None, "attempts": 0, "created_at": now}
        Ticket.objects.filter(pk__in=found).update(**changes)
        said = f"{len(found):,} failed ticket{'' if len(found) == 1 else 's'} to be sent again"
        auditlog.write(
            [
                auditlog.entry(f"platform:{platform}", "sent again", details=f"{label}: {said}", **about),
                *(
                    auditlog.entry(
                        f"ticket:{incident_id}:{platform}",
                        "sent again",
                        details=f"{label} ticket of {incident_id} to be sent again, with all that failed there",
                        **about,
                    )
                    for incident_id in found.values()
                ),
            ]
        )
        wakeup.wake("tickets", {platform})
    return SentAgain(list(found), pause_ended)


def audit_of(incident_id: str):
    """The state changes of an incident, oldest first."""
    return auditlog.Entry.objects.about(subject(incident_id))
