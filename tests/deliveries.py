"""One incident at one platform: the moves it makes, what people must then see there, and time that passes.

What stands at the platform is told by the stand-ins, which are another process's outside world; what the product
believes by its rows. `Judge` compares both with what the incident is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from incidents import lifecycle
from incidents.delivery.attempts import attempt_next
from incidents.models import Incident, PlatformPause, Ticket, lease
from tests.standins import Standins, client
from tests.waiting import until

MOST_ATTEMPTS = 100
CAUSE = "The disk of the database is full."


@dataclass(frozen=True)
class Action:
    """The last of what happens to an incident, after what came `before`, and what a platform shows at the end."""

    name: str
    before: tuple[str, ...]
    status: str  # of the incident
    pages: int = 1  # where people are paged: how often, in all
    messages: int = 2  # where there are only messages: how many, in all


ACTIONS = (
    Action("create", (), "open", messages=1),
    Action("acknowledge", ("create",), "acknowledged"),
    Action("escalate", ("create",), "escalated"),
    Action("cause", ("create",), "open"),
    Action("resolve", ("create",), "resolved"),
    Action("reopen", ("create", "resolve"), "open", pages=2, messages=3),
)


@dataclass
class Tally:
    """What became of so many tries."""

    tried: int = 0
    lost: int = 0
    doubled: int = 0
    marked: int = 0  # of the messages that came twice, with a mark that they may
    slowest: float = 0.0  # seconds from a death to the page, where people are paged
    most_claims: int = 0
    told: list[str] = field(default_factory=list)  # each thing that is wrong

    def missing(self, why: str) -> None:
        self.lost += 1
        self.told.append(why)

    def twice(self, why: str) -> None:
        self.doubled += 1
        self.told.append(why)


class Delivery:
    """One incident, its ticket at one platform, and a clock that the tests move."""

    def __init__(self, standins: Standins, platform: str, send: Callable[..., dict]) -> None:
        self.standin = standins[platform]
        self.platform = platform
        self._send = send
        self.waited = 0.0  # seconds that have passed since `begin`

    def begin(self, action: Action) -> None:
        """Nothing is left of the one before; what precedes the action is done and shown."""
        self.standin.reset()
        Incident.objects.all().delete()
        PlatformPause.objects.all().delete()
        for name in action.before:
            self.move(name)
            self.settle()
        self.move(action.name)
        self.waited = 0.0

    def move(self, name: str) -> None:
        if name == "create":
            # Not the highest severity, so that it shows when it is raised.
            [self.incident_id] = self._send({"service": "payment-api", "severity": "high"})["incidents"]
        elif name == "cause":
            asked = {"model_claim": 1, "model_lease_until": lease(60)}
            Incident.objects.filter(pk=self.incident_id).update(**asked)
            assert lifecycle.cause_arrived(self.incident_id, 1, text=CAUSE, model="model", seconds=2.1)
        else:
            [moved] = lifecycle.move(name, [self.incident_id], actor="user:anna")
            assert isinstance(moved, lifecycle.Moved), moved

    def settle(self, seconds: float = math.inf) -> None:
        """A worker does what is due, and sleeps until the next is: until nothing is any more, or the time is over."""
        for _ in range(MOST_ATTEMPTS):
            while attempt_next(self.platform):
                pass
            wait = self.next_due()
            if wait is None or self.waited + wait > seconds:
                return
            self.pass_time(wait + 0.001)
        raise AssertionError(f"It does not come to rest: {list(Ticket.objects.values())}")

    def next_due(self) -> float | None:
        """Seconds until the next attempt may be made; None where none is to be made."""
        pause = PlatformPause.objects.filter(platform=self.platform).first()
        waits = [
            max(filter(None, (ticket.due_at, ticket.lease_until, pause and pause.until))) - ticket.now
            for ticket in Ticket.objects.filter(due_at__isnull=False).annotate(now=Now())
        ]
        return max(0.0, min(waits).total_seconds()) if waits else None

    def pass_time(self, seconds: float) -> None:
        """Everything that anybody remembers was so much longer ago."""
        self.waited += seconds
        ago = timedelta(seconds=seconds)
        names = ("due_at", "lease_until", "doubtful_since", "last_lookup_at", "failing_since", "created_at")
        Ticket.objects.update(**{name: F(name) - ago for name in names})
        PlatformPause.objects.update(until=F("until") - ago)
        if self.platform == "jira":
            with self.standin.lock:
                for issue in self.standin.issues.values():
                    issue.created -= seconds

    def platform_rests(self) -> None:
        """Waits until the stand-in has done with what a dead worker sent."""
        client.send("GET", f"{self.standin.url}/_counts")  # accepted after whoever came before
        until(lambda: not self.standin.listener.connected, words="a stand-in that talks to nobody")


class Judge:
    """Counts what is lost or doubled at the platform after an action, and where the rows say otherwise."""

    def __init__(self, delivery: Delivery, action: Action, tally: Tally) -> None:
        self.delivery, self.action, self.tally = delivery, action, tally
        self.standin, self.platform = delivery.standin, delivery.platform
        self.before = self.amount()
        self.repeatable = 0  # so many of them were carried out, and whoever asked for it never learned so

    def note_a_death(self) -> None:
        """A worker has died: what had reached the platform may be repeated where nothing tells that it has."""
        now = self.amount()
        self.repeatable += now - self.before
        self.before = now

    def amount(self) -> int:
        """Of what must not be doubled: pages, records or messages."""
        match self.platform:
            case "jira":
                return len(self.standin.issues)
            case "servicenow":
                return len(self.standin.records)
            case "slack":
                return len(self.standin.messages)
        return self.standin.pages

    def wanted(self) -> int:
        return {"jira": 1, "servicenow": 1, "slack": self.action.messages}.get(self.platform, self.action.pages)

    def judge(self, where: object) -> None:
        """`where`: what was done to it, for who reads of a failure."""
        self.tally.tried += 1
        ticket, *others = Ticket.objects.select_related("incident").order_by("pk")
        if others:
            self.tally.twice(f"{where}: {len(others)} tickets too many")
        self._count(ticket, where)
        if self.amount() and (shown := self.shown()) != (wanted := self._to_be_shown()):
            self.tally.missing(f"{where}: shows {shown}, not {wanted}")
        # A message that may have come twice may rest until somebody sends it again; nothing else may.
        rests = ticket.parked_at is not None and ticket.may_be_doubled and self.platform == "slack"
        in_step = (ticket.shown_version, ticket.in_doubt, ticket.lease_until, ticket.due_at, ticket.parked_at)
        if in_step != (ticket.wanted_version, False, None, None, None) and not rests:
            self.tally.missing(f"{where}: the row is not in step: {in_step} {ticket.last_error}")
        self.tally.most_claims = max(self.tally.most_claims, ticket.claim)

    def _count(self, ticket: Ticket, where: object) -> None:
        more = self.amount() - self.wanted()
        if more < 0:
            self.tally.missing(f"{where}: {-more} too few")
        elif 0 < more <= self.repeatable and self.platform == "slack" and ticket.may_be_doubled:
            self.tally.marked += more
        elif more:
            self.tally.twice(f"{where}: {more} too many")
        if self._created_without_a_look():
            self.tally.twice(f"{where}: created again without a look for the first")

    def _created_without_a_look(self) -> bool:
        """Whether, between two requests to create the record, nobody looked whether it is there."""
        looked = True
        for seen in list(self.standin.seen):
            path = seen.path
            if self.platform == "jira":
                creates, looks = seen.method == "POST" and path.endswith("/issue"), path.endswith("/search/jql")
            elif self.platform == "servicenow":
                creates, looks = seen.method == "POST", seen.method == "GET" and path.endswith("/incident")
            else:
                return False
            if creates and not looked:
                return True
            looked = looks or (looked and not creates)
        return False

    def shown(self) -> tuple[object, ...]:
        """What people see there: the status, whether it is raised, and whether the cause is told."""
        match self.platform:
            case "pagerduty":
                alert = list(self.standin.alerts.values())[0][-1]
                return alert.state, alert.severity
            case "opsgenie":
                alert = list(self.standin.alerts.values())[0][-1]
                state = "closed" if alert.status == "closed" else "acknowledged" if alert.acknowledged else "open"
                return state, alert.priority, any(CAUSE in note for note in alert.notes)
            case "jira":
                issue = list(self.standin.issues.values())[0]
                told = any(CAUSE in comment["text"] for comment in issue.comments)
                return issue.category, issue.fields["priority"], told
            case "servicenow":
                sys_id, record = list(self.standin.records.items())[0]
                told = any(CAUSE in entry["text"] for entry in self.standin.journal[sys_id])
                return record["state"], record["impact"] + record["urgency"], told
        message = self.standin.messages[-1].shown
        return f"Status\n{self.action.status}" in message, CAUSE in message

    def _to_be_shown(self) -> tuple[object, ...]:
        name, status = self.action.name, self.action.status
        raised, cause = name == "escalate", name == "cause"
        match self.platform:
            case "pagerduty":
                state = {"open": "triggered", "escalated": "triggered"}.get(status, status)
                return state, "critical" if raised else "error"
            case "opsgenie":
                state = {"escalated": "open", "resolved": "closed"}.get(status, status)
                return state, "P1" if raised else "P2", cause
            case "jira":
                category = {"acknowledged": "indeterminate", "resolved": "done"}.get(status, "new")
                return category, "Highest" if raised else "High", cause
            case "servicenow":
                # A record that was resolved cannot become new again.
                state = {"acknowledged": "2", "resolved": "6"}.get(status, "2" if name == "reopen" else "1")
                return state, "11" if raised else "12", cause
        return True, cause


def database_url() -> str:
    of = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{of['NAME']}"
    return f"postgresql://{of['USER']}@{of['HOST']}:{of['PORT']}/{of['NAME']}"
