"""`manage.py process`: becomes one of the product's processes, for who looks after each by itself."""

import os

from django.conf import settings
from django.core.management.base import BaseCommand

from ticketing import processes


class Command(BaseCommand):
    help = "Runs one process in the foreground: the same as `make run` starts. HOST, PORT and the rest as documented."
    requires_system_checks = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("name", choices=processes.ALONE)

    def handle(self, *args, name: str, **options) -> None:
        argv = processes.alone(name, settings.DATA_DIR)
        settings.DATA_DIR.mkdir(parents=True, exist_ok=True)
        os.chdir(processes.ROOT)
        os.execv(argv[0], argv)
