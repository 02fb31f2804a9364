"""API keys: made, checked and revoked here. A key is shown once; only its hash is kept."""

import hashlib
import secrets
import time
from contextlib import suppress
from datetime import datetime, timedelta

from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from auditlog import models as auditlog
from config.changes import Invalid
from config.models import ApiKey, Role

PREFIX = "tka_"
USE_NOTED_EVERY = timedelta(minutes=1)
# A producer that sends a thousand events a second asks the database about its key twice. A revoked key is refused at
# once by the process that revoked it, and by all others when this time is over.
KEPT_SECONDS = 0.5

_kept: dict[str, tuple[float, ApiKey]] = {}  # by digest: when it was read, and only keys that were usable then


def create(*, name: str, role: str, actor: str, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """A new key and its text, which cannot be had again. Raises `Invalid` on an unknown role or a name in use."""
    if role not in Role.values:
        raise Invalid({"role": f"Unknown role. Known are {', '.join(Role.values)}."})
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise Invalid({"name": "Must have 1 to 100 printable characters."})
    text = PREFIX + secrets.token_urlsafe(30)
    key = ApiKey(name=name.strip(), role=role, prefix=text[:9], digest=_digest(text), expires_at=expires_at)
    now = timezone.now()
    try:
        with transaction.atomic():
            key.save()
            auditlog.write([_entry(key, "created", f"API key {key.name} created with role {role}", actor, now)])
    except IntegrityError as error:
        raise Invalid({"name": f"There is a key named {name.strip()} already."}) from error
    return key, text


def revoke(key: ApiKey, *, actor: str) -> None:
    """Ends a key at once. Revoking it again changes nothing."""
    now = timezone.now()
    with transaction.atomic():
        if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now):
            auditlog.write([_entry(key, "revoked", f"API key {key.name} revoked", actor, now)])
        _forget()
        transaction.on_commit(_forget)  # for who has read it meanwhile


def find(text: str) -> ApiKey | None:
    """The usable key with this text, as it was half a second ago at most. Notes its use, once a minute at most."""
    if not text.startswith(PREFIX) or len(text) > 100:
        return None
    digest, now = _digest(text), timezone.now()
    kept = _kept
    read_at, key = kept.get(digest, (0.0, None))
    if key and time.monotonic() - read_at < KEPT_SECONDS:
        return key if key.expires_at is None or key.expires_at > now else None
    began = time.monotonic()
    key = ApiKey.objects.usable(now).filter(digest=digest).first()
    if key is None:
        kept.pop(digest, None)
        return None
    if key.last_used_at is None or now - key.last_used_at > USE_NOTED_EVERY:
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - USE_NOTED_EVERY)
        with suppress(DatabaseError):  # a use that cannot be noted, on a standby, refuses nobody
            ApiKey.objects.filter(stale, pk=key.pk).update(last_used_at=now)
    kept[digest] = began, key
    return key


def _forget() -> None:
    """Others may be reading just now: what they bring is for the memory that they began with."""
    global _kept
    _kept = {}


def _digest(text: str) -> str:
    # A plain hash is enough: the text has 240 random bits, there is nothing to guess.
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _entry(key: ApiKey, action: str, details: str, actor: str, now: datetime) -> auditlog.Entry:
    return auditlog.entry(f"apikey:{key.name}", action, actor=actor, details=details, at=now, role=key.role)
