"""What the environment says, checked once: it runs on a bare clone, and is refused with one line where it is unsafe."""

import ipaddress
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from environs import Env, EnvError

from ticketing.reference import SETTINGS

ROLES = ("viewer", "responder", "admin")
LOOPBACK_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

env = Env()


class Refused(SystemExit):
    """A setting that must not be run with. Prints one line and ends the process with status 78 (EX_CONFIG)."""

    def __init__(self, line: str) -> None:
        print(f"Refused to start: {line}", file=sys.stderr)
        super().__init__(78)


def text(name: str) -> str:
    """The variable `name`, which must be a documented one, as it stands."""
    return os.environ.get(SETTINGS[name].name, "").strip()


def read(name: str, default: object = None) -> object:
    """The variable `name`, an empty one being as good as none. `default`: where it is no constant."""
    setting = SETTINGS[name]
    if not text(name):
        return setting.default if default is None else default
    try:
        value = getattr(env, setting.kind)(name)
    except (EnvError, ValueError) as error:
        raise Refused(f"{name} is not a valid {setting.kind}.") from error
    if setting.choices and value not in setting.choices:
        raise Refused(f"{name} is one of {', '.join(setting.choices)}, not {value!r}.")
    return value


def whole(name: str, least: int, most: int, default: int | None = None) -> int:
    """A whole number within bounds."""
    value = read(name, default)
    if not least <= value <= most:
        raise Refused(f"{name} is a number from {least} to {most}, not {value}.")
    return value


def words(name: str, default: list[str]) -> list[str]:
    """A list written with commas; blanks are dropped."""
    return [word.strip() for word in text(name).split(",") if word.strip()] or default


def kept_secret(path: Path, name: str, local_mode: bool, make) -> str:
    """A secret made once in local mode and kept beside the data, readable by its owner alone."""
    try:
        if not path.exists():
            if not local_mode:
                raise Refused(f"set {name} (or LOCAL_MODE=1 on a laptop, which makes one in {path.parent}).")
            _keep(path, make())
        return path.read_text().strip()
    except OSError as error:
        raise Refused(f"DATA_DIR={path.parent} cannot be used: {error.strerror}.") from error


def _keep(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # whoever is first wins, whole
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def secret_key(data_dir: Path, local_mode: bool) -> str:
    key = text("SECRET_KEY")
    if not key:
        return kept_secret(data_dir / "secret_key", "SECRET_KEY", local_mode, lambda: secrets.token_urlsafe(48))
    if len(key) < 32 and not local_mode:
        raise Refused("SECRET_KEY must have 32 characters or more.")
    return key


def encryption_keys(data_dir: Path, local_mode: bool) -> list[str]:
    """Fernet keys, newest first."""
    keys = words("ENCRYPTION_KEYS", []) or [
        kept_secret(
            data_dir / "encryption_key", "ENCRYPTION_KEYS", local_mode, lambda: Fernet.generate_key().decode()
        )
    ]
    for position, key in enumerate(keys, 1):
        try:
            Fernet(key)
        except ValueError as error:
            raise Refused(f"ENCRYPTION_KEYS: key {position} is not a Fernet key (32 bytes, base64url).") from error
    return keys


def allowed_hosts(local_mode: bool) -> list[str]:
    hosts = words("ALLOWED_HOSTS", LOOPBACK_HOSTS if local_mode else [])
    if not hosts:
        raise Refused("set ALLOWED_HOSTS to the names this service is reached by, separated by commas.")
    if "*" in hosts and not local_mode:
        raise Refused("ALLOWED_HOSTS must name the hosts; * lets anybody choose them.")
    return hosts


@dataclass(frozen=True)
class SingleSignOn:
    """The OpenID provider that people sign in by, and which of its groups has which role here."""

    name: str
    issuer: str
    client_id: str
    client_secret: str
    scopes: str
    username_claim: str
    groups_claim: str
    groups: Mapping[str, frozenset[str]]  # by role
    contact: str


def single_sign_on(local_mode: bool, public_url: str) -> SingleSignOn | None:
    """As OIDC_* says; None where nothing of it is set."""
    given = [name for name in SETTINGS if name.startswith("OIDC_") and text(name)]
    if not given:
        return None
    for name in ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET"):
        if not text(name):
            raise Refused(f"set {name} too, or unset {given[0]}: single sign-on needs them all.")
    groups = {role: frozenset(words(f"OIDC_{role.upper()}_GROUPS", [])) for role in ROLES}
    if not any(groups.values()):
        raise Refused("set OIDC_ADMIN_GROUPS, OIDC_RESPONDER_GROUPS or OIDC_VIEWER_GROUPS: nobody could sign in.")
    issuer, scopes = urlsplit(text("OIDC_ISSUER")), str(read("OIDC_SCOPES"))
    if issuer.scheme not in ("http", "https") or not issuer.hostname or issuer.query or issuer.fragment:
        raise Refused("OIDC_ISSUER is not an address such as https://sso.example.com/realms/main.")
    if "openid" not in scopes.split():
        raise Refused("OIDC_SCOPES must have openid in it.")
    if not local_mode and "http" in (issuer.scheme, urlsplit(public_url).scheme):
        raise Refused("OIDC_ISSUER and PUBLIC_URL must begin with https://: who listens could sign in.")
    return SingleSignOn(
        name=str(read("OIDC_NAME")),
        issuer=text("OIDC_ISSUER"),
        client_id=text("OIDC_CLIENT_ID"),
        client_secret=text("OIDC_CLIENT_SECRET"),
        scopes=scopes,
        username_claim=str(read("OIDC_USERNAME_CLAIM")),
        groups_claim=str(read("OIDC_GROUPS_CLAIM")),
        groups=groups,
        contact=str(read("OIDC_CONTACT")),
    )


def networks(name: str) -> list[str]:
    found = words(name, [])
    for network in found:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError as error:
            raise Refused(f"{name}: {network!r} is not a network such as 10.0.0.0/8.") from error
    return found


def url_template(name: str, known: set[str]) -> str:
    """An address with places in it, such as https://runbooks.example/{service}."""
    template = text(name)
    if not template:
        return ""
    if not re.match(r"https?://[^/{}\s]+", template) or re.search(r"\s", template):
        raise Refused(f"{name} must begin with https:// (or http://) and a host, and have no blanks.")
    if unknown := set(re.findall(r"\{(.*?)\}", template)) - known:
        raise Refused(f"{name} knows {', '.join(sorted(known))}, not {', '.join(sorted(unknown))}.")
    return template


def listen_host(local_mode: bool) -> str:
    host = str(read("HOST"))
    if local_mode and host != "localhost" and not _is_loopback(host):
        raise Refused(f"LOCAL_MODE lets anybody on this machine act, so HOST must be a loopback address, not {host}.")
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
