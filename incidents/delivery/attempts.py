"""One attempt to make a ticket show what it should: claim it, talk to the platform, note the outcome.

No transaction is open while a platform is asked. The claim is a lease with a fence: all requests of an attempt have one
deadline, counted from before the claim and shorter than the lease, and nothing is sent once it has passed. So a worker
that slept sends nothing when it wakes, and the outcome of an old claim is not noted.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db.models import Case, DateTimeField, F, Q, Value, When
from django.db.models.functions import Greatest, Now

from config.changes import egress
from config.current import PlatformConfig, current
from config.models import PlatformVersion
from incidents import counters
from incidents.delivery import core, notices
from incidents.models import PlatformPause, Ticket, lease
from platforms.catalog import PLATFORMS
from platforms.contract import Notice, Platform, PlatformError, Remote, Taken
from platforms.http import Caller, Reply
from platforms.sockets import clock

log = logging.getLogger(__name__)

CANDIDATES = 8
BREAKER_OPENS_AT = 5  # failures in a row
TAKEN_FOR = timedelta(minutes=2)  # what a platform took is waited for so long before it is sent again
LONGEST_BREAK_PAGING = 5.0  # seconds
LONGEST_BREAK = 30.0


@dataclass(frozen=True)
class Times:
    """Seconds that all requests of one attempt may take together, and that the claim holds."""

    deadline: float
    lease: float


PAGING = Times(deadline=5, lease=8)
OTHER = Times(deadline=20, lease=30)  # may search, create and change in one attempt


def attempt_next(platform: str, claimed: Callable[[], None] = lambda: None) -> bool:
    """Makes one attempt for the platform's most urgent due ticket. False where there is nothing to do.

    `claimed` is called once a ticket is held, so that another thread may look for the next.
    """
    config = current().platforms[platform]
    pause = PlatformPause.objects.filter(platform=platform).annotate(now=Now()).first()
    if not config.enabled or config.missing or _rests(pause, config):
        return False
    times = PAGING if config.platform.pages else OTHER
    started = clock()
    held = _claim(platform, times)
    if held is None:
        return False
    claimed()
    ticket, predecessor_died = held
    failures = pause.failures if pause else 0
    _Attempt(ticket, config, started, times, failures).run(predecessor_died=predecessor_died)
    return True


def _rests(pause: PlatformPause | None, config: PlatformConfig) -> bool:
    """Whether the platform is to be left alone: not for what another state of its settings was told."""
    return bool(pause and pause.until > pause.now and pause.settings_at in (None, config.changed_at))


def _claim(platform: str, times: Times) -> tuple[Ticket, bool] | None:
    for pk, claim, lease_until in Ticket.objects.due(platform).values_list("pk", "claim", "lease_until")[:CANDIDATES]:
        free = Q(lease_until=None) | Q(lease_until__lt=Now())
        taken = Ticket.objects.filter(free, pk=pk, claim=claim, due_at__lte=Now())
        if taken.update(claim=F("claim") + 1, lease_until=lease(times.lease), attempts=F("attempts") + 1):
            mine = Ticket.objects.filter(pk=pk, claim=claim + 1).select_related("incident", "settings_version")
            if ticket := mine.annotate(now=Now()).first():
                return ticket, lease_until is not None
    return None


class _Witness(Caller):
    """Remembers whether the platform has accepted anything that may have changed something."""

    accepted = False

    def request(self, method: str, url: str, **how) -> Reply:
        reply = super().request(method, url, **how)
        self.accepted = self.accepted or (method != "GET" and reply.status < 300)
        return reply


class _Attempt:
    """What one claim does, from the first request to the note of its outcome."""

    def __init__(self, ticket: Ticket, config: PlatformConfig, started: float, times: Times, failures: int) -> None:
        self.ticket = ticket
        self.began = clock()
        self.config = config
        self.platform = config.platform
        self.failures = failures
        self.version_id, self.settings = credentials(ticket, config)
        self.caller = _Witness(
            egress=egress(),
            seconds=times.deadline,
            started=started,
            secrets=[self.settings[f.name] for f in self.platform.fields if f.secret and self.settings.get(f.name)],
        )
        self.ids = {"incident": ticket.incident_id, "ticket": ticket.pk, "platform": ticket.platform}

    def now(self) -> datetime:
        """By the database's clock, which all workers share and no change of a host's clock moves."""
        return self.ticket.now + timedelta(seconds=clock() - self.began)

    def run(self, *, predecessor_died: bool) -> None:
        shown = notices.shown(self.ticket)
        wanted, notice = notices.wanted(self.ticket, shown if self.ticket.created_remotely_at else None)
        notice = replace(notice, taken=_taken(self.ticket, self.now()))
        row = core.claimed(_row(self.ticket, wanted, shown), predecessor_died=predecessor_died, now=self.now())
        answered = None
        while True:
            row, request = core.next_request(row, self.now())
            if request is None:
                break
            answered = self.ask(request, row, notice)
            row = core.after(row, request, answered, self.now(), serves_others=self.failures < self.ticket.attempts - 1)
            if isinstance(request, core.Find) and row.remote:
                wanted, notice = notices.wanted(self.ticket, row.shown)
                row = replace(row, wanted=wanted)
        self.note(row, answered)

    def ask(self, request: core.Request, row: core.Row, notice: Notice) -> core.Answer:
        platform: Platform = self.platform
        self.caller.accepted = False
        try:
            match request:
                case core.Create():
                    return platform.create(self.caller, self.settings, notice)
                case core.Find():
                    return platform.find(self.caller, self.settings, notice.key)
                case core.Update(steps):
                    return platform.update(self.caller, self.settings, notice, row.remote or Remote(), steps)
        except PlatformError as error:
            # Whatever came of its last request, those before it were carried out.
            error.in_doubt = error.in_doubt or self.caller.accepted
            log.warning("%s: %s", type(request).__name__.lower(), error.message, extra=self.ids)
            return error

    def note(self, row: core.Row, answered: core.Answer) -> None:
        """Only the latest claim has a say. What has come to be wanted meanwhile stays due."""
        version = self.ticket.wanted_version
        in_step = not row.settled
        remote = row.remote
        noted = Ticket.objects.filter(pk=self.ticket.pk, claim=self.ticket.claim).update(
            shown=row.shown.as_json() if row.shown else {},
            remote_id=remote.id[:300] if remote else "",
            remote_url=remote.url[:1000] if remote else "",
            remote_data=dict(remote.data) if remote else {},
            created_remotely_at=(self.ticket.created_remotely_at or self.now()) if remote else None,
            settings_version_id=self.version_id if remote else self.ticket.settings_version_id,
            generation=row.generation,
            previous_links=list(row.previous_links),
            attempts=row.attempts,
            in_doubt=row.in_doubt,
            doubtful_since=row.doubtful_since,
            lookups=row.lookups,
            last_lookup_at=row.last_lookup_at,
            may_be_doubled=row.may_be_doubled,
            failing_since=row.failing_since,
            last_error=row.last_error,
            taken=self.taken(answered),
            lease_until=None,
            due_at=_unless_changed(version, _due(row)),
            parked_at=_unless_changed(version, Now(), otherwise=None) if row.parked else None,
            # The new record is asked for now, however old the fault.
            **({"created_at": self.now(), "heard_version": 0} if row.generation != self.ticket.generation else {}),
            **({"shown_version": version, "shown_at": Now()} if in_step else {}),
        )
        self.count(row, noted=bool(noted))
        if not noted:
            # What a worker saw that slept or hung says nothing about the platform either.
            log.warning("The lease was lost: another worker has this ticket now.", extra=self.ids)
            return
        if in_step and isinstance(answered, Remote):
            log.info("Ticket shows %s.", row.wanted.status, extra=self.ids)
        elif row.parked:
            log.error("Ticket given up until somebody acts: %s", row.last_error, extra=self.ids)
        if isinstance(answered, PlatformError):
            _note_failure(self.config, self.failures, answered, row.pause_platform)
        elif self.failures and self.caller.accepted:
            PlatformPause.objects.filter(platform=self.platform.name, failures__gt=0).update(failures=0)

    def taken(self, answered: core.Answer) -> dict | None:
        """What to ask about next time. The wait for its last request counts from when that was taken."""
        requests = [list(one) for one in answered.taken] if isinstance(answered, PlatformError) else []
        if not requests:
            return None
        before = self.ticket.taken or {"at": "", "requests": [[]]}
        waits_still = before["requests"][-1] == requests[-1]
        return {"at": before["at"] if waits_still else self.now().isoformat(), "requests": requests}

    def count(self, row: core.Row, *, noted: bool) -> None:
        name = self.platform.name
        if not noted:
            outcome = "lost"
        elif not row.settled:
            outcome = "in_step"
        elif row.parked:
            outcome = "parked"
        else:
            outcome = "retry" if row.pause_platform is None else "paused"
        counters.count(counters.ATTEMPTS, platform=name, outcome=outcome)
        if outcome == "in_step" and row.remote and self.ticket.created_remotely_at is None:
            seconds = (self.now() - notices.needed_since(self.ticket)).total_seconds()
            counters.observe(counters.TIME_TO_SHOW, seconds, platform=name)


def _due(row: core.Row):
    if row.parked or not row.settled:
        return None
    return lease(row.wait_seconds) if row.wait_seconds else Now()


def _unless_changed(version: int, value: object, otherwise: object = Now()) -> Case:
    """`value`, unless the ticket has come to want more since it was claimed."""
    unchanged = When(wanted_version=version, then=_as_moment(value))
    return Case(unchanged, default=_as_moment(otherwise), output_field=DateTimeField())


def _as_moment(value: object):
    return Value(None, output_field=DateTimeField()) if value is None else value


def credentials(ticket: Ticket, config: PlatformConfig) -> tuple[int | None, dict[str, str]]:
    """Today's settings, unless they are those of another account than the one the ticket was made at."""
    made_with: PlatformVersion | None = ticket.settings_version
    if ticket.created_remotely_at is None or made_with is None:
        return config.version_id, config.settings
    defaults = {f.name: f.default for f in config.platform.fields}
    for name in config.platform.identity:
        if (made_with.settings.get(name) or defaults[name]) != (config.settings.get(name) or defaults[name]):
            return made_with.pk, made_with.settings
    return config.version_id, config.settings


