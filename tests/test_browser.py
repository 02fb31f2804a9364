"""The console in a real browser: what an engineer does there by mouse, by keys, by thumb and without scripts."""

import gzip
import importlib.util
import json
import re
import time
from datetime import UTC, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.db.models import F
from django.utils import timezone
from playwright.sync_api import Page, TimeoutError

from auditlog.models import Entry
from config import changes
from config.current import forget, read
from config.models import PlatformState
from incidents import lifecycle
from incidents.models import Incident, Ticket
from platforms.catalog import PLATFORMS
from tests.browser import LIST, PASSWORD, needs_chromium, opened
from tests.waiting import PATIENCE_SECONDS, until
from ticketing import sessions
from ticketing.sessions import SessionStore

AUDIT = "/admin/auditlog/entry/"
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")
RULES = """axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
    .then(found => found.violations.flatMap(one => one.nodes.map(node => `${one.id}: ${node.html}`)))"""

pytestmark = needs_chromium


def test_nothing_bars_anybody_from_a_page_in_either_theme_at_either_width(console):
    incidents = opened("payment-api", "search", "checkout", evidence_logs=["a line"], traceId="abc123")
    Ticket.objects.filter(platform="jira").update(last_error="503", failing_since=timezone.now())
    lifecycle.move("acknowledge", [incidents[0].id], actor="user:bob", note="on it")
    lifecycle.move("resolve", [incidents[1].id], actor="user:bob")
    page = console().sign_in()
    addresses = (LIST, f"{LIST}{incidents[0].id}/", "/admin/", "/admin/config/", "/admin/config/apikey/", AUDIT)
    both, wide = ((1440, 900), (390, 844)), ((1440, 900),)
    user, entry = User.objects.get().pk, Entry.objects.last().pk
    of_django = ("/admin/auth/user/", f"/admin/auth/user/{user}/change/", f"/admin/auth/user/{user}/delete/")
    looks = [(address, both) for address in addresses]
    looks += [(address, wide) for address in (*of_django, f"{AUDIT}{entry}/change/")]
    found, axe = [], AXE.read_text()
    for address, sizes in looks:
        for width, height in sizes:
            page.set_viewport_size({"width": width, "height": height})
            page.goto(address)
            page.evaluate(axe)
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme, reduced_motion="reduce")
                found += [f"{address} {width} {theme} {violation}" for violation in page.evaluate(RULES)]
    assert not found, "\n".join(found)


@pytest.fixture
def storm(console):
    """Sixty incidents with a ticket at each of the five platforms, one of which fails, so that the strip is shown."""
    changes.patch_routing({"critical": list(PLATFORMS)}, actor="system")
    for name in PLATFORMS:
        PlatformState.objects.update_or_create(platform=name, defaults={"enabled": True})
    forget()
    found = opened(*(f"service-{n}" for n in range(60)))
    lifecycle.move("acknowledge", [one.id for one in found[::3]], actor="user:anna.maria")
    accepted = {"shown_version": F("wanted_version"), "created_remotely_at": timezone.now(), "due_at": None}
    Ticket.objects.exclude(platform="jira").update(remote_url="https://example.com/1", **accepted)
    Ticket.objects.filter(platform="jira").update(last_error="503", failing_since=timezone.now())


SHIFTS = """window.shifts = 0; new PerformanceObserver(list => {
    for (const entry of list.getEntries()) window.shifts += entry.value;
}).observe({type: "layout-shift", buffered: true});"""
# The page and what it is made of, without what it asks for later.
NEEDED = """[location.href, ...performance.getEntriesByType("resource")
    .filter(entry => entry.initiatorType !== "fetch").map(entry => entry.name)]"""


@pytest.mark.parametrize(("width", "height", "least"), [(1440, 900, 20), (390, 844, 5)])
def test_a_screen_shows_enough_rows_holds_still_and_costs_little_to_fetch(console, storm, width, height, least):
    page = console(viewport={"width": width, "height": height}, has_touch=width < 768).sign_in()
    page.add_init_script(SHIFTS)
    page.goto(LIST)
    page.wait_for_load_state("networkidle")
    needed = page.evaluate(NEEDED)
    fetched = [(url, len(gzip.compress(page.request.get(url).body(), 6))) for url in needed]
    assert page.locator("#strip a").is_visible()
    bar = page.locator("#bar").bounding_box()
    end = bar["y"] if width < 768 else height
    rows = [row.bounding_box() for row in page.locator("#rows tbody tr").all()]
    assert sum(row["y"] + row["height"] <= end for row in rows) >= least
    assert page.evaluate("window.shifts") <= 0.02
    assert len(fetched) <= 8, fetched
    assert sum(size for _, size in fetched) <= 40_000, fetched
    assert sum(size for url, size in fetched if url.endswith(".js")) <= 8_000, fetched
    assert not [url for url, _ in fetched if "font" in url]


