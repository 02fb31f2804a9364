"""Stand-in platforms, a week of faults behind us, and new ones as long as it runs."""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from unittest import mock

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ticketing.settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.db import close_old_connections  # noqa: E402
from django.utils import timezone  # noqa: E402
from django.utils.crypto import get_random_string  # noqa: E402

from config.changes import patch_llm, patch_platforms, patch_routing  # noqa: E402
from config.current import current  # noqa: E402
from incidents import intake, lifecycle  # noqa: E402
from incidents.models import Incident, Status, Ticket  # noqa: E402
from platforms.catalog import PLATFORMS  # noqa: E402
from platforms.egress import Egress  # noqa: E402
from tests.demo.faults import FAULTS, Fault  # noqa: E402
from tests.standins import Standins  # noqa: E402

INCIDENTS = int(os.environ.get("DEMO_INCIDENTS", "120"))
DAYS = 7
SEED = 20240301
PEOPLE = ("user:anna", "user:bo", "user:carla")
ROUTING = {
    "critical": ["pagerduty", "opsgenie", "slack", "jira"],
    "high": ["jira", "slack", "servicenow"],
    "medium": ["jira"],
    "low": ["slack"],
}
DETECTOR = "key:detector"
STILL_GOING_ON = timedelta(hours=3)  # faults younger than this are not all resolved yet
LOOK_EVERY = 0.5
PATIENCE = 240  # looks for tickets to be delivered

ended = threading.Event()


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    _refuse_what_is_real()
    with Standins() as standins:
        _configure(standins)
        if not Incident.objects.exists():
            _Week(standins, random.Random(SEED)).live_through()
        _configure_model(standins)
        _tell_login()
        _go_on(random.Random())


def _refuse_what_is_real() -> None:
    """Nobody's pager may ring for a demo: each enabled platform must be one of this machine."""
    local = Egress(Standins.NETWORKS)
    for config in current().platforms.values():
        addresses = [config.settings.get(f.name) or f.default for f in config.platform.fields if f.target]
        if config.enabled and not all(_is_local(address, local) for address in addresses):
            sys.exit(f"{config.platform.label} is enabled here and is real. Run the demo in a DATA_DIR of its own.")


def _is_local(address: str, local: Egress) -> bool:
    return address.startswith("http://127.0.0.1:") and local.url_refusal(address) is None


def _configure(standins: Standins) -> None:
    if not Incident.objects.exists():
        patch_routing(ROUTING, actor="system")
    patch_platforms({name: {"enabled": True} | standins.settings(name) for name in PLATFORMS}, actor="system")


def _configure_model(standins: Standins) -> None:
    standins.llm.answer_with = _model_answer
    patch_llm(standins.settings("llm"), actor="system")


def _model_answer(body: dict) -> str:
    """What a good model would say of the fault that it is asked about."""
    told = json.dumps(body, ensure_ascii=False)
    fault = next((fault for fault in FAULTS if fault.title in told), FAULTS[0])
    return json.dumps(
        {
            "cause": fault.cause,
            "started_in": fault.chain[0] if fault.chain else fault.service,
            "evidence": list(fault.lines),
            "look_first": list(fault.look_first),
            "confidence": "high" if fault.chain else "medium",
        }
    )


@contextmanager
def at(moment: datetime) -> Iterator[None]:
    """The past, for what is done in it: this process alone, and only what it writes."""
    with mock.patch.object(timezone, "now", return_value=moment):
        yield


