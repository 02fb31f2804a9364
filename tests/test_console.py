"""The console: what it lists, what each role may do in it, and that whatever it shows is text."""

import csv
import gzip
import io
import json
import random
import re
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.db import connection
from django.db.models import F, Value
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.html import escape

from auditlog.models import Entry
from config import changes, keys
from config.current import forget, read
from config.models import ApiKey, PlatformState
from incidents import intake, lifecycle
from incidents.causes import health as model_health
from incidents.console import listing, patience
from incidents.console.spread import Seconds, spreads
from incidents.models import Anomaly, Incident, ModelHealth, PlatformPause, Pulse, Ticket
from platforms.catalog import PLATFORMS
from tests.browser import machinery_runs
from ticketing import health

LIST = "/admin/incidents/incident/"
ACT = f"{LIST}act/"
CONFIG = "/admin/config/"
KEYS = "/admin/config/apikey/"
AUDIT = "/admin/auditlog/entry/"
BACKEND = "ticketing.access.RolesAtOnce"
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
CANARY = "canary0123456789abcdef0123456789"

pytestmark = pytest.mark.django_db


def person(role: str | None, name: str = "") -> User:
    user = User.objects.create_user(name or f"{role or 'nobody'}-person", password="a-long-password")
    if role:
        user.groups.add(Group.objects.get_or_create(name=role)[0])
    return user


def browser(role: str | None, name: str = "") -> Client:
    client = Client()
    client.force_login(person(role, name), backend=BACKEND)
    return client


@pytest.fixture
def viewer():
    return browser("viewer")


@pytest.fixture
def responder():
    return browser("responder", "anna")


@pytest.fixture
def admin():
    return browser("admin", "root")


