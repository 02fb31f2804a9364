"""Which incidents the console's list shows: what its address says, in which order, and where the page begins.

Nothing here counts or sorts all incidents: pages begin behind a row, and counts end at 10,001.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from django.db.models import Exists, F, OuterRef, Prefetch, Q, QuerySet, Subquery
from django.http import QueryDict
from django.utils import timezone
from django.utils.http import urlencode

from config.models import PlatformState
from incidents.models import DedupLock, Incident, PlatformPause, Severity, Status, Ticket, severity_rank
from platforms.catalog import PLATFORMS

PAGE_SIZE = 50
MOST_COUNTED = 10_000
MOST_LATE_TOLD = 1_000
LONGEST_SEARCH = 200
MOST_SUGGESTED = 10
RESOLVED_LATELY = 200
MOMENT = "%Y%m%dT%H%M%S.%f"
SEARCHED = ("title", "service", "id", "trace_id")
VIEWS = ("active", "open", "acknowledged", "escalated", "resolved", "all", "undelivered")
PERIODS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
KEPT = ("service", "platform", "period", "q", "order", "after", "before")
# What a row shows, or is sorted by.
ROW_COLUMNS = (
    *("title", "service", "severity", "status", "platforms", "affected_services", "anomaly_count", "last_anomaly_at"),
    *("created_at", "number", "acknowledged_by", "escalated_by", "resolved_by", "fallback"),
)
TICKET_COLUMNS = (
    *("platform", "wanted_version", "shown_version", "created_remotely_at", "due_at", "failing_since", "parked_at"),
    *("last_error", "remote_url", "seen_differs", "seen_version", "seen_status", "seen_category"),
)
# A delivery that takes longer than this is told.
LATE = timedelta(seconds=15)

# Field, and whether it falls. Each order is total: no two incidents of one moment have the same number.
ORDERS = {
    "urgency": (("rank", False), ("created_at", True), ("number", True)),
    "newest": (("created_at", True), ("number", True)),
    "oldest": (("created_at", False), ("number", False)),
    "seen": (("last_anomaly_at", True), ("created_at", True), ("number", True)),
    "anomalies": (("anomaly_count", True), ("created_at", True), ("number", True)),
}


@dataclass(frozen=True)
class Question:
    """What the list's address asks for. What it cannot mean is passed over, as if nobody had said it."""

    view: str = "active"
    severities: tuple[str, ...] = ()
    service: str = ""
    platform: str = ""
    period: str = ""
    q: str = ""
    order: str = ""
    after: str = ""
    before: str = ""

    @classmethod
    def read(cls, params: QueryDict) -> "Question":
        said = {name: _searchable(params.get(name, "")) for name in ("service", "q", "after", "before")}
        view, platform, period, order = (params.get(name, "") for name in ("view", "platform", "period", "order"))
        severities = ",".join(params.getlist("severity")).split(",")
        return cls(
            view=view if view in VIEWS else "active",
            severities=tuple(severity for severity in Severity.values if severity in severities),
            platform=platform if platform in PLATFORMS else "",
            period=period if period in PERIODS else "",
            order=order if order in ORDERS else "",
            **said,
        )

    @property
    def sorted_by(self) -> str:
        return self.order or ("urgency" if self.view == "active" else "newest")

    @property
    def narrowed(self) -> bool:
        """Whether more than the view was chosen."""
        return bool(self.severities or self.service or self.platform or self.period or self.q)

    def query(self, **changes: object) -> str:
        """The address's query with these changes, on the first page unless they name another."""
        return "?" + urlencode(replace(self, **{"after": "", "before": ""} | changes)._said())

    def said(self, *, leave_out: str) -> list[tuple[str, str]]:
        """What a form that asks for one thing must repeat."""
        return list(replace(self, after="", before="", **{leave_out: ""})._said().items())

    def _said(self) -> dict[str, str]:
        said = {"view": "" if self.view == "active" else self.view, "severity": ",".join(self.severities)}
        said |= {name: getattr(self, name) for name in KEPT}
        return {name: value for name, value in said.items() if value}

    def toggled(self, severity: str) -> str:
        chosen = set(self.severities) ^ {severity}
        return self.query(severities=tuple(known for known in Severity.values if known in chosen))


