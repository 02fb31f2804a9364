from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("incidents", "0004_looks_and_drills")]

    operations = [
        migrations.AddIndex(
            model_name="anomaly", index=models.Index(fields=["incident", "at"], name="anomaly_in_time")
        ),
    ]
