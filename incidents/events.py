"""What a producer sent, turned into one typed event, or the reason why not.

Pure: no database, no clock, no network. Identity (service, severity, score, time, event id) is strict, because the
wrong incident is worse than a refusal that names its reason. Texts and evidence are never refused for their content:
what cannot be stored is replaced, what is too long is cut, so that a strange log line never costs anybody a page.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import orjson

from incidents.evidence import MAX_NAME, MAX_TEXT, Evidence, distinct, text_of

SEVERITIES = ("critical", "high", "medium", "low")
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
AHEAD = timedelta(days=1)  # how far a producer's clock may run before ours

MAX_SERVICE = 200
MAX_EVENT_ID = 200
MAX_TITLE = 500
MAX_DESCRIPTION = 20_000
MAX_AFFECTED = 200
MAX_DEPTH = 64
MAX_PAYLOAD = 64 * 1024  # bytes of JSON

# What each thing is called: the API's names, then the producers'. The first one present and not null wins.
EVENT_ID = ("eventId", "event_id")
SERVICE = ("service",)
SEVERITY = ("severity",)
SCORE = ("score", "anomalyScore", "anomaly_score")
TIME = ("detectedAt", "detected_at", "@timestamp", "timestamp")
TITLE = ("title",)
DESCRIPTION = ("description",)
TRACE_ID = ("traceId", "trace_id")
AFFECTED = ("affectedServices", "affected_services")
ENVIRONMENT = ("environment",)
TENANT_ID = ("tenantId", "tenant_id")

# Control characters, line separators, overrides of the writing direction, lone surrogates: a name that holds one reads
# as another name on a screen, breaks a log line in two, or cannot be stored at all.
_UNFIT_FOR_A_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# The two things that JSON can say and neither database can store.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_WRITTEN_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?"
    r"(?:[Zz]|([+-])([0-9]{2}):?([0-9]{2}))?"
)
# Blanks, controls and what only directs or joins other characters; and letters that are drawn as nothing.
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe0e\ufe0f\uffa0")
_TIME_ADVICE = "write it like 2024-03-01T15:30:00Z"


class Rejected(Exception):
    """An item that cannot become an event. The message names the field and what to do, for the producer's author."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Event:
    event_id: str | None
    service: str
    severity: str
    score: float
    at: datetime  # UTC
    title: str
    description: str
    trace_id: str
    affected_services: tuple[str, ...]  # as sent, in order of first appearance: empty where none were
    environment: str
    tenant_id: str
    evidence: Evidence
    payload: dict  # the item as it may be stored, 64 KiB of JSON at most


def read(item: object, *, now: datetime, fallback_id: str | None = None) -> Event:
    """One item of an intake, from HTTP or Kafka, as an event. Raises Rejected.

    now           the moment of arrival, aware: the event time of an item that names none, and what "ahead" means
    fallback_id   the event id of an item that has none
    """
    if not isinstance(item, dict):
        raise Rejected("must be a JSON object with at least service, severity and score")
    service = _service(item)
    severity = _severity(item)
    score = _score(item)
    at = _time(item, now)
    event_id = _event_id(item) or fallback_id
    safe, size = _storable(item)
    evidence = Evidence.from_json(safe)
    event = Event(
        event_id=event_id,
        service=service,
        severity=severity,
        score=score,
        at=at,
        title=_title(safe, evidence, service),
        description=_told(safe, DESCRIPTION, MAX_DESCRIPTION),
        trace_id=_told(safe, TRACE_ID, MAX_NAME),
        affected_services=_affected(safe),
        environment=text_of(safe, ENVIRONMENT, MAX_NAME),
        tenant_id=text_of(safe, TENANT_ID, MAX_NAME),
        evidence=evidence,
        payload=safe,
    )
    return event if size <= MAX_PAYLOAD else _without_bulk(event, size)


# What says which incident it is: strict.


def _service(item: dict) -> str:
    name, value = _named(item, SERVICE)
    if value is None:
        raise Rejected("service is missing: name the service that broke")
    if not isinstance(value, str):
        raise Rejected("service must be a text")
    service = value.strip()
    if not service:
        raise Rejected("service is empty: name the service that broke")
    if len(service) > MAX_SERVICE:
        raise Rejected(f"service is {len(service)} characters long: {MAX_SERVICE} at most")
    _refuse_unfit(name, service)
    return service


def _severity(item: dict) -> str:
    _, value = _named(item, SEVERITY)
    if value is None:
        raise Rejected("severity is missing: it must be critical, high, medium or low")
    severity = value.strip().lower() if isinstance(value, str) else ""
    if severity not in SEVERITIES:
        raise Rejected("severity must be critical, high, medium or low")
    return severity


def _score(item: dict) -> float:
    name, value = _named(item, SCORE)
    if value is None:
        raise Rejected("score is missing: it must be a number of zero or more (score, anomalyScore or anomaly_score)")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Rejected(f"{name} must be a number, not a text or anything else")
    try:
        score = float(value)
    except OverflowError:  # an integer of more than 308 digits
        score = math.inf
    if not math.isfinite(score):
        raise Rejected(f"{name} must be a finite number")
    if score < 0:
        raise Rejected(f"{name} must be zero or more")
    return score + 0.0  # -0.0 becomes 0.0


def _event_id(item: dict) -> str | None:
    name, value = _named(item, EVENT_ID)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Rejected(f"{name} must be a text")
    if not 1 <= len(value) <= MAX_EVENT_ID:
        raise Rejected(f"{name} must have 1 to {MAX_EVENT_ID} characters: leave it out where there is none")
    _refuse_unfit(name, value)
    return value


def _refuse_unfit(name: str, value: str) -> None:
    found = _UNFIT_FOR_A_NAME.search(value)
    if found:
        character = f"U+{ord(found[0]):04X} at position {found.start() + 1}"
        raise Rejected(f"{name} holds a control character ({character}): remove it")


