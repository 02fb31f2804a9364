"""From anomalies to incidents: below the score, redelivered, joined, reopened or opened. The database decides.

Works on batches: one event is a batch of one. A batch ends as if its events had been sent one by one in their order, in
one transaction, with a number of queries that does not grow with its size.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from django.db import OperationalError, connection, transaction
from django.utils import timezone

from config.current import Current, current
from incidents import counters, lifecycle
from incidents.causes import rules
from incidents.events import Event, Rejected, read
from incidents.models import Anomaly, DayCounter, DedupLock, Incident, SeenEvent, Status

MOST_AFFECTED_SERVICES = 200
EVENT_IDS_PER_STATEMENT = 5000  # SQLite takes 32,766 parameters
# A deadlock is possible only where several batches bring the same new services; whoever lost simply begins again.
TRIES = 4
LOST_A_RACE = {"40P01", "40001"}


@dataclass(frozen=True)
class Result:
    """What became of one event: created, deduplicated, reopened, belowThreshold, redelivered or rejected."""

    outcome: str
    incident_id: str | None = None
    message: str = ""


def accept(
    items: Sequence[object],
    *,
    actor: str,
    request_id: str = "",
    idempotency_key: str = "",
    dry_run: bool = False,
) -> list[Result]:
    """Takes in what a producer sent, and says for each item what became of it. A bad item costs no other."""
    now = timezone.now()
    results: list[Result | None] = [None] * len(items)
    events: list[tuple[int, Event]] = []
    for index, item in enumerate(items):
        try:
            fallback_id = f"{idempotency_key}:{index}" if idempotency_key else None
            events.append((index, read(item, now=now, fallback_id=fallback_id)))
        except Rejected as error:
            results[index] = Result("rejected", message=str(error))
    if events:
        for (index, _), result in zip(events, _store([e for _, e in events], actor, request_id, dry_run), strict=True):
            results[index] = result
    if not dry_run:
        for outcome, number in Counter(result.outcome for result in results).items():
            counters.count(counters.INTAKE, number, outcome=outcome)
    return results


class _DryRun(Exception):
    """Undoes the transaction of a dry run."""


def _store(events: list[Event], actor: str, request_id: str, dry_run: bool) -> list[Result]:
    for tries_left in reversed(range(TRIES)):
        batch = _Batch(current(), actor, request_id, timezone.now())
        try:
            with transaction.atomic():
                results = batch.take(events)
                if dry_run:
                    raise _DryRun
            return results
        except _DryRun:
            opened = {incident.pk for incident in batch.opened}
            return [Result(r.outcome, None if r.incident_id in opened else r.incident_id) for r in results]
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) not in LOST_A_RACE or not tries_left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


@dataclass
class _Batch:
    """The events of one transaction and what they change."""

    config: Current
    actor: str
    request_id: str
    now: datetime
    faults: dict[tuple[str, str], "_Siblings"] = field(default_factory=dict)
    opened: list[Incident] = field(default_factory=list)
    joined: dict[int, Incident] = field(default_factory=dict)
    reopened: dict[int, Incident] = field(default_factory=dict)

    def take(self, events: list[Event]) -> list[Result]:
        """Locks are taken in one order: event ids, services, incidents, the day's counter."""
        fresh = _claim_event_ids(events, self.now)
        deciding = [e for e in fresh if e is not None and e.score >= self.config.minimum_score]
        self.lock_faults(deciding)
        # Only now, with the locks: what others did to these incidents while we waited lies before it.
        self.now = timezone.now()
        decided = [self.decide(e) if e is not None else None for e in fresh]
        self.number(self.opened)
        self.write(fresh, decided)
        known = _incidents_of_redelivered([e for e, kept in zip(events, fresh, strict=True) if kept is None])
        return [
            Result("redelivered", known.get(event.event_id))
            if choice is None
            else Result(choice[0], choice[1].pk if choice[1] else None)
            for event, choice in zip(events, decided, strict=True)
        ]

    def lock_faults(self, events: list[Event]) -> None:
        """Holds each (service, severity) and reads the incidents that its events could belong to."""
        if not events:
            return
        keys = sorted({(e.service, e.severity) for e in events})
        if missing := set(keys) - _locked(keys):
            DedupLock.objects.bulk_create(
                (DedupLock(service=service, severity=severity) for service, severity in sorted(missing)),
                ignore_conflicts=True,
            )
            _locked(sorted(missing))
        window = self.config.lookback
        self.faults = {key: _Siblings(window) for key in keys}
        candidates = Incident.objects.select_for_update().filter(
            service__in={service for service, _ in keys},
            severity__in={severity for _, severity in keys},
            last_anomaly_at__gte=min(e.at for e in events) - window,
            first_anomaly_at__lte=max(e.at for e in events) + window,
        )
        locked = candidates.defer("evidence", "root_cause", "description").order_by("pk")
        for incident in sorted(locked, key=lambda i: (i.created_at, i.number)):
            if siblings := self.faults.get((incident.service, incident.severity)):
                siblings.add(incident)

    def decide(self, event: Event) -> tuple[str, Incident | None]:
        if event.score < self.config.minimum_score:
            return "belowThreshold", None
        siblings = self.faults[event.service, event.severity]
        incident = siblings.match(event.at)
        if incident is None:
            incident = self.draft(event)
            siblings.add(incident)
            return "created", incident
        siblings.widen(incident, event.at)
        return self.join(incident, event), incident

    def join(self, incident: Incident, event: Event) -> str:
        incident.anomaly_count += 1
        incident.anomaly_score = max(incident.anomaly_score, event.score)
        incident.affected_services = _union(incident.affected_services, event.affected_services)
        incident.updated_at = max(incident.updated_at, self.now)
        if incident.pk:  # those of this batch have no id yet and are written whole
            self.joined[id(incident)] = incident
        if incident.status == Status.RESOLVED and event.at > incident.resolved_at:
            self.reopened[id(incident)] = incident
            incident.status = Status.OPEN  # for the events that follow in this batch
            return "reopened"
        return "deduplicated"

    def draft(self, event: Event) -> Incident:
        incident = Incident(
            title=event.title,
            description=event.description,
            service=event.service,
            severity=event.severity,
            affected_services=list(event.affected_services[:MOST_AFFECTED_SERVICES]) or [event.service],
            trace_id=event.trace_id[:200],
            environment=event.environment[:200],
            tenant_id=event.tenant_id[:200],
            evidence=event.evidence.as_json(),
            anomaly_score=event.score,
            anomaly_count=1,
            first_anomaly_at=event.at,
            last_anomaly_at=event.at,
            created_at=self.now,
            updated_at=self.now,
            cause_at=self.now,
            fallback=True,
        )
        incident.root_cause = rules.explain(
            service=event.service,
            severity=event.severity,
            score=event.score,
            anomaly_count=1,
            trace_id=event.trace_id,
            affected_services=tuple(incident.affected_services),
            evidence=event.evidence,
        ).text
        self.opened.append(incident)
        return incident

    def number(self, incidents: list[Incident]) -> None:
        if not incidents:
            return
        day = self.now.date()
        for number, incident in zip(_next_numbers(day, len(incidents)), incidents, strict=True):
            incident.number = number
            incident.pk = f"inc-{day:%Y%m%d}-{number:03d}"

    def write(self, fresh: list[Event | None], decided: list[tuple[str, Incident | None] | None]) -> None:
        lifecycle.open_incidents(self.opened, self.config, actor=self.actor, request_id=self.request_id)
        _save_joined(list(self.joined.values()))
        for incident in self.reopened.values():
            incident.status = Status.RESOLVED  # as the row still says
        lifecycle.reopen_for_anomaly(
            list(self.reopened.values()), actor=self.actor, request_id=self.request_id, now=self.now
        )
        Anomaly.objects.bulk_create(
            Anomaly(
                incident=choice[1],
                event_id=event.event_id or "",
                service=event.service,
                severity=event.severity,
                score=event.score,
                at=event.at,
                received_at=self.now,
                title=event.title[:200],
                payload=event.payload if choice[1] else None,
            )
            for event, choice in zip(fresh, decided, strict=True)
            if event is not None
        )


