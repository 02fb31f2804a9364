"""The console's first page of numbers: what burns now, how the last day went, and whether tickets arrive."""

from datetime import datetime, timedelta

from django.db.models import Count, Q
from django.utils import timezone

from incidents import drill
from incidents.console import charts, listing
from incidents.models import SEVERITY_RANK, Incident, ModelHealth, Status, Ticket
from incidents.templatetags.console import span
from platforms.catalog import PLATFORMS

FORGOTTEN = timedelta(minutes=15)
TOP_SERVICES = 5
MOST_TIMED = 5000


def context() -> dict:
    """Everything that the overview shows, in a constant number of queries."""
    now = timezone.now()
    chart, hours = charts.by_hour(now)
    late = listing.late(now)
    return {
        "place": "overview",
        "numbers": _numbers(now, late),
        "chart": chart,
        "hours": list(reversed(hours)),
        "severities": list(SEVERITY_RANK),
        "platforms": _platforms(now, late),
        "services": _top_services(now),
        "times": _times(now),
        "model": ModelHealth.objects.first(),
        "drill": drill.last(),
    }


def _numbers(now: datetime, late: listing.Late) -> list[tuple[str, str, str, bool]]:
    """What, how many, where to look, and whether it asks for somebody."""
    active = Incident.objects.active().real().aggregate(
        open=Count("pk", filter=Q(status=Status.OPEN)),
        forgotten=Count("pk", filter=Q(status=Status.OPEN, created_at__lt=now - FORGOTTEN)),
        escalated=Count("pk", filter=Q(status=Status.ESCALATED)),
    )
    forgotten, escalated = active["forgotten"], active["escalated"]
    undelivered = f"{late.incidents:,}{'+' if late.more else ''}"
    return [
        ("Open", f"{active['open']:,}", "?view=open", False),
        ("Not acknowledged after 15 min", f"{forgotten:,}", "?view=open&order=oldest", forgotten > 0),
        ("Escalated", f"{escalated:,}", "?view=escalated", escalated > 0),
        ("Undelivered", undelivered, "?view=undelivered", late.incidents > 0),
    ]


def _platforms(now: datetime, late: listing.Late) -> list[dict]:
    """Per platform: whether it is used, what it was told in the last day, and what waits."""
    sent = Ticket.objects.filter(created_at__gte=now - timedelta(days=1)).order_by().values_list("platform")
    counts = dict(sent.annotate(count=Count("pk", filter=Q(created_remotely_at__isnull=False))))
    failing = Ticket.objects.failing().by_platform()
    proven = drill.last_proven()
    used = set(listing.enabled_platforms().values_list("platform", flat=True))
    rows = []
    for name, platform in PLATFORMS.items():
        behind, since = late.platforms.get(name, (0, None))
        enabled = name in used
        warning = platform.warning if enabled else ""
        row = {"name": name, "label": platform.label, "enabled": enabled, "sent": counts.get(name, 0)}
        row |= {"late": behind, "since": since, "warning": warning}
        rows.append(row | {"failing": failing.get(name, 0), "proven": proven.get(name)})
    return rows


def _times(now: datetime) -> list[dict]:
    """Per severity, over the last week's incidents (the newest 5,000): how long people took, and who told causes."""
    week = Incident.objects.real().filter(created_at__gte=now - timedelta(days=7)).newest_first()
    columns = ("severity", "created_at", "acknowledged_at", "resolved_at", "fallback")
    rows = list(week.values_list(*columns)[:MOST_TIMED])
    told = []
    for severity in SEVERITY_RANK:
        mine = [row for row in rows if row[0] == severity]
        told.append(
            {
                "severity": severity,
                "count": len(mine),
                "acknowledged": _middle_and_most([(row[2] - row[1]).total_seconds() for row in mine if row[2]]),
                "resolved": _middle_and_most([(row[3] - row[1]).total_seconds() for row in mine if row[3]]),
                "by_model": f"{100 * sum(not row[4] for row in mine) // len(mine)} %" if mine else "",
            }
        )
    return told


def _middle_and_most(seconds: list[float]) -> str:
    """The median and the 90th percentile, in words."""
    if not seconds:
        return ""
    ordered = sorted(seconds)
    return f"{span(ordered[len(ordered) // 2])} / {span(ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)])}"


def _top_services(now: datetime) -> list[tuple[str, int]]:
    day = Incident.objects.real().filter(created_at__gte=now - timedelta(days=1)).order_by()
    return list(day.values_list("service").annotate(count=Count("pk")).order_by("-count", "service")[:TOP_SERVICES])
