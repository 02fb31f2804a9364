"""The demo: for who has no account anywhere, and for nobody who has."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from config.changes import patch_platforms
from tests.demo.__main__ import _refuse_what_is_real
from tests.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 300


def test_a_newcomer_sees_tickets_in_sync(tmp_path):
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "BROKER_URL")} | {
        "LOCAL_MODE": "1",
        "DATA_DIR": str(tmp_path / "demo"),
        "PORT": str(port),
        "EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8",
        "DEMO_INCIDENTS": "4",
    }
    demo = subprocess.Popen(
        [sys.executable, "manage.py", "up", "--demo"], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
    )
    try:
        assert _login(demo).startswith(f"http://127.0.0.1:{port}/admin/")
        until(lambda: _is_as_told(port), PATIENCE_SECONDS, words="a demo as it is told of")
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)


def _is_as_told(port: int) -> bool:
    """New faults come every few seconds, so now and then some tickets and causes are just under way."""
    incidents = _get(port, "/api/incidents")
    tickets = [t for i in incidents for t in _get(port, f"/api/incidents/{i['id']}")["tickets"]]
    statuses = {incident["status"] for incident in incidents}
    states = Counter(ticket["state"] for ticket in tickets)
    one_failed = states["failed"] == 1 and states["in sync"] == len(tickets) - 1
    one_fallback = sum(incident["fallback"] for incident in incidents) == 1
    return statuses >= {"open", "escalated", "resolved"} and one_failed and one_fallback


def _login(demo: subprocess.Popen) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    for line in demo.stdout:
        if told := re.search(r"The demo is ready: (\S+) · user demo · password \S+", line):
            return told[1]
        assert time.monotonic() < deadline, line
    raise AssertionError("The demo ended.")


def _get(port: int, path: str):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.load(answer)


@pytest.mark.django_db
def test_it_refuses_to_run_where_a_real_platform_is_enabled():
    patch_platforms({"pagerduty": {"enabled": True, "routingKey": "a-real-key"}}, actor="system")
    with pytest.raises(SystemExit, match="PagerDuty is enabled here and is real"):
        _refuse_what_is_real()


def test_it_refuses_a_data_directory_that_is_not_its_own(tmp_path, settings):
    settings.DATA_DIR = tmp_path
    settings.PORT = 0
    (tmp_path / "ticketing.sqlite3").write_bytes(b"precious")
    with pytest.raises(CommandError, match="holds somebody's data"):
        call_command("up", "--demo")
    assert (tmp_path / "ticketing.sqlite3").read_bytes() == b"precious"
