"""The documentation holds: its commands run, its links lead somewhere, it quotes what is said and names what exists."""

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.core.management import get_commands
from django.urls import Resolver404, resolve

from config import changes, probes
from incidents.causes import health
from platforms.catalog import PLATFORMS
from platforms.contract import PlatformError
from platforms.egress import Egress
from platforms.http import Caller
from tests.ports import free_port
from tests.standins import Standins
from tests.standins.opsgenie import OpsGenie
from ticketing.processes import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "http://127.0.0.1:18081"
PYTHON = re.compile(r"(/opt/ticketing/|\.)venv/bin/python(?= manage\.py )")
ID = re.compile(r"inc-20240301-\d{3}")
FAULT = {"service": "docs", "severity": "high", "score": 1, "title": "Made for a page that begins in the middle"}
SERVER = {
    "SECRET_KEY": "s" * 50,
    "ENCRYPTION_KEYS": "c" * 43 + "=",
    "ALLOWED_HOSTS": "tickets.example.com",
    "PUBLIC_URL": "https://tickets.example.com",
}
NOT_OURS = ("LOCAL_MODE", "HOST", "DATABASE_URL", "BROKER_URL", *SERVER)
PATIENCE_SECONDS = 120

# What is not run here: commands that run on and on, that are this very test, or that need another machine. Each with
# what covers it instead.
ELSEWHERE = {
    r"make run": "tests/test_run.py",
    r"EGRESS_ALLOWED_NETWORKS=\S+ make run": "tests/test_run.py",
    r"make demo": "tests/test_demo.py",
    r"make test": "tests/test_docs.py",  # whoever reads this has just run it
    r"make bench( .*)?": "tests/test_bench.py",
    r"make faults( .*)?": "tests/test_faults.py",
    r"make pictures": "tests/test_demo.py",  # and what it made is looked at below
    r"ENGINE=\w+ \.venv/bin/python -m pytest tests/test_delivery\.py( -k slack)?": "tests/test_delivery.py",
    r"python3\.11 -m venv \S+|\S+/pip install --require-hashes -r requirements\.txt": "Makefile",  # does it itself
    r"umask 077|cat > docker/\.env <<END\n.*|docker compose -f docker/compose\.yaml .*": "tests/test_deploy.py",
}


@dataclass(frozen=True)
class Command:
    line: int
    text: str


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[Command]:
    """Those of the blocks that are indented or fenced as `sh`; a command may go on over several lines."""
    found: list[Command] = []
    text, began = "", 0
    for number, line in shell_lines(page.read_text()):
        began = began if text else number
        text += line.removesuffix("\\") if line.endswith("\\") else f"{line}\n"
        if not text.endswith("\n") or not complete(text):
            continue
        if shlex.split(text, comments=True):
            found.append(Command(began, text.strip()))
        text = ""
    assert not text, f"{title(page)}:{began}: a command without an end"
    return found


def shell_lines(text: str) -> Iterator[tuple[int, str]]:
    fence, in_block, blank_before = None, False, True
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip().removeprefix("```")
        elif fence is not None:
            if fence in ("sh", "bash", "shell", "console"):
                yield number, line
        elif line.startswith("    ") and (in_block or blank_before):
            in_block = True
            yield number, line[4:]
        elif line.strip():
            in_block = False
        blank_before = not line.strip()


