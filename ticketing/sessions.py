"""Console logins end: a stated time after they began, and a stated time after the last thing that was done.

An open page that asks for news by itself does nothing in this sense.
"""

import time
from contextlib import suppress

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db
from django.contrib.sessions.backends.base import UpdateError
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse

BEGAN, SEEN = "began", "seen"  # seconds since 1970
SEEN_EVERY = 3  # seconds for each minute that may be idled: not every click is worth a write
NOBODY_SECONDS = 15 * 60  # for a login by the provider to come back


class SessionStore(db.SessionStore):
    """Sessions in the database. One that is over is as good as none, whoever asks for it."""

    def load(self) -> dict:
        data = super().load()
        if SESSION_KEY in data and seconds_left(data) <= 0:
            self._session_key = None
            return {}
        return data

    def save(self, must_create: bool = False) -> None:
        if SESSION_KEY in self and BEGAN not in self:
            self[BEGAN] = self[SEEN] = int(time.time())
        super().save(must_create)

    def cycle_key(self) -> None:
        """A new login, or a new password: begins anew."""
        self.pop(BEGAN, None)
        super().cycle_key()

    def get_session_cookie_age(self) -> int:
        """Seconds from now until the row and the cookie are of no use to anybody."""
        if SESSION_KEY not in self:
            return NOBODY_SECONDS
        now = int(time.time())
        return max(1, self.get(BEGAN, now) + settings.SESSION_HOURS * 3600 - now)


def begin_anew(sender: type, request: HttpRequest, **_: object) -> None:
    """Whoever logs in while logged in would otherwise keep the session as old as it is."""
    if BEGAN in request.session:
        request.session.cycle_key()


class Seen:
    """Notes that somebody does something, to a twentieth of the time that may be idled."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        session = getattr(request, "session", None)  # who comes with a key has none
        looked_into = session is not None and session.accessed  # only then it is worth a query
        if looked_into and response.status_code < 500 and not request.headers.get("X-Fragment"):
            self._note(session)
        return response

    def _note(self, session: SessionStore) -> None:
        now = int(time.time())
        if SESSION_KEY not in session or now - session.get(SEEN, now) < SEEN_EVERY * settings.SESSION_IDLE_MINUTES:
            return
        others = session.modified
        session[SEEN] = now
        with suppress(DatabaseError, UpdateError):  # on a standby, or logged out meanwhile: this page is answered
            session.save()
        session.modified = others


def seconds_left(session) -> int:
    """Until the login ends if nothing is done. One of unknown age is over."""
    idle = session.get(SEEN, 0) + settings.SESSION_IDLE_MINUTES * 60
    return min(idle - int(time.time()), longest_left(session))


def longest_left(session) -> int:
    """Seconds until the login ends whatever is done."""
    return session.get(BEGAN, 0) + settings.SESSION_HOURS * 3600 - int(time.time())


def warning_seconds() -> int:
    """How long before its end a login's end is told: five minutes, or a third of what may be idled."""
    return min(5 * 60, settings.SESSION_IDLE_MINUTES * 60 // 3)
