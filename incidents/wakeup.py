"""Tells workers that there is something to do, off the request's way. A lost wake-up costs a second, never a ticket.

One daemon thread per process publishes; requests only leave a word for it. So a broker that hangs, is full or is gone
holds nobody, and a burst of incidents becomes a handful of messages.
"""

import logging
import math
import os
import threading
import time

from celery import current_app
from django.db import transaction

from incidents import counters

log = logging.getLogger(__name__)

TASKS = {"tickets": "tickets.wake", "causes": "causes.wake"}
ECHO = "tickets.echo"
EXPIRES_SECONDS = 10
ECHO_EXPIRES_SECONDS = 60  # a worker that hears late still hears
COMPLAIN_EVERY_SECONDS = 60


class _Publisher:
    """Publishes what was left since its last round, one message per queue."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.words: dict[str, set[str]] = {}
        self.condition = threading.Condition()
        self.complained_at = -math.inf
        self.taking_since: float | None = None  # by the monotonic clock; None while the broker takes nothing
        threading.Thread(target=self.run, name="wakeup", daemon=True).start()

    def leave(self, queue: str, names: set[str]) -> None:
        with self.condition:
            self.words.setdefault(queue, set()).update(names)
            self.condition.notify()

    def run(self) -> None:
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self.words)
                words, self.words = self.words, {}
            for queue, names in words.items():
                self.publish(queue, sorted(names))

    def publish(self, queue: str, names: list[str]) -> None:
        how = {"queue": queue, "retry": False}
        try:
            if queue in TASKS:
                current_app.send_task(TASKS[queue], args=[names], expires=EXPIRES_SECONDS, **how)
            else:
                current_app.send_task(ECHO, expires=ECHO_EXPIRES_SECONDS, **how)
            self.taking_since = self.taking_since or time.monotonic()
        except Exception as error:  # the thread must outlive whatever a broker's client may raise
            self.taking_since = None
            if queue in TASKS:
                counters.count(counters.WAKEUPS_LOST, queue=queue)
            if time.monotonic() - self.complained_at > COMPLAIN_EVERY_SECONDS:
                self.complained_at = time.monotonic()
                log.warning("No wake-up could be published (%s); the sweep delivers all.", type(error).__name__)


_publisher: _Publisher | None = None
_starting = threading.Lock()


def wake(queue: str, names: set[str]) -> None:
    """On commit, wakes a worker of the queue. `names`: the platforms with something due; for causes, anything."""
    if names:
        transaction.on_commit(lambda: _running().leave(queue, names))


def echo(queue: str) -> None:
    """Sends to a worker's own queue what it should hear."""
    _running().leave(queue, {queue})


def taking_since() -> float | None:
    """Since when, by the monotonic clock, the broker has taken all that this process sent. None while it does not."""
    return _running().taking_since


def _running() -> _Publisher:
    global _publisher
    with _starting:
        if _publisher is None or _publisher.pid != os.getpid():  # threads do not survive a fork
            _publisher = _Publisher()
        return _publisher