def test_a_service_is_suggested_as_one_types_and_chosen(console):
    opened("payment-api", "payment-worker", "search", severity="low")
    page = console().sign_in()
    page.click("#by-service [name=service]")
    page.keyboard.type("MENT-w")
    # What fitted an earlier part of it goes.
    page.wait_for_selector("#services option[value='payment-worker']:only-child", state="attached")
    # As a browser tells that one was picked from its list.
    page.evaluate("""() => {
        const field = document.querySelector("#by-service [name=service]");
        field.value = "payment-worker";
        field.dispatchEvent(new InputEvent("input", {bubbles: true, inputType: "insertReplacementText"}));
    }""")
    page.wait_for_url(f"**{LIST}?service=payment-worker")
    page.fill("#by-service [name=service]", "search")
    page.press("#by-service [name=service]", "Enter")
    page.wait_for_url(f"**{LIST}?service=search")
    assert len(page.query_selector_all("#rows tbody tr")) == 1


def test_no_refresh_loses_a_selection_or_moves_a_row_and_a_new_incident_is_told(console):
    first, *_ = opened(*(f"service-{n}" for n in range(5)))
    page = console().sign_in()
    rows = "[...document.querySelectorAll('#rows tbody tr')]"
    shown = f"{rows}.map(row => [row.dataset.id, row.querySelector('input').checked, row.getBoundingClientRect().y])"
    page.hover("#rows tbody tr:nth-child(3)")
    before = page.evaluate(shown)
    for n in range(20):
        if n == 10:  # from here on a selection keeps the rows, no longer the pointer
            page.check("#rows tbody tr:nth-child(2) input")
            page.check("#rows tbody tr:nth-child(4) input")
            page.mouse.move(1, 1)
            before = page.evaluate(shown)
        opened(f"newcomer-{n}")
        Ticket.objects.update(shown_version=F("wanted_version"), created_remotely_at=timezone.now(), failing_since=None)
        if 5 <= n < 15:
            Ticket.objects.filter(incident=first).update(shown_version=0, failing_since=timezone.now())
        page.keyboard.press(".")
        page.wait_for_selector(f"#news >> text=/^{n + 1} new/")
        page.wait_for_selector("#strip a", state="attached" if 5 <= n < 15 else "detached")
        assert page.evaluate(shown) == before
    page.click("#news button")
    after = page.evaluate(shown)
    assert len(after) == 25
    assert [row[0] for row in after if row[1]] == [row[0] for row in before if row[1]]


def test_the_number_of_incidents_and_its_view_agree_as_others_come(console):
    opened(*(f"service-{n}" for n in range(50)))
    page = console().sign_in()
    assert page.is_hidden("#everything")
    for number in (51, 52):
        opened(f"newcomer-{number}")
        page.keyboard.press(".")
        page.wait_for_selector(f"#total >> text='{number} incidents'")
        assert page.inner_text("#views [aria-current] b") == str(number)
        assert page.inner_text("#everything").strip() == f"All {number} matching"
        page.check("#everything input")
    assert page.is_checked("#everything input")
    lifecycle.move("resolve", [one.id for one in Incident.objects.all()[:2]], actor="system")
    page.keyboard.press(".")
    page.wait_for_selector("#total >> text='50 incidents'")
    assert page.is_hidden("#everything")
    assert not page.is_checked("#everything input")


