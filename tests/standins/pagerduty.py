"""PagerDuty Events API v2: alerts by dedup_key, and how many pages they were."""

import re
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from tests.standins.standin import Refused, Standin
from tests.standins.wire import Answer, Request

ROUTING_KEY = "standin0pagerduty0routing0key032"
EVENT_LIMIT = 512_000
EVENT_FIELDS = {"routing_key", "event_action", "dedup_key", "payload", "client", "client_url", "links", "images"}
PAYLOAD_FIELDS = {"summary", "source", "severity", "timestamp", "component", "group", "class", "custom_details"}
SEVERITIES = ("critical", "error", "warning", "info")


@dataclass
class Alert:
    routing_key: str
    dedup_key: str
    state: str  # triggered, acknowledged, resolved
    severity: str  # of the latest trigger, as is the summary
    summary: str
    events: list[dict[str, Any]] = field(default_factory=list)  # every event that was applied to it, without its key


class PagerDuty(Standin):
    name = "pagerduty"
    options = ("lag", "rate_limit", "unknown_key")
    routes = (("POST", r"/v2/enqueue", "enqueue"),)
    # Whether a well-formed unknown key is refused is not documented; 202 with nothing to see has been reported.
    unknown_key = "refuse"  # or "swallow"
    keys = (ROUTING_KEY,)

    def settings(self) -> dict[str, str]:
        return {"routingKey": self.keys[0], "apiUrl": self.url}

    def forget(self) -> None:
        self.alerts: dict[str, list[Alert]] = {}
        self.pages = 0

    def state(self) -> dict[str, object]:
        return {"pages": self.pages, "alerts": {key: [asdict(a) for a in all_] for key, all_ in self.alerts.items()}}

    def refusal(self, code: int, message: str = "") -> Answer:
        if code == 429:
            return self.throttled(0)
        status = "invalid event" if code < 500 else "error"
        return Answer(code, {"status": status, "message": message or "Internal error", "errors": []})

    def throttled(self, wait: int) -> Answer:
        """Without Retry-After: PagerDuty documents none, and the event is not ingested."""
        return Answer(429, {"status": "throttle exceeded", "message": "Too many requests"})

    def enqueue(self, request: Request) -> Answer:
        event = self._event(request)
        if errors := [*_key_errors(event), *_event_errors(event), *_payload_errors(event)]:
            raise Refused(_invalid(errors))
        key = event.get("dedup_key") or uuid.uuid4().hex
        if event["routing_key"] in self.keys:
            self._apply(key, event)
        elif self.unknown_key == "refuse":
            raise Refused(Answer(400, "Invalid routing key"))
        return Answer(202, {"status": "success", "message": "Event processed", "dedup_key": key})

    def _event(self, request: Request) -> dict[str, Any]:
        if not request.is_json:
            raise Refused(_invalid(["Content-Type must be application/json"]))
        if len(request.body) > EVENT_LIMIT:
            raise Refused(_invalid(["The event is larger than 512 KB"]))
        try:
            event = request.json()
        except ValueError:
            raise Refused(_invalid(["JSON cannot be parsed"])) from None
        if not isinstance(event, dict):
            raise Refused(_invalid(["The event must be an object"]))
        return event

    def _apply(self, key: str, event: dict[str, Any]) -> None:
        """Open alerts are found by routing key and dedup_key; without one, acknowledge and resolve are dropped."""
        about = {name: value for name, value in event.items() if name != "routing_key"}
        alerts = self.alerts.get(key, [])
        alert = next((a for a in alerts if a.routing_key == event["routing_key"] and a.state != "resolved"), None)
        action = event["event_action"]
        if alert is None:
            if action == "trigger":
                payload = event["payload"]
                alert = Alert(event["routing_key"], key, "triggered", payload["severity"], payload["summary"], [about])
                self.alerts.setdefault(key, []).append(alert)
                self.pages += 1
                self.effect("page", key=key, severity=alert.severity, summary=alert.summary)
            return
        alert.events.append(about)
        if action == "trigger":  # joins the open alert and notifies nobody again
            alert.severity, alert.summary = event["payload"]["severity"], event["payload"]["summary"]
            self.effect("update", key=key, severity=alert.severity, summary=alert.summary)
            return
        alert.state = {"acknowledge": "acknowledged", "resolve": "resolved"}[action]
        self.effect(action, key=key)


