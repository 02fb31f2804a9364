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
from django.db.models.expressions import Combinable, RawSQL
from django.db.models.functions import Cast, Concat, Substr

from config.models import PlatformState
from incidents import pulses
from incidents.causes import health
from incidents.console import listing
from incidents.models import Anomaly, Incident, PlatformPause, Status, Ticket

FORGOTTEN = timedelta(minutes=15)
SPARK = timedelta(minutes=60)
SPARK_STEP = timedelta(minutes=10)
# The beginning of a moment as both engines write it, in UTC: up to its tens of minutes.
TENS_OF_MINUTES = len("2024-03-01 03:1")
COLUMNS = 6  # the most that a part may have


@dataclass(frozen=True)
class Glance:
    """`counts`: the active ones by status and severity. `forgotten`: open for longer than a quarter of an hour.
    `silent`: what of the machinery is silent, as `pulses.silent` names it, and since when if that is known.
    `model_error`: why the configured model was not reached, if so. `shown`: the ids of the asked rows, in no order.
    `sparks`: by incident, the anomalies of the last hour in tens of minutes, the latest at the end. `version` changes
    with all of it and with whatever the asked rows show.
    """

    counts: Counter[tuple[str, str]]
    forgotten: int
    late: listing.Late
    silent: dict[str, datetime | None]
    model_error: str | None
    shown: list[str]
    sparks: dict[str, list[int]]
    version: str
    more: dict[str, list[tuple]]  # what else was asked for, as texts, by its kind


@dataclass(frozen=True)
class Part:
    """Some columns of some rows, six at most, which the statement tells as texts."""

    kind: str
    rows: QuerySet
    columns: int
    number_alone: bool = False  # tells how many rows there are, not what they say


def look(now: datetime, rows: QuerySet[Incident] | None = None, more: Sequence[Part] = ()) -> Glance:
    """One query. `rows`: the incidents that are shown, cut; without them there are neither sparks nor a version that
    knows them. `more`: further parts, as `told` makes them."""
    parts = [_counts(now), _late(now), *more]
    if rows is not None:
        parts += [*_of_rows(), _sparks(now), _enabled(), _pauses(), *_machinery()]
    found = _together(rows, parts)
    by_kind: dict[str, list[tuple]] = defaultdict(list)
    for kind, *texts in found:
        by_kind[kind].append(tuple(texts))
    counts, forgotten = Counter(), 0
    for status, severity, number, old, *_ in by_kind["count"]:
        counts[status, severity] = int(number)
        forgotten += int(old)
    version = hashlib.sha256(repr(sorted(found)).encode("utf-8", "backslashreplace")).hexdigest()
    shown = [row[0] for row in by_kind["row"]]
    sparks = _sparks_read(by_kind["spark"], now)
    late, error = _late_read(by_kind["late"]), next((row[0] for row in by_kind["model"]), None)
    return Glance(counts, forgotten, late, _silent_read(by_kind), error, shown, sparks, version, by_kind)


# --- The parts --------------------------------------------------------------------------------------------------------


def told(rows: QuerySet, kind: str, *columns: Combinable | str) -> Part:
    return Part(kind, rows.values_list(*columns), len(columns))


def number(rows: QuerySet, kind: str) -> Part:
    return Part(kind, rows.values_list("pk"), 1, number_alone=True)


def _counts(now: datetime) -> Part:
    """From the index of the active ones alone: it knows all that is asked."""
    old = Q(status=Status.OPEN, created_at__lt=now - FORGOTTEN)
    rows = Incident.objects.active().real().order_by().values("status", "severity")
    rows = rows.annotate(many=Count("*"), old=Count("status", filter=old))
    return told(rows, "count", "status", "severity", "many", "old")


def _late(now: datetime) -> Part:
    late = listing.late_tickets(now).order_by()[: listing.MOST_LATE_TOLD + 1]
    return told(late, "late", "platform", "incident_id", "failing_since")


def _of_rows() -> tuple[Part, Part]:
    """What the rows and their tickets show."""
    incidents = Incident.objects.filter(pk__in=_shown()).order_by()
    tickets = Ticket.objects.filter(incident__in=_shown()).order_by()
    numbers = ("wanted_version", Value("/"), "shown_version", Value("/"), "seen_version")
    versions = Concat(*numbers, output_field=CharField())
    seen = Concat(Cast("seen_differs", TextField()), "seen_status", output_field=TextField())
    return (
        told(incidents, "row", "id", "status", "updated_at", "cause_at", "fallback"),
        told(tickets, "ticket", "id", versions, "parked_at", "failing_since", seen, Concat("remote_url", "last_error")),
    )


def _sparks(now: datetime) -> Part:
    recent = Anomaly.objects.filter(incident__in=_shown(), at__gt=now - SPARK, at__lte=now).order_by()
    moments = recent.annotate(tens=Substr(Cast("at", TextField()), 1, TENS_OF_MINUTES)).values("incident_id", "tens")
    return told(moments.annotate(many=Count("*")), "spark", "incident_id", "tens", "many")


def _enabled() -> Part:
    return told(PlatformState.objects.filter(enabled=True).order_by(), "enabled", "platform")


def _pauses() -> Part:
    return told(PlatformPause.objects.in_force().order_by(), "pause", "platform", "until", "reason")


def _machinery() -> tuple[Part, Part, Part]:
    """No moment of what goes on, which would be another one each time."""
    return (
        told(pulses.lately(), "seen", "kind"),
        told(pulses.last_sweep(), "swept", "at"),
        told(health.unreachable(), "model", "error"),
    )


def _shown() -> RawSQL:
    """The ids of the asked rows, which `_together` finds once for all parts."""
    return RawSQL("SELECT id FROM shown", ())


def _together(rows: QuerySet[Incident] | None, parts: list[Part]) -> list[tuple]:
    """All parts in one statement, as texts. The ORM's own union knows no parts that are cut."""
    named = {} if rows is None else {"shown (id)": rows.values("pk")}
    told = []
    for number, part in enumerate(parts):
        names = [f"c{column}" for column in range(part.columns)]
        texts = [f"COALESCE(CAST({name} AS text), '')" for name in names]
        if part.number_alone:
            texts = ["CAST(COUNT(*) AS text)"]
        named[f"part{number} ({', '.join(names)})"] = part.rows
        texts += ["''"] * (COLUMNS - len(texts))
        told.append(f"SELECT '{part.kind}', {', '.join(texts)} FROM part{number}")
    asked = {name: query.query.sql_with_params() for name, query in named.items()}
    statement = ", ".join(f"{name} AS ({sql})" for name, (sql, _) in asked.items())
    with connection.cursor() as cursor:
        values = [value for _, params in asked.values() for value in params]
        cursor.execute(f"WITH {statement} {' UNION ALL '.join(told)}", values)
        return cursor.fetchall()


# --- Reading them -----------------------------------------------------------------------------------------------------


def _late_read(rows: list[tuple]) -> listing.Late:
    found = [(platform, incident, moment(since)) for platform, incident, since, *_ in rows]
    return listing.late_of(found)


def _silent_read(by_kind: dict[str, list[tuple]]) -> dict[str, datetime | None]:
    silent = dict.fromkeys(pulses.silent({kind for kind, *_ in by_kind["seen"]}))
    if pulses.SWEEP in silent:
        silent[pulses.SWEEP] = next((moment(at) for at, *_ in by_kind["swept"]), None)
    return silent


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
