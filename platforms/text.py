"""What every ticket says, as plain text, and how a text is made to fit. How a vendor marks text up is its module's.

Titles, descriptions, causes and notes come from logs, models and people: nothing here trusts them to be short,
printable or on one line.
"""

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC

from platforms.contract import Notice, Step

ELLIPSIS = "…"
PRODUCT = "Ticketing Agent"

Size = Callable[[str], int]

_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control characters, and what turns the reading direction or cannot be seen (overrides, byte order mark, tags).
_UNSHOWN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
_INVALID = re.compile("[\ud800-\udfff\ufffe\uffff]")
_LINK = re.compile(r"https?://[^\s<>\"|\\^`{}]+")

_MOVES = {"reopen": "reopened", "acknowledge": "acknowledged", "escalate": "escalated", "resolve": "resolved"}
_VALUE_LIMIT = 250
_SERVICES_LIMIT = 1000
_CAUSE_LIMIT = 8000
_NOTES_LIMIT = 4000


def clean(text: str) -> str:
    """The text with its lines kept, without what cannot be shown; lone surrogates become U+FFFD."""
    return _INVALID.sub("\ufffd", _UNSHOWN.sub("", _BREAKS.sub("\n", text))).strip()


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def units(text: str) -> int:
    """Length in UTF-16 units: what vendors on Java and JavaScript count. Never less than the number of characters."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def json_units(text: str) -> int:
    """Length within a JSON document, where quotes, backslashes and line ends take two."""
    return units(json.dumps(text, ensure_ascii=False)) - 2


def cut(text: str, limit: int, size: Size = len) -> str:
    """The text, or its longest beginning that fits into `limit` together with an ellipsis. Splits no character.

    `size` says how the vendor counts; it must be at least the number of characters and grow with the text.
    """
    if size(text) <= limit:
        return text
    low, high = 0, min(len(text), max(limit, 0))
    while low < high:
        middle = (low + high + 1) // 2
        if size(text[:middle] + ELLIPSIS) <= limit:
            low = middle
        else:
            high = middle - 1
    # A zero-width joiner at the end would tie the ellipsis to the emoji before it.
    return text[:low].rstrip(" \t\n\u200d") + ELLIPSIS


def title(notice: Notice) -> str:
    return one_line(notice.title) or f"Anomaly on {one_line(notice.service) or notice.incident_id}"


def headline(notice: Notice, limit: int, size: Size = units) -> str:
    """One line: the title, cut so that the incident's id still follows it."""
    tail = f" [{notice.incident_id}]"
    return cut(title(notice), limit - size(tail), size) + tail


def facts(notice: Notice) -> list[tuple[str, str]]:
    """Label and value, one line each, in the order in which a responder asks for them. At most nine; none is empty.

    Without the status, which a text that stays as it was written would soon tell wrongly.
    """
    rows = [
        ("Incident", notice.incident_id),
        ("Severity", notice.severity),
        ("Service", notice.service),
        ("Affected services", services(notice)),
        ("Anomaly score", f"{notice.score:g}"),
        ("Anomalies", str(notice.anomaly_count)),
        ("Opened", f"{notice.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
        ("Environment", notice.environment),
        ("Trace", notice.trace_id),
    ]
    limits = {"Affected services": _SERVICES_LIMIT}
    lines = ((label, cut(one_line(value), limits.get(label, _VALUE_LIMIT), units)) for label, value in rows)
    return [(label, value) for label, value in lines if value]


def status(notice: Notice) -> str:
    raised = notice.escalated and notice.status != "escalated"
    return f"{notice.status} (escalated)" if raised else notice.status


def services(notice: Notice, limit: int = _SERVICES_LIMIT - 20) -> str:
    """The affected services by commas; those that do not fit are counted."""
    names = [name for name in map(one_line, notice.affected_services) if name]
    shown: list[str] = []
    length = 0
    for name in names:
        name = cut(name, _VALUE_LIMIT, units)
        length += units(name) + 2
        if length > limit:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)


def cause_heading(notice: Notice) -> str:
    return "Root cause (fallback: found by rules, not by a model)" if notice.fallback else "Root cause"


def cause(notice: Notice) -> str:
    return cut(clean(notice.root_cause), _CAUSE_LIMIT, units)


def notes(notice: Notice) -> str:
    """What people said with their moves, one paragraph each, the latest kept when there is too much."""
    kept: list[str] = []
    room = _NOTES_LIMIT
    for note in reversed(notice.notes):
        line = cut(f"{one_line(note.actor) or 'somebody'}: {clean(note.text)}", _NOTES_LIMIT // 2, units)
        room -= units(line) + 1
        if room < 0:
            kept.append(ELLIPSIS)
            break
        kept.append(line)
    return "\n".join(reversed(kept))


def link(notice: Notice) -> str:
    """The incident in our console, or nothing where the address is not one that a person can safely click."""
    return notice.link if _LINK.fullmatch(notice.link) else ""


def previous_link(notice: Notice) -> str:
    return notice.previous_link if _LINK.fullmatch(notice.previous_link) else ""


def summary(notice: Notice, limit: int, size: Size = units) -> str:
    """The whole incident as plain text; when it must be cut, the description goes first, then notes and cause."""
    parts = [title(notice)]
    parts.append("\n".join(f"{label}: {value}" for label, value in facts(notice)))
    if link(notice):
        parts.append(f"Open the incident: {link(notice)}")
    if previous_link(notice):
        parts.append(f"Continues the closed record {previous_link(notice)}")
    if cause(notice):
        parts.append(f"{cause_heading(notice)}:\n{cause(notice)}")
    if notes(notice):
        parts.append(f"Notes:\n{notes(notice)}")
    if clean(notice.description):
        parts.append(f"Details:\n{clean(notice.description)}")
    return cut("\n\n".join(parts), limit, size)


def moves(notice: Notice, steps: Iterable[Step]) -> str:
    """One sentence for what happened: "Acknowledged, then escalated by user:anna." Empty where nothing moved."""
    latest = dict.fromkeys(reversed(tuple(steps)))  # each once, where it stood last
    words = [_MOVES[step] for step in reversed(latest) if step in _MOVES]
    if not words:
        return ""
    sentence = ", then ".join(words).capitalize()
    actor = cut(one_line(notice.actor), _VALUE_LIMIT, units)
    return f"{sentence} by {actor}." if actor else f"{sentence}."


def comment(notice: Notice, steps: tuple[Step, ...], limit: int, size: Size = units) -> str:
    """What `steps` add to a ticket that is already there, as plain text."""
    parts = [moves(notice, steps), notes(notice)]
    if "cause" in steps and cause(notice):
        parts.append(f"{cause_heading(notice)}:\n{cause(notice)}")
    said = "\n\n".join(part for part in parts if part)
    if not said or not link(notice):
        return cut(said, limit, size)
    tail = f"\n\n{notice.incident_id}: {link(notice)}"
    return cut(said, limit - size(tail), size) + tail
