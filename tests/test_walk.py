"""A walk over every page of the console with text that wants to be more than text.

The pages come from the URL conf, so that a new one is walked or fails here.
"""

import json
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.urls import URLResolver
from django.utils import timezone

from auditlog.models import Entry
from config import changes, keys
from config.current import forget
from config.models import PlatformVersion
from incidents import lifecycle
from incidents.models import Incident, ModelHealth, PlatformPause, Ticket
from tests.browser import LIST, Console, needs_chromium, opened
from ticketing import urls  # registers the users' pages

MARKUP = '"><img src=x onerror=document.body.dataset.owned=1><script>document.body.dataset.owned=2</script>'
TRAP = "javascript:document.body.dataset.owned=3"
TURNED = "\u202eEVIL\u2066"  # what follows it reads backwards, unless it is kept apart
CONTROL = "\x1b[2J\x07"
HOSTILE = f"{MARKUP}{TURNED}{CONTROL}🔥"
LONG = "unbroken" * 2500

pytestmark = needs_chromium


def names() -> Iterator[str]:
    """Of all addresses under /admin/, but for two without a name: an old form of an entry's, and "not found"."""

    def within(patterns: list) -> Iterator[str]:
        for pattern in patterns:
            if isinstance(pattern, URLResolver):
                yield from within(pattern.url_patterns)
            elif pattern.name:
                yield pattern.name

    assert urls.urlpatterns
    return within(admin.site.urls[0])


def addresses(incident: Incident, key: int) -> dict[str, list[str]]:
    """What is looked at under each name. Nothing: it only takes forms, of which `forms` knows, or shows no page."""
    entry, user, group = Entry.objects.last(), User.objects.get(), Group.objects.get(name__contains="img")
    one = f"{LIST}{incident.id}/"
    query = "q=%3Cscript%3Edocument.body.dataset.owned%3D4%3C/script%3E%E2%80%AEevil"
    known = {
        "index": ["/admin/", "/admin/?days=30"],
        "login": [],  # `test_nobody` looks at it signed out
        "logout": [],
        "password_change": ["/admin/password_change/"],
        "password_change_done": ["/admin/password_change/done/"],
        "autocomplete": [],
        "jsi18n": [],
        "view_on_site": [],
        "session": [],  # JSON: how long the login goes on
        "app_list": ["/admin/incidents/", "/admin/config/", "/admin/auditlog/", "/admin/auth/"],
        "configuration": ["/admin/config/"],
        "incidents_incident_changelist": [
            *(LIST, f"{LIST}?view=all", f"{LIST}?view=undelivered&platform=jira", f"{LIST}?{query}"),
            f"{LIST}?service={query}&severity=low",
        ],
        "incidents_incident_drill": [f"{LIST}drill/"],
        "incidents_incident_change": [one, f"{one}?order=oldest&timeline=all", f"{LIST}inc-1{MARKUP}/"],
        "config_apikey_changelist": ["/admin/config/apikey/"],
        "config_apikey_revoke": [f"/admin/config/apikey/{key}/revoke/"],
        "auditlog_entry_changelist": ["/admin/auditlog/entry/", f"/admin/auditlog/entry/?{query}"],
        "auditlog_entry_add": ["/admin/auditlog/entry/add/"],
        "auditlog_entry_history": [f"/admin/auditlog/entry/{entry.pk}/history/"],
        "auditlog_entry_delete": [f"/admin/auditlog/entry/{entry.pk}/delete/"],
        "auditlog_entry_change": [f"/admin/auditlog/entry/{entry.pk}/change/"],
        "auth_user_password_change": [f"/admin/auth/user/{user.pk}/password/"],
    }
    for model, pk in (("user", user.pk), ("group", group.pk)):
        whole = f"/admin/auth/{model}/"
        known |= {f"auth_{model}_{page}": [f"{whole}{pk}/{page}/"] for page in ("history", "delete", "change")}
        known |= {f"auth_{model}_changelist": [whole], f"auth_{model}_add": [f"{whole}add/"]}
    files = ("incidents_incident_export", "incidents_incident_markdown", "incidents_incident_services")
    redirects = ("configuration_platform", "configuration_platform_test", "configuration_routing", "configuration_llm")
    redirects += ("configuration_anomaly", "configuration_llm_test", "incidents_incident_act")
    redirects += ("incidents_incident_retry_platform", "incidents_incident_ask_again", "incidents_incident_retry")
    redirects += ("incidents_incident_neighbour", "incidents_incident_test")
    return known | {name: [] for name in (*files, *redirects)}


