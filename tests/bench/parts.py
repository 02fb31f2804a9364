"""What is measured. Each part asks product and floor in turn, so that what the machine does meanwhile meets both."""

import html
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from tests.bench.load import Connection, Failed, Slice, paced, request, saturate
from tests.bench.report import Figure, Target, percentile
from tests.bench.rig import Rig
from tests.standins.pagerduty import ROUTING_KEY

CLIENTS = 8
FAULTS = 1000
ARRAY = 100
BACKGROUND = 200  # events a second, while pages are timed
PAUSE = 0.05  # between two samples on an idle machine
PROBES = 8  # new incidents a second, while there is load
WARM_SECONDS = 0.5
MOST_CHANGES = 10  # of a list while nothing happens: somebody looks at its tickets, or it grows a minute older

EVENT = (
    '{"eventId":"%s","service":"%s","severity":"%s","score":4.2,"timestamp":"%s","title":"High error rate on %s",'
    '"description":"Errors have risen to 12 %% of all requests within five minutes.","traceId":"4bf92f3577b34da6",'
    '"affectedServices":["%s","checkout-web"],"error_category":"timeout","error_template":"upstream <*> timed out",'
    '"causal_chain":["db-primary","%s"],"z_score":6.1,"error_rate":0.12}'
)
CONSOLE = "/admin/incidents/incident/"
# What is asked at many incidents, and how many milliseconds its p95 may take.
LISTS = {
    "api": ("GET /api/incidents?limit=50", None),
    "list": ("the console's list", 150),
    "fragment": ("the list's refresh, changed", 60),
    "unchanged": ("the list's refresh, unchanged (304)", 60),
    "page": ("an incident's page", 150),
    "overview": ("the overview, not kept, without HTTP", 300),
}
_numbers = itertools.count(1)