def _time(item: dict, now: datetime) -> datetime:
    name, value = _named({name: value for name in TIME if (value := item.get(name)) != ""}, TIME)
    if value is None:
        return now
    if not isinstance(value, str):
        # A number says neither seconds nor milliseconds, and a wrong guess is off by decades.
        raise Rejected(f"{name} must be a text: {_TIME_ADVICE}; numbers are not read as times")
    try:
        at = _moment(value)
    except (ValueError, OverflowError) as problem:
        raise Rejected(f"{name} {_reason(problem)}") from problem
    if at < EARLIEST:
        raise Rejected(f"{name} is before the year 2000")
    if at - now > AHEAD:
        raise Rejected(f"{name} is more than a day ahead of our clock")
    return at


def _moment(text: str) -> datetime:
    """RFC 3339, with a blank for the T, no seconds or no zone allowed; digits beyond microseconds are cut off."""
    written = _WRITTEN_TIME.fullmatch(text)
    if written is None:
        raise ValueError(f"is not a time: {_TIME_ADVICE}")
    *calendar, fraction, sign, zone_hours, zone_minutes = written.groups()
    year, month, day, hour, minute, second = (int(part or 0) for part in calendar)
    if fraction and len(fraction) > 9:
        raise ValueError("has more than 9 digits after the second")
    if hour == 24:
        raise ValueError("has the hour 24: write 00:00 of the next day")
    if second == 60:
        raise ValueError("is a leap second: write second 59")
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 0
    at = datetime(year, month, day, hour, minute, second, micros, UTC)
    if sign is None:
        return at
    if int(zone_hours) > 23 or int(zone_minutes) > 59:
        raise ValueError(f"has no such zone: {_TIME_ADVICE}")
    offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
    return at - offset if sign == "+" else at + offset


def _reason(problem: ValueError | OverflowError) -> str:
    if isinstance(problem, OverflowError):
        return "is before the year 2000 or after the year 9999"
    reason = str(problem)
    return reason if reason.startswith(("is ", "has ")) else f"is not a time ({reason}): {_TIME_ADVICE}"


# What an API client writes by hand: of the right type, or told so; never refused for its content.


def _told(safe: dict, names: tuple[str, ...], limit: int) -> str:
    name, value = _named(safe, names)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Rejected(f"{name} must be a text")
    return value[:limit]


def _title(safe: dict, evidence: Evidence, service: str) -> str:
    title = _told(safe, TITLE, MAX_TITLE)
    if _shows(title):
        return title
    line = next(filter(_shows, evidence.message.splitlines()), "")
    if line:
        return line.strip()[:MAX_TITLE]
    return f"{evidence.anomaly_type or 'anomaly'} on {service}"[:MAX_TITLE]


def _shows(text: str) -> bool:
    """Whether there is anything in it that an eye can see."""
    return any(unicodedata.category(one) not in _UNSEEN and one not in _FILLERS for one in text)


def _affected(safe: dict) -> tuple[str, ...]:
    name, value = _named(safe, AFFECTED)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Rejected(f"{name} must be a list of texts")
    for position, one in enumerate(value):
        if one is not None and not isinstance(one, str):
            raise Rejected(f"{name}[{position}] must be a text")
    return distinct(value, MAX_AFFECTED)


# Finding a value by its names.


def _named(item: Mapping, names: tuple[str, ...]) -> tuple[str, object]:
    """The name under which a thing was sent, for the message that complains about it, and its value."""
    for name in names:
        value = item.get(name)
        if value is not None:
            return name, value
    return names[0], None


# Making an item fit to be stored.


def _storable(item: dict) -> tuple[dict, int]:
    """A copy of the item that both databases can store, and its size as JSON in bytes."""
    try:
        written = orjson.dumps(item)
    except TypeError:  # a lone surrogate, an integer past 64 bits, or nested deeper than orjson goes
        return _mended(item)
    if b"\\u0000" in written:
        return _mended(item)
    if written.count(b"[") + written.count(b"{") > MAX_DEPTH:
        _refuse_depth(item)
    # Read back, rather than kept: NaN and Infinity have become null on the way.
    return orjson.loads(written), len(written)


def _mended(item: dict) -> tuple[dict, int]:
    _refuse_depth(item)
    mended = _mend(item)
    return mended, len(orjson.dumps(mended))


def _refuse_depth(item: dict) -> None:
    level: list = [item]
    for _ in range(MAX_DEPTH):
        below: list = []
        for one in level:
            values = one.values() if isinstance(one, dict) else one
            below += [value for value in values if isinstance(value, dict | list)]
        if not below:
            return
        level = below
    raise Rejected(f"is nested too deeply: {MAX_DEPTH} levels at most")


def _mend(value: object) -> object:
    """The same JSON without what cannot be stored. Recursive: `_refuse_depth` has bounded it."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_UNSTORABLE.sub("\ufffd", str(name)): _mend(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_mend(one) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _without_bulk(event: Event, size: int) -> Event:
    """The same event with a payload of its main fields: one huge item must not fill the disk twenty times over."""
    kept = {
        "event_id": event.event_id,
        "service": event.service,
        "severity": event.severity,
        "score": event.score,
        "timestamp": event.at.isoformat(),
        "title": event.title,
        "description": event.description[:MAX_TEXT],
        "trace_id": event.trace_id,
        "environment": event.environment,
        "tenant_id": event.tenant_id,
        "anomaly_type": event.evidence.anomaly_type,
        "error_category": event.evidence.category,
        "error_template": event.evidence.template,
        "truncated": f"the event was {size} bytes of JSON; its main fields are kept",
    }
    return replace(event, payload=kept)
