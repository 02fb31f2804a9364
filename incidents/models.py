"""Incidents, their anomalies and their tickets, as stored. Rules are in `intake`, `lifecycle` and `delivery`."""

import secrets
from datetime import timedelta
from typing import Self

from django.db import models
from django.db.models import Case, ExpressionWrapper, F, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Now
from django.utils import timezone

from config.models import PlatformState, PlatformVersion


class Severity(models.TextChoices):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


SEVERITY_RANK = {severity.value: rank for rank, severity in enumerate(Severity)}  # 0 is the most urgent


class Status(models.TextChoices):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


LARGEST_FLOAT = 1.7976931348623157e308


def new_token() -> str:
    """Makes a remote identity unlike any other, after a restored backup and in other installations too."""
    return secrets.token_hex(5)


class IncidentQuerySet(models.QuerySet):
    def newest_first(self) -> Self:
        return self.order_by("-created_at", "-number")

    def by_urgency(self) -> Self:
        return self.annotate(rank=severity_rank()).order_by("rank", "-created_at", "-number")

    def active(self) -> Self:
        return self.exclude(status=Status.RESOLVED)

    def real(self) -> Self:
        """All but drills."""
        return self.filter(drill=False)

    def awaiting_model(self) -> Self:
        """Those whose cause the model should still be asked for, and which no worker holds."""
        return self.filter(model_due_at__lte=Now()).filter(Q(model_lease_until=None) | Q(model_lease_until__lt=Now()))


def severity_rank() -> Case:
    return Case(
        *(When(severity=severity, then=Value(rank)) for severity, rank in SEVERITY_RANK.items()),
        output_field=models.SmallIntegerField(),
    )


