"""OpsGenie, and Jira Service Management's operations that succeed it: an incident is an alert under our alias.

https://docs.opsgenie.com/docs/alert-api
The successor takes the same calls at https://api.atlassian.com/jsm/ops/integration
"""

import hashlib
import html
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from platforms import text, webhooks
from platforms.contract import (
    Deed,
    Field,
    Inbound,
    Notice,
    Platform,
    PlatformError,
    Remote,
    Seen,
    Settings,
    Step,
    Taken,
    begun,
)
from platforms.http import Caller

_API = "https://api.opsgenie.com"
_SUCCESSOR = "api.atlassian.com"
_ENDS = (
    "OpsGenie's API ends on 5 April 2027. After migrating to Jira Service Management, set apiUrl to "
    f"https://{_SUCCESSOR}/jsm/ops/integration."
)
# Where a person reads the alerts of an API host. The successor's pages are under the customer's own site.
_CONSOLES = {"api.opsgenie.com": "https://app.opsgenie.com", "api.eu.opsgenie.com": "https://app.eu.opsgenie.com"}
_PRIORITY = {"critical": "P1", "high": "P2", "medium": "P3", "low": "P4"}
_MESSAGE_LIMIT = 130
_DESCRIPTION_LIMIT = 15_000
_DETAILS_LIMIT = 8_000
_NOTE_LIMIT = 25_000
_NAME_LIMIT = 512
# Between looks at a request, which is carried out some time after its 202. Short, so as not to sleep past the deadline.
_PAUSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4)

_DEEDS: dict[str, Deed] = {"acknowledge": "acknowledge", "unacknowledge": "unacknowledge", "close": "resolve"}

_GONE = ("does not exist", "not found", "already closed", "is closed")
_DONE_ALREADY = ("already", "not acknowledged")


