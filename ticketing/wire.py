"""JSON in and out, for every endpoint: what a body may be, what it costs at most, and how an answer is written.

Bodies are untrusted until measured: size, encoding, number of values and depth are bounded before anything looks at
them, and whatever is wrong is a 400, 413 or 415 with its place, never a traceback.
"""

from collections.abc import Iterable
from typing import Any, BinaryIO

from django.utils.http import parse_header_parameters
from rest_framework.exceptions import APIException, ParseError, UnsupportedMediaType
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer

from incidents import jsontext

MAX_BODY = 10 * 1024 * 1024

_MEDIA_TYPE = "application/json"
_MAX_CONTENT_TYPE = 256


class TooLarge(APIException):
    status_code = 413
    default_detail = f"The body is larger than {MAX_BODY // 1024 // 1024} MiB. Send it in smaller parts."
    default_code = "too_large"


# Reading.


class JSONParser(BaseParser):
    """`application/json` in UTF-8 without compression, 10 MiB at most. Of duplicate keys the last one wins."""

    media_type = _MEDIA_TYPE

    def parse(self, stream: BinaryIO, media_type: str | None = None, parser_context: dict | None = None) -> Any:
        request = (parser_context or {}).get("request")
        headers = request.META if request is not None else {}
        _refuse_encodings(media_type or "", headers.get("HTTP_CONTENT_ENCODING", ""))
        try:
            return jsontext.loads(_body(stream, headers.get("CONTENT_LENGTH", "")))
        except jsontext.TooMany as problem:
            raise TooLarge(str(problem)) from problem
        except jsontext.Unreadable as problem:
            raise ParseError(str(problem)) from problem


def _refuse_encodings(media_type: str, content_encoding: str) -> None:
    # A compressed body is refused unread: ten megabytes of gzip can hold ten gigabytes.
    if content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(media_type, detail="Content-Encoding is not supported: send the body uncompressed.")
    try:
        _, parameters = parse_header_parameters(media_type[:_MAX_CONTENT_TYPE])
    except ValueError:  # a parameter in an encoding that does not exist
        parameters = {"charset": "unreadable"}
    if parameters.get("charset", "utf-8").strip("'\" ").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(media_type, detail="The charset is not supported: JSON is sent in UTF-8.")


def _body(stream: BinaryIO, announced: str) -> bytes:
    """All of the body, whatever its announced length says. Nothing is read of one that is announced as too large."""
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > MAX_BODY):
        raise TooLarge
    try:
        body = stream.read(MAX_BODY + 1)
    except OSError as problem:  # Django's UnreadablePostError: the client hung up
        raise ParseError("The body broke off before its end.") from problem
    if len(body) > MAX_BODY:
        raise TooLarge
    return body


# Writing.


class JSONRenderer(BaseRenderer):
    """Compact JSON in UTF-8, as `incidents.jsontext` writes it."""

    media_type = _MEDIA_TYPE
    format = "json"
    charset = None  # JSON is UTF-8 by itself
    render_style = "binary"

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: dict | None = None) -> bytes:
        return b"" if data is None else jsontext.dumps(data)


# Choosing.


class JSONNegotiation(BaseContentNegotiation):
    """Every answer is the view's first renderer, JSON unless a view says otherwise, whatever `Accept` asks for.

    So `Accept` is never parsed and costs nothing, an error is never HTML, and nobody gets a 406 instead of an answer.
    """

    def select_parser(self, request: Any, parsers: Iterable[BaseParser]) -> BaseParser | None:
        content_type = request.content_type or ""
        if len(content_type) > _MAX_CONTENT_TYPE:
            return None
        sent = content_type.partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == sent), None)

    def select_renderer(
        self, request: Any, renderers: list[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], renderers[0].media_type