class Incident(models.Model):
    """One fault of one service, from its first anomaly to resolved."""

    id = models.CharField(primary_key=True, max_length=40)  # inc-YYYYMMDD-NNN
    number = models.PositiveIntegerField()  # NNN: orders incidents of one instant
    token = models.CharField(max_length=20, default=new_token)
    title = models.CharField(max_length=500)
    description = models.TextField(blank=True)
    service = models.CharField(max_length=200)
    severity = models.CharField(max_length=10, choices=Severity.choices)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.OPEN)
    platforms = models.JSONField(default=list)
    affected_services = models.JSONField(default=list)
    trace_id = models.CharField(max_length=200, blank=True)
    environment = models.CharField(max_length=200, blank=True)
    tenant_id = models.CharField(max_length=200, blank=True)
    evidence = models.JSONField(default=dict)

    anomaly_score = models.FloatField()  # the highest seen
    anomaly_count = models.PositiveIntegerField(default=1)
    first_anomaly_at = models.DateTimeField()
    last_anomaly_at = models.DateTimeField()

    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=200, blank=True)
    escalated_at = models.DateTimeField(null=True)
    escalated_by = models.CharField(max_length=200, blank=True)
    escalated_to = models.JSONField(default=list)
    resolved_at = models.DateTimeField(null=True)
    resolved_by = models.CharField(max_length=200, blank=True)
    reopened_at = models.DateTimeField(null=True)
    reopened_by = models.CharField(max_length=200, blank=True)

    root_cause = models.TextField(blank=True)
    fallback = models.BooleanField(default=True)  # the rules' answer stands
    # The kind of fault the rules' answer points to, `unknown` or `bare`; blank: it is not bettered.
    cause_category = models.CharField(max_length=30, blank=True)
    cause_at = models.DateTimeField()
    cause_model = models.CharField(max_length=100, blank=True)
    cause_seconds = models.FloatField(null=True)  # that the model took to answer
    cause_error = models.CharField(max_length=500, blank=True)  # why the model's answer is not there
    model_due_at = models.DateTimeField(null=True)  # when the model is to be asked; null: nothing to ask
    model_lease_until = models.DateTimeField(null=True)
    model_claim = models.PositiveIntegerField(default=0)
    model_attempts = models.PositiveSmallIntegerField(default=0)
    model_asked_again_at = models.DateTimeField(null=True)  # by a person

    drill = models.BooleanField(default=False)  # nothing is wrong: it proves the way to the platforms

    objects = IncidentQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(severity__in=Severity.values), name="incident_severity_known"),
            models.CheckConstraint(condition=Q(status__in=Status.values), name="incident_status_known"),
            # NaN and infinity can be stored and then break every list that holds them.
            models.CheckConstraint(
                condition=Q(anomaly_score__gte=0, anomaly_score__lte=LARGEST_FLOAT), name="incident_score_finite"
            ),
            models.CheckConstraint(condition=Q(anomaly_count__gte=1), name="incident_has_an_anomaly"),
            models.CheckConstraint(
                condition=Q(first_anomaly_at__lte=F("last_anomaly_at")), name="incident_span_ordered"
            ),
        ]
        indexes = [
            # With what the overview counts by hours, so that it need not look at the rows.
            models.Index(fields=["-created_at", "-number", "severity", "drill"], name="incident_newest"),
            models.Index(fields=["service", "severity", "last_anomaly_at"], name="incident_to_join"),
            # The order in which they are worked on, as `by_urgency` asks for it.
            models.Index(
                severity_rank(),
                F("created_at").desc(),
                F("number").desc(),
                name="incident_by_urgency",
                condition=~Q(status=Status.RESOLVED),
            ),
            # How many there are of each kind, without a look at the rows themselves. SQLite would look for `drill`,
            # although the condition tells it.
            models.Index(
                fields=["status", "severity", "created_at", "drill"],
                name="incident_active",
                condition=~Q(status=Status.RESOLVED) & Q(drill=False),
            ),
            models.Index(fields=["model_due_at"], name="incident_model_due", condition=Q(model_due_at__isnull=False)),
            models.Index(fields=["-created_at"], name="incident_drill", condition=Q(drill=True)),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def subject(self) -> str:
        """Its name in the audit."""
        return subject(self.id)


def subject(incident_id: str) -> str:
    return f"incident:{incident_id}"


class DayCounter(models.Model):
    """The last number given to an incident of a UTC day."""

    day = models.DateField(primary_key=True)
    last = models.PositiveIntegerField(default=0)


class DedupLock(models.Model):
    """Whoever decides about a service's anomalies of one severity holds this row."""

    service = models.CharField(max_length=200)
    severity = models.CharField(max_length=10)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["service", "severity"], name="one_lock_per_fault")]


class SeenEvent(models.Model):
    """An event id that was taken in: the same event again has no effect. Outlives partitions of the anomalies."""

    event_id = models.CharField(primary_key=True, max_length=300)
    seen_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["seen_at"], name="seen_event_age")]


class InboundEvent(models.Model):
    """An event of a platform's webhook that was taken in: the same again, or the same sent again, has no effect."""

    platform = models.CharField(max_length=20)
    event = models.CharField(max_length=200)
    seen_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["platform", "event"], name="inbound_event_once")]
        indexes = [models.Index(fields=["seen_at"], name="inbound_event_age")]


class Anomaly(models.Model):
    """One accepted event, those below the score too (they have no incident)."""

    incident = models.ForeignKey(Incident, null=True, on_delete=models.CASCADE, related_name="anomalies")
    event_id = models.CharField(max_length=300, blank=True)
    service = models.CharField(max_length=200)
    severity = models.CharField(max_length=10)
    score = models.FloatField()
    at = models.DateTimeField()
    received_at = models.DateTimeField()
    title = models.CharField(max_length=200, blank=True)
    payload = models.JSONField(null=True)  # the whole event, for the first, the latest and the highest of an incident

    class Meta:
        verbose_name_plural = "anomalies"
        constraints = [
            models.CheckConstraint(condition=Q(score__gte=0, score__lte=LARGEST_FLOAT), name="anomaly_score_finite")
        ]
        indexes = [
            models.Index(fields=["incident", "-id"], name="anomaly_of_incident"),
            models.Index(fields=["incident", "at"], name="anomaly_in_time"),
            models.Index(fields=["received_at"], name="anomaly_age"),
            models.Index(fields=["event_id"], name="anomaly_by_event"),
        ]


