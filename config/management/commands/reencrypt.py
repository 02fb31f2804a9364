"""`manage.py reencrypt`: the last step of changing ENCRYPTION_KEYS, once the new key stands first everywhere."""

from django.core.management.base import BaseCommand, CommandError

from config import rotation


class Command(BaseCommand):
    help = "Encrypts all stored secrets with the newest of ENCRYPTION_KEYS. Then the older ones may go."

    def add_arguments(self, parser) -> None:
        parser.add_argument(
            "--forget-unreadable", action="store_true", help="the key is lost: give up what it encrypted"
        )

    def handle(self, *, forget_unreadable: bool, **_) -> None:
        if forget_unreadable:
            given_up = rotation.forget_unreadable()
            self.stdout.write(f"{given_up} given up. Set those secrets again, in the console or by PATCH.")
        done = rotation.reencrypt()
        self.stdout.write(f"{done.rewritten} rewritten, {done.current} already with the newest key.")
        if done.unreadable:
            raise CommandError(
                f"{done.unreadable} cannot be read with any of ENCRYPTION_KEYS and were left as they are. "
                "Add the key that they were written with, or give them up with --forget-unreadable."
            )
