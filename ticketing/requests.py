"""What every request gets, whatever answers it: an id, and the headers that keep a browser safe."""

import re
import uuid

from django.http import HttpRequest, HttpResponse

from ticketing import errors, logs

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class RequestId:
    """Takes the caller's X-Request-ID or makes one; it is in the reply, in the log and in the audit."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        request.id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        token = logs.request_id.set(request.id)
        try:
            response = self.get_response(request)
        finally:
            logs.request_id.reset(token)
        response["X-Request-ID"] = request.id
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """For pages outside the API: with the store down they say so, and never show an empty list."""
        return errors.store_down(request, error)


class ContentSecurityPolicy:
    """Nothing inline, nothing from elsewhere. A view that needs otherwise sets its own header."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response