class _Siblings:
    """The incidents of one service and severity, found by time: sorted by their first anomaly.

    None reaches further than the longest, so an anomaly looks at those alone that begin shortly before it.
    """

    def __init__(self, window: timedelta) -> None:
        self.window = window
        self.longest = timedelta()
        self.by_first: list[tuple[datetime, int, Incident]] = []  # with their age: 0 is the oldest
        self.ages: dict[int, int] = {}

    def add(self, incident: Incident) -> None:
        """Takes them in the order in which they were opened."""
        self.ages[id(incident)] = len(self.ages)
        self._place(incident)

    def _place(self, incident: Incident) -> None:
        insort(self.by_first, (incident.first_anomaly_at, self.ages[id(incident)], incident))
        self.longest = max(self.longest, incident.last_anomaly_at - incident.first_anomaly_at)

    def match(self, at: datetime) -> Incident | None:
        """The one that an anomaly of this time belongs to: an unresolved before a resolved one, then the newest."""
        earliest = at - self.window
        start = bisect_left(self.by_first, (earliest - self.longest,))
        end = bisect_left(self.by_first, (at + self.window, len(self.ages)))
        fits = [entry for entry in self.by_first[start:end] if entry[2].last_anomaly_at >= earliest]
        if not fits:
            return None
        return max(fits, key=lambda entry: (entry[2].status != Status.RESOLVED, entry[1]))[2]

    def widen(self, incident: Incident, at: datetime) -> None:
        """An anomaly of this time has become part of the incident."""
        if incident.first_anomaly_at <= at <= incident.last_anomaly_at:
            return
        del self.by_first[bisect_left(self.by_first, (incident.first_anomaly_at, self.ages[id(incident)]))]
        incident.first_anomaly_at = min(incident.first_anomaly_at, at)
        incident.last_anomaly_at = max(incident.last_anomaly_at, at)
        self._place(incident)