class OpsGenie:
    name = "opsgenie"
    label = "OpsGenie"
    pages = True
    keyed = True
    reopens_resolved_only = False
    searchable = False
    search_lag = 0.0
    readable = True
    fields = (
        Field("apiKey", "API key", required=True, secret=True, help="Of an API integration, not of an account."),
        Field(
            "apiUrl",
            "API address",
            target=True,
            default=_API,
            help="https://api.eu.opsgenie.com in the EU, https://api.atlassian.com/jsm/ops/integration after migration "
            "to Jira Service Management. Without /v2.",
        ),
        Field(
            "webhookSecret",
            "Webhook secret",
            secret=True,
            help="OpsGenie signs nothing: give its Webhook integration, which sends to /api/v1/inbound/opsgenie, the "
            "custom header X-Webhook-Secret (or Authorization: Bearer) with this.",
        ),
    )
    identity = ("apiUrl",)

    def warning(self, settings: Settings) -> str:
        return "" if _host(settings) == _SUCCESSOR else _ENDS

    def create(self, call: Caller, settings: Settings, notice: Notice) -> Remote:
        """Open the alert, then acknowledge it if that is where the incident stands. A resolved incident opens nothing,
        so that nobody is paged for it: the close ends what an attempt of unknown outcome may have opened."""
        with _Alerts(call, settings, notice.taken).remembered() as alerts:
            if notice.status == "resolved":
                alerts.finish(alerts.act(notice, "close"))
                return _remote(settings, notice.key)
            remote = alerts.open(notice)
            if notice.status == "acknowledged":
                with begun():
                    alerts.finish(alerts.act(notice, "acknowledge"))
            return remote

    def update(
        self, call: Caller, settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """Bring the alert to the notice's status; what was overtaken is not sent. An alert that was closed at OpsGenie
        stays closed, except for a reopen or an escalation: those open a new one under the same alias."""
        said = text.comment(notice, steps, _NOTE_LIMIT)
        with _Alerts(call, settings, notice.taken).remembered() as alerts:
            if notice.status == "resolved" and "resolve" in steps:
                alerts.finish(alerts.act(notice, "close", said))
                return remote
            acknowledges = notice.status == "acknowledged" and "acknowledge" in steps
            rises = notice.status != "resolved" and ("reopen" in steps or "escalate" in steps)
            if rises:
                remote = alerts.open(notice) if "reopen" in steps else remote
                remote = alerts.prioritise(notice, remote)
            if acknowledges:
                alerts.finish(alerts.act(notice, "acknowledge", said))
            elif rises:
                # Whoever acknowledged it did so before: it calls for somebody again.
                alerts.finish(alerts.act(notice, "unacknowledge"), alerts.act(notice, "notes", said))
            elif said:
                alerts.finish(alerts.act(notice, "notes", said))
            return remote

    def find(self, call: Caller, settings: Settings, key: str) -> Remote | None:
        """Not needed: the alias makes every request safe to repeat."""
        return None

    def look(self, call: Caller, settings: Settings, remote: Remote, key: str) -> Seen | None:
        """The alert by its own id, or by its alias where that was never told: the open one, else the latest."""
        return _Alerts(call, settings).read(remote.data.get("alertId", ""), key)

    def test(self, call: Caller, settings: Settings) -> str:
        """Acknowledge an alert that cannot exist. Reading would prove too little: an account's key may read, and then
        cannot create (code 40301)."""
        alerts = _Alerts(call, settings)
        request = alerts.request("POST", f"/{uuid4()}/acknowledge", {"source": text.PRODUCT}, by_alias=True)
        try:
            alerts.look(request)
        except PlatformError as error:
            if error.status == 403:
                hint = "This API key may not read: give its integration read access, to see what became of a request"
                raise PlatformError(hint, permanent=True, status=403) from error
            raise
        return "Connection successful"

    def read(self, settings: Settings, headers: Mapping[str, str], body: bytes, now: datetime) -> Inbound | None:
        """A call of a Webhook integration. https://support.atlassian.com/opsgenie/docs/integrate-opsgenie-with-webhook/

        It has no id of its own. What was done through the API may have been done by us.
        """
        webhooks.prove_secret(settings, headers)
        event = webhooks.document(body)
        deed = _DEEDS.get(webhooks.word(event, "action").lower())
        if deed is None:
            return None
        alert, source = event.get("alert"), event.get("source")
        through_api = webhooks.word(source, "type").lower() in ("", "api")
        return Inbound(
            event=webhooks.event_id("", body),
            deed=deed,
            by=webhooks.name(webhooks.word(alert, "username"), webhooks.word(alert, "userId")),
            keys=(webhooks.word(alert, "alias"),),
            at=webhooks.moment(webhooks.word(alert, "updatedAt")),
            maybe_ours=through_api or webhooks.word(source, "name") == text.PRODUCT,
        )


class _Alerts:
    """The alert API at one address with one key. Every write is accepted first and carried out later.

    `earlier`: what was accepted in the attempt before. As long as the same is asked in the same order, it is not sent
    again: where OpsGenie is slow, each attempt would send it anew and none would live to see it carried out.
    """

    def __init__(self, call: Caller, settings: Settings, earlier: tuple[Taken, ...] = ()) -> None:
        self._call = call
        self._settings = settings
        self._earlier = list(earlier)
        self._taken: list[Taken] = []
        self._root = (settings.get("apiUrl") or _API).rstrip("/") + "/v2/alerts"
        self._headers = {"Authorization": f"GenieKey {settings['apiKey']}"}

    @contextmanager
    def remembered(self) -> Iterator["_Alerts"]:
        try:
            yield self
        except PlatformError as error:
            error.taken = tuple(self._taken)
            raise

    def open(self, notice: Notice) -> Remote:
        """While an alert of this alias is open it is counted again; otherwise a new one opens."""
        request = self._ask("POST", "", _alert(notice), same=notice.key)
        outcome = self._outcome(request)
        if not outcome.done:
            raise self._failed(request, f"OpsGenie did not create the alert: {outcome.status}")
        return _remote(self._settings, notice.key, outcome.alert_id)

    def prioritise(self, notice: Notice, remote: Remote) -> Remote:
        """Counting an open alert again changes none of its fields. One that was closed is opened anew: it must page."""
        body = {"priority": _priority(notice)}
        request = self._ask("PUT", f"/{quote(notice.key, safe='')}/priority", body, by_alias=True)
        outcome = self._outcome(request)
        if outcome.done:
            return remote
        if outcome.says(_GONE):
            return self.open(notice)
        if outcome.says(_DONE_ALREADY):
            return remote
        raise self._failed(request, f"OpsGenie did not set the priority: {outcome.status}")

    def act(self, notice: Notice, action: str, said: str = "") -> str:
        """Ask for one action; `finish` sees it through. Returns the id of the request."""
        body = {"source": text.PRODUCT, "user": text.cut(text.one_line(notice.actor), 100, text.units)}
        if said:
            body["note"] = _unmarked(said)
        path = f"/{quote(notice.key, safe='')}/{action}"
        return self._ask("POST", path, {name: value for name, value in body.items() if value}, by_alias=True)

    def finish(self, *requests: str) -> None:
        """Wait until all is carried out. What finds the alert closed, or in that state, is as good as done."""
        for request in requests:
            outcome = self._outcome(request)
            if not (outcome.done or outcome.says(_GONE) or outcome.says(_DONE_ALREADY)):
                raise self._failed(request, f"OpsGenie did not carry out the request: {outcome.status}")

    def _failed(self, request: str, message: str) -> PlatformError:
        """What came to nothing is not waited for: the next attempt sends it anew."""
        self._taken = [one for one in self._taken if one[1] != request]
        return PlatformError(message)

    def _ask(self, method: str, path: str, body: dict[str, Any], *, same: str = "", by_alias: bool = False) -> str:
        """Returns the id of the request. `same` tells it from others where its body may change meanwhile."""
        asked = json.dumps([self._root, method, path, same or body])
        what = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:20]
        if self._earlier and self._earlier[0][0] == what:
            request = self._earlier.pop(0)[1]
        else:
            self._earlier.clear()
            request = self.request(method, path, body, by_alias=by_alias)
        self._taken.append((what, request))
        return request

    def request(self, method: str, path: str, body: dict[str, Any], *, by_alias: bool = False) -> str:
        params = {"identifierType": "alias"} if by_alias else None
        try:
            reply = self._call.request(method, self._root + path, headers=self._headers, json=body, params=params)
        except PlatformError as error:
            raise _explained(error) from error
        answer = reply.json()
        request = answer.get("requestId") if isinstance(answer, dict) else None
        if not isinstance(request, str) or not request:
            raise PlatformError("OpsGenie accepted the request without an id", in_doubt=True, status=reply.status)
        return request

    def look(self, request: str) -> "_Outcome | None":
        """What became of a request; None while it waits. 404 is what it is until OpsGenie gets to it."""
        address = f"{self._root}/requests/{quote(request, safe='')}"
        reply = self._call.request("GET", address, headers=self._headers, expect={404})
        answer = reply.json() if reply.status != 404 else None
        data = answer.get("data") if isinstance(answer, dict) else None
        done = data.get("isSuccess", data.get("success")) if isinstance(data, dict) else None
        if not isinstance(done, bool):
            return None
        return _Outcome(done, self._call.clean(str(data.get("status") or "")), str(data.get("alertId") or ""))

    def read(self, alert_id: str, alias: str) -> Seen:
        params = {} if alert_id else {"identifierType": "alias"}
        address = f"{self._root}/{quote(alert_id or alias, safe='')}"
        reply = self._call.request("GET", address, headers=self._headers, params=params, expect={404})
        answer = reply.json()
        if reply.status == 404:
            return Seen("Not found", "gone")
        alert = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(alert, dict) or alert.get("alias") != alias or alert.get("status") not in ("open", "closed"):
            raise PlatformError("OpsGenie did not tell the alert's status", status=reply.status)
        if alert["status"] == "closed":
            return Seen("closed", "resolved")
        return Seen("acknowledged", "acknowledged") if alert.get("acknowledged") is True else Seen("open", "open")

    def _outcome(self, request: str) -> "_Outcome":
        """What became of a request: asked for a few times, because OpsGenie works through them in its own time."""
        for pause in (*_PAUSES, 0.0):
            with begun():
                outcome = self.look(request)
            if outcome:
                return outcome
            time.sleep(pause)
        raise PlatformError("OpsGenie has accepted the request but not carried it out yet", in_doubt=True)


