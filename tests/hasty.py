"""The Celery application in a hurry: what does not page has short leases and a quick search, and a model has little
time, so that a test of crashes need not wait a minute for each. What pages keeps its times.
"""

import django

from ticketing.celery import app

django.setup()

from incidents.causes import model  # noqa: E402  (needs Django to be set up)
from incidents.delivery import attempts  # noqa: E402
from platforms.catalog import PLATFORMS  # noqa: E402

__all__ = ["app", "attempts"]

attempts.OTHER = attempts.Times(deadline=4, lease=6)
PLATFORMS["jira"].search_lag = 3.0
model.DEADLINE_SECONDS, model.LEASE_SECONDS = 3.0, 5.0
