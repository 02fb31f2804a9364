"""What the tests share: a client of the API, stand-in platforms that it is configured with, and a worker's hand."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from django.core.cache import cache
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from hypothesis import HealthCheck
from hypothesis import settings as how
from rest_framework.test import APIClient
from whitenoise.middleware import WhiteNoiseMiddleware

from config import current, keys
from config.changes import patch_llm, patch_platforms
from incidents.causes import model
from incidents.delivery import attempts
from incidents.models import Incident, PlatformPause, Ticket, lease
from platforms.catalog import PLATFORMS
from tests.browser import chromium, console  # noqa: F401  (fixtures)
from tests.rig import Rig
from tests.standins import Standins
from tests.standins.oidc import OpenIDProvider
from ticketing import provider
from ticketing.environment import SingleSignOn
from ticketing.processes import ROOT

MOST_ATTEMPTS = 200
MINUTE = timedelta(minutes=1)
NEVER = timedelta(days=1000)
DAY, LONGEST_OF_A_TEST = 86_400, 60  # seconds

# The same examples in each run, however long one takes.
how.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
how.load_profile("steady")


@pytest.fixture(autouse=True)
def fresh_configuration():
    """Each test reads the configuration, and whatever else is kept for a while, of its own database."""
    current._memory = current._Memory()
    cache.clear()
    yield
    current._memory = current._Memory()


@pytest.fixture(scope="session", autouse=True)
def static_files_are_looked_for_once():
    """Each test client loads the middleware anew, for which WhiteNoise looks at all static files: most of its time."""
    look, found = WhiteNoiseMiddleware.add_files_from_finders, {}

    def once(middleware: WhiteNoiseMiddleware) -> None:
        if not found:
            look(middleware)
            found.update(middleware.files)
        middleware.files.update(found)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(WhiteNoiseMiddleware, "add_files_from_finders", once)
        yield


@pytest.fixture(autouse=True)
def attempts_have_time(monkeypatch):
    """An attempt that a test makes itself fails because of what the test is about, and not because a machine that is
    busy took seconds for it. Tests of deadlines and leases choose their own."""
    for kind in ("PAGING", "OTHER"):
        monkeypatch.setattr(attempts, kind, attempts.Times(deadline=60, lease=90))


@pytest.fixture(autouse=True)
def one_day():
    """The UTC day, of which an incident's id tells, does not end within a test."""
    left = DAY - time.time() % DAY
    if left < LONGEST_OF_A_TEST:
        time.sleep(left)


