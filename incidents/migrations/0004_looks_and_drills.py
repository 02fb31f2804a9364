from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("incidents", "0003_inbound_webhooks")]

    operations = [
        migrations.AddField(model_name="incident", name="drill", field=models.BooleanField(default=False)),
        migrations.AddIndex(
            model_name="incident",
            index=models.Index(condition=models.Q(("drill", True)), fields=["-created_at"], name="incident_drill"),
        ),
        migrations.AddField(model_name="ticket", name="looked_at", field=models.DateTimeField(null=True)),
        migrations.AddField(model_name="ticket", name="seen_at", field=models.DateTimeField(null=True)),
        migrations.AddField(
            model_name="ticket", name="seen_status", field=models.CharField(blank=True, max_length=100)
        ),
        migrations.AddField(
            model_name="ticket", name="seen_category", field=models.CharField(blank=True, max_length=12)
        ),
        migrations.AddField(model_name="ticket", name="seen_version", field=models.PositiveIntegerField(default=0)),
        migrations.AddField(model_name="ticket", name="seen_differs", field=models.BooleanField(default=False)),
        migrations.AddIndex(
            model_name="ticket",
            index=models.Index(
                condition=models.Q(("seen_differs", True)), fields=["platform"], name="ticket_differs"
            ),
        ),
        migrations.AddIndex(
            model_name="ticket",
            index=models.Index(
                condition=models.Q(("created_remotely_at__isnull", False)),
                fields=["platform", "-created_remotely_at"],
                name="ticket_accepted",
            ),
        ),
    ]
