"""OpsGenie's Alert API v2, also under its successor's path (Jira Service Management): answers come before the work."""

import re
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.standins.standin import Refused, Standin
from tests.standins.wire import Answer, Request

JSM = "/jsm/ops/integration"
ROOT = f"(?P<jsm>{JSM})?/v2"
ALERT = rf"{ROOT}/alerts/(?P<identifier>[^/]+)"
MISSING = "Alert does not exist"
STRINGS = {"message": 130, "alias": 512, "description": 15_000, "entity": 512, "source": 100, "user": 100}
STRINGS["note"] = 25_000
LISTS = {"responders": 50, "visibleTo": 50, "actions": 10, "tags": 20}
ITEM_LENGTH = {"actions": 50, "tags": 50}
DETAILS_LIMIT = 8000
PRIORITIES = ("P1", "P2", "P3", "P4", "P5")
ACTION_FIELDS = {"user", "source", "note"}
_HTML = re.compile(r"<\s*/?\s*[a-zA-Z!][^>]*>")


@dataclass
class OpsAlert:
    id: str
    tiny_id: str
    alias: str
    message: str
    description: str
    priority: str
    details: dict[str, str]
    tags: list[str]
    entity: str = ""
    source: str = ""
    status: str = "open"  # open, closed
    acknowledged: bool = False
    count: int = 1
    notes: list[str] = field(default_factory=list)
    owner: str = ""


