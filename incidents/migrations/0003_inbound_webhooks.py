from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("incidents", "0002_counter")]

    operations = [
        migrations.CreateModel(
            name="InboundEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("platform", models.CharField(max_length=20)),
                ("event", models.CharField(max_length=200)),
                ("seen_at", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index(fields=["seen_at"], name="inbound_event_age")],
                "constraints": [models.UniqueConstraint(fields=("platform", "event"), name="inbound_event_once")],
            },
        ),
        migrations.AddField(model_name="ticket", name="heard", field=models.JSONField(default=dict)),
        migrations.AddField(
            model_name="ticket", name="heard_version", field=models.PositiveIntegerField(default=0)
        ),
        migrations.AddIndex(
            model_name="ticket",
            index=models.Index(
                condition=models.Q(("remote_id", ""), _negated=True),
                fields=["platform", "remote_id"],
                name="ticket_by_remote_id",
            ),
        ),
    ]