class _Outcome:
    def __init__(self, done: bool, status: str, alert_id: str) -> None:
        self.done = done
        self.status = status
        self.alert_id = alert_id

    def says(self, phrases: tuple[str, ...]) -> bool:
        return any(phrase in self.status.lower() for phrase in phrases)


def _alert(notice: Notice) -> dict[str, Any]:
    """OpsGenie renders HTML in message and description, and counts them as sent: escaped."""
    return {
        "message": html.escape(text.headline(notice, _MESSAGE_LIMIT, _escaped_size)),
        "alias": notice.key,
        "description": html.escape(text.summary(notice, _DESCRIPTION_LIMIT, _escaped_size)),
        "priority": _priority(notice),
        "details": _details(notice),
        "entity": text.cut(_unmarked(text.one_line(notice.service)), _NAME_LIMIT, text.units),
        "source": text.PRODUCT,
        "tags": [text.cut(_unmarked(notice.severity), 50)],
    }


def _priority(notice: Notice) -> str:
    return "P1" if notice.escalated else _PRIORITY.get(notice.severity, "P3")


def _details(notice: Notice) -> dict[str, str]:
    details = dict(text.facts(notice))
    details["Link"] = text.link(notice)
    details[text.cause_heading(notice)] = text.cause(notice)
    room = _DETAILS_LIMIT
    kept: dict[str, str] = {}
    for label, value in details.items():
        value = text.cut(_unmarked(value), room - len(label), text.units)
        if value and room > len(label):
            kept[label] = value
            room -= len(label) + text.units(value)
    return kept


def _escaped_size(value: str) -> int:
    return text.units(html.escape(value))


def _unmarked(value: str) -> str:
    """Where it is not known whether OpsGenie renders, escaping could show; without angle brackets there is no tag."""
    return value.replace("<", "‹").replace(">", "›")


def _remote(settings: Settings, alias: str, alert_id: str = "") -> Remote:
    if not alert_id:
        return Remote(id=alias)
    console = _CONSOLES.get(_host(settings))
    url = f"{console}/alert/detail/{quote(alert_id, safe='')}/details" if console else ""
    return Remote(id=alias, url=url, data={"alertId": alert_id})


def _host(settings: Settings) -> str:
    return urlsplit(settings.get("apiUrl") or _API).hostname or ""


def _explained(error: PlatformError) -> PlatformError:
    if error.status == 401:
        hint = "Invalid API key, or one of another region: in the EU, apiUrl is https://api.eu.opsgenie.com"
    elif error.status == 403:
        hint = "This API key may not create alerts: use the key of an API integration"
    elif error.status == 402:
        hint = "The OpsGenie plan does not include the alert API"
    else:
        return error
    return PlatformError(hint, permanent=True, status=error.status)


PLATFORM: Platform = OpsGenie()