def _taken(ticket: Ticket, now: datetime) -> tuple[Taken, ...]:
    if ticket.taken is None or now - datetime.fromisoformat(ticket.taken["at"]) > TAKEN_FOR:
        return ()
    return tuple((what, request) for what, request in ticket.taken["requests"])


def _row(ticket: Ticket, wanted: core.Level, shown: core.Level | None) -> core.Row:
    platform = PLATFORMS[ticket.platform]
    made = ticket.created_remotely_at is not None
    return core.Row(
        wanted=wanted,
        traits=core.Traits(
            pages=platform.pages,
            keyed=platform.keyed,
            reopens_resolved_only=platform.reopens_resolved_only,
            searchable=platform.searchable,
            search_lag=timedelta(seconds=platform.search_lag),
        ),
        written_at=notices.needed_since(ticket),
        shown=shown,
        remote=Remote(ticket.remote_id, ticket.remote_url, ticket.remote_data) if made else None,
        generation=ticket.generation,
        previous_links=tuple(ticket.previous_links),
        attempts=ticket.attempts,
        in_doubt=ticket.in_doubt,
        doubtful_since=ticket.doubtful_since,
        lookups=ticket.lookups,
        last_lookup_at=ticket.last_lookup_at,
        may_be_doubled=ticket.may_be_doubled,
        failing_since=ticket.failing_since,
        last_error=ticket.last_error,
    )


