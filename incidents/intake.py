"""From anomalies to incidents: below the score, redelivered, joined, reopened or opened. The database decides.

Works on batches: one event is a batch of one. A batch ends as if its events had been sent one by one in their order, in
one transaction, with a number of queries that does not grow with its size. Requests that come together are one batch
(`turns`). What is asked of the database is in `statements`.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from django.db import OperationalError, transaction
from django.utils import timezone

from config.current import Current, current
from incidents import counters, lifecycle, statements
from incidents.causes import rules
from incidents.events import Event, Rejected, read
from incidents.lifecycle import Author
from incidents.models import DedupLock, Incident, Status
from incidents.turns import Result, Sent, Turns

MOST_AFFECTED_SERVICES = 200
PAYLOADS_AT_EACH_END = 20  # an incident's first and latest events that are kept whole, beside its highest
LOOKED_INTO = 20  # an incident's first events whose words are searched for a cause, while there is none
# A deadlock is possible only where several batches bring the same new services; whoever lost simply begins again.
TRIES = 4
LOST_A_RACE = {"40P01", "40001"}


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
        sent = Sent([event for _, event in events], Author(actor, request_id))
        for (index, _), result in zip(events, _rehearsed(sent) if dry_run else _turns.take_in(sent), strict=True):
            results[index] = result
    if not dry_run:
        for outcome, number in Counter(result.outcome for result in results).items():
            counters.count(counters.INTAKE, number, outcome=outcome)
    return results


def _in_one_transaction(together: list[Sent]) -> list[Result]:
    for tries_left in reversed(range(TRIES)):
        try:
            with transaction.atomic():
                return _Batch(current(), timezone.now()).take(together)
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) not in LOST_A_RACE or not tries_left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


_turns = Turns(_in_one_transaction)


class _Rehearsed(Exception):
    """Undoes the transaction of a dry run."""


def _rehearsed(sent: Sent) -> list[Result]:
    batch = _Batch(current(), timezone.now())
    try:
        with transaction.atomic():
            results = batch.take([sent])
            raise _Rehearsed
    except _Rehearsed:
        opened = {incident.pk for incident, _ in batch.opened}
        return [Result(r.outcome, None if r.incident_id in opened else r.incident_id) for r in results]


@dataclass(slots=True)
class _Taken:
    """What was decided about one event that was not taken in before."""

    event: Event
    outcome: str
    incident: Incident | None = None
    ordinal: int = 0  # among the anomalies of its incident, from 1
    highest: bool = False  # higher than any before

    def worth_keeping_whole(self) -> bool:
        """Whether the payload may be among those that retention keeps."""
        if self.incident is None:
            return False
        last = self.incident.anomaly_count - PAYLOADS_AT_EACH_END
        return self.ordinal <= PAYLOADS_AT_EACH_END or self.highest or self.ordinal > last

    def row(self, received_at: datetime) -> tuple[object, ...]:
        """The anomaly to be kept of it: statements.ANOMALY_FIELDS."""
        event = self.event
        return (
            self.incident and self.incident.pk,
            event.event_id or "",
            event.service,
            event.severity,
            event.score,
            event.at,
            received_at,
            event.title[:200],
            event.payload if self.worth_keeping_whole() else None,
        )


@dataclass
class _Batch:
    """The events of one transaction and what they change."""

    config: Current
    now: datetime
    faults: dict[tuple[str, str], "Siblings"] = field(default_factory=dict)
    opened: list[tuple[Incident, Author]] = field(default_factory=list)
    joined: dict[int, Incident] = field(default_factory=dict)
    reopened: dict[Author, list[Incident]] = field(default_factory=lambda: defaultdict(list))
    improved: dict[int, Incident] = field(default_factory=dict)

    def take(self, together: list[Sent]) -> list[Result]:
        """Locks are taken in one order: event ids, services, incidents, the day's counter."""
        events = [event for sent in together for event in sent.events]
        authors = [sent.author for sent in together for _ in sent.events]
        fresh = _fresh(events, self.now)
        minimum = self.config.minimum_score
        self.lock_faults([event for event in fresh if event is not None and event.score >= minimum])
        # Only now, with the locks: what others did to these incidents while we waited lies before it.
        self.now = timezone.now()
        decided = [e and self.decide(e, author) for e, author in zip(fresh, authors, strict=True)]
        self.number([incident for incident, _ in self.opened])
        self.write([taken for taken in decided if taken])
        known = statements.incidents_of({e.event_id for e, taken in zip(events, decided, strict=True) if taken is None})
        return [
            Result(taken.outcome, taken.incident.pk if taken.incident else None)
            if taken
            else Result("redelivered", known.get(event.event_id))
            for event, taken in zip(events, decided, strict=True)
        ]

    def lock_faults(self, events: list[Event]) -> None:
        """Holds each (service, severity) and reads the incidents that its events could belong to."""
        if not events:
            return
        keys = sorted({(e.service, e.severity) for e in events})
        if missing := set(keys) - statements.lock_faults(keys):
            DedupLock.objects.bulk_create(
                (DedupLock(service=service, severity=severity) for service, severity in sorted(missing)),
                ignore_conflicts=True,
            )
            statements.lock_faults(sorted(missing))
        window = self.config.lookback
        self.faults = {key: Siblings(window) for key in keys}
        times = [e.at for e in events]
        for incident in sorted(
            statements.candidates(keys, min(times) - window, max(times) + window),
            key=lambda i: (i.created_at, i.number),
        ):
            if siblings := self.faults.get((incident.service, incident.severity)):
                siblings.add(incident)

    def decide(self, event: Event, author: Author) -> _Taken:
        if event.score < self.config.minimum_score:
            return _Taken(event, "belowThreshold")
        siblings = self.faults[event.service, event.severity]
        incident = siblings.match(event.at)
        if incident is None:
            incident = self.draft(event)
            self.opened.append((incident, author))
            siblings.add(incident)
            return _Taken(event, "created", incident, ordinal=1)
        siblings.widen(incident, event.at)
        highest = event.score > incident.anomaly_score
        outcome = self.join(incident, event, author)
        return _Taken(event, outcome, incident, incident.anomaly_count, highest)

    def join(self, incident: Incident, event: Event, author: Author) -> str:
        incident.anomaly_count += 1
        incident.anomaly_score = max(incident.anomaly_score, event.score)
        incident.affected_services = _union(incident.affected_services, event.affected_services)
        incident.updated_at = max(incident.updated_at, self.now)
        if incident.pk:  # those of this batch have no id yet and are written whole
            self.joined[id(incident)] = incident
        if incident.fallback and incident.cause_category in rules.WEAK:
            self.improve(incident, event)
        if incident.status == Status.RESOLVED and event.at > incident.resolved_at:
            self.reopened[author].append(incident)
            incident.status = Status.OPEN  # for the events that follow in this batch
            return "reopened"
        return "deduplicated"

    def improve(self, incident: Incident, event: Event) -> None:
        """Takes the event's evidence, and a trace where there is none, if it tells more than what there is.

        That is when the rules know the fault's kind by it, or when there were but numbers and it brings words. At most
        two events do so for an incident, and its tickets are told once: when its kind comes to be known.
        """
        weak, thorough = incident.cause_category, incident.anomaly_count <= LOOKED_INTO
        if not rules.betters(weak, service=event.service, evidence=event.evidence, thorough=thorough):
            return
        incident.trace_id = incident.trace_id or event.trace_id[:200]
        _explain(incident, event)
        if incident.pk:
            self.improved[id(incident)] = incident
            if incident.cause_category not in rules.WEAK:
                incident.cause_at = max(self.now, incident.created_at + timedelta.resolution)

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
            anomaly_score=event.score,
            anomaly_count=1,
            first_anomaly_at=event.at,
            last_anomaly_at=event.at,
            created_at=self.now,
            updated_at=self.now,
            cause_at=self.now,
            fallback=True,
        )
        _explain(incident, event)
        return incident

    def number(self, incidents: list[Incident]) -> None:
        if incidents:
            give_ids(incidents, self.now.date())

    def write(self, taken: list[_Taken]) -> None:
        lifecycle.open_incidents(self.opened, self.config)
        statements.save(list(self.joined.values()), statements.JOINED_FIELDS)
        for author, incidents in self.reopened.items():
            for incident in incidents:
                incident.status = Status.RESOLVED  # as the row still says
            lifecycle.reopen_for_anomaly(incidents, author, now=self.now)
        statements.save(list(self.improved.values()), statements.IMPROVED_FIELDS)
        lifecycle.cause_improved([i.pk for i in self.improved.values() if i.cause_category not in rules.WEAK])
        statements.insert_anomalies([one.row(self.now) for one in taken])


