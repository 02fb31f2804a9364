"""How many incidents the last days' anomalies would have opened under other settings, by the rules of the intake.

Counted from what is stored, those below the score too. Nothing is changed, and nothing is locked.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.utils import timezone

from incidents.intake import Siblings
from incidents.models import Anomaly, Status

PERIOD = timedelta(days=7)
MOST_READ = 100_000  # a person waits for the answer


class Heard(NamedTuple):
    """An anomaly, as far as the rules ask."""

    service: str
    severity: str
    at: datetime
    score: float


@dataclass
class _Draft:
    """An incident that would have been opened, as far as the rules ask. It is never resolved."""

    first_anomaly_at: datetime
    last_anomaly_at: datetime
    status: str = Status.OPEN


@dataclass(frozen=True)
class Rehearsal:
    """How many incidents would have been opened, by severity: with the settings as they are, and with others.

    `since`: from when on it was counted, later than the period's beginning where there was too much to read.
    """

    now: Counter[str]
    then: Counter[str]
    since: datetime
    cut: bool


def fold(heard: Iterable[Heard], minimum_score: float, window: timedelta) -> Counter[str]:
    """How many incidents these anomalies open, by severity, in the order in which they came."""
    faults: dict[tuple[str, str], Siblings] = {}
    opened: Counter[str] = Counter()
    for service, severity, at, score in heard:
        if score < minimum_score:
            continue
        siblings = faults.get((service, severity))
        if siblings is None:
            siblings = faults[service, severity] = Siblings(window)
        incident = siblings.match(at)
        if incident:
            siblings.widen(incident, at)
        else:
            siblings.add(_Draft(at, at))
            opened[severity] += 1
    return opened


def rehearse(
    *, before: tuple[float, timedelta], after: tuple[float, timedelta], most: int = MOST_READ
) -> Rehearsal:
    """Folds what came in the last seven days twice: by the score and window of `before`, and of `after`.

    In one query, of the newest `most` anomalies.
    """
    begin = timezone.now() - PERIOD
    columns = ("service", "severity", "at", "score", "received_at")
    rows = list(
        Anomaly.objects.filter(received_at__gte=begin)
        .order_by("-received_at", "-id")
        .values_list(*columns)[: most + 1]
    )
    cut = len(rows) > most
    del rows[most:]
    since = rows[-1][-1] if cut else begin
    rows.reverse()
    heard = [Heard(*row[:-1]) for row in rows]
    now_opens = fold(heard, *before)
    return Rehearsal(now_opens, now_opens if after == before else fold(heard, *after), since, cut)