def test_each_tickets_state_is_seen_at_any_width(console):
    changes.patch_routing({"critical": list(PLATFORMS)}, actor="system")
    for name in PLATFORMS:
        PlatformState.objects.update_or_create(platform=name, defaults={"enabled": True})
    forget()
    opened("payment-api")
    Ticket.objects.update(parked_at=timezone.now(), due_at=None, last_error="401 Invalid token")
    page = console().sign_in()
    for width in (1440, 1280, 1024, 800, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        cell = page.locator(".c-tickets").nth(1).bounding_box()
        for ticket in page.locator("td.c-tickets a").all():
            box = ticket.bounding_box()
            assert box["x"] >= cell["x"] - 1, width
            assert box["x"] + box["width"] <= min(width, cell["x"] + cell["width"] + 1), width
            assert box["y"] + box["height"] <= cell["y"] + cell["height"] + 1, width
        assert len(page.locator("td.c-tickets a").all()) == 5
        if width == 1440:
            assert cell["height"] <= 34


def test_a_name_as_long_as_it_may_be_is_cut_and_told_and_covers_nothing(console):
    name = "x" * 150
    changes.patch_routing({"critical": list(PLATFORMS)}, actor="system")
    for platform in PLATFORMS:
        PlatformState.objects.update_or_create(platform=platform, defaults={"enabled": True})
    forget()
    [incident] = opened(name, title="T" * 150)
    Ticket.objects.update(parked_at=timezone.now(), due_at=None, last_error="401 Invalid token")
    page = console().sign_in()
    for cell, told in (("td.c-service", name), ("th.c-title", "T" * 150)):
        page.hover(f"tbody {cell}")
        page.wait_for_selector(f'tbody {cell}[title="{told}"]')
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(LIST)
        service, tickets = (page.locator(f"tbody td.{cell}").bounding_box() for cell in ("c-service", "c-tickets"))
        assert service["x"] + service["width"] <= tickets["x"]
        page.goto(f"{LIST}{incident.id}/")
        assert page.evaluate("(h => h.scrollHeight <= h.clientHeight + 1)(document.querySelector('h1'))")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{LIST}?service={name}")
    chip, cross = page.locator(".applied").bounding_box(), page.locator(".applied [aria-hidden]").bounding_box()
    assert cross["x"] + cross["width"] <= chip["x"] + chip["width"]


def test_an_incident_is_acknowledged_in_two_clicks(console):
    one, two = opened("payment-api", "search")
    page = console().sign_in()
    page.check(f'tr[data-id="{one.id}"] input')
    assert page.inner_text("#selected") == "1 selected: 1 critical"
    page.click("#bar >> text=Acknowledge")
    page.wait_for_selector(f"text={one.id} acknowledged.")
    one.refresh_from_db()
    two.refresh_from_db()
    assert (one.status, one.acknowledged_by, two.status) == ("acknowledged", "user:anna", "open")


def test_an_incident_is_acknowledged_with_two_keys(console):
    opened("payment-api")
    page = console().sign_in()
    page.keyboard.press("j")
    page.keyboard.press("a")
    page.wait_for_selector("text=acknowledged.")
    assert Incident.objects.get().status == "acknowledged"


def test_every_key_does_what_its_list_says(console):
    window = console()
    opened("one", "two", "three")
    here = f"{window.url}/health"
    Ticket.objects.filter(platform="pagerduty").update(
        remote_url=here, shown_version=F("wanted_version"), created_remotely_at=timezone.now()
    )
    page = window.sign_in()
    press = page.keyboard.press
    ids = [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")]

    def stands() -> str:
        return page.get_attribute("#rows tr.here", "data-id")

    def chosen() -> list[str]:
        return [box.get_attribute("value") for box in page.query_selector_all("#rows tbody input:checked")]

    steps = (("j", 0), ("j", 1), ("k", 0), ("k", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("j", 2), ("ArrowUp", 1))
    for key, row in steps:
        press(key)
        assert stands() == ids[row], key
    press("x")
    assert chosen() == [ids[1]]
    press("k")
    press("Shift+X")
    assert chosen() == ids[:2]
    press("Escape")
    assert chosen() == []
    press("j")
    press("t")
    assert re.fullmatch(r"\d\d:\d\d( [AP]M)?", page.inner_text("tr.here .c-age"))
    press("t")
    assert page.inner_text("tr.here .c-age") == "1h" or page.inner_text("tr.here .c-age").endswith(("m", "s"))
    press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    press("Escape")
    press("f")
    assert page.evaluate("document.activeElement.closest('#filters') !== null")
    press("p")
    assert page.inner_text("#state span") == "Paused"
    for key in "p.":
        with page.expect_response(f"**{LIST}"):
            press(key)
        page.wait_for_selector("#state >> text=Live")
    press("Shift+?")
    listed = page.inner_text("#keys dl")
    assert all(key in listed for key in "j k ↓ ↑ x Enter o a e r / f p t . u Esc".split())
    press("Escape")
    page.wait_for_selector("#keys", state="hidden")
    press("j")
    press("e")
    page.wait_for_selector("#asking >> text=Page PagerDuty for")
    press("Escape")
    page.wait_for_selector("#asking", state="detached")
    press("Escape")
    press("j")
    press("r")
    page.wait_for_selector(f"text={ids[0]} resolved.")
    page.wait_for_load_state()  # its script runs by then
    press("j")
    press("Enter")
    page.wait_for_url(f"**{LIST}{ids[1]}/")
    press("a")
    page.wait_for_selector(f"text={ids[1]} acknowledged.")
    page.wait_for_load_state()
    press("u")
    page.wait_for_url(f"{window.url}{LIST}")
    page.wait_for_load_state()
    press("j")
    with page.context.expect_page() as ticket:
        press("o")
    ticket.value.wait_for_url(here)


def test_the_keys_go_on_where_they_were_after_an_act_and_back_from_a_page(console):
    opened(*(f"service-{n}" for n in range(30)))
    page = console().sign_in(f"{LIST}?severity=critical")
    ids = [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")]
    press = page.keyboard.press
    for _ in range(20):
        press("j")
    press("a")
    page.wait_for_selector(f"text={ids[19]} acknowledged.")
    page.wait_for_selector(f'tr.here[data-id="{ids[19]}"]')
    page.wait_for_load_state()
    assert page.evaluate("document.activeElement.closest('tr').dataset.id") == ids[19]
    assert page.evaluate("scrollY") > 0
    press("r")
    page.wait_for_selector(f"text={ids[19]} resolved.")
    page.wait_for_load_state()
    press("j")
    page.wait_for_selector(f'tr.here[data-id="{ids[20]}"]')
    press("Enter")
    page.wait_for_url(f"**{ids[20]}/")
    page.wait_for_load_state()
    press("u")
    page.wait_for_url(f"**{LIST}?severity=critical")
    page.wait_for_selector(f'tr.here[data-id="{ids[20]}"]')


def test_the_keys_of_whoever_may_only_read_do_nothing_but_move(console):
    opened("payment-api")
    User.objects.get().groups.set([Group.objects.get_or_create(name="viewer")[0]])
    window = console()
    page = window.sign_in()
    for key in "jxaer":
        page.keyboard.press(key)
    assert page.is_visible("tr.here")
    assert window.complaints == []


def test_times_are_ages_local_or_utc_and_never_lose_their_half_of_the_day(console):
    opened("payment-api")
    Ticket.objects.filter(platform="jira").update(last_error="503", failing_since=timezone.now())
    page = console(timezone_id="Asia/Tokyo", locale="en-US").sign_in()
    cell = "#rows tbody .c-seen"
    seen = timezone.localtime(Incident.objects.get().last_anomaly_at, UTC)
    for label, shown in (("UTC", seen + timedelta(hours=9)), ("Ages", seen)):
        page.keyboard.press("t")
        assert page.inner_text(cell) == f"{shown:%H:%M}"
        assert page.inner_text("[data-times]") == label
    page.keyboard.press("t")
    assert re.fullmatch(r"1h( \d+m)?", page.inner_text(cell))
    assert re.search(r"since \d\d:\d\d UTC \(\d\d:\d\d local\)", page.inner_text("#strip"))


def test_what_was_done_is_taken_back_from_the_message(console):
    [incident] = opened("payment-api")
    page = console().sign_in()
    page.check("#rows tbody input")
    page.click("#bar >> text=Resolve…")
    page.click("[role=status] >> text=Reopen")
    page.wait_for_selector(f"text={incident.id} reopened.")
    incident.refresh_from_db()
    assert incident.status == "open"


# Watches for what is told of a copy, which is shown for a moment only.
WATCH = """() => {
  const told = one => one.matches(".copied") || one.textContent === "Copied";
  window.told = 0;
  new MutationObserver(() => { window.told += [...document.querySelectorAll("button, code")].some(told); })
    .observe(document.body, {attributes: true, childList: true, subtree: true});
}"""
COPIED = ":text('Copied'), .copied"
# What is focused and of which nothing can be seen, because something lies above it; or that shows no focus.
UNSEEN = """() => {
  const active = document.activeElement, one = active.matches(".visually-hidden") ? active.labels[0] : active;
  if (one === document.body) return "";
  const box = one.getBoundingClientRect(), parts = [0.1, 0.5, 0.9];
  const spots = parts.flatMap(x => parts.map(y => [box.x + box.width * x, box.y + box.height * y]));
  const seen = spots.some(spot => one.contains(document.elementFromPoint(...spot)));
  const ring = getComputedStyle(one).outlineStyle !== "none";
  return seen && ring ? "" : `${seen ? "no ring" : "hidden"}: ${one.outerHTML.slice(0, 160)}`;
}"""


def tabbed(page: Page, key: str, most: int) -> list[str]:
    """Presses the key until nothing new is focused; what was focused, and fails where that could not be seen."""
    passed, unseen = [], []
    for _ in range(most):
        page.keyboard.press(key)
        unseen.append(page.evaluate(UNSEEN))
        name = "document.activeElement.textContent.trim() || document.activeElement.id || document.activeElement.name"
        passed.append(page.evaluate(name))
        if page.evaluate("document.activeElement === document.body"):
            break
    assert not any(unseen), "\n".join(filter(None, unseen))
    return passed


@pytest.mark.parametrize("size", [(1280, 480), (390, 600)])
def test_whatever_the_keyboard_reaches_is_seen_and_no_bar_lies_above_it(console, size):
    incidents = opened(*(f"service-{n}" for n in range(14)), evidence_logs=["a line"], message="refused")
    window = console(viewport={"width": size[0], "height": size[1]})
    window.stop_the_clock()
    page = window.sign_in()
    for address, last in ((LIST, incidents[-1].title), (f"{LIST}{incidents[0].id}/", "service-0")):
        page.goto(address)
        there = tabbed(page, "Tab", 120)
        assert last in there
        assert last in tabbed(page, "Shift+Tab", 120)


@pytest.mark.parametrize("size", [(1280, 480), (390, 600)])
def test_a_strip_that_comes_while_one_goes_through_the_rows_lies_above_nothing_that_is_reached(console, size):
    incidents = opened(*(f"service-{n}" for n in range(14)))
    Ticket.objects.update(shown_version=F("wanted_version"), created_remotely_at=timezone.now(), due_at=None)
    window = console(viewport={"width": size[0], "height": size[1]})
    window.stop_the_clock()
    page = window.sign_in()
    page.focus("#rows tbody tr:nth-child(2) .c-title a")
    Ticket.objects.filter(platform="jira").update(shown_version=0, last_error="503", failing_since=timezone.now())
    page.keyboard.press(".")
    page.wait_for_selector("#strip.floating a")
    assert incidents[0].title in tabbed(page, "Tab", 120)
    assert incidents[-1].title in tabbed(page, "Shift+Tab", 120)


def test_an_incident_is_found_and_acknowledged_by_keyboard_alone_without_single_keys(console):
    [incident] = opened("payment-api")
    page = console().log_in()
    page.evaluate("localStorage.setItem('keys', 'off')")

    def tab_to(wanted: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if wanted in page.evaluate("document.activeElement.textContent.trim()"):
                return
        raise AssertionError(f"The keyboard does not reach {wanted!r}.")

    tab_to(incident.title)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{incident.id}/")
    tab_to("Acknowledge")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text={incident.id} acknowledged.")
    incident.refresh_from_db()
    assert incident.acknowledged_by == "user:anna"


def test_a_new_incident_is_on_an_open_list_within_ten_seconds(console):
    opened("payment-api")
    window = console()
    window.stop_the_clock()
    page = window.sign_in()
    page.wait_for_selector("#state >> text=Live")
    [new] = opened("search")
    page.clock.run_for(10_000)
    page.wait_for_selector(f'tr[data-id="{new.id}"]')


def test_a_paused_list_and_one_that_nobody_looks_at_ask_for_nothing_and_go_on_at_once(console):
    opened("payment-api")
    window = console()
    window.stop_the_clock()
    page = window.sign_in()
    asked = []
    page.on("request", lambda request: "x-fragment" in request.headers and asked.append(request.url))
    page.click("text=Pause")
    page.clock.run_for(60_000)
    assert asked == []
    assert page.inner_text("#state span") == "Paused"
    with page.expect_response(f"**{LIST}"):
        page.click("text=Resume")
    page.wait_for_selector("#state >> text=Live")
    look = "hidden => {Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    look += "document.dispatchEvent(new Event('visibilitychange'))}"
    page.evaluate(look, True)
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_response(f"**{LIST}"):
        page.evaluate(look, False)


def time_passes(page: Page, until: str, seconds: int = 5, state: str = "attached") -> None:
    """By so many seconds of the page's clock, and as many again as often as an answer was not yet there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        page.clock.fast_forward(seconds * 1000)
        try:
            page.wait_for_selector(until, state=state, timeout=1000)
            return
        except TimeoutError:
            assert time.monotonic() < deadline, f"{until} did not come."


@pytest.mark.parametrize(
    ("path", "answer"),
    [("", lambda route: route.abort()), ("{id}/", lambda route: route.fulfill(status=503, body="{}"))],
)
def test_a_refresh_that_fails_says_since_when_it_is_old_and_goes_on_by_itself(console, path, answer):
    [incident] = opened("payment-api")
    window = console()
    window.stop_the_clock()
    page = window.sign_in(LIST + path.format(id=incident.id))
    page.route("**/incident/**", answer)
    time_passes(page, r"#state.late >> text=/Not live since \d\d:\d\d:\d\d, retrying/")
    page.unroute("**/incident/**")
    time_passes(page, "#state:not(.late)")
    assert page.locator(f"text={incident.title}").count() > 0


def sign_in_again(window, link: str, back_at: str) -> None:
    """Anna signs in in the tab that the link opens, and closes it where it has led her: the login page's own address
    may end in that path."""
    with window.context.expect_page() as other:
        window.page.click(link)
    tab = other.value
    tab.fill("#id_username", "anna")
    tab.fill("#id_password", PASSWORD)
    tab.press("#id_password", "Enter")
    tab.wait_for_url(f"{window.url}{back_at}")
    tab.close()


def test_whoever_signs_in_again_goes_on_with_the_page_that_stood_open(console):
    [incident] = opened("payment-api")
    window = console()
    page = window.log_in()
    page.check("#rows tbody input")
    window.context.clear_cookies()
    page.keyboard.press(".")
    sign_in_again(window, "text=Signed out: sign in again", LIST)
    page.keyboard.press(".")
    page.wait_for_selector("#state >> text=Live")
    assert page.is_checked("#rows tbody input")
    page.click("#bar >> text=Acknowledge")
    page.wait_for_selector(f"text={incident.id} acknowledged.")


MINUTE = 60


@pytest.fixture
def an_hour(settings):
    """May be idled, in a login of twelve."""
    settings.SESSION_HOURS, settings.SESSION_IDLE_MINUTES = 12, 60


def left(seconds: int, ends: str) -> None:
    """Anna's login ends so soon, if nothing is done (`seen`) or whatever is done (`began`)."""
    [row] = Session.objects.all()
    session = SessionStore(row.session_key)
    whole = {"seen": settings.SESSION_IDLE_MINUTES * MINUTE, "began": settings.SESSION_HOURS * 60 * MINUTE}[ends]
    session[ends] = int(timezone.now().timestamp()) - whole + seconds
    session.save()


def test_an_open_page_tells_that_its_login_ends_soon_and_goes_on_where_it_was(console, an_hour):
    [incident] = opened("payment-api")
    window = console()
    window.page.clock.install()  # and it goes on: axe waits for moments of it
    page = window.sign_in(f"{LIST}{incident.id}/")
    note, notice = "#head textarea[name=note]", "#session"
    page.click("#head details.note summary")
    page.fill(note, "Half writ")
    left(4 * MINUTE, "seen")
    time_passes(page, f"{notice} >> text=Your session ends in 4 min.", 56 * MINUTE)
    left(60 * MINUTE, "seen")  # something was done elsewhere: the server knows
    time_passes(page, f"{notice} button", 20, "detached")
    assert page.inner_text(notice) == ""
    left(4 * MINUTE, "seen")
    time_passes(page, f"{notice} >> text=Your session ends in 4 min.", 56 * MINUTE)
    assert page.inner_text("#spoken") == "Your session ends in 4 min."
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.evaluate(AXE.read_text())
        assert page.evaluate(RULES) == []
    page.click("text=Stay signed in")
    page.wait_for_selector(f"{notice} button", state="detached")
    [row] = Session.objects.all()
    assert sessions.seconds_left(SessionStore(row.session_key)) > 58 * MINUTE
    left(3 * MINUTE, "began")
    time_passes(page, f"{notice} >> text=Your session ends in 3 min.", 56 * MINUTE)
    sign_in_again(window, "text=Sign in again", f"{LIST}{incident.id}/")
    time_passes(page, f"{notice} a", 20, "detached")
    assert page.input_value(note) == "Half writ"
    page.click("#act-acknowledge")
    page.wait_for_selector(f"text={incident.id} acknowledged.")


def test_the_minutes_that_a_login_has_left_are_spoken_at_first_and_at_last_and_seen_always(console, an_hour):
    window = console()
    window.stop_the_clock()
    page = window.sign_in("/admin/")
    spoken, later = [], 56 * MINUTE
    for seconds, minutes in ((240, 4), (170, 3), (100, 2), (50, 1), (40, 1)):
        left(seconds, "seen")
        time_passes(page, f"#session >> text=Your session ends in {minutes} min.", later)
        later = 20
        spoken.append(page.inner_text("#spoken[role=status]"))
    first, last = "Your session ends in 4 min.", "Your session ends in 1 min."
    assert spoken == [first, first, first, last, last]
    assert page.query_selector("#session[role]") is None


def test_a_form_outlives_its_login(console, an_hour):
    window = console()
    window.stop_the_clock()
    page = window.log_in()
    page.goto("/admin/config/")
    page.fill("[name=lookbackWindow]", "20m")
    window.context.clear_cookies()
    time_passes(page, "#session >> text=Your session has ended.", 60 * MINUTE)
    sign_in_again(window, "#session >> text=Sign in again", "/admin/config/")
    time_passes(page, "#session a", 20, "detached")
    page.press("[name=lookbackWindow]", "Enter")
    page.wait_for_url("**/admin/config/#anomaly")
    assert page.input_value("[name=lookbackWindow]") == "20m"
    assert read().lookback_window == "20m"


def test_single_keys_can_be_turned_off_and_do_nothing_while_typing(console):
    opened("payment-api")
    page = console().sign_in()
    page.keyboard.press("/")
    page.keyboard.type("ja")
    assert page.input_value("#q") == "ja"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.check("[data-keys-off]")
    page.click("#keys >> text=Close")
    page.keyboard.press("j")
    assert page.query_selector("tr.here") is None


def test_escalating_from_the_page_is_confirmed_with_a_note(console):
    [incident] = opened("payment-api")
    page = console().sign_in()
    page.click(f"text={incident.title}")
    page.wait_for_url(f"**{LIST}{incident.id}/")  # its script runs by then
    page.click("#act-escalate")
    page.wait_for_selector("dialog >> text=Page PagerDuty for")
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Escape")
    page.wait_for_selector("#asking", state="detached")
    page.click("#act-escalate")
    page.fill("#why", "please look")
    page.click("#asking button.primary")
    page.wait_for_selector(f"text={incident.id} escalated.")
    assert page.url.endswith(f"{LIST}{incident.id}/")
    incident.refresh_from_db()
    assert incident.status == "escalated"


def test_the_list_follows_what_happens_and_keeps_the_selection(console):
    first, second = opened("payment-api", "search")
    page = console().sign_in()
    page.check(f'tr[data-id="{first.id}"] input')
    before = [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")]
    lifecycle.move("acknowledge", [first.id], actor="user:bob")
    lifecycle.move("resolve", [second.id], actor="user:bob")
    [third] = opened("brand-new")
    page.keyboard.press(".")
    page.wait_for_selector(f'tr[data-id="{first.id}"] .chip.acknowledged')
    page.wait_for_selector("#news >> text=/^1 new/")  # nor is it told by a refresh that was under way
    assert page.is_checked(f'tr[data-id="{first.id}"] input')
    page.wait_for_selector(f'tr.gone[data-id="{second.id}"] .c-status >> text=/Resolved\\s+bob/')
    assert page.inner_text("#spoken") == "1 new: 1 critical"
    assert page.inner_text("#news") == "1 new: 1 critical"
    assert [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")] == before
    page.click("#news button")
    assert page.query_selector(f'tr[data-id="{third.id}"]')
    assert page.is_checked(f'tr[data-id="{first.id}"] input')
    lifecycle.move("reopen", [second.id], actor="user:bob")
    page.keyboard.press(".")
    page.wait_for_selector(f'tr:not(.gone)[data-id="{second.id}"] .chip.open')


def test_the_page_follows_what_happens(console):
    [incident] = opened("payment-api")
    page = console().sign_in()
    page.goto(f"{LIST}{incident.id}/")
    lifecycle.move("resolve", [incident.id], actor="user:bob")
    page.keyboard.press(".")
    page.wait_for_selector("#act-reopen")
    assert "by bob" in page.inner_text("#head")
    assert page.inner_text("#state") == "bob resolved this just now"


def test_what_is_written_or_selected_on_a_page_outlives_a_refresh(console):
    [incident] = opened("payment-api")
    page = console().sign_in(f"{LIST}{incident.id}/")
    page.click("#note-fold summary")
    page.fill("#note", "half a sent")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#cause .text'))")
    before = page.inner_text("#cause .text")
    lifecycle.move("acknowledge", [incident.id], actor="user:bob")
    Incident.objects.update(root_cause="Something else", cause_at=timezone.now())
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(".")
    page.wait_for_selector("#act-acknowledge", state="detached")
    assert page.inner_text("#state") == "bob acknowledged this just now"
    assert page.inner_text("#cause .text") == before
    assert page.input_value("#note") == "half a sent"
    page.evaluate("getSelection().removeAllRanges()")
    page.keyboard.press(".")
    page.wait_for_selector("#cause >> text=Something else")
    page.click("#act-resolve")
    page.wait_for_selector(f"text={incident.id} resolved.")
    assert Entry.objects.about(incident.subject).last().data["note"] == "half a sent"


def test_an_incident_is_copied_as_link_as_markdown_as_json_and_its_log_lines(console):
    [incident] = opened("payment-api", evidence_logs=["first line", "second line"])
    window = console()
    window.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = window.sign_in(f"{LIST}{incident.id}/")
    page.evaluate(WATCH)

    def copied(words: str) -> str:
        page.evaluate("window.told = 0")
        page.click(words)
        until(lambda: page.evaluate("window.told"))
        text = page.evaluate("navigator.clipboard.readText()")
        page.wait_for_selector(COPIED, state="detached")
        return text

    page.click("#more summary")
    assert copied("text=Copy link") == f"{window.url}{LIST}{incident.id}/"
    assert copied("text=Copy as Markdown").startswith("## Errors on payment\\-api")
    assert json.loads(copied("text=Copy as JSON"))["id"] == incident.id
    page.keyboard.press("Escape")
    assert copied("#evidence >> text=Copy") == "first line\nsecond line"
    assert copied("code[data-copy]") == incident.id


def test_a_link_to_an_act_shows_its_button_and_does_nothing(console):
    [incident] = opened("payment-api")
    page = console().sign_in()
    page.goto(f"{LIST}{incident.id}/#act-acknowledge")
    assert page.evaluate("document.activeElement.id") == "act-acknowledge"
    page.goto(f"{LIST}{incident.id}/#timeline")
    page.reload()
    head = page.locator("#head").bounding_box()
    assert page.locator("#timeline h2").bounding_box()["y"] >= head["y"] + head["height"]
    incident.refresh_from_db()
    assert incident.status == "open"


@pytest.mark.parametrize("path", ["", "{id}/"])
def test_a_page_whose_login_has_ended_says_so(console, path):
    [incident] = opened("payment-api")
    address = LIST + path.format(id=incident.id)
    visitor = console()
    page = visitor.sign_in()
    page.goto(address)
    visitor.context.clear_cookies()
    page.keyboard.press(".")
    page.wait_for_selector("text=Signed out: sign in again")


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_acknowledges_in_two_taps_without_scrolling_sideways(console, width):
    long_name = "a-service-with-a-name-that-is-longer-than-a-phone-is-wide"
    incidents = opened("payment-api", long_name, "c", "d", "e", "f", "g")
    page = console(viewport={"width": width, "height": 844}, has_touch=True).sign_in()
    for address in ("/admin/", "/admin/config/", "/admin/config/apikey/", f"{LIST}{incidents[0].id}/", LIST):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
    bar = page.locator("#bar").bounding_box()
    rows = [row.bounding_box() for row in page.locator("#rows tbody tr").all()]
    assert sum(row["y"] + row["height"] <= bar["y"] for row in rows) >= 5
    assert page.locator("#bar button").first.bounding_box()["height"] >= 44
    page.goto(f"{LIST}{incidents[0].id}/")
    page.tap("#act-acknowledge")
    page.wait_for_selector(f"text={incidents[0].id} acknowledged.")


def test_everything_that_matters_works_without_scripts(console):
    one, two = opened("payment-api", "search")
    [burning] = opened("mail", severity="high", timestamp=timezone.now().isoformat())
    page = console(java_script_enabled=False).log_in()
    page.check(f'tr[data-id="{one.id}"] input')
    page.click("#bar >> text=Acknowledge")
    page.wait_for_selector(f"text={one.id} acknowledged.")
    with page.expect_navigation():
        page.click("#filters >> text=High")
    assert [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")] == [burning.id]
    with page.expect_navigation():
        page.click("text=Clear filters")
    page.fill("#q", "search")
    with page.expect_navigation():
        page.press("#q", "Enter")
    assert [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")] == [two.id]
    page.check(f'tr[data-id="{two.id}"] input')
    page.click("#bar >> text=Resolve…")
    page.wait_for_selector(f"text={two.id} resolved.")
    page.goto(f"{LIST}{burning.id}/")
    page.click("#act-resolve")
    page.click("text=It still burns >> xpath=.. >> button >> text=Resolve")
    page.wait_for_selector(f"text={burning.id} resolved.")
    page.click("#more summary")
    page.click("text=Older incident")
    page.wait_for_url(f"**{two.id}/")


def test_a_secret_is_set_and_a_connection_tested_from_the_page(console):
    page = console().sign_in()
    page.goto("/admin/config/")
    page.fill("#pagerduty-routingKey", "canary0123456789abcdef0123456789")
    page.click("#pagerduty button.primary")
    page.wait_for_selector("#pagerduty >> text=Saved.")
    assert "set" in page.inner_text("#pagerduty .label >> nth=0")
    assert "canary" not in page.content()
    page.click("#jira >> text=Test connection")
    page.wait_for_selector("#jira >> text=Not configured")


def test_somebody_signs_in_by_their_provider_and_out_again(console, sso, settings, live_server):
    settings.PUBLIC_URL = live_server.url
    sso.redirect_uri = f"{live_server.url}/admin/sso/callback/"
    sso.person |= {"sub": "eve", "preferred_username": "eve"}
    visitor = console()
    page = visitor.page
    page.goto(LIST)
    page.evaluate(AXE.read_text())
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.evaluate("Promise.all(document.getAnimations().map(one => one.finished))")
        assert page.evaluate(RULES) == []
    page.click("text=Sign in with Example SSO")
    page.wait_for_url(f"{live_server.url}{LIST}")
    page.click("#user-tools summary >> text=eve")
    with page.expect_navigation():
        page.click("text=Log out")
    page.goto(LIST)
    assert page.is_visible("text=Sign in with Example SSO")
    sso.person["groups"] = []
    page.click("text=Sign in with Example SSO")
    page.wait_for_selector("text=Ask #platform in the chat.")
    # The last page is a 403, and says so.
    assert [one for one in visitor.complaints if "403" not in one] == []
