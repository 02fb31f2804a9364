"""What the API says of incidents, tickets and anomalies. The serializers describe it; the functions, which are ten
times as fast on long lists, write it. A test holds the two together.
"""

from collections.abc import Mapping

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from config.current import Current
from incidents.delivery.states import difference, state_of
from incidents.models import Anomaly, Incident, PlatformPause, Severity, Status, Ticket
from incidents.times import timestamp
from platforms.catalog import PLATFORMS


def incident_json(incident: Incident) -> dict:
    """An incident as in the API document, with the additional fields behind the documented ones."""
    return {
        "id": incident.pk,
        "title": incident.title,
        "severity": incident.severity,
        "status": incident.status,
        "service": incident.service,
        "anomalyScore": incident.anomaly_score,
        "affectedServices": incident.affected_services,
        "traceId": incident.trace_id,
        "createdAt": timestamp(incident.created_at),
        "updatedAt": timestamp(incident.updated_at),
        "platforms": incident.platforms,
        "anomalyCount": incident.anomaly_count,
        "acknowledgedAt": timestamp(incident.acknowledged_at),
        "acknowledgedBy": incident.acknowledged_by or None,
        "escalatedAt": timestamp(incident.escalated_at),
        "resolvedAt": timestamp(incident.resolved_at),
        "resolvedBy": incident.resolved_by or None,
        "firstAnomalyAt": timestamp(incident.first_anomaly_at),
        "lastAnomalyAt": timestamp(incident.last_anomaly_at),
        "rootCause": incident.root_cause,
        "fallback": incident.fallback,
        "drill": incident.drill,
    }


Pauses = Mapping[str, PlatformPause]


def pauses() -> Pauses:
    """Those in force, by platform: read once for all the tickets of an answer."""
    return PlatformPause.objects.in_force().in_bulk()


def detail_json(
    incident: Incident, config: Current, anomalies: list[Anomaly], others: list[Incident], resting: Pauses
) -> dict:
    """One incident with all there is to know: evidence, tickets, recent anomalies, what else burns in the service."""
    return incident_json(incident) | {
        "description": incident.description,
        "environment": incident.environment,
        "tenantId": incident.tenant_id,
        "escalatedBy": incident.escalated_by or None,
        "escalatedTo": incident.escalated_to,
        "reopenedAt": timestamp(incident.reopened_at),
        "reopenedBy": incident.reopened_by or None,
        "rootCauseModel": incident.cause_model or None,
        "rootCauseSeconds": incident.cause_seconds,
        "rootCauseError": incident.cause_error or None,
        "evidence": incident.evidence,
        "tickets": [ticket_json(ticket, config, resting) for ticket in incident.tickets.all()],
        "anomalies": [anomaly_json(anomaly) for anomaly in anomalies],
        "otherOpenIncidents": [other.pk for other in others],
    }


def ticket_json(ticket: Ticket, config: Current, resting: Pauses) -> dict:
    """`resting`: the pauses in force."""
    enabled = config.platforms[ticket.platform].enabled
    state = state_of(ticket, enabled=enabled, pause=resting.get(ticket.platform))
    return {
        "id": ticket.pk,
        "incidentId": ticket.incident_id,
        "platform": ticket.platform,
        "state": state.name,
        "message": state.words,
        "remoteId": ticket.remote_id or None,
        "url": ticket.remote_url or None,
        "previousUrls": ticket.previous_links,
        "attempts": ticket.attempts,
        "lastError": ticket.last_error or None,
        "failingSince": timestamp(ticket.failing_since),
        "nextAttemptAt": timestamp(state.next_attempt_at),
        "shownAt": timestamp(ticket.shown_at),
        "mayBeDoubled": ticket.may_be_doubled,
        "seenStatus": ticket.seen_status or None,
        "seenAt": timestamp(ticket.seen_at),
        "difference": difference(ticket) or None,
    }


def anomaly_json(anomaly: Anomaly) -> dict:
    return {
        "eventId": anomaly.event_id or None,
        "timestamp": timestamp(anomaly.at),
        "receivedAt": timestamp(anomaly.received_at),
        "score": anomaly.score,
        "title": anomaly.title,
    }


