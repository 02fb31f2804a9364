"""The Celery application with tickets of which the worker dies, as if the system had killed it for its memory."""

import os
import signal

from tests.hasty import app  # isort: skip  (it sets Django up)
from platforms.catalog import PLATFORMS

__all__ = ["app"]

_jira = PLATFORMS["jira"]
_create = _jira.create


def _deadly(caller, settings, notice):
    if "poison" in notice.title:
        os.kill(os.getpid(), signal.SIGKILL)
    return _create(caller, settings, notice)


_jira.create = _deadly
