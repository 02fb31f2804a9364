"""What is kept how long: event ids, anomalies, the whole events of an incident's first, latest and highest, and the
settings, with their secrets, that tickets were made with. And logins that are over go.
"""

from datetime import datetime, timedelta

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import Exists, F, Model, OuterRef
from django.utils import timezone

from config.models import PlatformVersion
from incidents.inbound import REMEMBERED
from incidents.intake import PAYLOADS_AT_EACH_END
from incidents.models import Anomaly, InboundEvent, Incident, Pulse, SeenEvent, Status, Ticket

CHUNK = 5000
# Tickets of an incident may still be changed with the settings, and so the account, that they were made with.
SETTINGS_KEPT = timedelta(days=7)  # after it was resolved
STILL_USED = timedelta(hours=1)  # longer than any process goes on with what it read before a change
TRIM_SINCE = timedelta(hours=2)  # longer than the time between two runs


def prune() -> None:
    now = timezone.now()
    _delete(SeenEvent, seen_at__lt=now - timedelta(days=settings.EVENT_IDS_KEPT_DAYS))
    _delete(Anomaly, received_at__lt=now - timedelta(days=settings.ANOMALIES_KEPT_DAYS))
    _delete(Session, expire_date__lt=now)
    _delete(InboundEvent, seen_at__lt=now - REMEMBERED)
    _delete_replaced_settings(now)
    Pulse.objects.filter(at__lt=now - timedelta(days=1)).delete()
    for incident_id in Incident.objects.filter(
        updated_at__gte=now - TRIM_SINCE, anomaly_count__gt=2 * PAYLOADS_AT_EACH_END + 1
    ).values_list("pk", flat=True):
        trim_payloads(incident_id)


def _delete_replaced_settings(now: datetime) -> None:
    """A secret that was replaced goes, once no ticket needs it. An old ticket that is asked for again takes today's."""
    replaced = PlatformVersion.objects.replaced(now - STILL_USED)
    over = Ticket.objects.filter(
        settings_version__in=list(replaced.values_list("pk", flat=True)),
        incident__status=Status.RESOLVED,
        incident__resolved_at__lt=now - SETTINGS_KEPT,
    )
    while ids := list(over.values_list("pk", flat=True)[:CHUNK]):
        Ticket.objects.filter(pk__in=ids).update(settings_version=None)
    needed = Ticket.objects.filter(settings_version=OuterRef("pk"))
    while ids := list(replaced.filter(~Exists(needed)).values_list("pk", flat=True)[:CHUNK]):
        PlatformVersion.objects.filter(pk__in=ids).delete()


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
