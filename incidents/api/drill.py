"""The endpoint of fire drills: begins one, and tells when each platform was last proven."""

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from config.current import current
from incidents import drill
from incidents.api import examples, shapes
from incidents.api.views import Conflict
from incidents.times import timestamp

REFUSED = {409: OpenApiResponse(shapes.ErrorSerializer, "A drill is under way, or no platform is enabled.")}


class Drill(APIView):
    roles = {"GET": "viewer", "POST": "admin"}

    @extend_schema(
        operation_id="getDrill",
        summary="The last fire drill, and when each platform was last proven",
        description="A platform is proven by each ticket that it accepts, of a drill or of a real fault.",
        responses=shapes.DrillSerializer,
        tags=["Drill"],
    )
    def get(self, request: Request) -> Response:
        last, proven, config = drill.last(), drill.last_proven(), current()
        return Response(
            {
                "incidentId": last.pk if last else None,
                "status": last.status if last else None,
                "startedAt": timestamp(last.created_at) if last else None,
                "platforms": [
                    {"platform": name, "enabled": one.enabled, "lastProvenAt": timestamp(proven.get(name))}
                    for name, one in config.platforms.items()
                ],
            }
        )

    @extend_schema(
        operation_id="beginDrill",
        summary="Send a marked test incident to every enabled platform, and resolve it again",
        description="Wakes whoever is on call at platforms that page.",
        request=None,
        responses={200: shapes.DrillBegunSerializer} | REFUSED,
        examples=examples.DRILL,
        tags=["Drill"],
    )
    def post(self, request: Request) -> Response:
        try:
            incident = drill.begin(actor=request.user.actor, request_id=request.id)
        except drill.Refused as refused:
            raise Conflict(str(refused)) from refused
        return Response({"status": "ok", "incidentId": incident.pk, "platforms": incident.platforms})