# --- The same for the OpenAPI document, which calls what is sent `<name>Request` ------------------------------------

Moment = serializers.DateTimeField


class IncidentSerializer(serializers.Serializer):
    id = serializers.CharField()
    title = serializers.CharField()
    severity = serializers.ChoiceField(Severity.values)
    status = serializers.ChoiceField(Status.values)
    service = serializers.CharField()
    anomalyScore = serializers.FloatField()
    affectedServices = serializers.ListField(child=serializers.CharField())
    traceId = serializers.CharField()
    createdAt = Moment()
    updatedAt = Moment()
    platforms = serializers.ListField(child=serializers.CharField())
    anomalyCount = serializers.IntegerField()
    acknowledgedAt = Moment(allow_null=True)
    acknowledgedBy = serializers.CharField(allow_null=True)
    escalatedAt = Moment(allow_null=True)
    resolvedAt = Moment(allow_null=True)
    resolvedBy = serializers.CharField(allow_null=True)
    firstAnomalyAt = Moment()
    lastAnomalyAt = Moment()
    rootCause = serializers.CharField()
    fallback = serializers.BooleanField(help_text="The rules' root cause stands; no model's answer is there.")
    drill = serializers.BooleanField(help_text="A fire drill: nothing is wrong.")


class TicketSerializer(serializers.Serializer):
    id = serializers.IntegerField()
    incidentId = serializers.CharField()
    platform = serializers.CharField()
    state = serializers.ChoiceField(["in sync", "pending", "retrying", "failed", "paused", "not needed"])
    message = serializers.CharField(help_text="The state in words.")
    remoteId = serializers.CharField(allow_null=True)
    url = serializers.CharField(allow_null=True)
    previousUrls = serializers.ListField(child=serializers.CharField())
    attempts = serializers.IntegerField()
    lastError = serializers.CharField(allow_null=True)
    failingSince = Moment(allow_null=True)
    nextAttemptAt = Moment(allow_null=True)
    shownAt = Moment(allow_null=True)
    mayBeDoubled = serializers.BooleanField()
    seenStatus = serializers.CharField(allow_null=True)
    seenAt = Moment(allow_null=True)
    difference = serializers.CharField(allow_null=True)


@extend_schema_serializer(component_name="RecentAnomaly")
class AnomalySerializer(serializers.Serializer):
    eventId = serializers.CharField(allow_null=True)
    timestamp = Moment()
    receivedAt = Moment()
    score = serializers.FloatField()
    title = serializers.CharField()


class IncidentDetailSerializer(IncidentSerializer):
    description = serializers.CharField()
    environment = serializers.CharField()
    tenantId = serializers.CharField()
    escalatedBy = serializers.CharField(allow_null=True)
    escalatedTo = serializers.ListField(child=serializers.CharField())
    reopenedAt = Moment(allow_null=True)
    reopenedBy = serializers.CharField(allow_null=True)
    rootCauseModel = serializers.CharField(allow_null=True)
    rootCauseSeconds = serializers.FloatField(allow_null=True)
    rootCauseError = serializers.CharField(allow_null=True)
    evidence = serializers.DictField()
    tickets = TicketSerializer(many=True)
    anomalies = AnomalySerializer(many=True)
    otherOpenIncidents = serializers.ListField(child=serializers.CharField())


class ErrorSerializer(serializers.Serializer):
    status = serializers.ChoiceField(["error"])
    message = serializers.CharField()
    errors = serializers.DictField(required=False)


class NoteSerializer(serializers.Serializer):
    note = serializers.CharField(required=False, help_text="Goes to the audit and, as a comment, to the tickets.")


class AcknowledgedSerializer(serializers.Serializer):
    id = serializers.CharField()
    status = serializers.ChoiceField(Status.values)
    acknowledgedAt = Moment()


class ResolvedSerializer(serializers.Serializer):
    id = serializers.CharField()
    status = serializers.ChoiceField(Status.values)
    resolvedAt = Moment()


class EscalatedSerializer(serializers.Serializer):
    id = serializers.CharField()
    status = serializers.ChoiceField(Status.values)
    escalatedAt = Moment()
    escalatedTo = serializers.ListField(child=serializers.CharField())


