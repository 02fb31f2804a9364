"""Which incidents a list shows, in which order, and how it goes on: filters, ordering and keyset pages.

Everything a caller may say is listed here; anything else is a 400 that names it.
"""

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

import django_filters
from django.db.models import Count, DurationField, Exists, F, Func, Max, OuterRef, Q, QuerySet, Sum
from django.utils.dateparse import parse_date, parse_datetime
from rest_framework.exceptions import ValidationError

from incidents.models import Incident, Severity, Status, Ticket, severity_rank
from platforms.catalog import PLATFORMS

MOST_PER_PAGE = 1000
MOST_VALUES = 200
LONGEST_SEARCH = 200
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
# A plus sign that was not escaped arrives as a blank: `15:30:00 01:00`.
PLUS_UNESCAPED = re.compile(r"(:\d\d(?:\.\d+)?) (\d\d:?\d\d)$", re.ASCII)
SEARCHED = ("title", "service", "id", "trace_id")

ORDERINGS = {
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "lastAnomalyAt": "last_anomaly_at",
    "anomalyScore": "anomaly_score",
    "anomalyCount": "anomaly_count",
    "severity": "rank",
}
PAGING = ("limit", "cursor", "ordering")


class WordsFilter(django_filters.CharFilter):
    """Several values by commas, any of which will do. With `choices`, only those."""

    def __init__(self, *args, choices: list[str] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.choices = choices

    def filter(self, queryset: QuerySet, value: str) -> QuerySet:
        if not value:
            return queryset
        words = list(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        if len(words) > MOST_VALUES:
            raise ValidationError({self.label: f"Must name {MOST_VALUES} values at most; these are {len(words)}."})
        if self.choices and (unknown := [word for word in words if word not in self.choices]):
            raise ValidationError({self.label: f"Unknown: {unknown[0][:50]}. Known are {', '.join(self.choices)}."})
        return self.chosen(queryset, words)

    def chosen(self, queryset: QuerySet, words: list[str]) -> QuerySet:
        return queryset.filter(**{f"{self.field_name}__in": words})


class PlatformFilter(WordsFilter):
    def chosen(self, queryset: QuerySet, words: list[str]) -> QuerySet:
        return queryset.filter(Exists(Ticket.objects.filter(incident=OuterRef("pk"), platform__in=words)))


class MomentFilter(django_filters.CharFilter):
    """A date or a time, RFC 3339; without a zone it is UTC."""

    def filter(self, queryset: QuerySet, value: str) -> QuerySet:
        if not value:
            return queryset
        return queryset.filter(**{f"{self.field_name}__{self.lookup_expr}": _moment(self.label, value)})


class SearchFilter(django_filters.CharFilter):
    """Title, service, id or trace contain the text, literally, in any case."""

    def filter(self, queryset: QuerySet, value: str) -> QuerySet:
        if not value:
            return queryset
        if len(value) > LONGEST_SEARCH:
            raise ValidationError({"q": f"Must have {LONGEST_SEARCH} characters at most."})
        wanted = Q()
        for name in SEARCHED:
            wanted |= Q(**{f"{name}__icontains": value})
        return queryset.filter(wanted)


class IncidentFilter(django_filters.FilterSet):
    status = WordsFilter(label="status", choices=Status.values)
    severity = WordsFilter(label="severity", choices=Severity.values)
    service = WordsFilter(label="service")
    platform = PlatformFilter(label="platform", choices=list(PLATFORMS))
    since = MomentFilter(label="since", field_name="created_at", lookup_expr="gte")
    until = MomentFilter(label="until", field_name="created_at", lookup_expr="lt")
    q = SearchFilter(label="q")

    class Meta:
        model = Incident
        fields = ()


def _moment(name: str, value: str) -> datetime:
    try:
        moment = parse_datetime(PLUS_UNESCAPED.sub(r"\1+\2", value)) or parse_date(value)
    except ValueError:
        moment = None
    if moment is None:
        raise ValidationError({name: "Must be a time such as 2024-03-01T15:30:00Z."})
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment, EARLIEST), LATEST)


def checked(params) -> dict[str, str]:
    """The query's parameters, each known, given once, and of characters that a database can hold."""
    known = {*IncidentFilter.base_filters, *PAGING}
    for name, values in params.lists():
        if name not in known:
            raise ValidationError({name[:50]: f"Unknown parameter. Known are {', '.join(sorted(known))}."})
        if len(values) > 1:
            raise ValidationError({name: "Given more than once. Separate several values by commas."})
        if any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in values[0]):
            raise ValidationError({name: "Holds a character that cannot be searched for."})
    return {name: values[0] for name, values in params.lists()}


