"""The console in a real browser: what an engineer does there by mouse, by keys, by thumb and without scripts."""

import gzip
import importlib.util
from pathlib import Path

import pytest
from django.utils import timezone

from config import changes
from config.current import forget
from config.models import PlatformState
from incidents import lifecycle
from incidents.models import Incident, Ticket
from platforms.catalog import PLATFORMS
from tests.browser import LIST, needs_chromium, opened

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
    found, axe = [], AXE.read_text()
    for address in addresses:
        for width, height in ((1440, 900), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            page.goto(address)
            page.evaluate(axe)
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme, reduced_motion="reduce")
                found += [f"{address} {width} {theme} {violation}" for violation in page.evaluate(RULES)]
    assert not found, "\n".join(found)


def test_a_screen_shows_twenty_rows_and_costs_little_to_fetch(console):
    opened(*(f"service-{n}" for n in range(60)))
    visitor = console()
    sizes = []
    page = visitor.sign_in()
    page.on("response", lambda reply: sizes.append((reply.url, len(gzip.compress(reply.body(), 6)))))
    page.goto(LIST)
    page.wait_for_load_state("networkidle")
    rows = [row.bounding_box() for row in page.locator("#rows tbody tr").all()]
    assert sum(row["y"] + row["height"] <= 900 for row in rows) >= 20
    assert sum(size for _, size in sizes) <= 40_000, sizes
    assert sum(size for url, size in sizes if url.endswith(".js")) <= 8_000, sizes


def test_no_refresh_loses_a_selection_or_moves_a_row_and_a_new_incident_is_told(console):
    opened(*(f"service-{n}" for n in range(5)))
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
        if n == 5:
            Ticket.objects.update(failing_since=timezone.now(), last_error="503")
        if n == 15:
            Ticket.objects.update(failing_since=None)
        opened(f"newcomer-{n}")
        page.keyboard.press(".")
        page.wait_for_selector(f"#news >> text=/^{n + 1} new/")
        assert page.evaluate(shown) == before
        assert bool(page.query_selector("#strip a")) == (5 <= n < 15)
    page.click("#news button")
    after = page.evaluate(shown)
    assert len(after) == 25
    assert [row[0] for row in after if row[1]] == [row[0] for row in before if row[1]]


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
    assert page.is_checked(f'tr[data-id="{first.id}"] input')
    assert page.query_selector(f'tr.gone[data-id="{second.id}"]')
    assert page.inner_text("#news") == "1 new: 1 critical"
    assert [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")] == before
    page.click("#news button")
    assert page.query_selector(f'tr[data-id="{third.id}"]')
    assert page.is_checked(f'tr[data-id="{first.id}"] input')


def test_the_page_follows_what_happens(console):
    [incident] = opened("payment-api")
    page = console().sign_in()
    page.goto(f"{LIST}{incident.id}/")
    lifecycle.move("resolve", [incident.id], actor="user:bob")
    page.keyboard.press(".")
    page.wait_for_selector("#act-reopen")
    assert "by bob" in page.inner_text("#head")
    assert page.inner_text("#state") == "bob resolved this just now"


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
    page = console(java_script_enabled=False).log_in()
    page.check(f'tr[data-id="{one.id}"] input')
    page.click("#bar >> text=Acknowledge")
    page.wait_for_selector(f"text={one.id} acknowledged.")
    page.fill("#q", "search")
    page.press("#q", "Enter")
    assert [row.get_attribute("data-id") for row in page.query_selector_all("#rows tbody tr")] == [two.id]
    page.check(f'tr[data-id="{two.id}"] input')
    page.click("#bar >> text=Resolve…")
    page.wait_for_selector(f"text={two.id} resolved.")


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
    page.wait_for_url(f"**{LIST}")
    page.click("#user-tools summary >> text=eve")
    page.click("text=Log out")
    page.goto(LIST)
    assert page.is_visible("text=Sign in with Example SSO")
    sso.person["groups"] = []
    page.click("text=Sign in with Example SSO")
    page.wait_for_selector("text=Ask #platform in the chat.")
    # The last page is a 403, and says so.
    assert [one for one in visitor.complaints if "403" not in one] == []
