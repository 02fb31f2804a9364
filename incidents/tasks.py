"""What Celery calls: wake-ups and the clock's jobs. Each may be lost or run twice without harm."""

from contextlib import suppress

from celery import bootsteps, shared_task
from celery.signals import beat_init, worker_shutting_down
from kombu.exceptions import KombuError

from incidents import counters, drill, retention, wakeup, watchdog
from incidents.causes import health
from incidents.delivery import lanes

_sweep: lanes.Sweep | None = None
_watchdog: watchdog.Watchdog | None = None


class Sweeping(bootsteps.StartStopStep):
    """Every worker process sweeps, for the queues that it consumes; also while it cannot reach the broker yet."""

    requires = {"celery.worker.components:Pool"}

    def start(self, worker) -> None:
        global _sweep, _watchdog
        counters.start()
        _sweep = lanes.Sweep(set(worker.app.amqp.queues.consume_from), chores=[drill.end_due])
        echo = worker.app.amqp.queues.select_add(watchdog.echo_queue())
        _watchdog = watchdog.Watchdog(_sweep, echo)

    def stop(self, worker) -> None:
        if _watchdog:
            _watchdog.stop()
        if _sweep:
            _sweep.stop()
        counters.stop()


@worker_shutting_down.connect
def take_no_more(**_) -> None:
    """Attempts under way end while the rest of the worker closes."""
    if _sweep:
        _sweep.take_no_more()


@shared_task(name="tickets.wake")
def wake_tickets(platforms: list[str]) -> None:
    if _sweep:
        _sweep.wake(platforms)


@shared_task(name="causes.wake")
def wake_causes(_: list[str]) -> None:
    if _sweep:
        _sweep.wake([lanes.CAUSES])


@shared_task(name=wakeup.ECHO)
def hear() -> None:
    if _watchdog:
        _watchdog.heard()


@shared_task(name="causes.check_model")
def check_model() -> None:
    health.check()


@shared_task(name="tickets.beat")
def note_beat() -> None:
    lanes.beat("beat")


@shared_task(name="tickets.drill")
def begin_drill() -> None:
    drill.begin_if_due()


@shared_task(name="tickets.prune")
def prune() -> None:
    retention.prune()


@beat_init.connect
def show_beat_at_once(**_) -> None:
    """Its schedule begins with a wait, for which /ready would call it silent."""
    with suppress(KombuError, OSError):  # without a broker it is silent indeed
        note_beat.apply_async(expires=30, retry=False)
