"""What operators change while it runs, as stored. Changes go through `config.changes` and `config.keys` alone."""

from datetime import datetime

from django.db import models
from django.db.models import Exists, OuterRef
from django.utils import timezone

from config.fields import Secrets, SecretsField


class PlatformVersionQuerySet(models.QuerySet):
    def replaced(self, before: datetime) -> "PlatformVersionQuerySet":
        """Those that gave way to a newer one before this moment."""
        versions = PlatformVersion.objects.filter(platform=OuterRef("platform"), number__gt=OuterRef("number"))
        states = PlatformState.objects.filter(version=OuterRef("pk"))
        return self.filter(Exists(versions.filter(created_at__lt=before)), ~Exists(states))


class PlatformVersion(models.Model):
    """One state of a platform's settings. Kept while tickets made with it may still need it."""

    platform = models.CharField(max_length=20)
    number = models.PositiveIntegerField()
    values = models.JSONField(default=dict)
    secrets = SecretsField(default=Secrets)
    created_at = models.DateTimeField(default=timezone.now)

    objects = PlatformVersionQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["platform", "number"], name="one_number_per_platform")]

    def __str__(self) -> str:
        return f"{self.platform} settings, version {self.number}"

    @property
    def settings(self) -> dict[str, str]:
        """Values and secrets together, as a platform's module is handed them."""
        return {**self.values, **self.secrets}


class PlatformState(models.Model):
    """Whether a platform is used, and with which settings."""

    platform = models.CharField(max_length=20, primary_key=True)
    enabled = models.BooleanField(default=False)
    version = models.ForeignKey(PlatformVersion, null=True, on_delete=models.PROTECT, related_name="+")
    changed_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.platform} {'enabled' if self.enabled else 'disabled'}"


class Section(models.Model):
    """One of the other groups of settings: routing, anomaly, llm."""

    name = models.CharField(max_length=20, primary_key=True)
    values = models.JSONField(default=dict)
    secrets = SecretsField(default=Secrets)
    changed_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    PRODUCER = "producer", "Producer: sends anomalies"
    VIEWER = "viewer", "Viewer: reads"
    RESPONDER = "responder", "Responder: reads and acts"
    ADMIN = "admin", "Admin: everything"


class ApiKeyQuerySet(models.QuerySet):
    def usable(self, now: datetime) -> "ApiKeyQuerySet":
        return self.filter(revoked_at=None).filter(models.Q(expires_at=None) | models.Q(expires_at__gt=now))


class ApiKey(models.Model):
    """A program's credential. The key itself is shown once; what is kept is its hash and its first characters."""

    name = models.CharField(max_length=100, unique=True)
    role = models.CharField(max_length=20, choices=Role.choices)
    prefix = models.CharField(max_length=12)
    digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the key, hex.")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        constraints = [models.CheckConstraint(condition=models.Q(role__in=Role.values), name="api_key_role_known")]

    def __str__(self) -> str:
        return f"{self.name} ({self.role})"
