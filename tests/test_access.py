"""Who may call what: every route by every role, keys that are none, local mode, logins, and unsafe settings."""

import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth.models import Group, User
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone
from rest_framework.test import APIClient

from auditlog.models import Entry
from config import keys
from config.models import ApiKey
from incidents.models import Incident
from tests import raw
from ticketing.processes import ROOT

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
ROLES = ("producer", "viewer", "responder", "admin")
READERS = {"viewer", "responder", "admin"}
ACTORS = {"responder", "admin"}
# Whom the design lets through. What is not here is let through for nobody: it does not exist.
MAY = {
    ("GET", "/api/incidents"): READERS,
    ("GET", "/api/incidents/{id}"): READERS,
    ("POST", "/api/incidents/{id}/acknowledge"): ACTORS,
    ("POST", "/api/incidents/{id}/escalate"): ACTORS,
    ("POST", "/api/incidents/{id}/resolve"): ACTORS,
    ("POST", "/api/incidents/{id}/reopen"): ACTORS,
    ("POST", "/api/incidents/batch"): ACTORS,
    ("GET", "/api/v1/tickets"): READERS,
    ("POST", "/api/v1/tickets/retry"): ACTORS,
    ("GET", "/api/v1/drill"): READERS,
    ("POST", "/api/v1/drill"): {"admin"},
    ("POST", "/api/v1/anomalies"): {"producer", "admin"},
    ("GET", "/api/v1/audit"): READERS,
    ("GET", "/api/v1/llm-status"): READERS,
    ("POST", "/api/v1/test-llm"): {"admin"},
    ("GET", "/api/v1/config"): READERS,
    ("PATCH", "/api/v1/config/platforms"): {"admin"},
    ("PATCH", "/api/v1/config/routing"): {"admin"},
    ("PATCH", "/api/v1/config/anomaly"): {"admin"},
    ("PATCH", "/api/v1/config/llm"): {"admin"},
    ("POST", "/api/v1/test-connection"): {"admin"},
    ("GET", "/api/schema"): READERS,
    ("GET", "/api/docs"): READERS,
    ("GET", "/metrics"): READERS,
}
OPEN = {"/health", "/ready"}


def routes(patterns=None, prefix: str = "/") -> set[str]:
    """Every address of the API in the URL conf, with {id} for what varies."""
    found = set()
    for one in get_resolver().url_patterns if patterns is None else patterns:
        text = re.sub(r"\(\?P<(\w+)>[^)]*\)|<(?:\w+:)?(\w+)>", "{id}", str(one.pattern))
        address = prefix + text.replace("\\Z", "").strip("^$").replace("\\", "")
        if isinstance(one, URLResolver):
            found |= routes(one.url_patterns, address)
        elif isinstance(one, URLPattern):
            found.add(address)
    return found


def is_api(route: str) -> bool:
    return route.startswith(("/api/", "/metrics", "/health", "/ready"))


API = sorted(route for route in routes() if is_api(route))


def plain(route: str) -> str:
    """The address without the proxy's prefix, and as the API document writes it."""
    return route.replace("/api/ticketing/", "/").replace("/api/v1/incidents", "/api/incidents")


def ask(route: str, method: str, key: str = "", **headers) -> int:
    target = route.replace("{id}", "inc-20240301-001")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    reply = raw.send(method, target, b"", Content_Type="application/json", **headers)
    assert reply.status < 500 or plain(route) == "/ready", (method, route)
    return reply.status


@pytest.fixture
def key_of(db):
    def make(role: str) -> str:
        return keys.create(name=f"{role}-tests", role=role, actor="system")[1]

    return make


