"""OpsGenie and its successor: the contract, and what comes of answers that come before the work."""

import json
from dataclasses import replace

import pytest

from platforms import opsgenie
from platforms.contract import Note, PlatformError
from tests.test_platform_contract import AT, NOTICE, PlatformContract
from tests.waiting import time_begins_with, until


class TestOpsGenie(PlatformContract):
    name = "opsgenie"
    refused = "Invalid API key"
    wrong = {"apiKey": "wrong"}

    def alerts(self):
        return self.standin.alerts.get(NOTICE.key, [])

    def tickets(self):
        return len(self.alerts())

    def status(self):
        if not self.alerts() or self.alerts()[-1].status == "closed":
            return "resolved"
        return "acknowledged" if self.alerts()[-1].acknowledged else "open"

    def raised(self):
        return self.alerts()[-1].priority == "P1"

    def said(self):
        return "\n".join(
            "\n".join([a.message, a.description, json.dumps(a.details, ensure_ascii=False), *a.notes])
            for a in self.alerts()
        )

    def test_the_priorities_are_opsgenies(self):
        for ours, theirs in (("critical", "P1"), ("high", "P2"), ("medium", "P3"), ("low", "P4")):
            self.create(replace(NOTICE, severity=ours, key=f"key-{ours}"))
            assert self.standin.alerts[f"key-{ours}"][0].priority == theirs

    def test_a_request_still_waiting_is_asked_for_again(self):
        self.standin.lag = 0.3
        assert self.create().data["alertId"] == self.alerts()[0].id

    def test_a_request_that_waits_too_long_is_a_doubt_and_pages_once(self, monkeypatch):
        self.standin.lag = 60
        time_begins_with(lambda: self.standin.seen, monkeypatch)
        error = self.failure(seconds=1.5)
        assert error.in_doubt
        assert not error.permanent
        self.standin.lag = 0
        self.create()
        assert self.standin.pages == 1

    @pytest.fixture
    def impatient(self, monkeypatch):
        monkeypatch.setattr(opsgenie, "_PAUSES", (0.05,))

    def patiently(self, ask):
        """Makes attempts that soon give up, each told what OpsGenie took in the one before."""
        taken = ()

        def attempt():
            nonlocal taken
            try:
                return ask(self.call(60), taken)
            except PlatformError as error:
                taken = error.taken

        return until(attempt)

    def test_what_it_took_is_waited_for_over_attempts_and_not_sent_again(self, impatient):
        self.standin.lag = 1
        notice = replace(NOTICE, status="acknowledged")
        remote = self.patiently(
            lambda call, taken: self.platform.create(call, self.settings, replace(notice, taken=taken))
        )
        [alert] = self.alerts()
        assert (remote.data["alertId"], alert.count, self.status()) == (alert.id, 1, "acknowledged")

        notice = replace(NOTICE, status="escalated", escalated=True)
        self.patiently(
            lambda call, taken: self.platform.update(
                call, self.settings, replace(notice, taken=taken), remote, ("escalate",)
            )
        )
        assert (self.raised(), self.status(), len(alert.notes)) == (True, "open", 1)

    def test_what_came_to_nothing_is_sent_again_at_once(self, impatient):
        self.standin.lag = 60
        taken = self.failure().taken
        self.standin.come_to_nothing()
        with pytest.raises(PlatformError, match="did not create the alert") as error:
            self.create(replace(NOTICE, taken=taken))
        assert error.value.taken == ()

    def test_what_it_took_is_not_taken_for_something_else_that_is_asked(self, impatient):
        self.standin.lag = 60
        taken = self.failure().taken
        assert len(taken) == 1
        self.standin.lag = 0
        self.create(replace(NOTICE, status="resolved", taken=taken))
        assert self.status() == "resolved"

    def test_an_escalation_calls_for_somebody_again(self):
        remote = self.create(replace(NOTICE, status="acknowledged"))
        self.update(remote, "escalate", status="escalated", escalated=True)
        alert = self.alerts()[0]
        assert (alert.priority, alert.acknowledged, self.standin.pages) == ("P1", False, 1)
        assert "Escalated by anna." in alert.notes[-1]

    def test_an_escalation_of_an_alert_that_was_closed_there_pages_anew(self):
        remote = self.create()
        self.alerts()[0].status = "closed"
        remote = self.update(remote, "escalate", status="escalated", escalated=True)
        assert (self.standin.pages, self.alerts()[-1].priority) == (2, "P1")
        assert remote.data["alertId"] == self.alerts()[-1].id

    @pytest.mark.parametrize(
        ("step", "status"),
        [("acknowledge", "acknowledged"), ("resolve", "resolved"), ("cause", "open"), ("note", "open")],
    )
    def test_an_alert_that_was_closed_there_stays_closed(self, step, status):
        remote = self.create()
        self.alerts()[0].status = "closed"
        self.update(remote, step, status=status, notes=(Note("anna", "x", AT),))
        assert (self.status(), self.standin.pages) == ("resolved", 1)

    def test_reopening_what_was_only_acknowledged_takes_that_back(self):
        remote = self.create(replace(NOTICE, status="acknowledged"))
        self.update(remote, "reopen")
        assert (self.status(), self.standin.pages) == ("open", 1)

    def test_reopening_what_was_resolved_pages_again(self):
        remote = self.create()
        self.update(remote, "resolve", status="resolved")
        again = self.update(remote, "reopen")
        assert self.standin.pages == 2
        assert again.data["alertId"] == self.alerts()[-1].id != remote.data["alertId"]

    def test_a_key_of_an_account_is_told_apart(self):
        self.settings["apiKey"] = self.standin.account_key
        with pytest.raises(PlatformError, match="use the key of an API integration"):
            self.platform.test(self.call(), self.settings)

    def test_a_ticket_that_fails_says_what_to_do_as_the_test_does(self):
        self.settings["apiKey"] = "wrong"
        assert self.failure().message.startswith("Invalid API key, or one of another region")

    def test_a_key_without_read_access_is_told_apart(self):
        self.standin.fault("status", code=403, path="/requests/")
        with pytest.raises(PlatformError, match="read access"):
            self.platform.test(self.call(), self.settings)

    def test_what_fails_after_the_alert_was_taken_leaves_a_doubt(self):
        for fault in ({"path": "/requests/", "code": 403}, {"path": "/acknowledge", "code": 422}):
            self.standin.fault("status", **fault)
            error = self.failure(replace(NOTICE, status="acknowledged"))
            assert error.in_doubt
            assert error.permanent

    def test_the_successor_takes_the_same_calls_under_its_path(self):
        self.settings = self.standin.jsm_settings()
        remote = self.create()
        self.update(remote, "resolve", status="resolved")
        assert self.status() == "resolved"
        assert self.platform.test(self.call(), self.settings) == "Connection successful"

    def test_an_alias_is_a_part_of_the_path_whatever_it_holds(self):
        odd = replace(NOTICE, key="a/b?c#d e%2f..")
        remote = self.create(odd)
        self.update(remote, "resolve", notice=odd, status="resolved")
        assert self.standin.alerts[odd.key][0].status == "closed"
