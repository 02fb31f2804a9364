"""What is kept how long: event ids, anomalies, and the whole events of an incident's first, latest and highest."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import F, Model
from django.utils import timezone

from incidents.inbound import REMEMBERED
from incidents.intake import PAYLOADS_AT_EACH_END
from incidents.models import Anomaly, InboundEvent, Incident, Pulse, SeenEvent

CHUNK = 5000
TRIM_SINCE = timedelta(hours=2)  # longer than the time between two runs


def prune() -> None:
    now = timezone.now()
    _delete(SeenEvent, seen_at__lt=now - timedelta(days=settings.EVENT_IDS_KEPT_DAYS))
    _delete(Anomaly, received_at__lt=now - timedelta(days=settings.ANOMALIES_KEPT_DAYS))
    _delete(InboundEvent, seen_at__lt=now - REMEMBERED)
    Pulse.objects.filter(at__lt=now - timedelta(days=1)).delete()
    for incident_id in Incident.objects.filter(
        updated_at__gte=now - TRIM_SINCE, anomaly_count__gt=2 * PAYLOADS_AT_EACH_END + 1
    ).values_list("pk", flat=True):
        trim_payloads(incident_id)


def trim_payloads(incident_id: str) -> None:
    """Drops the whole events but of the first 20, the latest 20 and the highest scoring anomaly."""
    anomalies = Anomaly.objects.filter(incident_id=incident_id)
    ends = PAYLOADS_AT_EACH_END
    keep = {
        *anomalies.order_by("id").values_list("pk", flat=True)[:ends],
        *anomalies.order_by("-id").values_list("pk", flat=True)[:ends],
        *anomalies.order_by(F("score").desc(), "id").values_list("pk", flat=True)[:1],
    }
    anomalies.filter(payload__isnull=False).exclude(pk__in=keep).update(payload=None)


def _delete(model: type[Model], **old: datetime) -> None:
    """In chunks, so that no transaction is long; in no order, so that the index of ages gives each chunk by itself."""
    rows = model.objects.filter(**old).order_by()
    while ids := list(rows.values_list("pk", flat=True)[:CHUNK]):
        model.objects.filter(pk__in=ids).delete()
