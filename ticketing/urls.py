"""Every address. The API stands at its own paths, and once more behind the dashboard's proxy prefix."""

from django.contrib import admin
from django.shortcuts import redirect
from django.urls import include, path

from config import api as config_api
from incidents.api import urls as incidents_api
from ticketing import docs, health, metrics, signin, users

api = [
    path("", include(incidents_api.urlpatterns)),
    path("health", health.Health.as_view()),
    path("ready", health.Ready.as_view()),
    path("metrics", metrics.Metrics.as_view()),
    path("api/schema", docs.Schema.as_view(), name="schema"),
    path("api/docs", docs.Docs.as_view(), name="docs"),
    path("", include(config_api.urlpatterns)),
]


def short_link(request, incident_id: str):
    """What tickets link to: the incident's page in the console, after a login."""
    return redirect("admin:incidents_incident_change", incident_id)


users.register(admin.site)

urlpatterns = [
    *api,
    path("api/ticketing/", include((api, "proxied"))),
    path("i/<str:incident_id>", short_link, name="short-link"),
    path("admin/sso/", signin.begin, name="sso"),
    path("admin/sso/callback/", signin.Callback.as_view(), name=signin.CALLBACK),
    path("admin/", admin.site.urls),
    path("admin", lambda request: redirect("admin:index")),
    path("", lambda request: redirect("admin:incidents_incident_changelist")),
]

handler400 = "ticketing.errors.bad_request"
handler403 = "ticketing.errors.forbidden"
handler404 = "ticketing.errors.not_found"
handler500 = "ticketing.errors.server_error"
