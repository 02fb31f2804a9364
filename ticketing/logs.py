"""One line per event, for the engineer on call: ids always, secrets never, nothing that a log line could forge."""

import json
import logging
import time
from contextvars import ContextVar

# The id of the request that is being answered, for every line logged on its way.
request_id: ContextVar[str] = ContextVar("request_id", default="")

# Whatever callers pass as `extra=` under these names is shown beside the message.
FIELDS = ("incident", "ticket", "platform")


class RequestFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def _inert(text: str) -> str:
    """Control characters shown as escapes, so that text from outside stays on its line and colours nothing."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _inert(record.getMessage()),
        }
        for name in ("request_id", *FIELDS):
            if getattr(record, name, ""):
                line[name] = str(getattr(record, name))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={getattr(record, name)}" for name in FIELDS if getattr(record, name, ""))
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        text = f"{clock} {record.levelname.lower():7} {_inert(record.getMessage())}{' ' + _inert(ids) if ids else ''}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text
