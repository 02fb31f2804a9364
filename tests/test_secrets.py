"""Secrets come in and never come out: canaries are set, everything goes wrong, and no trace of them is found."""

import base64
import io
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from cryptography.fernet import Fernet
from django.apps import apps
from django.core import serializers
from django.core.management import CommandError, call_command
from django.db import connection

from auditlog.models import Entry
from config import current, probes, rotation
from config.models import PlatformVersion, Section
from incidents import tasks, wakeup
from incidents.causes import health
from incidents.models import Ticket
from platforms.catalog import PLATFORMS

# Awkward on purpose: some forms of them differ from what was typed.
CANARIES = {
    "pagerduty": {"routingKey": "canary+pagerduty/routing=key", "webhookSecret": "canary-pagerduty-webhook"},
    "jira": {"apiToken": "canary:jira token&1", "webhookSecret": "canary-jira-webhook"},
    "servicenow": {"password": 'canary"servicenow\\pa%ss', "webhookSecret": "canary-servicenow-webhook"},
    "opsgenie": {"apiKey": "canary-opsgenie-0123456789abcdef", "webhookSecret": "canary-opsgenie-webhook"},
    "slack": {"webhookUrl": "/services/TCANARY/BCANARY/canaryslackpath", "webhookSecret": "canary-slack-webhook"},
    "llm": {"apiKey": "sk-canary-llm-0123456789"},
}
USERS = {"jira": "userEmail", "servicenow": "username"}
ROUTING = {severity: list(PLATFORMS) for severity in current.SEVERITIES}


@pytest.fixture
def configured(standins, api) -> dict[str, dict]:
    """All platforms and the model, at their stand-ins, with canaries for secrets that no stand-in accepts."""
    settings = {name: standins.settings(name) | CANARIES[name] for name in CANARIES}
    settings["slack"]["webhookUrl"] = standins.slack.url + CANARIES["slack"]["webhookUrl"]
    enabled = {name: {"enabled": True} | settings[name] for name in PLATFORMS}
    for part, body in (("platforms", enabled), ("llm", settings["llm"]), ("routing", ROUTING)):
        answer = api.patch(f"/api/v1/config/{part}", body, format="json")
        assert answer.status_code == 200, answer.content
    return settings


