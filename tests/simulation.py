"""Delivery in miniature: one incident, one ticket, a clock, a few workers and a model of a platform, all in one thread
and out of one seed. Any step may be the last of its worker, and any answer may get lost.

What surrounds `core` in production (claim, lease, fence, note) is written down here a second time, as plainly as it can
be; the model platforms judge by what people would see: pages, records, messages.
"""

import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from incidents.delivery import core
from incidents.delivery.attempts import OTHER, PAGING
from platforms.contract import PlatformError, Remote

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
WORKERS = 3
CLOCK_STEPS = (0.05, 0.3, 1.0, 2.5, 6.0, 12.0, 35.0)
MOVES = {
    "open": ("acknowledged", "escalated", "resolved"),
    "acknowledged": ("escalated", "resolved", "open"),
    "escalated": ("acknowledged", "resolved", "open"),
    "resolved": ("open",),
}
CREATE_WITHIN = timedelta(days=1)
STOP_ASKING = 2000  # rounds until rest must have come
Steps = Generator[None, None, None]


@dataclass(frozen=True)
class Notice:
    """What an attempt tells: as in production, what the incident was when the ticket was claimed."""

    level: core.Level
    notes: frozenset[int]
    opening: int
    written_at: datetime


@dataclass
class Incident:
    status: str = "open"
    escalated: bool = False
    cause: str = ""
    notes: int = 0
    moved: str = ""
    opened: str = ""
    openings: int = 1
    asked_at: datetime = BEGINNING

    def notice(self) -> Notice:
        level = core.Level(self.status, self.escalated, self.cause, self.notes, self.moved, self.opened)
        return Notice(level, frozenset(), self.openings, self.asked_at)


@dataclass
class Ticket:
    row: core.Row
    due_at: datetime | None = BEGINNING
    lease_until: datetime | None = None
    claim: int = 0
    wanted_version: int = 1
    shown_version: int = 0
    parked: bool = False


class Broken(AssertionError):
    """A promise was not kept."""


def promise(kept: bool, words: str) -> None:
    if not kept:
        raise Broken(words)


class Call:
    """One attempt's way to the platform."""

    def __init__(self, world: "World", claim: int) -> None:
        self.world = world
        self.claim = claim
        self.started = world.now
        self.accepted = False

    def send(self, effect: Callable[[], object], *, reads: bool = False) -> Generator[None, None, object]:
        """One request. Anything may happen around it: other workers, time, the end of this worker."""
        world = self.world
        yield
        if world.fenced and (world.now - self.started).total_seconds() >= world.times.deadline:
            raise PlatformError("timeout")
        promise(not world.fenced or self.claim == world.ticket.claim, "a request left after the lease")
        fault = world.fault()
        if fault == "unreachable":
            raise PlatformError("cannot connect")
        if fault == "throttled":
            raise PlatformError("429", pause=True, retry_after=world.dice.choice((None, 0.0, 3.0)))
        if fault == "failed":
            raise PlatformError("500", in_doubt=True)
        if fault == "refused":
            raise PlatformError("400", permanent=True)
        result = effect()
        world.count("requests")
        if fault == "lost":
            world.lost += 1
            yield
            raise PlatformError("no answer", in_doubt=True)
        self.accepted = self.accepted or not reads
        yield
        return result


