"""Webhooks from platforms: proven, taken in once, in their order, and not told back to who told us."""

import hashlib
import hmac
import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from auditlog.models import Entry
from config.changes import patch_platforms
from incidents import counters, inbound, lifecycle, retention
from incidents.delivery import attempts
from incidents.models import InboundEvent, Incident, Ticket
from platforms.catalog import PLATFORMS
from platforms.contract import Forged, Unreadable
from tests import raw
from tests.waiting import until

SECRETS = {name: f"inbound-secret-of-{name}" for name in PLATFORMS}
SHOWING = ("pagerduty", "jira", "servicenow", "opsgenie")  # what is done there shows there
SECOND = timedelta(seconds=1)
FORM = "application/x-www-form-urlencoded"


# --- What the vendors send --------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """One webhook, as it goes over the wire."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"


def digest(secret: str, signed: bytes) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def sealed(platform: str, document: object, *, secret: str | None = None, at: datetime | None = None) -> Sent:
    """The document in the platform's wrapping, with the proof that it uses."""
    secret = SECRETS[platform] if secret is None else secret
    body = json.dumps(document).encode()
    if platform == "pagerduty":
        return Sent(body, {"X-PagerDuty-Signature": f"v1={digest(secret, body)}", "X-Webhook-Id": str(uuid4())})
    if platform == "jira":
        return Sent(body, {"X-Hub-Signature": f"sha256={digest(secret, body)}"})
    if platform == "slack":
        body = urlencode({"payload": body.decode()}).encode()
        timestamp = str(int((at or timezone.now()).timestamp()))
        signature = f"v0={digest(secret, b'v0:' + timestamp.encode() + b':' + body)}"
        return Sent(body, {"X-Slack-Request-Timestamp": timestamp, "X-Slack-Signature": signature}, FORM)
    return Sent(body, {"X-Webhook-Secret": secret})


def pagerduty(ticket: Ticket, deed: str, by: str, at: datetime, **data) -> dict:
    """https://developer.pagerduty.com/docs/webhooks/v3-overview/"""
    words = {"acknowledge": "acknowledged", "unacknowledge": "unacknowledged", "resolve": "resolved"}
    agent = {"id": "PLH1HKV", "type": "user_reference", "summary": by, "html_url": "https://x.pagerduty.com/users/P"}
    incident = {
        "id": "PGR0VU2",
        "type": "incident",
        "number": 2,
        "status": "acknowledged",
        "incident_key": ticket.key,
        "created_at": ticket.incident.created_at.isoformat(),
        "title": f"{ticket.incident.title} [{ticket.incident_id}]",
        "service": {"id": "PF9KMXH", "type": "service_reference", "summary": "API Service"},
        "assignees": [],
        "urgency": "high",
        "resolve_reason": None,
    }
    return {
        "event": {
            "id": str(uuid4()),
            "event_type": f"incident.{words.get(deed, 'reopened')}",
            "resource_type": "incident",
            "occurred_at": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "agent": data.pop("agent", agent),
            "client": None,
            "data": incident | data,
        }
    }


def jira(ticket: Ticket, deed: str, by: str, at: datetime, account: str = "5b10ac8d82e05b22cc7d4ef5", **more) -> dict:
    """https://developer.atlassian.com/cloud/jira/platform/webhooks/"""
    category = {"acknowledge": "indeterminate", "begin": "indeterminate", "resolve": "done"}.get(deed, "new")
    fields = {
        "summary": f"{ticket.incident.title} [{ticket.incident_id}]",
        "labels": ["customer-visible", ticket.key],
        "status": {"id": "3", "name": "Whatever", "statusCategory": {"id": 4, "key": category}},
        "creator": {"accountId": "agents-account", "displayName": "Agent"},
    }
    item = {"field": "status", "fieldtype": "jira", "from": "1", "fromString": "a", "to": "3", "toString": "b"}
    return {
        "timestamp": int(at.timestamp() * 1000) + 1,
        "webhookEvent": "jira:issue_updated",
        "issue_event_type_name": "issue_generic",
        "user": {"accountId": account, "displayName": by, "active": True},
        "issue": {"id": "10002", "key": more.pop("key", ticket.remote_id), "fields": fields | more},
        "changelog": {"id": str(uuid4().int % 10**9), "items": [item]},
    }


def opsgenie(ticket: Ticket, deed: str, by: str, at: datetime, source: str = "web") -> dict:
    """https://support.atlassian.com/opsgenie/docs/opsgenie-edge-connector-alert-action-data/"""
    action = {"acknowledge": "Acknowledge", "unacknowledge": "UnAcknowledge", "resolve": "Close"}[deed]
    alert = {
        "alertId": "052652ac-5d1c-464a-812a-7dd18bbfba8c",
        "alias": ticket.key,
        "tinyId": "23",
        "message": ticket.incident.title,
        "username": by,
        "userId": "5b0a44ad",
        "createdAt": 1686211832000,
        "updatedAt": int(at.timestamp() * 1e6) * 1000,
        "tags": ["critical"],
    }
    return {
        "action": action,
        "alert": alert,
        "source": {"name": "", "type": source},
        "integrationId": "37c8f316",
        "integrationName": "Webhook",
    }


