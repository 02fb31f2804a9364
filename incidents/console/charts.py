"""Charts as numbers for server-made SVG: positions and heights, no colours, and the sentence that says the same."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import Count, TextField
from django.db.models.functions import Cast, Substr, TruncHour, TruncMinute

from incidents.console.glance import Part, told
from incidents.models import SEVERITY_RANK, Incident
from incidents.templatetags.console import clock, span

BUCKETS = 48
LONGEST = timedelta(days=7)
BY_MINUTE = timedelta(hours=12)  # beyond it, hours are fine enough for 48 bars
HOURS, DAYS = 24, 30
HOUR_WRITTEN, DAY_WRITTEN = len("2024-03-01 03"), len("2024-03-01")
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


def spark(counts: Sequence[int]) -> str:
    """Bars as the strokes, 6 wide, of one path in an SVG that is 60 wide and 16 high; empty where there is nothing."""
    peak = max(counts, default=0)
    if not peak:
        return ""
    step = 60 // len(counts)
    heights = [max(2, round(count / peak * 16)) if count else 0 for count in counts]
    return "".join(f"M{i * step + 3} 16v-{height}" for i, height in enumerate(heights) if height)


def volume(now: datetime) -> tuple[Part, Part]:
    """New incidents by severity: of the last day by hour, of the last 30 days by day. For `glance.look`."""
    hours, days = _begins(now)
    return _counted("hour", hours, HOUR_WRITTEN), _counted("day", days, DAY_WRITTEN)


def _counted(kind: str, begin: datetime, written: int) -> Part:
    """A moment's beginning, as both engines write it in UTC, is much cheaper than a moment cut short."""
    rows = Incident.objects.real().filter(created_at__gte=begin).order_by()
    rows = rows.annotate(moment=Substr(Cast("created_at", TextField()), 1, written)).values("moment", "severity")
    return told(rows.annotate(many=Count("*")), kind, "moment", "severity", "many")


def _begins(now: datetime) -> tuple[datetime, datetime]:
    now = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return now - timedelta(hours=HOURS - 1), now.replace(hour=0) - timedelta(days=DAYS - 1)


def by_hour(now: datetime, rows: Iterable[tuple]) -> tuple[Chart, list[tuple[datetime, Counter]]]:
    """New incidents per hour of the last day, stacked by severity, and the table that says the same."""
    begin, _ = _begins(now)
    table = _table(rows, [begin + timedelta(hours=n) for n in range(HOURS)], HOUR_WRITTEN)
    return _columns(table, f"the last {HOURS} hours", step=20), list(table.items())


def by_day(now: datetime, rows: Iterable[tuple]) -> tuple[Chart, list[tuple[datetime, Counter]]]:
    """The same per day of the last 30; days are those of UTC."""
    _, begin = _begins(now)
    table = _table(rows, [begin + timedelta(days=n) for n in range(DAYS)], DAY_WRITTEN)
    return _columns(table, f"the last {DAYS} days", step=16), list(table.items())


def _table(rows: Iterable[tuple], moments: list[datetime], written: int) -> dict[datetime, Counter]:
    counts = {str(moment)[:written]: Counter() for moment in moments}
    for text, severity, many, *_ in rows:
        if text in counts:
            counts[text][severity] += int(many)
    return dict(zip(moments, counts.values(), strict=True))


def _columns(table: dict[datetime, Counter], period: str, step: int) -> Chart:
    total = sum(counts.total() for counts in table.values())
    sentence = f"{total:,} incident{'' if total == 1 else 's'} in {period}"
    return Chart(_stacked(table.values(), step), sentence, width=len(table) * step, height=HEIGHT * 2)


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
