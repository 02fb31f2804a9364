"""API keys from the command line; `apikey create NAME --role ROLE` makes the first."""

from datetime import timedelta

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from config import keys
from config.changes import Invalid
from config.models import ApiKey, Role

ACTOR = "system"


class Command(BaseCommand):
    help = "Creates, lists and revokes API keys."

    def add_arguments(self, parser):
        acts = parser.add_subparsers(dest="act", required=True)
        create = acts.add_parser("create", help="make a key and print it, once")
        create.add_argument("name")
        create.add_argument("--role", required=True, choices=Role.values)
        create.add_argument("--days", type=int, help="days until it expires; without, it does not")
        acts.add_parser("list", help="list the keys, never their texts")
        acts.add_parser("revoke", help="end a key at once").add_argument("name")

    def handle(self, *, act, **options):
        getattr(self, act)(**options)

    def create(self, *, name, role, days=None, **_):
        if days is not None and not 1 <= days <= 36500:
            raise CommandError("--days must be 1 to 36500.")
        expires_at = timezone.now() + timedelta(days=days) if days else None
        try:
            _, text = keys.create(name=name, role=role, actor=ACTOR, expires_at=expires_at)
        except Invalid as error:
            raise CommandError(str(error)) from error
        self.stderr.write("Keep this key now, it is not shown again:")
        self.stdout.write(text)

    def list(self, **_):
        for key in ApiKey.objects.order_by("name"):
            expiry = f"expires {key.expires_at:%Y-%m-%d}" if key.expires_at else "usable"
            state = "revoked" if key.revoked_at else expiry
            used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
            self.stdout.write(f"{key.name}\t{key.role}\t{key.prefix}…\t{state}\tlast used {used}")

    def revoke(self, *, name, **_):
        key = ApiKey.objects.filter(name=name).first()
        if key is None:
            raise CommandError(f"There is no key named {name}.")
        keys.revoke(key, actor=ACTOR)
        self.stdout.write(f"{name} is revoked.")