class TestRoutes:
    def test_the_table_and_the_url_conf_know_the_same_addresses(self):
        assert {plain(route) for route in API} - OPEN >= {route for _, route in MAY} - {"/metrics"}
        unknown = {plain(route) for route in API} - {route for _, route in MAY} - OPEN
        assert all(route.startswith("/api/v1/inbound/") for route in unknown), unknown

    @pytest.mark.parametrize("route", API)
    def test_without_a_credential_nothing_is_had(self, db, route):
        for method in METHODS:
            status = ask(route, method)
            if plain(route) in OPEN:
                assert status in (200, 405, 503), method
            elif not plain(route).startswith("/api/v1/inbound/"):
                assert status == 401, method

    @pytest.mark.parametrize("role", ROLES)
    def test_a_role_may_what_the_design_says_and_nothing_else(self, key_of, role):
        key = key_of(role)
        for route in API:
            if plain(route) in OPEN or plain(route).startswith("/api/v1/inbound/"):
                continue
            for method in METHODS:
                status = ask(route, method, key)
                allowed = MAY.get(("GET" if method == "HEAD" else method, plain(route)))
                if allowed is not None:
                    assert (status not in (401, 403, 405)) == (role in allowed), (method, route, status)
                else:
                    expected = (200, 403, 405) if method == "OPTIONS" else (403, 405)
                    assert status in expected, (method, route, status)

    @pytest.mark.parametrize("role", ROLES)
    def test_a_refusal_names_the_role_that_is_needed(self, client_of, role):
        if role != "admin":
            answer = client_of(role).patch("/api/v1/config/routing", {}, format="json")
            assert answer.status_code == 403
            assert answer.json()["message"] == f"This needs the role admin; key:{role}-tests has {role}."

    @pytest.mark.parametrize(
        "target",
        ["/api/incidents/", "//api/incidents", "/api//incidents", "/API/incidents", "/api/./incidents",
         "/api/v1/../incidents", "/api/incidents;x", "/api/incidents.json",
         "/api/ticketing/api/ticketing/api/incidents"],
    )  # fmt: skip
    def test_a_detour_leads_nowhere(self, key_of, target):
        assert raw.send("GET", target).status in (401, 404)
        assert raw.send("GET", target, Authorization=f"Bearer {key_of('admin')}").status == 404

    @pytest.mark.parametrize(
        ("name", "value"),
        [("X_HTTP_Method_Override", "GET"), ("X_Original_URL", "/health"), ("X_Rewrite_URL", "/health"),
         ("X_Forwarded_User", "admin"), ("Remote_User", "admin"), ("X_Forwarded_For", "127.0.0.1"),
         ("X_Forwarded_Host", "localhost"), ("Forwarded", "for=127.0.0.1"), ("X_Real_IP", "127.0.0.1")],
    )  # fmt: skip
    def test_a_header_opens_no_door(self, db, name, value):
        for host in ("testserver", "localhost"):
            status = ask("/api/v1/config", "PATCH", host=host, peer="192.0.2.1", **{name: value})
            assert status == 401

    def test_the_console_asks_for_a_login(self, db):
        for path in ("/admin/", "/admin/incidents/incident/", "/i/inc-20240301-001"):
            reply = raw.send("GET", path)
            assert (reply.status, reply.body) == (302, b"")


class TestReady:
    def test_tells_the_details_to_those_who_are_known_only(self, key_of):
        assert "missing" not in raw.send("GET", "/ready").json()
        known = raw.send("GET", "/ready", Authorization=f"Bearer {key_of('viewer')}")
        assert known.json()["missing"]