class ReopenedSerializer(serializers.Serializer):
    id = serializers.CharField()
    status = serializers.ChoiceField(Status.values)
    reopenedAt = Moment(allow_null=True)


@extend_schema_serializer(component_name="Batch")
class BatchRequestSerializer(serializers.Serializer):
    ids = serializers.ListField(child=serializers.CharField(), min_length=1, max_length=1000)
    action = serializers.ChoiceField(["acknowledge", "resolve", "escalate"])
    note = serializers.CharField(required=False)


class FailedSerializer(serializers.Serializer):
    id = serializers.CharField()
    message = serializers.CharField()


@extend_schema_serializer(component_name="BatchResult")
class BatchResponseSerializer(serializers.Serializer):
    updated = serializers.IntegerField()
    action = serializers.CharField()
    ids = serializers.ListField(child=serializers.CharField())
    failed = FailedSerializer(many=True)


class AuditEntrySerializer(serializers.Serializer):
    action = serializers.CharField()
    timestamp = Moment()
    details = serializers.CharField()
    actor = serializers.CharField()
    note = serializers.CharField(required=False)


class AuditSerializer(serializers.Serializer):
    incident_id = serializers.CharField()
    entries = AuditEntrySerializer(many=True)


@extend_schema_serializer(component_name="Anomaly")
class AnomalyRequestSerializer(serializers.Serializer):
    """One anomaly. The names that producers use (`anomaly_score`, `event_id`, `@timestamp` and so on) will do too."""

    service = serializers.CharField(max_length=200)
    severity = serializers.ChoiceField(Severity.values)
    score = serializers.FloatField(min_value=0)
    title = serializers.CharField(required=False)
    description = serializers.CharField(required=False)
    traceId = serializers.CharField(required=False)
    affectedServices = serializers.ListField(child=serializers.CharField(), required=False)
    timestamp = Moment(required=False)
    eventId = serializers.CharField(required=False, min_length=1, max_length=200)


class IntakeResultSerializer(serializers.Serializer):
    index = serializers.IntegerField()
    outcome = serializers.ChoiceField(
        ["created", "deduplicated", "reopened", "belowThreshold", "redelivered", "rejected"]
    )
    incidentId = serializers.CharField(allow_null=True)


class IntakeErrorSerializer(serializers.Serializer):
    index = serializers.IntegerField()
    message = serializers.CharField()


@extend_schema_serializer(component_name="Intake")
class IntakeResponseSerializer(serializers.Serializer):
    received = serializers.IntegerField()
    created = serializers.IntegerField()
    deduplicated = serializers.IntegerField()
    reopened = serializers.IntegerField()
    belowThreshold = serializers.IntegerField()
    redelivered = serializers.IntegerField()
    rejected = serializers.IntegerField()
    incidents = serializers.ListField(child=serializers.CharField())
    results = IntakeResultSerializer(many=True)
    errors = IntakeErrorSerializer(many=True)


@extend_schema_serializer(component_name="Retry")
class RetryRequestSerializer(serializers.Serializer):
    ids = serializers.ListField(child=serializers.IntegerField(), required=False)
    incidentId = serializers.CharField(required=False)
    platform = serializers.ChoiceField(list(PLATFORMS), required=False)


@extend_schema_serializer(component_name="RetryResult")
class RetryResponseSerializer(serializers.Serializer):
    retried = serializers.IntegerField()
    tickets = TicketSerializer(many=True)


class ProvenSerializer(serializers.Serializer):
    platform = serializers.ChoiceField(list(PLATFORMS))
    enabled = serializers.BooleanField()
    lastProvenAt = Moment(allow_null=True)


class DrillSerializer(serializers.Serializer):
    incidentId = serializers.CharField(allow_null=True)
    status = serializers.ChoiceField(Status.values, allow_null=True)
    startedAt = Moment(allow_null=True)
    platforms = ProvenSerializer(many=True)


class DrillBegunSerializer(serializers.Serializer):
    status = serializers.ChoiceField(["ok"])
    incidentId = serializers.CharField()
    platforms = serializers.ListField(child=serializers.CharField())