def _invalid(errors: list[str]) -> Answer:
    return Answer(400, {"status": "invalid event", "message": "Event object is invalid", "errors": errors})


def _key_errors(event: dict[str, Any]) -> list[str]:
    key = event.get("routing_key")
    if not isinstance(key, str) or not key:
        return ["'routing_key' is missing or blank"]
    errors = []
    if len(key) != 32:
        errors.append("Length of 'routing_key' is incorrect (should be 32 characters)")
    if not re.fullmatch(r"[A-Za-z0-9]+", key):
        errors.append("'routing_key' cannot contain non-alphanumeric characters.")
    return errors


def _event_errors(event: dict[str, Any]) -> list[str]:
    errors = [f"'{name}' is not a field of an event" for name in sorted(set(event) - EVENT_FIELDS)]
    action, key = event.get("event_action"), event.get("dedup_key")
    if action not in ("trigger", "acknowledge", "resolve"):
        errors.append("'event_action' must be one of trigger, acknowledge, resolve")
    if key is None and action in ("acknowledge", "resolve"):
        errors.append("'dedup_key' is missing or blank")
    elif key is not None and (not isinstance(key, str) or not key):
        errors.append("'dedup_key' is invalid")
    elif key is not None and len(key) > 255:
        errors.append("Length of 'dedup_key' is incorrect (at most 255 characters)")
    for name in ("client", "client_url"):
        if name in event and not isinstance(event[name], str):
            errors.append(f"'{name}' must be a string")
    return (
        errors
        + _attachment_errors(event, "links", "href", "https?://.+")
        + _attachment_errors(event, "images", "src", "https://.+")
    )


def _attachment_errors(event: dict[str, Any], name: str, required: str, pattern: str) -> list[str]:
    items = event.get(name, [])
    if not isinstance(items, list):
        return [f"'{name}' must be an array"]
    return [
        f"'{name}[{index}].{required}' is missing or not allowed"
        for index, item in enumerate(items)
        if not isinstance(item, dict) or not re.fullmatch(pattern, str(item.get(required, "")))
    ]


def _payload_errors(event: dict[str, Any]) -> list[str]:
    if event.get("event_action") != "trigger":
        return []
    payload = event.get("payload")
    if not isinstance(payload, dict):
        return ["'payload' is missing or blank"]
    errors = [f"'payload.{name}' is not a field of a payload" for name in sorted(set(payload) - PAYLOAD_FIELDS)]
    for name in ("summary", "source", "severity"):
        if not isinstance(payload.get(name), str) or not payload[name].strip():
            errors.append(f"'payload.{name}' is missing or blank")
    if isinstance(payload.get("summary"), str) and len(payload["summary"]) > 1024:
        errors.append("Length of 'payload.summary' is incorrect (at most 1024 characters)")
    if payload.get("severity") not in SEVERITIES:
        errors.append("'payload.severity' must be one of critical, error, warning, info")
    for name in ("component", "group", "class"):
        if name in payload and not isinstance(payload[name], str):
            errors.append(f"'payload.{name}' must be a string")
    if not isinstance(payload.get("custom_details", {}), dict):
        errors.append("'payload.custom_details' must be an object")
    if "timestamp" in payload and not _is_time(payload["timestamp"]):
        errors.append("'payload.timestamp' must be an ISO 8601 time")
    return errors


def _is_time(value: object) -> bool:
    try:
        datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True
