"""What every request gets, whatever answers it: an id, a line in the log, and the headers that keep a browser safe."""

import logging
import re
import time
import uuid

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from incidents import counters
from ticketing import errors, logs
from ticketing.access import Principal

log = logging.getLogger(__name__)

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
SESSION_KEY = re.compile(r"[0-9a-z]{32}")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

# What is asked every few seconds or many times per page is worth a line only where it fails.
ROUTINE = ("/health", "/ready", "/metrics", "/static/")
LONGEST_PATH = 300


class RequestId:
    """Takes the caller's X-Request-ID or makes one; it is in the reply, in the log and in the audit."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request.id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        token = logs.request_id.set(request.id)
        began = time.monotonic()
        try:
            response = self.get_response(request)
            _note(request, response.status_code, time.monotonic() - began)
        finally:
            logs.request_id.reset(token)
        response["X-Request-ID"] = request.id
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """For pages outside the API: with the store down they say so, and never show an empty list."""
        return errors.store_down(request, error)


class SessionCookie:
    """Drops a session cookie that cannot be ours: it would be looked up as it is, and PostgreSQL takes no NUL."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not SESSION_KEY.fullmatch(request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")):
            request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
        return self.get_response(request)


def _note(request: HttpRequest, status: int, seconds: float) -> None:
    """The query stays out of the log: people write into it what they look for."""
    counters.count(counters.HTTP_REQUESTS, status=status)
    path = request.path[:LONGEST_PATH]
    ms = round(seconds * 1000)
    level = logging.DEBUG if status < 400 and path.startswith(ROUTINE) else logging.INFO
    peer = request.META.get("REMOTE_ADDR", "")
    shown = {"method": request.method, "path": path, "status": status, "ms": ms, "actor": _actor(request), "peer": peer}
    log.log(level, "%s %s %s %s ms", request.method, path, status, ms, extra=shown)


def _actor(request: HttpRequest) -> str:
    """Who asked, as far as anybody has found out already: it is not worth a query."""
    user = request.__dict__.get("user")
    if type(user) is Principal:  # isinstance would make a lazy user ask the database
        return user.actor
    cached = getattr(request, "_cached_user", None)
    return f"user:{cached.get_username()}" if cached and cached.is_authenticated else ""


class ContentSecurityPolicy:
    """Nothing inline, nothing from elsewhere. A view that needs otherwise sets its own header."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response
