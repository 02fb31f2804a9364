"""Writes stored secrets anew with the newest of ENCRYPTION_KEYS, so that the older ones can be dropped.

Safe while everything runs: each row is replaced only if it still holds what was read, so that no change made meanwhile
is undone; and whoever reads has the older keys until the operator takes them away.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.apps import apps
from django.db import models
from django.db.models.functions import Cast

from config.fields import Secrets, SecretsField, is_newest
from config.models import PlatformState, Section


@dataclass
class Rotation:
    """How many secrets stand encrypted with the newest key already, were rewritten, and cannot be read by any key."""

    current: int = 0
    rewritten: int = 0
    unreadable: int = 0


def reencrypt() -> Rotation:
    """Rewrites whatever an older key encrypted. May run at any time and any number of times."""
    done = Rotation()
    for model, field in _secrets_fields():
        for pk in list(model._default_manager.order_by("pk").values_list("pk", flat=True)):
            _rewrite(model, field, pk, done)
    return done


def unreadable() -> str:
    """Whose secrets in use no key can read, in a sentence; empty where all is well. Two queries."""
    states = PlatformState.objects.select_related("version")
    names = [state.platform for state in states if state.version and state.version.secrets.sealed]
    names += [section.name for section in Section.objects.all() if section.secrets.sealed]
    if not names:
        return ""
    keyless = "ENCRYPTION_KEYS lacks the key they were written with"
    return f"The stored secrets of {', '.join(names)} cannot be read: {keyless}."


def forget_unreadable() -> int:
    """Gives up secrets whose key is lost, so that they can be set anew. Returns how many rows."""
    forgotten = 0
    for model, field in _secrets_fields():
        for row in model._default_manager.all():
            if getattr(row, field.name).sealed:
                forgotten += model._default_manager.filter(pk=row.pk).update(**{field.name: Secrets()})
    return forgotten


def _secrets_fields() -> Iterator[tuple[type[models.Model], SecretsField]]:
    for model in apps.get_models():
        for field in model._meta.local_fields:
            if isinstance(field, SecretsField):
                yield model, field


def _rewrite(model: type[models.Model], field: SecretsField, pk: object, done: Rotation) -> None:
    row = model._default_manager.filter(pk=pk).annotate(stored=Cast(field.name, models.TextField()))
    while stored := row.values_list("stored", flat=True).first():
        if is_newest(stored):
            done.current += 1
            return
        secrets = field.from_db_value(stored)
        if secrets.sealed:
            done.unreadable += 1
            return
        if row.filter(stored=stored).update(**{field.name: secrets}):
            done.rewritten += 1
            return