@pytest.fixture(autouse=True)
def configuration(settled, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_MS", 60_000)  # of a machine that may be slow
    PlatformState.objects.create(platform="jira", enabled=True)
    PlatformState.objects.create(platform="pagerduty", enabled=True)
    machinery_runs()
    forget()
    yield
    forget()


def anomaly(service: str = "payment-api", severity: str = "critical", **more) -> dict:
    return {"service": service, "severity": severity, "score": 4.2, "title": f"High error rate on {service}"} | more


def opened(*items: dict) -> list[Incident]:
    """The incidents that these anomalies open, in order. They came an hour ago, so that nothing burns any more."""
    an_hour_ago = (timezone.now() - timedelta(hours=1)).isoformat()
    items = [{"timestamp": an_hour_ago} | item for item in items]
    results = intake.accept(items, actor="key:grafana", request_id="test")
    ids = list(dict.fromkeys(result.incident_id for result in results))
    found = Incident.objects.in_bulk(ids)
    return [found[incident_id] for incident_id in ids]


def enable_all() -> None:
    known = set(PlatformState.objects.values_list("platform", flat=True))
    PlatformState.objects.bulk_create(PlatformState(platform=n, enabled=True) for n in PLATFORMS if n not in known)
    forget()


def many(count: int) -> list[Incident]:
    severities = ("critical", "high", "medium", "low")
    return opened(*(anomaly(f"service-{n}", severities[n % 4]) for n in range(count)))


def listed(reply) -> list[str]:
    return re.findall(r'<tr data-id="([^"]+)"', reply.content.decode())


def text(reply) -> str:
    return reply.content.decode()


def words(reply) -> str:
    return re.sub("<[^>]+>", "", text(reply))


def link(reply, rel: str) -> str:
    return re.search(f'rel="{rel}" href="([^"]+)"', text(reply))[1].replace("&amp;", "&")


# --- The list ---------------------------------------------------------------------------------------------------------


def test_a_login_leads_to_the_active_incidents_the_most_urgent_first():
    person("viewer", "anna")
    low, critical, high, done = opened(
        anomaly("a", "low"), anomaly("b", "critical"), anomaly("c", "high"), anomaly("d", "critical")
    )
    lifecycle.move("resolve", [done.id], actor="system")
    client = Client()
    assert client.get(LIST).headers["Location"] == f"/admin/login/?next={LIST}"
    reply = client.post("/admin/login/", {"username": "anna", "password": "a-long-password", "next": LIST}, follow=True)
    assert reply.redirect_chain == [(LIST, 302)]
    assert listed(reply) == [critical.id, high.id, low.id]


def test_the_login_page_itself_leads_to_the_incidents():
    assert f'name="next" value="{LIST}"' in text(Client().get("/admin/login/"))


def test_views_severities_services_and_search_narrow_the_list(viewer):
    one, two, three = opened(anomaly("a"), anomaly("b", "low"), anomaly("c", "low", title="Disk is full"))
    lifecycle.move("acknowledge", [two.id], actor="user:bob")
    lifecycle.move("resolve", [three.id], actor="user:bob")
    assert listed(viewer.get(LIST)) == [one.id, two.id]
    assert listed(viewer.get(LIST, {"view": "acknowledged"})) == [two.id]
    assert listed(viewer.get(LIST, {"view": "resolved"})) == [three.id]
    assert listed(viewer.get(LIST, {"view": "all"})) == [three.id, two.id, one.id]
    assert listed(viewer.get(LIST, {"view": "all", "severity": "low,critical", "service": "b"})) == [two.id]
    assert listed(viewer.get(LIST, {"view": "all", "q": "DISK is"})) == [three.id]
    assert listed(viewer.get(LIST, {"view": "all", "period": "1h"})) == [three.id, two.id, one.id]
    reply = viewer.get(LIST, {"q": "nowhere"})
    assert "Nothing matches" in text(reply)
    assert "Clear filters" in text(reply)


def test_a_period_is_chosen_and_left_by_its_link(viewer):
    opened(anomaly("a"))
    assert '<a href="?view=all&amp;period=7d" class="toggle">7d</a>' in text(viewer.get(LIST, {"view": "all"}))
    chosen = text(viewer.get(LIST, {"view": "all", "period": "7d"}))
    assert '<a href="?view=all" class="toggle" aria-current="true">7d</a>' in chosen


def test_services_are_suggested_by_a_part_of_their_name(viewer):
    names = sorted(f"payment-{n}" for n in range(12))
    opened(*(anomaly(name, severity) for name in names for severity in ("low", "high")), anomaly("the-Payroll"))
    address = f"{LIST}services/"
    assert viewer.get(address, {"q": "PAYR"}).json() == {"services": ["the-Payroll"]}
    assert viewer.get(address, {"q": "payment"}).json()["services"] == names[:10]
    assert viewer.get(address, {"q": "%"}).json()["services"] == []
    assert queries(viewer, address + "?q=pay") <= 3
    assert Client().get(address).status_code == 302


def test_the_service_field_works_as_a_form_that_keeps_the_other_filters(viewer):
    one, _ = opened(anomaly("a b", "low"), anomaly("c", "low"))
    shown = text(viewer.get(LIST, {"view": "all", "severity": "low", "q": "error"}))
    form = re.search('<form id="by-service".*?</form>', shown)[0]
    kept = dict(re.findall('type="hidden" name="([^"]+)" value="([^"]+)"', form))
    assert kept == {"view": "all", "severity": "low", "q": "error"}
    assert listed(viewer.get(LIST, kept | {"service": "a b"})) == [one.id]


def test_what_the_address_cannot_mean_is_passed_over(viewer):
    [incident] = opened(anomaly())
    odd = {"view": "x", "severity": "y", "platform": "z", "period": "1y", "order": "--", "after": "1~2", "q": "\x00"}
    assert listed(viewer.get(LIST, odd)) == [incident.id]
    assert listed(viewer.get(LIST, {"after": "0~99999999T999999.0~1"})) == [incident.id]
    assert viewer.get(LIST, {"q": "\ud800".encode("utf-8", "surrogatepass")}).status_code == 200


@pytest.mark.parametrize("order", ["", "newest", "oldest", "seen", "anomalies"])
def test_pages_show_each_incident_once_there_and_back(viewer, order):
    expected = {incident.id for incident in many(120)}
    first = viewer.get(LIST, {"order": order})
    second = viewer.get(LIST + link(first, "next"))
    third = viewer.get(LIST + link(second, "next"))
    pages = [listed(first), listed(second), listed(third)]
    assert [len(page) for page in pages] == [50, 50, 20]
    assert set().union(*pages) == expected
    assert 'rel="next"' not in text(third)
    assert listed(viewer.get(LIST + link(third, "prev"))) == pages[1]
    back = viewer.get(LIST + link(second, "prev"))
    assert listed(back) == pages[0]
    assert 'rel="prev"' not in text(back)


def queries(client: Client, address: str, status: int = 200, **headers: str) -> int:
    forget()
    with CaptureQueriesContext(connection) as asked:
        assert client.get(address, headers=headers).status_code == status
    around = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT", "SET LOCAL")  # a search's time limit
    return sum(not query["sql"].startswith(around) for query in asked)


def test_the_list_counts_and_shows_at_the_same_cost_whatever_there_is(responder):
    addresses = [LIST, f"{LIST}?view=all", f"{LIST}?view=undelivered", f"{LIST}?q=service&severity=low"]
    many(10)
    Ticket.objects.update(failing_since=timezone.now())
    few = [queries(responder, address) for address in addresses]
    fragments = [queries(responder, address, x_fragment="rows") for address in addresses]
    many(1000)
    Ticket.objects.update(failing_since=timezone.now())
    assert [queries(responder, address) for address in addresses] == few
    assert [queries(responder, address, x_fragment="rows") for address in addresses] == fragments
    assert max(few) <= 8
    assert max(fragments) <= 5
    tags = {address: responder.get(address, headers={"x-fragment": "rows"}).headers["ETag"] for address in addresses}
    for address, tag in tags.items():
        assert queries(responder, address, 304, x_fragment="rows", if_none_match=tag) <= 3


@pytest.mark.parametrize(("names", "most"), [(("pagerduty", "slack", "jira"), 60_000), (tuple(PLATFORMS), 75_000)])
def test_a_full_page_of_the_list_is_light(responder, names, most):
    """With three tickets in each row; and where each incident has a ticket everywhere, whose links weigh most."""
    enable_all()
    changes.patch_routing({"critical": list(names), "high": list(names)}, actor="system")
    recently = (timezone.now() - timedelta(minutes=20)).isoformat()
    found = opened(*(anomaly(f"service-{n}", ("critical", "high")[n % 2], timestamp=recently) for n in range(60)))
    lifecycle.move("acknowledge", [one.pk for one in found[::2]], actor="user:anna.maria")
    Ticket.objects.filter(platform="jira").update(failing_since=timezone.now(), last_error="503 Service Unavailable")
    accepted = {"shown_version": F("wanted_version"), "created_remotely_at": timezone.now(), "due_at": None}
    accepted |= {"remote_url": "https://example.pagerduty.com/incidents/Q1ABCDEFGHIJKL"}
    Ticket.objects.exclude(platform="jira").update(**accepted)
    reply = responder.get(LIST)
    assert len(listed(reply)) == 50
    assert len(reply.content) <= most
    assert len(re.findall(r"<[a-z]", text(reply))) <= 1300 + 50 * (len(names) - 3)
    assert len(gzip.compress(reply.content, 6)) <= 8_000


def test_the_page_of_an_incident_is_light(responder):
    enable_all()
    changes.patch_routing({"critical": list(PLATFORMS)}, actor="system")
    lines = [f"2024-03-01T03:00:0{n}Z ERROR upstream timed out after 3000 ms" for n in range(10)]
    [incident] = opened(*(anomaly(description="Errors have risen to 12 %.", evidence_logs=lines) for _ in range(60)))
    Ticket.objects.update(failing_since=timezone.now(), last_error="503 Service Unavailable")
    lifecycle.move("acknowledge", [incident.id], actor="user:anna", note="on it")
    page = responder.get(f"{LIST}{incident.id}/")
    assert len(page.content) <= 25_000
    assert len(re.findall(r"<[a-z]", text(page))) <= 600


def test_each_tickets_state_is_in_the_row_the_failed_first(viewer):
    enable_all()
    changes.patch_routing({"critical": list(PLATFORMS)}, actor="system")
    opened(anomaly())
    Ticket.objects.filter(platform="slack").update(parked_at=timezone.now(), due_at=None, last_error="gone")
    cell = re.search('<td class="c-tickets">(.*?)<td', text(viewer.get(LIST)))[1]
    assert " ".join(re.sub("<[^>]+>", "", cell).split()) == "✕ Slack PD… Jira… SNow… OG…"


def test_the_last_hours_anomalies_are_drawn_in_the_row(viewer):
    now = timezone.now()
    minutes = (50, 40, 30, 3, 2, 1)
    changes.patch_anomaly({"lookbackWindow": "30m"}, actor="system")
    opened(*(anomaly(timestamp=(now - timedelta(minutes=m)).isoformat()) for m in minutes))
    [incident] = Incident.objects.all()
    before = text(viewer.get(LIST))
    assert re.search(r'<path d="M\d+ 16v-\d+M[^"]+"/>', before)
    lifecycle.move("resolve", [incident.id], actor="user:anna")
    assert ' 16v-' not in text(viewer.get(LIST, {"view": "all"}))


@pytest.mark.parametrize(
    "change",
    [
        lambda: Ticket.objects.update(failing_since=timezone.now(), last_error="503"),
        lambda: Ticket.objects.update(shown_version=F("wanted_version"), remote_url="https://jira.example/1"),
        lambda: Incident.objects.update(fallback=False, cause_at=timezone.now()),
        lambda: PlatformState.objects.update(enabled=False),
        lambda: opened(anomaly("another")),
        lambda: opened(anomaly("a")),
        lambda: lifecycle.move("resolve", [Incident.objects.get().id], actor="system"),
        lambda: Pulse.objects.filter(name="beat").delete(),
    ],
)
@pytest.mark.parametrize("view", ["active", "all"])
def test_whatever_a_row_shows_makes_a_new_fragment(viewer, change, view):
    opened(anomaly("a", "medium"))
    address = f"{LIST}?view={view}"
    asked = {"x-fragment": "rows", "if-none-match": viewer.get(address, headers={"x-fragment": "rows"}).headers["ETag"]}
    assert viewer.get(address, headers=asked).status_code == 304
    change()
    assert viewer.get(address, headers=asked).status_code == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite cannot be told to give up")
def test_a_search_that_takes_too_long_is_given_up_with_advice(monkeypatch):
    client = browser("viewer")
    where = connection.settings_dict
    keys = {"host": where["HOST"], "port": where["PORT"], "user": where["USER"], "password": where["PASSWORD"]}
    with psycopg.connect(dbname=where["NAME"], **keys) as other:
        other.execute("LOCK TABLE incidents_incident IN ACCESS EXCLUSIVE MODE")
        with monkeypatch.context() as hasty:
            hasty.setattr(patience, "PATIENCE_MS", 100)
            reply = client.get(LIST, {"q": "pay"})
    assert reply.status_code == 503
    assert "Narrow your search" in text(reply)
    assert client.get(LIST, {"q": "pay"}).status_code == 200


@pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL's index")
def test_a_search_has_an_index_for_all_that_it_looks_through():
    asked = listing.matching(listing.Question(view="all", q="payment"), timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    plan = asked.order_by().explain()
    for name in listing.SEARCHED:
        assert f"incident_search_{name}" in plan


def test_nothing_counts_all_incidents(viewer, monkeypatch):
    many(4)
    with CaptureQueriesContext(connection) as queries:
        assert "4 incidents" in words(viewer.get(LIST, {"view": "all"}))
    [counting] = [q["sql"] for q in queries if "'total', CAST(COUNT(*)" in q["sql"]]
    assert "LIMIT 10001" in counting
    monkeypatch.setattr(listing, "MOST_COUNTED", 3)
    assert "3+ incidents" in words(viewer.get(LIST, {"view": "all"}))


@pytest.mark.parametrize("query", ["", "?view=open", "?view=all", "?view=undelivered", "?severity=medium"])
def test_the_number_of_incidents_is_told_anew_with_the_rows(viewer, query):
    def told() -> str:
        fragment = viewer.get(LIST + query, headers={"x-fragment": "rows"})
        [number] = re.findall(r'id="total">([\d,]+) incidents?<', text(fragment))
        assert f"{number} incident" in words(viewer.get(LIST + query))
        if query in ("", "?view=open", "?view=undelivered"):
            assert re.search(r'aria-current="page"[^>]*>\w+ <b>([\d,]+)<', text(fragment))[1] == number
        return number

    many(60)
    Ticket.objects.update(failing_since=timezone.now())
    before = int(told())
    [new] = opened(anomaly("service-new", "medium"))
    Ticket.objects.update(failing_since=timezone.now())
    assert int(told()) == before + 1
    assert "All 61 matching" in words(viewer.get(LIST, headers={"x-fragment": "rows"}))
    lifecycle.move("resolve", [new.id], actor="system")
    assert int(told()) == before + (query in ("?view=all", "?view=undelivered"))


def test_the_list_tells_of_tickets_that_did_not_arrive(viewer):
    fine, failed = opened(anomaly("a", "medium"), anomaly("b", "medium"))
    tickets = Ticket.objects.filter(platform="jira")
    tickets.filter(incident=fine).update(
        shown_version=F("wanted_version"), due_at=None, created_remotely_at=timezone.now(), remote_url="https://jira.example/OPS-1"
    )
    tickets.filter(incident=failed).update(
        parked_at=timezone.now(), due_at=None, failing_since=timezone.now(), last_error="401 Invalid token"
    )
    reply = viewer.get(LIST)
    assert "1 ticket behind since" in text(reply)
    assert 'href="https://jira.example/OPS-1" target="_blank" rel="noreferrer"' in text(reply)
    assert "Jira failed" in words(reply)
    assert listed(viewer.get(LIST, {"view": "undelivered"})) == [failed.id]
    assert listed(viewer.get(LIST, {"view": "undelivered", "platform": "pagerduty"})) == []


def chips(client: Client) -> list[str]:
    """The strip in words, of the page and of its fragment, which are the same."""
    replies = client.get(LIST), client.get(LIST, headers={"x-fragment": "rows"})
    found = [re.search(r'<div id="strip">.*?</div>', text(reply), re.DOTALL)[0] for reply in replies]
    assert found[0] == found[1]
    return [re.sub("<[^>]+>", "", chip).strip() for chip in re.findall("<a .*?</a>", found[0])]


def test_the_list_tells_when_nobody_works_as_readiness_does(viewer):
    assert chips(viewer) == health.missing() == []
    seen = timezone.now().replace(hour=3, minute=11) - timedelta(days=1)
    Pulse.objects.filter(name="sweep:test:1").update(at=seen)
    assert chips(viewer) == ["✕ No worker is seen since 03:11 UTC: nobody is told"]
    assert health.missing() == [health.SWEEP]
    Pulse.objects.filter(name__startswith="sweep").delete()
    assert chips(viewer) == ["✕ No worker is seen: nobody is told"]
    Pulse.objects.create(name="sweep:test:2", at=timezone.now() + timedelta(hours=1))
    Pulse.objects.filter(name="beat").delete()
    assert chips(viewer) == ["✕ Beat is silent: nothing is checked or tidied up"]
    assert health.missing() == [health.BEAT]
    Pulse.objects.filter(name="hears:test:1").update(at=seen)
    assert chips(viewer) == ["✕ No worker hears the broker: tickets may leave later"]
    assert health.missing() == [health.BROKER]


def test_the_list_tells_when_the_configured_model_cannot_be_reached(viewer):
    check = {"provider": "openai", "model": "gpt-4", "available": False, "settings_at": model_health.NEVER}
    seen, _ = ModelHealth.objects.update_or_create(pk=1, defaults=check | {"checked_at": timezone.now()})
    ModelHealth.objects.update(error=model_health.NOT_CONFIGURED)
    assert chips(viewer) == []
    changes.patch_llm({"apiKey": CANARY}, actor="system")
    ModelHealth.objects.update(error="It did not answer in 5 s")
    assert chips(viewer) == []  # that was a check of other settings
    ModelHealth.objects.update(settings_at=read().llm.changed_at)
    assert chips(viewer) == ["✕ Model unreachable: rules answer (Fallback)"]
    assert f'href="{CONFIG}#llm" title="It did not answer in 5 s"' in text(viewer.get(LIST))
    ModelHealth.objects.update(available=True, error="")
    assert chips(viewer) == []


def test_tickets_of_a_disabled_platform_are_paused_and_not_late(viewer):
    opened(anomaly("a", "medium"))
    Ticket.objects.update(failing_since=timezone.now())
    PlatformState.objects.update(enabled=False)
    reply = viewer.get(LIST)
    assert "Jira paused" in words(reply)
    assert "behind since" not in text(reply)


def test_an_empty_console_says_how_to_begin_and_a_quiet_one_that_all_is_quiet(viewer):
    assert "No incidents yet" in text(viewer.get(LIST))
    [incident] = opened(anomaly())
    lifecycle.move("resolve", [incident.id], actor="user:anna")
    reply = viewer.get(LIST)
    assert "All quiet" in text(reply)
    assert incident.title in text(reply)
    assert "No escalated incident." in words(viewer.get(LIST, {"view": "escalated"}))


def test_a_quiet_console_tells_first_what_was_resolved_last(viewer):
    older, newer = opened(anomaly("search"), anomaly("mail"))
    for incident, ago in ((newer, 60), (older, 5)):
        lifecycle.move("resolve", [incident.id], actor="user:anna")
        Incident.objects.filter(pk=incident.pk).update(resolved_at=timezone.now() - timedelta(minutes=ago))
    told = words(viewer.get(LIST))
    assert "The last was resolved 5m ago." in told
    assert told.index(older.title) < told.index(newer.title)


def test_an_empty_console_sends_a_test_anomaly_once(responder, viewer):
    assert "Send a test anomaly" in text(responder.get(LIST))
    assert "Send a test anomaly" not in text(viewer.get(LIST))
    changes.patch_anomaly({"minimumScore": 9}, actor="system")
    reply = responder.post(f"{LIST}test/", follow=True)
    incident = Incident.objects.get()
    assert reply.redirect_chain == [(f"{LIST}{incident.id}/", 302)]
    assert (incident.severity, incident.title) == ("low", "A test anomaly")
    assert Entry.objects.about(incident.subject).get().actor == "user:anna"
    assert "nothing was sent" in text(responder.post(f"{LIST}test/", follow=True))
    assert Incident.objects.count() == 1


def test_a_fragment_holds_the_rows_alone_and_is_not_sent_twice(viewer):
    [incident] = opened(anomaly())
    first = viewer.get(LIST, headers={"X-Fragment": "rows"})
    assert listed(first) == [incident.id]
    assert "<html" not in text(first)
    again = {"X-Fragment": "rows", "If-None-Match": first.headers["ETag"]}
    assert viewer.get(LIST, headers=again).status_code == 304
    assert f'data-etag="{escape(first.headers["ETag"])}"' in text(viewer.get(LIST))
    lifecycle.move("acknowledge", [incident.id], actor="user:anna")
    assert viewer.get(LIST, headers=again).status_code == 200


def test_the_table_as_a_file_holds_no_formula(viewer):
    [incident] = opened(anomaly("=cmd()|' /C calc'!A0", title='+1+1 "quoted"\nand a line'))
    reply = viewer.get(f"{LIST}incidents.csv")
    assert reply.headers["Content-Disposition"] == 'attachment; filename="incidents.csv"'
    [head, row] = csv.reader(io.StringIO(b"".join(reply.streaming_content).decode()))
    told = dict(zip(head, row, strict=True))
    assert told["id"] == incident.id
    assert told["service"] == "'=cmd()|' /C calc'!A0"
    assert told["title"].startswith("'+1+1")
    assert told["anomalyScore"] == "4.2"


# --- One incident -----------------------------------------------------------------------------------------------------


def page(client: Client, incident: Incident):
    return client.get(f"{LIST}{incident.id}/")


def test_the_page_tells_cause_anomalies_tickets_and_the_trail(viewer):
    [incident] = opened(anomaly(traceId="abc123", description="line one\nline two", message="connection refused"))
    lifecycle.move("escalate", [incident.id], actor="user:bob", note="Database team, please")
    Ticket.objects.filter(platform="pagerduty").update(failing_since=timezone.now(), last_error="503 down")
    shown = text(page(viewer, incident))
    incident.refresh_from_db()
    assert f"<h1>{incident.title}</h1>" in shown
    assert "line one\nline two" in shown
    assert "connection refused" in shown
    assert "abc123" in shown
    assert "PagerDuty" in shown
    assert "503 down" in shown
    assert "Database team, please" in shown
    assert "<b>created</b> by grafana (API key)" in shown
    assert "<b>escalated</b> by bob" in shown
    assert "1 anomaly" in shown


def test_the_page_costs_the_same_whatever_the_number_of_anomalies(admin):
    [incident] = opened(anomaly())

    def cost() -> int:
        forget()
        with CaptureQueriesContext(connection) as queries:
            assert page(admin, incident).status_code == 200
        return len(queries)

    few = cost()
    address = f"{LIST}{incident.id}/"
    tag = admin.get(address).headers["ETag"]
    assert queries(admin, address, 304, x_fragment="page", if_none_match=tag) <= 5
    begin = incident.first_anomaly_at
    Anomaly.objects.bulk_create(
        Anomaly(
            incident=incident,
            service="s",
            severity="critical",
            score=1,
            at=begin + timedelta(seconds=n),
            received_at=begin,
            title=f"number {n}",
        )
        for n in range(2000)
    )
    Incident.objects.update(anomaly_count=2001, last_anomaly_at=begin + timedelta(seconds=2000))
    assert cost() == few
    assert few <= 8
    shown = text(page(admin, incident))
    assert len(shown) < 40_000
    assert shown.count("number ") == 20
    older = re.search(r'href="(\?anomalies=\d+)#anomalies"', shown)[1]
    assert "number 1979" in text(admin.get(f"{LIST}{incident.id}/{older}"))


def test_the_timeline_says_how_much_more_there_is(viewer):
    [incident] = opened(anomaly())

    def entries(count: int) -> None:
        rows = (Entry(subject=incident.subject, action="noted", actor="system", data={}) for _ in range(count))
        Entry.objects.bulk_create(rows)

    address = f"{LIST}{incident.id}/"
    known = Entry.objects.filter(subject=incident.subject).count()
    entries(50 - known)
    assert "Show " not in words(viewer.get(address))
    entries(120)
    shown = text(viewer.get(address))
    assert 'href="?timeline=all#timeline">Show 120 more<' in shown
    assert queries(viewer, address) <= 8
    whole = text(viewer.get(f"{address}?timeline=all"))
    assert whole.count("<b>noted</b>") == 170 - known
    assert "Show " not in whole
    entries(1000)
    assert "Show 950 more" in text(viewer.get(address))
    assert "170 older ones are in the" in text(viewer.get(f"{address}?timeline=all"))
    assert "noted" in text(viewer.get(AUDIT, {"q": f"incident:{incident.id}"}))


def test_only_moves_that_the_state_allows_are_offered_and_only_to_who_may_act(viewer, responder):
    [incident] = opened(anomaly())

    def offered(client: Client) -> list[str]:
        return re.findall(r'name="move" value="(\w+)" id="act-', text(page(client, incident)))

    assert offered(responder) == ["acknowledge", "escalate", "resolve"]
    assert offered(viewer) == []
    assert "Ask an admin for the responder role" in text(page(viewer, incident))
    lifecycle.move("resolve", [incident.id], actor="user:bob")
    assert offered(responder) == ["reopen"]


def test_an_unknown_incident_gets_a_page_with_a_search(viewer):
    for unknown in ("inc-20200101-001", "nonsense", "inc-20200101-001'--"):
        reply = viewer.get(f"{LIST}{unknown}/")
        assert reply.status_code == 404
        assert "No such incident" in text(reply)
    assert 'value="inc-20200101-001"' in text(viewer.get(f"{LIST}inc-20200101-001/"))


def test_the_short_link_of_tickets_leads_to_the_page(viewer):
    [incident] = opened(anomaly())
    reply = viewer.get(f"/i/{incident.id}", follow=True)
    assert reply.redirect_chain == [(f"{LIST}{incident.id}/", 302)]
    assert Client().get(f"/i/{incident.id}", follow=True).redirect_chain[-1][0].startswith("/admin/login/")


def test_the_page_refreshes_by_fragment(viewer):
    [incident] = opened(anomaly())
    first = viewer.get(f"{LIST}{incident.id}/", headers={"X-Fragment": "page"})
    assert "<html" not in text(first)
    again = {"X-Fragment": "page", "If-None-Match": first.headers["ETag"]}
    assert viewer.get(f"{LIST}{incident.id}/", headers=again).status_code == 304
    lifecycle.move("acknowledge", [incident.id], actor="user:bob")
    assert 'data-status="acknowledged"' in text(viewer.get(f"{LIST}{incident.id}/", headers=again))


def test_an_incident_leaves_as_markdown_in_which_nothing_of_others_is_markup(viewer):
    trap = "![x](https://evil.example/?q=1) <b>@all</b> ```"
    [incident] = opened(anomaly(title=trap))
    Incident.objects.update(root_cause=f"cause\n````\n{trap}")
    told = text(viewer.get(f"{LIST}{incident.id}/incident.md"))
    head, _, rest = told.partition("`````\n")
    assert "\\!\\[x\\]\\(https" in head
    assert "![" not in head
    assert "<b>" not in head
    assert trap in rest.partition("\n`````\n")[0]
    assert f"/i/{incident.id})" in head


def test_whoever_may_read_may_copy_the_incident_and_go_on_to_others(viewer):
    [incident] = opened(anomaly())
    menu = re.search('<details class="menu" id="more">.*?</details>', text(page(viewer, incident)))[0]
    for word in ("Copy link", "Copy as Markdown", "Copy as JSON", "Older incident", "Newer incident"):
        assert word in menu
    assert "Ask the model again" not in menu


def test_the_services_other_incidents_tell_their_causes(viewer):
    [before] = opened(anomaly())
    lifecycle.move("resolve", [before.id], actor="system")
    Incident.objects.update(root_cause="The pool is exhausted.\nMore of it")
    [incident] = opened(anomaly(severity="high"))
    others = re.search('<section class="card" id="others">.*?</section>', text(page(viewer, incident)), re.DOTALL)[0]
    assert before.id in others
    assert "The pool is exhausted.</span>" in others
    assert "More of it" not in others


def test_a_cause_tells_which_model_answered_in_how_many_seconds_and_when(viewer):
    [incident] = opened(anomaly())
    moment = datetime(2026, 3, 1, 3, 0, 15, tzinfo=UTC)
    for seconds, told in ((2.14, "AI · gpt-4o · 2.1 s · 03:00:15 UTC"), (None, "AI · gpt-4o · 03:00:15 UTC")):
        changes = {"fallback": False, "cause_model": "gpt-4o", "cause_seconds": seconds, "cause_at": moment}
        Incident.objects.update(**changes)
        assert told in viewer.get(f"{LIST}{incident.id}/").content.decode()


def test_a_long_cause_is_folded_and_whole(viewer):
    [incident] = opened(anomaly())
    for cause in ("\n".join(f"line {n}." for n in range(40)), "word " * 2000, "x" * 20_000):
        Incident.objects.update(root_cause=cause)
        card = re.search('<section class="card" id="cause">.*?</section>', text(page(viewer, incident)), re.DOTALL)[0]
        parts = '<p class="text">(.*?)</p><details class="rest".*?<p class="text">(.*?)</p>'
        head, rest = re.search(parts, card, re.DOTALL).groups()
        assert len(head) <= 830
        assert (head + rest).replace("\n", "") == cause.replace("\n", "")
    Incident.objects.update(root_cause="\n".join(["short"] * 9))
    assert "Show all" not in text(page(viewer, incident))


def test_a_reopened_incident_says_who_reopened_it(viewer):
    [incident] = opened(anomaly())
    lifecycle.move("resolve", [incident.id], actor="user:bob")
    lifecycle.move("reopen", [incident.id], actor="user:carla")
    assert "reopened by carla" in words(page(viewer, incident))


def test_an_incident_is_one_file(viewer):
    [incident] = opened(anomaly())
    link = re.search(r'href="([^"]+)" download="([^"]+)"', text(page(viewer, incident)))
    assert link[2] == f"{incident.id}.json"
    assert viewer.get(link[1]).json()["id"] == incident.id


def test_operators_name_where_runbooks_and_traces_are(viewer, settings):
    [incident] = opened(anomaly("../a b?", traceId="abc/1"))
    settings.RUNBOOK_URL_TEMPLATE = "https://runbooks.example/{service}/{severity}"
    settings.TRACE_URL_TEMPLATE = "https://traces.example/t/{trace_id}"
    shown = text(page(viewer, incident))
    assert 'href="https://runbooks.example/%2E%2E%2Fa%20b%3F/critical"' in shown
    assert 'href="https://traces.example/t/abc%2F1"' in shown


def test_the_page_leads_to_the_incidents_before_and_after(viewer):
    one, two, three = opened(anomaly("a"), anomaly("b"), anomaly("c"))
    assert viewer.get(f"{LIST}{two.id}/older/").headers["Location"] == f"{LIST}{one.id}/"
    assert viewer.get(f"{LIST}{two.id}/newer/").headers["Location"] == f"{LIST}{three.id}/"
    reply = viewer.get(f"{LIST}{three.id}/newer/", follow=True)
    assert "There is no newer incident." in text(reply)


def test_the_model_is_asked_again_once_in_a_minute(responder, viewer):
    [incident] = opened(anomaly())
    address = f"{LIST}{incident.id}/ask-again/"
    assert "No model is configured" in text(responder.post(address, follow=True))
    changes.patch_llm({"model": "gpt-x", "apiKey": CANARY}, actor="system")
    before = Entry.objects.count()
    assert viewer.post(address).status_code == 403
    assert "The model is asked again." in text(responder.post(address, follow=True))
    incident.refresh_from_db()
    assert incident.model_due_at
    Incident.objects.update(model_due_at=None)
    assert "less than a minute ago" in text(responder.post(address, follow=True))
    Incident.objects.update(model_asked_again_at=timezone.now() - timedelta(minutes=2))
    assert "The model is asked again." in text(responder.post(address, follow=True))
    assert Entry.objects.count() == before


# --- Acts -------------------------------------------------------------------------------------------------------------


def act(client: Client, move: str, *incidents: Incident, **more: str):
    form = {"move": move, "ids": [incident.id for incident in incidents], "next": LIST} | more
    return client.post(ACT, form, follow=True)


def status(incident: Incident) -> str:
    incident.refresh_from_db()
    return incident.status


def test_an_acknowledgement_is_the_users_own_and_leads_back(responder):
    [incident] = opened(anomaly())
    reply = act(responder, "acknowledge", incident, note="on it", seen="open", next=f"{LIST}?view=open")
    assert reply.redirect_chain == [(f"{LIST}?view=open", 302)]
    assert f"{incident.id} acknowledged." in text(reply)
    assert status(incident) == "acknowledged"
    entry = Entry.objects.about(incident.subject).last()
    assert (entry.action, entry.actor, entry.data["note"]) == ("acknowledged", "user:anna", "on it")
    assert entry.request_id


def test_what_was_done_can_be_taken_back_from_the_message(responder):
    incidents = many(150)
    reply = act(responder, "acknowledge", *incidents)
    assert "150 acknowledged." in text(reply)
    assert "Undo: reopen these 150" in text(reply)
    form = re.search(r'name="move" value="reopen"><input type="hidden" name="ids" value="([^"]+)"', text(reply))
    assert set(form[1].split(",")) == {incident.id for incident in incidents}
    responder.post(ACT, {"move": "reopen", "ids": form[1], "next": LIST})
    assert {status(incident) for incident in incidents} == {"open"}
    lifecycle.move("resolve", [incidents[1].id], actor="user:bob")
    assert f"Undo: reopen {incidents[0].id}<" in text(act(responder, "acknowledge", *incidents[:2]))


def test_escalating_always_asks_and_names_who_is_woken(responder):
    [incident] = opened(anomaly())
    reply = act(responder, "escalate", incident, note="help")
    assert status(incident) == "open"
    assert f"Page PagerDuty for {incident.id}?" in text(reply)
    assert ">help</textarea>" in text(reply)
    act(responder, "escalate", incident, note="help", confirmed="1")
    assert status(incident) == "escalated"
    assert incident.escalated_to == ["pagerduty"]


def test_escalating_says_when_there_is_nobody_to_wake(responder):
    PlatformState.objects.update(enabled=False)
    forget()
    [incident] = opened(anomaly())
    assert "nobody will be told" in text(act(responder, "escalate", incident))


def test_resolving_many_asks_with_counts_and_resolving_one_does_not(responder):
    one, *rest = opened(anomaly("a"), anomaly("b", "high"), anomaly("c", "high"))
    reply = act(responder, "resolve", *rest)
    assert "Resolve 2 incidents?" in text(reply)
    assert "2 high" in text(reply)
    assert {status(incident) for incident in rest} == {"open"}
    act(responder, "resolve", *rest, confirmed="1")
    assert {status(incident) for incident in rest} == {"resolved"}
    act(responder, "resolve", one)
    assert status(one) == "resolved"


def test_resolving_what_still_burns_asks(responder):
    [incident] = opened(anomaly(timestamp=timezone.now().isoformat()))
    assert "It still burns" in text(act(responder, "resolve", incident))
    assert status(incident) == "open"


def test_a_move_that_the_state_forbids_says_who_did_what_and_changes_nothing(responder):
    [incident] = opened(anomaly())
    lifecycle.move("resolve", [incident.id], actor="user:bob")
    before = Entry.objects.count()
    reply = act(responder, "acknowledge", incident)
    assert f"{incident.id} was resolved by bob at" in text(reply)
    assert re.search(r"UTC, \d+s ago\. It cannot be acknowledged", text(reply))
    assert "Nothing was changed." in text(reply)
    assert status(incident) == "resolved"
    assert Entry.objects.count() == before


def test_a_second_acknowledgement_says_who_was_first(responder):
    [incident] = opened(anomaly())
    lifecycle.move("acknowledge", [incident.id], actor="user:bob")
    reply = act(responder, "acknowledge", incident, seen="open")
    assert f"{incident.id} was acknowledged already by bob." in text(reply)
    assert Entry.objects.filter(action="acknowledged").count() == 1


def test_an_incident_that_changed_while_it_was_looked_at_is_left_alone(responder):
    [incident] = opened(anomaly())
    lifecycle.move("escalate", [incident.id], actor="user:bob")
    reply = act(responder, "resolve", incident, seen="open")
    assert "While you looked" in text(reply)
    assert "escalated by bob at" in text(reply)
    assert status(incident) == "escalated"


def test_everything_that_matches_can_be_meant_and_is_asked_for_with_its_number(responder):
    incidents = many(60)
    low = [incident for incident in incidents if incident.severity == "low"]
    reply = act(responder, "acknowledge", all="1", question="?severity=low", confirmed="1")
    assert status(low[0]) == "open"
    assert "Acknowledge 15 incidents?" in text(reply)
    ids = re.search(r'name="ids" value="([^"]+)"', text(reply))[1]
    assert set(ids.split(",")) == {incident.id for incident in low}
    reply = responder.post(ACT, {"move": "acknowledge", "ids": ids, "confirmed": "1", "next": LIST}, follow=True)
    assert "15 acknowledged." in text(reply)
    assert Incident.objects.filter(status="acknowledged").count() == 15


def test_a_form_that_means_nothing_changes_nothing(responder):
    [incident] = opened(anomaly())
    for form in (
        {"move": "acknowledge"},
        {"move": "delete", "ids": incident.id},
        {"move": "acknowledge", "ids": "inc-20200101-001' or 1=1"},
        {"move": "acknowledge", "ids": incident.id, "note": "x" * 2001},
        {"move": "acknowledge", "ids": ",".join(f"inc-20240101-{n:04}" for n in range(1001))},
    ):
        reply = responder.post(ACT, form, follow=True)
        assert reply.redirect_chain == [(LIST, 302)]
        assert "messagelist" in text(reply)
        assert status(incident) == "open"
    assert responder.get(ACT).headers["Location"] == LIST


def test_no_form_leads_away_from_the_console(responder):
    [incident] = opened(anomaly())
    for elsewhere in ("https://evil.example/", "//evil.example/admin/", "/admin/logout/", "javascript:alert(1)", "\n/"):
        reply = responder.post(ACT, {"move": "acknowledge", "ids": incident.id, "next": elsewhere})
        assert reply.headers["Location"] == LIST


def test_a_failed_ticket_is_sent_again(responder):
    [incident] = opened(anomaly("a", "medium"))
    ticket = incident.tickets.get()
    Ticket.objects.update(parked_at=timezone.now(), due_at=None, failing_since=timezone.now(), last_error="401")
    assert "Retry now" in text(page(responder, incident))
    address = f"{LIST}{incident.id}/tickets/{ticket.pk}/"
    assert responder.post(address).headers["Location"] == f"{LIST}{incident.id}/#tickets"
    ticket.refresh_from_db()
    assert ticket.parked_at is None
    assert ticket.due_at is not None
    assert Entry.objects.get(subject=f"ticket:{incident.id}:jira").actor == "user:anna"
    assert responder.post(f"{LIST}{incident.id}/tickets/{ticket.pk + 1}/").status_code == 404
    [other] = opened(anomaly("b", "low"))
    assert responder.post(f"{LIST}{other.id}/tickets/{ticket.pk}/").status_code == 404


def test_sending_again_waits_ten_seconds_between_two_tries(responder, time_machine):
    now = timezone.now()
    time_machine.move_to(now, tick=False)
    enable_all()
    changes.patch_routing({"critical": ["jira"]}, actor="system")
    [incident] = opened(anomaly())
    ticket = incident.tickets.get()
    Ticket.objects.update(parked_at=now, due_at=None, failing_since=now, last_error="401")
    one, all_ = f"{LIST}{incident.id}/tickets/{ticket.pk}/", f"{LIST}retry/jira/"

    def told(address: str, after: int) -> str:
        time_machine.move_to(now + timedelta(seconds=after), tick=False)
        return words(responder.post(address, follow=True))

    assert "The Jira ticket is sent again now." in told(one, 0)
    assert "The Jira ticket was sent again 4 s ago. Wait 10 s between two tries." in told(one, 4)
    assert "1 Jira ticket is sent again now." in told(all_, 10)
    assert "tickets were sent again 9 s ago. Wait 10 s between two tries." in told(all_, 19)
    assert "The Jira ticket was sent again 9 s ago." in told(one, 19), "whoever had it sent, and how"
    assert Entry.objects.about(f"ticket:{incident.id}:jira").filter(action="sent again").count() == 2
    assert "The Jira ticket is sent again now." in told(one, 20)


def test_asking_a_platform_again_says_that_its_pause_is_over(responder):
    enable_all()
    later = timezone.now() + timedelta(hours=1)
    PlatformPause.objects.create(platform="jira", until=later, reason="429")
    assert "Jira is asked again at once: its pause is over." in words(responder.post(f"{LIST}retry/jira/", follow=True))
    assert "No Slack ticket has failed: nothing was sent again." in words(
        responder.post(f"{LIST}retry/slack/", follow=True)
    )


# --- Who may do what --------------------------------------------------------------------------------------------------


def writes(incident: Incident) -> list[tuple[str, dict, str]]:
    """Every address that changes something, a form for it, and the role it needs."""
    ticket = incident.tickets.first()
    newcomer = {"username": "x", "password1": "a-long-password", "password2": "a-long-password"}
    return [
        (ACT, {"move": "acknowledge", "ids": incident.id}, "responder"),
        (f"{LIST}{incident.id}/tickets/{ticket.pk}/", {}, "responder"),
        (f"{LIST}retry/jira/", {}, "responder"),
        (f"{LIST}drill/", {"confirmed": "1"}, "admin"),
        (f"{LIST}test/", {}, "responder"),
        (f"{CONFIG}platforms/jira/", {"enabled": "1"}, "admin"),
        (f"{CONFIG}platforms/jira/test/", {}, "admin"),
        (f"{CONFIG}routing/", {"routing-low": "jira"}, "admin"),
        (f"{CONFIG}anomaly/", {"minimumScore": "0.5", "lookbackWindow": "5m"}, "admin"),
        (f"{CONFIG}llm/", {"provider": "openai", "model": "x"}, "admin"),
        (f"{CONFIG}llm/test/", {}, "admin"),
        (KEYS, {"name": "x", "role": "admin"}, "admin"),
        ("/admin/auth/user/add/", newcomer, "admin"),
    ]


@pytest.mark.parametrize("role", [None, "viewer", "responder"])
def test_each_write_needs_its_role(role):
    [incident] = opened(anomaly())
    client = browser(role)
    for address, form, needed in writes(incident):
        if needed == role:
            continue
        before = Entry.objects.count(), User.objects.count(), ApiKey.objects.count()
        reply = client.post(address, form)
        assert reply.status_code == (403 if role else 302), address
        assert (Entry.objects.count(), User.objects.count(), ApiKey.objects.count()) == before


def test_nothing_is_read_without_a_role():
    [incident] = opened(anomaly())
    addresses = (LIST, f"{LIST}{incident.id}/", f"{LIST}incidents.csv", "/admin/", CONFIG, AUDIT)
    for client in (Client(), browser(None)):
        for address in addresses:
            reply = client.get(address)
            assert reply.status_code == 302, address
            assert reply.headers["Location"].startswith("/admin/login/")


def test_an_inactive_user_has_no_role():
    client = browser("admin", "gone")
    User.objects.filter(username="gone").update(is_active=False)
    assert client.get(LIST).status_code == 302


def test_the_admin_offers_no_form_that_writes_incidents_audit_or_keys(admin):
    [incident] = opened(anomaly())
    entry = Entry.objects.last()
    for address in (
        f"{LIST}add/",
        f"{LIST}{incident.id}/delete/",
        f"{LIST}{incident.id}/change/",
        f"{KEYS}add/",
    ):
        assert admin.post(address, {"title": "x"}).status_code == 404
    for address in ("/admin/auditlog/entry/add/", f"/admin/auditlog/entry/{entry.pk}/delete/"):
        assert admin.post(address, {"post": "yes"}).status_code == 403
    assert admin.post(f"/admin/auditlog/entry/{entry.pk}/change/", {"actor": "user:eve"}).status_code == 403
    admin.post("/admin/auditlog/entry/", {"action": "delete_selected", "_selected_action": entry.pk})
    assert Entry.objects.get(pk=entry.pk).actor == entry.actor


def test_who_guesses_passwords_is_told_in_the_consoles_look_to_wait():
    person("viewer", "anna")
    guess = {"username": "anna", "password": "wrong", "next": LIST}
    client = Client()
    replies = [client.post("/admin/login/", guess) for _ in range(6)]
    assert [reply.status_code for reply in replies[:4]] == [200] * 4
    assert replies[-1].status_code == 429
    assert replies[-1].headers["Retry-After"] == "900"
    assert "Too many wrong passwords. Try again in 15 minutes" in text(replies[-1])
    assert "console.css" in text(replies[-1])
    right = {"username": "anna", "password": "a-long-password", "next": LIST}
    assert client.post("/admin/login/", right).status_code == 429
    elsewhere = Client(REMOTE_ADDR="192.0.2.7")
    assert elsewhere.post("/admin/login/", right).headers["Location"] == LIST


def test_a_form_from_elsewhere_is_refused():
    person("responder", "anna")
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="anna"), backend=BACKEND)
    [incident] = opened(anomaly())
    for address, form, _ in writes(incident):
        assert client.post(address, form).status_code == 403, address
    assert status(incident) == "open"


