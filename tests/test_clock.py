"""The host's clock jumps while everything runs: leases go by the database's, ids by the UTC day, and beat goes on."""

import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from tests.rig import Rig
from tests.waiting import until
from ticketing.beat import Scheduler
from ticketing.celery import app

HOUR = 3600.0
EARLY = 0.5  # seconds by which a takeover may seem to come before the lease's end


def to_new_year() -> float:
    """Seconds until two seconds before the year's end."""
    now = datetime.now(UTC)
    return (datetime(now.year + 1, 1, 1, tzinfo=UTC) - timedelta(seconds=2) - now).total_seconds()


@pytest.mark.fault("B21")
@pytest.mark.django_db  # so that it runs in each engine
def test_a_lease_is_neither_stolen_nor_held_for_ever_and_beat_goes_on(rig, tmp_path, faults):
    file = tmp_path / "jumps"
    rig = rig(app="tests.jumping", workers=1, more={"JUMPS_BY": str(file)})
    rig.argv["worker-2"] = rig.argv["worker-1"]
    rig.start("beat")
    until(lambda: beats_since(rig, 30), words="beat")
    jumps = faults.sample([-HOUR, HOUR, 48 * HOUR, to_new_year()], 1)
    missed, silent = [], []
    for number, by in enumerate(jumps):
        missed.append(takeover(rig, f"jump-{number}", lambda by=by: file.write_text(str(by))))
        began = time.monotonic()
        until(lambda: beats_since(rig, 2), words=f"beat after {by:.0f} s")
        silent.append(time.monotonic() - began)
        rig.shows(["pagerduty"])
    pages = rig.pages("pagerduty")
    faults.verdict(
        tried=len(jumps),
        lost=len(rig.sent) - len(pages),
        doubled=sum(pages.values()) - len(pages),
        taken_over=f"{max(missed):.1f} s after the lease",
        beat_silent=f"{max(silent):.1f} s",
    )


def takeover(rig: Rig, name: str, jump) -> float:
    """A worker stops with a claim in hand, and the clock jumps. Seconds from the lease's end to another's page."""
    first = rig.running["worker-1"]
    for number in count():
        rig.standin("pagerduty", "POST", "/_faults", {"kind": "hang"})
        incident = rig.post(f"{name}-{number}")
        until(lambda: rig.standin("pagerduty", "GET", "/_faults") == [], words="the first attempt")
        rig.shows(["opsgenie", "jira", "servicenow", "slack"])
        stop_between_writes(rig, first)
        began = time.monotonic()
        if left := lease_left(rig, incident):
            break
        first.send_signal(signal.SIGCONT)  # the machine was so busy that the attempt is over already
        assert number < 5
    try:
        jump()
        rig.start("worker-2")
        until(lambda: rig.pages("pagerduty")[incident], 120, "the takeover")
        missed = time.monotonic() - began - left
    finally:
        first.send_signal(signal.SIGCONT)
    rig.kill("worker-2")
    assert missed > -EARLY, "stolen"
    return missed


def stop_between_writes(rig: Rig, worker: subprocess.Popen) -> None:
    """Who is stopped while it writes holds up a whole SQLite."""

    def stopped() -> bool:
        worker.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        if not rig.database_url.startswith("sqlite"):
            return True
        with closing(sqlite3.connect(rig.database_url.removeprefix("sqlite:///"), timeout=5)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                worker.send_signal(signal.SIGCONT)
                return False
        return True

    until(stopped, words="a worker that does not write")


def lease_left(rig: Rig, incident: str) -> float:
    """Seconds; 0 where it is over."""
    left = "coalesce(extract(epoch FROM lease_until - now()), 0)"
    if rig.database_url.startswith("sqlite"):
        left = "coalesce((julianday(lease_until) - julianday('now')) * 86400, 0)"
    of = f"FROM incidents_ticket WHERE incident_id = '{incident}' AND platform = 'pagerduty'"
    return max(0.0, float(rig.query(f"SELECT {left} {of}")[0][0]))


def beats_since(rig: Rig, seconds: int) -> bool:
    ago = f"now() - interval '{seconds} seconds'"
    if rig.database_url.startswith("sqlite"):
        ago = f"STRFTIME('%Y-%m-%d %H:%M:%f', 'now', '-{seconds} seconds')"
    return bool(rig.query(f"SELECT count(*) FROM incidents_pulse WHERE name = 'beat' AND at > {ago}")[0][0])


@pytest.mark.parametrize("hours", [-48, -1, 1, 48])
def test_beat_sends_what_is_due_after_a_jump_and_after_its_own_restart(tmp_path, time_machine, hours):
    sent = []

    def beat() -> Scheduler:
        scheduler = Scheduler(app, schedule_filename=str(tmp_path / "schedule"))
        scheduler.apply_entry = lambda entry, producer=None: sent.append(entry.name)
        return scheduler

    def go_on(scheduler: Scheduler) -> None:
        """For half a minute, in which it looks every 15 seconds."""
        sent.clear()
        for _ in range(3):
            for _ in range(2 * len(scheduler.schedule)):
                scheduler.tick()
            time_machine.shift(15)

    true = datetime.now(UTC)
    time_machine.move_to(true, tick=False)
    running = beat()
    go_on(running)
    assert 1 <= sent.count("beat") <= 3
    time_machine.shift(hours * HOUR)
    go_on(running)
    assert 1 <= sent.count("beat") <= 3, "goes on, and makes up for nothing"
    running.close()
    time_machine.shift(-HOUR)
    go_on(again := beat())
    assert 1 <= sent.count("beat") <= 3, "its file remembers what is to come"
    again.close()


@pytest.mark.django_db
@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati"])
def test_ids_keep_the_utc_day_over_new_year_wherever_the_host_is(send, connect, time_machine, monkeypatch, zone):
    connect("pagerduty")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        time_machine.move_to(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), tick=False)
        [old] = send({"service": "a"})["incidents"]
        time_machine.shift(1)
        [new] = send({"service": "b"})["incidents"]
        time_machine.shift(-1)  # a leap second, smeared or not
        [leap] = send({"service": "c"})["incidents"]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [old, new, leap] == ["inc-20261231-001", "inc-20270101-001", "inc-20261231-002"]
