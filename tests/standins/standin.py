"""What all stand-ins share: a listener, routes, faults, a rate limit, the ledger, and state to be read over HTTP."""

import json
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.standins.faults import Fault, Faults, play
from tests.standins.wire import Answer, Listener, Request, Wire, split_target


class Refused(Exception):
    """The vendor says no; unwinds to the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer.status))
        self.answer = answer


@dataclass(frozen=True)
class Seen:
    """One request that reached the stand-in. Status None: a fault kept it from an ordinary answer."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    status: int | None
    at: float = 0.0  # when its first byte was here


class Ledger:
    """The accepted effects of all stand-ins in one file: a line each, there before the client hears of it."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, entry: dict[str, object]) -> None:
        if self._file is None:
            return
        with self._lock:
            os.write(self._file, json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None


class Standin:
    """One vendor. Subclasses give `routes`, the handlers they name, `refusal`, `throttled`, `forget` and `state`."""

    name = ""
    routes: tuple[tuple[str, str, str], ...] = ()  # method, regular expression of the whole path, name of the handler
    options: tuple[str, ...] = ("lag", "rate_limit")  # attributes that POST /_options may set

    def __init__(self, ledger: Ledger, host: str = "127.0.0.1", port: int = 0) -> None:
        self.lock = threading.RLock()
        self.lag = 0.0  # seconds: what it means differs by vendor
        self.rate_limit: float | tuple[int, float] | None = None  # requests per second, or (requests, seconds)
        self.effects: list[dict[str, object]] = []
        self.counts: Counter[str] = Counter()  # of the effects, by kind
        self.rendered: list[dict[str, str]] = []  # what people would see as a mention, link or markup
        self.seen: deque[Seen] = deque(maxlen=5000)  # the latest
        self.served = 0  # requests that got an ordinary answer or met a fault
        self.faults = Faults()
        self._recent: deque[float] = deque()
        self._ledger = ledger
        self._routes = [(method, re.compile(path), handler) for method, path, handler in self.routes]
        self.listener = Listener(self._serve, host, port)
        self.forget()

    # -- for tests

    @property
    def url(self) -> str:
        return f"http://{self.listener.host}:{self.listener.port}"

    def fault(self, kind: str, times: int | None = 1, path: str | None = None, method: str | None = None, **options):
        """Let the next `times` requests that fit meet this fault (None: all, until cleared). Returns the Fault."""
        return self.faults.add(Fault.make(kind, times=times, path=path, method=method, **options))

    def clear_faults(self) -> None:
        self.faults.clear()

    def down(self) -> None:
        """Connections are refused from now on."""
        self.listener.stop()

    def up(self) -> None:
        """Listen (again), on the same port."""
        self.listener.start()

    def settle(self) -> None:
        """Until no request from before is at work any more, not even one that its sender has given up: who stays
        connected is cut off, and what had begun is carried out."""
        soon = time.monotonic() + 0.05
        while self.listener.busy and time.monotonic() < soon:
            time.sleep(0.001)
        if self.listener.busy:
            self.down()
            deadline = time.monotonic() + 60
            while self.listener.connected and time.monotonic() < deadline:
                time.sleep(0.005)
            self.up()

    def reset(self) -> None:
        """Forget everything but the options and the ledger file."""
        with self.lock:
            self.faults.clear()
            self.effects.clear()
            self.counts.clear()
            self.rendered.clear()
            self.seen.clear()
            self.served = 0
            self._recent.clear()
            self.forget()

    def shown(self, kind: str) -> list[dict[str, str]]:
        """What was rendered of one kind: mention, link, autolink, html, markup."""
        with self.lock:
            return [mark for mark in self.rendered if mark["kind"] == kind]

    # -- for subclasses

    def settings(self) -> dict[str, str]:
        """The platform's settings, by their API names, that this stand-in accepts."""
        raise LookupError(self.name)

    def forget(self) -> None:
        """Empty the vendor's state."""

    def state(self) -> dict[str, object]:
        """The vendor's state as JSON."""
        return {}

    def refusal(self, code: int, message: str = "") -> Answer:
        """The vendor's error body for a status."""
        return Answer(code, message or "error")

    def throttled(self, wait: int) -> Answer:
        """The vendor's 429."""
        return Answer(429, "rate limited", {"Retry-After": str(wait)})

    def effect(self, what: str, **about: object) -> None:
        """Put an accepted effect on record; call it before answering, holding the lock."""
        entry = {"at": time.time(), "platform": self.name, "effect": what, **about}
        self._ledger.write(entry)
        self.effects.append(entry)
        self.counts[what] += 1

    def render(self, kind: str, where: str, text: str) -> None:
        self.rendered.append({"kind": kind, "where": where, "text": text})

    def admit(self, request: Request) -> None:
        """Raise Refused where no handler may be reached (authentication)."""

    # -- serving

    def answer(self, request: Request) -> Answer:
        """What the vendor answers, with the work done."""
        with self.lock:
            try:
                wait = self._wait()
                if wait is not None:
                    return self.throttled(wait)
                self.admit(request)
                return self._route(request)
            except Refused as refused:
                return refused.answer

    def _route(self, request: Request) -> Answer:
        known = False
        for method, path, handler in self._routes:
            match = path.fullmatch(request.path)
            if match and method == request.method:
                return getattr(self, handler)(request, **match.groupdict())
            known = known or match is not None
        return self.refusal(405 if known else 404)

    def _wait(self) -> int | None:
        """None where the rate limit leaves room; else whole seconds to wait."""
        if not self.rate_limit:
            return None
        allowed, span = self.rate_limit if isinstance(self.rate_limit, tuple | list) else (self.rate_limit, 1.0)
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - span:
            self._recent.popleft()
        if len(self._recent) >= allowed:
            return max(1, round(self._recent[0] + span - now + 0.5)) if self._recent else max(1, round(span))
        self._recent.append(now)
        return None

    def _serve(
        self, wire: Wire, method: str, target: str, headers: Mapping[str, str], body: Callable[[], bytes | None]
    ) -> None:
        path, query = split_target(target)
        control = path.startswith("/_")
        fault = None if control else self.faults.take(method, path)
        if fault is not None and fault.kind == "reset" and fault.options["when"] == "before":
            self._saw(Seen(method, path, query, headers, b"", None))
            wire.reset()
            return
        data = body()
        if data is None:
            wire.close()
            return
        request = Request(method, path, query, headers, data)
        if control:
            wire.send(self._control(request).encode())
        elif fault is not None:
            self._saw(Seen(method, path, query, headers, data, None))
            play(fault, wire, target, lambda: self.answer(request), self.refusal)
        else:
            answer = self.answer(request)
            self._saw(Seen(method, path, query, headers, data, answer.status, wire.first_byte_at))
            wire.send(answer.encode(head_only=method == "HEAD"))

    def _saw(self, seen: Seen) -> None:
        with self.lock:
            self.seen.append(seen)
            self.served += 1

    def _control(self, request: Request) -> Answer:
        try:
            match request.method, request.path:
                case "GET", "/_state":
                    return Answer(200, self._whole_state())
                case "GET", "/_counts":
                    with self.lock:
                        return Answer(200, {"requests": self.served, **self.counts})
                case "GET", "/_arrivals":
                    return Answer(200, self._arrivals())
                case "GET", "/_faults":
                    return Answer(200, self.faults.as_json())
                case "POST", "/_faults":
                    given = request.json()
                    for fault in [Fault.make(**one) for one in (given if isinstance(given, list) else [given])]:
                        self.faults.add(fault)
                    return Answer(200, self.faults.as_json())
                case "DELETE", "/_faults":
                    self.clear_faults()
                    return Answer(200, [])
                case "POST", "/_options":
                    return self._set_options(request.json())
                case "POST", "/_reset":
                    self.reset()
                    return Answer(200, {"status": "ok"})
        except (ValueError, TypeError) as error:
            return Answer(400, {"error": str(error)})
        return Answer(
            404,
            {
                "error": "GET /_state, GET /_counts, GET /_arrivals, GET|POST|DELETE /_faults, POST /_options, "
                "POST /_reset"
            },
        )

    def _arrivals(self) -> list[dict[str, object]]:
        with self.lock:
            latest = list(self.seen)
        return [{"at": seen.at, "status": seen.status, "body": seen.body.decode(errors="replace")} for seen in latest]

    def _set_options(self, given: dict[str, object]) -> Answer:
        if unknown := set(given) - set(self.options):
            raise ValueError(f"options are {', '.join(self.options)}, not {', '.join(sorted(unknown))}")
        with self.lock:
            for name, value in given.items():
                setattr(self, name, value)
        return Answer(200, self._options())

    def _whole_state(self) -> dict[str, object]:
        with self.lock:
            return {
                "platform": self.name,
                **self.state(),
                "effects": list(self.effects),
                "rendered": list(self.rendered),
                "faults": self.faults.as_json(),
                "requests": self.served,
                "connections": {"accepted": self.listener.accepted, "open": self.listener.connected},
                "options": self._options(),
            }

    def _options(self) -> dict[str, object]:
        values = {name: getattr(self, name) for name in self.options}
        return {name: repr(value) if callable(value) else value for name, value in values.items()}
