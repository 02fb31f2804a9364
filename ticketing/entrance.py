"""What stands before Django: who the true peer is, and whether it asks too often."""

import uuid
from collections.abc import Callable, Iterable

from django.conf import settings

from incidents import counters, jsontext
from ticketing import errors
from ticketing.limits import Limits
from ticketing.proxies import Proxies
from ticketing.requests import SANE_ID

TOO_MANY = (
    "Too many requests: one caller may make {rate} a second. Wait as long as Retry-After says; anomalies can be sent "
    "many in one request, as an array."
)


class Entrance:
    """A WSGI application around another."""

    def __init__(self, application: Callable, *, proxies: Proxies | None = None, limits: Limits | None = None) -> None:
        """What is not given is as the settings say."""
        self._application = application
        self._proxies = proxies or Proxies(settings.TRUSTED_PROXIES)
        self._limits = limits or Limits(settings.RATE_LIMIT_PER_SECOND)

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        self._proxies.settle(environ)
        if seconds := self._limits.wait(environ):
            return self._refuse(environ, start_response, seconds)
        answer = self._application(environ, start_response)
        self._limits.note(environ)
        return answer

    def _refuse(self, environ: dict, start_response: Callable, seconds: int) -> list[bytes]:
        """In the shape of all errors. Not a line in the log for each: that would be a flood of its own."""
        counters.count(counters.HTTP_REQUESTS, status=429)
        body = jsontext.dumps(errors.body(TOO_MANY.format(rate=self._limits.rate)))
        given = environ.get("HTTP_X_REQUEST_ID", "")
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Retry-After", str(seconds)),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Request-ID", given if SANE_ID.fullmatch(given) else uuid.uuid4().hex),
        ]
        start_response("429 Too Many Requests", headers)
        return [body]