class Parts:
    """All parts, over one rig. `seconds`: how long each slice is; `rounds`: how many slices of each kind."""

    def __init__(self, rig: Rig, *, seconds: float, rounds: int, incidents: int) -> None:
        self.rig = rig
        self.seconds = seconds
        self.rounds = rounds
        self.incidents = incidents
        self.began = datetime.now(UTC).isoformat()
        self.faults_open = False
        self.open_ids: list[str] = []

    # -- Events

    def event(self, service: str = "hot", severity: str = "critical") -> str:
        number = f"bench-{next(_numbers)}"
        return EVENT % (number, service, severity, self.began, service, service, service)

    def one_of_many(self) -> str:
        return self.event(f"service-{next(_numbers) % FAULTS}", "low")

    def open_faults(self) -> None:
        """The incidents that events of `event` and `one_of_many` join, delivered."""
        if self.faults_open:
            return
        for start in range(0, FAULTS, ARRAY):
            events = [self.event(f"service-{n}", "low") for n in range(start, start + ARRAY)]
            self.ask(self.post(f"[{','.join(events)}]"))
        self.ask(self.post(self.event()))
        self.rig.settle()
        self.faults_open = True

    def post(self, body: str) -> bytes:
        return self.rig.request("POST", "/api/v1/anomalies", body.encode())

    def ask(self, content: bytes) -> dict:
        connection = Connection(self.rig.ports["web"])
        try:
            return json.loads(connection.ask(content).body)
        finally:
            connection.close()

    def to_floor(self, body: str) -> bytes:
        return request("POST", "/floor", body.encode())

    def to_local(self, body: str) -> bytes:
        return request("POST", "/api/v1/anomalies", body.encode())

    # -- Throughput

    def single(self) -> Iterator[Figure]:
        self.open_faults()
        makers = {
            "plain": ("plain", lambda: self.to_floor(self.event())),
            "floor": ("drf", lambda: self.to_floor(self.event())),
            "hot": ("web", lambda: self.post(self.event())),
            "many": ("web", lambda: self.post(self.one_of_many())),
            "local": ("local", lambda: self.to_local(self.event())),
        }
        rates = self.in_turn(makers)
        wanted = Target("≥ 0.6 of floor", ratio=0.6)
        floor = {"floor": rates["floor"], "floor_is": "DRF view, one INSERT"}
        yield Figure("single", "single events, one fault", "events/s", rates["hot"], target=wanted, **floor)
        yield Figure("single", "single events, 1,000 faults", "events/s", rates["many"], target=wanted, **floor)
        yield Figure("single", "single events, one fault, no key (local mode)", "events/s", rates["local"], **floor)
        yield Figure("single", "  the clients against an empty application", "requests/s", rates["plain"], **floor)

    def arrays(self) -> Iterator[Figure]:
        self.open_faults()

        def array(make: Callable[[], str]) -> str:
            return f"[{','.join(make() for _ in range(ARRAY))}]"

        makers = {
            "floor": ("drf", lambda: self.to_floor(array(self.event))),
            "hot": ("web", lambda: self.post(array(self.event))),
            "many": ("web", lambda: self.post(array(self.one_of_many))),
        }
        rates = {kind: [rate * ARRAY for rate in rates] for kind, rates in self.in_turn(makers).items()}
        wanted = Target("≥ 5,000 events/s", least=5000)
        floor = {"floor": rates["floor"], "floor_is": "DRF view, one INSERT of all"}
        yield Figure("arrays", "arrays of 100, one fault", "events/s", rates["hot"], target=wanted, **floor)
        yield Figure("arrays", "arrays of 100, 1,000 faults", "events/s", rates["many"], target=wanted, **floor)

    def in_turn(self, makers: dict[str, tuple[str, Callable[[], bytes]]]) -> dict[str, list[float]]:
        """Requests per second by kind, a value for each round."""
        slices: dict[str, list[Slice]] = {kind: [] for kind in makers}
        for seconds in [min(WARM_SECONDS, self.seconds), *[self.seconds] * self.rounds]:
            for kind, (server, make) in makers.items():
                slices[kind].append(saturate(self.rig.ports[server], make, clients=CLIENTS, seconds=seconds))
        return {kind: [one.rate for one in some[1:]] for kind, some in slices.items()}

    # -- Time to page

    def page(self) -> Iterator[Figure]:
        self.open_faults()
        idle, floor = self.pages_idle(4 * self.seconds * self.rounds / 3)
        loaded = self.pages_loaded(4 * self.seconds * self.rounds / 3)
        kinds = ((0.5, "p50", Target("≤ 30 ms", most=30)), (0.99, "p99", Target("≤ 150 ms", most=150)))
        about = {"part": "page", "unit": "ms", "floor_is": "DRF view with one INSERT, then a request by the client"}
        for share, word, wanted in kinds:
            ours, least = [percentile(idle, share)], [percentile(floor, share)]
            yield Figure(
                name=f"time to page, idle, {word}", product=ours, floor=least, target=wanted, samples=len(idle), **about
            )
        for share, word, _ in kinds:
            name = f"time to page, under {BACKGROUND} events/s, {word}"
            ours, least = [percentile(loaded, share)], [percentile(floor, share)]
            yield Figure(name=name, product=ours, floor=least, samples=len(loaded), **about)

    def pages_idle(self, seconds: float) -> list[list[float]]:
        """Milliseconds from right before the POST to the first byte at the stand-in; of the product, and of the floor,
        whose client does the worker's part itself."""
        product, drf = Connection(self.rig.ports["web"]), Connection(self.rig.ports["drf"])
        sent: dict[str, float] = {}
        of_floor: dict[str, float] = {}
        end = time.monotonic() + seconds
        while not sent or time.monotonic() < end:
            reply = product.ask(self.post(self.event(f"new-{next(_numbers)}")))
            sent[opened(reply.body)] = reply.sent_at
            time.sleep(PAUSE)
            key = f"floor-{next(_numbers)}"
            of_floor[key] = drf.ask(self.to_floor(self.event())).sent_at
            standin = Connection(self.rig.standin_port("pagerduty"))
            standin.ask(request("POST", "/v2/enqueue", alert(key)))
            standin.close()
            time.sleep(PAUSE)
        self.rig.settle()
        paged = self.paged_at()
        return [[1000 * (paged[key] - at) for key, at in some.items()] for some in (sent, of_floor)]

    def pages_loaded(self, seconds: float) -> list[float]:
        dice = random.Random(7)
        due = [(n / BACKGROUND, "load", self.post(self.one_of_many())) for n in range(int(seconds * BACKGROUND))]
        due += [
            ((n + dice.random()) / PROBES, "probe", self.post(self.event(f"new-{next(_numbers)}")))
            for n in range(max(1, int(seconds * PROBES)))
        ]
        probes = paced(self.rig.ports["web"], due)["probe"]
        self.rig.settle()
        paged = self.paged_at()
        return [1000 * (paged[opened(reply.body)] - reply.sent_at) for reply in probes]

    def paged_at(self) -> dict[str, float]:
        """When the first byte of each page was at the stand-in, by incident (or the floor's key)."""
        found: dict[str, float] = {}
        for arrival in self.rig.arrivals("pagerduty"):
            key = json.loads(arrival["body"])["dedup_key"]
            found.setdefault(key if key.startswith("floor") else key.rpartition("-")[0], arrival["at"])
        return found

    # -- At many incidents

    def seed(self) -> None:
        self.open_faults()
        if not self.open_ids:
            self.open_ids = json.loads(self.rig.python("-m", "tests.bench.data", "incidents", str(self.incidents)))

    def lists(self) -> Iterator[Figure]:
        self.seed()
        cookies = self.rig.session()
        page = f"{CONSOLE}{self.open_ids[0]}/"
        asked = {
            "floor": request("GET", "/floor"),
            "api": self.rig.request("GET", "/api/incidents?limit=50"),
            "list": request("GET", CONSOLE, Cookie=cookies),
            "fragment": request("GET", CONSOLE, Cookie=cookies, X_Fragment="rows"),
            "unchanged": b"",
            "page": request("GET", page, Cookie=cookies),
        }

        def unchanged() -> bytes:
            tag = _tag(self.connect("list").ask(asked["list"]).body)
            return request("GET", CONSOLE, Cookie=cookies, X_Fragment="rows", If_None_Match=tag)

        took: dict[str, list[list[float]]] = {kind: [] for kind in asked}
        changes = 0
        for number in range(self.rounds + 1):
            asked["unchanged"] = unchanged()
            for kind in asked:
                end = time.monotonic() + self.seconds / 2
                times = []
                while not times or time.monotonic() < end:
                    connection = self.connect(kind)
                    reply = connection.ask(asked[kind])
                    connection.close()
                    if kind == "unchanged" and reply.status != 304:
                        changes += 1
                        if changes > MOST_CHANGES:
                            raise Failed("The list goes on changing while nothing happens.")
                        asked[kind] = unchanged()
                        continue
                    times.append(1000 * reply.seconds)
                if number:  # the first round warms up
                    took[kind].append(times)
        overview = json.loads(self.rig.python("-m", "tests.bench.data", "overview", str(self.rounds)))
        took["overview"] = [overview] * self.rounds
        for kind, (name, most) in LISTS.items():
            for share, word in ((0.5, "p50"), (0.95, "p95")):
                yield Figure(
                    "lists",
                    f"{name}, {self.incidents:,} incidents, {word}",
                    "ms",
                    [percentile(times, share) for times in took[kind]],
                    [percentile(times, share) for times in took["floor"]],
                    target=Target(f"≤ {most} ms", most=most) if most and word == "p95" else None,
                    samples=len(overview) if kind == "overview" else sum(map(len, took[kind])),
                    floor_is="DRF view, one SELECT of 50 rows by their key",
                )

    def connect(self, kind: str) -> Connection:
        """For each request: the server ends it after a 304, and when nothing is asked for long."""
        return Connection(self.rig.ports["drf" if kind == "floor" else "web"])

    def acknowledge(self) -> Iterator[Figure]:
        self.seed()
        product, drf = Connection(self.rig.ports["web"]), Connection(self.rig.ports["drf"])
        took, least = [], []
        end = time.monotonic() + 2 * self.seconds
        for incident_id in self.open_ids:
            path = f"/api/incidents/{incident_id}/acknowledge"
            took.append(1000 * product.ask(self.rig.request("POST", path)).seconds)
            time.sleep(PAUSE)
            least.append(1000 * drf.ask(self.to_floor(self.event())).seconds)
            if time.monotonic() > end:
                break
        about = {"part": "acknowledge", "unit": "ms", "samples": len(took), "floor_is": "DRF view, one INSERT"}
        for share, word in ((0.5, "p50"), (0.95, "p95")):
            ours, floor = [percentile(took, share)], [percentile(least, share)]
            yield Figure(name=f"acknowledge, {self.incidents:,} incidents, {word}", product=ours, floor=floor, **about)

    # -- Memory

    def memory(self) -> Iterator[Figure]:
        floor = self.rig.memory("drf")
        for name in ("web", "worker", "beat", "broker"):
            if (used := self.rig.memory(name)) is not None:
                beside = [floor] if name == "web" and floor else []
                yield Figure("memory", f"memory of {name}", "MiB", [used], beside, floor_is="the floor's web server")


def _tag(body: bytes) -> str:
    return html.unescape(re.search(rb'data-etag="([^"]+)"', body)[1].decode())


def opened(body: bytes) -> str:
    [incident_id] = json.loads(body)["incidents"]
    return incident_id


def alert(key: str) -> bytes:
    """What the product would send, as far as it must be there."""
    payload = {"summary": "High error rate", "source": "hot", "severity": "critical"}
    event = {"routing_key": ROUTING_KEY, "event_action": "trigger", "dedup_key": key, "payload": payload}
    return json.dumps(event).encode()
