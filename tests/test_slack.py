"""Slack: the contract, and what a webhook shows."""

import re
from dataclasses import replace

import pytest

from platforms.contract import Note, PlatformError
from tests.test_platform_contract import AT, HOSTILE, NOTICE, PlatformContract, hostile


class TestSlack(PlatformContract):
    name = "slack"
    refused = "Invalid webhook URL"

    @pytest.fixture(autouse=True)
    def _wrong(self, _fresh) -> None:
        self.wrong = {"webhookUrl": f"{self.standin.url}/services/T0STANDIN/B0STANDIN/wrong"}

    def tickets(self):
        return 1 if self.standin.messages else 0

    def status(self):
        status = re.search(r"Status\n(\w+)", self.standin.messages[-1].shown)[1]
        return {"escalated": "open"}.get(status, status)

    def raised(self):
        return "escalated" in self.standin.messages[-1].shown

    def said(self):
        return "\n".join(message.shown for message in self.standin.messages)

    def test_each_change_is_one_message_with_everything(self):
        remote = self.create()
        notes = (Note("anna", "restarting it", AT),)
        self.update(remote, "acknowledge", "cause", "note", status="acknowledged", notes=notes)
        assert len(self.standin.messages) == 2
        shown = self.standin.messages[-1].shown
        for part in (
            "Acknowledged by anna. Root cause found.",
            "anna: restarting it",
            NOTICE.root_cause,
            NOTICE.incident_id,
        ):
            assert part in shown

    def test_the_only_link_is_ours(self):
        self.create(hostile(HOSTILE["slack control"]))
        assert [mark["text"] for mark in self.standin.rendered] == [f"{NOTICE.link}|Open {NOTICE.incident_id}"]

    def test_the_fallback_text_is_escaped_once(self):
        self.create(replace(NOTICE, title="a & <!here>"))
        message = self.standin.messages[0]
        assert "a &amp; &lt;!here&gt; [inc-20240301-001]" in message.text
        assert "&amp;amp;" not in message.shown

    @pytest.mark.parametrize(
        ("code", "body", "said"),
        [
            (410, "channel_is_archived", "archived"),
            (404, "channel_not_found", "channel is gone"),
            (404, "no_service", "Invalid webhook URL"),
            (400, "invalid_token", "Invalid webhook URL"),
            (403, "action_prohibited", "does not allow"),
        ],
    )
    def test_the_connection_test_says_what_is_wrong_with_the_webhook(self, code, body, said):
        self.standin.fault("status", code=code, body=body)
        with pytest.raises(PlatformError, match=said):
            self.platform.test(self.call(), self.settings)
