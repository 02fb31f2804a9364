"""The Celery application: it wakes workers up. What there is to do is in the database, never in the broker."""

import os

from celery import Celery
from celery.signals import setup_logging

from ticketing import logs

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ticketing.settings")

app = Celery("ticketing")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["incidents"])
# Otherwise Celery sets the level of its command line, WARNING, for all of us.
setup_logging.connect(logs.configure)
app.steps["worker"].add("incidents.tasks:Sweeping")