class World:
    """`fenced`, `leased`: as in production, or not, to see that it is noticed."""

    platform: "Model"

    def __init__(self, platform: type["Model"], seed: int, *, stormy: bool, fenced: bool, leased: bool) -> None:
        self.dice = random.Random(seed)
        self.now = BEGINNING
        self.times = PAGING if platform.pages else OTHER
        self.fenced, self.leased = fenced, leased
        self.platform = platform(self)
        self.incident = Incident()
        self.ticket = Ticket(core.Row(core.Level("open"), self.platform.traits(), BEGINNING, attempts=0))
        self.workers: list[Steps | None] = [None] * WORKERS
        self.faults = self.dice.choice((0.1, 0.4)) if stormy else 0.0
        self.serves_others = self.dice.random() < 0.5
        self.paused_until = BEGINNING
        self.steps = self.lost = self.died = 0
        self.counts: Counter[str] = Counter()

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def fault(self) -> str:
        if self.dice.random() >= self.faults:
            return ""
        return self.dice.choices(("lost", "failed", "unreachable", "throttled", "refused"), (40, 20, 20, 10, 2))[0]

    # --- What happens by itself

    def wander(self, steps: int, *, changing: bool = True) -> None:
        """Lets anything happen, for a number of steps. `changing`: to the incident too."""
        for _ in range(steps):
            chance = self.dice.random()
            if chance < 0.72:
                self.advance(self.dice.randrange(WORKERS))
            elif chance < 0.90:
                self.now += timedelta(seconds=self.dice.choice(CLOCK_STEPS))
            elif chance < 0.96:
                if changing:
                    self.change()
            elif self.faults and chance < 0.98:
                self.die(self.dice.randrange(WORKERS))
            elif self.faults and chance < 0.981:
                self.now += timedelta(hours=30)
            else:
                self.platform.meddle()
            self.steps += 1

    def advance(self, number: int) -> bool:
        """One step of one worker. False where it finds nothing to do."""
        if self.workers[number] is None:
            if not self.may_claim():
                return False
            self.workers[number] = self.attempt()
        try:
            next(self.workers[number])
        except StopIteration:
            self.workers[number] = None
        return True

    def die(self, number: int) -> None:
        if self.workers[number] is not None:
            self.died += 1
            self.workers[number] = None

    def change(self, to: str = "") -> None:
        """Something that the ticket should show: a move, to any status unless named, or a cause."""
        incident = self.incident
        if not to and self.dice.random() < 0.15:
            incident.cause = f"cause-{self.steps}"
        else:
            incident.status = to or self.dice.choice(MOVES[incident.status])
            incident.moved = f"{self.now.isoformat()} {self.steps}"
            incident.notes += self.dice.random() < 0.2
            if incident.status == "open":
                incident.escalated, incident.opened, incident.asked_at = False, incident.moved, self.now
                incident.openings += 1
            elif incident.status == "escalated":
                incident.escalated, incident.asked_at = True, self.now
        self.want_more()

    def want_more(self) -> None:
        ticket = self.ticket
        ticket.wanted_version += 1
        ticket.due_at, ticket.parked, ticket.row = self.now, False, replace(ticket.row, attempts=0)

    def send_again(self) -> None:
        """What an operator does about a ticket that was given up."""
        self.incident.asked_at = self.now
        self.ticket.row = replace(self.ticket.row, attempts=0)
        self.ticket.due_at, self.ticket.parked = self.now, False

    # --- An attempt, as in `attempts`

    def may_claim(self) -> bool:
        ticket = self.ticket
        free = not self.leased or ticket.lease_until is None or ticket.lease_until < self.now
        due = ticket.due_at is not None and ticket.due_at <= self.now
        return free and due and self.paused_until <= self.now

    def attempt(self) -> Steps:
        call = Call(self, self.ticket.claim + 1)
        yield
        ticket = self.ticket
        if not self.may_claim() or call.claim != ticket.claim + 1:
            return
        predecessor_died = ticket.lease_until is not None
        ticket.claim += 1
        ticket.lease_until = self.now + timedelta(seconds=self.times.lease)
        ticket.row = replace(ticket.row, attempts=ticket.row.attempts + 1)
        yield
        if ticket.claim != call.claim:
            return
        version, row, notice = ticket.wanted_version, ticket.row, self.incident.notice()
        row = replace(row, wanted=notice.level, written_at=notice.written_at)
        row = core.claimed(row, predecessor_died=predecessor_died, now=self.now)
        while True:
            row, request = core.next_request(row, self.now)
            if request is None:
                break
            told = row.shown.note if row.remote and row.shown else 0
            notice = replace(notice, notes=frozenset(range(told + 1, notice.level.note + 1)))
            answer = yield from self.ask(call, row, request, notice)
            row = core.after(row, request, answer, self.now, serves_others=self.serves_others)
        self.note(call, version, row)

    def ask(self, call: Call, row: core.Row, request: core.Request, notice: Notice) -> Generator:
        call.accepted = False
        key = f"key-{row.generation}"
        try:
            match request:
                case core.Create():
                    promise(self.now - row.written_at <= CREATE_WITHIN, "created a day late")
                    return (yield from self.platform.create(call, key, notice))
                case core.Find():
                    return (yield from self.platform.find(call, key))
                case core.Update(steps):
                    return (yield from self.platform.update(call, key, notice, steps))
        except PlatformError as error:
            error.in_doubt = error.in_doubt or call.accepted
            return error

    def note(self, call: Call, version: int, row: core.Row) -> None:
        ticket = self.ticket
        if self.leased and ticket.claim != call.claim:
            self.lost += call.accepted
            return
        if row.pause_platform is not None:
            self.paused_until = max(self.paused_until, self.now + timedelta(seconds=row.pause_platform))
        if not row.settled:
            ticket.shown_version = version
        changed = version != ticket.wanted_version
        ticket.parked = row.parked and not changed
        wait = self.now + timedelta(seconds=row.wait_seconds or 0)
        ticket.due_at = self.now if changed else None if row.parked or not row.settled else wait
        ticket.lease_until = None
        if row.generation != ticket.row.generation:
            self.incident.asked_at = self.now
        ticket.row = replace(row, wait_seconds=None, parked=False, pause_platform=None)

    # --- Rest

    def come_to_rest(self) -> None:
        """Faults end, workers wake and live, an operator sends again what was given up: then all must be well."""
        before, self.faults = self.faults, 0.0
        for _ in range(STOP_ASKING):
            busy = [self.advance(number) for number in range(WORKERS)]
            self.steps += WORKERS
            if any(busy):
                continue
            if self.ticket.parked:
                self.send_again()
            elif self.ticket.due_at is None:
                break
            else:
                self.now += timedelta(seconds=0.5)
        else:
            raise Broken("no rest")
        promise(self.ticket.shown_version == self.ticket.wanted_version, "the ticket is behind")
        self.platform.judge()
        self.faults = before