def servicenow(ticket: Ticket, deed: str, by: str, at: datetime, **columns) -> dict:
    before, after = {"acknowledge": ("1", "2"), "resolve": ("2", "6")}.get(deed, ("6", "2"))
    return {
        "correlation_id": ticket.key,
        "number": ticket.remote_id,
        "sys_id": ticket.remote_data.get("sysId", "a" * 32),
        "state": after,
        "previous_state": before,
        "sys_updated_by": by,
        "sys_updated_on": at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "sys_mod_count": str(uuid4().int % 10**9),
    } | columns


def slack(ticket: Ticket, deed: str, by: str, at: datetime) -> dict:
    """https://docs.slack.dev/reference/interaction-payloads/block_actions-payload"""
    button = {"type": "button", "action_id": deed, "block_id": "x1", "value": ticket.key}
    return {
        "type": "block_actions",
        "user": {"id": "U2CERLKJA", "username": by, "name": by, "team_id": "T1DC2JH3J"},
        "team": {"id": "T1DC2JH3J", "domain": "testteamnow"},
        "trigger_id": "398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
        "response_url": "https://hooks.slack.com/actions/T1DC2JH3J/397700885554/x",
        "actions": [button | {"action_ts": f"{at.timestamp():.6f}"}],
    }


VENDORS = {"pagerduty": pagerduty, "jira": jira, "servicenow": servicenow, "opsgenie": opsgenie, "slack": slack}


# --- What the tests share ---------------------------------------------------------------------------------------------


def post(platform: str, sent: Sent, prefix: str = ""):
    address = f"{prefix}/api/v1/inbound/{platform}"
    return APIClient().generic("POST", address, sent.body, content_type=sent.kind, headers=sent.headers)


def told(platform: str, document: object, expect: int = 200) -> str:
    """Sends it as the platform does; returns what was said to it."""
    answer = post(platform, sealed(platform, document))
    assert answer.status_code == expect, answer.content
    return answer.json()["message"]


@pytest.fixture
def secrets(everywhere):
    patch_platforms({name: {"webhookSecret": secret} for name, secret in SECRETS.items()}, actor="system")
    return everywhere


@pytest.fixture
def incident(secrets, send, work) -> Incident:
    """An open incident that all five platforms show."""
    [incident_id] = send()["incidents"]
    work()
    return Incident.objects.get(pk=incident_id)


def ticket(incident: Incident, platform: str) -> Ticket:
    return Ticket.objects.select_related("incident").get(incident=incident, platform=platform)


def does(platform: str, incident: Incident, deed: str, by: str = "Anna", at: datetime | None = None, **more) -> str:
    """Somebody does something at the platform, which tells us."""
    return told(platform, VENDORS[platform](ticket(incident, platform), deed, by, at or timezone.now(), **more))


def moves(incident: Incident) -> list[tuple[str, str]]:
    entries = Entry.objects.about(incident.subject).exclude(action="created")
    return list(entries.values_list("action", "actor"))


def status(incident: Incident) -> str:
    return Incident.objects.get(pk=incident.pk).status


def effects(standins) -> dict[str, int]:
    return {name: len(standins[name].effects) for name in PLATFORMS}


def served(standins) -> dict[str, int]:
    return {name: standins[name].served for name in PLATFORMS}


def in_step(incident: Incident) -> bool:
    return not Ticket.objects.behind().filter(incident=incident).exists()


