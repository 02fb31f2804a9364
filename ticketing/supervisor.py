"""Keeps a set of processes running, and leaves none behind: however it ends, they end with it."""

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ticketing.claim import Claim
from ticketing.processes import ROOT, Process
from ticketing.terminal import Output

KILL_SECONDS = 8  # from the request to end until force
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # before a process that died is started again
STEADY_SECONDS = 10  # one that lived this long is started again after the first pause
READY_SECONDS = 5  # the others start without a broker that takes longer: they work without it
LINE_BYTES = 65536

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, number: int) -> None:
    """Lets the system send this process a signal the moment `parent` is gone, even by kill -9. Linux only."""
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it went before we could ask
            os.kill(os.getpid(), number)


class Child:
    """One of the processes, from start to start."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.popen: subprocess.Popen[bytes] | None = None
        self.due = 0.0  # by the monotonic clock
        self.began = 0.0
        self.pause = FIRST_PAUSE
        self.rest = b""  # of a line that is not finished
        self.silent = True  # nothing more can come

    def start(self) -> None:
        parent = os.getpid()
        self.began = time.monotonic()
        self.popen = subprocess.Popen(
            self.process.argv,
            cwd=ROOT,
            env={**os.environ, **self.process.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self.process.keep,
            start_new_session=True,  # so that Ctrl-C comes to the supervisor alone, and a group can be ended whole
            preexec_fn=lambda: end_with_parent(parent, signal.SIGKILL),
        )
        self.silent = False
        os.set_blocking(self.popen.stdout.fileno(), False)

    def signal(self, number: int) -> None:
        if self.popen:
            try:
                os.killpg(self.popen.pid, number)
            except ProcessLookupError:
                pass

    def lines(self) -> list[str]:
        """What it has said since the last time."""
        try:
            data = os.read(self.popen.stdout.fileno(), LINE_BYTES)
        except BlockingIOError:
            return []
        self.silent = not data
        *whole, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LINE_BYTES or not data and self.rest:
            whole, self.rest = [*whole, self.rest], b""
        return [line.decode(errors="replace").rstrip() for line in whole]

    def ended(self) -> tuple[str, float]:
        """How it ended, in words, and after how many seconds it is due again."""
        status = self.popen.wait()
        self.popen.stdout.close()
        self.popen = None
        now = time.monotonic()
        pause = FIRST_PAUSE if now - self.began > STEADY_SECONDS else self.pause
        self.due = now + pause
        self.pause = min(2 * pause, LONGEST_PAUSE)
        return (f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"), pause


class Supervisor:
    def __init__(self, processes: Sequence[Process], *, claim: Claim, output: Output) -> None:
        self.children = [Child(process) for process in processes]
        self.claim = claim
        self.output = output
        self.selector = selectors.DefaultSelector()
        self.began = time.monotonic()
        self.opened = False  # the others may start
        self.asked_to_end: float | None = None
        self.closing = False  # those are asked, too, on whom the others lean
        # What else is looked at: each says in how many seconds it wants to be called again, or None for never.
        self.checks: list[Callable[[], float | None]] = []
        self.next_check = 0.0

    def run(self) -> None:
        """Returns when everything has ended, after SIGTERM, SIGINT or SIGHUP."""
        self._listen_to_signals()
        while self.asked_to_end is None or any(child.popen for child in self.children):
            self._start_due()
            for key, _ in self.selector.select(self._patience()):
                key.data()
            self._reap()
            if self.asked_to_end is not None:
                self._end()
            self._check()
            self.output.flush()
        self.claim.note({})

    def stop(self) -> None:
        """Asks all to end, those last on which the others lean."""
        if self.asked_to_end is not None:
            return
        self.asked_to_end = time.monotonic()
        self.claim.note(self._pids(), stopping=True)
        for child in self.children:
            if not child.process.ready:
                child.signal(signal.SIGTERM)

    def _listen_to_signals(self) -> None:
        """Signals become bytes in a socket, so that one place waits for all there is to wait for."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: None)
        self.writer = writer
        self.selector.register(reader, selectors.EVENT_READ, lambda: self._signalled(reader.recv(4096)))

    def _signalled(self, numbers: bytes) -> None:
        if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}.isdisjoint(numbers):
            return
        if self.asked_to_end is None:
            self.output.line("up", "ending")
            self.stop()
        elif signal.SIGINT in numbers and time.monotonic() - self.asked_to_end > 1:
            self.asked_to_end = float("-inf")  # somebody pressed Ctrl-C once more

    def _patience(self) -> float:
        if not self.opened or self.output.pending or self.asked_to_end is not None:
            return 0.02
        soon = [child.due - time.monotonic() for child in self.children if not child.popen]
        return max(0.0, min([self.next_check, *soon]))

    def _start_due(self) -> None:
        if self.asked_to_end is not None:
            return
        started = False
        for child in self.children:
            if not child.popen and child.due <= time.monotonic() and (self._open() or child.process.ready):
                started = self._start(child) or started
        if started:
            self.claim.note(self._pids())

    def _open(self) -> bool:
        """Do those listen on whom the others lean?"""
        if not self.opened:
            waited = time.monotonic() - self.began > READY_SECONDS
            self.opened = waited or all(_listens(c.process.ready) for c in self.children if c.process.ready)
        return self.opened

    def _start(self, child: Child) -> bool:
        try:
            child.start()
        except OSError as error:
            self.output.line("up", f"{child.process.name} cannot be started: {error}")
            child.due = time.monotonic() + LONGEST_PAUSE
            return False
        self.selector.register(child.popen.stdout, selectors.EVENT_READ, lambda: self._show(child))
        return True

    def _show(self, child: Child) -> None:
        for line in filter(None, child.lines()):
            self.output.line(child.process.name, line)
        if child.silent:
            self.selector.unregister(child.popen.stdout)

    def _reap(self) -> None:
        for child in self.children:
            if not child.popen or child.popen.poll() is None:
                continue
            if not child.silent:
                self._show(child)
            if not child.silent:
                self.selector.unregister(child.popen.stdout)
            child.signal(signal.SIGKILL)  # what it may have started itself
            how, pause = child.ended()
            if self.asked_to_end is None:
                self.output.line("up", f"{child.process.name} {how}; it is started again in {pause:.1f} s")

    def _end(self) -> None:
        """After the request: those on whom others lean, once these are gone; and force, once time is up."""
        if not self.closing and not any(child.popen for child in self.children if not child.process.ready):
            self.closing = True
            for child in self.children:
                child.signal(signal.SIGTERM)
        if time.monotonic() - self.asked_to_end > KILL_SECONDS:
            for child in self.children:
                child.signal(signal.SIGKILL)

    def _check(self) -> None:
        again = [(check, check()) for check in self.checks]
        self.checks = [check for check, seconds in again if seconds is not None]
        self.next_check = min([1.0, *(seconds for _, seconds in again if seconds is not None)])

    def _pids(self) -> dict[str, int]:
        return {child.process.name: child.popen.pid for child in self.children if child.popen}


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
