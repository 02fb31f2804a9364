"""The model can be asked again; and a search of titles, services, ids and traces is quick on PostgreSQL.

The indexes are for speed alone: where the extension may not be created (it is for its owner or an administrator:
CREATE EXTENSION pg_trgm), the migration goes on without them, and a search reads more.
"""

from django.db import DatabaseError, migrations, models, transaction

SEARCHED = ("title", "service", "id", "trace_id")


def create(apps, schema_editor):
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        try:
            with transaction.atomic(using=connection.alias):
                cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        except DatabaseError:
            return
        for name in SEARCHED:
            cursor.execute(
                f"CREATE INDEX IF NOT EXISTS incident_search_{name} ON incidents_incident "
                f"USING gin (upper({name}::text) gin_trgm_ops)"
            )
        # The planner knows nothing of an expression until its statistics were taken.
        cursor.execute("ANALYZE incidents_incident")


def drop(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for name in SEARCHED:
            schema_editor.execute(f"DROP INDEX IF EXISTS incident_search_{name}")


class Migration(migrations.Migration):
    dependencies = [("incidents", "0005_anomalies_in_time")]

    operations = [
        migrations.AddField(
            model_name="incident", name="model_asked_again_at", field=models.DateTimeField(null=True)
        ),
        migrations.RunPython(create, drop),
    ]