def _searchable(text: str) -> str:
    """No database can look for a NUL, or encode half a surrogate pair."""
    kept = "".join(c for c in text if ord(c) >= 32 and not 0xD800 <= ord(c) <= 0xDFFF)
    return kept.strip()[:LONGEST_SEARCH]


def matching(question: Question, now: datetime) -> QuerySet:
    """The incidents that are asked for, in no order."""
    # Drills are told where nothing is left out, and where they do not arrive.
    incidents = Incident.objects.all() if question.view in ("all", "undelivered") else Incident.objects.real()
    if question.view == "active":
        incidents = incidents.active()
    elif question.view in Status.values:
        incidents = incidents.filter(status=question.view)
    elif question.view == "undelivered":
        # In this form both engines begin with the late tickets, which are few, and not with the incidents.
        late = late_tickets(now).filter(platform=question.platform) if question.platform else late_tickets(now)
        incidents = incidents.filter(pk__in=late.order_by().values("incident"))
    if question.platform and question.view != "undelivered":
        incidents = incidents.filter(Exists(Ticket.objects.filter(incident=OuterRef("pk"), platform=question.platform)))
    if question.severities:
        incidents = incidents.filter(severity__in=question.severities)
    if question.service:
        incidents = incidents.filter(service=question.service)
    if question.period:
        incidents = incidents.filter(created_at__gte=now - PERIODS[question.period])
    if question.q:
        wanted = Q()
        for name in SEARCHED:
            wanted |= Q(**{f"{name}__icontains": question.q})
        incidents = incidents.filter(wanted)
    return incidents


def enabled_platforms() -> QuerySet:
    return PlatformState.objects.filter(enabled=True)


def late_tickets(now: datetime) -> QuerySet:
    """Tickets of enabled platforms that failed, are given up, or have been waiting for longer than is usual."""
    waiting = Q(due_at=None) | Q(due_at__lt=now - LATE)
    late = Q(failing_since__isnull=False) | Q(parked_at__isnull=False) | waiting
    return Ticket.objects.behind().filter(late, platform__in=enabled_platforms().values("platform"))


def with_tickets(incidents: QuerySet, *shown: str) -> QuerySet:
    """Each incident's tickets in one further query; each ticket tells whether its platform is `enabled`, and of the
    pause that is in force there. `shown`: the tickets' columns that are needed, if not nearly all."""
    states = enabled_platforms().filter(platform=OuterRef("platform"))
    pause = PlatformPause.objects.in_force().filter(platform=OuterRef("platform"))
    said = {f"pause_{name}": Subquery(pause.values(name)) for name in ("until", "reason", "asked")}
    tickets = Ticket.objects.annotate(enabled=Exists(states), **said).order_by("pk")
    tickets = tickets.only("incident", *shown) if shown else tickets.defer("shown", "remote_data")
    return incidents.prefetch_related(Prefetch("tickets", tickets))


# --- One page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    incidents: list[Incident]
    newer: str = ""  # where the page before ends, as the address says it
    older: str = ""


def rows(question: Question, incidents: QuerySet) -> QuerySet:
    """The rows of the page that the question names, and one more: from there to the end, or to the beginning."""
    keys = ORDERS[question.sorted_by]
    place = _place(keys, question.before or question.after)
    incidents = _ordered(keys, incidents, backwards=bool(question.before))
    if place:
        incidents = incidents.filter(_behind(keys, place, backwards=bool(question.before)))
    return incidents[: PAGE_SIZE + 1]