def test_users_are_managed_by_admins_alone(admin, responder):
    assert admin.get("/admin/auth/user/").status_code == 200
    assert responder.get("/admin/auth/user/").status_code == 403
    group = Group.objects.get(name="responder")
    form = {"username": "new", "password1": "a-long-password", "password2": "a-long-password"}
    reply = admin.post("/admin/auth/user/add/", form | {"usable_password": "true", "groups": [group.pk]})
    assert reply.status_code == 302
    assert list(User.objects.get(username="new").groups.all()) == [group]
    roles = re.findall('<td class="field-role">([^<]*)</td>', text(admin.get("/admin/auth/user/")))
    assert roles == ["responder", "responder", "admin"]


# --- Text is text -----------------------------------------------------------------------------------------------------


def test_whatever_logs_models_and_platforms_say_is_shown_as_text(admin):
    [incident] = opened(
        anomaly(
            HOSTILE,
            title=HOSTILE,
            description=HOSTILE,
            traceId=HOSTILE,
            message=HOSTILE,
            affectedServices=[HOSTILE],
            evidence_logs=[HOSTILE],
        )
    )
    Incident.objects.update(root_cause=HOSTILE, cause_error=HOSTILE)
    Ticket.objects.update(remote_id=HOSTILE, last_error=HOSTILE, failing_since=timezone.now())
    Ticket.objects.filter(platform="pagerduty").update(remote_url="javascript:alert(3)")
    jira = Ticket.objects.filter(platform="jira")
    jira.update(remote_url=f"https://x/{HOSTILE}", previous_links=["data:text/html,x"])
    lifecycle.move("acknowledge", [incident.id], actor=f"jira:{HOSTILE}", note=HOSTILE)
    entry = Entry.objects.last()
    for address in (LIST, f"{LIST}{incident.id}/", "/admin/", AUDIT, f"{AUDIT}{entry.pk}/change/"):
        shown = text(admin.get(address))
        assert "<script>alert" not in shown
        assert "<img" not in shown.replace("<img src=\"/static/", "")
        assert 'href="javascript' not in shown
        assert 'href="data' not in shown
        assert "alert(2)" in shown or address == "/admin/"
    assert "<script>" not in text(act(admin, "escalate", incident)).replace("<script src", "")
    assert "<script>alert" not in text(act(admin, "reopen", incident))


