"""How errors are told: one JSON shape with the right status, and a page where a person is reading."""

import logging
import sys

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError, InterfaceError, InternalError, OperationalError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import exception_handler as rest_exception_handler

from config.changes import Invalid

log = logging.getLogger(__name__)

READ_ONLY = "25006"  # the database that we are connected to is no longer the primary
PAGES = ("/admin/", "/i/")

MESSAGES = {
    400: "The request cannot be read. Check its method, path and headers.",
    403: "You may not do this.",
    404: "There is nothing here. The API is described at /api/docs.",
    413: "The request is too large. Send it in smaller parts.",
    500: "Something broke on our side. It is in the log under this request's X-Request-ID.",
    503: "The database cannot be reached. Nothing was changed that was not confirmed; try again shortly.",
}

NO_SPACE = "The database has no space left. Nothing was changed that was not confirmed; try again shortly."


def body(message: str, errors: object = None) -> dict:
    return {"status": "error", "message": message, "errors": errors or {}}


def exception_handler(error: Exception, context: dict) -> Response:
    """What the API answers to an error, whichever it is."""
    if isinstance(error, Invalid):
        named = "; ".join(f"{name}: {text}" for name, text in list(error.errors.items())[:3])
        return Response(body(f"Nothing was changed. {named}", error.errors), 400)
    if is_store_down(error):
        return Response(body(_why_down(error)), 503, headers={"Retry-After": "2"})
    if isinstance(error, SuspiciousOperation):  # Django's own limits: the number of parameters, the size of a body
        status = 413 if isinstance(error, RequestDataTooBig) else 400
        return Response(body(MESSAGES[status]), status)
    response = rest_exception_handler(error, context)
    if response is None:
        log.error("Unexpected error.", exc_info=error)
        return Response(body(MESSAGES[500]), 500)
    response.data = _told(error, response.data)
    return response


def _told(error: Exception, detail: object) -> dict:
    if isinstance(error, exceptions.ValidationError) and isinstance(detail, dict):
        errors = {
            name: " ".join(map(str, texts)) if isinstance(texts, list) else texts for name, texts in detail.items()
        }
        return body("; ".join(f"{name}: {text}" for name, text in list(errors.items())[:3]), errors)
    if isinstance(error, exceptions.ValidationError):
        return body(" ".join(map(str, detail)) if isinstance(detail, list) else str(detail))
    if isinstance(error, exceptions.MethodNotAllowed):
        return body(f"{error.detail} The API is described at /api/docs.")
    if isinstance(error, exceptions.UnsupportedMediaType) and "Unsupported media type" in str(error.detail):
        return body("Send JSON, with the header Content-Type: application/json.")
    if isinstance(detail, dict) and "detail" in detail:
        return body(str(detail["detail"]))
    return body(str(detail))


def is_store_down(error: BaseException) -> bool:
    """Whether the database, not the request, is what is wrong."""
    if isinstance(error, OperationalError | InterfaceError):
        return True
    return isinstance(error, InternalError) and getattr(error.__cause__, "sqlstate", None) == READ_ONLY


def _why_down(error: Exception) -> str:
    """What to say of it. The connection is not used again: a former primary keeps it, and refuses all that matters."""
    connection.close()
    cause = error.__cause__ or error
    log.error("The database cannot be used: %s", type(cause).__name__)
    return NO_SPACE if "DiskFull" in type(cause).__name__ or "disk is full" in str(cause) else MESSAGES[503]


def store_down(request: HttpRequest, error: Exception) -> HttpResponse | None:
    if not (isinstance(error, DatabaseError | InterfaceError) and is_store_down(error)):
        return None
    answer = shown(request, 503, _why_down(error))
    answer["Retry-After"] = "2"
    return answer


def shown(request: HttpRequest, status: int, message: str = "") -> HttpResponse:
    """An error as a page, where a person reads it, or in JSON."""
    message = message or MESSAGES[status]
    if request.path.startswith(PAGES):
        return render(request, "error.html", {"status": status, "message": message}, status=status)
    return JsonResponse(body(message), status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return JsonResponse(body(MESSAGES[400]), status=400)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return shown(request, 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return shown(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    """For what went wrong outside the API's views, in middleware too: told, and in the log."""
    error = sys.exception()
    if error is not None and (answer := store_down(request, error)):
        return answer
    log.error("Unexpected error.", exc_info=error)
    return shown(request, 500)


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: dict) -> HttpResponse:
    """Too many wrong passwords for one name from one address. It does not say whether there is such a user."""
    minutes = round(60 * settings.AXES_COOLOFF_TIME)
    answer = shown(request, 429, f"Too many wrong passwords. Try again in {minutes} minutes, or ask an admin.")
    answer["Retry-After"] = str(60 * minutes)
    return answer


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return shown(request, 403, "The form was not sent from this site, or it is too old. Load the page again.")