# --- What people do there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
class TestAPersonAtAPlatform:
    def test_acknowledges_and_resolves_and_the_audit_says_who(self, incident, platform):
        assert does(platform, incident, "acknowledge") == "Moved: acknowledge."
        assert does(platform, incident, "resolve", by="Bert") == "Moved: resolve."
        assert moves(incident) == [("acknowledged", f"{platform}:Anna"), ("resolved", f"{platform}:Bert")]

    def test_is_not_answered_by_an_update_of_the_same_platform_and_the_others_follow(
        self, secrets, incident, work, platform
    ):
        requests, before = served(secrets), effects(secrets)
        does(platform, incident, "acknowledge")
        work()
        assert in_step(incident)
        if platform == "slack":  # nothing there shows what a button did, but a message
            before["slack"] += 1
        else:
            assert secrets[platform].served == requests[platform]
        after = effects(secrets)
        assert after[platform] == before[platform]
        for other in set(PLATFORMS) - {platform}:
            kinds = [one["effect"] for one in secrets[other].effects[before[other] :]]
            assert len([kind for kind in kinds if kind != "comment"]) == 1, (other, kinds)

    def test_may_do_the_next_thing_there_and_is_told_what_others_do_afterwards(self, secrets, incident, work, platform):
        does(platform, incident, "acknowledge")
        does(platform, incident, "resolve")
        work()
        requests = served(secrets)
        lifecycle.move("reopen", [incident.pk], actor="user:carl")
        work()
        assert secrets[platform].served > requests[platform]
        assert in_step(incident)

    def test_is_named_in_one_short_line_of_what_can_be_shown(self, incident, platform):
        does(platform, incident, "acknowledge", by="An\x00\x1b[31mna\r\n\u202eevil " + "x" * 500)
        [(_, actor)] = moves(incident)
        assert actor.startswith(f"{platform}:An[31mna evil xxx")
        assert len(actor) <= len(platform) + 101

    def test_who_has_no_name_is_unknown(self, incident, platform):
        document = VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now())
        names = {"summary", "displayName", "accountId", "username", "userId", "sys_updated_by", "user", "agent"}

        def nameless(one):
            return {k: nameless(v) for k, v in one.items() if k not in names} if isinstance(one, dict) else one

        told(platform, nameless(document))
        assert [actor for _, actor in moves(incident)] in ([f"{platform}:unknown"], [])  # may be our own echo

    def test_of_an_incident_that_is_not_ours_is_nobody_we_know(self, incident, platform):
        other = Ticket(platform=platform, remote_id="X-1", incident=Incident(id="inc-20240301-001", token="f" * 10))
        other.incident.created_at = timezone.now()
        document = VENDORS[platform](other, "resolve", "Anna", timezone.now())
        assert told(platform, document) == "Ignored: No incident has such a ticket."
        assert status(incident) == "open"

    def test_the_same_delivery_again_has_no_effect(self, incident, platform):
        sent = sealed(platform, VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now()))
        assert post(platform, sent).status_code == 200
        lifecycle.move("reopen", [incident.pk], actor="user:carl")
        again = post(platform, sent)
        assert again.status_code == 200
        assert again.json()["message"] == "Ignored: It was taken in before."
        assert status(incident) == "open"
        assert InboundEvent.objects.count() == 1

    def test_who_was_overtaken_undoes_nothing(self, incident, platform):
        at = timezone.now() - SECOND if platform != "servicenow" else timezone.now() - 2 * SECOND
        for name in ("resolve", "reopen"):
            lifecycle.move(name, [incident.pk], actor="user:carl")
        assert does(platform, incident, "resolve", at=at) == "Ignored: The incident has moved since."
        assert status(incident) == "open"

    def test_who_comes_too_late_is_refused_without_an_error(self, incident, platform):
        lifecycle.move("resolve", [incident.pk], actor="user:carl")
        said = does(platform, incident, "acknowledge")
        assert said.startswith("Ignored: ")
        assert ("resolved by user:carl" in said) != (platform in ("jira", "servicenow"))  # they know states only
        assert status(incident) == "resolved"

    def test_of_a_month_ago_is_past(self, incident, platform):
        Incident.objects.update(created_at=timezone.now() - timedelta(days=60))
        document = VENDORS[platform](
            ticket(incident, platform), "resolve", "Anna", timezone.now() - timedelta(days=30, seconds=5)
        )
        assert told(platform, document) == "Ignored: It is older than what is remembered."

    def test_is_heard_behind_the_proxy_prefix_too(self, incident, platform):
        sent = sealed(platform, VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now()))
        assert post(platform, sent, "/api/ticketing").status_code == 200
        assert status(incident) == "resolved"


@pytest.mark.parametrize("platform", ["pagerduty", "jira", "servicenow"])
def test_what_is_reopened_there_is_reopened_here(secrets, incident, work, platform):
    lifecycle.move("resolve", [incident.pk], actor="user:carl")
    work()
    requests = served(secrets)
    assert does(platform, incident, "reopen") == "Moved: reopen."
    work()
    assert moves(incident)[-1] == ("reopened", f"{platform}:Anna")
    assert secrets[platform].served == requests[platform]


def test_work_on_what_was_resolved_reopens_it_where_a_vendor_knows_states_only(secrets, incident, work):
    does("jira", incident, "resolve")
    assert does("jira", incident, "begin") == "Moved: reopen."
    assert status(incident) == "open"


def test_work_that_began_while_we_were_resolving_is_no_reopening(secrets, incident, work):
    lifecycle.move("resolve", [incident.pk], actor="user:carl")
    began = timezone.now()
    work()
    assert does("jira", incident, "begin", at=began).startswith("Ignored")
    assert status(incident) == "resolved"


@pytest.mark.parametrize("platform", ["pagerduty", "opsgenie"])
def test_an_acknowledgement_taken_back_opens_the_incident_but_never_a_resolved_one(incident, work, platform):
    does(platform, incident, "acknowledge")
    assert does(platform, incident, "unacknowledge") == "Moved: reopen."
    lifecycle.move("resolve", [incident.pk], actor="user:carl")
    assert does(platform, incident, "unacknowledge").startswith("Ignored")
    assert status(incident) == "resolved"