def _union(known: list[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*known, *more]))[:MOST_AFFECTED_SERVICES]


# --- Queries ----------------------------------------------------------------------------------------------------------


def _claim_event_ids(events: list[Event], now: datetime) -> list[Event | None]:
    """The events, with None for each that was taken in before, in this batch or another.

    The primary key decides: whoever inserts an id first has it, and others wait for that commit.
    """
    ids = sorted({e.event_id for e in events if e.event_id})
    new = set(_inserted_ids(ids, now))
    fresh: list[Event | None] = []
    for event in events:
        if not event.event_id:
            fresh.append(event)
        elif event.event_id in new:
            new.discard(event.event_id)
            fresh.append(event)
        else:
            fresh.append(None)
    return fresh


def _inserted_ids(ids: list[str], now: datetime) -> Iterator[str]:
    table = connection.ops.quote_name(SeenEvent._meta.db_table)
    seen_at = SeenEvent._meta.get_field("seen_at").get_db_prep_save(now, connection)
    for start in range(0, len(ids), EVENT_IDS_PER_STATEMENT):
        chunk = ids[start : start + EVENT_IDS_PER_STATEMENT]
        rows = ", ".join(["(%s, %s)"] * len(chunk))
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table} (event_id, seen_at) VALUES {rows} ON CONFLICT DO NOTHING RETURNING event_id",
                [value for event_id in chunk for value in (event_id, seen_at)],
            )
            yield from (row[0] for row in cursor.fetchall())


def _incidents_of_redelivered(events: list[Event]) -> dict[str, str | None]:
    if not events:
        return {}
    ids = {e.event_id for e in events}
    return dict(Anomaly.objects.filter(event_id__in=ids).values_list("event_id", "incident_id"))


def _locked(keys: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Locks those of the keys that exist, in order."""
    rows = (
        DedupLock.objects.select_for_update()
        .filter(service__in={service for service, _ in keys}, severity__in={severity for _, severity in keys})
        .order_by("service", "severity")
    )
    return set(rows.values_list("service", "severity"))


def _next_numbers(day: date, count: int) -> range:
    """The day's next numbers. The counter's row is locked until the end of the transaction, so it comes last."""
    table = connection.ops.quote_name(DayCounter._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (day, last) VALUES (%s, %s) "
            f"ON CONFLICT (day) DO UPDATE SET last = {table}.last + excluded.last RETURNING last",
            [DayCounter._meta.get_field("day").get_db_prep_save(day, connection), count],
        )
        [last] = cursor.fetchone()
    return range(last - count + 1, last + 1)


JOINED_FIELDS = [
    "anomaly_count",
    "anomaly_score",
    "first_anomaly_at",
    "last_anomaly_at",
    "affected_services",
    "updated_at",
]


def _save_joined(incidents: list[Incident]) -> None:
    if len(incidents) == 1:
        incidents[0].save(update_fields=JOINED_FIELDS)
    elif incidents:
        Incident.objects.bulk_update(incidents, JOINED_FIELDS, batch_size=500)
