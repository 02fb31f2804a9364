"""How many requests a second one caller may make: a bucket of tokens each, in this process's memory.

Asked before anything else looks at a request, so that a flood costs a refusal each and no query. A caller is who the
application found behind a credential; until it has found somebody, the requests are the peer's, so that made-up
credentials come out of one bucket.
"""

import logging
import math
import threading
import time

log = logging.getLogger(__name__)

BURST_SECONDS = 2
MOST_KEPT = 10_000
TOLD_EVERY = 10.0  # seconds between two lines in the log on the same caller
# Where the application notes in a request's environment who calls.
CALLER = "ticketing.caller"
UNLIMITED = ("/health", "/ready", "/api/ticketing/health", "/api/ticketing/ready")


class Bucket:
    """`tokens` are what is left of a burst. `refused`: how many since the log was told."""

    __slots__ = ("tokens", "filled_at", "refused", "told_at")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.filled_at = now
        self.refused = 0
        self.told_at = -math.inf


class Limits:
    """At most `rate` requests a second of each caller, and a burst of two seconds' worth. 0: no limit."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.burst = rate * BURST_SECONDS
        self._lock = threading.Lock()
        self._buckets: dict[str, Bucket] = {}
        self._callers: dict[int, str] = {}  # by the hash of their credential as it was sent

    def wait(self, environ: dict) -> int:
        """0 where the request may pass, else after how many seconds to come again."""
        if not self.rate or environ.get("PATH_INFO") in UNLIMITED:
            return 0
        caller = self._callers.get(_credential(environ)) or f"peer:{environ.get('REMOTE_ADDR', '')}"
        now = time.monotonic()
        with self._lock:
            bucket = self._buckets.get(caller)
            if bucket is None:
                self._make_room(now)
                bucket = self._buckets[caller] = Bucket(self.burst, now)
            bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.filled_at) * self.rate)
            bucket.filled_at = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return 0
            bucket.refused += 1
            if now - bucket.told_at < TOLD_EVERY:
                return 1
            refused, bucket.refused, bucket.told_at = bucket.refused, 0, now
        log.warning("%s sends more than %d requests a second: %d refused.", caller, self.rate, refused)
        return 1

    def note(self, environ: dict) -> None:
        """After the answer: whose credential it was, if it was somebody's."""
        caller = environ.get(CALLER)
        if not self.rate or not caller:
            return
        credential = _credential(environ)
        if self._callers.get(credential) != caller:
            if len(self._callers) >= MOST_KEPT:
                self._callers.clear()
            self._callers[credential] = caller

    def _make_room(self, now: float) -> None:
        """Where there are too many, forgets those who have been silent long enough for a whole burst, or else all."""
        if len(self._buckets) < MOST_KEPT:
            return
        self._buckets = {name: one for name, one in self._buckets.items() if now - one.filled_at < BURST_SECONDS}
        if len(self._buckets) >= MOST_KEPT:
            self._buckets = {}


def _credential(environ: dict) -> int:
    return hash((environ.get("HTTP_AUTHORIZATION", ""), environ.get("HTTP_COOKIE", "")))
