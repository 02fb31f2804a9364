"""The list as a file for a spreadsheet: streamed, quoted, and without anything that a spreadsheet would run."""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain

from django.db.models import QuerySet

from incidents.models import Incident
from incidents.times import timestamp

CHUNK = 1000
HEAD = (
    *("id", "title", "severity", "status", "service", "anomalyCount", "anomalyScore", "createdAt", "updatedAt"),
    *("acknowledgedAt", "acknowledgedBy", "resolvedAt", "resolvedBy", "platforms", "rootCause"),
)
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


def _text(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _line(cells: Iterable[object]) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_NONNUMERIC).writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()
