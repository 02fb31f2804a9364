"""`/metrics`: how it stands, for Prometheus.

Levels are asked of the database when somebody asks us, in a fixed number of indexed queries: so they are true whichever
process answers and whatever has crashed. What can only be counted comes from `incidents.counters`. docs/metrics.md has
the table; a test compares it with `METRICS`.
"""

import itertools
from collections.abc import Iterator
from datetime import datetime, timedelta
from math import inf

from django.db.models import Count, Max, Min, Q
from django.db.models.functions import Coalesce, Now
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.views import APIView

from config.current import current
from incidents import drill, pulses
from incidents.counters import COUNTED, Metric
from incidents.delivery.attempts import BREAKER_OPENS_AT
from incidents.models import IN_FORCE, Counter, Incident, ModelHealth, PlatformPause, Pulse, Severity, Status, Ticket
from platforms.catalog import PLATFORMS
from ticketing import health

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HOUR = timedelta(hours=1)

EACH_PLATFORM = {"platform": tuple(PLATFORMS)}
ACTIVE = tuple(status.value for status in Status if status != Status.RESOLVED)


def _gauge(name: str, about: str, labels: dict | None = None) -> Metric:
    return Metric(f"ticketing_{name}", "gauge", about, labels or {})


READY = _gauge("ready", "1 where /ready says ok.")
SWEEPS = _gauge("worker_sweeps", "Worker processes that were seen sweeping within the last 15 s.")
HEARS = _gauge(
    "worker_hears",
    "Worker processes that heard the broker within the last 30 s. Fewer than sweep: it is away, or a worker is deaf.",
)
BEAT_AGE = _gauge("beat_age_seconds", "Since Celery beat was last seen working; +Inf where it never was.")
BEHIND = _gauge(
    "tickets_behind", "Tickets that do not show what they should and are not given up.", EACH_PLATFORM
)
BEHIND_AGE = _gauge("tickets_behind_oldest_seconds", "For how long the oldest of them has been behind.", EACH_PLATFORM)
DUE = _gauge("tickets_due", "Those of them that wait for a worker now: the queue.", EACH_PLATFORM)
DUE_AGE = _gauge(
    "tickets_due_oldest_seconds",
    "For how long the oldest of those has been due: a worker takes each within a second where all is well.",
    EACH_PLATFORM,
)
PARKED = _gauge("tickets_parked", "Tickets given up until somebody acts.", EACH_PLATFORM)
DIFFERING = _gauge(
    "tickets_differing", "Tickets seen to show something else at the platform than the incident is.", EACH_PLATFORM
)
PROVEN_AGE = _gauge(
    "platform_proven_seconds",
    "Since the platform last accepted a ticket, of a fire drill or of a real fault; +Inf where it never did.",
    EACH_PLATFORM,
)
ENABLED = _gauge("platform_enabled", "1 where the platform is enabled.", EACH_PLATFORM)
PAUSED = _gauge("platform_paused", "1 while the platform is left alone (429, or its breaker).", EACH_PLATFORM)
FAILURES = _gauge("platform_failures", "Failures in a row, over all of its tickets.", EACH_PLATFORM)
BREAKER = _gauge(
    "platform_breaker_open",
    f"1 from {BREAKER_OPENS_AT} failures in a row until a success: the platform is as good as down.",
    EACH_PLATFORM,
)
INCIDENTS = _gauge(
    "incidents_active",
    "Incidents not resolved, drills left out.",
    {"severity": tuple(Severity.values), "status": ACTIVE},
)
CAUSES = _gauge(
    "root_causes_last_hour",
    "Root causes of the incidents opened within an hour, by who gave them: the model, the rules, or the rules while "
    "the model is still awaited.",
    {"source": ("model", "rules", "awaiting")},
)
CAUSES_DUE = _gauge("causes_due", "Incidents that the model is still to be asked about.")
CAUSES_AGE = _gauge("causes_due_oldest_seconds", "For how long the oldest of them has been due.")
MODEL = _gauge("model_configured", "1 where a language model is configured.")
MODEL_WELL = _gauge("model_available", "1 where the last check reached the model.")
MODEL_AGE = _gauge("model_checked_seconds", "Since that check; +Inf where there was none.")

METRICS = (
    *(READY, SWEEPS, HEARS, BEAT_AGE, BEHIND, BEHIND_AGE, DUE, DUE_AGE, PARKED, DIFFERING, PROVEN_AGE),
    *(ENABLED, PAUSED, FAILURES, BREAKER),
    *(INCIDENTS, CAUSES, CAUSES_DUE, CAUSES_AGE, MODEL, MODEL_WELL, MODEL_AGE, *COUNTED),
)

Level = tuple[Metric, float, dict[str, str]]


class Metrics(APIView):
    role = "viewer"

    @extend_schema(
        operation_id="metrics",
        summary="How it stands, for Prometheus",
        responses={(200, "text/plain"): OpenApiTypes.STR},
        tags=["Health"],
    )
    def get(self, request):
        return HttpResponse(exposition(), content_type=CONTENT_TYPE)


