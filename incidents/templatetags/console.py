"""How the console writes moments, people and addresses. Nothing here marks anything as safe."""

import re
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

from django import template
from django.utils import timezone

from incidents.models import Severity, Status
from platforms.catalog import PLATFORMS

register = template.Library()

SIGNS = {"critical": "◆", "high": "▲", "medium": "■", "low": "●"}
KINDS = {"key": "API key"}
FOLDED_LINES = 8
FOLDED_WIDTH = 100  # characters of a line, as wide as a page shows it


@register.filter
def age(moment: datetime | None) -> str:
    """`45s`, `6m`, `1h 4m`, `3d`: how long ago. The browser recomputes the same."""
    if moment is None:
        return ""
    return span((timezone.now() - moment).total_seconds())


def span(seconds: float) -> str:
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds}s"
    minutes, hours = seconds // 60, seconds // 3600
    if minutes < 60:
        return f"{minutes}m"
    if hours < 24:
        return f"{hours}h {minutes % 60}m" if minutes % 60 and hours < 10 else f"{hours}h"
    return f"{hours // 24}d"


@register.filter
def iso(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


@register.filter
def utc(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if moment else ""


@register.filter
def clock(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%H:%M:%S") if moment else ""


@register.filter
def who(actor: str) -> str:
    """`user:anna` is anna; a program is named as what it is."""
    kind, colon, name = actor.partition(":")
    if not colon:
        return actor
    return name if kind == "user" else f"{name} ({KINDS.get(kind, kind)})"


@register.filter
def sign(severity: str) -> str:
    """A shape for each severity, so that colour never tells it alone."""
    return SIGNS.get(severity, "")


@register.filter
def word(value: str) -> str:
    """A severity's, status's or platform's name for people."""
    if value in PLATFORMS:
        return PLATFORMS[value].label
    return dict(Severity.choices + Status.choices).get(value, value)


@register.filter
def web_address(address: str) -> str:
    """The address if a browser may follow it from our pages, else nothing."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return address if parts.scheme in ("http", "https") and parts.netloc and address.isprintable() else ""


@register.filter
def folded(text: str) -> tuple[str, str]:
    """What is shown of a text at once, about eight lines, and the rest. No rest is shorter than two lines."""
    room = FOLDED_LINES
    for match in re.finditer("[^\n]*\n?", text):
        taken = max(1, -(-len(match[0]) // FOLDED_WIDTH))
        if taken > room:
            cut = _after_word(text, match.start() + room * FOLDED_WIDTH)
            head, rest = text[:cut].rstrip("\n"), text[cut:].strip("\n")
            return (head, rest) if len(rest) > 2 * FOLDED_WIDTH or rest.count("\n") > 1 else (text, "")
        room -= taken
    return text, ""


def _after_word(text: str, place: int) -> int:
    """The end of the word at this place, where it ends soon."""
    end = re.compile(r"\s").search(text, place, place + 30)
    return end.end() if end and not text[place - 1].isspace() else place


@register.filter
def undo(ids: str) -> str:
    """The button that takes an act back says what it would reopen: others may be named beside it."""
    count = ids.count(",") + 1
    return f"Undo: reopen {ids}" if count == 1 else f"Undo: reopen these {count:,}"


@register.filter
def number(value: float) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


@register.simple_tag
def query(**said: str) -> str:
    return urlencode(said)


@register.simple_tag
def newer(question, found) -> str:
    return question.query(before=found.newer)


@register.simple_tag
def older(question, found) -> str:
    return question.query(after=found.older)


@register.simple_tag
def count(counts, name: str) -> int:
    return counts[name]
