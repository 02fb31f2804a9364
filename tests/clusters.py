"""A PostgreSQL cluster of a test's own, that is stopped and killed, copied to a standby, and runs out of space."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from tests.engines import postgres_programs
from tests.ports import free_port
from ticketing.supervisor import end_with_parent

# What was committed survives the server, if not a power cut.
SETTINGS = (
    *("fsync=off", "full_page_writes=off", "max_connections=100", "shared_buffers=32MB"),
    *("min_wal_size=32MB", "max_wal_size=64MB", "restart_after_crash=on"),
)
READY_SECONDS = 120
END = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}


class Cluster:
    """Made in `folder`, an empty one; `data` and `wal` may lie on other volumes. Begins stopped."""

    def __init__(self, folder: Path, *, data: Path | None = None, wal: Path | None = None) -> None:
        self.folder = folder
        folder.chmod(0o711)
        self.data = data or folder / "data"
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.programs, self.who = postgres_programs(folder)
        self.wal = ("-X", str(wal), "--wal-segsize=1") if wal else ()
        self.server: subprocess.Popen | None = None

    def create(self) -> "Cluster":
        how = ("-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C", *self.wal)
        self.run("initdb", "-D", str(self.data), *how)
        return self.start()

    def run(self, program: str, *words: str) -> None:
        subprocess.run([self.programs / program, *words], check=True, capture_output=True, **self.who)

    def start(self) -> "Cluster":
        """Until it takes connections. Whoever was killed leaves backends behind, which must end first."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self.server is None or self.server.poll() is not None:
                self._begin()
            if self.is_up():
                return self
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def _begin(self) -> None:
        parent = os.getpid()
        options = (*SETTINGS, f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=")
        with (self.folder / "log").open("a") as log:
            self.server = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, *(word for each in options for word in ("-c", each))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(parent, signal.SIGQUIT),
                **self.who,
            )

    def end(self, how: str = "immediate") -> None:
        """`how`: as pg_ctl calls it, or kill: the postmaster alone, by SIGKILL."""
        if self.server and self.server.poll() is None:
            self.server.send_signal(END[how])
            self.server.wait(READY_SECONDS)

    def is_up(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def execute(self, *statements: str) -> list[tuple]:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as session:
            for statement in statements:
                cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def standby(self, folder: Path) -> "Cluster":
        """A server that follows this one. What is committed from now on is on both."""
        folder.mkdir()
        other = Cluster(folder)
        primary = f"host=127.0.0.1 port={self.port} user=postgres"
        other.run("pg_basebackup", "-d", primary, "-D", str(other.data), "-R", "-X", "stream", "-c", "fast")
        other.start()
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        return other


class Volume:
    """A small file system in memory, mounted until `close`. Raises OSError where this may not be done."""

    def __init__(self, path: Path, megabytes: int, owner: int) -> None:
        path.mkdir()
        self.path = path
        if shutil.which("mount") is None or os.getuid() != 0:
            raise PermissionError("only root mounts")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], capture_output=True)
        if done.returncode:
            raise PermissionError(done.stderr.decode())
        os.chown(path, owner, owner)

    def fill(self, but: int = 0) -> None:
        """All its space, but for so many bytes."""
        with (self.path / "filler").open("ab") as filler:
            block = 65536
            with contextlib.suppress(OSError):
                while self.free() > but:
                    filler.write(bytes(min(block, max(4096, self.free() - but))))
                    filler.flush()

    def free(self) -> int:
        space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize

    def make_room(self) -> None:
        (self.path / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=False)
