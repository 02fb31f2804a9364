"""Short writes of several threads in one transaction, where each commit waits for the disk alone: on SQLite.

There a burst of pages would be as slow as two flushes for each, in turns that waiting threads find by sleeping.
PostgreSQL flushes for many sessions at once, so each of its threads writes by itself.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, connection, transaction

Result = TypeVar("Result")


class _Write:
    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act
        self.done = False
        self.result: Any = None

    def __call__(self) -> None:
        self.result = self.act()


_waiting: deque[_Write] = deque()
_turn = threading.Lock()


def write(act: Callable[[], Result]) -> Result:
    """What `act` returns, once it is committed. It runs in a transaction, perhaps in another thread and, where that
    transaction failed, again. Raises what the database raises."""
    if connection.vendor != "sqlite":
        return act()
    mine = _Write(act)
    _waiting.append(mine)
    with _turn:
        if not mine.done:
            # Whoever has the turn writes for all who wait: also those who came while the last one wrote.
            _write([_waiting.popleft() for _ in range(len(_waiting))])
        if not mine.done:
            _commit([mine])  # another's write failed, or took ours with it: whatever ours meets is ours alone
    return mine.result


def _write(writes: list[_Write]) -> None:
    try:
        _commit(writes)
    except (DatabaseError, InterfaceError):
        return  # nothing was written, and each has its own turn still


def _commit(writes: list[_Write]) -> None:
    with transaction.atomic():
        for one in writes:
            one()
    for one in writes:
        one.done = True
