"""What docker/ promises, held against the code. It needs no engine: each service's own command is started instead."""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import uuid

import psycopg
import pytest
import yaml
from cryptography.fernet import Fernet
from django.core.management import get_commands

from tests.ports import free_port
from tests.standins import Standins
from tests.waiting import until
from ticketing import processes
from ticketing.management.commands.reference import render
from ticketing.metrics import METRICS
from ticketing.processes import ROOT
from ticketing.reference import SETTINGS

COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "ticketing-agent"}
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{([A-Z_]+)(:[?-][^}]*)?\}")


def production(**more: str) -> dict[str, str]:
    """An operator's environment: nothing of ours but what finds the interpreter, and what docker/.env would hold."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "HOME") if name in os.environ}
    return kept | {
        "SECRET_KEY": secrets.token_urlsafe(48),
        "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "PUBLIC_URL": "https://tickets.example.com",
        "ALLOWED_HOSTS": "tickets.example.com",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "BROKER_URL": "redis://127.0.0.1:1/0",
    } | more


def run(*argv: str, env: dict[str, str], **how) -> subprocess.CompletedProcess:
    words = [sys.executable if word == "python" else word for word in argv]
    return subprocess.run(words, cwd=how.pop("cwd", ROOT), env=env, capture_output=True, text=True, timeout=300, **how)


class TestAProductionEnvironment:
    @pytest.mark.skipif(not shutil.which("openssl"), reason="the page's commands need openssl")
    def test_made_by_the_operators_pages_own_commands_passes_every_check(self, tmp_path):
        page = (ROOT / "docs/operate.md").read_text()
        commands = re.search(r"^cat > docker/\.env.*?^END$", page, re.MULTILINE | re.DOTALL)
        (tmp_path / "docker").mkdir()
        subprocess.run(["sh", "-euc", commands[0]], cwd=tmp_path, check=True)
        made = dict(line.split("=", 1) for line in (tmp_path / "docker/.env").read_text().splitlines())
        assert len(made.pop("POSTGRES_PASSWORD")) == 48
        env = production() | made
        done = run("python", "manage.py", "check", "--deploy", "--fail-level", "WARNING", env=env)
        assert done.returncode == 0, done.stderr
        assert "no issues" in done.stdout

    def test_is_told_what_is_unsafe(self):
        env = production(PUBLIC_URL="http://other.example.com", DATABASE_URL="")
        done = run("python", "manage.py", "check", "--deploy", "--fail-level", "WARNING", env=env)
        assert done.returncode == 1
        assert set(re.findall(r"ticketing\.(W\d+)", done.stderr)) == {"W002", "W003", "W004"}

    @pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.needed])
    def test_is_refused_with_one_line_where_a_secret_or_a_host_is_missing(self, name, tmp_path):
        env = production(DATA_DIR=str(tmp_path)) | {name: ""}
        done = run("python", "manage.py", "check", env=env)
        assert (done.returncode, done.stdout) == (78, "")
        assert re.fullmatch(rf"Refused to start: set {name}.*\n", done.stderr)
        assert not list(tmp_path.iterdir()), "no secret was made up"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("SECRET_KEY", "short"),
            ("ENCRYPTION_KEYS", "not-a-key"),
            ("ALLOWED_HOSTS", "*"),
            ("TRUSTED_PROXIES", "10.0.0.1/99"),
            ("RATE_LIMIT_PER_SECOND", "-1"),
            ("LOG_FORMAT", "xml"),
            ("LOG_LEVEL", "LOUD"),
            ("PORT", "http"),
        ],
    )
    def test_is_refused_with_one_line_where_it_is_wrong(self, name, value):
        done = run("python", "manage.py", "check", env=production(**{name: value}))
        assert done.returncode == 78
        assert re.fullmatch(rf"Refused to start: {name}.*\n", done.stderr)

    def test_believes_no_proxy_unless_told_to_and_limits_each_caller(self):
        asked = "from ticketing import settings as s; print(s.TRUSTED_PROXIES, s.RATE_LIMIT_PER_SECOND)"
        listed = {"TRUSTED_PROXIES": "10.0.0.7"}
        for given, told in (({}, "[] 300"), (listed, "['10.0.0.7'] 300"), ({"LOCAL_MODE": "1"}, "[] 0")):
            done = run("python", "-c", asked, env=production(**given))
            assert done.stdout == f"{told}\n", done.stderr


class TestTheComposeFile:
    def test_runs_what_make_run_runs(self):
        broker = processes.broker(ROOT / "data")
        assert {name for name in OURS if name != "migrate"} == set(processes.ALONE)
        for name in processes.ALONE:
            assert OURS[name]["command"] == ["python", "manage.py", "process", name]
        options = SERVICES["broker"]["command"][1:]
        for name, value in zip(options[::2], options[1::2], strict=True):
            assert broker.argv[broker.argv.index(name) + 1] == value

    def test_names_commands_that_exist(self):
        for service in OURS.values():
            for python, manage, command, *_ in (service["command"], *_health_of(service)):
                assert (python, manage) == ("python", "manage.py")
                assert command in get_commands()

    def test_every_service_that_goes_on_has_a_health_check(self):
        assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"migrate"}

    def test_sets_documented_variables_and_all_that_must_be_set(self):
        for service in OURS.values():
            assert set(service["environment"]) <= set(SETTINGS)
            assert {name for name, setting in SETTINGS.items() if setting.needed} <= set(service["environment"])
            assert not {"LOCAL_MODE", "HOST", "PORT"} & set(service["environment"])

    def test_ships_no_secret(self):
        """What it takes from docker/.env without a default stops it where it is missing."""
        text = (ROOT / "docker/compose.yaml").read_text()
        needed = {name for name, rest in VARIABLE.findall(text) if rest.startswith(":?")}
        assert needed == {"POSTGRES_PASSWORD", "SECRET_KEY", "ENCRYPTION_KEYS", "PUBLIC_URL", "ALLOWED_HOSTS"}
        assert {rest for name, rest in VARIABLE.findall(text) if name not in needed} == {":-", ":-127.0.0.1"}
        example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / "docker/env.example").read_text(), re.MULTILINE))
        assert needed <= set(example)
        assert not any(example.values())

    def test_starts_in_order_and_as_nobody_special(self):
        for name, service in OURS.items():
            assert service["depends_on"]["database"] == {"condition": "service_healthy"}
            assert set(service["depends_on"]) <= set(SERVICES)
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
            assert name == "migrate" or "migrate" in service["depends_on"]
        assert COMPOSE["networks"]["inside"] == {"internal": True}
        assert {name for name, service in SERVICES.items() if "outside" in service["networks"]} == {"web", "worker"}
        assert [name for name, service in SERVICES.items() if "ports" in service] == ["web"]


class TestTheImage:
    def test_holds_all_that_runs_and_nothing_else(self, tmp_path):
        """Its COPY lines, done by hand: what they bring passes Django's checks, far from the rest of the repository."""
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        for source, target in re.findall(r"^COPY (?!--from)(\S+) /app/(\S*)$", DOCKERFILE, re.MULTILINE):
            assert f"!{source}" in ignored
            whole = tmp_path / (target or source)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, whole)
        done = run("python", "manage.py", "check", "--deploy", env=production(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "tests").exists()

    def test_is_for_an_ordinary_user_and_takes_only_what_is_pinned(self):
        assert "USER 10001:10001" in DOCKERFILE
        assert "--require-hashes" in DOCKERFILE
        assert not re.search(r"SECRET|_KEYS|PASSWORD|ARG ", DOCKERFILE)
        assert {f"/data:uid={10001},gid={10001},mode=0700"} < set(OURS["web"]["tmpfs"])


class TestDashboardAndAlerts:
    """They name metrics that exist, by labels that they have, and lead to a paragraph that says what to do."""

    ALERTS = yaml.safe_load((ROOT / "docker/alerts.yaml").read_text())["groups"][0]["rules"]
    DASHBOARD = json.loads((ROOT / "docker/grafana-dashboard.json").read_text())
    KNOWN = {metric.name: {*metric.labels} for metric in METRICS} | {
        f"{metric.name}_{part}": {*metric.labels, "le"}
        for metric in METRICS
        if metric.kind == "histogram"
        for part in ("bucket", "sum", "count")
    }

    def expressions(self) -> list[str]:
        asked = [target["expr"] for panel in self.DASHBOARD["panels"] for target in panel["targets"]]
        return asked + [rule["expr"] for rule in self.ALERTS]

    def test_name_metrics_and_labels_that_exist(self):
        named = set()
        for expression in self.expressions():
            names = set(re.findall(r"\bticketing_[a-z_]+", expression))
            assert names <= set(self.KNOWN), expression
            labels = set().union(*(self.KNOWN[name] for name in names), {"job"})
            used = re.findall(r"([a-z]+)=\"", expression)
            used += [word for words in re.findall(r"by \(([a-z, ]+)\)", expression) for word in words.split(", ")]
            assert set(used) <= labels, expression
            assert expression.count("(") == expression.count(")")
            named |= names
        assert len(named) > 12

    def test_every_alert_says_what_to_do(self):
        headings = re.findall(r"^### (\w+)$", (ROOT / "docs/operate.md").read_text(), re.MULTILINE)
        assert [rule["alert"] for rule in self.ALERTS] == headings
        for rule in self.ALERTS:
            assert rule["annotations"]["runbook_url"] == f"docs/operate.md#{rule['alert'].lower()}"
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}

    def test_panels_do_not_overlap(self):
        places = set()
        for panel in self.DASHBOARD["panels"]:
            at = panel["gridPos"]
            mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not places & mine
            places |= mine
        assert max(x for x, _ in places) == 23


