"""Middleware for browsers: sessions, logins, messages. A request to the API with a key goes past all of it."""

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
    pass


class Users(_ForBrowsers, AuthenticationMiddleware):
    pass


class Messages(_ForBrowsers, MessageMiddleware):
    pass