def page(question: Question, ids: list[str]) -> Page:
    """The page of these `rows`. Two queries, whatever their number, and none where there is no row."""
    keys = ORDERS[question.sorted_by]
    backwards = bool(question.before)
    place = _place(keys, question.before or question.after)
    known = Incident.objects.filter(pk__in=ids).only(*ROW_COLUMNS)
    found = list(_ordered(keys, with_tickets(known, *TICKET_COLUMNS), backwards)) if ids else []
    more = len(found) > PAGE_SIZE
    found = found[:PAGE_SIZE]
    if place and backwards:
        found.reverse()
    has_newer, has_older = (more, True) if place and backwards else (bool(place), more)
    return Page(
        found,
        newer=_said(keys, found[0]) if found and has_newer else "",
        older=_said(keys, found[-1]) if found and has_older else "",
    )


def _ordered(keys: tuple, incidents: QuerySet, backwards: bool) -> QuerySet:
    if keys[0][0] == "rank":
        incidents = incidents.annotate(rank=severity_rank())
    return incidents.order_by(*(F(name).desc() if falls != backwards else F(name).asc() for name, falls in keys))


def _said(keys: tuple, incident: Incident) -> str:
    values = (getattr(incident, name) for name, _ in keys)
    return "~".join(v.astimezone(UTC).strftime(MOMENT) if isinstance(v, datetime) else str(v) for v in values)


def _place(keys: tuple, text: str) -> list | None:
    parts = text.split("~")
    if not text or len(parts) != len(keys):
        return None
    try:
        return [_read(name, part) for (name, _), part in zip(keys, parts, strict=True)]
    except ValueError:
        return None


def _read(name: str, part: str) -> datetime | int:
    if name.endswith("_at"):
        return datetime.strptime(part, MOMENT).replace(tzinfo=UTC)
    if not (part.isascii() and part.isdigit() and len(part) < 10):
        raise ValueError(part)
    return int(part)


def _behind(keys: tuple, place: list, backwards: bool) -> Q:
    """Rows behind the place. The first condition alone lets an index begin there."""
    first, falls = keys[0]
    wanted, same = Q(), Q()
    for (name, descends), value in zip(keys, place, strict=True):
        wanted |= same & Q(**{f"{name}__{'lt' if descends != backwards else 'gt'}": value})
        same &= Q(**{name: value})
    return Q(**{f"{first}__{'lte' if falls != backwards else 'gte'}": place[0]}) & wanted


# --- Counts -----------------------------------------------------------------------------------------------------------


def to_count(incidents: QuerySet) -> QuerySet:
    """As many of them as are counted, and one more."""
    return incidents.order_by()[: MOST_COUNTED + 1]


@dataclass(frozen=True)
class Late:
    """Tickets that did not arrive in time: per platform how many and since when, and of how many incidents."""

    platforms: dict[str, tuple[int, datetime | None]]
    incidents: int
    more: bool


def late_of(rows: list[tuple[str, str, datetime | None]]) -> Late:
    """What is told of deliveries, from the first 1,000 late tickets: platform, incident, and since when it fails."""
    platforms: dict[str, tuple[int, datetime | None]] = {}
    for platform, _, since in rows:
        count, earliest = platforms.get(platform, (0, None))
        platforms[platform] = (count + 1, min(filter(None, (earliest, since)), default=None))
    return Late(platforms, len({incident for _, incident, _ in rows}), len(rows) > MOST_LATE_TOLD)


def last_resolved() -> list[Incident]:
    """Five of those that were opened lately: nobody keeps all of them sorted by their end."""
    newest = Incident.objects.real().filter(status=Status.RESOLVED).newest_first().values("pk")[:RESOLVED_LATELY]
    last = Incident.objects.filter(pk__in=newest).order_by("-resolved_at", "-number")
    return list(last.only("id", "title", "service", "severity", "resolved_at", "resolved_by", "created_at")[:5])


def services(part: str) -> list[str]:
    """The first ten services, by name, that have this in their name and ever had an anomaly."""
    known = DedupLock.objects.filter(service__icontains=part) if part else DedupLock.objects.all()
    return list(known.order_by("service").values_list("service", flat=True).distinct()[:MOST_SUGGESTED])


def ids_matching(question: Question, most: int) -> list[str]:
    rows = matching(question, timezone.now()).newest_first()
    return list(rows.values_list("pk", flat=True)[:most])
