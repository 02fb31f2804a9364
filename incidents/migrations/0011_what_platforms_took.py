from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("incidents", "0010_counts_without_rows")]

    operations = [migrations.AddField(model_name="ticket", name="taken", field=models.JSONField(null=True))]
