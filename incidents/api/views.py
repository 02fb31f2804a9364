"""The endpoints of incidents, their moves, their audit, and the anomalies that make them."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import orjson
from django.db.models import QuerySet
from django.http import Http404, StreamingHttpResponse
from django.utils.http import parse_etags, urlencode
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    PolymorphicProxySerializer,
    extend_schema,
    extend_schema_view,
)
from rest_framework.decorators import action
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from config.current import current
from incidents import intake, lifecycle
from incidents.api import examples, filters, shapes
from incidents.intake import Result
from incidents.lifecycle import LONGEST_NOTE, MOVES_AT_ONCE, Moved, Refused
from incidents.models import Incident
from incidents.times import timestamp

INCIDENT_ID = re.compile(r"inc-\d{8}-\d{3,9}", re.ASCII)
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")
MOST_ANOMALIES = 10_000
MOST_ERRORS_TOLD = 1000
RECENT_ANOMALIES = 20
OTHER_INCIDENTS = 20
CHUNK = 500

# What every operation may answer besides is added to the OpenAPI document where it is made.
UNKNOWN = {404: OpenApiResponse(shapes.ErrorSerializer, "There is no such incident.")}
REFUSED = {
    409: OpenApiResponse(shapes.ErrorSerializer, "It was moved before: who did what, and when. Nothing changed.")
}
UNCHANGED = {304: OpenApiResponse(description="Unchanged: what the tag in If-None-Match stands for is what there is.")}


def _header(name: str, description: str, status: int = 200, kind: type = str) -> OpenApiParameter:
    return OpenApiParameter(name, kind, OpenApiParameter.HEADER, response=[status], description=description)


ETAG = [
    OpenApiParameter("If-None-Match", str, OpenApiParameter.HEADER, description="An ETag of an answer before."),
    _header("ETag", "A weak tag of what the answer shows."),
]


def query(name: str, description: str, **more) -> OpenApiParameter:
    return OpenApiParameter(name, str, description=description, **more)


LIST_PARAMETERS = [
    query("status", "open, acknowledged, escalated, resolved; several by commas."),
    query("severity", "critical, high, medium, low; several by commas."),
    query("service", "Exact names, several by commas."),
    query("platform", "Incidents with a ticket at one of these."),
    query("since", "Created at this time or later, RFC 3339."),
    query("until", "Created before this time."),
    query("q", "Title, service, id or trace contain this text."),
    query(
        "ordering",
        "With - before it the other way round. Default -createdAt.",
        enum=[sign + name for name in filters.ORDERINGS for sign in ("", "-")],
    ),
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": filters.MOST_PER_PAGE},
        description="Incidents per page. Without it, all.",
    ),
    query("cursor", "Where the page begins: from the Link header of the page before."),
    *ETAG,
    _header("Link", 'With limit: the next page, as <…>; rel="next".'),
    _header("X-Total-Count", "With limit: how many incidents there are on all pages.", kind=int),
]


class Conflict(APIException):
    status_code = 409


def object_of(request: Request) -> dict:
    """The body, which is an object; none is an empty one."""
    body = request.data
    if not isinstance(body, dict):
        raise ValidationError("The body must be an object, such as {}.")
    return body


def _only(body: dict, *known: str) -> dict:
    """The same body, refused where it holds what would be lost: a note under another name, say."""
    if unknown := [name for name in body if name not in known]:
        said = f"Unknown. Known {'are' if len(known) > 1 else 'is'} {', '.join(known)}."
        raise ValidationError({name[:100]: said for name in unknown[:20]})
    return body


def _note(body: dict) -> str:
    note = body.get("note", "")
    if note is None:
        return ""
    if not isinstance(note, str):
        raise ValidationError({"note": "Must be a text."})
    if len(note) > LONGEST_NOTE:
        raise ValidationError({"note": f"Must have {LONGEST_NOTE} characters at most."})
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", note).strip()


def _move_schema(name: str, summary: str, response, examples_: list):
    return extend_schema(
        operation_id=f"{name}Incident",
        summary=summary,
        request=shapes.NoteSerializer,
        responses={200: response} | UNKNOWN | REFUSED,
        examples=examples_,
        tags=["Incidents"],
    )


@extend_schema_view(
    list=extend_schema(
        operation_id="listIncidents",
        summary="List incidents, newest first",
        parameters=LIST_PARAMETERS,
        responses={200: shapes.IncidentSerializer(many=True)} | UNCHANGED,
        examples=examples.LIST,
        tags=["Incidents"],
    ),
    retrieve=extend_schema(
        operation_id="getIncident",
        summary="One incident with its evidence, tickets and anomalies",
        parameters=ETAG,
        responses={200: shapes.IncidentDetailSerializer} | UNKNOWN | UNCHANGED,
        tags=["Incidents"],
    ),
    acknowledge=_move_schema(
        "acknowledge", "Acknowledge an incident", shapes.AcknowledgedSerializer, examples.ACKNOWLEDGED
    ),
    escalate=_move_schema(
        "escalate", "Escalate to those who are paged", shapes.EscalatedSerializer, examples.ESCALATED
    ),
    resolve=_move_schema("resolve", "Resolve an incident", shapes.ResolvedSerializer, examples.RESOLVED),
    reopen=_move_schema("reopen", "Open an incident again", shapes.ReopenedSerializer, examples.REOPENED),
    batch=extend_schema(
        operation_id="batchUpdateIncidents",
        summary="Make one move on many incidents",
        request=shapes.BatchRequestSerializer,
        responses=shapes.BatchResponseSerializer,
        examples=examples.BATCH,
        tags=["Incidents"],
    ),
)
class Incidents(ViewSet):
    roles = {"GET": "viewer", "POST": "responder"}
    lookup_value_regex = "[^/]+"
    lookup_url_kwarg = "id"

    def list(self, request: Request):
        params = filters.checked(request.query_params)
        order = filters.Order.read(params.get("ordering", ""))
        limit = filters.limit_of(params)
        incidents = filters.filtered(params, Incident.objects.all())
        rows = order.apply(incidents.defer("evidence", "description"))
        if limit is not None:
            return self.page(request, params, order, rows, limit, headers={"X-Total-Count": incidents.count()})
        etag = _etag(request, *filters.fingerprint(incidents).values())
        if _has(request, etag):
            return Response(status=304, headers={"ETag": etag})
        return StreamingHttpResponse(_streamed(rows), content_type="application/json", headers={"ETag": etag})

    def page(self, request, params: dict, order: filters.Order, rows: QuerySet, limit: int, headers: dict) -> Response:
        """A page is soon made, so its tag is that of what it says: nothing has to be asked about all the others."""
        if cursor := params.get("cursor"):
            rows = order.behind(rows, cursor)
        found = list(rows[: limit + 1])
        if len(found) > limit:
            found.pop()
            query = urlencode(params | {"cursor": order.cursor(found[-1])})
            headers["Link"] = f'<{request.build_absolute_uri(request.path)}?{query}>; rel="next"'
        body = [shapes.incident_json(incident) for incident in found]
        headers["ETag"] = _etag(request, headers, body)
        if _has(request, headers["ETag"]):
            return Response(status=304, headers={"ETag": headers["ETag"]})
        return Response(body, headers=headers)

    def retrieve(self, request: Request, id: str) -> Response:
        incident = Incident.objects.prefetch_related("tickets").filter(pk=existing(id)).first()
        if incident is None:
            raise Http404(f"There is no incident {id}.")
        anomalies = incident.anomalies.defer("payload").order_by("-id")[:RECENT_ANOMALIES]
        others = Incident.objects.active().filter(service=incident.service).exclude(pk=incident.pk).newest_first()
        others = list(others.only("pk")[:OTHER_INCIDENTS])
        body = shapes.detail_json(incident, current(), list(anomalies), others, shapes.pauses())
        etag = _etag(request, body)  # of all that is shown: it comes from four tables
        if _has(request, etag):
            return Response(status=304, headers={"ETag": etag})
        return Response(body, headers={"ETag": etag})

    @action(detail=True, methods=["post"])
    def acknowledge(self, request: Request, id: str) -> Response:
        incident = _moved("acknowledge", id, request)
        return Response(_moved_json(incident, acknowledgedAt=timestamp(incident.acknowledged_at)))

    @action(detail=True, methods=["post"])
    def resolve(self, request: Request, id: str) -> Response:
        incident = _moved("resolve", id, request)
        return Response(_moved_json(incident, resolvedAt=timestamp(incident.resolved_at)))

    @action(detail=True, methods=["post"])
    def escalate(self, request: Request, id: str) -> Response:
        incident = _moved("escalate", id, request)
        at = timestamp(incident.escalated_at)
        return Response(_moved_json(incident, escalatedAt=at, escalatedTo=incident.escalated_to))

    @action(detail=True, methods=["post"])
    def reopen(self, request: Request, id: str) -> Response:
        incident = _moved("reopen", id, request)
        return Response(_moved_json(incident, reopenedAt=timestamp(incident.reopened_at)))

    @action(detail=False, methods=["post"])
    def batch(self, request: Request) -> Response:
        body = _only(object_of(request), "ids", "action", "note")
        ids, name, note = _batch_ids(body), body.get("action"), _note(body)
        if not isinstance(name, str) or name not in ("acknowledge", "resolve", "escalate"):
            raise ValidationError({"action": "Must be one of acknowledge, resolve, escalate."})
        known = [incident_id for incident_id in ids if INCIDENT_ID.fullmatch(incident_id)]
        results = lifecycle.move(name, known, actor=request.user.actor, note=note, request_id=request.id)
        there = [result.incident.pk for result in results if isinstance(result, Moved)]
        messages = {result.id: result.message for result in results if isinstance(result, Refused)}
        failed = [
            {"id": incident_id[:100], "message": messages.get(incident_id, "There is no incident of this id.")}
            for incident_id in dict.fromkeys(ids)
            if incident_id not in set(there)
        ]
        return Response({"updated": len(there), "action": name, "ids": there, "failed": failed})


def existing(incident_id: str) -> str:
    if not INCIDENT_ID.fullmatch(incident_id):
        raise Http404("There is no incident of this id. Ids look like inc-20240301-001.")
    return incident_id


def _moved(name: str, incident_id: str, request: Request) -> Incident:
    note = _note(_only(object_of(request), "note"))
    [result] = lifecycle.move(name, [existing(incident_id)], actor=request.user.actor, note=note, request_id=request.id)
    if isinstance(result, Moved):
        return result.incident
    if result.unknown:
        raise Http404(result.message)
    raise Conflict(result.message)


def _moved_json(incident: Incident, **times: object) -> dict:
    return {"id": incident.pk, "status": incident.status, **times}


def _batch_ids(body: dict) -> list[str]:
    ids = body.get("ids")
    if not isinstance(ids, list) or not ids:
        raise ValidationError({"ids": "Must be a list of one incident id or more."})
    if not all(isinstance(incident_id, str) for incident_id in ids):
        raise ValidationError({"ids": "Must hold texts only, such as inc-20240301-001."})
    if len(ids) > MOVES_AT_ONCE:
        raise ValidationError({"ids": f"Must hold {MOVES_AT_ONCE} ids at most; these are {len(ids)}."})
    return ids


def _etag(request: Request, *parts: object) -> str:
    digest = hashlib.sha256(repr((request.get_full_path(), parts)).encode("utf-8", "backslashreplace")).hexdigest()
    return f'W/"{digest[:20]}"'


def _has(request: Request, etag: str) -> bool:
    """Whether the client has what this tag stands for. Compared weakly: proxies that compress drop the W/."""
    given = parse_etags(request.headers.get("If-None-Match", ""))
    return given == ["*"] or etag.removeprefix("W/") in (tag.removeprefix("W/") for tag in given)


def _streamed(rows: QuerySet) -> Iterator[bytes]:
    """A JSON array, a chunk at a time. The first rows are read before it begins, while it can still be a 503."""
    incidents = rows.iterator(chunk_size=CHUNK)
    first = next(incidents, None)
    return _array(chain([first], incidents) if first is not None else iter(()))


def _array(incidents: Iterator[Incident]) -> Iterator[bytes]:
    opening = b"["
    chunk: list[bytes] = []
    for incident in incidents:
        chunk.append(orjson.dumps(shapes.incident_json(incident)))
        if len(chunk) == CHUNK:
            yield opening + b",".join(chunk)
            opening, chunk = b",", []
    yield (opening + b",".join(chunk) if chunk or opening == b"[" else b"") + b"]"


class Anomalies(APIView):
    roles = {"POST": "producer"}

    @extend_schema(
        operation_id="sendAnomalies",
        summary="Send one anomaly, or an array of them",
        description=(
            "Joins, reopens or opens incidents. A bad item costs no other: it is told in `errors`. The answer is 400 "
            "where nothing could be read. With a score below `minimumScore` no incident opens."
        ),
        parameters=[
            OpenApiParameter("dryRun", bool, description="Say what would happen, and change nothing."),
            OpenApiParameter(
                "Idempotency-Key",
                str,
                OpenApiParameter.HEADER,
                description="Gives items without an event id one, so that the request may be sent again.",
            ),
        ],
        request=PolymorphicProxySerializer(
            "Anomalies",
            [shapes.AnomalyRequestSerializer, shapes.AnomalyRequestSerializer(many=True)],
            resource_type_field_name=None,
            many=False,
        ),
        responses=shapes.IntakeResponseSerializer,
        examples=examples.INTAKE,
        tags=["Anomalies"],
    )
    def post(self, request: Request) -> Response:
        body = request.data
        items = body if isinstance(body, list) else [body]
        if not items or not isinstance(body, dict | list) or body == {}:
            raise ValidationError("Send one anomaly as an object, or an array of them; there is none in the body.")
        if len(items) > MOST_ANOMALIES:
            raise TooMany(f"An array may hold {MOST_ANOMALIES} anomalies at most; these are {len(items)}.")
        results = intake.accept(
            items,
            actor=request.user.actor,
            request_id=request.id,
            idempotency_key=_idempotency_key(request),
            dry_run=_flag(request, "dryRun"),
        )
        if all(result.outcome == "rejected" for result in results):
            raise ValidationError(_rejections(results, alone=isinstance(body, dict)))
        return Response(_taken_in(results))


class TooMany(APIException):
    status_code = 413


def _idempotency_key(request: Request) -> str:
    key = request.META.get("HTTP_IDEMPOTENCY_KEY", "")
    if key and not IDEMPOTENCY_KEY.fullmatch(key):
        raise ValidationError({"Idempotency-Key": "Must have 1 to 200 printable ASCII characters without blanks."})
    return key


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", "1", "0", ""):
        raise ValidationError({name: "Must be true or false."})
    return value in ("true", "1")


def _rejections(results: list[Result], *, alone: bool) -> dict[str, str] | str:
    if alone:
        return {"anomaly": results[0].message}
    return {str(index): result.message for index, result in enumerate(results[:100])}


def _taken_in(results: list[Result]) -> dict:
    counts = Counter(result.outcome for result in results)
    return {
        "received": len(results),
        "created": counts["created"],
        "deduplicated": counts["deduplicated"],
        "reopened": counts["reopened"],
        "belowThreshold": counts["belowThreshold"],
        "redelivered": counts["redelivered"],
        "rejected": counts["rejected"],
        "incidents": list(dict.fromkeys(r.incident_id for r in results if r.incident_id)),
        "results": [
            {"index": index, "outcome": result.outcome, "incidentId": result.incident_id}
            for index, result in enumerate(results)
        ],
        "errors": [
            {"index": index, "message": result.message}
            for index, result in enumerate(results)
            if result.outcome == "rejected"
        ][:MOST_ERRORS_TOLD],
    }


class Audit(APIView):
    role = "viewer"

    @extend_schema(
        operation_id="getAudit",
        summary="The state changes of an incident, oldest first",
        parameters=[query("incident_id", "The incident whose audit trail to read.", required=True)],
        responses={200: shapes.AuditSerializer} | UNKNOWN,
        examples=examples.AUDIT,
        tags=["Audit"],
    )
    def get(self, request: Request) -> Response:
        incident_id = request.query_params.get("incident_id", "")
        if not incident_id:
            raise ValidationError({"incident_id": "Required: the incident whose audit trail to read."})
        entries = list(lifecycle.audit_of(existing(incident_id)))
        if not entries and not Incident.objects.filter(pk=incident_id).exists():
            raise Http404(f"There is no incident {incident_id}.")
        return Response({"incident_id": incident_id, "entries": [_entry_json(entry) for entry in entries]})


def _entry_json(entry) -> dict:
    told = {
        "action": entry.action,
        "timestamp": timestamp(entry.timestamp),
        "details": entry.details,
        "actor": entry.actor,
    }
    return told | ({"note": entry.data["note"]} if "note" in entry.data else {})
