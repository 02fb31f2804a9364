"""What to ask of a platform next, and what its answer means for the ticket. Pure: (row, now, answer) → (row, request).

Nothing here reads a database, a clock or a socket, so that a simulator can drive millions of steps through it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta

from platforms.contract import PlatformError, Remote, Step

TOO_OLD_TO_CREATE = timedelta(days=1)
GIVE_UP_UPDATING = timedelta(days=1)
POISON_ATTEMPTS = 10  # failures of one ticket at a platform that serves others
# After an unknown outcome: when to look a second time for what may have been created, and how long after the first at
# least. The last look is after the search lag.
LOOK_AGAIN = timedelta(seconds=5)
BETWEEN_LOOKS = timedelta(seconds=2)
PAGING_RETRY = (1, 2, 4, 8, 15, 30)  # seconds; the last one repeats
OTHER_RETRY = (2, 5, 15, 30, 60, 120, 300)
PAUSE_WITHOUT_HINT = 30.0
# However long a platform that wakes people asks us to wait, it is asked again by then: silence costs more.
LONGEST_PAUSE_PAGING = 60.0


@dataclass(frozen=True)
class Level:
    """What a ticket shows, or should show.

    The last two tell nobody anything new, but where it is unknown what a ticket shows, whether it may show otherwise.
    """

    status: str
    escalated: bool = False
    cause: str = ""  # a digest of the text; empty while it is the one that every ticket begins with
    note: int = 0  # the last note shown, by the number of its audit entry
    moved: str = ""  # when the incident last moved
    opened: str = ""  # when it was last reopened

    def as_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping) -> "Level | None":
        return cls(**value) if value else None


def moved_there(shown: Level, heard: Level) -> Level:
    """What a ticket shows once somebody has put it at a level at the platform itself."""
    escalated = shown.escalated and heard.escalated
    return replace(shown, status=heard.status, escalated=escalated, moved=heard.moved, opened=heard.opened)


@dataclass(frozen=True)
class Traits:
    """What kind of platform it is, as far as delivery cares."""

    pages: bool
    keyed: bool
    searchable: bool
    search_lag: timedelta = timedelta()
    reopens_resolved_only: bool = False


@dataclass(frozen=True)
class Row:
    """A claimed ticket, as far as delivery cares. The claim itself counted as an attempt."""

    wanted: Level
    traits: Traits
    written_at: datetime
    shown: Level | None = None  # in doubt about a first record: what it would show, where that is known
    remote: Remote | None = None
    generation: int = 1
    previous_links: tuple[str, ...] = ()
    attempts: int = 1
    in_doubt: bool = False
    doubtful_since: datetime | None = None
    lookups: int = 0  # for a record since the doubt arose; where there is no search, repetitions of the message
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
    at: datetime  # when it is asked: an answer that takes long tells how it was then


@dataclass(frozen=True)
class Update:
    steps: tuple[Step, ...] = field(default=())


RESOLVE: tuple[Step, ...] = ("resolve",)
Request = Create | Find | Update
Answer = Remote | None | PlatformError  # None: nothing was found


def claimed(row: Row, *, predecessor_died: bool, now: datetime) -> Row:
    """The row as an attempt begins. Whoever held it before and never noted an outcome may have done anything."""
    if not predecessor_died:
        return row
    if row.remote is None and not row.in_doubt:
        row = replace(row, shown=None)  # nobody knows what a record of it would show
    row = _doubtful(row, now)
    if row.attempts > POISON_ATTEMPTS:
        return _park(row, "Each attempt ended without an outcome, as if the worker died of it.", now)
    return row


def steps(shown: Level, wanted: Level, *, in_doubt: bool = False) -> tuple[Step, ...]:
    """What has to be done, in order, so that a ticket that shows the one shows the other.

    `in_doubt`: it may also show what the incident was at any time since, so no move since then is taken as made or as
    cancelled out by a later one.
    """
    todo: list[Step] = []
    moved = in_doubt and shown.moved != wanted.moved
    if wanted.status == "resolved":
        if shown.status != "resolved" or moved:
            todo.append("resolve")
    else:
        began_anew = shown.status == "resolved" or (shown.escalated and not wanted.escalated)
        began_anew = began_anew or (moved and shown.opened != wanted.opened)
        if began_anew or (wanted.status == "open" and shown.status != "open"):
            todo.append("reopen")
        before = Level("open") if began_anew else shown
        raised = wanted.escalated and (
            not before.escalated
            or (wanted.status, before.status) == ("escalated", "acknowledged")
            or (moved and wanted.status == "escalated")
        )
        if raised:
            todo.append("escalate")
        if wanted.status == "acknowledged" and (raised or before.status != "acknowledged" or moved):
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
    todo = steps(_known(row), row.wanted, in_doubt=row.in_doubt)
    if not todo:
        return _in_step(row), None
    return _repeatable(row, Update(RESOLVE if _ends_first(row, todo) else todo))


def _ends_first(row: Row, todo: tuple[Step, ...]) -> bool:
    """Whether the record must be resolved, alone, before it can be opened anew.

    Once that is noted, it is opened, and that may be repeated: so each opening pages once, whatever is unknown of
    either request. Without the note nobody could tell later whether an open record was opened for this opening or is
    an older one, perhaps acknowledged.
    """
    known, wanted = _known(row), row.wanted
    if not row.traits.reopens_resolved_only or wanted.status == "resolved" or known.opened == wanted.opened:
        return False
    if row.in_doubt or row.remote is None or known.status == "resolved":
        return row.remote is None or bool({"reopen", "escalate"} & set(todo))
    # It is there and unresolved for sure. What somebody has acknowledged meanwhile pages nobody.
    return wanted.status != "acknowledged" and ("reopen" in todo or known.status == "acknowledged")


def _next_without_remote(row: Row, now: datetime) -> tuple[Row, Request | None]:
    traits = row.traits
    if row.wanted.status == "resolved" and not traits.searchable:
        # It was over before anybody was told. Only where the news may be out after all, it is called off.
        return _repeatable(row, Update(RESOLVE)) if row.in_doubt else (_in_step(row), None)
    if now - row.written_at > TOO_OLD_TO_CREATE:
        return _park(row, "Not created within a day. Send it again if it still matters.", now), None
    if not traits.searchable:
        return _repeatable(row, Update(RESOLVE) if _ends_first(row, ()) else Create())
    if row.lookups == 0:
        return row, Find(now)
    look = _next_look(row) if row.in_doubt else None
    if look is None:
        return row, Create()
    if look > now:
        return replace(row, wait_seconds=max(0.5, (look - now).total_seconds())), None
    return row, Find(now)


def _next_look(row: Row) -> datetime | None:
    """When to look again for a record that may have been created; None once there is sure to be none."""
    if row.lookups == 1:
        return max(row.doubtful_since + LOOK_AGAIN, row.last_lookup_at + BETWEEN_LOOKS)
    shows_by = row.doubtful_since + row.traits.search_lag
    return shows_by if row.last_lookup_at < shows_by else None


def _repeatable(row: Row, request: Request) -> tuple[Row, Request | None]:
    """With a key or a search a request may be made again. Where nothing tells whether the message arrived, it is sent
    once more, and the ticket says so."""
    if not row.in_doubt or row.traits.keyed or row.traits.searchable:
        return row, request
    if row.lookups:
        # Whoever sends it again, or a later change, may do so: it is not the same message then.
        parked = replace(row, parked=True, lookups=0, last_error="Sent twice without an answer: it may have arrived.")
        return parked, None
    return replace(row, may_be_doubled=True, lookups=1), request


# --- Answers ----------------------------------------------------------------------------------------------------------


def after(row: Row, request: Request, answer: Answer, now: datetime, *, serves_others: bool) -> Row:
    """The row once the platform has answered. `serves_others`: it accepted other tickets while this one failed."""
    if isinstance(answer, PlatformError):
        return _after_error(row, request, answer, now, serves_others=serves_others)
    if isinstance(request, Find):
        return _after_find(row, request, answer)
    if request == Update(RESOLVE) and row.wanted.status != "resolved":
        return _ended_first(replace(row, remote=answer or row.remote or Remote()))
    if isinstance(request, Update):
        return _certain(replace(row, remote=answer or row.remote or Remote(), shown=_accepted(row, request.steps)))
    if row.in_doubt and row.traits.keyed:
        # What it was sent for may have been there already, and have come further than open: moves are made again.
        return replace(row, remote=answer)
    return _certain(replace(row, remote=answer, shown=row.wanted))


def _ended_first(row: Row) -> Row:
    """Resolved for the opening that is wanted, which follows at once, in an attempt of its own."""
    wanted = row.wanted
    shown = replace(_known(row), status="resolved", escalated=False, moved=wanted.moved, opened=wanted.opened)
    return replace(_certain(row), shown=shown, attempts=row.attempts - 1, wait_seconds=0.0)


def _accepted(row: Row, steps: tuple[Step, ...]) -> Level:
    """What the ticket shows after these steps. A cause that came once all was over is kept for when it reopens."""
    if row.remote and "cause" not in steps:
        return replace(row.wanted, cause=_known(row).cause)
    return row.wanted


def _known(row: Row) -> Level:
    """What a ticket that is there shows at least."""
    return row.shown or Level("open")


def _after_find(row: Row, request: Find, found: Remote | None) -> Row:
    looked = replace(row, lookups=row.lookups + 1, last_lookup_at=request.at)
    if found is None:
        return looked
    # It was made by an attempt that never learned so, or before a backup was restored. What it shows is in doubt, an
    # open incident at the least; moves are made again, which platforms with a search take as done already.
    return replace(looked, remote=found, in_doubt=True, doubtful_since=row.doubtful_since or request.at)


def _after_error(row: Row, request: Request, error: PlatformError, now: datetime, *, serves_others: bool) -> Row:
    if error.recreate:
        return _next_generation(row)
    row = replace(row, last_error=error.message[:500], failing_since=row.failing_since or now)
    if error.in_doubt and not isinstance(request, Find):
        if isinstance(request, Create) and not row.in_doubt:
            row = replace(row, shown=Level("open", cause=row.wanted.cause, note=row.wanted.note))
        row = _doubtful(row, now)
    elif row.in_doubt and not error.in_doubt and not row.traits.searchable:
        row = replace(row, lookups=0)  # this time nothing has left, so the message may still be repeated once
    if error.permanent:
        return replace(row, parked=True)
    if error.pause:
        seconds = PAUSE_WITHOUT_HINT if error.retry_after is None else max(0.5, _asked_for(row, error.retry_after))
        return replace(row, wait_seconds=0.0, pause_platform=seconds, attempts=row.attempts - 1)
    if row.attempts >= POISON_ATTEMPTS and serves_others:
        return replace(row, parked=True)
    # Who sends it again, or escalates, asks for it anew.
    if row.remote is not None and now - max(row.failing_since, row.written_at) > GIVE_UP_UPDATING:
        return replace(row, parked=True)
    return replace(row, wait_seconds=_retry_after(row, error, now))


def _next_generation(row: Row) -> Row:
    """A new record, in an attempt of its own: it must be known that there may be one before it is created."""
    links = (*row.previous_links, *((row.remote.url,) if row.remote and row.remote.url else ()))
    row = replace(row, remote=None, shown=None, generation=row.generation + 1, previous_links=links)
    return replace(_certain(row), attempts=row.attempts - 1, wait_seconds=0.0)


def _retry_after(row: Row, error: PlatformError, now: datetime) -> float:
    schedule = PAGING_RETRY if row.traits.pages else OTHER_RETRY
    wait = float(schedule[min(max(row.attempts, 1), len(schedule)) - 1])
    if error.retry_after is not None:
        wait = max(wait, _asked_for(row, error.retry_after))
    return wait


def _asked_for(row: Row, seconds: float) -> float:
    return min(seconds, LONGEST_PAUSE_PAGING) if row.traits.pages else seconds


def _doubtful(row: Row, now: datetime) -> Row:
    """Each time anew for what is looked for: an earlier search says nothing about the latest attempt to create it."""
    if row.in_doubt and not row.traits.searchable:
        return row
    return replace(row, in_doubt=True, doubtful_since=now, lookups=0, last_lookup_at=None)


def _certain(row: Row) -> Row:
    return replace(row, in_doubt=False, doubtful_since=None, lookups=0, last_lookup_at=None)


def _in_step(row: Row) -> Row:
    return replace(_certain(row), shown=_accepted(row, ()), attempts=0, failing_since=None, last_error="")


def _park(row: Row, why: str, now: datetime) -> Row:
    return replace(row, parked=True, last_error=why, failing_since=row.failing_since or now)
