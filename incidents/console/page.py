"""What the page of one incident tells: its cause, evidence, anomalies, tickets, facts and timeline."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote

from django.conf import settings
from django.db.models import Count, Q, QuerySet, Window
from django.db.models.functions import Substr
from django.http import QueryDict

from auditlog import models as auditlog
from incidents.console import charts, listing
from incidents.delivery.states import TicketState, difference, state_of
from incidents.evidence import Evidence
from incidents.lifecycle import MOVES
from incidents.models import Anomaly, Incident, PlatformPause, Status, Ticket
from incidents.templatetags.console import span
from platforms.catalog import PLATFORMS

RECENT_ANOMALIES = 20
FIRST_ENTRIES = 50
MOST_ENTRIES = 1000
OTHERS = 5
EVIDENCE_LINES = 10
# What a platform is called where five must stand side by side; the others' names are short enough.
SHORT = {"pagerduty": "PD", "servicenow": "SNow", "opsgenie": "OG"}
# The one usual next step in each state.
USUAL = {
    Status.OPEN: "acknowledge",
    Status.ACKNOWLEDGED: "resolve",
    Status.ESCALATED: "acknowledge",
    Status.RESOLVED: "reopen",
}


@dataclass(frozen=True)
class TicketLine:
    ticket: Ticket
    label: str
    state: TicketState
    difference: str = ""  # what it really shows, where that is something else

    @property
    def short(self) -> str:
        return SHORT.get(self.ticket.platform, self.label)

    @property
    def troubled(self) -> bool:
        return self.state.name in ("failed", "retrying")

    @property
    def may_retry(self) -> bool:
        return self.state.name in ("failed", "retrying", "pending")

    @property
    def gone(self) -> bool:
        return bool(self.difference) and self.ticket.seen_category == "gone"

    @property
    def may_set_again(self) -> bool:
        return bool(self.difference) and not self.gone

    @property
    def may_begin_anew(self) -> bool:
        return self.state.name == "failed" or self.gone


@dataclass(frozen=True)
class Happening:
    """One line of the timeline: an audit entry, or what a row tells of itself."""

    at: datetime
    kind: str  # created, acknowledged, escalated, resolved, reopened, delivery, trouble, cause
    action: str
    actor: str = ""
    details: str = ""
    note: str = ""
    order: int = 0


def ticket_lines(incident: Incident) -> list[TicketLine]:
    """In the platforms' order. `listing.with_tickets` told each ticket whether its platform is enabled."""
    by_platform = {ticket.platform: ticket for ticket in incident.tickets.all()}
    lines = []
    for name, platform in PLATFORMS.items():
        if ticket := by_platform.get(name):
            state = state_of(ticket, enabled=ticket.enabled, pause=_pause(ticket))
            lines.append(TicketLine(ticket, platform.label, state, difference(ticket)))
    return lines


def _pause(ticket: Ticket) -> PlatformPause | None:
    if ticket.pause_until is None:
        return None
    said = {"until": ticket.pause_until, "reason": ticket.pause_reason, "asked": ticket.pause_asked}
    return PlatformPause(platform=ticket.platform, **said)


def moves(incident: Incident) -> list[tuple[str, bool]]:
    """The moves that the state allows, and whether each is the usual next one."""
    usual = USUAL[Status(incident.status)]
    allowed = [move.name for move in MOVES.values() if incident.status in move.allowed_from]
    if incident.status in (Status.ACKNOWLEDGED, Status.ESCALATED):
        allowed = [name for name in allowed if name != "reopen"] + ["reopen"]
    return sorted(((name, name == usual) for name in allowed), key=lambda item: not item[1])


@dataclass(frozen=True)
class Trail:
    """What an open page asks for again and again: the incident, its tickets and what happened."""

    incident: Incident
    lines: list[TicketLine]
    timeline: list[Happening]
    more: int  # entries of the audit that are not told

    @property
    def version(self) -> tuple:
        """Changes with whatever the page shows, but for the passing of time."""
        i = self.incident
        state = (i.status, i.updated_at, i.cause_at, i.fallback, i.cause_error, i.model_due_at, i.last_anomaly_at)
        tickets = [(one.ticket.pk, one.state, one.difference, one.ticket.remote_url) for one in self.lines]
        return i.pk, state, tickets, [(happening.at, happening.action) for happening in self.timeline]


