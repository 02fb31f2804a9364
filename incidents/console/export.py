"""What leaves the console as text: the list for a spreadsheet, and an incident for a chat or a report.

Neither holds anything that a spreadsheet would run, or that a reader of Markdown would load.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from django.conf import settings
from django.db.models import QuerySet

from incidents.console.page import Trail
from incidents.models import Incident
from incidents.times import timestamp

CHUNK = 1000
HEAD = (
    *("id", "title", "severity", "status", "service", "anomalyCount", "anomalyScore", "createdAt", "updatedAt"),
    *("acknowledgedAt", "acknowledgedBy", "resolvedAt", "resolvedBy", "platforms", "rootCause"),
)
# What a terminal would obey, and what would turn the order of the text behind it.
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What makes a spreadsheet take a text for a formula (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def lines(incidents: QuerySet[Incident]) -> Iterator[str]:
    """The file, line by line, in flat memory. The first row is read at once, while the answer can still be a 503."""
    rows = incidents.defer("evidence", "description").iterator(chunk_size=CHUNK)
    first = next(rows, None)
    found = chain([first], rows) if first is not None else iter(())
    return chain([_line(HEAD)], (_line(_cells(incident)) for incident in found))


def _cells(incident: Incident) -> Iterator[object]:
    yield from (incident.pk, _text(incident.title), incident.severity, incident.status, _text(incident.service))
    yield from (incident.anomaly_count, incident.anomaly_score)
    yield from (timestamp(incident.created_at), timestamp(incident.updated_at))
    yield from (timestamp(incident.acknowledged_at), _text(incident.acknowledged_by))
    yield from (timestamp(incident.resolved_at), _text(incident.resolved_by))
    yield from (" ".join(incident.platforms), _text(incident.root_cause))


def _seen(text: str) -> str:
    return UNSEEN.sub("\ufffd", text)


def _text(text: str) -> str:
    text = _seen(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def _line(cells: Iterable[object]) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_NONNUMERIC).writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


# --- One incident -----------------------------------------------------------------------------------------------------

MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~:@-])")


def markdown(known: Trail) -> str:
    """The incident in Markdown. What others wrote is fenced or escaped: no image, link or mention of theirs."""
    i = known.incident
    facts = [
        ("Incident", f"[{i.pk}]({settings.PUBLIC_URL}/i/{i.pk})"),
        ("Severity", i.severity),
        ("Status", i.status + (f" by {_plain(by)}" if (by := getattr(i, f"{i.status}_by", "")) else "")),
        ("Service", _plain(i.service)),
        ("Opened", timestamp(i.created_at)),
        ("Anomalies", f"{i.anomaly_count:,}, last {timestamp(i.last_anomaly_at)}"),
        *((f"Ticket at {line.label}", _plain(f"{line.ticket.remote_id} {line.state.words}")) for line in known.lines),
    ]
    cause = "rules" if i.fallback else _plain(i.cause_model)
    story = [
        f"- {timestamp(one.at)} {_plain(one.action)}" + (f" by {_plain(one.actor)}" if one.actor else "")
        for one in reversed(known.timeline)
    ]
    parts = [f"## {_plain(i.title)}", "\n".join(f"- **{name}**: {value}" for name, value in facts)]
    parts += [f"### Root cause ({cause})", _fenced(i.root_cause), "### Timeline", "\n".join(story)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return MARKUP.sub(r"\\\1", " ".join(_seen(text).split()))


def _fenced(text: str) -> str:
    """In a fence longer than any within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{_seen(text)}\n{fence}"