def filtered(params: dict[str, str], queryset: QuerySet) -> QuerySet:
    return IncidentFilter(params, queryset=queryset).qs


@dataclass(frozen=True)
class Order:
    """The order of a list: by one field, then newest first. Total, so that a page can begin behind any row."""

    field: str = "created_at"
    descending: bool = True

    @classmethod
    def read(cls, value: str) -> "Order":
        if not value:
            return cls()
        name = value.removeprefix("-")
        if name not in ORDERINGS:
            raise ValidationError(
                {"ordering": f"Must be one of {', '.join(ORDERINGS)}, with - before it to turn it round."}
            )
        return cls(ORDERINGS[name], value.startswith("-"))

    def apply(self, queryset: QuerySet) -> QuerySet:
        if self.field == "rank":
            queryset = queryset.annotate(rank=severity_rank())
        primary = f"-{self.field}" if self.descending else self.field
        return queryset.order_by(primary, *([] if self.field == "created_at" else ["-created_at"]), self.number_order)

    @property
    def number_order(self) -> str:
        return "number" if self.field == "created_at" and not self.descending else "-number"

    def behind(self, queryset: QuerySet, cursor: str) -> QuerySet:
        """The rows behind the one that the cursor names."""
        value, created_at, number = self._read_cursor(cursor)
        past = Q(**{f"{self.field}__{'lt' if self.descending else 'gt'}": value})
        if self.field == "created_at":
            rest = Q(number__lt=number) if self.descending else Q(number__gt=number)
            return queryset.filter(past | (Q(created_at=value) & rest))
        rest = Q(created_at__lt=created_at) | Q(created_at=created_at, number__lt=number)
        return queryset.filter(past | (Q(**{self.field: value}) & rest))

    def cursor(self, incident: Incident) -> str:
        value = getattr(incident, self.field)
        value = value.isoformat() if isinstance(value, datetime) else value
        text = json.dumps([self.field, self.descending, value, incident.created_at.isoformat(), incident.number])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _read_cursor(self, cursor: str) -> tuple[object, datetime, int]:
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            field, descending, value, created_at, number = json.loads(text)
            if (field, descending) != (self.field, self.descending):
                raise ValidationError({"cursor": "Belongs to another ordering. Begin again without a cursor."})
            value = datetime.fromisoformat(value) if self.field.endswith("_at") else value + 0
            created_at = datetime.fromisoformat(created_at)
            times = [created_at, value] if isinstance(value, datetime) else [created_at]
            sane = math.isfinite(_number(value)) and 0 <= number < 2**31
            if not sane or not all(EARLIEST <= moment <= LATEST for moment in times):
                raise ValueError
            return value, created_at, number
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError, binascii.Error) as error:
            raise ValidationError({"cursor": "Not a cursor of ours. Take it from the Link header."}) from error


def _number(value: object) -> float:
    return value.timestamp() if isinstance(value, datetime) else float(value)


class Between(Func):
    """How long it was from one moment to another, cheap enough to be asked of every row of a long list."""

    template = "(%(expressions)s)"
    arg_joiner = " - "
    output_field = DurationField()

    def as_sqlite(self, compiler, connection, **context):
        # Django's own is a function in Python, called for every row.
        changed = {"template": "CAST((julianday(%(expressions)s)) * 86400000000 AS INTEGER)"}
        return self.as_sql(compiler, connection, arg_joiner=") - julianday(", **changed, **context)


def fingerprint(incidents: QuerySet) -> dict[str, object]:
    """What changes whenever something in the list does, in one question; `count` says how many there are.

    The latest change alone would not do: one that began earlier may be committed later. So they are added up, and
    beside the times, which a clock that was put back may leave as they are, what can only have changed with the row.
    """
    of_status = {status.value: Count("pk", filter=Q(status=status)) for status in Status}
    return incidents.order_by().aggregate(
        count=Count("pk"),
        updated=Max("updated_at"),
        anomalies=Sum("anomaly_count"),
        updates=Sum(Between(F("updated_at"), F("created_at"))),
        causes=Sum(Between(F("cause_at"), F("created_at"))),
        answers=Count("pk", filter=Q(fallback=False)),
        **of_status,
    )


def limit_of(params: dict[str, str]) -> int | None:
    """How many incidents a page has; None where all are asked for."""
    text = params.get("limit")
    if text is None:
        if "cursor" in params:
            raise ValidationError({"cursor": "Needs a limit."})
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MOST_PER_PAGE):
        raise ValidationError({"limit": f"Must be a whole number from 1 to {MOST_PER_PAGE}."})
    return int(text)
