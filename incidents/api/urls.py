"""The addresses of the incidents' API. `/api/v1/incidents…` equals `/api/incidents…`."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from incidents.api import drill, model, tickets, views, webhooks

incidents = SimpleRouter(trailing_slash=False)
incidents.register("incidents", views.Incidents, basename="incident")

# Tried in this order: what is called most comes first.
urlpatterns = [
    path("api/v1/anomalies", views.Anomalies.as_view()),
    path("api/", include(incidents.urls)),
    path("api/v1/", include((incidents.urls, "v1"))),
    path("api/v1/audit", views.Audit.as_view()),
    path("api/v1/tickets", tickets.Tickets.as_view()),
    path("api/v1/tickets/retry", tickets.RetryTickets.as_view()),
    path("api/v1/drill", drill.Drill.as_view()),
    path("api/v1/llm-status", model.LlmStatus.as_view()),
    path("api/v1/test-llm", model.TestLlm.as_view()),
    path("api/v1/inbound/<str:platform>", webhooks.Inbound.as_view()),
]
