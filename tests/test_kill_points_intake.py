"""A web process that dies at any of its system calls while it takes in a batch: whoever repeats it loses and doubles
nothing.

strace kills it there, in the thread that handles the request and in the one that reads and writes for all.
"""

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from auditlog.models import Entry
from config import keys
from incidents import lifecycle
from incidents.models import Anomaly, Incident, SeenEvent, Ticket
from tests import forks
from tests.deliveries import database_url
from ticketing import web

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not forks.strace_works(), reason="needs strace, and the right to trace a process"),
]
BATCH = 100
SEVERITIES = ("critical", "high", "medium", "low")
AT_ONCE = 5


@pytest.fixture(scope="module")
def listener():
    with web.listen("127.0.0.1", 0) as listener:
        yield listener


@pytest.fixture(scope="module")
def forked(listener, django_db_setup, django_db_blocker) -> Iterator[forks.Forks]:
    with django_db_blocker.unblock():
        process = forks.Forks(database_url(), keep=(listener.fileno(),))
    yield process
    process.stop()


@dataclass
class Books:
    """What is kept of one batch, without what differs between two that bring the same."""

    incidents: dict[tuple[str, str], tuple[int, str]]  # by fault: how many anomalies, and the status
    audit: Counter
    tickets: Counter
    events: tuple[int, int]  # rows, and ids that are remembered

    @classmethod
    def of(cls, name: str) -> "Books":
        incidents = {i.pk: i for i in Incident.objects.filter(service__startswith=f"{name}-")}
        faults = {pk: (i.service.removeprefix(f"{name}-"), i.severity) for pk, i in incidents.items()}
        entries = Entry.objects.filter(subject__in=[i.subject for i in incidents.values()])
        tickets = Ticket.objects.filter(incident__in=incidents).values_list("incident_id", "platform", "wanted_version")
        anomalies = Anomaly.objects.filter(service__startswith=f"{name}-", incident__in=incidents)
        return cls(
            {faults[pk]: (i.anomaly_count, i.status) for pk, i in incidents.items()},
            Counter((faults[e.subject.partition(":")[2]], e.action) for e in entries),
            Counter((faults[pk], platform, version) for pk, platform, version in tickets),
            (anomalies.count(), SeenEvent.objects.filter(event_id__startswith=f"{name}-").count()),
        )


class Producer:
    """Sends batches of names of their own to a web process that may die, and repeats what was not taken."""

    def __init__(self, port: int, send) -> None:
        self.port, self.send = port, send
        self.number = 0
        _, self.key = keys.create(name="producer", role="producer", actor="system")

    def begin(self) -> str:
        """The name of the next batch. One of its faults was there before and is resolved: it will be reopened."""
        self.number += 1
        name = f"batch{self.number}"
        [before] = self.send({"service": f"{name}-0", "severity": "critical", "eventId": f"{name}-before"})["incidents"]
        lifecycle.move("resolve", [before], actor="user:anna")
        return name

    def batch(self, name: str) -> list[dict]:
        """The last of its events are the first ones once more."""
        numbers = [*range(BATCH - AT_ONCE), *range(AT_ONCE)]
        return [
            {"service": f"{name}-{n % 7}", "severity": SEVERITIES[n % 4], "score": 1 + n, "eventId": f"{name}-{n}"}
            for n in numbers
        ]

    def post(self, name: str) -> int | None:
        """The status, or None where nothing came back."""
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        try:
            wire.request("POST", "/api/v1/anomalies", json.dumps(self.batch(name)), headers)
            return wire.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            wire.close()


@pytest.mark.fault("B2")
@pytest.mark.parametrize("thread", ["handler", "loop"])
def test_a_batch_whose_web_process_dies_is_counted_once(connect, api, send, listener, forked, faults, thread):
    connect("pagerduty", "slack")
    fd = listener.fileno()
    producer = Producer(listener.getsockname()[1], send)
    name = producer.begin()
    with forked.serve(fd, thread) as end:
        assert producer.post(name) == 200
        points = end().points()
    clean = Books.of(name)
    assert sum(count for count, _ in clean.incidents.values()) == BATCH - AT_ONCE + 1
    assert {action for _, action in clean.audit} == {"created", "resolved", "reopened"}
    tried = died = lost = doubled = 0
    wrong = []
    for _ in faults.seeds():
        for point in faults.sample(points, 2):
            name = producer.begin()
            with forked.serve(fd, thread, point) as end:
                status = producer.post(name)
                killed = end().killed
            outcomes = Counter(result["outcome"] for result in send(*producer.batch(name))["results"])
            books = Books.of(name)
            tried, died = tried + 1, died + killed
            assert status in (200, None)
            if status == 200 and outcomes != {"redelivered": BATCH}:
                lost += 1
                wrong.append((point, "was told that it is taken", outcomes))
            if books != clean:
                more = books.events > clean.events or books.tickets > clean.tickets
                lost, doubled = lost + (not more), doubled + more
                wrong.append((point, books))
            if len(outcomes) > 1 and outcomes["redelivered"] != AT_ONCE:
                lost += 1
                wrong.append((point, "half of it had been taken", outcomes))
    assert not wrong, wrong[:3]
    faults.verdict(tried=tried, lost=lost, doubled=doubled, died=died)
