"""What the environment says, checked once: it runs on a bare clone, and is refused with one line where it is unsafe."""

import ipaddress
import os
import re
import secrets
import sys
from pathlib import Path

from cryptography.fernet import Fernet
from environs import Env, EnvError

from ticketing.reference import SETTINGS

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