def test_the_operators_page_names_commands_and_settings_that_exist():
    text = (ROOT / "docs/operate.md").read_text()
    assert set(re.findall(r"manage\.py ([a-z]+)", text)) <= set(get_commands())
    written = set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))
    assert {name for name, setting in SETTINGS.items() if setting.needed} <= written
    for path in re.findall(r"\]\(([\w/.]+)\)", text):
        assert (ROOT / "docs" / path).exists(), path


def _health_of(service: dict) -> list[list[str]]:
    return [service["healthcheck"]["test"][1:]] if "healthcheck" in service else []


# --- All of it, running ---------------------------------------------------------------------------------------------


class Deployment:
    """The services of the compose file as processes, against the tests' database server and broker."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.port = free_port()
        self.running: dict[str, subprocess.Popen] = {}
        self.database = f"deploy_{uuid.uuid4().hex[:12]}"
        self.server = os.environ.get("DATABASE_URL")
        self.env = production(
            DATABASE_URL=self._created(), BROKER_URL=os.environ["BROKER_URL"], PORT=str(self.port),
            DATA_DIR=str(folder), EGRESS_ALLOWED_NETWORKS=",".join(Standins.NETWORKS),
        )

    def _created(self) -> str:
        if not self.server:
            return f"sqlite:///{self.folder}/deploy.sqlite3"
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.database}")
        return f"{self.server.rpartition('/')[0]}/{self.database}"

    def once(self, *argv: str) -> subprocess.CompletedProcess:
        return run(*argv, env=self.env)

    def start(self, *names: str) -> None:
        for name in names:
            argv = [sys.executable if word == "python" else word for word in OURS[name]["command"]]
            with (self.folder / f"{name}.log").open("w") as log:
                self.running[name] = subprocess.Popen(
                    argv, cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )

    def healthy(self, name: str) -> bool:
        return self.once(*_health_of(OURS[name])[0]).returncode == 0

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        if self.server:
            with psycopg.connect(self.server, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {self.database} WITH (FORCE)")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def lines(self, name: str) -> list[dict]:
        """Each is JSON, but for the words that Celery prints past every logger when it is asked to end."""
        lines = [line for line in self.log(name).splitlines() if line and line != "worker: Warm shutdown (MainProcess)"]
        return [json.loads(line) for line in lines]

    def ask(self, method: str, path: str, body: object = None, key: str = "") -> tuple[int, str]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Host": "tickets.example.com", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        try:
            client.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            reply = client.getresponse()
            return reply.status, reply.read().decode()
        finally:
            client.close()


@pytest.fixture
def deployment(tmp_path):
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.end()


def figures(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(ticketing_\S+) (\S+)$", text, re.MULTILINE)}


def test_the_services_start_turn_healthy_deliver_count_and_log(deployment, standins):
    names = ("web", "worker", "beat")
    assert deployment.once(*OURS["migrate"]["command"]).returncode == 0
    assert not any(deployment.healthy(name) for name in ("worker", "beat"))
    deployment.start(*names)
    key = deployment.once("python", "manage.py", "apikey", "create", "tests", "--role", "admin").stdout.strip()
    for name in names:
        until(lambda name=name: deployment.running[name].poll() is not None or deployment.healthy(name), 120)
        assert deployment.running[name].poll() is None, deployment.log(name)
    until(lambda: deployment.ask("GET", "/ready")[0] == 200, 120)

    slack = {"slack": {"enabled": True} | standins.settings("slack")}
    assert deployment.ask("PATCH", "/api/v1/config/platforms", slack, key)[0] == 200
    event = {"service": "shop", "severity": "critical", "score": 9}
    [incident] = json.loads(deployment.ask("POST", "/api/v1/anomalies?token=s3cret", event, key)[1])["incidents"]

    def told() -> list[str]:
        return [ticket["state"] for ticket in json.loads(deployment.ask("GET", whole, key=key)[1])["tickets"]]

    whole = f"/api/incidents/{incident}"
    until(lambda: told() == ["in sync"])
    assert len(standins.slack.messages) == 1

    assert deployment.stop("worker") == 0  # it writes what it has counted
    created = 'ticketing_intake_events_total{outcome="created"}'
    until(lambda: figures(deployment.ask("GET", "/metrics", key=key)[1]).get(created))
    seen = figures(deployment.ask("GET", "/metrics", key=key)[1])
    assert seen['ticketing_attempts_total{platform="slack",outcome="in_step"}'] == 1
    assert seen['ticketing_time_to_show_seconds_bucket{platform="slack",le="+Inf"}'] == 1
    until(lambda: not deployment.healthy("worker"))

    assert (deployment.stop("beat"), deployment.stop("web")) == (0, 0)
    [shown] = [line for line in deployment.lines("worker") if line.get("incident")]
    assert (shown["level"], shown["incident"], shown["platform"]) == ("info", incident, "slack")
    assert isinstance(shown["ticket"], int)
    [asked] = [line for line in deployment.lines("web") if line.get("path") == "/api/v1/anomalies"]
    assert (asked["method"], asked["status"], asked["actor"]) == ("POST", 200, "key:tests")
    assert asked["request_id"]
    deployment.lines("beat")
    logs = "".join(deployment.log(name) for name in names)
    for secret in (key, "s3cret", deployment.env["SECRET_KEY"], slack["slack"]["webhookUrl"]):
        assert secret not in logs


@pytest.mark.parametrize(("page", "path"), [("settings", "docs/reference/settings.md"), ("metrics", "docs/metrics.md")])
def test_the_reference_says_what_the_code_does(page, path):
    assert (ROOT / path).read_text() == render(page)
