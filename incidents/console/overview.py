"""The console's first page of numbers: what burns now, how the last days went, and whether tickets arrive."""

import json
from datetime import datetime, timedelta

from django.core.cache import cache
from django.db.models import Case, Count, FloatField, Value, When
from django.db.models.functions import Greatest
from django.utils import timezone

from config.models import PlatformState
from incidents import drill
from incidents.console import charts, glance
from incidents.console.spread import Group, Seconds, Spread, spreads
from incidents.models import SEVERITY_RANK, Incident, ModelHealth, Status, Ticket
from incidents.templatetags.console import span
from platforms.catalog import PLATFORMS

KEPT_SECONDS = 30
TOP_SERVICES = 5
MOST_TIMED = 20_000
MOST_SENT = 10_000
DAY = timedelta(days=1)
TIMED = ("acknowledged", "resolved")
NONE = Spread(0, ())
NOBODY = Group(0, 0, (NONE, NONE))
SPANS = {"7": timedelta(days=7), "30": timedelta(days=30)}


def context(days: str) -> dict:
    """Everything that the overview shows, in a constant number of queries, half a minute old at most.

    `days`: how far back times are compared, 7 or 30.
    """
    days = days if days in SPANS else "7"
    return cache.get_or_set(f"overview:{days}", lambda: _context(days), KEPT_SECONDS)


def _context(days: str) -> dict:
    now = timezone.now()
    services = Incident.objects.real().filter(created_at__gte=now - DAY).order_by().values("service")
    services = services.annotate(count=Count("*")).order_by("-count", "service")[:TOP_SERVICES]
    failing = Ticket.objects.failing().order_by().values("platform")
    seen = glance.look(
        now,
        more=[
            *charts.volume(now),
            glance.told(services, "service", "service", "count"),
            glance.told(failing, "failing", "platform", Count("pk")),
            glance.told(PlatformState.objects.filter(enabled=True), "enabled", "platform", "version__values"),
            glance.told(drill.proofs(), "proven", "platform", "proven"),
            glance.told(drill.newest(), "drill", "id", "created_at"),
        ],
    )
    chart, hours = charts.by_hour(now, seen.more["hour"])
    times, cut = _times(now, SPANS[days])
    return {
        "place": "overview",
        "as_of": now,
        "numbers": _numbers(seen),
        "chart": chart,
        "hours": list(reversed(hours)),
        "daily": charts.by_day(now, seen.more["day"]),
        "severities": list(SEVERITY_RANK),
        "platforms": _platforms(now, seen),
        "services": [(service, int(count)) for service, count, *_ in seen.more["service"]],
        "days": days,
        "spans": list(SPANS),
        "times": times,
        "times_cut": cut,
        "model": ModelHealth.objects.first(),
        "drill": next(({"pk": pk, "created_at": glance.moment(at)} for pk, at, *_ in seen.more["drill"]), None),
    }


def _numbers(seen: glance.Glance) -> list[tuple[str, str, str, bool]]:
    """What, how many, where to look, and whether it asks for somebody."""
    by_status = {status: sum(n for (s, _), n in seen.counts.items() if s == status) for status in Status.values}
    escalated, late = by_status[Status.ESCALATED], seen.late
    undelivered = f"{late.incidents:,}{'+' if late.more else ''}"
    return [
        ("Open", f"{by_status[Status.OPEN]:,}", "?view=open", False),
        ("Not acknowledged after 15 min", f"{seen.forgotten:,}", "?view=open&order=oldest", seen.forgotten > 0),
        ("Escalated", f"{escalated:,}", "?view=escalated", escalated > 0),
        ("Undelivered", undelivered, "?view=undelivered", late.incidents > 0),
    ]


def _platforms(now: datetime, seen: glance.Glance) -> list[dict]:
    """Per platform: whether it is used, what it was told in the last day and how soon, and what waits."""
    sent = Ticket.objects.filter(incident__created_at__gte=now - DAY).order_by("-incident__created_at")
    soon = Greatest(Seconds("incident__created_at", "created_remotely_at"), Value(0.0))
    known = When(created_remotely_at__isnull=False, then=soon)
    arrived = sent.values_list("platform", Value(0), Case(known, output_field=FloatField()))[:MOST_SENT]
    ages = {platform: group.spreads[0] for (platform,), group in spreads(arrived, 1, [(95,)]).items()}
    failing = {platform: int(count) for platform, count, *_ in seen.more["failing"]}
    # What is a secret says nothing of the vendor's future.
    used = {platform: json.loads(values or "{}") for platform, values, *_ in seen.more["enabled"]}
    proven = {platform: glance.moment(at) for platform, at, *_ in seen.more["proven"]}
    rows = []
    for name, platform in PLATFORMS.items():
        behind, since = seen.late.platforms.get(name, (0, None))
        row = {"name": name, "label": platform.label, "enabled": name in used, "late": behind, "since": since}
        row |= {"warning": platform.warning(used[name]) if name in used else "", "failing": failing.get(name, 0)}
        mine = ages.get(name, NONE)
        row |= {"sent": mine.count, "p95": span(mine.shares[0]) if mine.count else ""}
        rows.append(row | {"proven": proven.get(name)})
    return rows


def _times(now: datetime, period: timedelta) -> tuple[list[dict], bool]:
    """Per severity, how long people took and who told causes, against the period before; of the newest 20,000
    incidents, and whether there are more."""
    both = Incident.objects.real().filter(created_at__gte=now - 2 * period).newest_first()
    current = Case(When(created_at__gte=now - period, then=Value(1)), default=Value(0))
    by_rules = Case(When(fallback=True, then=Value(1)), default=Value(0))
    took = [Seconds("created_at", name) for name in ("acknowledged_at", "resolved_at")]
    rows = both.values_list("severity", current, by_rules, *took)[: MOST_TIMED + 1]
    found = spreads(rows, 2, [(50, 90), (50, 90)])
    told = []
    for severity in SEVERITY_RANK:
        mine = {"": found.get((severity, 1), NOBODY), "_before": found.get((severity, 0), NOBODY)}
        line = {"severity": severity}
        for name, group in mine.items():
            line |= {f"count{name}": group.count}
            line |= {f"{word}{name}": _in_words(spread) for word, spread in zip(TIMED, group.spreads, strict=True)}
        line["fallback"] = f"{100 * mine[''].marked // mine[''].count} %" if mine[""].count else ""
        told.append(line)
    return told, sum(group.count for group in found.values()) > MOST_TIMED


def _in_words(spread: Spread) -> str:
    """The median and the 90th percentile."""
    return " / ".join(map(span, spread.shares)) if spread.count else ""