def told() -> ExpressionWrapper:
    """Whether the platform has accepted a ticket. Without a parameter, for which SQLite would not use an index."""
    return ExpressionWrapper(Q(created_remotely_at__isnull=False), output_field=models.BooleanField())


class TicketQuerySet(models.QuerySet):
    def due(self, platform: str) -> Self:
        """Tickets of a platform that do not show what they should and whose time has come, most urgent first: of
        equally urgent ones those of which nobody has heard yet."""
        return (
            self.filter(platform=platform, due_at__lte=Now())
            .filter(Q(lease_until=None) | Q(lease_until__lt=Now()))
            .order_by("urgency", told(), "due_at", "id")
        )

    def behind(self) -> Self:
        """Tickets that do not show what they should, whether they are waiting, failing or given up."""
        return self.filter(is_behind=True)

    def failing(self) -> Self:
        """Those of them that failed, whether they are tried again by themselves or were given up."""
        return self.behind().filter(Q(parked_at__isnull=False) | Q(failing_since__isnull=False))

    def by_platform(self) -> dict[str, int]:
        """How many there are at each platform that has any."""
        return dict(self.order_by().values_list("platform").annotate(count=models.Count("pk")))

    def differing(self) -> Self:
        """Tickets that were seen to show something else than they should, and have not changed since."""
        return self.filter(seen_differs=True, seen_version=F("wanted_version"))