# --- Platforms --------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    world: World

    pages = keyed = searchable = reopens_resolved_only = False
    lag = 0.0

    @classmethod
    def traits(cls) -> core.Traits:
        lag = timedelta(seconds=cls.lag)
        return core.Traits(cls.pages, cls.keyed, cls.searchable, lag, cls.reopens_resolved_only)

    def meddle(self) -> None:
        """What people do at the platform itself."""

    def find(self, call: Call, key: str) -> Generator:
        raise Broken("asked to find where nothing can be found")
        yield


@dataclass
class Pager(Model):
    """PagerDuty: a trigger is taken for the open alert, which stays as it is, acknowledged too, or opens a new one;
    moves without an open alert are dropped."""

    pages = keyed = reopens_resolved_only = True
    state: str = ""
    woken: list[int] = field(default_factory=list)  # for which opening somebody was woken

    def trigger(self, notice: Notice) -> None:
        if self.state in ("", "resolved"):
            self.woken.append(notice.opening)
            self.state = "open"

    def put(self, state: str) -> None:
        if self.state not in ("", "resolved"):
            self.state = state

    def create(self, call: Call, key: str, notice: Notice) -> Generator:
        if notice.level.status == "resolved":
            yield from call.send(lambda: self.put("resolved"))
            return Remote(key)
        yield from call.send(lambda: self.trigger(notice))
        if notice.level.status == "acknowledged":
            yield from call.send(lambda: self.put("acknowledged"))
        return Remote(key)

    def update(self, call: Call, key: str, notice: Notice, steps: tuple) -> Generator:
        if "resolve" in steps:
            yield from call.send(lambda: self.put("resolved"))
        if {"reopen", "escalate"} & set(steps):
            yield from call.send(lambda: self.trigger(notice))
        if "acknowledge" in steps:
            yield from call.send(lambda: self.put("acknowledged"))
        return Remote(key)

    def judge(self) -> None:
        incident = self.world.incident
        promise(self.woken == sorted(set(self.woken)), f"woken twice for one opening: {self.woken}")
        promise(len(self.woken) <= incident.openings, "woken for nothing")
        alive = self.state not in ("", "resolved")
        promise(alive == (incident.status != "resolved"), f"{self.state or 'nothing'} for {incident.status}")
        if incident.status in ("open", "acknowledged"):
            promise(self.state == incident.status, f"{self.state} for {incident.status}")


@dataclass
class Alias(Pager):
    """OpsGenie: as well, but an open alert's fields stay until they are set, and it can be unacknowledged."""

    reopens_resolved_only = False
    priority: int = 3

    def open(self, notice: Notice) -> None:
        if self.state in ("", "resolved"):
            self.priority = 1 if notice.level.escalated else 3
        self.trigger(notice)

    def create(self, call: Call, key: str, notice: Notice) -> Generator:
        if notice.level.status == "resolved":
            yield from call.send(lambda: self.put("resolved"))
            return Remote(key)
        yield from call.send(lambda: self.open(notice))
        if notice.level.status == "acknowledged":
            yield from call.send(lambda: self.put("acknowledged"))
        return Remote(key)

    def update(self, call: Call, key: str, notice: Notice, steps: tuple) -> Generator:
        if "resolve" in steps:
            yield from call.send(lambda: self.put("resolved"))
            return Remote(key)
        rises = {"reopen", "escalate"} & set(steps)
        if rises:
            yield from call.send(lambda: self.open(notice))
            yield from call.send(lambda: setattr(self, "priority", 1 if notice.level.escalated else 3))
        if "acknowledge" in steps:
            yield from call.send(lambda: self.put("acknowledged"))
        elif rises:
            yield from call.send(lambda: self.put("open"))
        return Remote(key)

    def judge(self) -> None:
        super().judge()
        incident = self.world.incident
        if incident.status in ("open", "escalated") and not self.world.ticket.row.in_doubt:
            promise(self.state == "open", f"{self.state} for {incident.status}")


@dataclass
class Record:
    made_at: datetime
    causes: set[str]
    notes: set[int]
    state: str = "open"
    raised: bool = False


