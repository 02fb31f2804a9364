"""What every platform module promises, tried over real sockets against stand-ins that judge as strictly as the vendors.

`PlatformContract` is inherited by one class per vendor, in the vendor's test module, which adds what only it does.
"""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from platforms.catalog import PLATFORMS
from platforms.contract import Note, Notice, Platform, PlatformError, Remote, Settings, Step
from platforms.egress import Egress
from platforms.http import Caller
from tests.standins import Standins
from tests.standins.standin import Standin
from tests.waiting import time_begins_with

AT = datetime(2024, 3, 1, 15, 30, tzinfo=UTC)
NOTICE = Notice(
    key="inc-20240301-001-k3yk3yk3y",
    incident_id="inc-20240301-001",
    title="High error rate on payment-api",
    description="upstream timed out while connecting",
    severity="high",
    status="open",
    escalated=False,
    service="payment-api",
    affected_services=("payment-api", "order-engine"),
    score=4.2,
    anomaly_count=461,
    root_cause="The connection pool of order-engine is exhausted.",
    fallback=True,
    link="https://tickets.example/i/inc-20240301-001",
    opened_at=AT,
    environment="production",
    trace_id="abcdef1234567890",
    actor="anna",
)

HOSTILE = {
    "slack control": "<!channel> <@U1> <https://evil.example|Fix now> <#C1> @here",
    "html": '<script>alert(1)</script><img src=x onerror=alert(1)> "><a href="https://evil.example">x</a>',
    "wiki": "{code}x{code} [Fix|http://evil.example] !http://evil.example/x.png! {{y}} h1. z",
    "journal": "[code]<b>bold</b>[/code] [ CODE ]<i>x</i>[/ code]",
    "markdown": "![](https://evil.example/?q=1) **b** ```x``` [Fix](javascript:alert(1))",
    "query": 'x^ORDERBYDESCnumber^state=1 " OR project = OTHER',
    "lines": "first\r\nsecond\nthird\u2028fourth\x85fifth",
    "control": "a\x00b\x1b[31mc\ud800d\u202ee\uffff\U000e0041",
    "emoji": "🔥👩\u200d👩\u200d👧" * 3000,
    "long word": "ß" * 50_000,
    "quotes": "\"\\'" * 9000,
    "ampersands": "&<>" * 9000,
    "many lines": "x\n" * 20_000,
    "blank": " \n\t ",
    "empty": "",
}


def hostile(text: str) -> Notice:
    return replace(
        NOTICE,
        title=text,
        description=text,
        root_cause=text,
        service=text or "x",
        affected_services=(text,) * 200,
        environment=text,
        trace_id=text,
        actor=text,
        notes=(Note(text, text, AT),) * 3,
        score=1.7e308,
    )


