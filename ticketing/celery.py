"""The Celery application: it wakes workers up. What there is to do is in the database, never in the broker."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ticketing.settings")

app = Celery("ticketing")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["incidents"])
app.steps["worker"].add("incidents.tasks:Sweeping")
