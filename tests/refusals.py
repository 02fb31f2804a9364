"""Makes the database refuse to take rows of one table, as a full disk or a broken constraint would."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

MESSAGE = "refused by the test"

CREATE = {
    "sqlite": (
        "CREATE TRIGGER refusal BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '" + MESSAGE + "'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '" + MESSAGE + "'; END $$",
        "CREATE TRIGGER refusal BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()",
    ),
}
DROP = {
    "sqlite": ("DROP TRIGGER refusal",),
    "postgresql": ("DROP TRIGGER refusal ON {table}", "DROP FUNCTION refuse()"),
}


@contextmanager
def refusing(table: str, event: str = "INSERT") -> Iterator[None]:
    """Within, each INSERT (or UPDATE) of the table fails with `MESSAGE`."""
    _run(CREATE, table, event)
    try:
        yield
    finally:
        _run(DROP, table, event)


def _run(statements: dict[str, tuple[str, ...]], table: str, event: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements[connection.vendor]:
            cursor.execute(statement.format(table=table, event=event))
