"""What several processes say, line by line on one terminal."""

import os
import select
import selectors
from collections import deque
from collections.abc import Iterable

COLOURS = {"broker": 35, "web": 32, "worker": 36, "beat": 33, "up": 1}
PENDING_BYTES = 1_000_000


class Output:
    """Everybody's lines, each with its author. A terminal that is held up or gone holds up nobody here."""

    def __init__(self, fd: int, names: Iterable[str]) -> None:
        self.fd = fd
        self.coloured = os.isatty(fd) and "NO_COLOR" not in os.environ
        self.width = max(map(len, names), default=0)
        self.pending: deque[bytes] = deque()
        self.size = 0
        self.dropped = 0
        self.gone = False
        self.poll = selectors.PollSelector()
        self.poll.register(fd, selectors.EVENT_WRITE)

    def line(self, name: str, text: str) -> None:
        """Shows it as soon as the terminal takes it."""
        author = f"{name:{self.width}} |"
        if self.coloured:
            author = f"\x1b[{COLOURS.get(name, 0)}m{author}\x1b[0m"
        self._add(f"{author} {text}\n")
        self.flush()

    def text(self, text: str) -> None:
        self._add(text)
        self.flush()

    def _add(self, text: str) -> None:
        if self.size > PENDING_BYTES:
            self.dropped += 1
            return
        if self.dropped:
            text = f"({self.dropped} lines were dropped here: nobody read them)\n{text}"
            self.dropped = 0
        data = text.encode(errors="replace")
        self.pending.append(data)
        self.size += len(data)

    def flush(self, seconds: float = 0) -> None:
        """Writes what can be written within `seconds`."""
        while self.pending and not self.gone and self.poll.select(seconds):
            # A pipe that is writable takes so much without blocking.
            piece = self.pending[0][: select.PIPE_BUF]
            try:
                written = os.write(self.fd, piece)
            except OSError:
                self.gone = True  # whoever read has left
                break
            self.size -= written
            rest = self.pending.popleft()[written:]
            if rest:
                self.pending.appendleft(rest)
        if self.gone:
            self.pending.clear()
            self.size = 0
