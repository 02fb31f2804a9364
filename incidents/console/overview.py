"""The console's first page of numbers: what burns now, how the last days went, and whether tickets arrive."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.core.cache import cache
from django.db.models import Count
from django.utils import timezone

from incidents import drill
from incidents.console import charts, glance
from incidents.models import SEVERITY_RANK, Incident, ModelHealth, Status, Ticket
from incidents.templatetags.console import span
from platforms.catalog import PLATFORMS

KEPT_SECONDS = 30
TOP_SERVICES = 5
MOST_TIMED = 20_000
MOST_SENT = 10_000
DAY = timedelta(days=1)
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
    services = services.annotate(count=Count("pk")).order_by("-count", "service")[:TOP_SERVICES]
    failing = Ticket.objects.failing().order_by().values("platform")
    seen = glance.look(
        now,
        more=[
            glance.told(services, "service", "service", "count"),
            glance.told(failing, "failing", "platform", Count("pk")),
            glance.enabled(),
            glance.told(drill.proofs(), "proven", "platform", "proven"),
            glance.told(drill.newest(), "drill", "id", "created_at"),
        ],
    )
    hourly = charts.hourly(now)
    chart, hours = charts.by_hour(now, hourly)
    times, cut = _times(now, SPANS[days])
    return {
        "place": "overview",
        "as_of": now,
        "numbers": _numbers(seen),
        "chart": chart,
        "hours": list(reversed(hours)),
        "daily": charts.by_day(now, hourly),
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
    sent = sent.values_list("platform", "incident__created_at", "created_remotely_at")[:MOST_SENT]
    ages: dict[str, list[float]] = {}
    for platform, opened, arrived in sent:
        if arrived:
            ages.setdefault(platform, []).append(max(0.0, (arrived - opened).total_seconds()))
    failing = {platform: int(count) for platform, count, *_ in seen.more["failing"]}
    used = {platform for platform, *_ in seen.more["enabled"]}
    proven = {platform: glance.moment(at) for platform, at, *_ in seen.more["proven"]}
    rows = []
    for name, platform in PLATFORMS.items():
        behind, since = seen.late.platforms.get(name, (0, None))
        row = {"name": name, "label": platform.label, "enabled": name in used, "late": behind, "since": since}
        row |= {"warning": platform.warning if name in used else "", "failing": failing.get(name, 0)}
        mine = ages.get(name, [])
        row |= {"sent": len(mine), "p95": span(_share(mine, 95)) if mine else ""}
        rows.append(row | {"proven": proven.get(name)})
    return rows


def _times(now: datetime, period: timedelta) -> tuple[list[dict], bool]:
    """Per severity, how long people took and who told causes, against the period before; of the newest 20,000
    incidents, and whether there are more."""
    both = Incident.objects.real().filter(created_at__gte=now - 2 * period).newest_first()
    columns = ("severity", "created_at", "acknowledged_at", "resolved_at", "fallback")
    rows = list(both.values_list(*columns)[: MOST_TIMED + 1])
    told = []
    for severity in SEVERITY_RANK:
        mine = [row for row in rows if row[0] == severity]
        current = [row for row in mine if row[1] >= now - period]
        before = [row for row in mine if row[1] < now - period]
        told.append(
            {
                "severity": severity,
                "count": len(current),
                "count_before": len(before),
                "acknowledged": _middle_and_most(_took(current, 2)),
                "acknowledged_before": _middle_and_most(_took(before, 2)),
                "resolved": _middle_and_most(_took(current, 3)),
                "resolved_before": _middle_and_most(_took(before, 3)),
                "fallback": f"{100 * sum(row[4] for row in current) // len(current)} %" if current else "",
            }
        )
    return told, len(rows) > MOST_TIMED


def _took(rows: Sequence[tuple], column: int) -> list[float]:
    return [(row[column] - row[1]).total_seconds() for row in rows if row[column]]


def _middle_and_most(seconds: list[float]) -> str:
    """The median and the 90th percentile, in words."""
    return f"{span(_share(seconds, 50))} / {span(_share(seconds, 90))}" if seconds else ""


def _share(seconds: list[float], percent: int) -> float:
    """What `percent` of them do not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
