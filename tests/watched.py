"""The Celery application with a watchdog in a hurry, so that a test of it need not wait a minute."""

from tests.hasty import app  # isort: skip  (it sets Django up)
from incidents import watchdog

__all__ = ["app"]

watchdog.LOOK_SECONDS = 0.5
watchdog.ECHO_SECONDS = 5.0
