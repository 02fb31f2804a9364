"""Charts as numbers for server-made SVG: positions and heights, no colours, and the sentence that says the same."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count
from django.db.models.functions import TruncHour, TruncMinute

from incidents.models import SEVERITY_RANK, Incident
from incidents.templatetags.console import clock, span

BUCKETS = 48
LONGEST = timedelta(days=7)
BY_MINUTE = timedelta(hours=12)  # beyond it, hours are fine enough for 48 bars
BAR_STEP, BAR_WIDTH, HEIGHT = 10, 8, 56


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    bars: list[Bar]
    sentence: str
    width: int = BUCKETS * BAR_STEP
    height: int = HEIGHT


def anomalies(incident: Incident) -> Chart:
    """The incident's anomalies over its span, the last seven days at most, in one query whatever their number."""
    end = incident.last_anomaly_at
    begin = max(incident.first_anomaly_at, end - LONGEST)
    rounded = TruncMinute("at") if end - begin <= BY_MINUTE else TruncHour("at")
    rows = incident.anomalies.filter(at__gte=begin).order_by().annotate(moment=rounded).values_list("moment")
    counts = rows.annotate(count=Count("pk"))
    unit = timedelta(minutes=1) if end - begin <= BY_MINUTE else timedelta(hours=1)
    width = max(unit, (end - begin + unit) / BUCKETS)
    buckets: Counter[int] = Counter()
    for moment, count in counts:
        buckets[min(BUCKETS - 1, max(0, int((moment - begin) / width)))] += count
    return Chart(_bars(buckets), _told(incident, buckets, begin, width))


def _bars(buckets: Counter[int]) -> list[Bar]:
    peak = max(buckets.values(), default=1)
    bars = []
    for index, count in sorted(buckets.items()):
        height = max(2.0, round(count / peak * HEIGHT, 1))
        bars.append(Bar(index * BAR_STEP, HEIGHT - height, BAR_WIDTH, height))
    return bars


def _told(incident: Incident, buckets: Counter[int], begin: datetime, width: timedelta) -> str:
    total = incident.anomaly_count
    said = "1 anomaly" if total == 1 else f"{total:,} anomalies"
    if len(buckets) > 1:
        index, peak = max(buckets.items(), key=lambda item: item[1])
        said += f", peak {peak:,} per {span(width.total_seconds())} at {clock(begin + index * width)[:5]}"
    return said


def by_hour(now: datetime, hours: int = 24) -> tuple[Chart, list[tuple[datetime, Counter]]]:
    """New incidents per hour, stacked by severity, and the table that says the same."""
    begin = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
    rows = Incident.objects.real().filter(created_at__gte=begin).order_by()
    rows = rows.annotate(hour=TruncHour("created_at")).values_list("hour", "severity").annotate(count=Count("pk"))
    table = {begin + timedelta(hours=h): Counter() for h in range(hours)}
    for hour, severity, count in rows:
        if hour in table:
            table[hour][severity] += count
    chart = _stacked(list(table.values()), step=20)
    total = sum(counts.total() for counts in table.values())
    sentence = f"{total:,} incident{'' if total == 1 else 's'} in the last {hours} hours"
    return Chart(chart, sentence, width=hours * 20, height=HEIGHT * 2), list(table.items())


def _stacked(columns: Iterable[Counter], step: int) -> list[Bar]:
    columns = list(columns)
    peak = max((counts.total() for counts in columns), default=0) or 1
    bars = []
    for index, counts in enumerate(columns):
        top = float(HEIGHT * 2)
        for severity in reversed(SEVERITY_RANK):
            if counts[severity]:
                height = max(2.0, counts[severity] / peak * (HEIGHT * 2 - 4))
                top -= height
                bars.append(Bar(index * step, round(max(0.0, top), 1), step - 3, round(height, 1), severity))
    return bars
