from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("incidents", "0011_what_platforms_took")]

    operations = [migrations.AddField(model_name="incident", name="cause_seconds", field=models.FloatField(null=True))]