class PlatformContract:
    name = ""
    refused = ""  # what `test` says about wrong credentials
    connected = "Connection successful"
    wrong: dict[str, str] = {}  # settings that the vendor does not accept
    reopened = "open"  # what a ticket shows once it is reopened
    comments = True  # whether a cause and a note can be added to a ticket

    @pytest.fixture(scope="class")
    @classmethod
    def standins(cls) -> Iterator[Standins]:
        with Standins() as all_of_them:
            yield all_of_them

    @pytest.fixture(autouse=True)
    def _fresh(self, standins: Standins) -> Iterator[None]:
        self.standin: Standin = standins[self.name]
        self.settings: dict[str, str] = standins.settings(self.name)
        self.platform: Platform = PLATFORMS[self.name]
        yield
        self.standin.lag, self.standin.rate_limit = 0.0, None
        self.standin.settle()
        self.standin.reset()

    # -- what a vendor's class tells

    def tickets(self) -> int:
        raise LookupError

    def status(self) -> str:
        """open, acknowledged or resolved, as people see it at the vendor."""
        raise LookupError

    def raised(self) -> bool:
        """Whether the ticket stands at the vendor's highest priority."""
        raise LookupError

    def said(self) -> str:
        """All that the vendor shows of the ticket."""
        raise LookupError

    # -- doing

    def call(self, seconds: float = 60.0) -> Caller:
        secrets = [
            self.settings[field.name] for field in self.platform.fields if field.secret and field.name in self.settings
        ]
        return Caller(egress=Egress(Standins.NETWORKS), seconds=seconds, secrets=secrets)

    def create(self, notice: Notice = NOTICE, seconds: float = 60.0, settings: Settings | None = None) -> Remote:
        return self.platform.create(self.call(seconds), settings or self.settings, notice)

    def update(self, remote: Remote, *steps: Step, notice: Notice = NOTICE, **changed: Any) -> Remote:
        return self.platform.update(self.call(), self.settings, replace(notice, **changed), remote, steps)

    def failure(self, notice: Notice = NOTICE, seconds: float = 60, settings: Settings | None = None) -> PlatformError:
        with pytest.raises(PlatformError) as caught:
            self.create(notice, seconds, settings)
        for secret in (
            self.settings[field.name] for field in self.platform.fields if field.secret and field.name in self.settings
        ):
            assert secret not in str(caught.value)
        return caught.value

    # -- the promises

    def test_a_ticket_carries_what_a_responder_needs(self):
        self.create()
        assert self.tickets() == 1
        said = self.said()
        for part in (
            "inc-20240301-001",
            "High error rate on payment-api",
            "high",
            "payment-api, order-engine",
            "4.2",
            "461",
            "The connection pool of order-engine is exhausted.",
            "fallback",
            "https://tickets.example/i/inc-20240301-001",
        ):
            assert part in said

    def test_a_cause_by_a_model_is_no_fallback(self):
        self.create(replace(NOTICE, fallback=False))
        assert "fallback" not in self.said()

    @pytest.mark.parametrize("status", ["open", "acknowledged", "escalated", "resolved"])
    def test_a_ticket_is_created_in_the_present_state(self, status):
        self.create(replace(NOTICE, status=status, escalated=status == "escalated"))
        assert self.status() == {"escalated": "open"}.get(status, status)
        assert self.tickets() == (0 if self.platform.pages and status == "resolved" else 1)
        if self.tickets():
            assert self.raised() is (status == "escalated")

    def test_a_ticket_follows_its_incident_through_its_life(self):
        remote = self.create()
        walk = (
            ("acknowledge", "acknowledged", False),
            ("escalate", "escalated", True),
            ("acknowledge", "acknowledged", True),
            ("resolve", "resolved", True),
            ("reopen", "open", False),
            ("resolve", "resolved", False),
        )
        for step, status, escalated in walk:
            remote = self.update(remote, step, status=status, escalated=escalated)
            if status != "escalated":
                assert self.status() == (self.reopened if step == "reopen" else status)
            assert self.raised() is escalated or status == "resolved"

    @pytest.mark.parametrize(
        ("step", "status"), [("acknowledge", "acknowledged"), ("escalate", "escalated"), ("resolve", "resolved")]
    )
    def test_what_is_done_already_is_done(self, step, status):
        remote = self.create()
        for _ in range(2):
            remote = self.update(remote, step, status=status, escalated=status == "escalated")
        assert self.status() == {"escalated": "open"}.get(status, status)
        assert self.tickets() >= 1

    @pytest.mark.parametrize(
        ("steps", "status"),
        [
            (("acknowledge", "resolve"), "resolved"),
            (("escalate", "cause", "resolve"), "resolved"),
            (("resolve", "reopen", "acknowledge"), "acknowledged"),
            (("acknowledge", "resolve", "reopen"), "open"),
            (("reopen", "escalate", "acknowledge"), "acknowledged"),
        ],
    )
    def test_steps_that_waited_end_where_the_incident_is(self, steps, status):
        remote = self.create()
        escalated = "escalate" in steps and status != "resolved"
        self.update(remote, *steps, status=status, escalated=escalated, notes=(Note("anna", "seen", AT),))
        assert self.status() == (self.reopened if steps[-1] == "reopen" else status)
        assert self.raised() or not escalated

    def test_a_cause_and_a_note_reach_a_ticket_that_can_show_them(self):
        remote = self.create()
        self.update(
            remote,
            "cause",
            "note",
            root_cause="A bad deploy.",
            fallback=False,
            notes=(Note("anna", "rolling back", AT),),
        )
        assert ("A bad deploy." in self.said()) is self.comments
        assert ("anna: rolling back" in self.said()) is self.comments
        assert self.status() == "open"

    def test_a_ticket_can_be_found_by_its_key(self):
        created = self.create()
        self.create(replace(NOTICE, key="inc-20240301-002-other", incident_id="inc-20240301-002"))
        found = self.platform.find(self.call(), self.settings, NOTICE.key)
        if not self.platform.searchable:
            assert found is None
            return
        assert found == created
        assert self.platform.find(self.call(), self.settings, "inc-20240301-001-k3y") is None

    def test_what_a_ticket_really_shows_can_be_looked_at_and_a_look_changes_nothing(self):
        remote = self.create()
        if not self.platform.readable:
            before = len(self.standin.seen)
            assert self.platform.look(self.call(), self.settings, remote, NOTICE.key) is None
            assert len(self.standin.seen) == before
            return
        for step, status in ((None, "open"), ("acknowledge", "acknowledged"), ("resolve", "resolved")):
            remote = self.update(remote, step, status=status) if step else remote
            effects = len(self.standin.effects)
            seen = self.platform.look(self.call(), self.settings, remote, NOTICE.key)
            assert (seen.category, bool(seen.status)) == (status, True)
            assert len(self.standin.effects) == effects

    def test_a_look_that_fails_is_no_lost_ticket(self):
        if not self.platform.readable:
            return
        remote = self.create()
        with pytest.raises(PlatformError):
            self.platform.look(self.call(), self.settings | self.wrong, remote, NOTICE.key)
        for code, body in ((500, "{}"), (200, "<html>"), (200, "{}"), (404, "<html>")):
            self.standin.fault("status", times=9, code=code, body=body)
            with pytest.raises(PlatformError):
                self.platform.look(self.call(), self.settings, remote, NOTICE.key)
            self.standin.clear_faults()

    def test_the_connection_test_says_so_and_leaves_no_trace(self):
        assert self.platform.test(self.call(), self.settings) == self.connected
        assert self.connected.startswith("Connection successful")
        assert not self.standin.effects
        assert self.tickets() == 0

    def test_the_connection_test_names_wrong_credentials(self):
        self.settings |= self.wrong
        with pytest.raises(PlatformError) as caught:
            self.platform.test(self.call(), self.settings)
        assert self.refused in str(caught.value)
        assert caught.value.permanent

    def test_wrong_credentials_are_permanent_and_make_nothing(self):
        self.settings |= self.wrong
        error = self.failure()
        assert error.permanent
        assert not error.in_doubt
        assert not self.standin.effects

    @pytest.mark.parametrize("code", [200, 400, 500])
    def test_an_answer_that_quotes_a_secret_does_not_get_it_into_the_error(self, code):
        secret = next(self.settings[field.name] for field in self.platform.fields if field.secret and field.required)
        said = f"you sent {secret}"
        body = {"message": said, "errorMessages": [said], "errors": {"x": said}, "error": {"message": said}}
        self.standin.fault("status", times=None, code=code, body=body)
        self.failure()

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_no_text_is_refused_and_none_is_rendered(self, kind):
        notice = hostile(HOSTILE[kind])
        remote = self.create(notice)
        self.update(remote, "escalate", "cause", "note", notice=notice, status="escalated", escalated=True)
        self.update(remote, "acknowledge", notice=notice, status="acknowledged", escalated=True)
        self.update(remote, "resolve", notice=notice, status="resolved")
        assert self.status() == "resolved"
        own = [{"kind": "link", "text": text} for text in (NOTICE.link, f"{NOTICE.link}|Open {NOTICE.incident_id}")]
        shown = [{"kind": mark["kind"], "text": mark["text"]} for mark in self.standin.rendered]
        assert [mark for mark in shown if mark not in own] == []

    @pytest.mark.parametrize("link", ["", "javascript:alert(1)", "https://a.example/x|<!channel>"])
    def test_a_link_that_is_none_is_left_out(self, link):
        self.create(replace(NOTICE, link=link))
        assert self.tickets() == 1
        assert self.standin.rendered == []
        assert "javascript" not in self.said()

    def test_429_rests_the_platform_and_makes_nothing(self):
        self.standin.fault("status", times=None, code=429, headers={"Retry-After": "17"})
        error = self.failure()
        assert error.pause
        assert not error.permanent
        assert error.retry_after == 17
        assert not self.standin.effects

    def test_500_is_tried_again_and_leaves_a_doubt(self):
        self.standin.fault("status", times=None, code=500)
        error = self.failure()
        assert not error.permanent
        assert error.in_doubt
        assert error.status == 500

    def test_a_hang_ends_at_the_deadline_in_doubt(self, monkeypatch):
        self.standin.fault("hang", times=None)
        time_begins_with(lambda: self.standin.seen, monkeypatch)
        started = time.monotonic()
        error = self.failure(seconds=1.0)
        assert time.monotonic() - started < 10
        assert not error.permanent
        assert error.in_doubt

    def test_a_reset_after_the_request_leaves_a_doubt(self):
        self.standin.fault("reset", times=None, when="after")
        error = self.failure()
        assert not error.permanent
        assert error.in_doubt

    def test_a_closed_port_is_no_doubt(self):
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            elsewhere = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            moved = {name: value.replace(self.standin.url, elsewhere) for name, value in self.settings.items()}
            error = self.failure(settings=moved)
        assert not error.permanent
        assert not error.in_doubt

    @pytest.mark.parametrize("kind", ["html", "empty", "malformed"])
    def test_a_200_that_is_not_the_vendors_is_no_success(self, kind):
        self.standin.fault(kind, times=None)
        error = self.failure()
        assert not error.permanent
        assert error.in_doubt
        with pytest.raises(PlatformError):
            self.platform.test(self.call(), self.settings)

    def test_a_redirect_is_never_followed(self):
        self.standin.fault("redirect", times=None)
        assert self.failure().permanent
        assert not self.standin.effects

    def test_after_a_lost_answer_there_is_still_one_ticket(self):
        self.standin.fault("lost", method="POST")
        error = self.failure()
        assert error.in_doubt
        assert not error.permanent
        assert self.tickets() == 1
        if self.platform.searchable:
            found = self.platform.find(self.call(), self.settings, NOTICE.key)
            assert found is not None
            self.update(found, "acknowledge", status="acknowledged")
            assert self.status() == "acknowledged"
        elif self.platform.keyed:
            self.create()
        assert self.tickets() == 1

    @pytest.mark.parametrize("step", ["acknowledge", "escalate", "resolve", "reopen"])
    def test_after_a_lost_answer_an_update_can_be_sent_again(self, step):
        remote = self.create()
        if step == "reopen":
            remote = self.update(remote, "resolve", status="resolved")
        before = self.tickets()
        status = {"acknowledge": "acknowledged", "escalate": "escalated", "resolve": "resolved", "reopen": "open"}[step]
        self.standin.fault("lost", method="PATCH" if self.name == "servicenow" else None)
        with pytest.raises(PlatformError) as caught:
            self.update(remote, step, status=status, escalated=step == "escalate")
        assert caught.value.in_doubt
        assert not caught.value.permanent
        self.update(remote, step, status=status, escalated=step == "escalate")
        assert self.status() == {"escalated": "open", "open": self.reopened}.get(status, status)
        if self.platform.keyed and step != "reopen":
            assert self.tickets() == before

    def test_required_settings_are_those_of_the_documentation(self):
        assert [field.name for field in self.platform.fields if field.required] == {
            "pagerduty": ["routingKey"],
            "jira": ["baseUrl", "apiToken", "userEmail"],
            "servicenow": ["instanceUrl", "username", "password"],
            "opsgenie": ["apiKey"],
            "slack": ["webhookUrl"],
        }[self.name]
        assert {field.name for field in self.platform.fields} >= {"webhookSecret", *self.platform.identity}