def test_an_escalated_incident_is_acknowledged_there_and_stays_raised(secrets, incident, work):
    lifecycle.move("escalate", [incident.pk], actor="user:carl")
    work()
    requests = served(secrets)
    does("pagerduty", incident, "acknowledge")
    work()
    assert secrets.pagerduty.served == requests["pagerduty"]
    assert status(incident) == "acknowledged"
    assert secrets.jira.issues[ticket(incident, "jira").remote_id].category == "indeterminate"


def test_an_escalated_incident_that_is_reopened_there_begins_anew_without_being_told_so(secrets, incident, work):
    for name in ("escalate", "resolve"):
        lifecycle.move(name, [incident.pk], actor="user:carl")
    work()
    requests = served(secrets)
    does("pagerduty", incident, "reopen")
    work()
    assert secrets.pagerduty.served == requests["pagerduty"]
    assert in_step(incident)


def test_an_escalation_that_was_still_to_be_shown_is_shown_although_somebody_acknowledged(secrets, incident, work):
    lifecycle.move("escalate", [incident.pk], actor="user:carl")
    does("opsgenie", incident, "acknowledge")
    work()
    [alert] = secrets.opsgenie.alerts[ticket(incident, "opsgenie").key]
    assert (alert.priority, alert.acknowledged) == ("P1", True)


def test_what_was_held_up_is_taken_in_with_the_times_at_which_it_was_done(incident):
    """We were down while somebody acknowledged, resolved and reopened; the vendor delivers it all when we are back."""
    Incident.objects.update(created_at=timezone.now() - timedelta(hours=1))
    begin = timezone.now() - timedelta(minutes=30)
    for minutes, deed in enumerate(("acknowledge", "resolve", "reopen")):
        assert does("pagerduty", incident, deed, at=begin + timedelta(minutes=minutes)) == f"Moved: {deed}."
    assert Incident.objects.get().reopened_at == begin + timedelta(minutes=2)
    assert Incident.objects.get().updated_at > begin + timedelta(minutes=20)
    times = [entry.timestamp for entry in Entry.objects.about(incident.subject)]
    assert times[1:] == [begin + timedelta(minutes=n) for n in range(3)]


def test_a_clock_ahead_of_ours_makes_nothing_happen_in_the_future(incident):
    does("pagerduty", incident, "acknowledge", at=timezone.now() + timedelta(hours=1))
    assert Incident.objects.get().acknowledged_at <= timezone.now()


# --- Which incident ---------------------------------------------------------------------------------------------------


class TestPagerDutysIncidentsWithoutAKey:
    def test_are_known_by_their_whole_title(self, incident):
        assert does("pagerduty", incident, "resolve", incident_key=None) == "Moved: resolve."

    @pytest.mark.parametrize("title", ["Something else [{id}]", "{id}", "", "{title} [inc-20240301-001]", "x\n[{id}]"])
    def test_are_not_taken_for_ours_by_less(self, incident, title):
        title = title.format(id=incident.pk, title=incident.title)
        assert does("pagerduty", incident, "resolve", incident_key=None, title=title).startswith("Ignored")

    def test_are_not_ours_where_they_are_older_than_the_incident(self, incident):
        """Ids begin anew after a backup is restored."""
        older = (incident.created_at - timedelta(hours=2)).isoformat()
        assert does("pagerduty", incident, "resolve", incident_key=None, created_at=older).startswith("Ignored")


def test_an_issue_that_lost_its_label_is_known_by_its_key(incident):
    assert does("jira", incident, "resolve", labels=["other"]) == "Moved: resolve."


def test_an_issue_in_another_project_is_known_by_its_id_and_a_copy_of_it_is_not_taken_for_it(secrets, incident):
    document = jira(ticket(incident, "jira"), "acknowledge", "Anna", timezone.now(), key="NEW-7")
    assert told("jira", document) == "Ignored: No incident has such a ticket."
    document["issue"]["id"] = secrets.jira.issues[ticket(incident, "jira").remote_id].id
    assert told("jira", document) == "Moved: acknowledge."


def test_a_copied_row_is_not_taken_for_it(incident):
    said = does("servicenow", incident, "resolve", sys_id="b" * 32, number="INC7654321")
    assert said == "Ignored: No incident has such a ticket."


def test_a_key_with_another_token_is_another_installations(incident):
    document = pagerduty(ticket(incident, "pagerduty"), "resolve", "Anna", timezone.now())
    document["event"]["data"]["incident_key"] = f"{incident.pk}-{'0' * 10}"
    assert told("pagerduty", document) == "Ignored: No incident has such a ticket."


def test_a_record_that_a_newer_one_has_replaced_moves_nothing(incident):
    document = servicenow(ticket(incident, "servicenow"), "resolve", "anna", timezone.now())
    Ticket.objects.filter(platform="servicenow").update(generation=2)
    assert told("servicenow", document) == "Ignored: No incident has such a ticket."