def complete(text: str) -> bool:
    if (here := re.search(r"<<(\w+)", text)) and not text.endswith(f"\n{here[1]}\n"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return here is not None  # what is in it may hold a quote of its own
    return True


class Reader:
    """Somebody who types what a page says, on a machine where the product runs and the platforms are stand-ins."""

    def __init__(self, url: str, environment: dict[str, str], standins: Standins) -> None:
        self.url = url
        self.shell = environment
        self.standins = standins
        self.incident = ""

    def types(self, text: str) -> None:
        if any(re.fullmatch(known, text.partition(" #")[0].strip(), re.DOTALL) for known in ELSEWHERE):
            return
        if text.startswith("curl "):
            return self.curl(text)
        assert PYTHON.search(text), f"Nobody knows how to try this, nor what tests it: {text}"
        on_a_server = "/opt/ticketing/" in text
        done = subprocess.run(
            PYTHON.sub(shlex.quote(sys.executable), text),
            shell=True,
            cwd=ROOT,
            env=self.shell | (SERVER if on_a_server else {}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def curl(self, text: str) -> None:
        if ID.search(text):
            text = ID.sub(self.incident or self.fault(), text)
        assert ADDRESS in text, "curl asks somebody else"
        asked = [*shlex.split(text.replace(ADDRESS, self.url), comments=True), "-S", "-w", "\n%{http_code}"]
        done = subprocess.run(asked, env=self.shell, capture_output=True, text=True, timeout=120)
        body, _, status = done.stdout.rpartition("\n")
        assert (done.returncode, status) == (0, "200"), f"{text}\n{body} {done.stderr}"
        answer = json.loads(body)
        if "/api/v1/anomalies" in text:
            [self.incident, *_] = answer["incidents"]
        elif "/config/platforms" in text:
            self.stand_in(answer["updated"])
        elif "/config/llm" in text:
            self.patch("llm", self.standins.settings("llm"))
        elif "/test-" in text:
            assert answer["status"] == "ok", answer

    def stand_in(self, names: list[str]) -> None:
        """From here on the addresses are those of stand-ins: what a page says was accepted to the letter before."""
        self.patch("platforms", {name: self.standins.settings(name) for name in names})

    def fault(self) -> str:
        self.incident = self.ask("POST", "/api/v1/anomalies", FAULT)["incidents"][0]
        return self.incident

    def patch(self, part: str, body: dict) -> None:
        assert self.ask("PATCH", f"/api/v1/config/{part}", body)["status"] == "ok"

    def ask(self, method: str, path: str, body: dict):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def machine(tmp_path_factory, running_standins):
    """The web server as it runs, on a database of its own. No worker: nothing that a page says goes to a vendor."""
    port = free_port()
    folder = str(tmp_path_factory.mktemp("docs") / "data")
    shell = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    shell |= {"DATA_DIR": folder, "no_proxy": "127.0.0.1"}
    running = shell | {"LOCAL_MODE": "1", "PORT": str(port), "EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8,10.0.0.0/8"}
    subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=running, check=True)
    server = subprocess.Popen([sys.executable, "manage.py", "serve"], cwd=ROOT, env=running)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health", server)
        yield url, shell, running_standins
    finally:
        server.terminate()
        server.wait(60)


def wait_for(address: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return urllib.request.urlopen(address, timeout=60).close()
        except (OSError, http.client.HTTPException):
            assert server.poll() is None, "the web server has ended"
            assert time.monotonic() < deadline, "the web server does not answer"
            time.sleep(0.05)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=title)
def test_every_command_of_a_page_works_in_the_order_in_which_it_is_read(page, machine):
    reader = Reader(*machine)
    for command in commands(page):
        try:
            reader.types(command.text)
        except AssertionError as error:
            raise AssertionError(f"{title(page)}:{command.line}: {error}") from error


def test_what_is_not_run_here_is_tested_by_a_file_that_exists():
    for covered_by in ELSEWHERE.values():
        assert (ROOT / covered_by).exists(), covered_by


# --- What the pages name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_and_names_lead_to_something(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in filter(None, (one or other for one, other in links)):
        if not link.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{link} leads nowhere"
            assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"
    for test in re.findall(r"tests/\w+\.py", text):
        assert (ROOT / test).exists(), test
    known = set(get_commands())
    for command in re.findall(r"manage\.py (\w+)", text):
        assert command in known, f"manage.py {command}"
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:`|^ {4})make (\w+)", text, re.MULTILINE):
        assert target in targets, f"make {target}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pictures_are_of_one_width_and_light():
    for picture in (ROOT / "docs" / "pictures").iterdir():
        header = picture.read_bytes()[:20]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(header[16:20]) == 1440
        assert picture.stat().st_size < 200_000, picture.name


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_page_tells_every_field_and_no_other(name):
    page = (ROOT / f"docs/platforms/{name}.md").read_text()
    [table] = re.findall(r"\| Field \| .*\n\|[ |-]+\n((?:\|.*\n)+)", page)
    told = [field for row in table.splitlines() for field in re.findall(r"`(\w+)`", row.split("|")[1])]
    platform = PLATFORMS[name]
    assert sorted(told) == sorted(field.name for field in platform.fields)
    rows = {field: row for row in table.splitlines() for field in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {field for field, row in rows.items() if "Required." in row} == {
        field.name for field in platform.fields if field.required
    }


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_page_says_whether_what_people_do_there_is_read(name):
    try:
        resolve(f"/api/v1/inbound/{name}")
    except Resolver404:
        is_read = False
    else:
        is_read = True
    told = f"/api/v1/inbound/{name}" in (ROOT / f"docs/platforms/{name}.md").read_text()
    assert told == is_read, "Tell how its webhooks are set up once they are read, and not before."


# --- What a test of the connection says -------------------------------------------------------------------------------

# Platform; what is wrong with its settings; how it answers, where that is out of the ordinary; what is said then.
SAYINGS = [
    ("pagerduty", {}, {}, "Connection successful"),
    ("pagerduty", {"routingKey": "short"}, {}, "Invalid routing key"),
    ("jira", {}, {}, "Connection successful"),
    (
        *("jira", {"apiToken": "expired"}, {}),
        "Invalid e-mail or API token: Jira refuses them (401). The token may have expired",
    ),
    ("jira", {"projectKey": "NOPE"}, {}, "There is no project NOPE, or this account does not see it"),
    (
        *("jira", {"issueType": "Story"}, {}),
        "Connection successful. Project OPS has no issue type Story: Task will be used.",
    ),
    ("servicenow", {}, {}, "Connection successful. Whether the account may write incidents shows with the first one."),
    ("servicenow", {"password": "wrong"}, {}, "Invalid user name or password"),
    ("servicenow", {}, {"code": 403}, "The account may not read incidents"),
    ("opsgenie", {}, {}, "Connection successful"),
    (
        *("opsgenie", {"apiKey": "wrong"}, {}),
        "Invalid API key, or one of another region: in the EU, apiUrl is https://api.eu.opsgenie.com",
    ),
    (
        *("opsgenie", {"apiKey": OpsGenie.account_key}, {}),
        "This API key may not create alerts: use the key of an API integration",
    ),
    ("opsgenie", {}, {"code": 402}, "The OpsGenie plan does not include the alert API"),
    (
        *("opsgenie", {}, {"code": 403, "method": "GET"}),
        "This API key may not read: give its integration read access, to see what became of a request",
    ),
    ("slack", {}, {}, "Connection successful"),
    ("slack", {}, {"code": 404}, "Invalid webhook URL"),
    ("slack", {}, {"code": 410}, "The webhook's channel is archived"),
    ("slack", {}, {"code": 404, "body": "channel_not_found"}, "The webhook's channel is gone"),
    ("slack", {}, {"code": 403}, "The workspace does not allow this webhook to post"),
    ("slack", {}, {"code": 200, "body": "<html>"}, "What answers is not a Slack webhook"),
]


@pytest.mark.parametrize(("name", "mistake", "answer", "said"), SAYINGS)
def test_a_platforms_page_quotes_what_a_test_of_its_connection_says(name, mistake, answer, said, standins):
    if answer:
        standins[name].fault("status", times=None, **answer)
    assert probe(PLATFORMS[name].test, {**standins.settings(name), **mistake}) == said
    assert f"| `{said}` |" in (ROOT / f"docs/platforms/{name}.md").read_text()


def test_the_page_of_all_platforms_quotes_what_any_of_them_may_say(standins, connect):
    connect("slack")
    slack, settings = PLATFORMS["slack"].test, standins.settings("slack")
    said = [probes.test_platform("jira").message, probe(slack, settings, networks=())]
    said.append(probe(slack, {"webhookUrl": "https://nowhere.invalid/services/T/B/x"}))
    standins.slack.fault("redirect", times=1, code=302)
    said.append(probe(slack, settings))
    standins.slack.fault("hang", times=1)
    said.append(probe(slack, settings, seconds=0.3))
    standins.slack.down()
    said.append(probe(slack, settings))
    standins.slack.up()
    page = (ROOT / "docs/platforms/README.md").read_text()
    quoted = [re.escape(text) for text in re.findall(r"^\| `(.+)` \|", page, re.MULTILINE)]
    patterns = [text.replace("…", ".+").replace("10s", ".+s") for text in quoted]
    for message in said:
        assert any(re.fullmatch(pattern, message) for pattern in patterns), message


def probe(test, settings: dict[str, str], *, seconds: float = 60, networks: Sequence[str] = Standins.NETWORKS) -> str:
    try:
        return test(Caller(egress=Egress(networks), seconds=seconds), settings)
    except PlatformError as error:
        return error.message


def test_the_models_page_quotes_what_a_test_of_it_says(standins, settings, monkeypatch):
    monkeypatch.setattr(health, "DEADLINE_SECONDS", 60.0)
    page = (ROOT / "docs/model.md").read_text()
    mine = standins.settings("llm")
    nobody = "http://127.0.0.1:11434/v1"
    for changed, said in (
        ({"apiKey": "sk-wrong"}, "API key refused"),
        ({"model": "gpt-5-nano-mini"}, "model not found: gpt-5-nano-mini"),
        ({"apiKey": "", "baseUrl": ""}, health.NOT_CONFIGURED),
    ):
        assert health.probe(health.LlmConfig({**mine, **changed})) == said
        assert f"| `{said}` |" in page
    settings.EGRESS_ALLOWED_NETWORKS = ()
    refusal = changes._mistake(next(f for f in changes.LLM_FIELDS if f.name == "baseUrl"), {}, nobody)
    assert f"`{refusal}`" in page
