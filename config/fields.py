"""A model field for secrets: JSON that is encrypted in the database, and readable nowhere else."""

import json
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models


class CannotDecrypt(RuntimeError):
    """The stored secrets were written with a key that is not in ENCRYPTION_KEYS."""


class Secrets(dict):
    """Names to secret texts. Its repr tells the names only.

    `sealed` is what is stored, where none of ENCRYPTION_KEYS reads it: then there are no names. It is stored back as it
    is, so that the right key finds it as it was.
    """

    sealed = ""

    def __repr__(self) -> str:
        return f"<Secrets {', '.join(sorted(self)) or 'none'}>"

    __str__ = __repr__


class SecretsField(models.TextField):
    """Holds `Secrets`, encrypted with the newest of ENCRYPTION_KEYS; any of them reads it."""

    def get_prep_value(self, value: dict) -> str:
        return getattr(value, "sealed", "") or encrypt(json.dumps(dict(value or {}), sort_keys=True))

    def from_db_value(self, value: str, *_) -> Secrets:
        try:
            return Secrets(json.loads(decrypt(value))) if value else Secrets()
        except CannotDecrypt:
            # What needs no secret goes on: nobody's anomaly is refused because a platform's password cannot be read.
            secrets = Secrets()
            secrets.sealed = value
            return secrets

    def to_python(self, value: object) -> Secrets:
        if isinstance(value, str):  # loaddata brings the ciphertext back
            return self.from_db_value(value)
        return value if isinstance(value, Secrets) else Secrets(value or {})

    def value_to_string(self, obj: models.Model) -> str:
        return self.get_prep_value(self.value_from_object(obj))  # dumpdata carries ciphertext


def encrypt(text: str) -> str:
    return _fernet(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode()).decode()


def decrypt(token: str) -> str:
    try:
        return _fernet(tuple(settings.ENCRYPTION_KEYS)).decrypt(token.encode()).decode()
    except InvalidToken as error:
        raise CannotDecrypt(
            "Stored secrets cannot be read: ENCRYPTION_KEYS lacks the key they were written with."
        ) from error


def is_newest(token: str) -> bool:
    """Whether this was encrypted with the newest key."""
    try:
        _fernet(tuple(settings.ENCRYPTION_KEYS[:1])).decrypt(token.encode())
    except InvalidToken:
        return False
    return True


@lru_cache(maxsize=4)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])
