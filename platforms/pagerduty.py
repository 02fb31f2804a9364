"""PagerDuty through its Events API v2: an incident is an alert under our dedup_key.

https://developer.pagerduty.com/docs/events-api-v2/overview/
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
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
    begun,
)
from platforms.http import Caller

_API = "https://events.pagerduty.com"
_SEVERITY = {"critical": "critical", "high": "error", "medium": "warning", "low": "info"}
_SUMMARY_LIMIT = 1024
_SOURCE_LIMIT = 255
_DETAIL_LIMIT = 8000
_DEEDS: dict[str, Deed] = {
    "incident.acknowledged": "acknowledge",
    "incident.unacknowledged": "unacknowledge",
    "incident.resolved": "resolve",
    "incident.reopened": "reopen",
}


class PagerDuty:
    name = "pagerduty"
    label = "PagerDuty"
    pages = True
    keyed = True
    reopens_resolved_only = True
    searchable = False
    search_lag = 0.0
    readable = False
    fields = (
        Field(
            "routingKey",
            "Integration key",
            required=True,
            secret=True,
            help="The key of an Events API v2 integration. PagerDuty says whether it accepts a key, not whether it "
            "delivers: send a test anomaly to see where alerts arrive.",
        ),
        Field(
            "apiUrl",
            "Events API",
            target=True,
            default=_API,
            help="https://events.eu.pagerduty.com for accounts in the EU. Without /v2/enqueue.",
        ),
        Field(
            "webhookSecret",
            "Webhook secret",
            secret=True,
            help="Of a V3 webhook subscription that sends to /api/v1/inbound/pagerduty: signs what PagerDuty sends.",
        ),
    )
    # An event under another key cannot touch an alert: PagerDuty drops it without a word.
    identity = ("routingKey", "apiUrl")

    def warning(self, settings: Settings) -> str:
        return ""

    def create(self, call: Caller, settings: Settings, notice: Notice) -> Remote:
        """Trigger the alert. An incident that is resolved already triggers nothing, so that nobody is paged for it:
        the resolve closes what an attempt of unknown outcome may have opened, and is dropped otherwise."""
        if notice.status == "resolved":
            return _send(call, settings, _event(settings, "resolve", notice.key))
        remote = _send(call, settings, _trigger(settings, notice))
        if notice.status == "acknowledged":
            with begun():
                _send(call, settings, _event(settings, "acknowledge", notice.key))
        return remote

    def update(
        self, call: Caller, settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """Bring the alert to the notice's status; what was overtaken is not sent, so that nobody is paged for it.

        An acknowledge or resolve that finds no open alert is dropped by PagerDuty, which is as good as done. A cause
        or a note alone sends nothing: events carry no comments, and a trigger would page anew where somebody has
        resolved the alert at PagerDuty. The alert links to the incident, which has them.

        A resolve alone is sent whatever the notice says: an alert that is acknowledged ignores a trigger, so a
        reopening ends it first.
        """
        if notice.status == "resolved" or steps == ("resolve",):
            if "resolve" in steps:
                _send(call, settings, _event(settings, "resolve", notice.key))
            return remote
        if "reopen" in steps or "escalate" in steps:
            _send(call, settings, _trigger(settings, notice))
        if "acknowledge" in steps and notice.status == "acknowledged":
            _send(call, settings, _event(settings, "acknowledge", notice.key))
        return remote

    def find(self, call: Caller, settings: Settings, key: str) -> Remote | None:
        """The Events API answers no questions; the same event may simply be sent again."""
        return None

    def look(self, call: Caller, settings: Settings, remote: Remote, key: str) -> Seen | None:
        """The Events API answers no questions."""
        return None

    def test(self, call: Caller, settings: Settings) -> str:
        """Resolve an alert that cannot exist: a bad key is refused, and a good one creates nothing."""
        try:
            _send(call, settings, _event(settings, "resolve", f"connection-test-{uuid4().hex}"))
        except PlatformError as error:
            if error.status in (400, 401, 403):
                raise PlatformError("Invalid routing key", permanent=True, status=error.status) from error
            raise
        return "Connection successful"

    def read(self, settings: Settings, headers: Mapping[str, str], body: bytes, now: datetime) -> Inbound | None:
        """A V3 webhook. https://developer.pagerduty.com/docs/webhooks/v3-overview/

        An incident with alerts below it may come without our key: its title, which ends in the incident's id, is told.
        """
        sent = headers.get("X-PagerDuty-Signature", "").split(",")
        given = (one.strip().removeprefix("v1=") for one in sent if one.strip().startswith("v1="))
        webhooks.prove_signature(settings, body, given)
        event = webhooks.document(body).get("event")
        deed = _DEEDS.get(webhooks.word(event, "event_type"))
        agent = webhooks.word(event, "agent", "type")
        if deed is None or "integration" in agent:  # No integration but ours moves an alert of our key.
            return None
        return Inbound(
            event=webhooks.event_id(webhooks.word(event, "id"), body),
            deed=deed,
            by=webhooks.name(webhooks.word(event, "agent", "summary"), webhooks.word(event, "agent", "id")),
            keys=(webhooks.word(event, "data", "incident_key"),),
            title=webhooks.word(event, "data", "title"),
            record_since=webhooks.moment(webhooks.word(event, "data", "created_at")),
            at=webhooks.moment(webhooks.word(event, "occurred_at")),
            maybe_ours="user" not in agent,
        )


def _event(settings: Settings, action: str, key: str) -> dict[str, Any]:
    return {"routing_key": settings["routingKey"], "event_action": action, "dedup_key": key}


def _trigger(settings: Settings, notice: Notice) -> dict[str, Any]:
    """Every text is cut so that the event stays far below the 512 KB that PagerDuty takes, however it is encoded."""
    event = _event(settings, "trigger", notice.key)
    payload = {
        "summary": text.headline(notice, _SUMMARY_LIMIT),
        "source": text.cut(text.one_line(notice.service) or notice.incident_id, _SOURCE_LIMIT),
        "severity": "critical" if notice.escalated else _SEVERITY.get(notice.severity, "error"),
        "timestamp": notice.opened_at.astimezone(UTC).isoformat(),
        "component": text.cut(text.one_line(notice.service), _SOURCE_LIMIT),
        "group": text.cut(text.one_line(notice.environment), _SOURCE_LIMIT),
        "custom_details": _details(notice),
    }
    event["payload"] = {name: value for name, value in payload.items() if value}
    event["client"] = text.PRODUCT
    if text.link(notice):
        event["client_url"] = text.link(notice)
        event["links"] = [{"href": text.link(notice), "text": f"Incident {notice.incident_id}"}]
    return event


def _details(notice: Notice) -> dict[str, str]:
    details = dict(text.facts(notice))
    details[text.cause_heading(notice)] = text.cause(notice)
    details["Description"] = text.cut(text.clean(notice.description), _DETAIL_LIMIT)
    details["Notes"] = text.notes(notice)
    if notice.escalated:
        details["Escalated"] = "Yes. Where the alert was open already, PagerDuty does not notify again."
    return {label: value for label, value in details.items() if value}


def _send(call: Caller, settings: Settings, event: dict[str, Any]) -> Remote:
    address = settings.get("apiUrl") or _API
    reply = call.request("POST", f"{address.rstrip('/')}/v2/enqueue", json=event)
    answer = reply.json()
    # PagerDuty's own client takes a 2xx without dedup_key for a server error: some proxy answered.
    if not isinstance(answer, dict) or answer.get("dedup_key") != event["dedup_key"]:
        raise PlatformError("PagerDuty did not confirm the event", in_doubt=True, status=reply.status)
    return Remote(id=event["dedup_key"])


PLATFORM: Platform = PagerDuty()