class OpsGenie(Standin):
    name = "opsgenie"
    routes = (
        ("POST", f"{ROOT}/alerts", "create"),
        ("GET", f"{ROOT}/alerts", "list_alerts"),
        ("GET", f"{ROOT}/account", "account"),
        ("GET", rf"{ROOT}/alerts/requests/(?P<request_id>[^/]+)", "outcome"),
        ("GET", ALERT, "read"),
        ("GET", f"{ALERT}/notes", "list_notes"),
        ("POST", f"{ALERT}/(?P<action>acknowledge|unacknowledge|close|notes)", "act"),
        ("PUT", f"{ALERT}/(?P<attribute>priority|message|description)", "put"),
        ("POST", f"{ALERT}/(?P<attribute>details|tags)", "put"),
    )
    key = "00000000-standin-opsgenie-0000000000"
    account_key = "11111111-standin-account-0000000000"  # may read; writing answers 40301

    def settings(self) -> dict[str, str]:
        return {"apiKey": self.key, "apiUrl": self.url}

    def jsm_settings(self) -> dict[str, str]:
        """The same under the successor's path, where an alias is required."""
        return {"apiKey": self.key, "apiUrl": self.url + JSM}

    def forget(self) -> None:
        self.alerts: dict[str, list[OpsAlert]] = {}  # by alias, oldest first; at most one of them open
        self.pages = 0
        self._outcomes: dict[str, tuple[float, dict[str, Any]]] = {}  # by request id: when it may be seen, and what
        self._visible: dict[str, float] = {}  # by alert id

    def state(self) -> dict[str, object]:
        return {"pages": self.pages, "alerts": {key: [asdict(a) for a in all_] for key, all_ in self.alerts.items()}}

    def refusal(self, code: int, message: str = "", /, **more: object) -> Answer:
        if code == 429:
            return self.throttled(1)
        return Answer(code, {"message": message or f"OpsGenie answers {code}", **more, **_receipt()})

    def throttled(self, wait: int) -> Answer:
        headers = {"X-RateLimit-State": "THROTTLED", "X-RateLimit-Reason": "INTEGRATION"}
        message = "You are making too many requests! To avoid errors, check out our developer documentation."
        return Answer(429, {"message": message, **_receipt()}, {**headers, "X-RateLimit-Period-In-Sec": "60"})

    def admit(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme != "GenieKey" or key not in (self.key, self.account_key):
            raise Refused(self.refusal(401, "Could not authenticate"))
        if key == self.account_key and request.method != "GET":
            message = "To perform this action, use an API key from an API integration."
            raise Refused(self.refusal(403, message, code=40301))

    # -- writing

    def create(self, request: Request, jsm: str | None) -> Answer:
        body = self._body(request)
        errors = _alert_errors(body)
        if jsm and not body.get("alias"):
            errors["alias"] = "alias is required"
        self._refuse(errors)
        alias = body.get("alias") or str(uuid.uuid4())
        alert = self._open(alias)
        if alert is not None:  # counted; its fields stay as they are
            alert.count += 1
            self.effect("count", key=alias, count=alert.count)
            return self._accepted("Create", alert, "Created alert")
        alert = OpsAlert(
            id=str(uuid.uuid4()),
            tiny_id=str(len(self._visible) + 1),
            alias=alias,
            message=body["message"],
            description=body.get("description", ""),
            priority=body.get("priority", "P3"),
            details=body.get("details", {}),
            tags=body.get("tags", []),
            entity=body.get("entity", ""),
            source=body.get("source", ""),
            notes=[body["note"]] if body.get("note") else [],
        )
        self.alerts.setdefault(alias, []).append(alert)
        self._visible[alert.id] = time.monotonic() + self.lag
        self.pages += 1
        self._rendered(alias, body)
        self.effect("page", key=alias, id=alert.id, priority=alert.priority, message=alert.message)
        return self._accepted("Create", alert, "Created alert")

    def act(self, request: Request, jsm: str | None, identifier: str, action: str) -> Answer:
        body = self._body(request, optional=action != "notes")
        self._refuse(_errors(body, ACTION_FIELDS) | ({} if action != "notes" or body.get("note") else _blank("note")))
        alert = self._find(request, identifier)
        name = {"acknowledge": "Acknowledge", "unacknowledge": "UnAcknowledge", "close": "Close", "notes": "AddNote"}
        if alert is None:
            return self._accepted(name[action], None, MISSING)
        if action == "close" and alert.status == "closed":
            return self._accepted(name[action], alert, "Alert is already closed", success=False)
        match action:
            case "acknowledge":
                alert.acknowledged, alert.owner = True, body.get("user", "")
            case "unacknowledge":
                alert.acknowledged = False
            case "close":
                alert.status = "closed"
        if body.get("note"):
            alert.notes.append(body["note"])
        self._rendered(alert.alias, body)
        self.effect(action if action != "notes" else "comment", key=alert.alias, id=alert.id)
        past = {"acknowledge": "Acknowledged", "unacknowledge": "Unacknowledged", "close": "Closed", "notes": "Noted"}
        return self._accepted(name[action], alert, f"{past[action]} alert")

    def put(self, request: Request, jsm: str | None, identifier: str, attribute: str) -> Answer:
        body = self._body(request)
        errors = _errors(body, {attribute, *ACTION_FIELDS})
        if not body.get(attribute):
            errors |= _blank(attribute)
        self._refuse(errors)
        alert = self._find(request, identifier)
        action = f"Update{attribute.capitalize()}"
        if alert is None:
            return self._accepted(action, None, MISSING)
        value = body[attribute]
        if attribute == "details":
            value = alert.details | value
        elif attribute == "tags":
            value = list(dict.fromkeys([*alert.tags, *value]))
        setattr(alert, attribute, value)
        if body.get("note"):
            alert.notes.append(body["note"])
        self._rendered(alert.alias, body)
        self.effect("update", key=alert.alias, id=alert.id, **{attribute: value})
        return self._accepted(action, alert, f"Updated {attribute}")

    def _body(self, request: Request, *, optional: bool = False) -> dict[str, Any]:
        if optional and not request.body:
            return {}
        if not request.is_json:
            raise Refused(self.refusal(415, "Content-Type must be application/json"))
        try:
            body = request.json()
        except ValueError:
            raise Refused(self.refusal(400, "Request body is not processable. It is not valid JSON.")) from None
        if not isinstance(body, dict):
            raise Refused(self.refusal(400, "Request body is not processable. An object is wanted."))
        return body

    def _refuse(self, errors: dict[str, str]) -> None:
        if errors:
            message = "Request body is not processable. Please check the errors."
            raise Refused(self.refusal(422, message, errors=errors))

    def _open(self, alias: str) -> OpsAlert | None:
        return next((alert for alert in self.alerts.get(alias, []) if alert.status == "open"), None)

    def _find(self, request: Request, identifier: str) -> OpsAlert | None:
        """By alias only open alerts are found; by id and tiny id all."""
        identifier, kind = unquote(identifier), request.first("identifierType", "id")
        if kind not in ("id", "tiny", "alias"):
            raise Refused(self.refusal(422, "identifierType is one of id, tiny, alias"))
        if kind == "alias":
            return self._open(identifier)
        everything = [alert for alerts in self.alerts.values() for alert in alerts]
        return next((a for a in everything if identifier == (a.id if kind == "id" else a.tiny_id)), None)

    def _accepted(self, action: str, alert: OpsAlert | None, status: str, *, success: bool = True) -> Answer:
        """202 says nothing but that the request was understood; the outcome can be asked for after the lag."""
        receipt = _receipt()
        outcome: dict[str, Any] = {"success": success and alert is not None, "action": action, "status": status}
        outcome |= {"isSuccess": outcome["success"], "processedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        outcome |= {"alertId": alert.id if alert else "", "alias": alert.alias if alert else ""}
        self._outcomes[receipt["requestId"]] = (time.monotonic() + self.lag, outcome)
        return Answer(202, {"result": "Request will be processed", **receipt})

    def _rendered(self, alias: str, body: dict[str, Any]) -> None:
        for name in ("message", "description", "note"):
            for tag in _HTML.findall(str(body.get(name, ""))):
                self.render("html", f"{alias} {name}", tag)

    # -- reading

    def come_to_nothing(self) -> None:
        """All that waits is told as failed, from now on."""
        for request, (_, outcome) in self._outcomes.items():
            failed = {"success": False, "isSuccess": False, "status": "Could not be processed"}
            self._outcomes[request] = (0.0, outcome | failed)

    def outcome(self, request: Request, jsm: str | None, request_id: str) -> Answer:
        seen_from, outcome = self._outcomes.get(request_id, (0.0, None))
        if outcome is None or time.monotonic() < seen_from:
            return self.refusal(404, "Request not found. It might not be processed, yet.")
        return Answer(200, {"data": outcome, **_receipt()})

    def account(self, request: Request, jsm: str | None) -> Answer:
        if jsm:
            return self.refusal(404, "Not found")
        return Answer(200, {"data": {"name": "Stand-in", "userCount": 1, "plan": {"name": "Essentials"}}, **_receipt()})

    def list_alerts(self, request: Request, jsm: str | None) -> Answer:
        """Newest first. Of the query language only `alias: x` and `status: x` joined by AND."""
        limit = request.first("limit", "20")
        if not limit.isdigit() or int(limit) > 100:
            return self.refusal(422, "limit is at most 100")
        wanted = dict(re.findall(r'(\w+)\s*[:=]\s*"?([^"\s]+)"?', request.first("query")))
        found = [_alert(alert) for alerts in self.alerts.values() for alert in alerts if self._is_visible(alert)]
        found = [one for one in found if all(str(one.get(name)) == value for name, value in wanted.items())]
        return Answer(200, {"data": found[::-1][: int(limit)], **_receipt()})

    def read(self, request: Request, jsm: str | None, identifier: str) -> Answer:
        return Answer(200, {"data": _alert(self._shown(request, identifier)), **_receipt()})

    def list_notes(self, request: Request, jsm: str | None, identifier: str) -> Answer:
        notes = [{"note": note, "owner": ""} for note in self._shown(request, identifier).notes]
        return Answer(200, {"data": notes, **_receipt()})

    def _shown(self, request: Request, identifier: str) -> OpsAlert:
        """Reading by alias gives the open alert, else the latest."""
        alert = self._find(request, identifier)
        if alert is None and request.first("identifierType") == "alias":
            alert = next(reversed(self.alerts.get(unquote(identifier), [])), None)
        if alert is None or not self._is_visible(alert):
            raise Refused(self.refusal(404, f"Alert with id [{unquote(identifier)}] does not exist"))
        return alert

    def _is_visible(self, alert: OpsAlert) -> bool:
        return time.monotonic() >= self._visible[alert.id]


def _receipt() -> dict[str, Any]:
    return {"took": 0.001, "requestId": str(uuid.uuid4())}


def _blank(name: str) -> dict[str, str]:
    return {name: f"{name} can not be empty."}


def _alert_errors(body: dict[str, Any]) -> dict[str, str]:
    errors = _errors(body, {*STRINGS, *LISTS, "details", "priority"})
    if not isinstance(body.get("message"), str) or not body["message"].strip():
        errors |= _blank("message")
    return errors


def _errors(body: dict[str, Any], allowed: set[str]) -> dict[str, str]:
    """What is wrong with each field."""
    errors = {name: f"{name} is not a field here." for name in body if name not in allowed}
    for name, most in STRINGS.items():
        value = body.get(name, "")
        if not isinstance(value, str):
            errors[name] = f"{name} must be a string."
        elif len(value) > most:
            errors[name] = f"{name} is longer than {most} characters."
    for name, most in LISTS.items():
        value = body.get(name, [])
        if not isinstance(value, list) or len(value) > most:
            errors[name] = f"{name} must be an array of at most {most} items."
        elif name in ITEM_LENGTH and not all(isinstance(v, str) and 0 < len(v) <= ITEM_LENGTH[name] for v in value):
            errors[name] = f"{name} must be strings of at most {ITEM_LENGTH[name]} characters."
        elif name not in ITEM_LENGTH and not all(isinstance(v, dict) and "type" in v for v in value):
            errors[name] = f"{name} must be objects with a type."
    details = body.get("details", {})
    if not isinstance(details, dict) or not all(isinstance(value, str) for value in details.values()):
        errors["details"] = "details must be a map of strings."
    elif sum(len(key) + len(value) for key, value in details.items()) > DETAILS_LIMIT:
        errors["details"] = f"details are longer than {DETAILS_LIMIT} characters."
    if "priority" in body and body["priority"] not in PRIORITIES:
        errors["priority"] = "priority must be one of P1, P2, P3, P4, P5."
    return errors


def _alert(alert: OpsAlert) -> dict[str, Any]:
    names = ("id", "alias", "message", "description", "priority", "details", "tags", "entity", "source", "status")
    shown = {name: getattr(alert, name) for name in names}
    return {**shown, "tinyId": alert.tiny_id, "acknowledged": alert.acknowledged, "count": alert.count}
