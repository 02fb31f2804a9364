"""How long a search of the list may read. All else that the list asks has an index; a text may be anywhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction

from incidents.console.listing import Question

PATIENCE_MS = 2000
CANCELLED = "57014"


class TooSlow(Exception):
    """The search would have read too much."""


@contextmanager
def patience(question: Question) -> Iterator[None]:
    """Two seconds for a search, where the database can be told so. Raises TooSlow."""
    if not question.q or connection.vendor != "postgresql":
        yield
        return
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {PATIENCE_MS}")
            yield
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != CANCELLED:
            raise
        raise TooSlow from error