def test_pages_hold_no_inline_script_or_style(admin):
    [incident] = opened(anomaly())
    entry = Entry.objects.last()
    for address in (
        LIST,
        f"{LIST}{incident.id}/",
        "/admin/",
        CONFIG,
        KEYS,
        "/admin/auditlog/entry/",
        f"/admin/auditlog/entry/{entry.pk}/change/",
        "/admin/auth/user/add/",
    ):
        reply = admin.get(address)
        assert reply.status_code == 200, address
        shown = text(reply)
        assert not re.search(r"<script(?![^>]*\ssrc=)", shown), address
        assert not re.search(r"<style|\sstyle=|\son\w+=", shown), address
        assert "unsafe" not in reply.headers["Content-Security-Policy"]


# --- Configuration ----------------------------------------------------------------------------------------------------


def test_secrets_go_in_and_never_come_out(admin):
    reply = admin.post(f"{CONFIG}platforms/pagerduty/", {"enabled": "1", "routingKey": CANARY}, follow=True)
    assert "Saved." in text(reply)
    assert "<b>set</b>" in text(reply)
    entry = Entry.objects.last()
    assert (entry.subject, entry.actor) == ("config:platform:pagerduty", "user:root")
    refused = admin.post(f"{CONFIG}platforms/pagerduty/", {"enabled": "1", "routingKey": CANARY, "apiUrl": "http://10.0.0.1"})
    assert refused.status_code == 400
    for address in (CONFIG, "/admin/auditlog/entry/", f"/admin/auditlog/entry/{entry.pk}/change/"):
        assert CANARY not in text(admin.get(address))
    assert CANARY not in text(refused)


