"""The floor: the least that a REST view of Django's can do that keeps what it is sent. No login, no rule, one table."""

from django.db import models
from django.urls import path
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

FIRST_PAGE = 50


class Row(models.Model):
    """An event, in a table with no index but its key's."""

    service = models.CharField(max_length=200)
    severity = models.CharField(max_length=10)
    score = models.FloatField()
    received_at = models.DateTimeField(default=timezone.now)
    payload = models.JSONField()

    class Meta:
        app_label = "bench"
        db_table = "bench_row"


class Floor(APIView):
    def post(self, request: Request) -> Response:
        """One INSERT, of one row or of as many as the array has."""
        if isinstance(request.data, list):
            return Response({"received": len(Row.objects.bulk_create(map(_row, request.data)))})
        row = _row(request.data)
        row.save(force_insert=True)
        return Response({"received": 1, "id": row.pk})

    def get(self, request: Request) -> Response:
        """One SELECT, of a page."""
        return Response(list(Row.objects.order_by("-pk").values()[:FIRST_PAGE]))


def _row(event: dict) -> Row:
    return Row(service=event["service"], severity=event["severity"], score=event["score"], payload=event)


urlpatterns = [path("floor", Floor.as_view())]