@pytest.mark.parametrize(
    ("platform", "change"),
    [
        ("pagerduty", lambda d: d["event"].update(event_type="incident.priority_updated")),
        ("pagerduty", lambda d: d["event"].update(event_type="pagey.ping")),
        ("jira", lambda d: d["changelog"].update(items=[{"field": "assignee"}])),
        ("jira", lambda d: d.update(webhookEvent="jira:issue_deleted")),
        ("opsgenie", lambda d: d.update(action="AddNote")),
        ("servicenow", lambda d: d.update(previous_state=d["state"])),
        ("slack", lambda d: d.update(type="view_submission")),
        ("slack", lambda d: d["actions"][0].update(action_id="other")),
    ],
)
def test_what_moves_no_incident_is_let_pass(incident, platform, change):
    document = VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now())
    change(document)
    assert told(platform, document) == "Ignored: It moves no incident."
    assert not InboundEvent.objects.exists()


# --- Echoes -----------------------------------------------------------------------------------------------------------


def integration() -> dict:
    return {"id": "PX", "type": "events_api_v2_inbound_integration_reference", "summary": "Events API v2"}


class TestAnEcho:
    def test_of_our_integration_at_pagerduty_is_none_of_anybodys(self, incident, work):
        for name in ("acknowledge", "reopen"):
            lifecycle.move(name, [incident.pk], actor="user:carl")
            work()
        assert does("pagerduty", incident, "acknowledge", agent=integration()).startswith("Ignored")
        assert status(incident) == "open"

    @pytest.mark.parametrize(
        ("platform", "by_us"),
        [
            ("pagerduty", {"agent": None}),
            ("jira", {"account": "agents-account"}),
            ("opsgenie", {"source": "API"}),
            ("servicenow", {"sys_updated_by": "standin"}),
        ],
    )
    def test_of_what_is_past_undoes_nothing(self, incident, secrets, work, platform, by_us):
        if platform == "servicenow":
            by_us = {"sys_updated_by": secrets.settings("servicenow")["username"]}
        for name in ("acknowledge", "reopen"):
            lifecycle.move(name, [incident.pk], actor="user:carl")
            work()
        shown_at = ticket(incident, platform).shown_at  # the acknowledgement comes late, and seems to be of now
        said = does(platform, incident, "acknowledge", at=shown_at, **by_us)
        assert said == "Ignored: It is an echo of what we did."
        assert status(incident) == "open"

    def test_may_arrive_while_the_attempt_is_still_under_way(self, incident):
        Ticket.objects.filter(platform="jira").update(lease_until=timezone.now() + 30 * SECOND)
        said = does("jira", incident, "resolve", account="agents-account")
        assert said == "Ignored: It may be an echo of the attempt that is under way."

    def test_may_come_of_an_attempt_of_which_nobody_knows_what_it_did(self, incident):
        Ticket.objects.update(shown_at=timezone.now() - timedelta(minutes=1))
        Ticket.objects.filter(platform="jira").update(in_doubt=True)
        assert does("jira", incident, "resolve", account="agents-account").startswith("Ignored")

    def test_of_what_the_ticket_still_shows_is_no_news_however_late_it_comes(self, incident, work):
        lifecycle.move("acknowledge", [incident.pk], actor="user:carl")
        work()
        Ticket.objects.update(shown_at=timezone.now() - timedelta(minutes=1))
        lifecycle.move("reopen", [incident.pk], actor="user:carl")
        assert (
            does("jira", incident, "acknowledge", account="agents-account") == "Ignored: It is an echo of what we did."
        )

    def test_is_not_what_a_person_does_with_the_same_account(self, incident):
        """Whose token it is may well work there by hand."""
        Ticket.objects.update(shown_at=timezone.now() - timedelta(minutes=1))
        assert does("jira", incident, "resolve", account="agents-account") == "Moved: resolve."

    def test_is_never_what_another_account_does(self, incident):
        Ticket.objects.filter(platform="jira").update(lease_until=timezone.now() + 30 * SECOND)
        assert does("jira", incident, "resolve") == "Moved: resolve."


# --- No loop, whatever is under way -----------------------------------------------------------------------------------


def test_a_change_that_was_still_to_be_shown_is_shown_without_the_move(secrets, incident, work):
    """The model's answer came just before somebody acknowledged there: the comment goes there, the move does not."""
    Incident.objects.update(root_cause="The disk is full.", cause_model="gpt-4", fallback=False)
    lifecycle.tickets_want_more([incident.pk])
    before = len(secrets.jira.effects)
    does("jira", incident, "acknowledge")
    work()
    assert [one["effect"] for one in secrets.jira.effects[before:]] == ["comment"]
    assert in_step(incident)


def test_a_move_made_here_before_the_worker_came_is_shown_from_where_the_record_really_is(secrets, incident, work):
    does("jira", incident, "resolve")
    secrets.jira.move(ticket(incident, "jira").remote_id, "Done")
    lifecycle.move("reopen", [incident.pk], actor="user:carl")
    work()
    assert secrets.jira.issues[ticket(incident, "jira").remote_id].category == "new"
    assert in_step(incident)


