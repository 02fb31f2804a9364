"""The WSGI application, for our own web server and for any other."""

import os
import re
from collections.abc import Callable

from django.core.wsgi import get_wsgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ticketing.settings")

LONGEST_CONTENT_TYPE = 256
# A media type with plain parameters. What RFC 2231 allows beside them (`charset*=…''…`) nobody sends in earnest.
CONTENT_TYPE = re.compile(
    r"""[\w!#$&^.+*-]+/[\w!#$&^.+*-]+ (?: \s*;\s* [\w-]+=(?: [^\s;"*]* | "[^"\\]*" ) )* [\s;]*""", re.ASCII | re.VERBOSE
)
CHARSET = re.compile(r""";\s*charset=["']*([^\s;"']*)""", re.ASCII | re.IGNORECASE)

# By its dotted path, because what it imports needs Django to be set up.
_entrance = import_string("ticketing.entrance.Entrance")(get_wsgi_application())


def application(environ: dict, start_response: Callable):
    """Django, out of reach of content types on which it fails while it makes its request, before anything can answer.

    It also reads the query in the charset that a body is announced in, and not every charset that Python knows is one
    for text.
    """
    environ["CONTENT_TYPE"] = readable(environ.get("CONTENT_TYPE", ""))
    return _entrance(environ, start_response)


def readable(content_type: str) -> str:
    """The content type, or one that is refused as unsupported in its place."""
    if not content_type:
        return ""
    if len(content_type) > LONGEST_CONTENT_TYPE or not CONTENT_TYPE.fullmatch(content_type):
        return "application/octet-stream"
    charset = CHARSET.search(content_type)
    if charset and charset[1].lower() not in ("utf-8", "utf8"):
        return f"{content_type.partition(';')[0].strip()}; charset=unsupported"
    return content_type
