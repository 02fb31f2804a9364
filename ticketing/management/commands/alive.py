"""`manage.py alive`: whether a process works on this machine, for a container's health check."""

import http.client
import socket
import time
from datetime import timedelta

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError
from django.db.models.functions import Now

from incidents.models import Pulse
from incidents.pulses import SWEEP_SILENT
from ticketing import processes

ANSWER_SECONDS = 4
BEAT_SILENT = timedelta(seconds=90)  # it waits for a broker that hangs


class Command(BaseCommand):
    help = "Ends with 0 if the process works here, else with 1 and the reason. /ready asks the same of the whole."
    requires_system_checks = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("name", choices=processes.ALONE)

    def handle(self, *args, name: str, **options) -> None:
        problem = {"web": _web, "worker": _worker, "beat": _beat}[name]()
        if problem:
            raise CommandError(problem)


def _web() -> str:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.HOST.strip("[]"), settings.HOST.strip("[]"))
    client = http.client.HTTPConnection(here, settings.PORT, timeout=ANSWER_SECONDS)
    name = settings.ALLOWED_HOSTS[0].lstrip(".")
    try:
        client.request("GET", "/health", headers={"Host": name})
        status = client.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"The web server does not answer: {error}"
    finally:
        client.close()
    return "" if status == 200 else f"The web server answers with {status}."


def _worker() -> str:
    """By the pulse that it gives the database, as its own host's name says."""
    try:
        mine = Pulse.objects.filter(name__startswith=f"sweep:{socket.gethostname()}:")
        seen = mine.filter(at__gte=Now() - SWEEP_SILENT).exists()
    except (DatabaseError, InterfaceError) as error:
        return f"The database cannot be reached: {type(error).__name__}"
    return "" if seen else "No worker of this host sweeps."


def _beat() -> str:
    """By its file, which it writes with each task that it sends."""
    written = [path.stat().st_mtime for path in settings.DATA_DIR.glob(f"{processes.BEAT_SCHEDULE}*")]
    silent = time.time() - max(written, default=0)
    return "" if silent < BEAT_SILENT.total_seconds() else "Beat has sent nothing for a while."
