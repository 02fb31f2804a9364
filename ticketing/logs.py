"""One line per event, for the engineer on call: ids always, secrets never, nothing that a log line could forge."""

import json
import logging
import logging.config
import time
from contextvars import ContextVar

from django.conf import settings

# The id of the request that is being answered, for every line logged on its way.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# Whatever callers pass as `extra=` under these names is shown beside the message.
IDS = ("incident", "ticket", "platform", "actor")
FIELDS = (*IDS, "method", "path", "status", "ms", "peer")


class RequestFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = getattr(record, "request_id", "") or request_id.get()
        return True


def inert(text: str) -> str:
    """Control characters shown as escapes, so that text from outside stays on its line and colours nothing."""
    if text.isprintable():  # nearly always, and quicker than looking at each character
        return text
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


class JsonFormatter(logging.Formatter):
    """An object per line: time, level, logger, message, and those of request_id and FIELDS that there are."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": inert(record.getMessage()),
        }
        for name in ("request_id", *FIELDS):
            if (value := getattr(record, name, "")) not in ("", None):
                line[name] = value if isinstance(value, int) else inert(str(value))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """For people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={getattr(record, name)}" for name in IDS if getattr(record, name, ""))
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        text = f"{clock} {record.levelname.lower():7} {inert(record.getMessage())}{' ' + inert(ids) if ids else ''}"
        if record.exc_info:
            # Indented, because an error's text may hold lines that look like ours.
            lines = self.formatException(record.exc_info).split("\n")
            text += "".join(f"\n    {inert(line)}" for line in lines)
        return text


def configure(**_) -> None:
    """For processes that would otherwise log in a way of their own."""
    logging.config.dictConfig(settings.LOGGING)
