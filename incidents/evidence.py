"""What an anomaly carries for the analysis of its root cause: read from what a producer sent, stored, and read back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_TEXT = 2_000  # one log line, message or template
MAX_NAME = 200  # a service, span, endpoint, environment, trace
MAX_LOG_LINES = 20
MAX_WEIGHTS = 50
MAX_CHAIN = 50

# What each thing is called: the API's names, then the producers'. The first one present and not null wins.
ANOMALY_TYPE = ("anomalyType", "anomaly_type")
MESSAGE = ("message",)
CATEGORY = ("errorCategory", "error_category")
TEMPLATE = ("errorTemplate", "error_template", "errorMessage", "error_message")
RAW_ERROR = ("rawErrorMessage", "raw_error_message")
ENDPOINT = ("affectedEndpoint", "affected_endpoint")
DETECTION_MODE = ("detectionMode", "detection_mode")
Z_SCORE = ("zScore", "z_score")
ERROR_RATE = ("errorRate", "error_rate")
WINDOW_BUCKETS = ("windowBuckets", "window_buckets")
CAUSAL_CHAIN = ("causalChain", "causal_chain")
REQUEST_FLOW = ("requestFlow", "request_flow")
SPAN_IDS = ("spanIds", "span_ids")
ROOT_SERVICE = ("rootCauseService", "root_cause_service")
ROOT_SPAN = ("rootCauseSpanId", "root_cause_span_id")
BLAST_RADIUS = ("blastRadius", "blast_radius")
IMPACT_SCORE = ("impactScore", "impact_score")
DOWNSTREAM = ("affectedDownstream", "affected_downstream")
USER_IMPACT = ("estimatedUserImpact", "estimated_user_impact")
WEIGHTS = ("signalWeights", "signal_weights")
LOGS = ("evidenceLogs", "evidence_logs")
REQUEST_TRACE = ("requestTrace", "request_trace")
LOG_TIME = ("@timestamp", "timestamp")

_LOUD = frozenset({"ERROR", "ERR", "FATAL", "CRITICAL", "CRIT", "ALERT", "EMERG", "EMERGENCY", "PANIC", "SEVERE"})


@dataclass(frozen=True, slots=True)
class LogLine:
    message: str
    at: str = ""  # as the producer wrote it: shown, never computed with
    service: str = ""
    level: str = ""

    @property
    def loud(self) -> bool:
        """Whether its level says that something went wrong."""
        return self.level.upper() in _LOUD


@dataclass(frozen=True, slots=True)
class Impact:
    score: float | None = None
    downstream: tuple[str, ...] = ()
    users: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What root cause analysis has to work with. All of it optional, all of it bounded, none of it trusted."""

    anomaly_type: str = ""
    message: str = ""
    category: str = ""
    template: str = ""
    raw_error: str = ""
    endpoint: str = ""
    detection_mode: str = ""
    z_score: float | None = None
    error_rate: float | None = None
    window_buckets: int | None = None
    causal_chain: tuple[str, ...] = ()  # root first
    request_flow: tuple[str, ...] = ()
    span_ids: tuple[str, ...] = ()
    root_cause_service: str = ""
    root_cause_span_id: str = ""
    impact: Impact | None = None
    signal_weights: dict[str, float] = field(default_factory=dict)
    log_lines: tuple[LogLine, ...] = ()

    def as_json(self) -> dict:
        """What is known, under the producers' names: what `from_json` reads back to an equal evidence."""
        known = {
            "anomaly_type": self.anomaly_type,
            "message": self.message,
            "error_category": self.category,
            "error_template": self.template,
            "raw_error_message": self.raw_error,
            "affected_endpoint": self.endpoint,
            "detection_mode": self.detection_mode,
            "z_score": self.z_score,
            "error_rate": self.error_rate,
            "window_buckets": self.window_buckets,
            "causal_chain": list(self.causal_chain),
            "request_flow": list(self.request_flow),
            "span_ids": list(self.span_ids),
            "root_cause_service": self.root_cause_service,
            "root_cause_span_id": self.root_cause_span_id,
            "blast_radius": _impact_as_json(self.impact),
            "signal_weights": dict(self.signal_weights),
            "evidence_logs": [_line_as_json(line) for line in self.log_lines],
        }
        return {name: value for name, value in known.items() if value not in ("", None, [], {})}

    @classmethod
    def from_json(cls, sent: Mapping) -> "Evidence":
        """What a producer sent, or what `as_json` stored, in this version or another: whatever can be used is used, the
        rest is passed over. `sent` holds only what a database can store.
        """
        return cls(
            anomaly_type=text_of(sent, ANOMALY_TYPE, MAX_NAME).strip(),
            message=text_of(sent, MESSAGE, MAX_TEXT),
            category=text_of(sent, CATEGORY, MAX_NAME).strip(),
            template=text_of(sent, TEMPLATE, MAX_TEXT),
            raw_error=text_of(sent, RAW_ERROR, MAX_TEXT),
            endpoint=text_of(sent, ENDPOINT, MAX_NAME),
            detection_mode=text_of(sent, DETECTION_MODE, MAX_NAME),
            z_score=_number(first_of(sent, Z_SCORE)),
            error_rate=_number(first_of(sent, ERROR_RATE)),
            window_buckets=_count(first_of(sent, WINDOW_BUCKETS)),
            causal_chain=distinct(first_of(sent, CAUSAL_CHAIN), MAX_CHAIN),
            request_flow=distinct(first_of(sent, REQUEST_FLOW), MAX_CHAIN),
            span_ids=distinct(first_of(sent, SPAN_IDS), MAX_CHAIN),
            root_cause_service=text_of(sent, ROOT_SERVICE, MAX_NAME).strip(),
            root_cause_span_id=text_of(sent, ROOT_SPAN, MAX_NAME).strip(),
            impact=_impact(first_of(sent, BLAST_RADIUS)),
            signal_weights=_weights(first_of(sent, WEIGHTS)),
            log_lines=_log_lines(sent),
        )


