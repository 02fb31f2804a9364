"""`manage.py drill`: begins a fire drill, for cron."""

from django.core.management.base import BaseCommand, CommandError

from incidents import drill


class Command(BaseCommand):
    help = "Sends a marked test incident to every enabled platform; it is resolved by itself. People are woken."

    def handle(self, **_) -> None:
        try:
            incident = drill.begin(actor="system")
        except drill.Refused as refused:
            raise CommandError(str(refused)) from refused
        self.stdout.write(f"{incident.pk} goes to {', '.join(incident.platforms)}.")
