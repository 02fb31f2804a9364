"""What has happened, counted: in memory first, added every few seconds to rows of the database, which /metrics reads.

Rows, because any process answers /metrics for all of them, on whichever machine they run, and because counts outlive
processes. In memory first, because counting must cost a request nothing. A process that is killed takes the counts of
its last seconds with it: nothing but /metrics reads them, and what must be exact is asked of the other tables.
"""

import logging
import threading
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError, connection

from incidents.models import Counter
from platforms.catalog import PLATFORMS

log = logging.getLogger(__name__)

WRITE_SECONDS = 5.0
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class Metric:
    """One figure as /metrics tells it. `labels`: their values, as far as they are known beforehand."""

    name: str
    kind: str  # counter, gauge or histogram
    about: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    buckets: tuple[str, ...] = ()  # a histogram's upper bounds, as Prometheus writes them

    def sample(self, suffix: str = "", **labels: object) -> str:
        """How one of its samples is called in Prometheus' text format. Label values are words of our own."""
        inner = ",".join(f'{name}="{value}"' for name, value in labels.items())
        return f"{self.name}{suffix}{{{inner}}}" if inner else f"{self.name}{suffix}"


OUTCOMES = ("created", "deduplicated", "reopened", "belowThreshold", "redelivered", "rejected")
INTAKE = Metric("ticketing_intake_events_total", "counter", "Events by what became of them.", {"outcome": OUTCOMES})
ATTEMPTS = Metric(
    "ticketing_attempts_total",
    "counter",
    "Attempts to bring a ticket in step, by how they ended: in_step, retry, paused (429), parked, lost (the lease).",
    {"platform": tuple(PLATFORMS), "outcome": ("in_step", "retry", "paused", "parked", "lost")},
)
TIME_TO_SHOW = Metric(
    "ticketing_time_to_show_seconds",
    "histogram",
    "From the moment a ticket was asked for (incident opened or escalated, ticket sent again by hand) until the "
    "platform accepted it.",
    {"platform": tuple(PLATFORMS)},
    ("0.5", "1", "2", "5", "10", "30", "60", "300", "900", "3600", "+Inf"),
)
HTTP_REQUESTS = Metric(
    "ticketing_http_requests_total", "counter", "HTTP requests that were answered, by status.", {"status": ()}
)
WAKEUPS_LOST = Metric(
    "ticketing_wakeups_lost_total",
    "counter",
    "Wake-ups that the broker did not take, by queue. The sweep makes up for them within a second.",
    {"queue": ("tickets", "causes")},
)
WEBHOOKS = Metric(
    "ticketing_inbound_webhooks_total",
    "counter",
    "Platforms' webhooks by what came of them: moved (the incident), ignored (an echo, late, unknown, sent again), "
    "refused (signature or secret), unreadable.",
    {"platform": tuple(PLATFORMS), "outcome": ("moved", "ignored", "refused", "unreadable")},
)
WATCHDOG = Metric(
    "ticketing_watchdog_exits_total",
    "counter",
    "Workers that ended themselves to be started again: deaf to the broker, or their sweep or an attempt stuck.",
    {"reason": ("deaf", "sweep", "attempt")},
)
COUNTED = (INTAKE, ATTEMPTS, TIME_TO_SHOW, HTTP_REQUESTS, WAKEUPS_LOST, WEBHOOKS, WATCHDOG)

_lock = threading.Lock()
_pending: Tally[str] = Tally()


def count(metric: Metric, by: float = 1, **labels: object) -> None:
    _add({metric.sample(**labels): by})


def observe(metric: Metric, seconds: float, **labels: object) -> None:
    """Adds one observation to a histogram."""
    full = [bound for bound in metric.buckets if seconds <= float(bound)]
    _add(
        {metric.sample("_bucket", **labels, le=bound): 1 for bound in full}
        | {metric.sample("_sum", **labels): max(0.0, seconds), metric.sample("_count", **labels): 1}
    )


def _add(samples: Mapping[str, float]) -> None:
    with _lock:
        for name, value in samples.items():
            _pending[name] += value


def write() -> None:
    """Adds what was counted since the last time to the rows, in one statement. Raises what the database raises, and
    then nothing is forgotten."""
    with _lock:
        taken = dict(_pending)
        _pending.clear()
    if not taken:
        return
    table = connection.ops.quote_name(Counter._meta.db_table)
    rows = ", ".join(["(%s, %s)"] * len(taken))
    # Sorted, so that two processes lock the rows in the same order.
    values = [value for name in sorted(taken) for value in (name, taken[name])]
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table} (name, value) VALUES {rows} "
                f"ON CONFLICT (name) DO UPDATE SET value = {table}.value + excluded.value",
                values,
            )
    except (DatabaseError, InterfaceError):
        _add(taken)
        raise


class _Writer:
    """The thread that writes."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.failing = False
        self.thread = threading.Thread(target=self._run, name="counters", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopped.wait(WRITE_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            write()
            self.failing = False
        except (DatabaseError, InterfaceError) as error:
            if not self.failing:
                log.warning("Counts cannot be written (%s); they wait in memory.", type(error).__name__)
            self.failing = True
        finally:
            connection.close()  # one statement every few seconds is worth no connection of its own


_writer: _Writer | None = None


def start() -> None:
    """Begins to write. For processes that serve: elsewhere counts stay in memory, as many as there are labels."""
    global _writer
    if _writer is None:
        _writer = _Writer()


def stop() -> None:
    """Writes what is left, if the database takes it quickly."""
    global _writer
    if _writer is not None:
        _writer.stopped.set()
        _writer.thread.join(STOP_SECONDS)
        _writer = None
