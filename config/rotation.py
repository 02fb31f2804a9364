"""Writes stored secrets anew with the newest of ENCRYPTION_KEYS, so that the older ones can be dropped.

Safe while everything runs: each row is replaced only if it still holds what was read, so that no change made meanwhile
is undone; and whoever reads has the older keys until the operator takes them away.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.apps import apps
from django.db import models
from django.db.models.functions import Cast

from config.fields import CannotDecrypt, SecretsField, is_newest


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
        try:
            secrets = field.from_db_value(stored)
        except CannotDecrypt:
            done.unreadable += 1
            return
        if row.filter(stored=stored).update(**{field.name: secrets}):
            done.rewritten += 1
            return
