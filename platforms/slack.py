"""Slack through an incoming webhook: every change is one message, because a webhook gives back nothing to edit.

https://api.slack.com/messaging/webhooks
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from platforms import text, webhooks
from platforms.contract import (
    Deed,
    Field,
    Forged,
    Inbound,
    Notice,
    Platform,
    PlatformError,
    Remote,
    Seen,
    Settings,
    Step,
    Unreadable,
)
from platforms.http import Caller

_SIGNS = {"critical": "🔴", "high": "🟠", "medium": "🟡", "low": "🔵"}
_HEADER_LIMIT = 150
_TEXT_LIMIT = 3000
# A section may hold 3,000, but all blocks together only some 13,200, undocumented: slackapi/bolt-js#2509.
_CAUSE_LIMIT = 2900
_NOTES_LIMIT = 2000
_DESCRIPTION_LIMIT = 2000
_VALUE_LIMIT = 300
_SIGNED_SECONDS = 300  # how far the time of a signature may be off: Slack's advice
_BUTTONS: dict[str, Deed] = {"acknowledge": "acknowledge", "resolve": "resolve"}

_DEAD = {
    "channel_is_archived": "The webhook's channel is archived",
    "channel_not_found": "The webhook's channel is gone",
    "action_prohibited": "The workspace does not allow this webhook to post",
}


class Slack:
    name = "slack"
    label = "Slack"
    pages = False
    keyed = False
    reopens_resolved_only = False
    searchable = False
    search_lag = 0.0
    readable = False
    fields = (
        Field(
            "webhookUrl",
            "Webhook URL",
            required=True,
            secret=True,
            target=True,
            hosts=("hooks.slack.com", "hooks.slack-gov.com"),
            path=r"/services/[^/]+/[^/]+/[^/]+",
            help="Of an incoming webhook: whoever knows it can post.",
        ),
        Field(
            "webhookSecret",
            "Signing secret",
            secret=True,
            help="Of the app, whose interactivity requests go to /api/v1/inbound/slack. With it messages have buttons.",
        ),
    )
    identity = ()

    def warning(self, settings: Settings) -> str:
        return ""

    def create(self, call: Caller, settings: Settings, notice: Notice) -> Remote:
        """Post the incident, whatever state it is in."""
        _post(call, settings, _message(settings, notice, "", "", whole=True))
        return Remote()

    def update(
        self, call: Caller, settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """Post what changed since the last message, all of it in one."""
        _post(call, settings, _message(settings, notice, *_happened(notice, steps), whole="reopen" in steps))
        return remote

    def find(self, call: Caller, settings: Settings, key: str) -> Remote | None:
        """A webhook cannot read: whether a message was posted cannot be found out."""
        return None

    def look(self, call: Caller, settings: Settings, remote: Remote, key: str) -> Seen | None:
        """A webhook gives nothing back."""
        return None

    def test(self, call: Caller, settings: Settings) -> str:
        """Send a body that is not JSON. A webhook that works calls it invalid and posts nothing."""
        headers = {"Content-Type": "application/json"}
        reply = call.request(
            "POST", settings["webhookUrl"], headers=headers, body=b'{"text":', expect={400, 403, 404, 410}
        )
        said = reply.text.strip()
        if reply.status == 400 and said == "invalid_payload":
            return "Connection successful"
        if reply.status < 300:
            raise PlatformError("What answers is not a Slack webhook", permanent=True, status=reply.status)
        raise PlatformError(_DEAD.get(said, "Invalid webhook URL"), permanent=True, status=reply.status)

    def read(self, settings: Settings, headers: Mapping[str, str], body: bytes, now: datetime) -> Inbound | None:
        """A press of one of our buttons. https://docs.slack.dev/authentication/verifying-requests-from-slack

        Nothing in the channel shows it: the next message does.
        """
        timestamp = headers.get("X-Slack-Request-Timestamp", "")
        version, _, given = headers.get("X-Slack-Signature", "").partition("=")
        signed = b"v0:" + timestamp.encode("utf-8", "surrogatepass") + b":" + body
        webhooks.prove_signature(settings, signed, [given] if version == "v0" else [])
        _refuse_old(timestamp, now)
        press = _press(body)
        actions = press.get("actions")
        pressed = actions[0] if isinstance(actions, list) and actions else None
        deed = _BUTTONS.get(webhooks.word(pressed, "action_id"))
        if press.get("type") != "block_actions" or deed is None:
            return None
        user, pressed_at = press.get("user"), webhooks.word(pressed, "action_ts")
        who = webhooks.word(user, "id")
        return Inbound(
            event=webhooks.event_id(f"{who}:{pressed_at}:{deed}" if who and pressed_at else "", body),
            deed=deed,
            by=webhooks.name(webhooks.word(user, "username"), webhooks.word(user, "name"), who),
            keys=(webhooks.word(pressed, "value"),),
            at=webhooks.moment(pressed_at),
            maybe_ours=False,
            shows=False,
        )


def _post(call: Caller, settings: Settings, message: dict[str, Any]) -> None:
    reply = call.request("POST", settings["webhookUrl"], json=message)
    # A page of some proxy is a 200 as well. It is not quoted: it could hold the address, which is the secret.
    if reply.text != "ok":
        raise PlatformError("The answer is not Slack's: was the message posted?", in_doubt=True, status=reply.status)


def _happened(notice: Notice, steps: tuple[Step, ...]) -> tuple[str, str]:
    """One word for the title, and the sentence."""
    moved = text.moves(notice, steps)
    found = "Root cause found." if "cause" in steps and text.cause(notice) else ""
    if moved:
        return notice.status.capitalize() if notice.status != "open" else "Reopened", f"{moved} {found}".strip()
    return ("Root cause", found) if found else ("Update", "")


def _refuse_old(timestamp: str, now: datetime) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise Forged("the signature has no time")
    if abs(now.timestamp() - int(timestamp)) > _SIGNED_SECONDS:
        raise Forged("the signature is too old, or a clock is wrong")


def _press(body: bytes) -> dict[str, Any]:
    try:
        fields = parse_qs(body.decode(), max_num_fields=100)
    except ValueError as problem:
        raise Unreadable("The body is not a form.") from problem
    return webhooks.document(fields.get("payload", [""])[0])


def _message(settings: Settings, notice: Notice, word: str, happened: str, *, whole: bool) -> dict[str, Any]:
    """Blocks of plain text, in which Slack renders nothing. `whole`: with the description, for who sees it first."""
    sign = "✅" if notice.status == "resolved" else _SIGNS.get(notice.severity, "⚪")
    lead = f"{sign} {word}: " if word else f"{sign} "
    fallback = f"{lead}{text.headline(notice, _TEXT_LIMIT // 2, _size)}"
    blocks = [{"type": "header", "text": _plain(lead + text.title(notice), _HEADER_LIMIT)}]
    if happened:
        blocks.append(_section(happened, _VALUE_LIMIT))
    rows = [("Status", text.status(notice)), *text.facts(notice)]
    fields = [_plain(f"{label}\n{value}", _VALUE_LIMIT) for label, value in rows]
    blocks.append({"type": "section", "fields": fields})
    if text.cause(notice):
        blocks.append(_section(f"{text.cause_heading(notice)}\n{text.cause(notice)}", _CAUSE_LIMIT))
    if text.notes(notice):
        blocks.append(_section(text.notes(notice), _NOTES_LIMIT))
    if whole and text.clean(notice.description):
        blocks.append(_section(text.clean(notice.description), _DESCRIPTION_LIMIT))
    if text.link(notice):
        address = _escaped(text.link(notice))
        label = f"<{address}|Open {_escaped(notice.incident_id)}>"
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": label, "verbatim": True}})
    if settings.get("webhookSecret") and notice.status != "resolved":
        blocks.append(_buttons(notice))
    return {
        "text": _escaped(fallback),
        "mrkdwn": False,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": blocks,
    }


def _buttons(notice: Notice) -> dict[str, Any]:
    """What `read` understands. Without a signing secret a press could not be believed, so there are none then."""
    names = ["resolve"] if notice.status == "acknowledged" else ["acknowledge", "resolve"]
    buttons = [
        {"type": "button", "action_id": name, "value": notice.key, "text": _plain(name.capitalize(), _VALUE_LIMIT)}
        for name in names
    ]
    return {"type": "actions", "elements": buttons}


def _section(value: str, limit: int) -> dict[str, Any]:
    return {"type": "section", "text": _plain(value, limit)}


def _plain(value: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": _escaped(text.cut(value, limit, _size)), "emoji": False}


def _escaped(value: str) -> str:
    """Slack's three: they neutralise mentions, channel calls and links. https://docs.slack.dev/messaging/formatting"""
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _size(value: str) -> int:
    """What a text takes within the message: escaped, and as JSON."""
    return text.json_units(_escaped(value))


PLATFORM: Platform = Slack()
