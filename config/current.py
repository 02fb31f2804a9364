"""What is configured now, as every process sees it: read from the database, kept for half a second."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import transaction

from config import durations
from config.models import PlatformState, Section
from platforms.catalog import PLATFORMS
from platforms.contract import Field, Platform

KEPT_SECONDS = 0.5
SEVERITIES = ("critical", "high", "medium", "low")
MASK = "****"

DEFAULTS = {
    "routing": {
        "critical": ["pagerduty", "slack", "jira"],
        "high": ["jira", "slack"],
        "medium": ["jira"],
        "low": ["slack"],
    },
    "anomaly": {"minimumScore": 0.85, "lookbackWindow": "15m"},
    "llm": {"provider": "openai", "model": "gpt-4"},
}

LLM_FIELDS = (
    Field("provider", "Provider", required=True, target=True),
    Field("model", "Model", required=True),
    Field("apiKey", "API key", secret=True),
    Field("baseUrl", "Base URL", target=True, help="With /v1, for a server of your own or a gateway."),
)


@dataclass(frozen=True)
class PlatformConfig:
    """One platform as configured. `settings` holds its secrets and must not be logged."""

    platform: Platform
    enabled: bool = False
    version_id: int | None = None
    settings: dict[str, str] = field(default_factory=dict, repr=False)
    changed_at: datetime | None = None

    @property
    def missing(self) -> list[str]:
        """Required settings that are not there: never set, or not to be read with today's ENCRYPTION_KEYS."""
        return [f.name for f in self.platform.fields if f.required and not self.settings.get(f.name)]


@dataclass(frozen=True)
class LlmConfig:
    """The language model as configured. `settings`: provider, model, apiKey, baseUrl."""

    settings: dict[str, str] = field(repr=False)
    changed_at: datetime | None = None

    @property
    def provider(self) -> str:
        return self.settings["provider"]

    @property
    def model(self) -> str:
        return self.settings["model"]

    @property
    def configured(self) -> bool:
        """Whether there is a model to ask: the vendor's needs a key, a server of one's own an address."""
        return bool(self.settings.get("apiKey") or self.settings.get("baseUrl"))


@dataclass(frozen=True)
class Current:
    platforms: dict[str, PlatformConfig]
    routing: dict[str, list[str]]
    minimum_score: float
    lookback_window: str
    llm: LlmConfig

    @property
    def lookback(self) -> timedelta:
        return durations.parse(self.lookback_window)

    def enabled(self) -> list[str]:
        return [name for name, config in self.platforms.items() if config.enabled]

    def routed(self, severity: str) -> list[str]:
        """The enabled platforms that incidents of this severity go to, in the routing's order."""
        return [name for name in self.routing[severity] if self.platforms[name].enabled]

    def escalation(self) -> list[str]:
        """Where escalations go: to the enabled platforms that page people, else to those routed for critical."""
        paging = [name for name, config in self.platforms.items() if config.enabled and config.platform.pages]
        return paging or self.routed("critical")

    def shown(self) -> dict:
        """The configuration as the API shows it, secrets masked."""
        return {
            "platforms": {name: self.shown_platform(name) for name in self.platforms},
            "routing": self.routing,
            "anomaly": self.shown_anomaly(),
            "llm": self.shown_llm(),
        }

    def shown_platform(self, name: str) -> dict:
        config = self.platforms[name]
        return {"enabled": config.enabled} | _masked(config.platform.fields, config.settings)

    def shown_anomaly(self) -> dict:
        return {"minimumScore": self.minimum_score, "lookbackWindow": self.lookback_window}

    def shown_llm(self) -> dict:
        return _masked(LLM_FIELDS, self.llm.settings)


def _masked(fields: tuple[Field, ...], settings: dict[str, str]) -> dict[str, str]:
    return {f.name: MASK if f.secret else settings[f.name] for f in fields if settings.get(f.name)}


class _Memory:
    """Forgotten as a whole: what a read under way still brings to it is forgotten too."""

    known: tuple[float, Current] | None = None


_memory = _Memory()


def current() -> Current:
    """The configuration, at most half a second old; at once what this process itself has changed."""
    memory = _memory
    known = memory.known
    if known is None or time.monotonic() - known[0] > KEPT_SECONDS:
        known = memory.known = (time.monotonic(), read())
    return known[1]


def forget() -> None:
    """Makes the next `current` read again, also where the change is still to be committed."""
    _forget_now()
    transaction.on_commit(_forget_now)


def _forget_now() -> None:
    global _memory
    _memory = _Memory()


def read() -> Current:
    """The configuration from the database, in two queries."""
    states = {state.platform: state for state in PlatformState.objects.select_related("version")}
    sections = {section.name: section for section in Section.objects.all()}
    values = {name: default | (sections[name].values if name in sections else {}) for name, default in DEFAULTS.items()}
    llm = sections.get("llm")
    return Current(
        platforms={name: _platform_config(platform, states.get(name)) for name, platform in PLATFORMS.items()},
        routing={severity: values["routing"][severity] for severity in SEVERITIES},
        minimum_score=values["anomaly"]["minimumScore"],
        lookback_window=values["anomaly"]["lookbackWindow"],
        llm=LlmConfig(
            settings=values["llm"] | (llm.secrets if llm else {}), changed_at=llm.changed_at if llm else None
        ),
    )


def _platform_config(platform: Platform, state: PlatformState | None) -> PlatformConfig:
    if state is None:
        return PlatformConfig(platform)
    return PlatformConfig(
        platform,
        enabled=state.enabled,
        version_id=state.version_id,
        settings=state.version.settings if state.version else {},
        changed_at=state.changed_at,
    )
