"""The OpenAPI document and the page that shows it, from local files."""

import re

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView
from rest_framework.renderers import TemplateHTMLRenderer

from incidents import jsontext
from ticketing.limits import UNLIMITED

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


ERRORS = {
    "400": "What was sent is not right: `errors` names each mistake by its field.",
    "401": "No credential, or none that is known, unexpired and unrevoked.",
    "403": "The credential's role does not allow it; or the CSRF token is missing.",
    "413": "The body is larger than 10 MiB, or holds too many values.",
    "415": "The body is not `application/json` in UTF-8, or it is compressed.",
    "429": "This caller makes too many requests a second. Come again after Retry-After.",
    "503": "The database cannot be used. Nothing was changed that was not confirmed; try again after Retry-After.",
}


def with_common_errors(result, **_):
    """What every operation of a kind may answer, said once. And a credential is always asked for off local mode."""
    for path, operations in result["paths"].items():
        for operation in operations.values():
            operation["security"] = [one for one in operation.get("security", []) if one]
            statuses = ["401", "403", "503"] if operation["security"] else []
            statuses += ["429"] if path not in UNLIMITED else []
            if "requestBody" in operation:
                statuses += ["400", "413", "415"]
            elif any(one["in"] == "query" for one in operation.get("parameters", [])):
                statuses.append("400")
            for status in statuses:
                operation["responses"].setdefault(status, _error(ERRORS[status]))
            operation["responses"] = dict(sorted(operation["responses"].items()))
    return _without_marks(result)


def _without_marks(node):
    """Without what spectacular notes for its own hook."""
    if isinstance(node, dict):
        return {name: _without_marks(one) for name, one in node.items() if name != "x-spec-enum-id"}
    return [_without_marks(one) for one in node] if isinstance(node, list) else node


def _error(description: str) -> dict:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


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
