"""What is counted is counted in an index alone; and services are found by a part of their name, as one types."""

from django.db import migrations, models

LOCKS = "incidents_deduplock"


def create(apps, schema_editor):
    """For speed alone, and only where the extension is there, as for the search of incidents."""
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'")
        if cursor.fetchone():
            cursor.execute(
                f"CREATE INDEX IF NOT EXISTS dedup_lock_search ON {LOCKS} USING gin (upper(service::text) gin_trgm_ops)"
            )
            cursor.execute(f"ANALYZE {LOCKS}")


def drop(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP INDEX IF EXISTS dedup_lock_search")


class Migration(migrations.Migration):
    dependencies = [("incidents", "0009_due_in_order")]

    operations = [
        migrations.RemoveIndex(model_name="incident", name="incident_newest"),
        migrations.RemoveIndex(model_name="incident", name="incident_active"),
        migrations.AddIndex(
            model_name="incident",
            index=models.Index(fields=["-created_at", "-number", "severity", "drill"], name="incident_newest"),
        ),
        migrations.AddIndex(
            model_name="incident",
            index=models.Index(
                fields=["status", "severity", "created_at", "drill"],
                name="incident_active",
                condition=models.Q(("status", "resolved"), _negated=True) & models.Q(("drill", False)),
            ),
        ),
        migrations.RunPython(create, drop),
    ]
