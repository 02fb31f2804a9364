"""PagerDuty: the contract, and what only the Events API does."""

import json
from dataclasses import replace

from platforms.contract import Note
from tests.test_platform_contract import AT, NOTICE, PlatformContract, hostile


class TestPagerDuty(PlatformContract):
    name = "pagerduty"
    refused = "Invalid routing key"
    wrong = {"routingKey": "your-pagerduty-routing-key"}
    comments = False

    def alerts(self):
        return self.standin.alerts.get(NOTICE.key, [])

    def tickets(self):
        return len(self.alerts())

    def status(self):
        if not self.alerts():
            return "resolved"
        return {"triggered": "open"}.get(self.alerts()[-1].state, self.alerts()[-1].state)

    def raised(self):
        return self.alerts()[-1].severity == "critical"

    def said(self):
        return "\n".join(json.dumps(alert.events, ensure_ascii=False) for alert in self.alerts())

    def test_the_severities_are_pagerdutys(self):
        for ours, theirs in (("critical", "critical"), ("high", "error"), ("medium", "warning"), ("low", "info")):
            self.create(replace(NOTICE, severity=ours, key=f"key-{ours}"))
            assert self.standin.alerts[f"key-{ours}"][0].severity == theirs

    def test_escalating_joins_the_open_alert_and_says_that_nobody_is_paged_again(self):
        remote = self.create()
        self.update(remote, "escalate", status="escalated", escalated=True)
        assert self.standin.pages == 1
        assert "does not notify again" in self.said()

    def test_reopening_pages_again(self):
        remote = self.create()
        self.update(remote, "resolve", status="resolved")
        self.update(remote, "reopen")
        assert self.standin.pages == 2

    def test_what_was_overtaken_pages_nobody(self):
        remote = self.create()
        self.update(remote, "resolve", status="resolved")
        self.update(remote, "reopen", "escalate", "cause", "resolve", status="resolved")
        assert self.standin.pages == 1

    def test_a_cause_does_not_page_where_somebody_resolved_the_alert_there(self):
        remote = self.create()
        self.alerts()[-1].state = "resolved"
        self.update(remote, "cause", "note", notes=(Note("anna", "x", AT),))
        assert self.standin.pages == 1

    def test_an_incident_without_service_has_a_source(self):
        self.create(replace(NOTICE, service="", affected_services=()))
        assert self.alerts()[0].events[0]["payload"]["source"] == NOTICE.incident_id

    def test_the_largest_event_stays_below_512_kb(self):
        self.create(hostile("\U0001f525" * 50_000))
        assert max(len(seen.body) for seen in self.standin.seen) < 400_000

    def test_what_fails_after_the_alert_was_taken_leaves_a_doubt(self):
        self.standin.fault("status", code=429, skip=1)
        error = self.failure(replace(NOTICE, status="acknowledged"))
        assert error.in_doubt
        assert error.pause

    def test_resolving_what_an_earlier_attempt_may_have_opened_closes_it(self):
        self.standin.fault("lost")
        self.failure()
        self.create(replace(NOTICE, status="resolved"))
        assert (self.status(), self.standin.pages) == ("resolved", 1)
