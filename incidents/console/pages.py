"""The addresses under /admin/incidents/incident/: the list, one incident's page, the acts, and the table as a file."""

import hashlib
from collections import Counter
from collections.abc import Iterator

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotModified,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.http import parse_etags, url_has_allowed_host_and_scheme

from incidents import drill
from incidents.console import acts, export, glance, listing, page, patience, strip
from incidents.console.rows import Row, html
from incidents.models import Incident, Severity, Status
from platforms.catalog import PLATFORMS

LIST = "admin:incidents_incident_changelist"
ONE = "admin:incidents_incident_change"
VIEW_WORDS = {"active": "Active", "all": "All", "undelivered": "Undelivered"}
PERIOD_WORDS = {"1h": "last hour", "24h": "last 24 h", "7d": "last 7 days", "30d": "last 30 days"}
ASCENDING = ("oldest",)


class IncidentPages(ModelAdmin):
    """Incidents are read here and moved through the lifecycle; nothing in the admin adds, saves or deletes one."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj=None) -> bool:
        return request.principal.may("viewer")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.principal.may("viewer")

    def get_urls(self) -> list:
        """In place of the admin's own: there is no form that writes a row."""
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.list_page), name="incidents_incident_changelist"),
            path("act/", wrap(self.act), name="incidents_incident_act"),
            path("test/", wrap(self.test_anomaly), name="incidents_incident_test"),
            path("drill/", wrap(self.drill), name="incidents_incident_drill"),
            path("retry/<str:platform>/", wrap(self.retry_platform), name="incidents_incident_retry_platform"),
            path("services/", wrap(self.services), name="incidents_incident_services"),
            path("incidents.csv", wrap(self.table_file), name="incidents_incident_export"),
            path("<str:incident_id>/", wrap(self.one_page), name="incidents_incident_change"),
            path("<str:incident_id>/incident.md", wrap(self.markdown), name="incidents_incident_markdown"),
            path("<str:incident_id>/ask-again/", wrap(self.ask_again), name="incidents_incident_ask_again"),
            path("<str:incident_id>/<str:way>/", wrap(self.neighbour), name="incidents_incident_neighbour"),
            path("<str:incident_id>/tickets/<int:ticket_id>/", wrap(self.retry), name="incidents_incident_retry"),
        ]

    # --- The list -----------------------------------------------------------------------------------------------------

    def list_page(self, request: HttpRequest) -> HttpResponse:
        question = listing.Question.read(request.GET)
        try:
            with patience.patience(question):
                return self._list(request, question)
        except patience.TooSlow:
            context = self.admin_site.each_context(request) | {"title": "Narrow your search", "place": "incidents"}
            context |= {"question": question, "within": question.query(period="7d", view="all")}
            return TemplateResponse(request, "incidents/too_slow.html", context, status=503)

    def _list(self, request: HttpRequest, question: listing.Question) -> HttpResponse:
        now = timezone.now()
        matching = listing.matching(question, now)
        cut = listing.rows(question, matching)
        total = [] if _chip(question) else [glance.number(listing.to_count(matching), "total")]
        seen = glance.look(now, cut, total)
        etag = _etag(request, seen.version)
        if request.headers.get("X-Fragment") and etag in parse_etags(request.headers.get("If-None-Match", "")):
            return HttpResponseNotModified(headers={"ETag": etag})
        found = listing.page(question, seen.shown)
        shown = [Row(one, page.ticket_lines(one), seen.sparks.get(one.pk, ())) for one in found.incidents]
        counts = seen.counts
        context = {
            "question": question,
            "rows": html(shown, question, may_act=request.principal.may("responder")),
            "row_count": len(shown),
            "found": found,
            "views": _views(question, counts, seen.late),
            "strip": strip.chips(seen),
            "failing_at": _failing_at(question, seen.late),
            "sorts": _sorts(question),
            "now": now,
        } | _total(question, seen)
        if request.headers.get("X-Fragment"):
            context |= self.admin_site.each_context(request)
            return TemplateResponse(request, "incidents/_live.html", context, headers={"ETag": etag})
        context |= self.admin_site.each_context(request)
        context |= {"title": "Incidents", "place": "incidents", "etag": etag, "opts": self.opts}
        context |= _filters(question)
        context |= _emptiness(question) if not shown else {}
        return TemplateResponse(request, "incidents/list.html", context)

    def services(self, request: HttpRequest) -> JsonResponse:
        """Names to choose from, as one types a part of one: ten at most, none where it would take too long."""
        part = listing.Question.read(request.GET).q
        try:
            with patience.patience(listing.Question(q=part)):
                names = listing.services(part)
        except patience.TooSlow:
            names = []
        return JsonResponse({"services": names})

    # --- One incident -------------------------------------------------------------------------------------------------

    def one_page(self, request: HttpRequest, incident_id: str) -> HttpResponse:
        known = acts.INCIDENT_ID.fullmatch(incident_id)
        incident = page.find(incident_id) if known else None
        shell = self.admin_site.each_context(request) | {"place": "incidents", "opts": self.opts}
        if incident is None:
            context = shell | {"title": "No such incident", "incident_id": incident_id[:100]}
            return TemplateResponse(request, "incidents/not_found.html", context, status=404)
        trail = page.trail(incident, request.GET)
        etag = _etag(request, trail.version)
        fragment = bool(request.headers.get("X-Fragment"))
        if fragment and etag in parse_etags(request.headers.get("If-None-Match", "")):
            return HttpResponseNotModified(headers={"ETag": etag})
        context = page.context(trail, request.GET, timezone.now())
        context |= shell | {"title": incident.title, "subtitle": incident.id, "etag": etag, "list_url": reverse(LIST)}
        template = "incidents/_page.html" if fragment else "incidents/page.html"
        return TemplateResponse(request, template, context, headers={"ETag": etag})

    def neighbour(self, request: HttpRequest, incident_id: str, way: str) -> HttpResponse:
        """To the incident before or after, where there is one."""
        incident = self._known(incident_id)
        if way not in ("older", "newer"):
            raise Http404
        other = page.neighbour(incident, older=way == "older")
        if other is None:
            messages.info(request, f"There is no {way} incident.")
        return HttpResponseRedirect(reverse(ONE, args=[other or incident.pk]))

    def markdown(self, request: HttpRequest, incident_id: str) -> HttpResponse:
        trail = page.trail(self._known(incident_id), request.GET)
        return HttpResponse(export.markdown(trail), content_type="text/plain; charset=utf-8")

    def _known(self, incident_id: str) -> Incident:
        incident = page.find(incident_id) if acts.INCIDENT_ID.fullmatch(incident_id) else None
        if incident is None:
            raise Http404
        return incident

    # --- Acts ---------------------------------------------------------------------------------------------------------

    def act(self, request: HttpRequest) -> HttpResponse:
        """A move on one incident or many. Whatever comes of it, the answer is the page again, with what to tell."""
        if request.method != "POST":
            return HttpResponseRedirect(reverse(LIST))
        _require_responder(request)
        back = _back(request)
        try:
            act = acts.Act.read(request.POST)
        except acts.Mistake as mistake:
            messages.error(request, str(mistake))
            return HttpResponseRedirect(back)
        if asked := acts.confirmation(act, timezone.now()):
            context = self.admin_site.each_context(request) | {"title": asked.question, "place": "incidents"}
            return TemplateResponse(request, "incidents/confirm.html", context | {"asked": asked, "back": back})
        told = acts.carry_out(act, actor=request.principal.actor, request_id=request.id)
        tags = f"undo:{','.join(told.undo)}" if told.undo else ""
        messages.add_message(request, messages.SUCCESS if told.good else messages.WARNING, told.text, extra_tags=tags)
        return HttpResponseRedirect(back)

    def retry(self, request: HttpRequest, incident_id: str, ticket_id: int) -> HttpResponse:
        if not acts.INCIDENT_ID.fullmatch(incident_id):
            return self.one_page(request, incident_id)
        back = f"{reverse(ONE, args=[incident_id])}#tickets"
        if request.method != "POST":
            return HttpResponseRedirect(back)
        _require_responder(request)
        known = ticket_id < 2**63
        told = known and acts.retry(
            incident_id,
            ticket_id,
            anew=request.POST.get("anew") == "1",
            actor=request.principal.actor,
            request_id=request.id,
        )
        if not told:
            raise Http404
        words, sent = told
        messages.add_message(request, messages.SUCCESS if sent else messages.WARNING, words)
        return HttpResponseRedirect(back)

    def ask_again(self, request: HttpRequest, incident_id: str) -> HttpResponse:
        incident = self._known(incident_id)
        if request.method == "POST":
            _require_responder(request)
            words, asked = acts.ask_model_again(incident.pk)
            messages.add_message(request, messages.SUCCESS if asked else messages.WARNING, words)
        return HttpResponseRedirect(f"{reverse(ONE, args=[incident.pk])}#cause")

    def retry_platform(self, request: HttpRequest, platform: str) -> HttpResponse:
        if platform not in PLATFORMS:
            raise Http404
        if request.method == "POST":
            _require_responder(request)
            who = {"actor": request.principal.actor, "request_id": request.id}
            words, sent = acts.retry_platform(platform, **who)
            messages.add_message(request, messages.SUCCESS if sent else messages.WARNING, words)
        return HttpResponseRedirect(f"{reverse(LIST)}?view=undelivered&platform={platform}")

    def test_anomaly(self, request: HttpRequest) -> HttpResponse:
        """What an empty console offers to begin with."""
        if request.method != "POST":
            return HttpResponseRedirect(reverse(LIST))
        _require_responder(request)
        opened = acts.send_test_anomaly(actor=request.principal.actor, request_id=request.id)
        if opened is None:
            messages.info(request, "There are incidents already: nothing was sent.")
            return HttpResponseRedirect(reverse(LIST))
        messages.success(request, f"The test anomaly opened {opened}. Its tickets go where low incidents are routed.")
        return HttpResponseRedirect(reverse(ONE, args=[opened]))

    def drill(self, request: HttpRequest) -> HttpResponse:
        """Asks first, naming whom it wakes; begins only from that page's button."""
        if not request.principal.may("admin"):
            raise PermissionDenied
        if request.method == "POST" and request.POST.get("confirmed") == "1":
            try:
                incident = drill.begin(actor=request.principal.actor, request_id=request.id)
            except drill.Refused as refused:
                messages.error(request, str(refused))
                return HttpResponseRedirect(reverse("admin:index"))
            messages.success(request, "The drill has begun. It is resolved by itself within five minutes.")
            return HttpResponseRedirect(reverse(ONE, args=[incident.pk]))
        context = self.admin_site.each_context(request) | {"title": "Begin a fire drill?", "place": "overview"}
        return TemplateResponse(request, "incidents/drill.html", context | acts.drill_targets())

    # --- A file -------------------------------------------------------------------------------------------------------

    def table_file(self, request: HttpRequest) -> StreamingHttpResponse:
        question = listing.Question.read(request.GET)
        rows = listing.matching(question, timezone.now()).newest_first()
        lines: Iterator[str] = export.lines(rows)
        headers = {"Content-Disposition": 'attachment; filename="incidents.csv"'}
        return StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8", headers=headers)