@pytest.mark.parametrize(
    ("name", "setting", "url"),
    [
        ("slack", "webhookUrl", "https://hooks.slack.com/services/T.../B.../..."),
        ("slack", "webhookUrl", "https://hooks.slack-gov.com/services/T0/B0/x"),
        ("jira", "baseUrl", "https://org.atlassian.net"),
        ("opsgenie", "apiUrl", "https://api.atlassian.com/jsm/ops/integration"),
        ("pagerduty", "apiUrl", "https://events.eu.pagerduty.com"),
    ],
)
def test_addresses_of_the_documentation_are_accepted(name, setting, url):
    field = next(field for field in PLATFORMS[name].fields if field.name == setting)
    assert field.target
    assert Egress().url_refusal(url, hosts=field.hosts, path=field.path) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.slack.com/",
        "https://hooks.slack.com/services/T/B/x/y",
        "https://hooks.slack.com.evil.example/services/T/B/x",
    ],
)
def test_slacks_webhooks_have_their_host_and_path(url):
    field = next(field for field in PLATFORMS["slack"].fields if field.name == "webhookUrl")
    assert Egress().url_refusal(url, hosts=field.hosts, path=field.path)


def test_defaults_are_addresses_that_may_be_called():
    for platform in PLATFORMS.values():
        for field in platform.fields:
            if field.target and field.default:
                assert Egress().url_refusal(field.default, hosts=field.hosts, path=field.path) is None


def test_the_catalog_has_the_documents_platforms_in_its_order():
    assert list(PLATFORMS) == ["pagerduty", "jira", "servicenow", "opsgenie", "slack"]
    assert [name for name, platform in PLATFORMS.items() if platform.pages] == ["pagerduty", "opsgenie"]
    for name, platform in PLATFORMS.items():
        assert platform.name == name
        assert platform.label
        assert len({field.name for field in platform.fields}) == len(platform.fields)
        assert platform.warning({}) == "" or name == "opsgenie"


def test_opsgenies_end_is_told_until_its_successor_is_used():
    warning = PLATFORMS["opsgenie"].warning
    for settings in ({}, {"apiUrl": ""}, {"apiUrl": "https://api.eu.opsgenie.com"}):
        assert "5 April 2027" in warning(settings)
    assert warning({"apiUrl": "https://api.atlassian.com/jsm/ops/integration"}) == ""
