"""What to ask of a platform next, and what its answer means for the ticket. Pure: (row, clock, answer) → (row, request).

Nothing here reads a database, a clock or a socket, so that a simulator can drive millions of steps through it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta

from platforms.contract import PlatformError, Remote, Step

TOO_OLD_TO_CREATE = timedelta(days=1)
GIVE_UP_UPDATING = timedelta(days=1)
POISON_ATTEMPTS = 10  # failures of one ticket at a platform that serves others
# After an unknown outcome, when to look again for what may have been created. The last look is after the search lag.
FIRST_LOOK_AGAIN = timedelta(seconds=5)
PAGING_RETRY = (1, 2, 4, 8, 15, 30)  # seconds; the last one repeats
OTHER_RETRY = (2, 5, 15, 30, 60, 120, 300)
PAUSE_WITHOUT_HINT = 30.0


@dataclass(frozen=True)
class Level:
    """What a ticket shows, or should show."""

    status: str
    escalated: bool = False
    cause: str = ""  # a digest of the root cause's text
    note: int = 0  # the last note shown, by the number of its audit entry

    def as_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping) -> "Level | None":
        return cls(**value) if value else None


@dataclass(frozen=True)
class Traits:
    """What kind of platform it is, as far as delivery cares."""

    pages: bool
    keyed: bool
    searchable: bool
    search_lag: timedelta = timedelta()


@dataclass(frozen=True)
class Row:
    """A claimed ticket, as far as delivery cares. The claim itself counted as an attempt."""

    wanted: Level
    traits: Traits
    written_at: datetime
    shown: Level | None = None
    remote: Remote | None = None
    generation: int = 1
    previous_links: tuple[str, ...] = ()
    attempts: int = 1
    in_doubt: bool = False
    doubtful_since: datetime | None = None
    lookups: int = 0  # since the doubt arose, or in this attempt
    last_lookup_at: datetime | None = None
    may_be_doubled: bool = False
    failing_since: datetime | None = None
    last_error: str = ""
    # What becomes of it after this attempt: at most one of the three, none of them means in step.
    wait_seconds: float | None = None
    parked: bool = False
    pause_platform: float | None = None

    @property
    def settled(self) -> bool:
        return self.parked or self.wait_seconds is not None


@dataclass(frozen=True)
class Create:
    pass


@dataclass(frozen=True)
class Find:
    pass


@dataclass(frozen=True)
class Update:
    steps: tuple[Step, ...] = field(default=())


Request = Create | Find | Update


def claimed(row: Row, *, predecessor_died: bool, now: datetime) -> Row:
    """The row as an attempt begins. Whoever held it before and never noted an outcome may have done anything."""
    if not predecessor_died:
        return row
    row = _doubtful(row, now)
    if row.attempts > POISON_ATTEMPTS:
        return _park(row, "Each attempt ended without an outcome, as if the worker died of it.", now)
    return row


def steps(shown: Level, wanted: Level) -> tuple[Step, ...]:
    """What has to be done, in order, so that a ticket that shows the one shows the other."""
    todo: list[Step] = []
    resolved = wanted.status == "resolved"
    if resolved:
        if shown.status != "resolved":
            todo.append("resolve")
    else:
        began_anew = shown.status == "resolved" or (shown.escalated and not wanted.escalated)
        if began_anew or (wanted.status == "open" and shown.status != "open"):
            todo.append("reopen")
        before = Level("open") if began_anew else shown
        raised = wanted.escalated and (not before.escalated or (wanted.status, before.status) == ("escalated", "acknowledged"))
        if raised:
            todo.append("escalate")
        if wanted.status == "acknowledged" and (raised or before.status != "acknowledged"):
            todo.append("acknowledge")
        if wanted.cause != shown.cause:
            todo.append("cause")
    if wanted.note > shown.note:
        todo.append("note")
    return tuple(todo)


def next_request(row: Row, now: datetime) -> tuple[Row, Request | None]:
    """What to ask of the platform now. Without a request the attempt is over, and the row says how."""
    if row.settled:
        return row, None
    if row.remote is None:
        return _next_without_remote(row, now)
    todo = steps(row.shown or Level("open"), row.wanted)
    if not todo:
        return _in_step(row), None
    if row.in_doubt and not row.traits.keyed and not row.traits.searchable:
        return _repeat_once(row, Update(todo))
    return row, Update(todo)


def _next_without_remote(row: Row, now: datetime) -> tuple[Row, Request | None]:
    traits = row.traits
    if row.wanted.status == "resolved" and not traits.searchable:
        # It was over before anybody was told. Only where the news may be out after all, it is called off.
        return (row, Update(("resolve",))) if row.in_doubt else (_in_step(row), None)
    if now - row.written_at > TOO_OLD_TO_CREATE:
        return _park(row, "Not created within a day. Send it again if it still matters.", now), None
    if traits.keyed:
        return row, Create()
    if not traits.searchable:
        return _repeat_once(row, Create()) if row.in_doubt else (row, Create())
    if row.lookups == 0 or (row.in_doubt and _look_is_due(row, now)):
        return row, Find()
    if row.in_doubt and not _looked_long_enough(row):
        return replace(row, wait_seconds=_until_next_look(row, now)), None
    return row, Create()


def _looked_long_enough(row: Row) -> bool:
    return row.lookups >= 2 and row.last_lookup_at >= row.doubtful_since + row.traits.search_lag


def _next_look(row: Row) -> datetime:
    wait = FIRST_LOOK_AGAIN if row.lookups < 2 else max(row.traits.search_lag, FIRST_LOOK_AGAIN)
    return row.doubtful_since + wait


def _look_is_due(row: Row, now: datetime) -> bool:
    return not _looked_long_enough(row) and now >= _next_look(row) and row.last_lookup_at < _next_look(row)


def _until_next_look(row: Row, now: datetime) -> float:
    return max(0.5, (_next_look(row) - now).total_seconds())


def _repeat_once(row: Row, request: Request) -> tuple[Row, Request | None]:
    """Where nothing tells whether the message arrived, it is sent once more, and the ticket says so."""
    if row.lookups:
        return replace(row, parked=True, last_error="Sent twice without an answer: it may have arrived."), None
    return replace(row, may_be_doubled=True, lookups=1), request


# --- Answers --------------------------------------------------------------------------------------------------------------


def after(row: Row, request: Request, answer: Remote | None | PlatformError, now: datetime, *, serves_others: bool) -> Row:
    """The row once the platform has answered. `serves_others`: it accepted other tickets while this one failed."""
    if isinstance(answer, PlatformError):
        return _after_error(row, request, answer, now, serves_others=serves_others)
    if isinstance(request, Find):
        return _after_find(row, answer, now)
    if isinstance(request, Create):
        return _certain(replace(row, remote=answer, shown=row.wanted))
    return _certain(replace(row, remote=answer or row.remote or Remote(), shown=row.wanted))


def _after_find(row: Row, found: Remote | None, now: datetime) -> Row:
    looked = replace(row, lookups=row.lookups + 1, last_lookup_at=now)
    if found is None:
        return looked
    # It was made by an attempt that never learned so. What it was made with is known to have been an open incident at
    # the least; moves are made again, which platforms with a search take as done already.
    return _certain(replace(looked, remote=found, shown=replace(row.wanted, status="open", escalated=False)))


def _after_error(row: Row, request: Request, error: PlatformError, now: datetime, *, serves_others: bool) -> Row:
    row = replace(row, last_error=error.message[:500], failing_since=row.failing_since or now)
    if error.recreate:
        links = (*row.previous_links, *((row.remote.url,) if row.remote and row.remote.url else ()))
        return _certain(
            replace(row, remote=None, shown=None, generation=row.generation + 1, previous_links=links, written_at=now)
        )
    if error.in_doubt and not isinstance(request, Find) and not row.in_doubt:
        row = _doubtful(row, now)
    elif row.in_doubt and not error.in_doubt and not row.traits.searchable:
        row = replace(row, lookups=0)  # this time nothing has left, so the message may still be repeated once
    if error.permanent:
        return replace(row, parked=True)
    if error.pause:
        seconds = PAUSE_WITHOUT_HINT if error.retry_after is None else max(0.5, error.retry_after)
        return replace(row, wait_seconds=0.0, pause_platform=seconds, attempts=row.attempts - 1)
    if row.attempts >= POISON_ATTEMPTS and serves_others:
        return replace(row, parked=True)
    if row.remote is not None and now - row.failing_since > GIVE_UP_UPDATING:
        return replace(row, parked=True)
    return replace(row, wait_seconds=_retry_after(row, error, now))


def _retry_after(row: Row, error: PlatformError, now: datetime) -> float:
    schedule = PAGING_RETRY if row.traits.pages else OTHER_RETRY
    wait = float(schedule[min(max(row.attempts, 1), len(schedule)) - 1])
    if error.retry_after is not None:
        wait = max(wait, error.retry_after)
    return wait


def _doubtful(row: Row, now: datetime) -> Row:
    if row.in_doubt:
        return row
    return replace(row, in_doubt=True, doubtful_since=now, lookups=0, last_lookup_at=None)


def _certain(row: Row) -> Row:
    return replace(row, in_doubt=False, doubtful_since=None, lookups=0, last_lookup_at=None)


def _in_step(row: Row) -> Row:
    return replace(_certain(row), shown=row.wanted, attempts=0, failing_since=None, last_error="")


def _park(row: Row, why: str, now: datetime) -> Row:
    return replace(row, parked=True, last_error=why, failing_since=row.failing_since or now)