_ACTIVE = (Status.OPEN, Status.ACKNOWLEDGED, Status.ESCALATED)


def _require_responder(request: HttpRequest) -> None:
    if not request.principal.may("responder"):
        raise PermissionDenied


def _back(request: HttpRequest) -> str:
    """Where the form was sent from, if that is a page of ours; else the list."""
    wanted, home = request.POST.get("next", ""), reverse(LIST)
    ours = wanted.startswith(home) and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None)
    return wanted if ours and wanted.isprintable() else home


def _etag(request: HttpRequest, *parts: object) -> str:
    """Also of who looks: buttons depend on the role."""
    what = repr((request.get_full_path(), request.principal.role, parts))
    return f'W/"{hashlib.sha256(what.encode("utf-8", "backslashreplace")).hexdigest()[:20]}"'


def _by_status(counts: Counter) -> dict[str, int]:
    return {status: sum(n for (s, _), n in counts.items() if s == status) for status in _ACTIVE}


def _chip(question: listing.Question) -> bool:
    """Whether the view's own chip counts all that matches."""
    return not question.narrowed and question.view in ("active", *_ACTIVE)


def _total(question: listing.Question, seen: glance.Glance) -> dict:
    """How many match: what the view's chip says, else as counted up to the cap."""
    chips = {"active": seen.counts.total()} | _by_status(seen.counts)
    total = chips[question.view] if _chip(question) else int(seen.more["total"][0][0])
    return {"total": min(total, listing.MOST_COUNTED), "total_capped": total > listing.MOST_COUNTED}


