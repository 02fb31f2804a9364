"""Whether the language model can be reached: what the clock's check saw last, or a look of our own if there is none."""

from dataclasses import dataclass
from datetime import UTC, datetime

from django.db.models import QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from config.changes import egress
from config.current import LlmConfig, current
from config.models import Section
from incidents.models import ModelHealth
from platforms import llm
from platforms.contract import PlatformError
from platforms.http import Caller

DEADLINE_SECONDS = 5.0
NEVER = datetime(2000, 1, 1, tzinfo=UTC)
NOT_CONFIGURED = "No model is configured: set apiKey, or baseUrl for a server of your own."


@dataclass(frozen=True)
class Health:
    provider: str
    model: str
    available: bool
    error: str = ""


def status() -> Health:
    """What the last check saw, or a live check where there is none for today's settings."""
    config = current().llm
    seen = ModelHealth.objects.filter(settings_at=config.changed_at or NEVER).first()
    if seen is None:
        return check()
    return Health(seen.provider, seen.model, seen.available, seen.error)


def unreachable() -> QuerySet[ModelHealth]:
    """The last check, if it was of today's settings, of a model that is configured, and failed."""
    changed_at = Subquery(Section.objects.filter(name="llm").values("changed_at"))
    failed = ModelHealth.objects.filter(available=False).exclude(error=NOT_CONFIGURED)
    return failed.filter(settings_at=Coalesce(changed_at, Value(NEVER)))


def check() -> Health:
    """Asks the model's server now and notes what it says."""
    config = current().llm
    error = probe(config)
    ModelHealth.objects.update_or_create(
        pk=1,
        defaults={
            "provider": config.provider,
            "model": config.model[:200],
            "available": not error,
            "error": error[:500],
            "settings_at": config.changed_at or NEVER,
            "checked_at": timezone.now(),
        },
    )
    return Health(config.provider, config.model, not error, error)


def probe(config: LlmConfig) -> str:
    """Why the model cannot be used, or an empty text. Costs no tokens."""
    if not config.configured:
        return NOT_CONFIGURED
    key = config.settings.get("apiKey")
    caller = Caller(egress=egress(), seconds=DEADLINE_SECONDS, secrets=[key] if key else [])
    try:
        llm.probe(caller, config.settings)
    except PlatformError as error:
        return error.message
    return ""