def _explain(incident: Incident, event: Event) -> None:
    """The rules' cause, as they can tell it from this event of the incident."""
    finding = rules.explain(
        service=incident.service,
        severity=incident.severity,
        score=incident.anomaly_score,
        anomaly_count=incident.anomaly_count,
        trace_id=incident.trace_id,
        affected_services=incident.affected_services,
        evidence=event.evidence,
    )
    incident.evidence = event.evidence.as_json()
    incident.root_cause = finding.text
    incident.cause_category = finding.kind


def give_ids(incidents: Sequence[Incident], day: date) -> None:
    """The day's next ids. Locks the day's counter until the end of the transaction: take every other lock before."""
    for number, incident in zip(statements.next_numbers(day, len(incidents)), incidents, strict=True):
        incident.number = number
        incident.pk = f"inc-{day:%Y%m%d}-{number:03d}"


class Siblings:
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


def _fresh(events: list[Event], now: datetime) -> list[Event | None]:
    """The events, with None for each that was taken in before, in this batch or another."""
    new = statements.claim_event_ids({e.event_id for e in events if e.event_id}, now)
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


def _union(known: list[str], more: Iterable[str]) -> list[str]:
    if all(service in known for service in more):  # by far the most frequent case
        return known
    return list(dict.fromkeys([*known, *more]))[:MOST_AFFECTED_SERVICES]