class TestKeys:
    def test_a_revoked_key_is_none_at_once(self, key_of):
        text = key_of("admin")
        assert ask("/api/incidents", "GET", text) == 200
        keys.revoke(keys.find(text), actor="system")
        assert ask("/api/incidents", "GET", text) == 401

    def test_an_expired_key_is_none(self, db):
        soon, later = timezone.now() + timedelta(seconds=60), timezone.now() - timedelta(seconds=1)
        _, good = keys.create(name="good", role="viewer", actor="system", expires_at=soon)
        _, late = keys.create(name="late", role="viewer", actor="system", expires_at=later)
        assert (ask("/api/incidents", "GET", good), ask("/api/incidents", "GET", late)) == (200, 401)

    @pytest.mark.parametrize(
        "header",
        ["Bearer", "Bearer ", "Bearer x", "Bearer tka_", "Bearer tka_" + "x" * 40, "Bearer tka_" + "x" * 10_000,
         "Bearer KEY KEY", "Bearer KEY, Bearer KEY", "Bearer KEYx", "Bearer \xff\x00", "bearer\tKEY", "KEY",
         "Token KEY",
         "Basic a2V5OktFWQ==", "Bearer tka_é", "Bearer KEY,"],
    )  # fmt: skip
    def test_what_is_no_key_opens_nothing(self, key_of, header):
        for role in ("viewer",):
            header = header.replace("KEY", key_of(role))
        for path in ("/api/incidents", "/api/v1/config", "/api/ticketing/api/v1/audit"):
            reply = raw.send("GET", path, Authorization=header)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert list(reply.json()) == ["status", "message", "errors"]

    def test_a_key_in_any_other_place_is_not_looked_at(self, key_of):
        key = key_of("admin")
        for query in (f"key={key}", f"access_token={key}", f"api_key={key}"):
            assert raw.send("GET", f"/api/incidents?{query}").status == 401
        assert raw.send("GET", "/api/incidents", X_API_Key=key, Cookie=f"key={key}").status == 401

    def test_a_wrong_key_is_refused_even_where_none_is_needed_to_be_local(self, db):
        assert raw.send("GET", "/api/incidents", host="localhost", Authorization="Bearer tka_wrong").status == 401

    def test_only_its_hash_is_kept(self, key_of):
        text = key_of("viewer")
        key = keys.find(text)
        assert text not in str(key.__dict__)
        assert len(key.digest) == 64
        assert len(key.prefix) < 12

    def test_its_use_is_noted_once_a_minute(self, settled, key_of, django_assert_num_queries):
        text = key_of("viewer")
        first = keys.find(text)
        keys._kept.clear()
        assert keys.find(text).last_used_at is not None
        assert first.last_used_at is None
        keys._kept.clear()
        with django_assert_num_queries(1):
            keys.find(text)

    def test_it_is_asked_for_twice_a_second_however_often_it_is_used(
        self, settled, key_of, django_assert_num_queries
    ):
        text = key_of("viewer")
        keys.find(text)
        with django_assert_num_queries(0):
            assert keys.find(text).role == "viewer"

    def test_one_that_another_process_revokes_is_none_within_a_second(self, key_of, monkeypatch):
        text = key_of("viewer")
        ApiKey.objects.filter(pk=keys.find(text).pk).update(revoked_at=timezone.now())
        monkeypatch.setattr(keys, "KEPT_SECONDS", 0)
        assert keys.find(text) is None

    def test_one_that_is_revoked_while_it_is_read_is_none_the_next_time(self, settled, key_of, meanwhile):
        text = key_of("viewer")
        with meanwhile("config_apikey", lambda: keys.revoke(ApiKey.objects.get(), actor="user:root")):
            assert keys.find(text)
        assert keys.find(text) is None

    def test_one_that_expires_is_none_at_that_moment(self, db, time_machine):
        _, text = keys.create(name="x", role="viewer", actor="system", expires_at=timezone.now() + timedelta(days=1))
        assert keys.find(text)
        time_machine.move_to(timezone.now() + timedelta(days=1))
        assert keys.find(text) is None


class TestTheActor:
    def test_is_always_who_holds_the_credential(self, key_of, send):
        [incident_id] = send()["incidents"]
        key = key_of("responder")

        def acknowledge(body: bytes) -> int:
            return raw.send(
                "POST", f"/api/incidents/{incident_id}/acknowledge", body, Content_Type="application/json",
                Authorization=f"Bearer {key}", X_Actor="user:eve", X_Forwarded_User="eve", Remote_User="eve",
            ).status  # fmt: skip

        assert acknowledge(b'{"actor": "user:eve", "note": "x"}') == 400
        assert acknowledge(b'{"note": "x", "acknowledgedBy": "user:eve"}') == 400
        assert Incident.objects.get().status == "open"
        assert acknowledge(b'{"note": "x"}') == 200
        assert Incident.objects.get().acknowledged_by == "key:responder-tests"
        assert [entry.actor for entry in Entry.objects.about(f"incident:{incident_id}")] == [
            "key:admin-tests",
            "key:responder-tests",
        ]


