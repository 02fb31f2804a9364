"""JSON texts: read from strangers within bounds, and written the way that every answer is.

What JSON allows and no database can store (NaN, 1e400, lone surrogates, NUL) is read all the same and left to the check
of the field it stands in, so that one bad item of a batch does not cost the others.
"""

import json
import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from django.utils.functional import Promise

from incidents.times import timestamp

MAX_DEPTH = 64
# 10,000 items of 50 values each. Ten megabytes of `{},` would otherwise become a quarter of a gigabyte of objects.
MAX_VALUES = 500_000


class Unreadable(Exception):
    """A text that is no JSON of ours. The message says what is wrong with it, and where."""


class TooMany(Unreadable):
    """A text that may be JSON, but holds more than is read at once."""


def loads(body: bytes) -> Any:
    """A body as Python objects. Numbers past a double's range are infinite. Raises Unreadable."""
    if body.count(b",") > MAX_VALUES:
        raise TooMany(f"The body holds more than {MAX_VALUES:,} values. Send it in smaller parts.")
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        if problem.msg.startswith("depth limit exceeded"):
            raise _too_deep() from problem
        read = _loads_leniently(body)
    if _deeper_than(read, MAX_DEPTH):
        raise _too_deep()
    return read


def _loads_leniently(body: bytes) -> Any:
    """What orjson refuses though it is JSON: lone surrogates and long numbers; and NaN, for the field's check."""
    if not body.strip():
        raise Unreadable("The body is empty: send JSON.")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("The body starts with a byte order mark: send UTF-8 without one.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise Unreadable(f"The body is not UTF-8: byte {problem.start + 1} does not fit.") from problem
    try:
        return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno} column {problem.colno}"
        raise Unreadable(f"The body is not JSON: {problem.msg} at {place}.") from problem
    except RecursionError as problem:  # the decoder's own guard, at a depth of about a thousand
        raise _too_deep() from problem


def _integer(digits: str) -> int | float:
    """As orjson reads them: past 64 bits a float, past a double's range infinite. Thousands of digits cost nothing."""
    if len(digits) <= 18:
        return int(digits)
    if len(digits) > 310:
        return -math.inf if digits.startswith("-") else math.inf
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(digits)


def _too_deep() -> Unreadable:
    return Unreadable(f"The body is nested too deeply: {MAX_DEPTH} levels at most.")


def _deeper_than(read: Any, limit: int) -> bool:
    """Whether lists and objects nest deeper than the limit. Level by level: recursion would fail where it matters."""
    level = [read] if isinstance(read, dict | list) else []
    for _ in range(limit):
        if not level:
            return False
        level = [
            value
            for one in level
            for value in (one.values() if isinstance(one, dict) else one)
            if isinstance(value, dict | list)
        ]
    return bool(level)


def dumps(data: Any) -> bytes:
    """JSON with times in UTC, whole seconds and `Z`; infinite and not-a-number become null.

    A text that UTF-8 cannot say (a client's lone surrogate, quoted back in an error) is written with U+FFFD instead.
    Raises TypeError for what JSON has no word for.
    """
    try:
        return orjson.dumps(data, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except TypeError:
        return orjson.dumps(_sayable(data), option=orjson.OPT_PASSTHROUGH_DATETIME)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Promise | Decimal | UUID):  # a translation not yet made; a number with its own precision
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _sayable(value: Any) -> Any:
    """The slow way round: the same data with texts, keys and numbers that orjson can write."""
    if isinstance(value, dict):
        return {_sayable(str(key)): _sayable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(one) for one in value]
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else None
    return value if isinstance(value, float) else _sayable(_plain(value))
