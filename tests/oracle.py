"""What intake promises, told once more as plainly as can be: one event at a time, in lists, without a database.

Tests send the same events to the product and to this, and compare what became of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

# What events may say, and what kind of cause can be told from it. Of two that tell equally much the first one stands.
KINDS = {"": "bare", "so it goes": "unknown", "out of memory": "out_of_memory", "no space left": "disk"}
WEAK = ("bare", "unknown")
LOOKED_INTO = 20  # of a fault's events: later ones say the same, or name their kind


@dataclass
class Sent:
    """An event as far as the rules care."""

    service: str
    severity: str
    score: float
    at: datetime
    event_id: str | None = None
    affected: tuple[str, ...] = ()
    says: str = ""  # a key of KINDS
    trace: str = ""

    def as_item(self) -> dict:
        """As a producer would write it."""
        item = {"service": self.service, "severity": self.severity, "score": self.score}
        item |= {"message": self.says, "traceId": self.trace} if self.says else {}
        more = {"timestamp": self.at.isoformat(), "eventId": self.event_id, "affectedServices": list(self.affected)}
        return item | {name: value for name, value in more.items() if value}


@dataclass
class Fault:
    """An incident, as the oracle sees it."""

    service: str
    severity: str
    score: float
    first: datetime
    last: datetime
    affected: list[str]
    says: str = ""
    trace: str = ""
    count: int = 1
    resolved_at: datetime | None = None
    history: list[str] = field(default_factory=lambda: ["created"])

    def within(self, at: datetime, window: timedelta) -> bool:
        return self.first - window <= at <= self.last + window

    def join(self, sent: Sent) -> str:
        self.count += 1
        self.score = max(self.score, sent.score)
        self.first, self.last = min(self.first, sent.at), max(self.last, sent.at)
        self.affected = list(dict.fromkeys([*self.affected, *sent.affected]))
        known, new = KINDS[self.says], KINDS[sent.says]
        if self.count <= LOOKED_INTO and known in WEAK and (new not in WEAK or WEAK.index(new) > WEAK.index(known)):
            self.says, self.trace = sent.says, self.trace or sent.trace
        if self.resolved_at is None or sent.at <= self.resolved_at:
            return "deduplicated"
        self.reopened()
        return "reopened"

    def reopened(self) -> None:
        self.resolved_at = None
        self.history.append("reopened")


@dataclass
class Oracle:
    """All faults there are, oldest first, and the events that were seen."""

    minimum_score: float
    window: timedelta
    faults: list[Fault] = field(default_factory=list)
    seen: dict[str, Fault | None] = field(default_factory=dict)
    below: int = 0

    def take_all(self, events: list[Sent]) -> Iterator[tuple[str, Fault | None]]:
        for sent in events:
            yield self.take(sent)

    def take(self, sent: Sent) -> tuple[str, Fault | None]:
        """What must become of the event, and of which fault it is part."""
        if sent.event_id in self.seen:
            return "redelivered", self.seen[sent.event_id]
        outcome, fault = self.decide(sent)
        if sent.event_id:
            self.seen[sent.event_id] = fault
        return outcome, fault

    def decide(self, sent: Sent) -> tuple[str, Fault | None]:
        if sent.score < self.minimum_score:
            self.below += 1
            return "belowThreshold", None
        fits = [
            fault
            for fault in self.faults
            if (fault.service, fault.severity) == (sent.service, sent.severity) and fault.within(sent.at, self.window)
        ]
        burning = [fault for fault in fits if fault.resolved_at is None]
        if fits:
            fault = (burning or fits)[-1]
            return fault.join(sent), fault
        affected = list(dict.fromkeys(sent.affected)) or [sent.service]
        fault = Fault(sent.service, sent.severity, sent.score, sent.at, sent.at, affected, sent.says)
        fault.trace = sent.trace if sent.says else ""
        self.faults.append(fault)
        return "created", fault