def test_in_doubt_about_what_it_shows_the_platform_is_told_again(secrets, incident, work):
    """The lost acknowledge may be carried out after the resolve that we heard of."""
    secrets.jira.fault("lost", path="transitions", method="POST", work=False)
    lifecycle.move("acknowledge", [incident.pk], actor="user:carl")
    work()
    assert ticket(incident, "jira").in_doubt
    does("jira", incident, "resolve")
    work(later=True)
    assert secrets.jira.issues[ticket(incident, "jira").remote_id].category == "done"


def test_created_anew_a_ticket_forgets_what_was_heard_of_the_old(secrets, incident, work):
    does("jira", incident, "acknowledge")
    lifecycle.retry_ticket(ticket(incident, "jira").pk, actor="user:carl", anew=True)
    work(later=True)
    assert len(secrets.jira.issues) == 2
    assert secrets.jira.issues[ticket(incident, "jira").remote_id].category == "indeterminate"


@pytest.mark.django_db(transaction=True)
class TestWhileAWorkerIsAtIt:
    """A request of ours is on its way when the webhook comes, and is answered after it."""

    @pytest.fixture(autouse=True)
    def _patience(self, monkeypatch):
        monkeypatch.setattr(attempts, "PAGING", attempts.Times(deadline=60, lease=90))
        monkeypatch.setattr(attempts, "OTHER", attempts.Times(deadline=60, lease=90))

    def during(self, standins, platform: str, path: str, event) -> None:
        fault = standins[platform].fault("late", path=path, method="POST", seconds=60)
        worker = threading.Thread(target=self.attempt, args=(platform,))
        worker.start()
        try:
            until(lambda: fault.used)
            event()
        finally:
            fault.over.set()
            worker.join()

    def attempt(self, platform: str) -> None:
        try:
            attempts.attempt_next(platform)
        finally:
            connection.close()

    def test_with_a_comment_the_move_is_not_told_back(self, secrets, incident, work):
        Incident.objects.update(root_cause="The disk is full.", cause_model="gpt-4", fallback=False)
        lifecycle.tickets_want_more([incident.pk])
        self.during(secrets, "jira", "/comment", lambda: does("jira", incident, "resolve"))
        requests = secrets.jira.served
        work()
        assert secrets.jira.served == requests
        assert status(incident) == "resolved"
        assert in_step(incident)

    def test_with_the_first_request_the_ticket_is_known_and_not_told_back(self, secrets, send, work):
        send()
        self.during(secrets, "pagerduty", "/enqueue", self.acknowledge)
        requests = secrets.pagerduty.served
        work()
        assert secrets.pagerduty.served == requests
        assert Incident.objects.get().status == "acknowledged"
        assert Ticket.objects.get(platform="pagerduty").remote_id

    def acknowledge(self) -> None:
        assert does("pagerduty", Incident.objects.get(), "acknowledge") == "Moved: acknowledge."

    def test_with_an_older_move_the_platform_is_told_so_that_it_ends_up_right(self, secrets, incident, work):
        lifecycle.move("acknowledge", [incident.pk], actor="user:carl")
        self.during(secrets, "jira", "/transitions", lambda: does("jira", incident, "resolve"))
        work()
        assert secrets.jira.issues[ticket(incident, "jira").remote_id].category == "done"
        assert in_step(incident)


