"""Which parts of the machinery were seen lately, by their pulses: silence is not health."""

from collections.abc import Container
from datetime import timedelta

from django.db.models import Q, QuerySet
from django.db.models.functions import Substr

from incidents.models import Pulse, lease

SWEEP_SILENT = timedelta(seconds=15)
BEAT_SILENT = timedelta(seconds=60)
DEAF = timedelta(seconds=30)

SWEEP, HEARS, BEAT, BROKER = "sweep", "hears", "beat", "broker"
_KIND = Substr("name", 1, 5)  # of `sweep:…`, `hears:…` and `beat`
_SWEEP, _HEARS = Q(name__startswith=f"{SWEEP}:"), Q(name__startswith=f"{HEARS}:")


def lately() -> QuerySet:
    """Which of sweep, hears and beat were seen within the time that each may be silent: `kind`s, each once."""
    fresh = _SWEEP & _since(SWEEP_SILENT) | _HEARS & _since(DEAF) | Q(name=BEAT) & _since(BEAT_SILENT)
    return Pulse.objects.filter(fresh).order_by().annotate(kind=_KIND).values("kind").distinct()


def last_sweep() -> QuerySet:
    """The last pulse of the workers that sweep no more."""
    return Pulse.objects.filter(_SWEEP, ~_since(SWEEP_SILENT)).order_by("-at")[:1]


def silent(seen: Container[str]) -> list[str]:
    """What is missing where these kinds were seen lately: sweep, and beat or the broker that would carry it."""
    missing = [] if SWEEP in seen else [SWEEP]
    if BEAT not in seen:
        missing.append(BEAT if HEARS in seen or SWEEP not in seen else BROKER)
    return missing


def sweeping(ages: dict[str, timedelta]) -> int:
    """How many worker processes sweep, by the ages of all pulses."""
    return sum(name.startswith(f"{SWEEP}:") and age <= SWEEP_SILENT for name, age in ages.items())


def hearing(ages: dict[str, timedelta]) -> int:
    """How many of them hear what they send to themselves through the broker."""
    return sum(name.startswith(f"{HEARS}:") and age <= DEAF for name, age in ages.items())


def _since(span: timedelta) -> Q:
    return Q(at__gte=lease(-span.total_seconds()))
