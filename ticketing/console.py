"""The console: Django's admin as the shell (login, sessions, users, audit browsing) with our own pages inside it."""

from django.conf import settings
from django.contrib.admin import AdminSite
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import AnonymousUser
from django.core.cache import cache
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.template.response import TemplateResponse
from django.urls import path, reverse

from auditlog.console import EntryPages
from auditlog.models import Entry
from config.console import ApiKeyPages, ConfigurationPages
from config.models import ApiKey
from config.probes import Probe
from incidents.causes import health as model_health
from incidents.console import overview
from incidents.console.pages import IncidentPages
from incidents.models import Incident, Ticket
from incidents.rehearsal import rehearse
from ticketing import access, health, limits, sessions


class Console(AdminSite):
    site_header = "Ticketing Agent"
    site_title = "Ticketing Agent"
    index_title = "Overview"
    site_url = None
    enable_nav_sidebar = False
    login_form = AuthenticationForm  # who may log in is decided by the role, not by a "staff" mark
    index_template = "incidents/overview.html"

    def __init__(self, name: str = "admin") -> None:
        super().__init__(name)
        self.configuration = ConfigurationPages(
            self,
            open_tickets=lambda: Ticket.objects.filter(incident__in=Incident.objects.active()).by_platform(),
            active_incidents=_active_incidents,
            failed_tickets=lambda: Ticket.objects.failing().by_platform(),
            test_model=_test_model,
            rehearse=rehearse,
        )
        self.register(Incident, IncidentPages)
        self.register(ApiKey, ApiKeyPages)
        self.register(Entry, EntryPages, pages={"incident": "short-link"})

    def has_permission(self, request: HttpRequest) -> bool:
        """Whoever has a role may come in. Every page asks here first, so this is where `request.principal` is set."""
        if not hasattr(request, "principal"):
            active = request.user.is_authenticated and request.user.is_active
            request.principal = access.principal_of(request.user) if active else access.nobody()
            request.META[limits.CALLER] = request.principal.actor
        return request.principal.may("viewer")

    def each_context(self, request: HttpRequest) -> dict:
        return super().each_context(request) | {
            "principal": getattr(request, "principal", None),
            "may_act": request.principal.may("responder"),
            "may_configure": request.principal.may("admin"),
            "session_left": sessions.seconds_left(request.session),
            "session_warning": sessions.warning_seconds(),
        }

    def get_urls(self) -> list:
        session = path("session/", self.admin_view(self.session), name="session")
        return [session, *self.configuration.urls(), *super().get_urls()]

    def session(self, request: HttpRequest) -> JsonResponse:
        """How long the login lasts, for a page that stands open: seconds if nothing is done, and whatever is done. With
        today's token for the page's forms: whoever has signed in again meanwhile has another."""
        left, longest = sessions.seconds_left(request.session), sessions.longest_left(request.session)
        return JsonResponse({"left": left, "longest": longest, "token": get_token(request)})

    def login(self, request: HttpRequest, extra_context: dict | None = None) -> HttpResponse:
        """Lands on the incidents, where somebody who was woken wants to be. `again` asks also who is logged in, but not
        for long."""
        if request.method == "GET" and "again" in request.GET:
            request.user = AnonymousUser()
        landing = {} if "next" in request.GET or "next" in request.POST else {"next": _incidents()}
        told = {"sso": settings.SSO and settings.SSO.name}
        return super().login(request, (extra_context or {}) | landing | told)

    def index(self, request: HttpRequest, extra_context: dict | None = None) -> TemplateResponse:
        problems = cache.get_or_set("problems", health.missing, 5)
        told = overview.context(request.GET.get("days", "")) | {"problems": problems}
        return super().index(request, told | (extra_context or {}))


def _incidents() -> str:
    return reverse("admin:incidents_incident_changelist")


def _active_incidents() -> dict[str, int]:
    rows = Incident.objects.active().order_by().values_list("severity")
    return dict(rows.annotate(count=Count("pk")))


def _test_model() -> Probe:
    seen = model_health.check()
    return Probe(seen.available, seen.error or f"{seen.model} at {seen.provider} answers.", 0)