def trail(incident: Incident, params: QueryDict) -> Trail:
    """One query, beside the incident's own two."""
    lines = ticket_lines(incident)
    return Trail(incident, lines, *happenings(incident, lines, everything=params.get("timeline") == "all"))


def context(known: Trail, params: QueryDict, now: datetime) -> dict:
    """All of the page, in three queries more."""
    incident, lines, timeline, more = known.incident, known.lines, known.timeline, known.more
    if params.get("order") == "oldest":
        timeline.reverse()
    evidence = Evidence.from_json(incident.evidence)
    came_by = "reopened" if incident.status == Status.OPEN else incident.status
    anomalies, older = recent(incident, params.get("anomalies", ""))
    return {
        "incident": incident,
        "moves": moves(incident),
        "lines": lines,
        "facts": facts(incident),
        "runbook": _address(settings.RUNBOOK_URL_TEMPLATE, incident),
        "trace": _address(settings.TRACE_URL_TEMPLATE, incident) if incident.trace_id else "",
        "evidence": evidence_facts(evidence),
        "log_lines": _log_lines(evidence),
        "waiting_for_model": incident.model_due_at is not None,
        "chart": charts.anomalies(incident),
        "anomalies": anomalies,
        "older_anomalies": older,
        "timeline": timeline,
        "timeline_more": more,
        "timeline_next": 0 if params.get("timeline") == "all" else min(more, MOST_ENTRIES - FIRST_ENTRIES),
        "oldest_first": params.get("order") == "oldest",
        "others": others(incident),
        "by": getattr(incident, f"{came_by}_by"),
        "since": getattr(incident, f"{came_by}_at"),
        "burning": incident.status != Status.RESOLVED and now - incident.last_anomaly_at < timedelta(minutes=5),
    }


def _address(template: str, incident: Incident) -> str:
    """An operator's address with what the incident says in its places, none of which can leave its place."""
    known = {"service": incident.service, "severity": incident.severity, "id": incident.pk}
    for name, value in (known | {"trace_id": incident.trace_id}).items():
        template = template.replace(f"{{{name}}}", quote(value, safe="").replace(".", "%2E"))
    return template


def neighbour(incident: Incident, *, older: bool) -> str | None:
    """The incident that was opened before this one, or after it."""
    way = "lt" if older else "gt"
    same = Q(created_at=incident.created_at) & Q(**{f"number__{way}": incident.number})
    rows = Incident.objects.filter(Q(**{f"created_at__{way}": incident.created_at}) | same)
    rows = rows.newest_first() if older else rows.order_by("created_at", "number")
    return rows.values_list("pk", flat=True).first()


def recent(incident: Incident, before: str) -> tuple[list[Anomaly], str]:
    """The latest anomalies, or those before a number, and the number at which older ones begin."""
    rows: QuerySet[Anomaly] = incident.anomalies.defer("payload").order_by("-id")
    if before.isascii() and before.isdigit() and len(before) < 18:
        rows = rows.filter(pk__lt=int(before))
    found = list(rows[: RECENT_ANOMALIES + 1])
    older = str(found[RECENT_ANOMALIES - 1].pk) if len(found) > RECENT_ANOMALIES else ""
    return found[:RECENT_ANOMALIES], older


def others(incident: Incident) -> list[Incident]:
    """The service's other incidents, the newest first, each with the first line of its `cause`."""
    same = Incident.objects.filter(service=incident.service).exclude(pk=incident.pk).newest_first()
    same = same.annotate(begin=Substr("root_cause", 1, 300))
    found = list(same.only("id", "title", "status", "severity", "created_at")[:OTHERS])
    for other in found:
        other.cause = next(iter(other.begin.strip().splitlines()), "")
    return found


