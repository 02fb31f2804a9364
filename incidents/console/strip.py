"""The list's strip: what is wrong now, each with where to see more, and nothing else."""

from dataclasses import dataclass
from datetime import datetime

from django.urls import reverse

from incidents import pulses
from incidents.console.glance import Glance
from incidents.console.listing import Late
from platforms.catalog import PLATFORMS

SILENCE = {
    pulses.SWEEP: ("No worker is seen", ": nobody is told"),
    pulses.BROKER: ("No worker hears the broker", ": tickets may leave later"),
    pulses.BEAT: ("Beat is silent", ": nothing is checked or tidied up"),
}


@dataclass(frozen=True)
class Chip:
    """`since` stands between `words` and `rest`. `about` is told to who points at it."""

    to: str
    words: str
    since: datetime | None = None
    rest: str = ""
    about: str = ""


def chips(seen: Glance) -> list[Chip]:
    return [*_machinery(seen), *_late(seen.late), *_model(seen)]


def _machinery(seen: Glance) -> list[Chip]:
    overview = reverse("admin:index")
    return [Chip(overview, SILENCE[name][0], seen.silent[name], SILENCE[name][1]) for name in seen.silent]


def _late(late: Late) -> list[Chip]:
    chips = []
    for name, (count, since) in late.platforms.items():
        if name in PLATFORMS:
            many = f"{count:,}{'+' if late.more else ''} ticket{'' if count == 1 else 's'}"
            to = f"?view=undelivered&platform={name}"
            chips.append(Chip(to, f"{PLATFORMS[name].label}: {many} behind", since))
    return chips


def _model(seen: Glance) -> list[Chip]:
    if seen.model_error is None:
        return []
    to = f"{reverse('admin:configuration')}#llm"
    return [Chip(to, "Model unreachable: rules answer (Fallback)", about=seen.model_error)]
