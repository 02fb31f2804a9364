"""A process of the product that is warmed up once and forked for each try, and killed there at its n-th system call.

Starting Python and Django for each point would take most of the time. The forks share nothing with the tests but the
database and the network: a connection to either is only opened in a fork.

    python -m tests.forks    reads orders as lines of JSON, and answers each with a line
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import django

from ticketing import web
from ticketing.processes import ROOT

CALLS = ("connect", "sendto", "recvfrom")
STRACE = shutil.which("strace")
PATIENCE = 120.0  # seconds for one fork, from its first call to its end
PR_SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)


def strace_works() -> bool:
    if STRACE is None:
        return False
    tried = subprocess.run([STRACE, "-f", "-e", "trace=connect", "true"], capture_output=True, check=False)
    return tried.returncode == 0


@dataclass(frozen=True)
class Point:
    """A system call at which a process dies, before the call is carried out: the `number`-th of this name."""

    call: str
    number: int


@dataclass(frozen=True)
class End:
    """How a fork ended: whether it was killed, and what it called if it was only watched."""

    killed: bool
    calls: Counter[str]

    def points(self) -> list[Point]:
        return [Point(call, number + 1) for call in CALLS for number in range(self.calls[call])]


# --- In the tests -----------------------------------------------------------------------------------------------------


class Forks:
    """What the tests hold of the process. One fork at a time."""

    def __init__(self, database_url: str, *, networks: tuple[str, ...] = (), keep: tuple[int, ...] = ()) -> None:
        """`keep`: open files that the forks have too."""
        environment = {"DATABASE_URL": database_url, "EGRESS_ALLOWED_NETWORKS": ",".join(networks)}
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.forks"),
            cwd=ROOT,
            pass_fds=keep,
            env=os.environ | environment | {"DJANGO_SETTINGS_MODULE": "ticketing.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def work(self, platform: str, point: Point | None = None) -> End:
        """A worker makes every attempt that is due at a platform, and dies at the point; without one it is watched."""
        self._tell({"work": platform} | self._where(point))
        return self._end()

    @contextmanager
    def sleep(self, platform: str, code: str) -> Iterator[Callable[[], End]]:
        """A worker runs some Python first, then stops at once when it has claimed a ticket, like a machine that is
        suspended. What it yields wakes it and tells how it ended."""
        self._tell({"sleep": platform, "first": code})
        assert json.loads(self._process.stdout.readline()) == "asleep"
        ended: list[End] = []

        def wake() -> End:
            if not ended:
                self._tell("wake")
                ended.append(self._end())
            return ended[0]

        try:
            yield wake
        finally:
            wake()

    @contextmanager
    def serve(self, fd: int, thread: str, point: Point | None = None) -> Iterator[Callable[[], End]]:
        """A web process on a listening socket of which one `thread` is killed or watched: `loop` reads and writes,
        `handler` is the only one that handles requests. What it yields ends the process and tells how it ended."""
        self._tell({"serve": fd, "thread": thread} | self._where(point))
        assert json.loads(self._process.stdout.readline()) == "ready"
        ended: list[End] = []

        def end() -> End:
            if not ended:
                self._tell("stop")
                ended.append(self._end())
            return ended[0]

        try:
            yield end
        finally:
            end()

    def _where(self, point: Point | None) -> dict[str, object]:
        return {"call": point.call, "number": point.number} if point else {}

    def _tell(self, order: object) -> None:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _end(self) -> End:
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        told = json.loads(line)
        assert told["status"] in (0, -signal.SIGKILL), told
        return End(told["status"] != 0, Counter(told["calls"]))


# --- In the process ---------------------------------------------------------------------------------------------------


def main() -> None:
    for line in sys.stdin:
        match json.loads(line):
            case {"work": platform, **where}:
                child = _fork(lambda platform=platform: _work(platform))
                with _traced(child.pid, where) as calls:
                    child.go()
                    status = child.wait()
            case {"sleep": platform, "first": code}:
                claimed, claims = os.pipe()
                child = _fork(lambda platform=platform, code=code, claims=claims: _sleep(platform, code, claims))
                os.close(claims)
                child.go()
                os.read(claimed, 1)  # then it stops by itself: it may have been stopped before that, for a moment
                os.close(claimed)
                os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                print(json.dumps("asleep"), flush=True)
                sys.stdin.readline()  # wake
                os.kill(child.pid, signal.SIGCONT)
                status, calls = child.wait(), {}
            case {"serve": fd, "thread": thread, **where}:
                child = _fork(lambda fd=fd: _serve(fd))
                child.go()
                with _traced(_thread_of(child.pid, thread), where) as calls:
                    print(json.dumps("ready"), flush=True)
                    sys.stdin.readline()  # stop
                    child.end()
                    status = child.wait()
        print(json.dumps({"status": status, "calls": calls}), flush=True)


class _Child:
    def __init__(self, pid: int, gate: int) -> None:
        self.pid, self._gate = pid, gate

    def go(self) -> None:
        os.write(self._gate, b"!")
        os.close(self._gate)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGTERM)  # where it is dead already, it waits to be asked about

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return 1


def _fork(run: Callable[[], None]) -> _Child:
    """A child that runs once it may go. It ends without what Python does at an exit: that belongs to its parent."""
    listens, gate = os.pipe()
    pid = os.fork()
    if pid:
        os.close(listens)
        return _Child(pid, gate)
    status = 1
    try:
        os.close(gate)
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
        if os.read(listens, 1):
            run()
            status = 0
    finally:
        os._exit(status)


def _work(platform: str) -> None:
    while attempts.attempt_next(platform):
        pass


def _sleep(platform: str, code: str, claims: int) -> None:
    def stop() -> None:
        os.write(claims, b"!")
        os.kill(os.getpid(), signal.SIGSTOP)

    exec(code, {})
    attempts.attempt_next(platform, stop)


def _serve(fd: int) -> None:
    listener = web.socket.socket(fileno=fd)
    server = web.create(application, listener, body_limit=settings.REQUEST_BODY_LIMIT, threads=1)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.run()


def _thread_of(pid: int, name: str) -> int:
    """The number that the kernel has given to a thread of a web process, once it runs."""
    if name == "loop":
        return pid
    deadline = time.monotonic() + PATIENCE
    while True:
        others = [int(task) for task in os.listdir(f"/proc/{pid}/task") if int(task) != pid]
        if others:
            return min(others)
        assert time.monotonic() < deadline, "the web process has no thread that handles requests"
        time.sleep(0.002)


@contextmanager
def _traced(thread: int, where: dict) -> Iterator[Counter[str]]:
    """strace at one thread: counts its calls, and kills its process at the one that is named. The counts are there
    once the thread has ended."""
    calls: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile() as out:
        kill = ("-e", f"inject={where['call']}:signal=SIGKILL:when={where['number']}") if where else ()
        argv = (STRACE, "-o", out.name, "-e", f"trace={','.join(CALLS)}", *kill, "-p", str(thread))
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as strace:
            said = strace.stderr.readline()
            assert b"attached" in said, said
            drain = threading.Thread(target=strace.stderr.read, daemon=True)
            drain.start()
            try:
                yield calls
            finally:
                strace.wait(60)
        text = Path(out.name).read_text(errors="replace")
        calls.update(re.findall(rf"^(?:\d+ +)?({'|'.join(CALLS)})\(", text, re.MULTILINE))


if __name__ == "__main__":
    django.setup()

    from django.conf import settings

    from incidents.delivery import attempts
    from ticketing.wsgi import application

    main()