def forms(incident: Incident) -> list[tuple[str, dict]]:
    """Forms that are answered with a page of their own: questions, rehearsals, what was refused, a new key."""
    act, config = f"{LIST}act/", "/admin/config/"
    return [
        (act, {"move": "escalate", "ids": incident.id, "note": HOSTILE}),
        (act, {"move": "acknowledge", "all": "1", "question": "?view=all"}),
        (act, {"move": MARKUP, "ids": incident.id}),
        (f"{config}platforms/jira/", {"enabled": "1", "baseUrl": TRAP, "projectKey": MARKUP}),
        (f"{config}platforms/pagerduty/", {}),
        (f"{config}routing/", {"routing-critical": "jira"}),
        (f"{config}routing/", {"rehearse": "1", "routing-critical": MARKUP}),
        (f"{config}anomaly/", {"rehearse": "1", "minimumScore": "1", "lookbackWindow": "5m"}),
        (f"{config}anomaly/", {"minimumScore": MARKUP, "lookbackWindow": MARKUP}),
        (f"{config}llm/", {"provider": MARKUP, "model": MARKUP}),
        (f"{config}platforms/jira/test/", {}),
        (f"{config}llm/test/", {}),
        (f"{config}apikey/", {"name": f"{MARKUP}2", "role": "viewer", "expires": ""}),
        (f"{config}apikey/", {"name": f"{MARKUP}2", "role": MARKUP, "expires": MARKUP}),
        ("/admin/auth/user/add/", {"username": MARKUP, "password1": "a", "password2": "b"}),
        (f"{LIST}{incident.id}/ask-again/", {}),
    ]


@pytest.fixture
def trapped(db) -> Incident:
    """An incident of which whoever could say something said the worst."""
    said = {"title": HOSTILE, "description": LONG, "message": HOSTILE, "traceId": HOSTILE, "environment": HOSTILE}
    said |= {"affectedServices": [MARKUP, TURNED], "evidence_logs": [HOSTILE, LONG], "endpoint": LONG}
    other, incident = (opened(MARKUP, severity=severity, **said)[0] for severity in ("high", "critical"))
    Incident.objects.update(root_cause=f"{HOSTILE}\n{LONG}", cause_error=HOSTILE.replace("\x1b", " ")[:500])
    Incident.objects.filter(pk=other.pk).update(fallback=False, cause_model=MARKUP[:100])
    lifecycle.move("acknowledge", [incident.id], actor=f"jira:{MARKUP}", note=HOSTILE)
    lifecycle.move("resolve", [other.id], actor=f"slack:{MARKUP}")
    now = timezone.now()
    Ticket.objects.update(remote_id=MARKUP, last_error=HOSTILE, failing_since=now, created_remotely_at=now)
    Ticket.objects.filter(platform="pagerduty").update(remote_url=TRAP, previous_links=["data:text/html,x", TRAP])
    seen = {"seen_differs": True, "seen_status": MARKUP[:100], "parked_at": now, "due_at": None}
    Ticket.objects.filter(platform="jira").update(remote_url=f"https://x/{MARKUP}", **seen)
    PlatformPause.objects.create(platform="pagerduty", until=now + timedelta(hours=1), reason=HOSTILE)
    ModelHealth.objects.create(
        provider=MARKUP, model=MARKUP, available=False, error=HOSTILE, settings_at=now, checked_at=now
    )
    changes.patch_llm({"model": MARKUP[:100]}, actor=f"user:{MARKUP}")
    changes.patch_platforms({"servicenow": {"closeCode": MARKUP}}, actor=f"key:{MARKUP}")
    assert PlatformVersion.objects.get().values["closeCode"] == MARKUP
    Group.objects.create(name=MARKUP)
    User.objects.update(first_name=MARKUP, email="")
    return incident


