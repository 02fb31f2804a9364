"""One supervisor per data directory, and nothing left over from one that was killed."""

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TextIO

ENDING_SECONDS = 12  # how long to wait for a supervisor that is on its way out


class Busy(Exception):
    """Another supervisor works in this directory. `pid` is its process, where it said so."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


class Claim:
    """The right to run in a directory, held while the process lives, and the record of what runs there."""

    def __init__(self, directory: Path) -> None:
        """Waits for one that is ending. Raises Busy while another holds it. Ends what a killed one left."""
        directory.mkdir(parents=True, exist_ok=True)
        self.record = directory / "run.json"
        self.lock = _locked(directory / "run.lock", self.record)
        for pid, started in _read(self.record).get("children", {}).values():
            _end_leftover(pid, started)
        self.note({})

    def note(self, pids: dict[str, int], *, stopping: bool = False) -> None:
        """Writes down who runs, whole or not at all."""
        children = {name: (pid, start_of(pid)) for name, pid in pids.items()}
        draft = self.record.with_suffix(".new")
        draft.write_text(json.dumps({"supervisor": os.getpid(), "stopping": stopping, "children": children}))
        draft.replace(self.record)


def _locked(path: Path, record: Path) -> TextIO:
    file = path.open("a")
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            other = _read(record)
            patience = ENDING_SECONDS if other.get("stopping") else 1
            if time.monotonic() - began > patience:
                file.close()
                raise Busy(other.get("supervisor")) from None
            time.sleep(0.05)


def _read(record: Path) -> dict:
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def start_of(pid: int) -> str | None:
    """When a process started, by the system's count: a later one with the same id has another. None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip() or None
    except ProcessLookupError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _end_leftover(pid: int, started: str | None) -> None:
    deadline = time.monotonic() + 5
    while started and start_of(pid) == started and time.monotonic() < deadline:
        try:
            os.killpg(pid, signal.SIGKILL)  # each of ours leads its own group
        except ProcessLookupError:
            pass
        time.sleep(0.02)
