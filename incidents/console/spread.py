"""How long things took: percentiles, found by the database, so that no row has to come here."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection
from django.db.models import FloatField, Func, QuerySet


class Seconds(Func):
    """From one moment to another."""

    arity = 2
    output_field = FloatField()

    def as_sql(self, compiler, connection, **more):
        # Fractions of a day, exact to less than a millisecond.
        template = "ROUND(-(julianday(%(expressions)s)) * 86400, 3)"
        return super().as_sql(compiler, connection, template=template, arg_joiner=") - julianday(")

    def as_postgresql(self, compiler, connection, **more):
        template = "EXTRACT(EPOCH FROM -(%(expressions)s))::double precision"
        return super().as_sql(compiler, connection, template=template, arg_joiner=" - ")


@dataclass(frozen=True)
class Spread:
    """`count`: of the rows that have a value. `shares`: for each percentage what so many of them do not exceed."""

    count: int
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class Group:
    count: int
    marked: int  # for how many the mark is set
    spreads: tuple[Spread, ...]


def spreads(rows: QuerySet, groups: int, values: Sequence[Sequence[int]]) -> dict[tuple, Group]:
    """One query. `rows`: tuples of what to group by, a mark (0 or 1), and seconds or NULL. `groups`: how many columns
    to group by. `values`: for each column of seconds, the percentages (under 100) that are asked for.
    """
    by = ", ".join(f"g{n}" for n in range(groups))
    asked = [f"v{n}" for n in range(len(values))]
    ranks = "".join(
        f", COUNT({v}) OVER (PARTITION BY {by}) AS {v}_count"
        f", ROW_NUMBER() OVER (PARTITION BY {by} ORDER BY {v} NULLS LAST) AS {v}_place"
        for v in asked
    )
    wanted = ""
    for v, shares in zip(asked, values, strict=True):
        places = [f"{v}_count * {share} / 100 + 1" for share in shares]
        wanted += f", COUNT({v})" + "".join(f", MAX(CASE WHEN {v}_place = {place} THEN {v} END)" for place in places)
    sql, params = rows.query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH told ({by}, mark, {', '.join(asked)}) AS ({sql}), ranked AS (SELECT told.*{ranks} FROM told) "
            f"SELECT {by}, COUNT(*), SUM(mark){wanted} FROM ranked GROUP BY {by}",
            params,
        )
        return {row[:groups]: _group(row[groups:], values) for row in cursor.fetchall()}


def _group(row: tuple, values: Sequence[Sequence[int]]) -> Group:
    count, marked, *rest = row
    found = []
    for shares in values:
        found.append(Spread(rest[0], tuple(rest[1 : len(shares) + 1])))
        rest = rest[len(shares) + 1 :]
    return Group(count, int(marked), tuple(found))
