"""Slack through an incoming webhook: every change is one message, because a webhook gives back nothing to edit.

https://api.slack.com/messaging/webhooks
"""

from typing import Any

from platforms import text
from platforms.contract import Field, Notice, Platform, PlatformError, Remote, Settings, Step
from platforms.http import Caller

_SIGNS = {"critical": "🔴", "high": "🟠", "medium": "🟡", "low": "🔵"}
_HEADER_LIMIT = 150
_TEXT_LIMIT = 3000
# A section may hold 3,000, but all blocks together only some 13,200, undocumented: slackapi/bolt-js#2509.
_CAUSE_LIMIT = 2900
_NOTES_LIMIT = 2000
_DESCRIPTION_LIMIT = 2000
_VALUE_LIMIT = 300

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
    searchable = False
    search_lag = 0.0
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
        Field("webhookSecret", "Signing secret", secret=True, help="Signs what Slack sends to us."),
    )
    identity = ()
    warning = ""

    def create(self, call: Caller, settings: Settings, notice: Notice) -> Remote:
        """Post the incident, whatever state it is in."""
        _post(call, settings, _message(notice, "", "", whole=True))
        return Remote()

    def update(
        self, call: Caller, settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """Post what changed since the last message, all of it in one."""
        _post(call, settings, _message(notice, *_happened(notice, steps), whole="reopen" in steps))
        return remote

    def find(self, call: Caller, settings: Settings, key: str) -> Remote | None:
        """A webhook cannot read: whether a message was posted cannot be found out."""
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


def _message(notice: Notice, word: str, happened: str, *, whole: bool) -> dict[str, Any]:
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
    return {
        "text": _escaped(fallback),
        "mrkdwn": False,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": blocks,
    }


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