@pytest.fixture
def forms(configured) -> set[str]:
    """Every way in which a secret could show."""
    found = set()
    for name, secrets in CANARIES.items():
        for secret in secrets.values():
            found |= {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
            found |= {secret.encode().hex(), *_in_base64(secret)}
        if user := USERS.get(name):
            found |= _in_base64(f"{configured[name][user]}:{next(iter(secrets.values()))}")
    return found - {quote("")}


def _in_base64(text: str) -> set[str]:
    """What is in the middle of any base64 of it, wherever in a text it began."""
    return {base64.b64encode(b"x" * shift + text.encode()).decode()[4:-4] for shift in range(3)}


def hits(forms: set[str], *texts: str) -> list[str]:
    return [form for form in forms for text in texts if form in text]


HOW = {
    "401": {"kind": "status", "code": 401, "body": "Invalid credentials"},
    "500": {"kind": "status", "code": 500, "body": "broken"},
    "redirect": {"kind": "redirect", "code": 302},
    "malformed": {"kind": "malformed", "what": "head"},
    "reset": {"kind": "reset"},
    "timeout": {"kind": "hang"},
    "not JSON": {"kind": "status", "code": 200, "body": "<html>"},
}


@pytest.fixture
def everything_fails(configured, standins):
    def arrange(how: str) -> None:
        for standin in standins:
            options = dict(HOW[how])
            standin.fault(options.pop("kind"), times=None, **options)

    return arrange


class TestWhateverGoesWrong:
    @pytest.mark.parametrize("how", [*sorted(set(HOW) - {"timeout"}), "refused by the stand-ins themselves"])
    def test_no_answer_log_row_or_entry_tells_a_secret(
        self, configured, standins, everything_fails, api, send, work, caplog, forms, how
    ):
        caplog.set_level(logging.DEBUG)
        if how in HOW:
            everything_fails(how)
        answers = [api.get("/api/v1/config")]
        for name in PLATFORMS:
            answers.append(api.post("/api/v1/test-connection", {"platform": name}, format="json"))
            assert how == "not JSON" or answers[-1].json()["status"] == "error", name
        answers += [api.post("/api/v1/test-llm"), api.get("/api/v1/llm-status")]
        [incident_id] = send()["incidents"]
        work()
        api.post(f"/api/incidents/{incident_id}/escalate")
        work()
        answers += [
            api.get(f"/api/incidents/{incident_id}"),
            api.get("/api/v1/audit", {"incident_id": incident_id}),
            api.get("/api/schema"),
            api.get("/metrics"),
            api.get("/ready"),
        ]
        assert Ticket.objects.exclude(last_error="").count() >= 4
        assert sum(len(standin.seen) for standin in standins) >= 6
        assert not hits(forms, *(answer.getvalue().decode() for answer in answers))
        assert not hits(forms, caplog.text, *(str(record.__dict__) for record in caplog.records))
        assert not hits(forms, *(str(entry.__dict__) for entry in Entry.objects.all()))
        assert not hits(forms, *_rows())

    def test_a_timeout_tells_none(self, configured, everything_fails, api, caplog, forms, monkeypatch):
        monkeypatch.setattr(probes, "DEADLINE_SECONDS", 0.2)
        monkeypatch.setattr(health, "DEADLINE_SECONDS", 0.2)
        caplog.set_level(logging.DEBUG)
        everything_fails("timeout")
        answers = [api.post("/api/v1/test-connection", {"platform": name}, format="json") for name in PLATFORMS]
        answers.append(api.post("/api/v1/test-llm"))
        assert {answer.json()["status"] for answer in answers} == {"error"}
        assert not hits(forms, caplog.text, *(answer.content.decode() for answer in answers))

    def test_a_vendor_that_echoes_what_it_was_sent_is_masked(self, configured, standins, api, forms, send, work):
        secrets = [text for name in CANARIES for text in CANARIES[name].values()]
        for standin in standins:
            standin.fault("status", times=None, code=403, body="You sent " + " ".join(secrets))
        [incident_id] = send()["incidents"]
        work()
        for name in PLATFORMS:
            answer = api.post("/api/v1/test-connection", {"platform": name}, format="json").content.decode()
            own = {next(iter(CANARIES[name].values()))}
            assert not hits(own, answer), name
            [ticket] = Ticket.objects.filter(platform=name)
            assert not hits(own, ticket.last_error), name


class TestWhatIsShown:
    def test_the_configuration_shows_masks_only(self, configured, api, client_of, forms):
        for reader in (api, client_of("viewer")):
            answer = reader.get("/api/v1/config")
            assert not hits(forms, answer.content.decode())
            shown = answer.json()
            for name, secrets in CANARIES.items():
                part = shown["llm"] if name == "llm" else shown["platforms"][name]
                assert {part[secret] for secret in secrets} == {"****"}

    def test_a_refused_change_does_not_say_what_was_sent(self, configured, api, forms):
        for body in (
            {"slack": {"webhookUrl": "http://evil.example" + CANARIES["slack"]["webhookUrl"]}},
            {"jira": {"apiToken": "***" + CANARIES["jira"]["apiToken"]}},
            {"jira": {"apiToken": CANARIES["jira"]["apiToken"] + "\n"}},
            {"jira": {"apiToken": CANARIES["jira"]["apiToken"], "baseUrl": "https://u:canary-in-url@example.com"}},
            {"jira": {"apiToken": [CANARIES["jira"]["apiToken"]]}},
            {"jira": {"token": CANARIES["jira"]["apiToken"]}},
        ):
            answer = api.patch("/api/v1/config/platforms", body, format="json")
            assert answer.status_code == 400
            assert not hits(forms | {"canary-in-url", "canaryslackpath"}, answer.content.decode())

    def test_no_repr_tells_one(self, configured, forms):
        config = current.current()
        shown = [repr(config), str(config), repr(config.llm), repr(config.platforms)]
        for row in (*PlatformVersion.objects.all(), *Section.objects.all()):
            shown += [repr(row), str(row), repr(row.__dict__), repr(row.secrets), f"{row.secrets}"]
        assert not hits(forms, *shown)

    def test_tasks_carry_names_only(self, configured, send, monkeypatch, django_capture_on_commit_callbacks):
        left = []
        monkeypatch.setattr(wakeup._Publisher, "leave", lambda self, queue, names: left.append((queue, names)))
        with django_capture_on_commit_callbacks(execute=True):
            send()
        assert left
        for queue, names in left:
            assert queue in wakeup.TASKS
            assert names <= {*PLATFORMS, "incidents"}
        assert tasks.wake_tickets.ignore_result


class TestWhatIsStored:
    def test_rows_hold_ciphertext_only(self, configured, forms):
        assert not hits(forms, *_rows())
        assert sum("gAAAA" in row for row in _rows()) >= 6

    def test_a_dump_holds_ciphertext_only_and_can_be_loaded(self, configured, forms, api, tmp_path):
        dump = tmp_path / "dump.json"
        call_command("dumpdata", "config", "auditlog", "incidents", output=str(dump))
        text = dump.read_text()
        assert "gAAAA" in text
        assert not hits(forms, text)
        found = [one.object for one in serializers.deserialize("json", text) if isinstance(one.object, PlatformVersion)]
        assert {row.platform for row in found} == set(PLATFORMS)
        assert {dict(row.secrets)["apiToken"] for row in found if row.platform == "jira"} == {"canary:jira token&1"}

    def test_an_api_key_is_stored_as_its_hash(self, api):
        text = api._credentials["HTTP_AUTHORIZATION"].removeprefix("Bearer ")
        assert not hits({text, text[10:]}, *_rows())

    @pytest.mark.skipif(connection.vendor != "sqlite", reason="The file is SQLite's.")
    @pytest.mark.django_db(transaction=True)
    def test_the_database_file_holds_none(self, configured, forms, api):
        name = connection.settings_dict["NAME"]
        with closing(sqlite3.connect(name)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        files = [path for path in Path(name).parent.iterdir() if path.name.startswith(Path(name).name)]
        content = b"".join(path.read_bytes() for path in files)
        assert b"gAAAA" in content
        assert not [form for form in forms if form.encode() in content]


class TestRotation:
    @pytest.fixture
    def keys(self, settings) -> tuple[str, str]:
        """An old key that everything is written with, and a new one to come."""
        old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
        settings.ENCRYPTION_KEYS = [old]
        return old, new

    @pytest.fixture
    def stored(self, keys, configured) -> str:
        return self.secret()

    def secret(self) -> str:
        current.forget()
        return current.current().platforms["jira"].settings["apiToken"]

    def run(self) -> str:
        told = io.StringIO()
        call_command("reencrypt", stdout=told)
        return told.getvalue().strip()

    def test_a_new_key_in_front_keeps_what_the_old_one_wrote(self, keys, stored, settings):
        settings.ENCRYPTION_KEYS = [keys[1], keys[0]]
        assert self.secret() == stored == CANARIES["jira"]["apiToken"]

    def test_after_reencrypt_the_old_key_can_go(self, keys, stored, settings, api):
        settings.ENCRYPTION_KEYS = [keys[1], keys[0]]
        assert self.run() == "7 rewritten, 0 already with the newest key."
        assert self.run() == "0 rewritten, 7 already with the newest key."
        settings.ENCRYPTION_KEYS = [keys[1]]
        assert self.secret() == stored
        assert api.get("/api/v1/config").status_code == 200

    def test_a_change_made_meanwhile_is_not_undone(self, keys, stored, settings, api, monkeypatch):
        settings.ENCRYPTION_KEYS = [keys[1], keys[0]]
        read, changed = rotation.is_newest, []

        def and_meanwhile(token: str) -> bool:
            newest = read(token)
            if not changed:
                changed.append(token)
                for row in PlatformVersion.objects.all():  # somebody writes every row between our reading and writing
                    PlatformVersion.objects.filter(pk=row.pk).update(secrets={**row.secrets, "webhookSecret": "newer"})
            return newest

        monkeypatch.setattr(rotation, "is_newest", and_meanwhile)
        self.run()
        settings.ENCRYPTION_KEYS = [keys[1]]
        assert {dict(row.secrets)["webhookSecret"] for row in PlatformVersion.objects.all()} == {"newer"}

    def test_what_no_key_reads_is_told_and_left_alone(self, keys, stored, settings, api):
        before = _rows()
        settings.ENCRYPTION_KEYS = [keys[1]]
        with pytest.raises(CommandError, match="7 cannot be read"):
            self.run()
        assert _rows() == before
        current.forget()
        assert "routingKey" not in api.get("/api/v1/config").json()["platforms"]["pagerduty"]
        assert any("ENCRYPTION_KEYS lacks" in line for line in api.get("/ready").json()["missing"])
        settings.ENCRYPTION_KEYS = [keys[0]]
        assert self.secret() == stored


def _rows() -> list[str]:
    """Every row of every table, as the database itself would write it out."""
    found = []
    with connection.cursor() as cursor:
        for table in {model._meta.db_table for model in apps.get_models()}:
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            found += [repr(row) for row in cursor.fetchall()]
    return sorted(found)


class TestAKeyThatIsLost:
    """The database was restored without the key of its secrets."""

    @pytest.fixture
    def lost(self, api, settings):
        whole = {"enabled": True, "routingKey": "a-key-that-nobody-can-read"}
        assert api.patch("/api/v1/config/platforms", {"pagerduty": whole}, format="json").status_code == 200
        before = list(settings.ENCRYPTION_KEYS)
        settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
        current._kept = None
        yield before
        current._kept = None

    def test_refuses_no_anomaly_and_no_move(self, lost, send, api, work):
        [incident_id] = send()["incidents"]
        assert api.post(f"/api/incidents/{incident_id}/acknowledge").status_code == 200
        work()
        [ticket] = api.get(f"/api/incidents/{incident_id}").json()["tickets"]
        assert (ticket["state"], ticket["attempts"]) == ("pending", 0)

    def test_is_named_by_ready(self, lost, api):
        answer = api.get("/ready")
        assert answer.status_code == 503
        assert any("secrets of pagerduty cannot be read" in line for line in answer.json()["missing"])

    def test_overwrites_nothing_until_somebody_sends_the_secrets_again(self, lost, api, settings):
        other = {"pagerduty": {"apiUrl": "https://events.eu.pagerduty.com"}}
        assert api.patch("/api/v1/config/platforms", other, format="json").status_code == 400
        settings.ENCRYPTION_KEYS = [*settings.ENCRYPTION_KEYS, *lost]
        current._kept = None
        assert api.get("/api/v1/config").json()["platforms"]["pagerduty"] == {"enabled": True, "routingKey": "****"}

    def test_is_mended_by_sending_them_again(self, lost, api):
        again = {"pagerduty": {"routingKey": "another-key"}}
        assert api.patch("/api/v1/config/platforms", again, format="json").status_code == 200
        assert not any("cannot be read" in line for line in api.get("/ready").json()["missing"])

    def test_or_by_giving_them_up(self, lost, api, capsys):
        call_command("reencrypt", "--forget-unreadable")
        assert "1 given up" in capsys.readouterr().out
        assert not any("cannot be read" in line for line in api.get("/ready").json()["missing"])