@pytest.fixture
def open_folder():
    """A folder for what runs as another user, who may not pass pytest's own: each run that begins sees to it."""
    folder = Path(tempfile.mkdtemp(prefix="ticketing-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settled(monkeypatch):
    """The configuration and keys are read once, not again after half a second: for who counts queries."""
    monkeypatch.setattr(current, "KEPT_SECONDS", 600)
    monkeypatch.setattr(keys, "KEPT_SECONDS", 600)


@pytest.fixture
def meanwhile():
    """Does something just after the first query of a table: what was read there is old when it is made use of."""

    @contextmanager
    def during(table: str, do: Callable[[], object]) -> Iterator[None]:
        todo = [do]

        def run(execute, sql, params, many, context):
            answer = execute(sql, params, many, context)
            if todo and sql.startswith("SELECT") and f'FROM "{table}"' in sql:
                todo.pop()()
            return answer

        with connection.execute_wrapper(run):
            yield
        assert not todo, f"{table} was not asked"

    return during


@pytest.fixture
def client_of(db):
    """A client of the API with a key of the role asked for."""

    def make(role: str) -> APIClient:
        _, text = keys.create(name=f"{role}-tests", role=role, actor="system")
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
        return client

    return make


@pytest.fixture
def api(client_of) -> APIClient:
    return client_of("admin")


@pytest.fixture
def send(api):
    """Sends anomalies; what is not named is that of a critical fault of payment-api."""

    def post(*items: dict, expect: int = 200, **headers) -> dict:
        whole = [{"service": "payment-api", "severity": "critical", "score": 4.2} | item for item in items or ({},)]
        response = api.post("/api/v1/anomalies", whole, format="json", headers=headers)
        assert response.status_code == expect, response.content
        return response.json()

    return post


@pytest.fixture(scope="session")
def running_standins():
    with Standins() as standins:
        yield standins


@pytest.fixture
def standins(running_standins, settings):
    """The six stand-ins on real sockets, empty and well."""
    settings.EGRESS_ALLOWED_NETWORKS = Standins.NETWORKS
    running_standins.settle()
    for standin in running_standins:
        standin.reset()
        standin.lag = 0
        standin.rate_limit = None
    return running_standins


@pytest.fixture
def connect(db, standins):
    """Enables platforms (all, unless named) with the settings of their stand-ins; `llm` configures the model."""

    def enable(*names: str) -> Standins:
        chosen = names or tuple(PLATFORMS)
        patch_platforms(
            {name: {"enabled": True} | standins.settings(name) for name in chosen if name in PLATFORMS}, actor="system"
        )
        if "llm" in chosen:
            patch_llm(standins.settings("llm"), actor="system")
        return standins

    return enable


@pytest.fixture
def everywhere(connect, api) -> Standins:
    """All platforms enabled, and all severities routed to all of them."""
    standins = connect()
    routing = {severity: list(PLATFORMS) for severity in ("critical", "high", "medium", "low")}
    assert api.patch("/api/v1/config/routing", routing, format="json").status_code == 200
    return standins


@pytest.fixture
def work(db, monkeypatch):
    """A worker's hand: makes every attempt that is due. With `later`, as if all waiting were over.

    No wait that begins meanwhile is over before it returns, however slow the machine.
    """

    def run(*, later: bool = False) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(attempts, "lease", lambda seconds: lease(seconds + NEVER.total_seconds()))
            _work_off(later=later)
        afterwards = lease(NEVER.total_seconds() / 2)
        Ticket.objects.filter(due_at__gt=afterwards).update(due_at=F("due_at") - NEVER)
        PlatformPause.objects.filter(until__gt=afterwards).update(until=F("until") - NEVER)

    return run


def _work_off(*, later: bool) -> None:
    for _ in range(MOST_ATTEMPTS):
        if later:
            Ticket.objects.filter(due_at__isnull=False).update(
                due_at=Now(),
                doubtful_since=F("doubtful_since") - MINUTE,
                last_lookup_at=F("last_lookup_at") - MINUTE,
            )
            Incident.objects.filter(model_due_at__isnull=False).update(model_due_at=Now())
            PlatformPause.objects.update(until=Now())
        made = [attempts.attempt_next(name) for name in PLATFORMS]
        if not any([model.ask_next(), *made]):
            return
    raise AssertionError("The work does not end.")


@pytest.fixture(scope="session")
def running_provider():
    standin = OpenIDProvider()
    standin.up()
    yield standin
    standin.down()


@pytest.fixture
def sso(running_provider, settings, monkeypatch) -> OpenIDProvider:
    """An OpenID provider on a real socket, and the product set up for it: *Sign in with Example SSO*."""
    monkeypatch.setattr("mozilla_django_oidc.auth.requests", None)  # it opens no sockets of its own
    monkeypatch.setattr(provider, "LOGIN_SECONDS", 60.0)  # of a machine that may be slow
    provider.forget()
    running_provider.settle()
    running_provider.reset()
    running_provider.redirect_uri = "http://testserver/admin/sso/callback/"
    settings.PUBLIC_URL = "http://testserver"
    settings.LOCAL_MODE = True
    settings.EGRESS_ALLOWED_NETWORKS = Standins.NETWORKS
    settings.AUTHENTICATION_BACKENDS = [*settings.AUTHENTICATION_BACKENDS, "ticketing.signin.ByProvider"]
    groups = {"viewer": ["/staff", "/all"], "responder": ["/ops"], "admin": ["/sre"]}
    settings.SSO = SingleSignOn(
        name="Example SSO",
        issuer=running_provider.issuer,
        client_id=running_provider.client_id,
        client_secret=running_provider.client_secret,
        scopes="openid profile email",
        username_claim="preferred_username",
        groups_claim="groups",
        groups={role: frozenset(names) for role, names in groups.items()},
        contact="#platform in the chat",
    )
    yield running_provider
    provider.forget()


@pytest.fixture
def test_database_url(db) -> str:
    """The tests' database, as another process is told of it."""
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{database['NAME']}"
    return f"postgresql://{database['USER']}@{database['HOST']}:{database['PORT']}/{database['NAME']}"


@pytest.fixture
def start_worker(test_database_url):
    """Another process with the tests' database: runs a few lines of Python, under another program if one is named.
    What it logs can be read."""
    started = []

    def start(code: str, *under: str) -> subprocess.Popen:
        environment = os.environ | {
            "DATABASE_URL": test_database_url,
            "EGRESS_ALLOWED_NETWORKS": ",".join(Standins.NETWORKS),
        }
        code = "import django; django.setup()\nfrom incidents.delivery import attempts\n" + code
        argv = (*under, sys.executable, "-c", code)
        started.append(subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for worker in started:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
        worker.stderr.close()


@pytest.fixture
def rig(tmp_path):
    """Made with a database of its own, in the engine that is tested."""
    rigs, databases = [], []
    server = os.environ["DATABASE_URL"] if os.environ["ENGINE"] == "postgres" else ""

    def make(**options) -> Rig:
        url = f"sqlite:///{tmp_path / 'rig.sqlite3'}"
        if server:
            name = f"rig_{os.getpid()}_{len(databases)}"
            with psycopg.connect(server, autocommit=True) as database:
                database.execute(f"CREATE DATABASE {name}")
            databases.append(name)
            url = f"{server.rpartition('/')[0]}/{name}"
        rigs.append(Rig(tmp_path, url, **options))
        rigs[-1].begin()
        return rigs[-1]

    yield make
    for each in rigs:
        each.end()
    for name in databases:
        with psycopg.connect(server, autocommit=True) as database:
            database.execute(f"DROP DATABASE {name} WITH (FORCE)")
