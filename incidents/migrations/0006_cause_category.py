from django.db import migrations, models


def mark_the_weak(apps, schema_editor):
    """Incidents that still burn and whose cause the rules could not tell may be told it by what comes."""
    untold = apps.get_model("incidents", "Incident").objects.filter(
        fallback=True, root_cause__startswith="The cause cannot be told from the evidence"
    )
    untold.exclude(status="resolved").update(cause_category="unknown")


class Migration(migrations.Migration):
    dependencies = [("incidents", "0006_ask_again_and_search")]

    operations = [
        migrations.AddField(
            model_name="incident",
            name="cause_category",
            field=models.CharField(blank=True, default="", max_length=30),
            preserve_default=False,
        ),
        migrations.RunPython(mark_the_weak, migrations.RunPython.noop),
    ]