def text_of(sent: Mapping, names: tuple[str, ...], limit: int) -> str:
    """The text of that name, cut; empty where there is none."""
    value = first_of(sent, names)
    return value[:limit] if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)  # what a database can store are 64-bit integers and finite floats


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def distinct(value: object, limit: int) -> tuple[str, ...]:
    """Names in order of first appearance, trimmed and cut; what is not a name is left out."""
    if not isinstance(value, list):
        return ()
    if len(value) == 1 and isinstance(value[0], str):  # by far the most frequent case
        name = value[0].strip()[:MAX_NAME].rstrip()
        return (name,) if name else ()
    seen: dict[str, None] = {}
    for one in value:
        name = one.strip()[:MAX_NAME].rstrip() if isinstance(one, str) else ""
        if name:
            seen[name] = None
            if len(seen) == limit:
                break
    return tuple(seen)


def _impact(value: object) -> Impact | None:
    if not isinstance(value, dict):
        return None
    impact = Impact(
        score=_number(first_of(value, IMPACT_SCORE)),
        downstream=distinct(first_of(value, DOWNSTREAM), MAX_CHAIN),
        users=text_of(value, USER_IMPACT, MAX_NAME).strip(),
    )
    return impact if impact != Impact() else None


def _impact_as_json(impact: Impact | None) -> dict | None:
    if impact is None:
        return None
    known = {
        "impact_score": impact.score,
        "affected_downstream": list(impact.downstream),
        "estimated_user_impact": impact.users,
    }
    return {name: value for name, value in known.items() if value not in ("", None, [])}


def _weights(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    weights: dict[str, float] = {}
    for name, weight in value.items():
        number = _number(weight)
        if number is not None and name:
            weights[name[:MAX_NAME]] = number
            if len(weights) == MAX_WEIGHTS:
                break
    return weights


def _log_lines(sent: Mapping) -> tuple[LogLine, ...]:
    lines = [line for names in (LOGS, REQUEST_TRACE) for line in _lines(first_of(sent, names))]
    if len(lines) <= MAX_LOG_LINES:
        return tuple(lines)
    # A long trace is mostly routine: the lines that cry come first, and what is kept stays in its order.
    by_loudness = sorted(range(len(lines)), key=lambda position: not lines[position].loud)
    return tuple(lines[position] for position in sorted(by_loudness[:MAX_LOG_LINES]))


def _lines(value: object) -> Iterable[LogLine]:
    for one in value if isinstance(value, list) else ():
        if isinstance(one, str):
            one = {"message": one}
        message = text_of(one, MESSAGE, MAX_TEXT) if isinstance(one, dict) else ""
        if message.strip():
            yield LogLine(
                message=message,
                at=text_of(one, LOG_TIME, MAX_NAME),
                service=text_of(one, ("service",), MAX_NAME),
                level=text_of(one, ("level",), MAX_NAME),
            )


def _line_as_json(line: LogLine) -> dict:
    known = {"@timestamp": line.at, "service": line.service, "level": line.level, "message": line.message}
    return {name: value for name, value in known.items() if value}


def first_of(item: Mapping, names: tuple[str, ...]) -> object:
    """The value of the first name that is present and not null."""
    for name in names:
        value = item.get(name)
        if value is not None:
            return value
    return None