class TestLocalMode:
    """What needs no credential: a request of this machine itself, in local mode."""

    def status(self, **how) -> int:
        return raw.send("GET", "/api/v1/config", **{"host": "localhost:18081"} | how).status

    @pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1"])
    @pytest.mark.parametrize("host", ["localhost", "localhost:18081", "127.0.0.1:18081", "[::1]:18081"])
    def test_lets_this_machine_in(self, db, peer, host):
        assert self.status(peer=peer, host=host) == 200
        assert self.status(peer=peer, host=host, Origin=f"http://{host}") == 200

    @pytest.mark.parametrize(
        "how",
        [
            {"peer": "192.0.2.1"}, {"peer": "10.0.0.1"}, {"peer": ""}, {"peer": "localhost"}, {"host": "testserver"},
            {"Forwarded": "for=127.0.0.1"}, {"X_Forwarded_For": "127.0.0.1"}, {"X_Forwarded_Proto": "https"},
            {"X_Forwarded_Host": "localhost"}, {"X_Forwarded_Anything": ""}, {"Origin": "https://evil.example"},
            {"Origin": "null"}, {"Origin": "http://localhost:9999"}, {"Origin": ""},
            {"Origin": "http://localhost:18081.evil"},
            {"Origin": "http://["}, {"X_Real_IP": "192.0.2.1"}, {"Via": "1.1 proxy"},
        ],
    )  # fmt: skip
    def test_lets_nobody_else_in(self, db, how):
        assert self.status(**how) == 401

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "169.254.1.1"]
    )
    def test_another_host_is_refused_before_that(self, db, host):
        assert self.status(host=host) == 400

    def test_off_local_mode_nobody_is_local(self, db, settings):
        settings.LOCAL_MODE = False
        assert self.status() == 401
        assert self.status(peer="::1") == 401

    def test_a_page_from_elsewhere_changes_nothing(self, db):
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
            for content_type in ("application/json", "text/plain"):
                reply = raw.send(
                    "PATCH",
                    "/api/v1/config/routing",
                    b'{"low": []}',
                    host="localhost",
                    Content_Type=content_type,
                    **headers,
                )
                assert reply.status == 401

    def test_the_actor_is_local(self, db):
        body = b'{"service": "a", "severity": "high", "score": 1}'
        assert (
            raw.send("POST", "/api/v1/anomalies", body, host="localhost", Content_Type="application/json").status == 200
        )
        assert Entry.objects.get().actor == "local"


class TestConsoleLogins:
    @pytest.fixture
    def login(self, db):
        def make(role: str | None = None, **more) -> APIClient:
            user = User.objects.create_user("anna", password="a-long-password", is_staff=True, **more)
            if role:
                user.groups.add(Group.objects.get_or_create(name=role)[0])
            browser = APIClient(enforce_csrf_checks=True)
            browser.force_login(user, backend="ticketing.access.RolesAtOnce")
            return browser

        return make

    def with_token(self, browser: APIClient) -> dict:
        token = "a" * 32
        browser.cookies["csrf_18081"] = token
        return {"HTTP_X_CSRFTOKEN": token}

    @pytest.mark.parametrize(
        ("role", "reads", "acts", "configures"),
        [(None, 403, 403, 403), ("viewer", 200, 403, 403), ("responder", 200, 404, 403), ("admin", 200, 404, 200)],
    )
    def test_have_the_role_of_their_group(self, login, role, reads, acts, configures):
        browser = login(role)
        headers = self.with_token(browser)
        assert browser.get("/api/v1/config").status_code == reads
        assert browser.post("/api/incidents/inc-20240301-001/resolve", **headers).status_code == acts
        assert browser.patch("/api/v1/config/routing", {}, format="json", **headers).status_code == configures

    def test_a_superuser_is_an_admin(self, login):
        browser = login(is_superuser=True)
        headers = self.with_token(browser)
        assert browser.patch("/api/v1/config/routing", {"low": []}, format="json", **headers).status_code == 200
        assert Entry.objects.get().actor == "user:anna"

    def test_a_change_needs_the_csrf_token(self, login):
        browser = login("admin")
        for body, kind in (('{"low": []}', "application/json"), ('{"low": []}', "text/plain"), ("", "")):
            answer = browser.generic("PATCH", "/api/v1/config/routing", body, content_type=kind)
            assert answer.status_code == 403
            assert answer.json()["status"] == "error"
        assert not Entry.objects.exists()

    def test_a_token_from_elsewhere_is_none(self, login):
        browser = login("admin")
        headers = self.with_token(browser)
        answer = browser.patch(
            "/api/v1/config/routing", {}, format="json", HTTP_ORIGIN="https://evil.example", **headers
        )
        assert answer.status_code == 403

    def test_a_key_needs_no_csrf_token(self, login, key_of):
        browser = login("viewer")
        answer = browser.patch(
            "/api/v1/config/routing", {}, format="json", HTTP_AUTHORIZATION=f"Bearer {key_of('admin')}"
        )
        assert answer.status_code == 200

    def test_a_disabled_user_is_nobody(self, login):
        browser = login("admin")
        User.objects.update(is_active=False)
        assert browser.get("/api/incidents").status_code == 401

    def test_the_cookie_is_for_this_site_alone(self, login, client):
        login("viewer")
        answer = client.post("/admin/login/", {"username": "anna", "password": "a-long-password"})
        cookie = answer.cookies["session_18081"]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"


