"""Ends a worker process that lives and does not work, so that whoever started it starts another.

Liveness is work done: the sweep sweeps, each attempt ends, and what the worker sends to itself through the broker is
heard. Whatever the worker leans on may be away, and then nobody is to blame: a sign of life is owed only from the
moment on since when database or broker have answered without a break.
"""

import logging
import os
import socket
import threading
import time

from django.db import DatabaseError, InterfaceError, connection
from kombu import Exchange, Queue

from incidents import counters, wakeup
from incidents.delivery.lanes import Sweep, beat

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SLEPT_SECONDS = 15.0  # between two looks: the whole process was stopped, or the database held us
SWEEP_SECONDS = 30.0
ATTEMPT_SECONDS = 90.0  # the longest, of the model, has 30 s; its statements may each wait for a database that vanished
ECHO_SECONDS = 45.0  # Celery looks for a broker that was away every half a minute
STATUS = 70  # "internal software error" in sysexits.h


def echo_queue() -> Queue:
    """A queue of this process alone, which goes by itself once nobody listens."""
    name = f"echo:{socket.gethostname()}:{os.getpid()}"
    # By the default exchange, which keeps no bindings that outlive us. Without an expiry: kombu would write it anew
    # each second, and log a traceback each second where a Redis is full.
    return Queue(name, Exchange(""), routing_key=name, auto_delete=True)


class Watchdog:
    """The thread that looks. `queue` is the one whose messages come back to `heard`."""

    def __init__(self, sweep: Sweep, queue: Queue) -> None:
        self.sweep = sweep
        self.queue = queue.name
        self.heard_at: float | None = None
        self.looked_at = self.awake_since = time.monotonic()
        self.database_since: float | None = None
        self.stopped = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def heard(self) -> None:
        """An echo came back. Noted in the database for /ready and /metrics, which ask who hears."""
        self.heard_at = time.monotonic()
        beat(self.sweep.hears)

    def stop(self) -> None:
        self.stopped.set()

    def _run(self) -> None:
        while not self.sweep.stopped.is_set():
            try:
                wakeup.echo(self.queue)
                if found := self.look():
                    return self._end(*found)
            except Exception:  # the outermost loop of the thread: nobody watches the watchdog
                log.exception("The watchdog broke; it goes on.")
            if self.stopped.wait(LOOK_SECONDS):
                return

    def look(self) -> tuple[str, str] | None:
        """Why this process has to end, as the metric's reason and in words. None where it works, or nobody can tell."""
        now = time.monotonic()
        if now - self.looked_at > SLEPT_SECONDS:
            self.awake_since = now
        self.looked_at = now
        if not self._database_answers():
            self.database_since = None
            return None
        self.database_since = self.database_since or now

        if self._late(self.sweep.swept_at, self.database_since, SWEEP_SECONDS):
            return "sweep", f"has not swept for {SWEEP_SECONDS:.0f} s although the database answers"
        for lane in self.sweep.lanes.values():
            if lane.lost_a_thread():
                return "attempt", f"has lost a thread of {lane.name}"
            began = lane.oldest()
            if began is not None and self._late(began, self.database_since, ATTEMPT_SECONDS):
                return "attempt", f"has held an attempt of {lane.name} for {ATTEMPT_SECONDS:.0f} s"
        taking_since = wakeup.taking_since()
        # Who has never heard anything would hear no more after another start.
        if self.heard_at and taking_since and self._late(self.heard_at, taking_since, ECHO_SECONDS):
            return "deaf", f"has heard nothing for {ECHO_SECONDS:.0f} s although the broker takes messages"
        return None

    def _late(self, sign: float, able_since: float, seconds: float) -> bool:
        """Is the next sign of life overdue, by whoever could have given it only since `able_since`?"""
        return time.monotonic() - max(sign, able_since, self.awake_since) > seconds

    def _database_answers(self) -> bool:
        """By the very question that the sweep asks, on a connection of our own: is it held up, then so is ours."""
        try:
            self.sweep.due()
        except (DatabaseError, InterfaceError):
            return False
        finally:
            connection.close()
        return True

    def _end(self, reason: str, words: str) -> None:
        log.critical("This worker %s: it ends itself, to be started again.", words)
        counters.count(counters.WATCHDOG, reason=reason)
        self.sweep.stop()  # attempts under way may still end
        counters.stop()
        os._exit(STATUS)
