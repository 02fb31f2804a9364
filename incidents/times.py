"""How a moment is written for the world: RFC 3339 in UTC, whole seconds, as in `2024-03-01T15:30:00Z`."""

from datetime import UTC, datetime
from typing import overload


@overload
def timestamp(moment: datetime) -> str: ...
@overload
def timestamp(moment: None) -> None: ...
def timestamp(moment: datetime | None) -> str | None:
    """Fractions are cut off, never rounded up, so that nothing is written before it happened. No zone means UTC."""
    if moment is None:
        return None
    if moment.tzinfo is not None and moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds")[:19] + "Z"