def test_a_refused_form_names_its_mistake_and_changes_nothing(admin):
    reply = admin.post(f"{CONFIG}platforms/servicenow/", {"enabled": "1", "instanceUrl": "ftp://x", "username": "bot"})
    assert reply.status_code == 400
    assert "Nothing was changed" in text(reply)
    assert 'value="ftp://x"' in text(reply)
    assert not PlatformState.objects.filter(platform="servicenow", enabled=True).exists()
    reply = admin.post(f"{CONFIG}anomaly/", {"minimumScore": "much", "lookbackWindow": "soon"})
    assert reply.status_code == 400
    assert text(reply).count('aria-invalid="true"') == 2


def test_an_empty_secret_leaves_the_stored_one(admin):
    admin.post(f"{CONFIG}platforms/pagerduty/", {"enabled": "1", "routingKey": CANARY})
    before = Entry.objects.count()
    admin.post(f"{CONFIG}platforms/pagerduty/", {"enabled": "1", "routingKey": ""})
    assert Entry.objects.count() == before
    assert PlatformState.objects.get(platform="pagerduty").version.secrets["routingKey"] == CANARY


def test_disabling_a_platform_with_open_tickets_asks_first(admin):
    opened(anomaly("a", "medium"))
    reply = admin.post(f"{CONFIG}platforms/jira/", {})
    assert "1 ticket of active incidents at Jira would no longer be brought up to date" in text(reply)
    assert PlatformState.objects.get(platform="jira").enabled
    admin.post(f"{CONFIG}platforms/jira/", {"confirmed": "1"})
    assert not PlatformState.objects.get(platform="jira").enabled