def facts(incident: Incident) -> list[tuple[str, str]]:
    """Short facts, the empty ones left out."""
    known = [
        ("Highest score", f"{incident.anomaly_score:.6g}"),
        ("Environment", incident.environment),
        ("Tenant", incident.tenant_id),
        ("Routed to", ", ".join(PLATFORMS[name].label for name in incident.platforms if name in PLATFORMS)),
        ("Escalated to", ", ".join(PLATFORMS[name].label for name in incident.escalated_to if name in PLATFORMS)),
    ]
    for status in (Status.ACKNOWLEDGED, Status.ESCALATED, Status.RESOLVED):
        if at := getattr(incident, f"{status}_at"):
            known.append((status.label, f"after {span((at - incident.created_at).total_seconds())}"))
    return [(name, value) for name, value in known if value]


def evidence_facts(evidence: Evidence) -> list[tuple[str, str]]:
    known = [
        ("Message", evidence.message),
        ("Error", evidence.raw_error),
        ("Type", evidence.anomaly_type),
        ("Category", evidence.category),
        ("Pattern", evidence.template),
        ("Endpoint", evidence.endpoint),
        ("Likely origin", evidence.root_cause_service),
        ("Chain", " → ".join(evidence.causal_chain)),
        ("Request", " → ".join(evidence.request_flow)),
        ("z-score", "" if evidence.z_score is None else f"{evidence.z_score:.3g}"),
        ("Error rate", "" if evidence.error_rate is None else f"{evidence.error_rate:.3g}"),
        ("Impact", _impact(evidence)),
    ]
    return [(name, value) for name, value in known if value]


def _log_lines(evidence: Evidence) -> list[str]:
    lines = evidence.log_lines[:EVIDENCE_LINES]
    return [" ".join(filter(None, (line.at, line.level, line.service, line.message))) for line in lines]


def _impact(evidence: Evidence) -> str:
    impact = evidence.impact
    if impact is None:
        return ""
    said = [", ".join(impact.downstream), impact.users, "" if impact.score is None else f"score {impact.score:.3g}"]
    return " · ".join(filter(None, said))


# --- Timeline ---------------------------------------------------------------------------------------------------------


def happenings(incident: Incident, lines: list[TicketLine], *, everything: bool) -> tuple[list[Happening], int]:
    """What happened, newest first: the audit's entries with what tickets and cause tell of themselves, and how many
    entries are not shown."""
    subjects = [incident.subject, *(f"ticket:{incident.pk}:{name}" for name in PLATFORMS)]
    most = MOST_ENTRIES if everything else FIRST_ENTRIES
    entries = auditlog.Entry.objects.filter(subject__in=subjects).annotate(all=Window(Count("*"))).order_by("-id")
    entries = list(entries[:most])
    told = [_entry(entry) for entry in entries]
    if not incident.fallback:
        model = incident.cause_model
        told.append(Happening(incident.cause_at, "cause", "root cause", model, "The model's answer arrived"))
    for line in lines:
        told += _of_ticket(line)
    told.sort(key=lambda happening: (happening.at, happening.order), reverse=True)
    return told, entries[0].all - len(entries) if entries else 0


def _entry(entry: auditlog.Entry) -> Happening:
    kind = entry.action if entry.subject.startswith("incident:") else "delivery"
    return Happening(
        entry.timestamp, kind, entry.action, entry.actor, entry.details, str(entry.data.get("note", "")), order=entry.pk
    )


def _of_ticket(line: TicketLine) -> list[Happening]:
    ticket, told = line.ticket, []
    if ticket.created_remotely_at:
        created = f"{line.label} ticket created"
        told.append(Happening(ticket.created_remotely_at, "delivery", created, "", ticket.remote_id))
    if ticket.parked_at:
        told.append(Happening(ticket.parked_at, "trouble", f"{line.label} ticket failed", "", ticket.last_error))
    elif line.difference:
        told.append(Happening(ticket.seen_at, "trouble", f"{line.label} ticket differs", "", line.difference))
    elif ticket.failing_since:
        told.append(Happening(ticket.failing_since, "trouble", f"{line.label} began to fail", "", ticket.last_error))
    return told


def find(incident_id: str) -> Incident | None:
    """The incident with its tickets, in two queries."""
    return listing.with_tickets(Incident.objects.filter(pk=incident_id)).first()