def _views(question: listing.Question, counts: Counter, late: listing.Late) -> list[dict]:
    known = {"active": counts.total(), **_by_status(counts), "undelivered": late.incidents}
    shown = {name: f"{count:,}" for name, count in known.items()}
    if late.more:
        shown["undelivered"] += "+"
    return [
        {
            "name": name,
            "words": VIEW_WORDS.get(name) or Status(name).label,
            "count": shown.get(name, ""),
            "query": question.query(view=name, order="", platform="" if name != "undelivered" else question.platform),
            "current": name == question.view,
            "alarming": name == "undelivered" and late.incidents > 0,
        }
        for name in listing.VIEWS
    ]


def _failing_at(question: listing.Question, late: listing.Late) -> dict:
    """The platform whose undelivered tickets are looked at, if any: they can be sent again all at once."""
    if question.view != "undelivered" or question.platform not in late.platforms:
        return {}
    return {"name": question.platform, "label": PLATFORMS[question.platform].label}


def _sorts(question: listing.Question) -> dict[str, dict]:
    """For each column that sorts: where its head leads, and what it is now."""
    now = question.sorted_by
    opened = "oldest" if now == "newest" else "newest"
    links = {"severity": "urgency", "opened": opened, "seen": "seen", "anomalies": "anomalies"}
    shown = {"newest": "opened", "oldest": "opened", "urgency": "severity"}.get(now, now)
    direction = "ascending" if now in ASCENDING else "descending"
    return {
        column: {"query": question.query(order=order), "is": direction if column == shown else ""}
        for column, order in links.items()
    }