# What a page must not hold, and what must not happen on it; each with an excerpt of where.
INERT = r"""() => {
  const bad = [], told = (what, node) => bad.push(`${what}: ${(node.outerHTML || node.data).slice(0, 160)}`);
  if (document.body.dataset.owned) bad.push(`a script ran: ${document.body.dataset.owned}`);
  for (const a of document.querySelectorAll("[href], [src], [action], [formaction]"))
    for (const name of ["href", "src", "action", "formaction"])
      if (/^\s*(javascript|data|vbscript):/i.test(a.getAttribute(name) || "")) told("a trap", a);
  for (const img of document.querySelectorAll("img")) if (img.getAttribute("src") === "x") told("an image", img);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (!/[\u202a-\u202e\u2066-\u2069]/.test(text.data)) continue;
    let box = text.parentElement, alone = true;
    for (; !/isolate|plaintext/.test(getComputedStyle(box).unicodeBidi); box = box.parentElement) {
      alone &&= box.textContent.trim() === text.data.trim();
      if (!/inline/.test(getComputedStyle(box).display)) break;
    }
    const kept = /inline/.test(getComputedStyle(box).display);
    if (!alone && !kept) told("text that turns its neighbours", text.parentElement);
  }
  return bad;
}"""
# WCAG 2.2, 2.5.8: a target is 24 by 24 px, or as far from all others as if it were; within a sentence it may be small.
SMALL = r"""() => {
  const all = [], bad = [];
  for (const one of document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary")) {
    if (!one.checkVisibility({visibilityProperty: true}) || one.closest(".visually-hidden, .skip-to-content-link"))
      continue;
    const box = (one.closest("label") || one).getBoundingClientRect();
    const small = box.width < 23.5 || box.height < 23.5;
    if (box.width) all.push({one, box, small, x: box.x + box.width / 2, y: box.y + box.height / 2});
  }
  const outside = (at, from, to) => Math.max(from - at, 0, at - to);
  const apart = (me, other) => other.small ? Math.hypot(me.x - other.x, me.y - other.y) >= 24 : Math.hypot(
    outside(me.x, other.box.left, other.box.right), outside(me.y, other.box.top, other.box.bottom)) >= 12;
  for (const me of all) {
    const inSentence = me.one.matches("a") && [...me.one.parentElement.childNodes].some(
      node => node.nodeType === 3 && /[a-z]{2}/i.test(node.data));
    if (me.small && !inSentence && !all.every(other => other === me || apart(me, other)))
      bad.push(`${Math.round(me.box.width)} x ${Math.round(me.box.height)}: ${me.one.outerHTML.slice(0, 160)}`);
  }
  return bad;
}"""
WIDE = "document.documentElement.scrollWidth"
NOT_FOUND = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")


class Walk:
    """Looks at one page after the other, and remembers what was wrong where."""

    def __init__(self, visitor: Console) -> None:
        self.visitor, self.page, self.wrong = visitor, visitor.page, []

    def look(self, what: str) -> None:
        page, visitor = self.page, self.visitor
        found = page.evaluate(INERT)
        page.set_viewport_size({"width": 320, "height": 640})
        if (width := page.evaluate(WIDE)) > 320:
            found.append(f"{width} px wide at 320")
        found += [f"small at 320: {one}" for one in page.evaluate(SMALL)]
        page.set_viewport_size({"width": 1440, "height": 900})
        found += [f"small: {one}" for one in page.evaluate(SMALL)]
        found += [complaint for complaint in visitor.complaints if not NOT_FOUND.search(complaint)]
        visitor.complaints.clear()
        self.wrong += [f"{what}: {one}" for one in found]

    def send(self, address: str, form: dict) -> None:
        """As the page's own form would."""
        self.page.goto("/admin/password_change/")
        with self.page.expect_navigation():
            self.page.evaluate(
                """([address, fields]) => {
                    const form = Object.assign(document.createElement("form"), {method: "post", action: address});
                    fields.csrfmiddlewaretoken = document.querySelector("[name=csrfmiddlewaretoken]").value;
                    for (const [name, value] of Object.entries(fields))
                        form.append(Object.assign(document.createElement("textarea"), {name, value}));
                    document.body.append(form);
                    form.submit();
                }""",
                [address, form],
            )
        self.look(f"{address} {str(form)[:60]}")


def test_every_page_keeps_hostile_text_as_text_and_fits_a_small_screen(console, trapped):
    key, _ = keys.create(name=MARKUP[:100], role="viewer", actor=f"user:{MARKUP}")
    forget()
    pages = addresses(trapped, key.pk)
    assert sorted(set(names())) == sorted(pages), "A page is new, or gone: name in `addresses` what is to be looked at."
    visitor = console()
    visitor.sign_in("/admin/password_change/")
    walk = Walk(visitor)
    for address in [address for several in pages.values() for address in several]:
        walk.page.goto(address)
        walk.look(address)
    for address, form in forms(trapped):
        walk.send(address, form)
    visitor.context.clear_cookies()
    for address in ("/admin/login/?next=//evil.example", "/admin/nothing/"):
        walk.page.goto(address)
        walk.look(f"signed out: {address}")
    assert not walk.wrong, "\n".join(walk.wrong)


def test_what_leaves_the_console_as_a_file_is_a_file_in_which_nothing_acts(console, trapped):
    visitor = console()
    visitor.sign_in()
    get = visitor.context.request.get
    table, told = get(f"{LIST}incidents.csv?view=all"), get(f"{LIST}{trapped.id}/incident.md")
    whole = get(f"/api/incidents/{trapped.id}")
    assert table.headers["content-disposition"].startswith("attachment")
    for reply, kind in ((table, "text/csv"), (told, "text/plain"), (whole, "application/json")):
        assert reply.headers["content-type"].startswith(kind)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", reply.text()), kind
    for reply in (table, told):
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", reply.text())
        assert "🔥" in reply.text()
    assert json.loads(whole.text())["title"] == HOSTILE
