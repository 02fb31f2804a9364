"""Who somebody is at the OpenID provider. Users and groups themselves are Django's."""

from django.conf import settings
from django.db import models
from django.utils import timezone


class Identity(models.Model):
    """A user of ours, by what their provider never gives to anybody else (OpenID Connect Core 1.0, 5.7)."""

    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name_plural = "identities"
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="one_user_per_identity")]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"
