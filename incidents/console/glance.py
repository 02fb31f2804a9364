"""Whatever may change by itself in the list, asked in one statement: what it says, and whether it says something else.

A list that is open asks this every few seconds. Mostly nothing has changed, and then this is all that is asked.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connection
from django.db.models import CharField, Count, Q, QuerySet, TextField, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast, Coalesce, Concat, Substr

from config.models import PlatformState
from incidents.console import listing
from incidents.models import Anomaly, Incident, PlatformPause, Status, Ticket

FORGOTTEN = timedelta(minutes=15)
SPARK = timedelta(minutes=60)
SPARK_STEP = timedelta(minutes=10)
# The beginning of a moment as both engines write it, in UTC: up to its tens of minutes.
TENS_OF_MINUTES = len("2024-03-01 03:1")
COLUMNS = ("kind", "t1", "t2", "t3", "t4", "t5", "t6")


@dataclass(frozen=True)
class Glance:
    """`counts`: the active ones by status and severity. `forgotten`: open for longer than a quarter of an hour.
    `sparks`: by incident, the anomalies of the last hour in tens of minutes, the latest at the end. `version` changes
    with all of it and with whatever the asked rows show.
    """

    counts: Counter[tuple[str, str]]
    forgotten: int
    late: listing.Late
    sparks: dict[str, list[int]]
    version: str
    more: dict[str, list[tuple]]  # what else was asked for, as texts, by its kind


def look(now: datetime, rows: QuerySet[Incident] | None = None, more: Sequence[QuerySet] = ()) -> Glance:
    """One query. `rows`: the incidents that are shown, in order and cut; without them there are neither sparks nor
    a version that knows them. `more`: further parts, as `told` makes them."""
    parts = [_counts(now), _late(now), *more]
    if rows is not None:
        parts += [*_of_rows(rows), _sparks(rows, now), enabled(), _pauses()]
    found = _together(parts)
    by_kind: dict[str, list[tuple]] = defaultdict(list)
    for kind, *texts in found:
        by_kind[kind].append(tuple(texts))
    counts, forgotten = Counter(), 0
    for status, severity, number, old, *_ in by_kind["count"]:
        counts[status, severity] = int(number)
        forgotten += int(old)
    version = hashlib.sha256(repr(sorted(found)).encode("utf-8", "backslashreplace")).hexdigest()
    sparks = _sparks_read(by_kind["spark"], now)
    return Glance(counts, forgotten, _late_read(by_kind["late"]), sparks, version, by_kind)


# --- The parts --------------------------------------------------------------------------------------------------------


def told(rows: QuerySet, kind: str, *columns: Combinable | str) -> QuerySet:
    """The rows as texts under the names that all parts share."""
    texts = {
        name: Coalesce(Cast(column, TextField()), Value("", TextField()))
        for name, column in zip(COLUMNS[1:], columns, strict=False)
    }
    rest = {name: Cast(Value(""), TextField()) for name in COLUMNS[1 + len(columns) :]}
    return rows.annotate(kind=Cast(Value(kind), TextField()), **texts, **rest).values_list(*COLUMNS)


def _counts(now: datetime) -> QuerySet:
    old = Q(status=Status.OPEN, created_at__lt=now - FORGOTTEN)
    rows = Incident.objects.active().real().order_by().values("status", "severity")
    return told(rows, "count", "status", "severity", Count("pk"), Count("pk", filter=old))


def _late(now: datetime) -> QuerySet:
    late = listing.late_tickets(now).order_by()
    return told(late, "late", "platform", "incident_id", "failing_since")[: listing.MOST_LATE_TOLD + 1]


def _of_rows(rows: QuerySet[Incident]) -> tuple[QuerySet, QuerySet]:
    """What the rows and their tickets show."""
    ids = rows.values("pk")
    incidents = Incident.objects.filter(pk__in=ids).order_by()
    tickets = Ticket.objects.filter(incident__in=ids).order_by()
    numbers = ("wanted_version", Value("/"), "shown_version", Value("/"), "seen_version")
    versions = Concat(*numbers, output_field=CharField())
    seen = Concat(Cast("seen_differs", TextField()), "seen_status", output_field=TextField())
    return (
        told(incidents, "row", "id", "status", "updated_at", "cause_at", "fallback"),
        told(tickets, "ticket", "id", versions, "parked_at", "failing_since", seen, Concat("remote_url", "last_error")),
    )


def _sparks(rows: QuerySet[Incident], now: datetime) -> QuerySet:
    recent = Anomaly.objects.filter(incident__in=rows.values("pk"), at__gt=now - SPARK, at__lte=now).order_by()
    moments = recent.annotate(tens=Substr(Cast("at", TextField()), 1, TENS_OF_MINUTES)).values("incident_id", "tens")
    return told(moments, "spark", "incident_id", "tens", Count("pk"))


def enabled() -> QuerySet:
    return told(PlatformState.objects.filter(enabled=True).order_by(), "enabled", "platform")


def _pauses() -> QuerySet:
    return told(PlatformPause.objects.in_force().order_by(), "pause", "platform", "until", "reason")


def _together(parts: list[QuerySet]) -> list[tuple]:
    """All parts in one statement. The ORM's own union knows no parts that are cut."""
    statements, values = [], []
    for number, part in enumerate(parts):
        sql, params = part.query.sql_with_params()
        statements.append(f"SELECT * FROM ({sql}) AS part{number}")
        values += params
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(statements), values)
        return cursor.fetchall()


# --- Reading them -----------------------------------------------------------------------------------------------------


def _late_read(rows: list[tuple]) -> listing.Late:
    found = [(platform, incident, moment(since)) for platform, incident, since, *_ in rows]
    return listing.late_of(found)


def moment(text: str) -> datetime | None:
    """A moment as the database wrote it; SQLite leaves its zone out."""
    read = datetime.fromisoformat(text) if text else None
    return read.replace(tzinfo=UTC) if read and read.tzinfo is None else read


def _sparks_read(rows: list[tuple], now: datetime) -> dict[str, list[int]]:
    steps = [(now - n * SPARK_STEP).astimezone(UTC) for n in reversed(range(SPARK // SPARK_STEP + 1))]
    places = {step.strftime("%Y-%m-%d %H:%M")[:TENS_OF_MINUTES]: place for place, step in enumerate(steps)}
    sparks: dict[str, list[int]] = {}
    for incident, tens, number, *_ in rows:
        if tens in places:
            sparks.setdefault(incident, [0] * len(places))[places[tens]] = int(number)
    return sparks