def test_whose_tickets_stay_behind_is_said_before_an_account_is_changed(admin):
    opened(anomaly("a", "medium"), anomaly("b", "medium"))
    card = re.search('<section class="card" id="jira">.*?</section>', text(admin.get(CONFIG)), re.DOTALL)[0]
    assert "2 tickets of active incidents are here. After a change of Site or Project key they stay where" in card


def test_a_route_that_is_taken_away_is_asked_about_first(admin):
    opened(anomaly("a", "critical"), anomaly("b", "medium"))
    routes = {"critical": ["pagerduty", "jira"], "high": [], "medium": ["jira"], "low": []}
    changes.patch_routing(routes, actor="system")
    before = Entry.objects.count()
    kept = {"routing-critical": ["jira"], "routing-high": ["jira"]}
    shown = text(admin.post(f"{CONFIG}routing/", kept))
    assert "New critical incidents would no longer go to PagerDuty. Nobody would be told of new medium" in shown
    assert "2 active incidents of these severities would keep the tickets of now." in shown
    assert Entry.objects.count() == before
    assert shown.count("nobody</b>") == 2
    admin.post(f"{CONFIG}routing/", kept | {"confirmed": "1"})
    assert Entry.objects.last().data["values"] == {"critical": ["jira"], "high": ["jira"], "medium": []}


