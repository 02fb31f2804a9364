"""Requests of one process share transactions: who comes while one is under way is in the next, with all others who did.

So a storm costs few commits, and nobody queues for the database's locks.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from django.db import InterfaceError, OperationalError

from incidents.events import Event
from incidents.lifecycle import Author

MOST_TOGETHER = 1000  # events; more of one request alone are taken alone
# How long a transaction waits to be as full as the last two were on average. Else clients who wait for their answers
# fall into a rhythm of one alone and then all others together, and the one costs as much as all others.
GATHER_SECONDS = 0.002


@dataclass(frozen=True)
class Result:
    """What became of one event: created, deduplicated, reopened, belowThreshold, redelivered or rejected."""

    outcome: str
    incident_id: str | None = None
    message: str = ""


def _shut() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class Sent:
    """The events of one request, and how it ended for them."""

    events: list[Event]
    author: Author
    results: list[Result] | None = None
    error: Exception | None = None
    leads: bool = False  # takes in the next ones, itself among them
    woken: threading.Lock = field(default_factory=_shut)  # opens once: it ended, or it leads


class Turns:
    """`take`: takes in the events of several requests in one transaction, and returns all results in their order."""

    def __init__(self, take: Callable[[list[Sent]], list[Result]]) -> None:
        self._take = take
        self._arrival = threading.Condition(threading.Lock())
        self._waiting: deque[Sent] = deque()
        self._busy = False
        self._gathers = False
        self._sizes = (1, 1)  # requests in each of the last two transactions

    def take_in(self, sent: Sent) -> list[Result]:
        """Its results, once they are committed. Raises what its events met."""
        with self._arrival:
            self._waiting.append(sent)
            sent.leads = not self._busy
            self._busy = True
            if self._gathers and len(self._waiting) >= self._wanted():
                self._arrival.notify()
        if not sent.leads:
            sent.woken.acquire()
        if sent.leads:
            self._lead(sent)
        if sent.error:
            raise sent.error
        return sent.results

    def _lead(self, sent: Sent) -> None:
        together = self._gathered()
        try:
            self._take_in(together)
        finally:
            self._pass_on()
            for other in together:
                if other is not sent:
                    other.woken.release()

    def _wanted(self) -> int:
        return sum(self._sizes) // 2

    def _gathered(self) -> list[Sent]:
        with self._arrival:
            self._gathers = True
            self._arrival.wait_for(lambda: len(self._waiting) >= self._wanted(), GATHER_SECONDS)
            self._gathers = False
            together = [self._waiting.popleft()]
            room = MOST_TOGETHER - len(together[0].events)
            while self._waiting and len(self._waiting[0].events) <= room:
                together.append(self._waiting.popleft())
                room -= len(together[-1].events)
            self._sizes = (self._sizes[1], len(together))
        return together

    def _pass_on(self) -> None:
        with self._arrival:
            self._busy = bool(self._waiting)
            if self._busy:
                self._waiting[0].leads = True
                self._waiting[0].woken.release()

    def _take_in(self, together: list[Sent]) -> None:
        try:
            results = iter(self._take(together))
        except Exception as error:  # whatever it is: it is told to whom it concerns, and no other request pays for it
            if len(together) == 1 or isinstance(error, OperationalError | InterfaceError):
                for sent in together:
                    sent.error = error
            else:
                for sent in together:
                    self._take_in([sent])
        else:
            for sent in together:
                sent.results = [next(results) for _ in sent.events]
