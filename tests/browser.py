"""A real browser for the tests of the console: Debian's Chromium, signed in, and what it complained of."""

import http.client
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache

import pytest
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, Page, sync_playwright

from config.current import forget
from config.models import PlatformState
from incidents import intake
from incidents.console import patience
from incidents.models import Incident, Pulse
from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
LIST = "/admin/incidents/incident/"
PASSWORD = "a-long-password"

needs_chromium = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with pytest.MonkeyPatch.context() as environment:
        # Playwright's loop runs in this thread; Django only sees a loop and takes us for async code.
        environment.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS), timeout=180_000)
            yield browser
            browser.close()


class Console:
    """A browser's window, and what it complained of. `heard` are the statuses that it was answered with."""

    def __init__(self, chromium: Browser, url: str, **options) -> None:
        self.url = url
        self.context = chromium.new_context(base_url=url, **({"viewport": {"width": 1440, "height": 900}} | options))
        self.context.set_default_timeout(60_000)  # of tabs that its page opens, too
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")

    def stop_the_clock(self) -> None:
        """Before its first page is opened: from then on time passes there only as a test lets it, and nothing is asked
        for or told meanwhile."""
        self.page.clock.install()
        self.page.clock.pause_at(datetime.now() + timedelta(seconds=1))

    def sign_in(self, address: str = LIST) -> Page:
        """As somebody who logged in before. The form itself is for the tests that are about it."""
        client = Client()
        client.force_login(User.objects.get(username="anna"), backend="ticketing.access.RolesAtOnce")
        name = settings.SESSION_COOKIE_NAME
        self.context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": self.url}])
        self.page.goto(address)
        return self.page

    def log_in(self) -> Page:
        self.page.goto("/admin/login/")
        self.page.fill("#id_username", "anna")
        self.page.fill("#id_password", PASSWORD)
        self.page.press("#id_password", "Enter")
        self.page.wait_for_url(f"{self.url}{LIST}")
        return self.page


def machinery_runs() -> None:
    """As far as pulses tell, and for longer than any test lasts."""
    later = timezone.now() + timedelta(hours=1)
    Pulse.objects.bulk_create(Pulse(name=name, at=later) for name in ("sweep:test:1", "hears:test:1", "beat"))


@cache
def hashed() -> str:
    return make_password(PASSWORD)


@pytest.fixture
def console(chromium, live_server, monkeypatch):
    """Opens windows. Anna is an admin; Jira and PagerDuty are enabled."""
    monkeypatch.setattr(patience, "PATIENCE_MS", 60_000)  # of a machine that may be slow
    group, _ = Group.objects.get_or_create(name="admin")
    User.objects.create(username="anna", password=hashed()).groups.add(group)
    PlatformState.objects.create(platform="jira", enabled=True)
    PlatformState.objects.create(platform="pagerduty", enabled=True)
    machinery_runs()
    forget()
    consoles, before = [], set(threading.enumerate())

    def open_console(**options) -> Console:
        consoles.append(Console(chromium, live_server.url, **options))
        return consoles[-1]

    yield open_console
    for each in consoles:
        each.context.close()
    all_is_answered(live_server.url, before)
    forget()


def all_is_answered(url: str, before: set[threading.Thread]) -> None:
    """What closed windows had asked for: none of it may meet the next test's database. Connections are accepted in
    turn, and each has a thread of its own until it is closed."""
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    client.request("GET", "/health")
    client.getresponse().read()
    client.close()

    def answering() -> list[threading.Thread]:
        return [one for one in set(threading.enumerate()) - before if "process_request_thread" in one.name]

    until(lambda: not answering(), words="the live server's last answers")


def opened(*services: str, severity: str = "critical", **more) -> list[Incident]:
    """The incidents that these services' anomalies of an hour ago open, in order."""
    at = (timezone.now() - timedelta(hours=1)).isoformat()
    items = [
        {"service": service, "severity": severity, "score": 2, "title": f"Errors on {service}", "timestamp": at} | more
        for service in services
    ]
    results = intake.accept(items, actor="key:grafana", request_id="test")
    return [Incident.objects.get(pk=result.incident_id) for result in results]