class _Week:
    """What happened until now: opened first, then taken, escalated and resolved, each delivered before the next."""

    def __init__(self, standins: Standins, dice: random.Random) -> None:
        self.standins = standins
        self.dice = dice
        self.now = timezone.now()

    def live_through(self) -> None:
        print(f"Living through {INCIDENTS} incidents of a week …", flush=True)
        opened = [self.open(fault, moment) for fault, moment in self.moments()]
        self.delivered()
        _configure_model(self.standins)  # only now: nobody asks a model about a fault that is days old
        taken = [(i, self.opened_at(i) + self.minutes(2, 20)) for i in opened if self.dice.random() < 0.8]
        raised = [(i, self.opened_at(i) + self.minutes(15, 40)) for i in opened if self.dice.random() < 0.06]
        over = [(i, self.opened_at(i) + self.minutes(25, 170)) for i in opened if self.is_over(i)]
        for name, moves in (("acknowledge", taken), ("escalate", raised), ("resolve", over)):
            for incident_id, moment in moves:
                if moment < self.now:
                    self.move(name, incident_id, moment)
            self.delivered()
        self.one_that_is_raised()
        self.date_tickets()
        self.one_that_fails()
        self.one_without_the_model()
        self.delivered()

    def date_tickets(self) -> None:
        """As if each platform had been told at the time."""
        tickets = list(Ticket.objects.exclude(created_remotely_at=None).select_related("incident"))
        for ticket in tickets:
            seconds = self.dice.uniform(0.2, 0.9) if PLATFORMS[ticket.platform].pages else self.dice.uniform(0.4, 6)
            incident = ticket.incident
            routed = ticket.platform in ROUTING[incident.severity]
            since = incident.created_at if routed else incident.escalated_at or incident.created_at
            ticket.created_remotely_at = since + timedelta(seconds=seconds)
        Ticket.objects.bulk_update(tickets, ["created_remotely_at"])

    def moments(self) -> list[tuple[Fault, datetime]]:
        weights = [1, 1, 2, 2, 2, 4, 3, 5, 4]
        faults = self.dice.choices(FAULTS, weights, k=INCIDENTS)
        ages = sorted((self.dice.random() ** 1.3 * DAYS * 24 * 60 for _ in faults), reverse=True)
        return [(fault, self.now - timedelta(minutes=3 + age)) for fault, age in zip(faults, ages, strict=True)]

    def open(self, fault: Fault, moment: datetime) -> str:
        count = max(1, int(self.dice.paretovariate(0.9)) % 90)
        span = min(12.0, (self.now - moment).total_seconds() / 60)  # within the window: they are one incident
        times = sorted(moment + timedelta(minutes=self.dice.random() * span) for _ in range(count))
        times[0] = moment
        events = [fault.anomaly(f"demo-{moment.timestamp()}-{n}", t.isoformat()) for n, t in enumerate(times)]
        with at(moment):
            incident_id = intake.accept(events, actor=DETECTOR)[0].incident_id
            self.explain(incident_id, fault)
        return incident_id

    def explain(self, incident_id: str, fault: Fault) -> None:
        """As the model did at the time."""
        asked = Incident.objects.filter(pk=incident_id, cause_model="")
        if asked.update(model_claim=1, model_lease_until=timezone.now()):
            lines = [
                fault.cause,
                f"Started in: {fault.chain[0] if fault.chain else fault.service}",
                *("Evidence:", *(f"- {line}" for line in fault.lines)),
                *("Look first at:", *(f"- {line}" for line in fault.look_first)),
                f"Confidence: {'high' if fault.chain else 'medium'}",
            ]
            model, seconds = self.standins.settings("llm")["model"], round(self.dice.uniform(0.8, 4.0), 1)
            lifecycle.cause_arrived(incident_id, 1, text="\n".join(lines), model=model, seconds=seconds)

    def opened_at(self, incident_id: str) -> datetime:
        return Incident.objects.values_list("created_at", flat=True).get(pk=incident_id)

    def minutes(self, low: int, high: int) -> timedelta:
        return timedelta(minutes=self.dice.uniform(low, high))

    def is_over(self, incident_id: str) -> bool:
        return self.now - self.opened_at(incident_id) > STILL_GOING_ON or self.dice.random() < 0.3

    def move(self, name: str, incident_id: str, moment: datetime) -> None:
        note = {"resolve": "Rolled back, error rate is normal again."} if self.dice.random() < 0.3 else {}
        with at(moment):
            lifecycle.move(name, [incident_id], actor=self.dice.choice(PEOPLE), note=note.get(name, ""))

    def one_that_is_raised(self) -> None:
        fault = replace(FAULTS[0], service="ledger", title="Bookings are not written to the ledger")
        incident_id = self.open(fault, self.now - timedelta(minutes=37))
        self.delivered()
        self.move("escalate", incident_id, self.now - timedelta(minutes=21))
        self.delivered()  # else an attempt under way would date its ticket again

    def one_that_fails(self) -> None:
        """An issue that Jira refuses, as it does when a project gets a required field."""
        refusal = {"errorMessages": [], "errors": {"customfield_10042": "Cost centre is required."}}
        self.standins.jira.fault("status", times=None, path="/issue$", method="POST", code=400, body=refusal)
        moment = self.now - timedelta(minutes=9)
        title = "Invoices are rendered without totals"
        event = FAULTS[5].anomaly("demo-fails", moment.isoformat()) | {"service": "invoice-renderer", "title": title}
        with at(moment):
            intake.accept([event], actor=DETECTOR)
        self.delivered()
        self.standins.jira.clear_faults()

    def one_without_the_model(self) -> None:
        refusal = {"error": {"message": "Incorrect API key provided"}}
        self.standins.llm.fault("status", times=None, code=401, body=refusal)
        moment = self.now - timedelta(minutes=4)
        event = FAULTS[1].anomaly("demo-fallback", moment.isoformat()) | {"service": "gift-cards"}
        with at(moment):
            intake.accept([event | {"title": "Gift cards cannot be redeemed"}], actor=DETECTOR)
        self.delivered()
        self.standins.llm.clear_faults()

    def delivered(self) -> None:
        """Waits until the workers have nothing left to do."""
        for _ in range(PATIENCE):
            waiting = Ticket.objects.filter(due_at__isnull=False).count()
            if not waiting and not Incident.objects.filter(model_due_at__isnull=False).exists():
                return
            if ended.wait(LOOK_EVERY):
                sys.exit(0)


def _tell_login() -> None:
    password = get_random_string(12)
    user, _ = User.objects.get_or_create(username="demo", defaults={"is_staff": True, "is_superuser": True})
    user.set_password(password)
    user.save()
    print(f"The demo is ready: {settings.PUBLIC_URL}/admin/ · user demo · password {password}", flush=True)


def _go_on(dice: random.Random) -> None:
    """New anomalies every few seconds, so that the console has something to show; old incidents end by and by."""
    while not ended.wait(dice.uniform(5, 20)):
        close_old_connections()
        fault = dice.choice(FAULTS)
        events = [fault.anomaly(get_random_string(20), timezone.now().isoformat()) for _ in range(dice.randint(1, 6))]
        intake.accept(events, actor=DETECTOR)
        if Incident.objects.active().count() > 25:
            oldest = Incident.objects.filter(status=Status.ACKNOWLEDGED).order_by("created_at").first()
            if oldest:
                lifecycle.move("resolve", [oldest.pk], actor=dice.choice(PEOPLE))


if __name__ == "__main__":
    main()
