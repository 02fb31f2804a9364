"""Every change of the configuration: checked as a whole, applied as a whole or not at all, audited without secrets."""

import math
import re
from datetime import datetime

from django.conf import settings as django_settings
from django.db import transaction
from django.utils import timezone

from auditlog import models as auditlog
from config import durations
from config.current import DEFAULTS, LLM_FIELDS, MASK, SEVERITIES, Current, forget, read
from config.fields import Secrets
from config.models import PlatformState, PlatformVersion, Section
from platforms.catalog import PLATFORMS
from platforms.contract import Field, Platform
from platforms.egress import Egress
from platforms.llm import PROVIDERS

LONGEST_VALUE = 2000
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Invalid(ValueError):
    """What was asked for cannot be configured. `errors` names each mistake by its field."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in errors.items()))
        self.errors = errors


def patch_platforms(body: dict, *, actor: str, request_id: str = "") -> list[str]:
    """Changes the named settings of the named platforms. Returns the names of the platforms."""
    errors: dict[str, str] = {}
    with transaction.atomic():
        stored = _locked_states([name for name in body if name in PLATFORMS])
        drafts = []
        for name, wanted in body.items():
            if name not in PLATFORMS:
                errors[name] = f"Unknown platform. Known are {', '.join(PLATFORMS)}."
            elif not isinstance(wanted, dict):
                errors[name] = 'Must be an object such as {"enabled": true}.'
            else:
                drafts.append(_draft(PLATFORMS[name], stored[name], wanted, errors))
        if errors:
            raise Invalid(errors)
        now = timezone.now()
        auditlog.write([entry for draft in drafts if (entry := draft.apply(actor, request_id, now))])
        forget()
    return list(body)


def patch_routing(body: dict, *, actor: str, request_id: str = "") -> dict[str, list[str]]:
    """Changes which platforms the named severities go to. Returns the whole routing."""
    errors = {name: text for name, value in body.items() if (text := _routing_mistake(name, value))}
    if errors:
        raise Invalid(errors)
    return _patch_section("routing", body, {}, actor=actor, request_id=request_id).routing


def patch_anomaly(body: dict, *, actor: str, request_id: str = "") -> dict:
    """Changes the score that opens an incident and the window of deduplication. Returns both."""
    check_anomaly(body)
    return _patch_section("anomaly", body, {}, actor=actor, request_id=request_id).shown_anomaly()


def check_anomaly(body: dict) -> None:
    """Raises Invalid where `patch_anomaly` would, and changes nothing."""
    if errors := {name: text for name, value in body.items() if (text := _anomaly_mistake(name, value))}:
        raise Invalid(errors)


def patch_llm(body: dict, *, actor: str, request_id: str = "") -> dict:
    """Changes the language model's settings. Returns them, the key masked."""
    with transaction.atomic():
        _locked_section("llm")
        stored = read().llm.settings
        errors: dict[str, str] = {}
        values, secrets = _checked(LLM_FIELDS, stored, body, errors, prefix="")
        if "provider" in values and values["provider"] not in PROVIDERS:
            errors["provider"] = f"Unknown provider. Known are {', '.join(PROVIDERS)}."
        if errors:
            raise Invalid(errors)
        return _patch_section("llm", values, secrets, actor=actor, request_id=request_id).shown_llm()


# --- Platforms --------------------------------------------------------------------------------------------------------


class _Draft:
    """One platform's state as it would be, once every other part of the change is known to be right."""

    def __init__(self, platform: Platform, state: PlatformState, enabled: bool, values: dict, secrets: dict) -> None:
        self.platform = platform
        self.state = state
        self.enabled = enabled
        old_values = state.version.values if state.version else {}
        old_secrets = state.version.secrets if state.version else {}
        self.values = _merged(old_values, values)
        self.secrets = _merged(old_secrets, secrets)
        self.changed_values = {k: v for k, v in values.items() if old_values.get(k, "") != v}
        self.changed_secrets = [k for k, v in secrets.items() if old_secrets.get(k, "") != v]

    def apply(self, actor: str, request_id: str, now: datetime) -> auditlog.Entry | None:
        said = [f"{name} set to {value or 'nothing'}" for name, value in self.changed_values.items()]
        said += [f"{name} replaced" if self.secrets.get(name) else f"{name} removed" for name in self.changed_secrets]
        if said:
            self.state.version = PlatformVersion.objects.create(
                platform=self.platform.name,
                number=self.state.version.number + 1 if self.state.version else 1,
                values=self.values,
                secrets=Secrets(self.secrets),
                created_at=now,
            )
        if self.enabled != self.state.enabled:
            said.insert(0, "enabled" if self.enabled else "disabled")
            self.state.enabled = self.enabled
        if not said:
            return None
        self.state.changed_at = now
        self.state.save(update_fields=["enabled", "version", "changed_at"])
        return auditlog.entry(
            f"config:platform:{self.platform.name}",
            "changed",
            actor=actor,
            details=f"{self.platform.label}: {', '.join(said)}",
            at=now,
            request_id=request_id,
            enabled=self.enabled,
            values=self.changed_values,
            secrets=self.changed_secrets,
        )


def _locked_states(names: list[str]) -> dict[str, PlatformState]:
    PlatformState.objects.bulk_create([PlatformState(platform=name) for name in sorted(names)], ignore_conflicts=True)
    states = PlatformState.objects.select_for_update(of=("self",)).select_related("version")
    return {state.platform: state for state in states.filter(platform__in=names).order_by("platform")}


