"""What the intake asks of the database, each question one statement, whatever the number of events.

Written by hand, because every event pays for it: the ORM spends more time on them than the database does. Both engines
are told the same; how many rows go along with a statement is all that they are told differently (`_as_rows`).
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import cache

import orjson
from django.db import connection
from django.db.models import Field, Model
from django.db.models.expressions import Col

from incidents.models import Anomaly, DayCounter, DedupLock, Incident, SeenEvent

MOST_PARAMETERS = 30_000  # SQLite takes 32,766

# What deciding needs to know of an incident, in the model's order; the rest of it is not read.
CANDIDATE_FIELDS = (
    *("id", "number", "service", "severity", "status", "affected_services", "trace_id"),
    *("anomaly_score", "anomaly_count", "first_anomaly_at", "last_anomaly_at"),
    *("created_at", "updated_at", "resolved_at", "fallback", "cause_category", "cause_at"),
)
JOINED_FIELDS = (
    "anomaly_count",
    "anomaly_score",
    "first_anomaly_at",
    "last_anomaly_at",
    "affected_services",
    "updated_at",
)
IMPROVED_FIELDS = ("evidence", "trace_id", "root_cause", "cause_category", "cause_at")
ANOMALY_FIELDS = ("incident", "event_id", "service", "severity", "score", "at", "received_at", "title", "payload")


def claim_event_ids(ids: Iterable[str], now: datetime) -> set[str]:
    """Those of the ids that are new. The primary key decides: whoever inserts an id first has it, and others wait for
    that commit."""
    return {
        row[0]
        for source, values in _as_rows(SeenEvent, ("event_id", "seen_at"), [(one, now) for one in sorted(ids)])
        for row in _fetch(
            f"INSERT INTO {_table(SeenEvent)} (event_id, seen_at) SELECT event_id, seen_at FROM {source} "
            "WHERE true ON CONFLICT DO NOTHING RETURNING event_id",  # without WHERE, SQLite takes ON for a join's
            values,
        )
    }


def incidents_of(event_ids: set[str]) -> dict[str, str | None]:
    """Where events went that were taken in before, as long as their anomalies are kept."""
    if not event_ids:
        return {}
    return dict(Anomaly.objects.filter(event_id__in=event_ids).values_list("event_id", "incident_id"))


def lock_faults(keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Locks those of the faults, each a service and a severity, that are known, in order, and says which they are."""
    where, values = _of_faults(keys)
    return set(
        _fetch(
            f"SELECT service, severity FROM {_table(DedupLock)} WHERE {where} "
            f"ORDER BY service, severity {_for_update()}",
            values,
        )
    )


def candidates(keys: Sequence[tuple[str, str]], earliest: datetime, latest: datetime) -> list[Incident]:
    """Locks and reads the incidents of these faults that have anomalies between these times."""
    where, values = _of_faults(keys)
    times = [_prepared(Incident, "last_anomaly_at", at) for at in (earliest, latest)]
    rows = _fetch(
        f"SELECT {', '.join(CANDIDATE_FIELDS)} FROM {_table(Incident)} WHERE {where} "
        f"AND NOT drill AND last_anomaly_at >= %s AND first_anomaly_at <= %s ORDER BY id {_for_update()}",
        [*values, *times],
    )
    read = _read(Incident, CANDIDATE_FIELDS, rows)
    return [Incident.from_db(connection.alias, CANDIDATE_FIELDS, row) for row in read]


def next_numbers(day: date, count: int) -> range:
    """The day's next numbers. The counter's row is locked until the end of the transaction, so it comes last."""
    table = _table(DayCounter)
    [[last]] = _fetch(
        f"INSERT INTO {table} (day, last) VALUES (%s, %s) "
        f"ON CONFLICT (day) DO UPDATE SET last = {table}.last + excluded.last RETURNING last",
        [_prepared(DayCounter, "day", day), count],
    )
    return range(last - count + 1, last + 1)


