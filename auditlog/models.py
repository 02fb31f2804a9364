"""What happened, to what, by whom, when: entries that are added and never changed."""

from collections.abc import Iterable
from datetime import datetime

from django.db import models
from django.utils import timezone


class Unchangeable(TypeError):
    """Somebody tried to change or delete what has been written down."""


class EntryQuerySet(models.QuerySet):
    def about(self, subject: str) -> "EntryQuerySet":
        """The entries of one subject, oldest first."""
        return self.filter(subject=subject).order_by("id")

    def update(self, **_):
        raise Unchangeable("Audit entries are never changed.")

    def delete(self):
        raise Unchangeable("Audit entries are never deleted.")


class Entry(models.Model):
    """One thing that happened. The subject is named by text (`incident:inc-…`, `config:routing`), so that it may go."""

    subject = models.CharField(max_length=250)
    action = models.CharField(max_length=50)
    actor = models.CharField(max_length=200, help_text="user:anna, key:grafana, local, system, jira:anna")
    details = models.TextField(help_text="For people. Never a secret.")
    data = models.JSONField(default=dict, help_text="What a program needs to replay it: from, to, note.")
    timestamp = models.DateTimeField(default=timezone.now)
    request_id = models.CharField(max_length=64, blank=True)

    objects = EntryQuerySet.as_manager()

    class Meta:
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        indexes = [models.Index(fields=["subject", "id"], name="entry_by_subject")]

    def __str__(self) -> str:
        return f"{self.subject} {self.action} by {self.actor}"

    def save(self, *args, **kwargs):
        if self.pk is not None:
            raise Unchangeable("Audit entries are never changed.")
        super().save(*args, **kwargs)

    def delete(self, *args, **kwargs):
        raise Unchangeable("Audit entries are never deleted.")


def entry(
    subject: str, action: str, *, actor: str, details: str, at: datetime, request_id: str = "", **data: object
) -> Entry:
    """An entry to be written by `write`, in the transaction that makes the change."""
    return Entry(
        subject=subject,
        action=action,
        actor=actor[:200],
        details=details,
        data={name: value for name, value in data.items() if value not in (None, "")},
        timestamp=at,
        request_id=request_id[:64],
    )


def write(entries: Iterable[Entry]) -> None:
    """Adds the entries, in order, in one query."""
    Entry.objects.bulk_create(entries)