def _note_failure(config: PlatformConfig, failures: int, error: PlatformError, pause_seconds: float | None) -> None:
    """The platform's own state: left alone after a 429, and for a moment after failures in a row (its breaker)."""
    if error.recreate or (error.permanent and pause_seconds is None):
        return
    platform, asked = config.platform, pause_seconds is not None
    PlatformPause.objects.bulk_create([PlatformPause(platform=platform.name, until=Now())], ignore_conflicts=True)
    row = PlatformPause.objects.filter(platform=platform.name)
    if pause_seconds is None:
        row.update(failures=F("failures") + 1)
        pause_seconds = _break(platform, failures + 1)
    if pause_seconds:
        # Another attempt may have been told of a longer rest.
        same = When(settings_at=config.changed_at, then=Greatest(F("until"), lease(pause_seconds)))
        until = Case(same, default=lease(pause_seconds), output_field=DateTimeField())
        row.update(until=until, reason=error.message[:500], asked=asked, settings_at=config.changed_at)


def _break(platform: Platform, failures: int) -> float:
    """Seconds for which the breaker opens. For a single ticket that fails it does not: that one waits by itself, and
    must delay no other."""
    if failures < BREAKER_OPENS_AT:
        return 0.0
    failing = Ticket.objects.behind().filter(platform=platform.name, failing_since__isnull=False, parked_at=None)
    if len(failing.values_list("pk")[:2]) < 2:
        return 0.0
    return min(2.0 ** min(failures - BREAKER_OPENS_AT, 10), LONGEST_BREAK_PAGING if platform.pages else LONGEST_BREAK)
