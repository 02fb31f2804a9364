"""Durations as operators write them: a whole number and a unit, such as `90s`, `15m`, `2h` or `1d`."""

import re
from datetime import timedelta

SHORTEST = timedelta(seconds=1)
LONGEST = timedelta(days=30)

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_WRITTEN = re.compile(r"([0-9]{1,7})([smhd])", re.ASCII)
_ADVICE = "write a whole number and a unit, such as 90s, 15m, 2h or 1d"


def parse(text: object) -> timedelta:
    """The duration a text stands for, from 1 second to 30 days. Raises ValueError with a text for people."""
    if not isinstance(text, str):
        raise ValueError(f"must be a text: {_ADVICE}")
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ValueError(f"is not a duration: {_ADVICE}")
    duration = timedelta(seconds=int(written[1]) * _UNITS[written[2]])
    if not SHORTEST <= duration <= LONGEST:
        raise ValueError("must be between 1s and 30d")
    return duration


def text(duration: timedelta) -> str:
    """The shortest exact way to write a duration: `1d`, not `24h`. Fractions of a second are left off."""
    seconds = int(duration.total_seconds())
    unit, size = next((unit, size) for unit, size in _UNITS.items() if seconds % size == 0)
    return f"{seconds // size}{unit}"