def test_each_part_says_who_changed_it_last_and_when(admin):
    changes.patch_anomaly({"minimumScore": 0.7}, actor="user:bob")
    changes.patch_anomaly({"minimumScore": 0.8}, actor="user:carla")
    changes.patch_platforms({"pagerduty": {"routingKey": CANARY}}, actor="key:ci")
    shown = text(admin.get(CONFIG))
    said = {
        part: re.sub("<[^>]+>", "", re.search(f'id="{part}">.*?class="changed">(.*?)</p>', shown, re.DOTALL)[1])
        for part in ("anomaly", "pagerduty")
    }
    assert re.match(r"Last changed by carla at \S+ \S+ UTC: minimumScore changed from 0.7 to 0.8", said["anomaly"])
    assert said["pagerduty"].startswith("Last changed by key:ci")
    assert CANARY not in shown
    assert "?q=config%3Aanomaly" in shown


def test_routing_is_a_grid_and_keeps_its_order(admin):
    changes.patch_routing({"critical": ["slack", "pagerduty"]}, actor="system")
    ticked = {"routing-critical": ["pagerduty", "jira", "slack"], "routing-high": ["jira", "slack"]}
    admin.post(f"{CONFIG}routing/", ticked | {"routing-medium": "jira"})
    entry = Entry.objects.last()
    assert entry.data["values"] == {"critical": ["slack", "pagerduty", "jira"], "low": []}


def test_anomaly_and_model_settings_change(admin):
    admin.post(f"{CONFIG}anomaly/", {"minimumScore": "0.5", "lookbackWindow": "30m"})
    assert Entry.objects.last().data["values"] == {"minimumScore": 0.5, "lookbackWindow": "30m"}
    admin.post(f"{CONFIG}llm/", {"provider": "openai", "model": "gpt-x", "apiKey": CANARY})
    entry = Entry.objects.last()
    assert entry.data["values"] == {"model": "gpt-x"}
    assert entry.data["secrets"] == ["apiKey"]
    assert CANARY not in text(admin.get(CONFIG))


def rehearsed(client: Client, part: str, **form) -> str:
    reply = client.post(f"{CONFIG}{part}/", form | {"rehearse": "1"})
    assert reply.status_code == 200
    return text(reply)


