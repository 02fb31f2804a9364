"""`manage.py reencrypt`: the last step of changing ENCRYPTION_KEYS, once the new key stands first everywhere."""

from django.core.management.base import BaseCommand, CommandError

from config.rotation import reencrypt


class Command(BaseCommand):
    help = "Encrypts all stored secrets with the newest of ENCRYPTION_KEYS. Then the older ones may go."

    def handle(self, **_) -> None:
        done = reencrypt()
        self.stdout.write(f"{done.rewritten} rewritten, {done.current} already with the newest key.")
        if done.unreadable:
            raise CommandError(
                f"{done.unreadable} cannot be read with any of ENCRYPTION_KEYS and were left as they are. "
                "Add the key that they were written with, or set those secrets again."
            )