def _filters(question: listing.Question) -> dict:
    severities = [{"name": s.value, "query": question.toggled(s), "on": s in question.severities} for s in Severity]
    periods = [
        {"name": name, "on": on, "query": question.query(period="" if on else name)}
        for name in PERIOD_WORDS
        for on in (name == question.period,)
    ]
    applied = []
    for name in ("service", "platform", "period", "q"):
        if value := getattr(question, name):
            label = {"q": "text"}.get(name, name)
            applied.append({"label": label, "value": _filter_words(name, value), "query": question.query(**{name: ""})})
    return {
        "severities": severities,
        "kept_by_search": question.said(leave_out="q"),
        "kept_by_service": question.said(leave_out="service"),
        "periods": periods,
        "applied": applied,
        "filter_count": len(applied) + len(question.severities),
        "cleared": question.query(severities=(), service="", platform="", period="", q=""),
        "in_all": question.query(view="all"),
        "this_query": question.query(after=question.after, before=question.before),
    }


def _filter_words(name: str, value: str) -> str:
    if name == "period":
        return PERIOD_WORDS[value]
    return PLATFORMS[value].label if name == "platform" else value


def _emptiness(question: listing.Question) -> dict:
    """Why the table is empty: nothing matches, all is quiet, or nothing ever happened."""
    if question.narrowed or question.view not in ("active", "all"):
        return {"empty": "nothing"}
    resolved = listing.last_resolved()
    return {"empty": "quiet", "resolved": resolved} if resolved else {"empty": "never"}