def test_settings_are_rehearsed_on_the_last_days_before_they_are_saved(admin):
    begin = timezone.now() - timedelta(hours=5)
    items = [
        anomaly("a", "high", score=score, timestamp=(begin + timedelta(minutes=minutes)).isoformat())
        for minutes, score in ((0, 2), (20, 0.2), (40, 2), (100, 2))
    ]
    intake.accept(items, actor="key:grafana", request_id="test")
    before, said = Entry.objects.count(), "With these settings the last 7 days would have opened "
    assert f"{said}3 incidents, as with those that are in force." in rehearsed(
        admin, "anomaly", minimumScore="0.3", lookbackWindow="15m"
    )
    shown = rehearsed(admin, "anomaly", minimumScore="0.3", lookbackWindow="45m")
    assert f"{said}2 incidents instead of 3: 2 high instead of 3." in shown
    assert 'value="45m"' in shown
    assert f"{said}4 incidents instead of 3" in rehearsed(admin, "anomaly", minimumScore="0.1", lookbackWindow="15m")
    routed = rehearsed(admin, "routing", **{"routing-high": ["jira", "pagerduty"]})
    assert "The last 7 days opened 3 incidents. With these routes" in routed
    assert "PagerDuty 3 instead of 0, Jira 3 as now." in routed
    assert Entry.objects.count() == before
    wrong = admin.post(f"{CONFIG}anomaly/", {"minimumScore": "x", "lookbackWindow": "soon", "rehearse": "1"})
    assert wrong.status_code == 400


def test_rehearsing_needs_the_role_that_saving_needs(responder):
    for part in ("anomaly", "routing"):
        assert responder.post(f"{CONFIG}{part}/", {"rehearse": "1"}).status_code == 403


def test_a_test_tells_its_result_at_its_platform(admin):
    reply = admin.post(f"{CONFIG}platforms/jira/test/", follow=True)
    assert reply.redirect_chain == [(f"{CONFIG}#jira", 302)]
    assert 'class="told error"' in text(reply)
    assert "Not configured" in text(reply)
    assert admin.post(f"{CONFIG}platforms/bogus/test/").status_code == 404


def test_a_viewer_reads_the_configuration_and_is_offered_nothing(viewer):
    reply = viewer.get(CONFIG)
    assert reply.status_code == 200
    assert "Save</button>" not in text(reply)
    assert 'type="password"' not in text(reply)


# --- API keys ---------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_works(admin):
    reply = admin.post(KEYS, {"name": "grafana", "role": "producer", "expires": "30"})
    key = re.search(r'data-copy="(tka_[^"]+)"', text(reply))[1]
    assert keys.find(key).name == "grafana"
    assert "no-store" in reply.headers["Cache-Control"]
    assert key not in text(admin.get(KEYS))
    assert not any(key in json.dumps(entry.data) + entry.details for entry in Entry.objects.all())
    assert "There is a key named grafana already" in text(admin.post(KEYS, {"name": "grafana", "role": "viewer"}))
    assert admin.post(KEYS, {"name": "x", "role": "king", "expires": "1"}).status_code == 400


def test_a_revoked_key_is_refused_at_once(admin):
    key, secret = keys.create(name="old", role="viewer", actor="system")
    address = f"{KEYS}{key.pk}/revoke/"
    assert "Revoke old?" in text(admin.get(address))
    assert keys.find(secret)
    admin.post(address)
    assert keys.find(secret) is None
    assert Entry.objects.last().actor == "user:root"
    assert admin.post(f"{KEYS}{key.pk + 1}/revoke/").status_code == 404


# --- The rest ---------------------------------------------------------------------------------------------------------


def test_the_overview_counts_what_asks_for_somebody(viewer):
    opened(anomaly("a"), anomaly("b", "low"))
    Incident.objects.update(created_at=timezone.now() - timedelta(minutes=20))
    reply = viewer.get("/admin/")
    assert "<b>2</b> Not acknowledged after 15 min" in text(reply)
    assert "2 incidents in the last 24 hours" in text(reply)


def test_the_overview_compares_how_long_it_took_at_the_same_cost_whatever_there_is(responder):
    def cost() -> int:
        forget()
        cache.clear()
        with CaptureQueriesContext(connection) as queries:
            assert responder.get("/admin/").status_code == 200
        return len(queries)

    recent, before = opened(anomaly("a"), anomaly("b"))
    hour, week = timezone.now() - timedelta(hours=1), timezone.now() - timedelta(days=9)
    done = {"status": "resolved"}
    Incident.objects.filter(pk=recent.pk).update(created_at=hour, resolved_at=hour + timedelta(minutes=7), **done)
    Incident.objects.filter(pk=before.pk).update(created_at=week, resolved_at=week + timedelta(minutes=31), **done)
    responder.get("/admin/")  # a process looks once whether the migrations are there
    few = cost()
    shown = text(responder.get("/admin/"))
    assert '7m / 7m<small class="before">31m / 31m</small>' in shown
    assert "2 incidents in the last 30 days" in shown
    assert "How long it took, last 30 days" in text(responder.get("/admin/?days=30"))
    many(1000)
    assert cost() == few <= 10


def test_the_database_finds_the_percentiles_that_sorting_finds():
    dice = random.Random(7)
    many(60)
    expected: dict[str, list[float]] = {}
    for incident in Incident.objects.all():
        took = dice.choice((None, 0, 59.999, 60, 420, dice.uniform(0, 90_000)))
        at = None if took is None else incident.created_at + timedelta(seconds=took)
        Incident.objects.filter(pk=incident.pk).update(acknowledged_at=at, fallback=dice.random() < 0.5)
        expected.setdefault(incident.severity, []).extend([] if took is None else [took])
    took = Seconds("created_at", "acknowledged_at")
    found = spreads(Incident.objects.values_list("severity", Value(1), took), 1, [(50, 90)])
    for severity, seconds in expected.items():
        count, seconds = len(seconds), sorted(seconds)
        group = found[(severity,)]
        assert (group.count, group.marked, group.spreads[0].count) == (15, 15, count)
        wanted = [seconds[count * share // 100] for share in (50, 90)]
        assert group.spreads[0].shares == pytest.approx(wanted, abs=0.002)


def test_the_overview_tells_how_soon_tickets_arrive(viewer):
    opened(*(anomaly(f"s{n}", "medium") for n in range(20)))
    Ticket.objects.update(created_remotely_at=timezone.now() + timedelta(seconds=40))
    Ticket.objects.filter(pk=Ticket.objects.first().pk).update(created_remotely_at=timezone.now() + timedelta(hours=1))
    row = re.search(r'#jira">Jira</a>.*?</tr>', text(viewer.get("/admin/")))[0]
    assert re.findall(r'data-label="([^"]+)">([^<]+)<', row) == [("Sent, 24 h", "20"), ("p95 until there", "1h")]


def test_opsgenies_end_is_told_where_one_plans_and_not_once_its_successor_is_used(viewer):
    enable_all()
    told = "ends on 5 April 2027"
    assert [told in text(viewer.get(address)) for address in ("/admin/", CONFIG, LIST)] == [True, True, False]
    successor = {"apiUrl": "https://api.atlassian.com/jsm/ops/integration", "apiKey": CANARY}
    changes.patch_platforms({"opsgenie": successor}, actor="system")
    cache.clear()
    assert [told in text(viewer.get(address)) for address in ("/admin/", CONFIG)] == [False, False]


def test_the_overview_is_asked_for_once_in_half_a_minute(viewer):
    with CaptureQueriesContext(connection) as first:
        viewer.get("/admin/")
    with CaptureQueriesContext(connection) as second:
        viewer.get("/admin/")
    assert len(second) <= 3 < len(first)


def test_the_audit_can_be_searched(viewer):
    [incident] = opened(anomaly())
    changes.patch_anomaly({"minimumScore": 0.7}, actor="user:root")
    shown = text(viewer.get("/admin/auditlog/entry/", {"q": "config:"}))
    assert "config:anomaly" in shown
    assert incident.id not in shown
    assert viewer.get(f"/admin/auditlog/entry/{Entry.objects.last().pk}/change/").status_code == 200


def test_the_audit_leads_to_what_its_entries_are_about(viewer):
    [incident] = opened(anomaly())
    changes.patch_anomaly({"minimumScore": 0.7}, actor="user:root")
    page = viewer.get("/admin/auditlog/entry/").content.decode()
    addresses = [re.search(f'<a href="([^"]+)">{about}</a>', page)[1] for about in (incident.subject, "config:anomaly")]
    assert incident.title in text(viewer.get(addresses[0], follow=True))
    of_anomaly = text(viewer.get(f"/admin/auditlog/entry/{addresses[1]}"))
    assert "config:anomaly" in of_anomaly
    assert incident.id not in of_anomaly
