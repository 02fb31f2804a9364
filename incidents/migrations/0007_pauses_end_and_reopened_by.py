from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("incidents", "0006_cause_category")]

    operations = [
        migrations.AddField(model_name="platformpause", name="asked", field=models.BooleanField(default=False)),
        migrations.AddField(model_name="platformpause", name="settings_at", field=models.DateTimeField(null=True)),
        migrations.AddField(
            model_name="incident", name="reopened_by", field=models.CharField(blank=True, max_length=200)
        ),
    ]
