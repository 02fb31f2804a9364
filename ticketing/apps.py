"""Django's admin with our own site in its place, and the wiring's own checks."""

from django.apps import AppConfig
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.auth.signals import user_logged_in
from django.core.checks import Tags, register

from ticketing import deployment, sessions


class ConsoleConfig(SimpleAdminConfig):
    default_site = "ticketing.console.Console"


class TicketingConfig(AppConfig):
    name = "ticketing"

    def ready(self) -> None:
        register(deployment.check, Tags.security, deploy=True)
        user_logged_in.connect(sessions.begin_anew)
