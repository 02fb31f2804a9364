"""The product without one of the things that keep everything to once, for tests which show that others notice it."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection
from django.db.models import Model

# For a process to run: its requests leave however late it is.
NO_FENCE = """
from platforms import sockets
sockets.Fence.remaining = lambda fence: 5.0
"""


@contextmanager
def without_constraint(model: type[Model], name: str) -> Iterator[None]:
    """Takes one of a model's constraints out of the database for a while, and with it the rows that it would refuse."""
    whole = model._meta.constraints
    [constraint] = [one for one in whole if one.name == name]
    # On SQLite the table is made anew, with those that the model names.
    model._meta.constraints = [one for one in whole if one.name != name]
    try:
        with connection.schema_editor() as editor:
            editor.remove_constraint(model, constraint)
        yield
    finally:
        model.objects.all().delete()
        model._meta.constraints = whole
        with connection.schema_editor() as editor:
            editor.add_constraint(model, constraint)


@contextmanager
def without_primary_key(model: type[Model]) -> Iterator[None]:
    """The same for the primary key, on PostgreSQL."""
    table, column = model._meta.db_table, model._meta.pk.column
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
        try:
            yield
        finally:
            model.objects.all().delete()
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({column})")