def exposition() -> str:
    """Everything in Prometheus' text format. Raises what the database raises: no figure is better than a wrong one."""
    values = {metric.name: dict(_zeros(metric)) for metric in METRICS}
    for metric, value, labels in _levels():
        values[metric.name][metric.sample(**labels)] = value
    homes = {f"{m.name}{suffix}": m.name for m in COUNTED for suffix in ("", "_bucket", "_sum", "_count")}
    for sample, value in Counter.objects.values_list("name", "value"):
        if home := homes.get(sample.partition("{")[0]):  # an older version may have counted something else
            values[home][sample] = value
    lines = []
    for metric in METRICS:
        lines += [f"# HELP {metric.name} {metric.about}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{sample} {_number(value)}" for sample, value in values[metric.name].items()]
    return "\n".join(lines) + "\n"


def _zeros(metric: Metric) -> Iterator[tuple[str, float]]:
    """What is known to be possible is told before it happens, so that the first time is a step up from 0."""
    for combination in itertools.product(*metric.labels.values()):
        labels = dict(zip(metric.labels, combination, strict=True))
        for bound in metric.buckets:
            yield metric.sample("_bucket", **labels, le=bound), 0
        for suffix in ("_sum", "_count") if metric.buckets else ("",):
            yield metric.sample(suffix, **labels), 0


def _number(value: float) -> str:
    return "+Inf" if value == inf else f"{value:.15g}"


# --- Levels -----------------------------------------------------------------------------------------------------------


def _levels() -> Iterator[Level]:
    yield from _machinery()
    yield from _tickets()
    yield from _platforms()
    yield from _incidents()
    yield from _model()


def _machinery() -> Iterator[Level]:
    yield READY, not health.missing(), {}
    ages = {pulse.name: pulse.now - pulse.at for pulse in Pulse.objects.annotate(now=Now())}
    yield SWEEPS, pulses.sweeping(ages), {}
    yield HEARS, pulses.hearing(ages), {}
    yield BEAT_AGE, ages["beat"].total_seconds() if "beat" in ages else inf, {}


def _tickets() -> Iterator[Level]:
    waiting = Q(parked_at=None)
    # A ticket is due the moment it falls behind; what fails is due later each time, but remembers since when.
    since = Coalesce("failing_since", "doubtful_since", "due_at", "created_at")
    rows = Ticket.objects.behind().order_by().values("platform")
    rows = rows.annotate(
        behind=Count("pk", filter=waiting),
        due=Count("pk", filter=waiting & Q(due_at__lte=Now())),
        parked=Count("pk", filter=~waiting),
        since=Min(since, filter=waiting),
        due_since=Min("due_at", filter=Q(due_at__lte=Now())),
        now=Max(Now()),
    )
    for row in rows:
        labels = {"platform": row["platform"]}
        yield BEHIND, row["behind"], labels
        yield BEHIND_AGE, _age(row["since"], row["now"]), labels
        yield DUE, row["due"], labels
        yield DUE_AGE, _age(row["due_since"], row["now"]), labels
        yield PARKED, row["parked"], labels
    for platform, number in Ticket.objects.differing().by_platform().items():
        yield DIFFERING, number, {"platform": platform}


def _platforms() -> Iterator[Level]:
    for name, config in current().platforms.items():
        yield ENABLED, config.enabled, {"platform": name}
    proven, now = drill.last_proven(), timezone.now()
    for name in PLATFORMS:
        yield PROVEN_AGE, _age(at, now) if (at := proven.get(name)) else inf, {"platform": name}
    for pause in PlatformPause.objects.annotate(in_force=IN_FORCE):
        labels = {"platform": pause.platform}
        yield PAUSED, pause.in_force, labels
        yield FAILURES, pause.failures, labels
        yield BREAKER, pause.failures >= BREAKER_OPENS_AT, labels


def _incidents() -> Iterator[Level]:
    active = Incident.objects.active().real().order_by().values("severity", "status")
    for row in active.annotate(number=Count("pk")):
        yield INCIDENTS, row["number"], {"severity": row["severity"], "status": row["status"]}
    awaiting = Q(fallback=True, model_due_at__isnull=False)
    causes = Incident.objects.real().filter(created_at__gte=timezone.now() - HOUR).aggregate(
        model=Count("pk", filter=Q(fallback=False)),
        awaiting=Count("pk", filter=awaiting),
        rules=Count("pk", filter=Q(fallback=True) & ~awaiting),
    )
    for source, number in causes.items():
        yield CAUSES, number, {"source": source}
    due = Incident.objects.filter(model_due_at__isnull=False)
    due = due.aggregate(number=Count("pk"), since=Min("model_due_at"), now=Max(Now()))
    yield CAUSES_DUE, due["number"], {}
    yield CAUSES_AGE, _age(due["since"], due["now"]), {}


def _model() -> Iterator[Level]:
    yield MODEL, current().llm.configured, {}
    seen = ModelHealth.objects.annotate(now=Now()).first()
    yield MODEL_WELL, bool(seen and seen.available), {}
    yield MODEL_AGE, _age(seen.checked_at, seen.now) if seen else inf, {}


def _age(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since else 0.0


def table() -> str:
    """What there is, as a table in Markdown."""
    lines = ["| Metric | Type | Labels | What it says |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.about} |")
    return "\n".join(lines) + "\n"