@dataclass
class Tracker(Model):
    """Jira: a new issue hides from the search for up to half a minute."""

    searchable = True
    lag = 30.0
    records: dict[str, list[Record]] = field(default_factory=dict)

    def create(self, call: Call, key: str, notice: Notice) -> Generator:
        level = notice.level
        record = Record(self.world.now, {level.cause}, set(notice.notes), raised=level.escalated)
        yield from call.send(lambda: self.add(key, record))
        if level.status in ("acknowledged", "resolved"):
            yield from call.send(lambda: setattr(record, "state", level.status))
        return Remote(key)

    def add(self, key: str, record: Record) -> None:
        record.made_at = self.world.now
        self.records.setdefault(key, []).append(record)
        promise(len(self.records[key]) == 1, "two records of one ticket")

    def find(self, call: Call, key: str) -> Generator:
        shows_by = timedelta(seconds=self.lag)

        def look() -> bool:
            return any(self.world.now - record.made_at >= shows_by for record in self.records.get(key, ()))

        return Remote(key) if (yield from call.send(look, reads=True)) else None

    def update(self, call: Call, key: str, notice: Notice, steps: tuple) -> Generator:
        [record] = self.records[key]
        if record.state == "closed":
            if notice.level.status == "resolved":
                return Remote(key)
            raise PlatformError("closed", recreate=True)
        states = {"reopen": "open", "acknowledge": "acknowledged", "resolve": "resolved"}
        moves = [states[step] for step in steps if step in states]
        if moves:
            yield from call.send(lambda: setattr(record, "state", moves[-1]))
        if "escalate" in steps or "reopen" in steps:
            yield from call.send(lambda: setattr(record, "raised", notice.level.escalated))
        if {"cause", "note"} & set(steps):
            yield from call.send(lambda: (record.causes.add(notice.level.cause), record.notes.update(notice.notes)))
        return Remote(key)

    def judge(self) -> None:
        incident, row = self.world.incident, self.world.ticket.row
        promise(set(self.records) == {f"key-{n + 1}" for n in range(row.generation)}, "a generation is missing")
        record = self.records[f"key-{row.generation}"][0]
        if incident.status == "resolved":
            promise(record.state in ("resolved", "closed"), f"{record.state} for resolved")
            return
        promise(record.state not in ("resolved", "closed"), f"{record.state} for {incident.status}")
        if incident.status != "escalated":
            promise(record.state == incident.status, f"{record.state} for {incident.status}")
        promise(record.raised == incident.escalated, "not raised, or raised for nothing")
        promise(incident.cause in record.causes, "the cause is missing")
        promise(row.generation > 1 or record.notes == set(range(1, incident.notes + 1)), "a note is missing")


@dataclass
class Closing(Tracker):
    """ServiceNow: found at once, but a record that somebody has closed takes no more changes."""

    lag = 0.0

    def meddle(self) -> None:
        for record in self.records.get(f"key-{self.world.ticket.row.generation}", ()):
            if record.state == "resolved" and self.world.dice.random() < 0.2:
                record.state = "closed"


@dataclass
class Channel(Model):
    """Slack: messages, of which none can be found or taken back."""

    messages: list[core.Level] = field(default_factory=list)

    def create(self, call: Call, key: str, notice: Notice) -> Generator:
        yield from call.send(lambda: self.messages.append(notice.level))
        return Remote()

    def update(self, call: Call, key: str, notice: Notice, steps: tuple) -> Generator:
        yield from call.send(lambda: self.messages.append(notice.level))
        return Remote()

    def judge(self) -> None:
        incident, ticket = self.world.incident, self.world.ticket
        repeated = len(self.messages) - len(set(self.messages))
        promise(repeated <= self.world.lost + self.world.died, "repeated without need")
        promise(not repeated or ticket.row.may_be_doubled, "repeated without saying so")
        promise(len(self.messages) <= ticket.wanted_version + self.world.lost + self.world.died, "too many messages")
        if self.messages or incident.status != "resolved":
            last = self.messages[-1]
            promise(last.status == incident.status, "the last message is old")
            promise(last.escalated == incident.escalated or incident.status == "resolved", "escalated is old")
            promise(last.cause == incident.cause or incident.status == "resolved", "the cause is missing")


PLATFORMS = (Pager, Alias, Tracker, Closing, Channel)


def run(
    platform: type[Model], seed: int, steps: int, *, fenced: bool = True, leased: bool = True, length: int = 250
) -> int:
    """Worlds of one platform until as many steps were made. Raises Broken, naming the seed that shows it."""
    made = 0
    while made < steps:
        world = World(platform, seed, stormy=bool(seed % 4), fenced=fenced, leased=leased)
        try:
            for _ in range(3):
                world.wander(length // 3)
                world.come_to_rest()
        except Broken as broken:
            raise Broken(f"{platform.__name__}, seed {seed}, step {world.steps}: {broken}") from broken
        made += world.steps
        seed += 1
    return made
