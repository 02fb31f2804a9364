"""Makes the database refuse to take rows of one table, as a full disk or a broken constraint would."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

MESSAGE = "refused by the test"

CREATE = {
    "sqlite": (
        "CREATE TRIGGER refusal BEFORE {event} ON {table} WHEN {when} "
        "BEGIN SELECT RAISE(ABORT, '" + MESSAGE + "'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '" + MESSAGE + "'; END $$",
        "CREATE TRIGGER refusal BEFORE {event} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse()",
    ),
}
DROP = {
    "sqlite": ("DROP TRIGGER refusal",),
    "postgresql": ("DROP TRIGGER refusal ON {table}", "DROP FUNCTION refuse()"),
}


@contextmanager
def refusing(table: str, event: str = "INSERT", when: str = "1 = 1") -> Iterator[None]:
    """Within, each INSERT (or UPDATE) of the table fails with `MESSAGE`, or of those rows where a condition holds."""
    _run(CREATE, table=table, event=event, when=when)
    try:
        yield
    finally:
        _run(DROP, table=table)


def _run(statements: dict[str, tuple[str, ...]], **words: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements[connection.vendor]:
            cursor.execute(statement.format(**words))
