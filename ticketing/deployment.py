"""What `manage.py check --deploy` says of the environment, beside what Django itself knows to check."""

from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Warning
from django.http.request import validate_host


def check(app_configs=None, **_) -> list[CheckMessage]:
    public = urlsplit(settings.PUBLIC_URL)
    found = []
    if settings.LOCAL_MODE:
        found.append(
            Warning("LOCAL_MODE is on: whoever is on this machine is an admin.", hint="Unset it.", id="ticketing.W001")
        )
    if public.scheme != "https":
        found.append(
            Warning(
                "PUBLIC_URL is not https: logins and API keys travel readable.",
                hint="Put a proxy with TLS in front and set PUBLIC_URL to its address.",
                id="ticketing.W002",
            )
        )
    if not validate_host((public.hostname or "").lower(), settings.ALLOWED_HOSTS):
        found.append(
            Warning(
                "ALLOWED_HOSTS does not hold the host of PUBLIC_URL: the links in tickets are refused.",
                hint="Add it.",
                id="ticketing.W003",
            )
        )
    if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        found.append(
            Warning("The database is SQLite.", hint="Set DATABASE_URL to a PostgreSQL.", id="ticketing.W004")
        )
    return found