def _draft(platform: Platform, state: PlatformState, wanted: dict, errors: dict[str, str]) -> _Draft:
    wanted = dict(wanted)
    enabled = wanted.pop("enabled", state.enabled)
    if not isinstance(enabled, bool):
        errors[f"{platform.name}.enabled"] = "Must be true or false."
    stored = state.version.settings if state.version else {}
    values, secrets = _checked(platform.fields, stored, wanted, errors, prefix=f"{platform.name}.")
    draft = _Draft(platform, state, enabled, values, secrets)
    if enabled is True:
        for f in platform.fields:
            name = f"{platform.name}.{f.name}"
            if f.required and not {**draft.values, **draft.secrets}.get(f.name):
                errors.setdefault(name, f"Required to enable {platform.label}.")
    return draft


# --- One field after the other ----------------------------------------------------------------------------------------


def _checked(
    fields: tuple[Field, ...], stored: dict, wanted: dict, errors: dict[str, str], *, prefix: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The plain and the secret settings to change, out of what was sent. Mistakes go to `errors`."""
    known = {f.name: f for f in fields}
    values: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for name, value in wanted.items():
        f = known.get(name)
        if f is None:
            errors[prefix + name] = f"Unknown setting. Known are {', '.join(known)}."
        elif mistake := _mistake(f, stored, value):
            errors[prefix + name] = mistake
        elif not (f.secret and value == MASK):
            (secrets if f.secret else values)[name] = _trimmed(f, value)
    moved = [
        f.name
        for f in fields
        if f.target and f.name in values and (values[f.name] or f.default) != (stored.get(f.name) or f.default)
    ]
    if moved:
        for f in fields:
            if f.secret and f.name not in ("webhookSecret", *secrets) and stored.get(f.name):
                errors.setdefault(
                    prefix + f.name, f"Send it again: {moved[0]} changes where it is sent, and it cannot be read back."
                )
    return values, secrets


def _mistake(f: Field, stored: dict, value: object) -> str:
    if not isinstance(value, str):
        return "Must be a text."
    if f.secret and value == MASK:
        return "" if stored.get(f.name) else f"{MASK} keeps what is stored, and nothing is stored yet: send the value."
    if f.secret and value.strip().startswith("***"):
        return f"Looks like a masked value. Send the value itself, or exactly {MASK} to keep what is stored."
    if not value.strip():
        return "Must not be empty." if f.required else ""
    if len(value) > LONGEST_VALUE:
        return f"Must have {LONGEST_VALUE} characters at most."
    if CONTROL.search(value):
        return "Must not contain control characters."
    if f.target and f.name != "provider":
        refusal = egress().url_refusal(value.strip(), hosts=f.hosts, path=f.path)
        return f"{refusal[0].upper()}{refusal[1:]}." if refusal else ""
    return ""


def _trimmed(f: Field, value: str) -> str:
    value = value.strip()
    return value.rstrip("/") if f.target and not f.secret else value


def egress() -> Egress:
    return Egress(django_settings.EGRESS_ALLOWED_NETWORKS)


def _merged(old: dict, new: dict) -> dict:
    return {name: value for name, value in {**old, **new}.items() if value != ""}


# --- The other sections -----------------------------------------------------------------------------------------------


def _routing_mistake(name: str, value: object) -> str:
    if name not in SEVERITIES:
        return f"Unknown severity. Known are {', '.join(SEVERITIES)}."
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return 'Must be a list of platforms such as ["jira", "slack"].'
    unknown = [item for item in value if item not in PLATFORMS]
    if unknown:
        return f"Unknown platform {unknown[0][:50]!r}. Known are {', '.join(PLATFORMS)}."
    return "Names a platform twice." if len(set(value)) < len(value) else ""


def _anomaly_mistake(name: str, value: object) -> str:
    if name == "minimumScore":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number and 0 <= value <= 1e308 and math.isfinite(value) else "Must be a number of zero or more."
    if name == "lookbackWindow":
        try:
            durations.parse(value)
        except (ValueError, TypeError) as error:
            return str(error)
        return ""
    return "Unknown setting. Known are minimumScore, lookbackWindow."


def _patch_section(name: str, values: dict, secrets: dict, *, actor: str, request_id: str) -> Current:
    with transaction.atomic():
        section = _locked_section(name)
        before = DEFAULTS[name] | section.values
        changed = {key: value for key, value in values.items() if before.get(key, "") != value}
        replaced = [key for key, value in secrets.items() if section.secrets.get(key, "") != value]
        if changed or replaced:
            section.values = _merged(section.values, values)
            if replaced:  # otherwise they stay as they are, readable or not
                section.secrets = Secrets(_merged(section.secrets, secrets))
            section.changed_at = timezone.now()
            section.save()
            auditlog.write([_section_entry(section, before, changed, replaced, actor, request_id)])
        forget()
        return read()


def _locked_section(name: str) -> Section:
    Section.objects.bulk_create([Section(name=name)], ignore_conflicts=True)
    return Section.objects.select_for_update().get(name=name)


def _section_entry(
    section: Section, before: dict, changed: dict, replaced: list[str], actor: str, request_id: str
) -> auditlog.Entry:
    said = [f"{key} changed from {_words(before.get(key))} to {_words(value)}" for key, value in changed.items()]
    said += [f"{key} {'replaced' if section.secrets.get(key) else 'removed'}" for key in replaced]
    return auditlog.entry(
        f"config:{section.name}",
        "changed",
        actor=actor,
        details=", ".join(said),
        at=section.changed_at,
        request_id=request_id,
        before={key: before.get(key) for key in changed},
        values=changed,
        secrets=replaced,
    )


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return "nothing" if value in (None, "") else str(value)
