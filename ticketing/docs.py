"""The OpenAPI document and the page that shows it, from local files."""

import re

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView
from rest_framework.renderers import TemplateHTMLRenderer

from incidents import jsontext

# Paths that repeat others under another prefix: one description serves both. And the documents themselves.
LEFT_OUT = re.compile(r"/api/ticketing/.*|/api/v1/incidents(/\{id\}.*)?|/api/incidents/batch|/api/(schema|docs)")
# Swagger's page brings one block of inline styles of its own.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class ApiKeyScheme(OpenApiAuthenticationExtension):
    target_class = "ticketing.access.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema):
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, `tka_…`. Make the first with `manage.py apikey create NAME --role ROLE`.",
        }


class ConsoleScheme(OpenApiAuthenticationExtension):
    target_class = "ticketing.access.ConsoleAuthentication"
    name = "consoleLogin"

    def get_security_definition(self, auto_schema):
        return {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME}


class LocalScheme(OpenApiAuthenticationExtension):
    """In local mode a request of this machine needs nothing."""

    target_class = "ticketing.access.LocalAuthentication"
    name = []

    def get_security_definition(self, auto_schema):
        return []

    def get_security_requirement(self, auto_schema):
        return {}


def without_aliases(endpoints):
    """Each operation once, under the path that the API document gives it."""
    return [endpoint for endpoint in endpoints if not LEFT_OUT.fullmatch(endpoint[0])]


class Schema(SpectacularJSONAPIView):
    role = "viewer"


class Page(TemplateHTMLRenderer):
    """A page, but an error as everywhere else: in JSON."""

    def render(self, data, accepted_media_type=None, renderer_context=None):
        response = renderer_context["response"]
        if not response.exception:
            return super().render(data, accepted_media_type, renderer_context)
        response["Content-Type"] = "application/json"
        return jsontext.dumps(data)


class Docs(SpectacularSwaggerSplitView):
    role = "viewer"
    metadata_class = None
    renderer_classes = [Page]
    url_name = "schema"
    url_name_self = "docs"

    def get(self, request, *args, **kwargs):
        response = super().get(request, *args, **kwargs)
        response["Content-Security-Policy"] = DOCS_POLICY
        return response
