"""Every setting of the environment: its default, as the code takes it, and what operators read about it.

`environment` reads no variable that is not here. docs/reference/settings.md is written from this by
`manage.py reference settings`, and a test compares.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One variable. `told`: the default in words, where it is no constant; `needed`: there is none off local mode."""

    name: str
    kind: str  # str, int, bool, or list: words separated by commas
    about: str
    default: object = ""
    told: str = ""
    needed: bool = False
    choices: tuple[str, ...] = ()

    @property
    def default_in_words(self) -> str:
        if self.told or self.needed:
            return self.told
        return f"`{self.default}`" if self.default != "" else "none"


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "LOCAL_MODE",
            "bool",
            "On a laptop: requests made on this machine need no credential, secrets are made and kept in `DATA_DIR`, "
            "and the server binds a loopback address only. `make run` sets it. Never set it on a server.",
            default=False,
            told="`0`",
        ),
        Setting("HOST", "str", "The address the web server binds.", default="127.0.0.1"),
        Setting("PORT", "int", "The port the web server binds.", default=18081),
        Setting(
            "PUBLIC_URL",
            "str",
            "Where people reach the console: tickets link there. With `https://`, cookies are for TLS alone, and "
            "browsers are told to stay with it (HSTS, see `TRUSTED_PROXIES`).",
            told="`http://HOST:PORT`",
        ),
        Setting(
            "ALLOWED_HOSTS",
            "list",
            "The host names this service is reached by; requests for others are refused. `*` is refused off "
            "local mode.",
            told="loopback names in local mode",
            needed=True,
        ),
        Setting(
            "TRUSTED_PROXIES",
            "list",
            "Networks (CIDR) of the proxies in front. From their addresses alone `X-Forwarded-For`, `-Proto` and "
            "`-Host` are believed: the login throttle, rate limits and logs go by the true peer, and HSTS is sent. "
            "From all others they are ignored.",
        ),
        Setting(
            "RATE_LIMIT_PER_SECOND",
            "int",
            "How many requests a second one caller (an API key, a user, or an address without a credential) may make, "
            "in each web process, after a burst of two seconds' worth. The rest gets 429. `0`: no limit.",
            default=300,
            told="`300`; none in local mode",
        ),
        Setting(
            "SECRET_KEY",
            "str",
            "Signs sessions and forms: 32 characters or more, better 50. A new one ends all logins and nothing else.",
            told="made and kept in `DATA_DIR` in local mode",
            needed=True,
        ),
        Setting(
            "ENCRYPTION_KEYS",
            "list",
            "Fernet keys that encrypt the platforms' secrets in the database. The newest first: it encrypts, all "
            "decrypt. Without them the stored secrets are lost.",
            told="made and kept in `DATA_DIR` in local mode",
            needed=True,
        ),
        Setting(
            "DATABASE_URL",
            "str",
            "`postgresql://user:password@host:5432/name`. SQLite is for one machine.",
            told="SQLite in `DATA_DIR`",
        ),
        Setting(
            "BROKER_URL",
            "str",
            "`redis://…` (Redis, Valkey) or `amqp://…` (RabbitMQ). Carries wake-ups and holds nothing that may not be "
            "lost.",
            told="one of our own, which `make run` starts in `DATA_DIR`",
        ),
        Setting(
            "DATA_DIR",
            "str",
            "What is kept on disk: SQLite, the secrets of local mode, beat's schedule.",
            told="`data` beside the code",
        ),
        Setting(
            "EGRESS_ALLOWED_NETWORKS",
            "list",
            "Networks (CIDR) of your own to which platforms' and models' addresses may point, also by `http`. All "
            "other private addresses are refused.",
        ),
        Setting(
            "SESSION_HOURS",
            "int",
            "How many hours after a login to the console people must log in again, whatever they do.",
            default=12,
        ),
        Setting(
            "SESSION_IDLE_MINUTES",
            "int",
            "How many minutes after the last click. A page that only asks for news does not count.",
            default=120,
        ),
        Setting(
            "OIDC_ISSUER",
            "str",
            "People sign in to the console by this OpenID provider, such as `https://sso.example.com/realms/main`; see "
            "[signing in](../sign-in.md). It must begin with `https://`, as `PUBLIC_URL` must.",
            told="none: local users only",
        ),
        Setting("OIDC_CLIENT_ID", "str", "What the provider knows this service as."),
        Setting("OIDC_CLIENT_SECRET", "str", "What this service proves itself to the provider with."),
        Setting("OIDC_NAME", "str", "What the button says: *Sign in with …*", default="single sign-on"),
        Setting(
            "OIDC_SCOPES",
            "str",
            "What the provider is asked for. Some tell groups only where `groups` is in it.",
            default="openid profile email",
        ),
        Setting(
            "OIDC_USERNAME_CLAIM",
            "str",
            "The claim that a user is called after at the first login: the name in the audit.",
            default="preferred_username",
        ),
        Setting(
            "OIDC_GROUPS_CLAIM",
            "str",
            "The claim with a person's groups. `realm_access.roles` is a claim within a claim.",
            default="groups",
        ),
        Setting("OIDC_ADMIN_GROUPS", "list", "Groups at the provider, letter by letter, whose members are admins."),
        Setting("OIDC_RESPONDER_GROUPS", "list", "Groups whose members are responders."),
        Setting("OIDC_VIEWER_GROUPS", "list", "Groups whose members are viewers."),
        Setting(
            "OIDC_CONTACT",
            "str",
            "Whom somebody without a group is told to ask, as in *Ask …*.",
            default="an admin of this service",
        ),
        Setting(
            "LOG_FORMAT",
            "str",
            "One JSON object per line, or text.",
            told="`text` in local mode, else `json`",
            choices=("json", "text"),
        ),
        Setting(
            "LOG_LEVEL",
            "str",
            "The least level that is logged.",
            default="INFO",
            choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        ),
        Setting(
            "DRILL_SCHEDULE_HOURS",
            "int",
            "Hours from one fire drill to the next; the first begins at once. People are woken. `0`: none.",
            default=0,
        ),
        Setting(
            "RUNBOOK_URL_TEMPLATE",
            "str",
            "Where a service's runbook is, linked from each incident: an address with `{service}`, `{severity}` or "
            "`{id}` in it.",
        ),
        Setting(
            "TRACE_URL_TEMPLATE",
            "str",
            "Where a trace is shown, linked from each incident that has one: an address with `{trace_id}` in it, "
            "also `{service}`.",
        ),
        Setting("ANOMALIES_KEPT_DAYS", "int", "For how many days every single event is kept.", default=90),
        Setting(
            "EVENT_IDS_KEPT_DAYS",
            "int",
            "For how many days the same event sent again is recognised. Longer than its source can send again.",
            default=30,
        ),
    )
}


KINDS = {"str": "text", "int": "number", "bool": "yes or no", "list": "list, by commas"}


def table() -> str:
    """All settings as a table in Markdown."""
    lines = ["| Variable | Kind | Default | What it does |", "| --- | --- | --- | --- |"]
    for s in SETTINGS.values():
        kind = " or ".join(f"`{choice}`" for choice in s.choices) or KINDS[s.kind]
        default = s.default_in_words
        if s.needed:
            default = f"must be set ({default})"
        lines.append(f"| `{s.name}` | {kind} | {default} | {s.about} |")
    return "\n".join(lines) + "\n"
