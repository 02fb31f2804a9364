"""How errors are told: in one JSON shape, as 503 where the store is down, and in the log where they are ours."""

import json
import os
import subprocess
import sys

import pytest
from django.db import OperationalError
from django.urls import path
from rest_framework.test import APIClient

from ticketing import errors
from ticketing.processes import ROOT
from ticketing.urls import handler400, handler403, handler404, handler500  # noqa: F401 - this is a URL conf too


def _broken(request):
    raise ValueError("a mistake of ours")


def _store_down(request):
    raise OperationalError("server closed the connection")


urlpatterns = [path("broken", _broken), path("down", _store_down), path("admin/down", _store_down)]


@pytest.fixture
def routes(settings, client):
    settings.ROOT_URLCONF = __name__
    client.raise_request_exception = False
    return client


def test_a_mistake_of_ours_is_a_500_without_its_text_and_in_the_log_with_it(routes, caplog):
    answer = routes.get("/broken")
    assert answer.status_code == 500
    assert list(answer.json()) == ["status", "message", "errors"]
    assert "a mistake of ours" not in answer.content.decode()
    assert "a mistake of ours" in caplog.text
    assert answer["X-Request-ID"]


@pytest.mark.django_db
def test_a_lost_store_is_a_503_that_says_when_to_try_again(routes):
    answer = routes.get("/down")
    assert (answer.status_code, answer["Content-Type"], answer["Retry-After"]) == (503, "application/json", "2")
    page = routes.get("/admin/down")
    assert page.status_code == 503
    assert page["Content-Type"].startswith("text/html")


ASK = """
import json, django
django.setup()
from tests import raw
SESSION = "session_18081=" + "a" * 32
told = {}
for name, how in {
    "key": {"Authorization": "Bearer tka_" + "x" * 40},
    "local": {"host": "localhost"},
    "login": {"Cookie": SESSION},
}.items():
    for target in ("/health", "/ready", "/api/incidents", "/api/v1/config", "/metrics", "/admin/", "/nope",
                   "/api/ticketing/api/v1/audit?incident_id=inc-20240301-001"):
        reply = raw.send("GET", target, **{"host": "localhost"} | how)
        told[name + " " + target] = (reply.status, reply.headers.get("content-type"), reply.body.decode()[:80])
print(json.dumps(told))
"""


def test_with_the_store_down_nothing_is_empty_and_nothing_is_a_500(tmp_path):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {
        "DJANGO_SETTINGS_MODULE": "ticketing.settings",
        "LOCAL_MODE": "1",
        "DATA_DIR": str(tmp_path),
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "BROKER_URL": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name, (status, kind, body) in told.items():
        who, target = name.split()
        if target == "/health":
            assert (status, body) == (200, '{"status":"ok"}'), name
        elif target == "/nope":
            assert status == 404, name
        elif who != "login" and target == "/admin/":
            assert status == 302, name  # to the login
        else:
            assert status == 503, (name, body)
            assert kind.startswith("text/html" if target == "/admin/" else "application/json"), name
    assert "connection refused" not in done.stdout.lower()


def test_a_probe_with_an_old_key_is_told_what_anybody_is_told(db):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer tka_gone")
    answer = client.get("/ready")
    assert answer.status_code == 503  # no worker in this test
    assert answer.json() == {"status": "unavailable"}


def test_a_page_that_breaks_is_a_page(rf):
    answer = errors.server_error(rf.get("/admin/incidents/incident/"))
    assert (answer.status_code, answer["Content-Type"]) == (500, "text/html; charset=utf-8")
    assert errors.server_error(rf.get("/api/incidents"))["Content-Type"] == "application/json"
