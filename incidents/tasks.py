"""What Celery calls: wake-ups and the clock's jobs. Each may be lost or run twice without harm."""

from celery import shared_task
from celery.signals import worker_ready, worker_shutting_down

from incidents import retention
from incidents.causes import health
from incidents.delivery import lanes

_sweep: lanes.Sweep | None = None


@worker_ready.connect
def start_sweep(sender, **_):
    """Every worker process sweeps, for the queues that it consumes."""
    global _sweep
    _sweep = lanes.Sweep(set(sender.app.amqp.queues.consume_from))


@worker_shutting_down.connect
def stop_sweep(**_):
    if _sweep:
        _sweep.stop()


@shared_task(name="tickets.wake")
def wake_tickets(platforms: list[str]) -> None:
    if _sweep:
        _sweep.wake(platforms)


@shared_task(name="causes.wake")
def wake_causes(_: list[str]) -> None:
    if _sweep:
        _sweep.wake([lanes.CAUSES])


@shared_task(name="causes.check_model")
def check_model() -> None:
    health.check()


@shared_task(name="tickets.beat")
def note_beat() -> None:
    lanes.beat("beat")


@shared_task(name="tickets.prune")
def prune() -> None:
    retention.prune()