class Ticket(models.Model):
    """One incident's counterpart at one platform: what it should show, what it shows, and how the way there goes.

    `wanted_version` grows with each change that the ticket should show. `shown_version` is the one the platform has
    accepted. `due_at` is set exactly while a worker should make an attempt.
    """

    incident = models.ForeignKey(Incident, on_delete=models.CASCADE, related_name="tickets")
    platform = models.CharField(max_length=20)
    urgency = models.PositiveSmallIntegerField()  # 0 is the most urgent
    settings_version = models.ForeignKey(PlatformVersion, null=True, on_delete=models.PROTECT, related_name="+")

    wanted_version = models.PositiveIntegerField(default=1)
    shown_version = models.PositiveIntegerField(default=0)
    # A column of its own: a planner keeps count of its values, and cannot of a comparison of two others.
    is_behind = models.GeneratedField(
        expression=Q(shown_version__lt=F("wanted_version")), output_field=models.BooleanField(), db_persist=True
    )
    shown = models.JSONField(default=dict)  # the level last accepted: delivery.core.Level
    shown_at = models.DateTimeField(null=True)
    # The level at which the platform says that somebody put its record, and the wanted version that came of it: newer
    # than `shown` while that version is. No attempt writes them, so none that is under way can overwrite them.
    heard = models.JSONField(default=dict)
    heard_version = models.PositiveIntegerField(default=0)

    # What a look at the platform saw, of the version that was wanted and shown then.
    looked_at = models.DateTimeField(null=True)  # whatever came of it
    seen_at = models.DateTimeField(null=True)
    seen_status = models.CharField(max_length=100, blank=True)  # as the platform calls it
    seen_category = models.CharField(max_length=12, blank=True)
    seen_version = models.PositiveIntegerField(default=0)
    seen_differs = models.BooleanField(default=False)

    generation = models.PositiveSmallIntegerField(default=1)
    remote_id = models.CharField(max_length=300, blank=True)
    remote_url = models.CharField(max_length=1000, blank=True)
    remote_data = models.JSONField(default=dict)
    previous_links = models.JSONField(default=list)
    created_remotely_at = models.DateTimeField(null=True)

    due_at = models.DateTimeField(null=True)
    lease_until = models.DateTimeField(null=True)
    claim = models.PositiveIntegerField(default=0)  # the fence: only the latest claim may note an outcome
    attempts = models.PositiveSmallIntegerField(default=0)  # since it was last in step
    in_doubt = models.BooleanField(default=False)  # an attempt ended without anybody knowing what it did
    lookups = models.PositiveSmallIntegerField(default=0)  # made since the doubt arose
    last_lookup_at = models.DateTimeField(null=True)
    doubtful_since = models.DateTimeField(null=True)
    # What the platform took in the last attempt without telling an outcome: {"at": when, "requests": [[what, id], …]}.
    taken = models.JSONField(null=True)
    may_be_doubled = models.BooleanField(default=False)
    parked_at = models.DateTimeField(null=True)  # given up until somebody acts
    failing_since = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects = TicketQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["incident", "platform"], name="one_ticket_per_platform"),
            models.CheckConstraint(
                condition=Q(shown_version__lte=F("wanted_version")), name="ticket_shows_no_more_than_wanted"
            ),
        ]
        indexes = [
            # The order in which they are attempted, as `due` asks for it.
            models.Index(
                "platform", "urgency", told(), "due_at", "id", name="ticket_due", condition=Q(due_at__isnull=False)
            ),
            models.Index(
                fields=["platform", "created_at"],
                name="ticket_behind",
                condition=Q(is_behind=True),
            ),
            models.Index(fields=["platform", "remote_id"], name="ticket_by_remote_id", condition=~Q(remote_id="")),
            models.Index(fields=["platform"], name="ticket_differs", condition=Q(seen_differs=True)),
            models.Index(
                fields=["platform", "-created_remotely_at"],
                name="ticket_accepted",
                condition=Q(created_remotely_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.incident_id} at {self.platform}"

    @property
    def differs(self) -> bool:
        """Whether it is one of `differing`."""
        return self.seen_differs and self.seen_version == self.wanted_version

    @property
    def key(self) -> str:
        """The remote identity: what the ticket is called at the platform, the same in every attempt."""
        base = f"{self.incident_id}-{self.incident.token}"
        return base if self.generation == 1 else f"{base}-{self.generation}"


class PlatformPauseQuerySet(models.QuerySet):
    def in_force(self) -> Self:
        """Those for which a platform is left alone now. A change of its settings, or enabling it, has ended others."""
        return self.filter(IN_FORCE)

    def end(self, platform: str) -> bool:
        """The platform is asked again at once. Whether it was left alone."""
        return bool(self.in_force().filter(platform=platform).update(until=Now()))


CHANGED_AT = PlatformState.objects.filter(platform=OuterRef("platform")).values("changed_at")
IN_FORCE = Q(until__gt=Now()) & (Q(settings_at=None) | Q(settings_at=Subquery(CHANGED_AT)))


class PlatformPause(models.Model):
    """Until when a platform is left alone: it said 429, or failed so often that its breaker opened."""

    platform = models.CharField(max_length=20, primary_key=True)
    until = models.DateTimeField()
    reason = models.CharField(max_length=500)
    asked = models.BooleanField(default=False)  # the platform asked for it; else its breaker opened
    settings_at = models.DateTimeField(null=True)  # the change of settings that was in force: the next one ends it
    failures = models.PositiveIntegerField(default=0)  # in a row, over all tickets

    objects = PlatformPauseQuerySet.as_manager()


class ModelHealth(models.Model):
    """What the last check of the language model saw."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    provider = models.CharField(max_length=100)
    model = models.CharField(max_length=200)
    available = models.BooleanField()
    error = models.CharField(max_length=500, blank=True)
    settings_at = models.DateTimeField()  # the change of settings that was checked
    checked_at = models.DateTimeField()


class Pulse(models.Model):
    """When a part of the machinery was last seen working: `sweep:<host>:<pid>` (and `hears:…`, the broker), `beat`,
    `look:<platform>`."""

    name = models.CharField(primary_key=True, max_length=200)
    at = models.DateTimeField()


class Counter(models.Model):
    """One sample of a count, by the name it has in Prometheus' text format. Added to by `counters` alone."""

    name = models.CharField(primary_key=True, max_length=200)
    value = models.FloatField(default=0)


def lease(seconds: float):
    """A point in time by the database's clock, which all workers share."""
    return Now() + Value(timedelta(seconds=seconds), output_field=models.DurationField())
