"""The threads of a worker process: a lane per platform, one for causes, one that looks at what tickets show, and the
sweep that finds whatever is due.

A lane is a bulkhead: at most a few attempts of one platform are under way, and a platform that hangs holds only its own
threads. A wake-up tells a lane to look; the sweep tells all of them each second, and needs neither broker nor beat.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from django.db import DatabaseError, InterfaceError, OperationalError, close_old_connections, connection
from django.db.models.functions import Now

from incidents.causes import model
from incidents.delivery import looks
from incidents.delivery.attempts import attempt_next
from incidents.models import Incident, Pulse, Ticket
from platforms.catalog import PLATFORMS

log = logging.getLogger(__name__)

THREADS_PER_LANE = 4
SWEEP_SECONDS = 1.0
PULSE_SECONDS = 5.0
# An incident wakes all its lanes at once. Those that page nobody let the others go first: on few cores they would
# share the very milliseconds in which somebody is to be woken.
GRACE_SECONDS = 0.02
# In a burst they go on to do so while page after page leaves, for as long as this in all.
LONGEST_GRACE_SECONDS = 4.0
LEAVING_SECONDS = 0.25  # since the last claim: a platform that hangs or is left alone delays no other
CAUSES = "causes"
LOOKS = "looks"
STOPPING_SECONDS = 6.0


class Lane:
    """Threads that make attempts of one kind until nothing is due, and then wait to be woken."""

    def __init__(
        self,
        name: str,
        attempt: Callable[[Callable[[], None]], bool],
        threads: int = THREADS_PER_LANE,
        grace: float = 0.0,
        first: Sequence["Lane"] = (),
    ) -> None:
        self.name = name
        self.grace = grace  # seconds from a wake-up to the first look
        self.first = first  # the lanes that it lets go first
        self.attempt = attempt
        self.claimed_at = -math.inf
        self.word = False
        self.stopped = False
        self.condition = threading.Condition()
        self.began: dict[str, float] = {}  # by the name of each thread that works: since when, by the monotonic clock
        self.threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def wake(self) -> None:
        with self.condition:
            self.word = True
            self.condition.notify()

    def stop(self) -> None:
        """No new attempts; those under way end by themselves."""
        with self.condition:
            self.stopped = True
            self.condition.notify_all()

    def oldest(self) -> float | None:
        """When the attempt began that is under way for longest, by the monotonic clock."""
        return min(list(self.began.values()), default=None)

    def lost_a_thread(self) -> bool:
        return not self.stopped and not all(thread.is_alive() for thread in self.threads)

    def _run(self) -> None:
        while True:
            with self.condition:
                self.condition.wait_for(lambda: self.word or self.stopped)
                if self.stopped:
                    break
                self.word = False  # cleared before looking: a word that comes while looking is not lost
            self._drain()
        connection.close()

    def _drain(self) -> None:
        patient_until = time.monotonic() + LONGEST_GRACE_SECONDS
        time.sleep(self.grace)
        me = threading.current_thread().name
        try:
            self.began[me] = time.monotonic()
            close_old_connections()
            while not self.stopped:
                self._let_others_go_first(patient_until)
                self.began[me] = time.monotonic()
                if not self.attempt(self._claimed):
                    break
        except (OperationalError, InterfaceError) as error:
            log.warning("An attempt of %s lost the database (%s).", self.name, _why(error))
            connection.close()
        except Exception:  # the outermost loop of the thread: it must outlive whatever one attempt meets
            log.exception("An attempt of %s broke.", self.name)
            connection.close()
        finally:
            del self.began[me]

    def _claimed(self) -> None:
        """Whoever holds something wakes a second thread to look for more, and so on up to all of them."""
        self.claimed_at = time.monotonic()
        self.wake()

    def _let_others_go_first(self, until: float) -> None:
        while time.monotonic() < until and not self.stopped and any(lane.is_leaving for lane in self.first):
            time.sleep(GRACE_SECONDS)

    @property
    def is_leaving(self) -> bool:
        return bool(self.began) and time.monotonic() - self.claimed_at < LEAVING_SECONDS


class Sweep:
    """Looks each second for what is due, and tells that it is alive. `chores` are done each time that it tells so."""

    def __init__(self, queues: set[str], chores: Sequence[Callable[[], object]] = ()) -> None:
        self.chores = chores if "tickets" in queues else ()
        self.lanes: dict[str, Lane] = {}
        pages: list[Lane] = []
        if "tickets" in queues:
            pages = [_lane_of(name) for name, platform in PLATFORMS.items() if platform.pages]
            others = [_lane_of(name, first=pages) for name, platform in PLATFORMS.items() if not platform.pages]
            self.lanes |= {lane.name: lane for lane in (*pages, *others)}
            self.lanes[LOOKS] = Lane(LOOKS, lambda _: looks.look_next(), threads=1)
        if "causes" in queues:
            self.lanes[CAUSES] = Lane(CAUSES, model.ask_next, grace=GRACE_SECONDS, first=pages)
        place = f"{socket.gethostname()}:{os.getpid()}"
        self.name, self.hears = f"sweep:{place}", f"hears:{place}"  # its pulses
        self.stopped = threading.Event()
        self.pulse_at = 0.0
        self.swept_at = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="sweep", daemon=True)
        self.thread.start()

    def wake(self, names: list[str]) -> None:
        for name in names:
            if lane := self.lanes.get(name):
                lane.wake()

    def take_no_more(self) -> None:
        self.stopped.set()
        for lane in self.lanes.values():
            lane.stop()

    def stop(self) -> None:
        """Waits a moment for the attempts under way; what is not noted then is taken up again after its lease."""
        self.take_no_more()
        deadline = time.monotonic() + STOPPING_SECONDS
        for thread in [t for lane in self.lanes.values() for t in lane.threads] + [self.thread]:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        failing = False
        while not self.stopped.wait(SWEEP_SECONDS):
            try:
                close_old_connections()
                self.once()
                failing = False
            except (OperationalError, InterfaceError) as error:
                if not failing:  # once, and not each second
                    log.error("The database cannot be used (%s); the sweep goes on.", _why(error))
                failing = True
                connection.close()
            except Exception:  # the outermost loop of the thread: the last thing to die
                log.exception("The sweep broke; it goes on.")
                connection.close()
        with suppress(DatabaseError, InterfaceError):  # they grow old by themselves
            Pulse.objects.filter(name__in=[self.name, self.hears]).delete()
        connection.close()

    def once(self) -> None:
        self.wake(self.due())
        self.swept_at = time.monotonic()
        if time.monotonic() - self.pulse_at >= PULSE_SECONDS:
            beat(self.name)
            self.pulse_at = time.monotonic()
            self.wake([LOOKS])
            for chore in self.chores:
                chore()

    def due(self) -> list[str]:
        names = []
        if self.lanes.keys() - {CAUSES}:
            due = Ticket.objects.filter(due_at__lte=Now()).order_by()
            names += due.values_list("platform", flat=True).distinct()
        if CAUSES in self.lanes and Incident.objects.awaiting_model().exists():
            names.append(CAUSES)
        return names


def _lane_of(platform: str, first: Sequence[Lane] = ()) -> Lane:
    grace = GRACE_SECONDS if first else 0.0
    return Lane(platform, lambda claimed: attempt_next(platform, claimed), grace=grace, first=first)


def _why(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


def beat(name: str) -> None:
    """Notes by the database's clock that this part of the machinery works."""
    Pulse.objects.bulk_create(
        [Pulse(name=name, at=Now())], update_conflicts=True, unique_fields=["name"], update_fields=["at"]
    )
