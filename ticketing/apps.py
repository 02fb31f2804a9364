"""Django's admin with our own site in its place."""

from django.contrib.admin.apps import SimpleAdminConfig


class ConsoleConfig(SimpleAdminConfig):
    default_site = "ticketing.console.Console"