@pytest.mark.django_db(transaction=True)
def test_one_delivery_twice_at_once_is_taken_in_once(secrets, incident):
    documents = [
        sealed(name, VENDORS[name](ticket(incident, name), deed, "Anna", timezone.now()))
        for name, deed in (("pagerduty", "acknowledge"), ("pagerduty", "resolve"))
    ]
    for sent in documents:
        together, answers = threading.Barrier(4, timeout=60), []

        def deliver(sent=sent, together=together, answers=answers):
            together.wait()
            try:
                answers.append(post("pagerduty", sent))
            finally:
                connection.close()

        threads = [threading.Thread(target=deliver) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 4
        assert len([answer for answer in answers if answer.json()["message"].startswith("Moved")]) == 1
    assert moves(incident) == [("acknowledged", "pagerduty:Anna"), ("resolved", "pagerduty:Anna")]


# --- Proof ------------------------------------------------------------------------------------------------------------


def without(sent: Sent, *names: str) -> Sent:
    return Sent(sent.body, {name: value for name, value in sent.headers.items() if name not in names}, sent.kind)


@pytest.mark.parametrize("platform", PLATFORMS)
class TestProof:
    def refused(self, platform: str, sent: Sent) -> dict:
        answer = post(platform, sent)
        assert answer.status_code == 401, answer.content
        assert not InboundEvent.objects.exists()
        return answer.json()

    def resolving(self, incident, platform: str, **how) -> Sent:
        return sealed(platform, VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now()), **how)

    def test_is_asked_for(self, incident, platform):
        sent = self.resolving(incident, platform)
        for name in sent.headers:
            if name != "X-Webhook-Id":
                self.refused(platform, without(sent, name))
        assert status(incident) == "open"

    def test_that_is_wrong_is_refused(self, incident, platform):
        self.refused(platform, self.resolving(incident, platform, secret="another secret"))
        sent = self.resolving(incident, platform)
        for change in (str.upper, lambda v: v + "0", lambda v: v[:-1], lambda v: f"\xff{v}", lambda v: v * 500):
            self.refused(platform, Sent(sent.body, {k: change(v) for k, v in sent.headers.items()}, sent.kind))

    def test_of_another_platform_is_refused(self, incident, platform):
        for other in set(PLATFORMS) - {platform}:
            document = VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now())
            self.refused(platform, sealed(other, document))
            self.refused(platform, sealed(platform, document, secret=SECRETS[other]))

    def test_without_a_secret_the_door_is_closed_and_says_the_same(self, incident, platform):
        wrong = self.refused(platform, self.resolving(incident, platform, secret="wrong"))
        patch_platforms({platform: {"webhookSecret": ""}}, actor="system")
        for secret in ("", SECRETS[platform]):
            assert self.refused(platform, self.resolving(incident, platform, secret=secret)) == wrong

    def test_comes_before_everything_else(self, incident, platform):
        for body in (b"", b"{", b"[" * 100_000):
            self.refused(platform, Sent(body, {"X-Webhook-Secret": "wrong"}))

    def test_of_a_credential_is_none(self, api, incident, platform):
        answer = api.post(f"/api/v1/inbound/{platform}", {}, format="json")
        assert answer.status_code == 401

    def test_makes_an_unreadable_body_an_error_that_names_it(self, incident, platform):
        for document in ([], "x", None, 1):
            answer = post(platform, sealed(platform, document))
            assert answer.status_code == 400
            assert answer.json()["message"] == "The body must be a JSON object."

    def test_does_not_make_values_what_they_should_be(self, incident, platform):
        """Whatever a field holds, there is no error, and nothing moves that was not meant."""
        whole = VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now())
        for hostile in (None, [], {}, "", "\x00\ud800", 10**400, -1, True, ["x"], {"key": "x"}, "9" * 30):
            for path in paths(whole):
                answer = post(platform, sealed(platform, put(whole, path, hostile)))
                assert answer.status_code == 200, (path, hostile, answer.content)


def paths(document: object, above: tuple = ()) -> list[tuple]:
    parts = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path for name, part in parts for path in [(*above, name), *paths(part, (*above, name))]]


def put(document: object, path: tuple, hostile: object) -> object:
    whole = json.loads(json.dumps(document))
    place = whole
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = hostile
    return whole


class TestSignatures:
    def test_pagerduty_may_send_several_while_secrets_rotate(self, incident):
        sent = sealed("pagerduty", pagerduty(ticket(incident, "pagerduty"), "resolve", "Anna", timezone.now()))
        right = sent.headers["X-PagerDuty-Signature"]
        for several in (f"v1={'0' * 64},{right}", f"{right},v1={'0' * 64}", f"v0=x, {right}"):
            assert post("pagerduty", Sent(sent.body, {"X-PagerDuty-Signature": several})).status_code == 200
        for wrong in (right.removeprefix("v1="), right.replace("v1=", "v0="), f"v1={'0' * 64}," * 500 + right):
            assert post("pagerduty", Sent(sent.body, {"X-PagerDuty-Signature": wrong})).status_code == 401

    def test_are_over_the_body_as_it_came(self, incident):
        sent = sealed("jira", jira(ticket(incident, "jira"), "resolve", "Anna", timezone.now()))
        again = json.dumps(json.loads(sent.body), separators=(",", ":")).encode()
        assert post("jira", Sent(again, sent.headers)).status_code == 401
        spaced = b" " + again + b"\n"
        headers = {"X-Hub-Signature": f"sha256={digest(SECRETS['jira'], spaced)}"}
        assert post("jira", Sent(spaced, headers)).status_code == 200

    def test_slacks_own_example(self):
        body = (
            b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
            b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
            b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaI"
            b"FfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
        )
        headers = {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        }
        settings = {"webhookSecret": "8f742231b10e8888abcd99yyyzzz85a5"}
        at = datetime.fromtimestamp(1531420618, UTC)
        for seconds in (-300, 0, 300):
            with pytest.raises(Unreadable, match="JSON"):  # believed, and no press of a button
                PLATFORMS["slack"].read(settings, headers, body, at + timedelta(seconds=seconds))
        for seconds in (-301, 301):
            with pytest.raises(Forged, match="too old"):
                PLATFORMS["slack"].read(settings, headers, body, at + timedelta(seconds=seconds))
        with pytest.raises(Forged):
            PLATFORMS["slack"].read(settings, headers, body + b"&x=1", at)

    def test_slacks_are_refused_when_they_are_old(self, incident):
        document = slack(ticket(incident, "slack"), "resolve", "Anna", timezone.now())
        for minutes in (-6, 6):
            sent = sealed("slack", document, at=timezone.now() + timedelta(minutes=minutes))
            assert post("slack", sent).status_code == 401

    @pytest.mark.parametrize("platform", ["opsgenie", "servicenow"])
    def test_a_shared_secret_may_come_as_a_bearer_token(self, incident, platform):
        document = VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now())
        sent = sealed(platform, document)
        assert post(platform, Sent(sent.body, {"Authorization": f"Bearer {SECRETS[platform]}"})).status_code == 200
        for wrong in (f"Basic {SECRETS[platform]}", SECRETS[platform], "Bearer", "Bearer  "):
            assert post(platform, Sent(sent.body, {"Authorization": wrong})).status_code == 401

    def test_of_a_megabyte_cost_nothing(self, incident):
        reply = raw.send(
            "POST", "/api/v1/inbound/pagerduty", b"{}", Content_Type="application/json",
            X_PagerDuty_Signature="v1=" + "a" * 2**20,
        )  # fmt: skip
        assert reply.status == 401