def save(incidents: Sequence[Incident], names: Sequence[str]) -> None:
    """Writes these fields of incidents that there are."""
    table = _table(Incident)
    changes = ", ".join(f"{name} = new.{name}" for name in names)
    rows = [[getattr(incident, name) for name in ("id", *names)] for incident in incidents]
    for source, values in _as_rows(Incident, ("id", *names), rows):
        _execute(f"UPDATE {table} SET {changes} FROM {source} WHERE {table}.id = new.id", values)


def insert_anomalies(rows: Sequence[Sequence[object]]) -> None:
    """Adds anomalies in this order, each as the values of ANOMALY_FIELDS, its incident by its id."""
    columns = ", ".join(Anomaly._meta.get_field(name).column for name in ANOMALY_FIELDS)
    for source, values in _as_rows(Anomaly, ANOMALY_FIELDS, rows):
        _execute(f"INSERT INTO {_table(Anomaly)} ({columns}) SELECT {columns} FROM {source}", values)


def _as_rows(
    model: type[Model], names: Sequence[str], rows: Sequence[Sequence[object]]
) -> Iterator[tuple[str, list[object]]]:
    """The rows as a table `new` with the columns of these fields, for a statement's FROM, and the parameters of that.

    PostgreSQL gets all as one JSON text, and so reads the same statement whatever their number: to quote and to parse
    them value by value takes several times as long. SQLite gets them value by value, in several statements where they
    are very many: it takes a parameter as it is, but does not read each number in JSON to the last bit.
    """
    if connection.vendor == "postgresql":
        if rows:
            columns, table = _columns_of_json(model, tuple(names))
            yield table, [orjson.dumps([dict(zip(columns, row, strict=True)) for row in rows]).decode()]
        return
    fields = [model._meta.get_field(name) for name in names]
    named = ", ".join(f"column{number} AS {field.column}" for number, field in enumerate(fields, 1))
    row_of_holders = f"({_holders(fields)})"
    step = MOST_PARAMETERS // len(fields)
    for chunk in (rows[start : start + step] for start in range(0, len(rows), step)):
        source = f"(SELECT {named} FROM (VALUES {', '.join([row_of_holders] * len(chunk))})) AS new"
        yield source, [_stored(field, value) for row in chunk for field, value in zip(fields, row, strict=True)]


@cache
def _columns_of_json(model: type[Model], names: tuple[str, ...]) -> tuple[list[str], str]:
    fields = [model._meta.get_field(name) for name in names]
    types = ", ".join(f"{field.column} {field.db_type(connection)}" for field in fields)
    return [field.column for field in fields], f"json_to_recordset(%s) AS new ({types})"


def _read(model: type[Model], names: tuple[str, ...], rows: Iterable[tuple]) -> Iterator[list[object]]:
    """The rows with Python's values, where the engine or the field has something to convert."""
    converters = [
        (at, converter, column)
        for at, column in _converted(connection.vendor, model, names)
        for converter in (*connection.ops.get_db_converters(column), *column.get_db_converters(connection))
    ]
    for row in map(list, rows):
        for at, converter, column in converters:
            row[at] = converter(row[at], column, connection)
        yield row


@cache
def _converted(vendor: str, model: type[Model], names: tuple[str, ...]) -> list[tuple[int, Col]]:
    columns = [model._meta.get_field(name).get_col(model._meta.db_table) for name in names]
    return [
        (at, column)
        for at, column in enumerate(columns)
        if connection.ops.get_db_converters(column) or column.get_db_converters(connection)
    ]


def _stored(field: Field, value: object) -> object:
    return field.get_db_prep_save(value, connection)


def _of_faults(keys: Iterable[tuple[str, str]]) -> tuple[str, list[str]]:
    services, severities = sorted({service for service, _ in keys}), sorted({severity for _, severity in keys})
    where = f"service IN ({_holders(services)}) AND severity IN ({_holders(severities)})"
    return where, [*services, *severities]


def _holders(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _table(model: type[Model]) -> str:
    return connection.ops.quote_name(model._meta.db_table)


def _prepared(model: type[Model], name: str, value: object) -> object:
    return _stored(model._meta.get_field(name), value)


def _for_update() -> str:
    return connection.ops.for_update_sql() if connection.features.has_select_for_update else ""


def _fetch(statement: str, values: Sequence[object]) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def _execute(statement: str, values: Sequence[object]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