class TestSettings:
    """What is unsafe is refused with one line and the exit status 78 (EX_CONFIG)."""

    SAFE = {
        "LOCAL_MODE": "0",
        "SECRET_KEY": "k" * 50,
        "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "ALLOWED_HOSTS": "tickets.example.com",
    }

    def start(self, tmp_path, **more) -> subprocess.CompletedProcess:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return subprocess.run(
            [sys.executable, "-c", "import ticketing.settings as s; print(s.HOST, s.ALLOWED_HOSTS)"],
            env=kept | {"DATA_DIR": str(tmp_path / "data")} | more,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_safe_ones_are_taken(self, tmp_path):
        done = self.start(tmp_path, **self.SAFE | {"HOST": "0.0.0.0"})
        assert (done.returncode, done.stderr) == (0, "")

    def test_local_mode_needs_none_and_makes_its_secrets_for_the_owner_alone(self, tmp_path):
        done = self.start(tmp_path, LOCAL_MODE="1")
        assert (done.returncode, done.stderr) == (0, "")
        kept = {path.name: path for path in (tmp_path / "data").iterdir()}
        for name in ("secret_key", "encryption_key"):
            assert kept[name].stat().st_mode & 0o777 == 0o600
            assert len(kept[name].read_text()) >= 43

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"SECRET_KEY": "short"}, "SECRET_KEY"),
            ({"SECRET_KEY": ""}, "SECRET_KEY"),
            ({"ENCRYPTION_KEYS": ""}, "ENCRYPTION_KEYS"),
            ({"ENCRYPTION_KEYS": "garbage"}, "ENCRYPTION_KEYS"),
            ({"ENCRYPTION_KEYS": "ключ"}, "ENCRYPTION_KEYS"),
            ({"ENCRYPTION_KEYS": SAFE["ENCRYPTION_KEYS"] + ",x"}, "ENCRYPTION_KEYS"),
            ({"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS"),
            ({"ALLOWED_HOSTS": " , "}, "ALLOWED_HOSTS"),
            ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS"),
            ({"ALLOWED_HOSTS": "a.example,*"}, "ALLOWED_HOSTS"),
            ({"EGRESS_ALLOWED_NETWORKS": "10.0.0.0/99"}, "EGRESS_ALLOWED_NETWORKS"),
            ({"PORT": "http"}, "PORT"),
            ({"LOCAL_MODE": "perhaps"}, "LOCAL_MODE"),
            ({"LOCAL_MODE": "1", "HOST": "0.0.0.0"}, "HOST"),
            ({"LOCAL_MODE": "1", "HOST": "::"}, "HOST"),
            ({"LOCAL_MODE": "1", "HOST": "192.0.2.1"}, "HOST"),
            ({"LOCAL_MODE": "1", "HOST": "tickets.example.com"}, "HOST"),
        ],
    )
    def test_unsafe_ones_are_refused(self, tmp_path, changed, named):
        done = self.start(tmp_path, **self.SAFE | changed)
        assert done.returncode == 78
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("Refused to start: ")
        assert named in line
        assert "garbage" not in line