# --- The door ---------------------------------------------------------------------------------------------------------


class TestTheDoor:
    def test_knows_five_platforms_and_one_method(self, db):
        assert raw.send("POST", "/api/v1/inbound/teams", b"{}", Content_Type="application/json").status == 404
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            assert raw.send(method, "/api/v1/inbound/jira").status == 405

    def test_takes_ten_megabytes_and_no_more(self, secrets):
        body = b'{"x": "' + b"a" * (10 * 1024 * 1024) + b'"}'
        assert post("opsgenie", Sent(body, {"X-Webhook-Secret": SECRETS["opsgenie"]})).status_code == 413
        assert (
            post("opsgenie", Sent(body[:10_000_000] + b'"}', {"X-Webhook-Secret": SECRETS["opsgenie"]})).status_code
            == 200
        )

    def test_refuses_what_no_platform_sends(self, secrets):
        for kind in ("text/plain", "multipart/form-data; boundary=x", ""):
            assert post("jira", Sent(b"{}", {}, kind)).status_code == 415

    def test_tells_no_secret_in_the_log(self, incident, caplog):
        for platform in PLATFORMS:
            sent = sealed(platform, VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now()))
            post(platform, sent)
            post(platform, Sent(sent.body, dict.fromkeys(sent.headers, "wrong"), sent.kind))
        assert "Refused a webhook" in caplog.text
        assert not [secret for secret in SECRETS.values() if secret in caplog.text]

    @pytest.mark.parametrize("platform", PLATFORMS)
    def test_counts_what_came_of_it(self, incident, platform):
        counters._pending.clear()
        sent = sealed(platform, VENDORS[platform](ticket(incident, platform), "resolve", "Anna", timezone.now()))
        for each in (sent, sent, Sent(sent.body, dict.fromkeys(sent.headers, "wrong"), sent.kind)):
            post(platform, each)
        counted = {
            outcome: counters._pending[counters.WEBHOOKS.sample(platform=platform, outcome=outcome)]
            for outcome in counters.WEBHOOKS.labels["outcome"]
        }
        assert counted == {"moved": 1, "ignored": 1, "refused": 1, "unreadable": 0}

    def test_answers_in_a_constant_number_of_queries(self, settled, incident, django_assert_max_num_queries):
        sent = sealed("jira", jira(ticket(incident, "jira"), "resolve", "Anna", timezone.now()))
        with django_assert_max_num_queries(20):
            assert post("jira", sent).status_code == 200


def test_event_ids_are_forgotten_after_a_month(incident):
    does("pagerduty", incident, "acknowledge")
    does("pagerduty", incident, "resolve")
    first = InboundEvent.objects.earliest("pk")
    InboundEvent.objects.filter(pk=first.pk).update(seen_at=timezone.now() - inbound.REMEMBERED - SECOND)
    retention.prune()
    assert InboundEvent.objects.count() == 1


class TestSlacksButtons:
    def buttons(self, standins) -> list[tuple[str, str]]:
        return [
            (one["action_id"], one["value"])
            for block in standins.slack.messages[-1].blocks
            if block["type"] == "actions"
            for one in block["elements"]
        ]

    def test_are_there_where_a_press_can_be_believed(self, secrets, incident, work):
        key = ticket(incident, "slack").key
        assert self.buttons(secrets) == [("acknowledge", key), ("resolve", key)]
        does("slack", incident, "acknowledge", by="anna")
        work()
        assert self.buttons(secrets) == [("resolve", key)]
        assert "Acknowledged by slack:anna." in secrets.slack.messages[-1].shown
        does("slack", incident, "resolve")
        work()
        assert self.buttons(secrets) == []

    def test_are_not_there_without_a_signing_secret(self, everywhere, send, work):
        send()
        work()
        assert self.buttons(everywhere) == []
