"""What may go wrong between us and a platform, on demand: one `Fault` says what, how often and where."""

import functools
import json
import re
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from tests.standins.wire import Answer, Wire

MEGABYTE = 1024 * 1024
HTML = "<!DOCTYPE html><html><head><title>Your instance is hibernating</title></head><body>Please wait.</body></html>"

# kind: the options it takes, with their defaults
KINDS: dict[str, dict[str, object]] = {
    "status": {"code": 500, "body": None, "headers": {}},  # body None: the vendor's own; header None: left out
    "hang": {},
    "lost": {"rst": False},
    "late": {"seconds": 1.0},  # or earlier, once the fault's `over` is set
    "drip": {"seconds": 1.0},
    "reset": {"when": "before"},  # before or after the body is read, nothing done; mid: in the middle of the answer
    "html": {"code": 200},
    "empty": {"code": 200},
    "huge": {"megabytes": 100},
    "gzipbomb": {"megabytes": 100},
    "redirect": {"location": None, "code": 307},  # without a location: to itself
    "malformed": {"what": "json"},  # json, length (shorter than announced), chunk, head
}
WORKS = {"lost", "late", "drip"}  # these do the work unless told otherwise; the others only with work=True


@dataclass
class Fault:
    kind: str
    times: int | None = 1  # None: until cleared
    path: str | None = None  # a regular expression searched in the path
    method: str | None = None
    skip: int = 0  # let so many fitting requests through first
    work: bool = False
    options: dict[str, object] = field(default_factory=dict)
    used: int = 0

    def __post_init__(self) -> None:
        self.over = threading.Event()

    @classmethod
    def make(cls, kind: str, *, times=1, path=None, method=None, skip=0, work=None, **options: object) -> "Fault":
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}: one of {', '.join(KINDS)}")
        if unknown := set(options) - set(KINDS[kind]):
            raise ValueError(f"{kind} does not take {', '.join(sorted(unknown))}")
        work = kind in WORKS if work is None else work
        return cls(kind, times, path, method, skip, work, {**KINDS[kind], **options})

    def fits(self, method: str, path: str) -> bool:
        return (self.method is None or self.method.upper() == method) and (
            self.path is None or re.search(self.path, path) is not None
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Faults:
    """The faults that wait for a request, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def as_json(self) -> list[dict[str, object]]:
        with self._lock:
            return [fault.as_json() for fault in self._waiting]

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, used up once."""
        with self._lock:
            for fault in self._waiting:
                if not fault.fits(method, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.used += 1
                if fault.times is not None and fault.used >= fault.times:
                    self._waiting.remove(fault)
                return fault
        return None


def play(fault: Fault, wire: Wire, target: str, work: Callable[[], Answer], refusal: Callable[[int], Answer]) -> None:
    """Serve one request, badly. `work` carries the request out; `refusal` is the vendor's own body for a status."""
    answer = work() if fault.work else None
    options = fault.options
    match fault.kind:
        case "status":
            wire.send(_status(options, refusal).encode())
        case "hang":
            wire.wait_for_the_client_to_leave()
        case "lost":
            wire.reset() if options["rst"] else wire.close()
        case "late":
            until = time.monotonic() + float(options["seconds"])
            while time.monotonic() < until and not wire.stopping.is_set():
                if fault.over.wait(min(0.05, float(options["seconds"]))):
                    break
            wire.send((answer or work()).encode())
        case "drip":
            wire.drip((answer or refusal(500)).encode(), float(options["seconds"]))
        case "reset":
            if options["when"] == "mid":
                data = (answer or refusal(500)).encode()
                wire.send(data[: len(data) - 3])
            wire.reset()
        case "html":
            wire.send(Answer(int(options["code"]), HTML.encode(), {"Content-Type": "text/html"}).encode())
        case "empty":
            wire.send(Answer(int(options["code"]), b"").encode())
        case "huge":
            _huge(wire, int(options["megabytes"]))
        case "gzipbomb":
            body = _bomb(int(options["megabytes"]))
            wire.send(Answer(200, body, {"Content-Type": "application/json", "Content-Encoding": "gzip"}).encode())
        case "redirect":
            wire.send(Answer(int(options["code"]), b"", {"Location": str(options["location"] or target)}).encode())
        case "malformed":
            _malformed(wire, str(options["what"]))


def _status(options: dict[str, object], refusal: Callable[[int], Answer]) -> Answer:
    answer = refusal(int(options["code"]))
    body = answer.body if options["body"] is None else options["body"]
    if isinstance(options["body"], dict | list):
        body = json.dumps(options["body"]).encode()
    headers = {**answer.headers, **dict(options["headers"])}
    return Answer(int(options["code"]), body, {name: value for name, value in headers.items() if value is not None})


def _huge(wire: Wire, megabytes: int) -> None:
    start = b'{"status":"success","padding":"'
    head = Answer(200, b"", {"Content-Type": "application/json", "Content-Length": str(megabytes * MEGABYTE)})
    wire.send(head.encode(head_only=True) + start)
    left, block = megabytes * MEGABYTE - len(start), b"x" * 65536
    while left > 0 and wire.open and not wire.stopping.is_set():
        wire.send(block[:left])
        left -= len(block)


@functools.lru_cache(maxsize=4)
def _bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * MEGABYTE
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def _malformed(wire: Wire, what: str) -> None:
    match what:
        case "length":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}")
        case "chunk":
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}")
        case "head":
            wire.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        case _:
            wire.send(Answer(200, b'{"status": "succ', {"Content-Type": "application/json"}).encode())
            return
    wire.close()
