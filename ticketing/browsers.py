"""Middleware for browsers: sessions, logins, messages. A request to the API with a key goes past all of it."""

from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse


class _ForBrowsers:
    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request) if _has_key(request) else super().__call__(request)


def _has_key(request: HttpRequest) -> bool:
    """Whether the API will judge it by its key alone, be it a good one or not."""
    return request.META.get("HTTP_AUTHORIZATION", "")[:7].lower() == "bearer " and request.path_info.startswith("/api/")


class Sessions(_ForBrowsers, SessionMiddleware):
    """A logout takes the cookie away, and nothing else does: what an open page asked for by an earlier login may be
    answered after the next one, whose cookie it would take."""

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        response = super().process_response(request, response)
        set_here = response.cookies.get(settings.SESSION_COOKIE_NAME)
        if set_here is not None and not set_here.value and not request.session.modified:
            del response.cookies[settings.SESSION_COOKIE_NAME]
        return response


class Users(_ForBrowsers, AuthenticationMiddleware):
    pass


class Messages(_ForBrowsers, MessageMiddleware):
    pass
