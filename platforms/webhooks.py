"""What arrives from platforms: the proof that it is theirs, and its values as what they should be.

Nothing here trusts a value to be there, or to be of its type. Signatures are over the body as it came, byte for byte.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from platforms import text
from platforms.contract import Forged, Settings, Unreadable

SECRET_HEADER = "X-Webhook-Secret"

_NAME_LIMIT = 100
_SIGNATURES = 20  # more than any vendor sends while secrets rotate
_NANOSECONDS, _MICROSECONDS, _MILLISECONDS = 1e17, 1e14, 1e11  # an epoch above these is in that unit
_EVENT_ID = re.compile(r"[\x21-\x7e]{1,150}")


# --- Proof ------------------------------------------------------------------------------------------------------------


def prove_signature(settings: Settings, signed: bytes, given: Iterable[str]) -> None:
    """One of the given signatures must be the HMAC-SHA256 of what was signed, in lower-case hexadecimal."""
    expected = hmac.new(_secret(settings), signed, hashlib.sha256).hexdigest()
    if not any(_same(expected, one) for one in list(given)[:_SIGNATURES]):
        raise Forged("no signature fits the body")


def prove_secret(settings: Settings, headers: Mapping[str, str]) -> None:
    """For vendors that sign nothing: the secret itself, as `Authorization: Bearer …` or `X-Webhook-Secret: …`."""
    secret = _secret(settings).decode()
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    given = (headers.get(SECRET_HEADER, ""), token if scheme.lower() == "bearer" else "")
    if not any(_same(secret, one.strip()) for one in given):
        raise Forged("the secret is missing or wrong")


def _secret(settings: Settings) -> bytes:
    secret = settings.get("webhookSecret", "")
    if not secret:
        raise Forged("no webhook secret is set")
    return secret.encode()


def _same(expected: str, given: str) -> bool:
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))


# --- Values -----------------------------------------------------------------------------------------------------------


def document(body: bytes | str) -> dict[str, Any]:
    """The body's JSON object."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise Unreadable("The body is not JSON.") from problem
    if not isinstance(read, dict):
        raise Unreadable("The body must be a JSON object.")
    return read


def value(read: Any, *path: str) -> Any:
    """What stands at the path, or None."""
    for name in path:
        read = read.get(name) if isinstance(read, dict) else None
    return read


def word(read: Any, *path: str) -> str:
    """The text or number that stands at the path; empty where there is none."""
    found = value(read, *path)
    return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else ""


def name(*candidates: str) -> str:
    """The first that has something to read in it, as one short line without control characters."""
    lines = (text.cut(text.one_line(candidate), _NAME_LIMIT) for candidate in candidates)
    return next(filter(None, lines), "unknown")


def event_id(natural: str, body: bytes) -> str:
    """The vendor's id of the event. Where it has none, or an odd one, the body stands for it."""
    return natural if _EVENT_ID.fullmatch(natural) else f"sha256:{hashlib.sha256(body).hexdigest()}"


def moment(written: str) -> datetime | None:
    """A time as text (ISO 8601, no zone means UTC) or as an epoch, in any unit. Whole seconds mean their end, so that
    what was done within a second is not taken to be done before it."""
    try:
        if re.fullmatch(r"\d{9,20}(\.\d{1,9})?", written, re.ASCII):
            at = datetime.fromtimestamp(_seconds(float(written)), UTC)
        else:
            at = datetime.fromisoformat(written)
    except (ValueError, OverflowError, OSError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at if at.microsecond else at.replace(microsecond=999_999)


def _seconds(epoch: float) -> float:
    for limit, per_second in ((_NANOSECONDS, 1e9), (_MICROSECONDS, 1e6), (_MILLISECONDS, 1e3)):
        if epoch > limit:
            return epoch / per_second
    return epoch
