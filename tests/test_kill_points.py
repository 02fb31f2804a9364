"""A worker that dies at any of its system calls on the network leaves one ticket, whichever it was.

strace kills it at its n-th call; without strace there is nothing to see here. What a client of PostgreSQL sends goes
through the same calls, so there they are many: `make faults` tries all.
"""

import os
import shutil
import subprocess
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from incidents.models import Incident, Ticket

STRACE = shutil.which("strace")
MOST_CALLS = 200
WORK = "while attempts.attempt_next('jira'): pass"


def strace_works() -> bool:
    if STRACE is None:
        return False
    tried = subprocess.run([STRACE, "-f", "-e", "trace=connect", "true"], capture_output=True, check=False)
    return tried.returncode == 0


pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not strace_works(), reason="needs strace, and the right to trace a process"),
]


@pytest.mark.fault("B1")
@pytest.mark.parametrize("call", ["connect", "sendto", "recvfrom"])
def test_every_death_leaves_one_issue(connect, api, send, work, start_worker, faults, call):
    standins = connect("jira")
    assert api.patch("/api/v1/config/routing", {"critical": ["jira"]}, format="json").status_code == 200
    number, died = 1, 0
    while number < MOST_CALLS:
        standins.jira.reset()
        Incident.objects.all().delete()
        [incident_id] = send({"service": f"{call}-{number}"})["incidents"]
        assert api.post(f"/api/incidents/{incident_id}/acknowledge").status_code == 200
        worker = start_worker(
            WORK, STRACE, "-f", "-qq", "-o", os.devnull, "-e", f"inject={call}:signal=SIGKILL:when={number}"
        )
        survived = worker.wait(60) == 0
        held = Ticket.objects.filter(lease_until__isnull=False)
        held.update(lease_until=timezone.now() - timedelta(seconds=1))  # time passes
        work(later=True)
        [issue] = standins.jira.issues.values()
        assert issue.category == "indeterminate", number
        assert not Ticket.objects.behind().exists(), number
        if survived:
            break
        died += 1
        number += step(faults)
    faults.verdict(tried=died)


def step(faults) -> int:
    """On SQLite all calls are on the way to Jira."""
    return 1 if connection.vendor == "sqlite" or faults.thorough else 9
