"""What every platform module promises, and the few shapes that pass between us and them.

A platform is handed its settings and a notice and looks nothing up: no database, no clock of its own, no other module's
state. It returns, or raises `PlatformError`, which says whether trying again can help, and when.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from platforms.http import Caller

Settings = Mapping[str, str]

# One change that a ticket has not shown yet. They come in the order in which they happened.
Step = Literal["reopen", "acknowledge", "escalate", "resolve", "cause", "note"]

# What somebody did to our record at the platform. `begin`: set it to "in progress", which reopens what was resolved and
# acknowledges what was not; vendors that know only states do not tell the two apart.
Deed = Literal["acknowledge", "unacknowledge", "begin", "resolve", "reopen"]

# What a record at the platform amounts to. `gone`: it was deleted, or is hidden from us.
Category = Literal["open", "acknowledged", "resolved", "gone"]

# A request that a platform took and carries out later: what was asked, and the id by which its outcome is told.
Taken = tuple[str, str]


class PlatformError(Exception):
    """A platform did not do what was asked. The message is for people and holds no secret.

    permanent     trying the same again cannot help until somebody changes something
    in_doubt      the request may have been carried out although no answer says so
    retry_after   seconds that the platform asks us to wait
    pause         the whole platform asks for a rest (429), not this ticket alone
    recreate      the record we knew can no longer be changed: its next generation must be a new one
    status        the HTTP status, where one was received
    taken         what it was asked and took, in order: the next attempt asks what came of it before it sends it again
    """

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        in_doubt: bool = False,
        retry_after: float | None = None,
        pause: bool = False,
        recreate: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.taken: tuple[Taken, ...] = ()
        self.message = message
        self.permanent = permanent
        self.in_doubt = in_doubt
        self.retry_after = retry_after
        self.pause = pause
        self.recreate = recreate
        self.status = status


class Forged(Exception):
    """What arrived cannot be shown to come from the platform. The message is for the log."""


class Unreadable(Exception):
    """What arrived comes from the platform, and is not in its format. The message is for people."""


@contextmanager
def begun() -> Iterator[None]:
    """For what follows a request that was accepted: an error in it leaves the whole in doubt."""
    try:
        yield
    except PlatformError as error:
        error.in_doubt = True
        raise


@dataclass(frozen=True)
class Field:
    """One setting of a platform, by its name in the API."""

    name: str
    label: str
    required: bool = False
    secret: bool = False
    target: bool = False  # an address that secrets are sent to: changing it needs the secrets again
    default: str = ""
    hosts: tuple[str, ...] = ()  # the only hosts allowed, where the vendor has fixed ones
    path: str = ""  # a regular expression that the address's path must match, for vendors with fixed ones
    help: str = ""


@dataclass(frozen=True)
class Note:
    """What a person said with a move."""

    actor: str
    text: str
    at: datetime


@dataclass(frozen=True)
class Notice:
    """An incident as a ticket should show it now. Texts come from logs and models: hostile until escaped."""

    key: str  # the remote identity, `<incident id>-<token>`, with `-<generation>` from the second on
    incident_id: str
    title: str
    description: str
    severity: str  # critical, high, medium, low
    status: str  # open, acknowledged, escalated, resolved
    escalated: bool  # whether it stands escalated now, acknowledged since or not
    service: str
    affected_services: tuple[str, ...]
    score: float
    anomaly_count: int
    root_cause: str
    fallback: bool
    link: str  # the incident in our console
    opened_at: datetime
    environment: str = ""
    trace_id: str = ""
    actor: str = ""  # who made the latest move
    notes: tuple[Note, ...] = ()  # said since the ticket last changed
    previous_link: str = ""  # the record of the generation before
    taken: tuple[Taken, ...] = ()  # by the platform in the attempt before, which never learned what came of it


@dataclass(frozen=True)
class Remote:
    """Where the ticket is at the platform. Empty id: the platform gives none (Slack)."""

    id: str = ""
    url: str = ""
    data: Mapping[str, str] = field(default_factory=dict)  # what else the platform needs to find it again


@dataclass(frozen=True)
class Seen:
    """What a ticket really shows at the platform."""

    status: str  # as the platform calls it, one short line: hostile until escaped
    category: Category


@dataclass(frozen=True)
class Inbound:
    """What a platform's webhook tells: that somebody did something to a record, which may be ours."""

    event: str  # the event's own id, the same in every delivery of it
    deed: Deed
    by: str  # who did it, one short line
    keys: tuple[str, ...] = ()  # what may be our key
    remote_ids: tuple[str, ...] = ()  # the record's, as in `Remote`'s id and data: copies of it carry our key too
    title: str = ""  # the record's, for where the platform does not tell our key
    record_since: datetime | None = None  # when the record of that title was made
    at: datetime | None = None  # when it was done, by the platform's clock
    maybe_ours: bool = True  # may be the echo of a request of ours; False: somebody else's doing for sure
    shows: bool = True  # the platform shows by itself what was done


class Platform(Protocol):
    """One module's `PLATFORM`. All calls go through the caller, which holds the attempt's deadline."""

    name: str
    label: str
    pages: bool  # wakes people: never waits for a cause, and is where escalations go
    keyed: bool  # honours a key of ours: after an unknown outcome the same request may simply be sent again
    reopens_resolved_only: bool  # asked to open a record that is there and acknowledged, it leaves that as it is
    searchable: bool  # `find` can tell whether a ticket of ours exists
    search_lag: float  # seconds until a new record is sure to be found
    readable: bool  # `look` can tell what a ticket shows
    fields: tuple[Field, ...]
    identity: tuple[str, ...]  # the fields that say whose tickets they are: others may change under an open ticket

    def warning(self, settings: Settings) -> str:
        """What an operator should know about the vendor's future, who has these settings; mostly nothing."""

    def create(self, call: "Caller", settings: Settings, notice: Notice) -> Remote:
        """Open the ticket in the notice's present state (a resolved one ends up resolved)."""

    def update(
        self, call: "Caller", settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """Make the ticket show the notice; `steps` are what it does not show yet. Already done is success."""

    def find(self, call: "Caller", settings: Settings, key: str) -> Remote | None:
        """The ticket created under this key, if the platform knows one. Only where `searchable`."""

    def look(self, call: "Caller", settings: Settings, remote: Remote, key: str) -> Seen | None:
        """What the ticket really shows now; changes nothing. None where not `readable`."""

    def test(self, call: "Caller", settings: Settings) -> str:
        """Check address, credentials and rights without leaving a trace. Returns what to tell the operator."""

    def read(self, settings: Settings, headers: Mapping[str, str], body: bytes, now: datetime) -> Inbound | None:
        """What a webhook tells; None where it is nothing that moves an incident. Looks names of headers up in any case.

        Raises Forged where the secret does not prove that the platform sent it, or none is set; Unreadable after that.
        """
