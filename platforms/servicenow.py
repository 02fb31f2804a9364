"""ServiceNow through its Table API: an incident is a row of the table `incident` with our key as its correlation_id.

https://www.servicenow.com/docs/r/api-reference/rest-apis/c_TableAPI.html

ServiceNow knows no idempotency: after a lost answer the row is found again by its correlation_id.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from platforms import text, webhooks
from platforms.contract import (
    Deed,
    Field,
    Inbound,
    Notice,
    Platform,
    PlatformError,
    Remote,
    Seen,
    Settings,
    Step,
    begun,
)
from platforms.http import Caller

# Impact and urgency; ServiceNow computes the priority from them: 1/1 is 1, 2/3 is 4.
_WEIGHT = {"critical": ("1", "1"), "high": ("1", "2"), "medium": ("2", "2"), "low": ("2", "3")}
_STATE = {"reopen": "2", "acknowledge": "2", "resolve": "6"}
_NEW, _IN_PROGRESS, _ON_HOLD, _RESOLVED, _CLOSED, _CANCELLED = "1", "2", "3", "6", "7", "8"
_OVER = (_RESOLVED, _CLOSED, _CANCELLED)
_STATE_NAMES = {
    _NEW: "New",
    _IN_PROGRESS: "In Progress",
    _ON_HOLD: "On Hold",
    _RESOLVED: "Resolved",
    _CLOSED: "Closed",
    _CANCELLED: "Canceled",
}
_CLOSE_CODE = "Solution provided"
_COLUMNS = "sys_id,number,state,correlation_id"
_SHORT_LIMIT = 160
_TEXT_LIMIT = 4000
_NAME_LIMIT = 100

# What journal fields render as HTML.
_CODE_TAG = re.compile(r"\[(?=\s*/?\s*code\s*\])", re.IGNORECASE)


class ServiceNow:
    name = "servicenow"
    label = "ServiceNow"
    pages = False
    keyed = False
    reopens_resolved_only = False
    searchable = True
    search_lag = 0.0
    readable = True
    fields = (
        Field("instanceUrl", "Instance", required=True, target=True, help="Such as https://example.service-now.com"),
        Field("username", "User name", required=True),
        Field("password", "Password", required=True, secret=True),
        Field("assignmentGroup", "Assignment group"),
        Field("closeCode", "Resolution code", default=_CLOSE_CODE, help="One that the instance offers."),
        Field(
            "webhookSecret",
            "Webhook secret",
            secret=True,
            help="ServiceNow signs nothing: the business rule that sends to /api/v1/inbound/servicenow sets the header "
            "X-Webhook-Secret (or Authorization: Bearer) to this.",
        ),
    )
    identity = ("instanceUrl",)

    def warning(self, settings: Settings) -> str:
        return ""

    def create(self, call: Caller, settings: Settings, notice: Notice) -> Remote:
        """Make the row, then set its state: a business rule may refuse a row that begins as resolved."""
        table = _Table(call, settings)
        row = table.write("POST", "", _new_row(settings, notice))
        remote = table.remote(row)
        changes = _first_state(settings, notice)
        if changes:
            with begun():  # Whoever tries again must look for the row first.
                table.write("PATCH", remote.data["sysId"], changes)
        return remote

    def update(
        self, call: Caller, settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """All steps in one write. A row that is closed or cancelled takes no more changes: what is resolved is done
        with it, an incident that is alive needs a new row."""
        table = _Table(call, settings)
        row = table.row(remote, notice.key)
        if row["state"] in (_CLOSED, _CANCELLED):
            if notice.status == "resolved":
                return remote
            raise PlatformError(f"{row['number']} is closed at ServiceNow and cannot be changed", recreate=True)
        table.write("PATCH", row["sys_id"], _changes(settings, notice, steps))
        return remote

    def find(self, call: Caller, settings: Settings, key: str) -> Remote | None:
        """The oldest row with this correlation_id."""
        table = _Table(call, settings)
        row = table.search(key)
        return table.remote(row) if row else None

    def look(self, call: Caller, settings: Settings, remote: Remote, key: str) -> Seen | None:
        """The row's state. On Hold and states of the instance's own are taken for being worked on."""
        table = _Table(call, settings)
        # A page of something in between says 404 too: only a search that finds nothing says that there is none.
        row = table.shown(remote, key) or table.search(key)
        if row is None:
            return Seen("Not found", "gone")
        state = row["state"]
        words = _STATE_NAMES.get(state) or f"state {text.cut(call.clean(state), 20)}"
        return Seen(words, "resolved" if state in _OVER else "open" if state == _NEW else "acknowledged")

    def test(self, call: Caller, settings: Settings) -> str:
        """Read one row. That the account may write could only be proven by writing."""
        try:
            rows = _Table(call, settings).read("", {"sysparm_limit": "1", "sysparm_fields": "sys_id"})
        except PlatformError as error:
            if error.status == 403:
                raise PlatformError("The account may not read incidents", permanent=True, status=403) from error
            raise
        if not isinstance(rows, list):
            raise PlatformError("The address answers, but not as a ServiceNow instance does", permanent=True)
        return "Connection successful. Whether the account may write incidents shows with the first one."

    def read(self, settings: Settings, headers: Mapping[str, str], body: bytes, now: datetime) -> Inbound | None:
        """What a business rule of the instance sends after a change of state: the row's columns `correlation_id`,
        `number`, `sys_id`, `state`, `sys_updated_by`, `sys_updated_on` (UTC), `sys_mod_count`, and `previous_state`.
        """
        webhooks.prove_secret(settings, headers)
        row = webhooks.document(body)
        deed = _deed(webhooks.word(row, "state"), webhooks.word(row, "previous_state"))
        if deed is None:
            return None
        sys_id, count, by = (webhooks.word(row, column) for column in ("sys_id", "sys_mod_count", "sys_updated_by"))
        return Inbound(
            event=webhooks.event_id(f"{sys_id}:{count}" if sys_id and count else "", body),
            deed=deed,
            by=webhooks.name(by),
            keys=(webhooks.word(row, "correlation_id"),),
            remote_ids=(webhooks.word(row, "number"), sys_id),
            at=webhooks.moment(webhooks.word(row, "sys_updated_on")),
            maybe_ours=by in ("", settings.get("username", "")),
        )


def _deed(state: str, before: str) -> Deed | None:
    if state == before or (state in _OVER and before in _OVER):
        return None
    if state in _OVER:
        return "resolve"
    if state in (_IN_PROGRESS, _ON_HOLD):
        return "reopen" if before in _OVER else "begin"
    return "reopen" if state == _NEW else None


class _Table:
    """The table `incident` of one instance with one account."""

    def __init__(self, call: Caller, settings: Settings) -> None:
        self._base = settings["instanceUrl"].rstrip("/")
        self._call = call
        self._auth = (settings["username"], settings["password"])

    def read(self, sys_id: str, params: Mapping[str, str]) -> Any:
        return self._result("GET", sys_id, params, None)

    def write(self, method: str, sys_id: str, fields: Mapping[str, str]) -> dict[str, str]:
        """Returns the row's `_COLUMNS`."""
        row = self._result(method, sys_id, {"sysparm_fields": _COLUMNS}, {name: v for name, v in fields.items() if v})
        return _row(row)

    def row(self, remote: Remote, key: str) -> dict[str, str]:
        """The row as it stands, once it is sure to be ours."""
        row = self.shown(remote, key)
        if row is None:
            raise PlatformError(
                f"ServiceNow does not show {remote.id or 'the incident'} to this account: it was deleted, or the "
                "account lost the right to read it. Give the right back, or create the ticket anew.",
                permanent=True,
                status=404,
            )
        return row

    def shown(self, remote: Remote, key: str) -> dict[str, str] | None:
        """The row, which is sure to be ours; None where this account is shown none."""
        sys_id = remote.data.get("sysId", "")
        try:
            row = _row(self.read(sys_id, {"sysparm_fields": _COLUMNS})) if sys_id else self.search(key)
        except PlatformError as error:
            if error.status != 404:
                raise
            return None
        if row and row["correlation_id"] != key:
            raise PlatformError(f"{row['number']} does not carry our correlation_id {key}: left alone", permanent=True)
        return row

    def search(self, key: str) -> dict[str, str] | None:
        if "^" in key:  # It would begin another clause of the query.
            raise PlatformError("A correlation_id cannot hold ^", permanent=True)
        query = f"correlation_id={key}^ORDERBYsys_created_on"
        rows = self.read("", {"sysparm_query": query, "sysparm_limit": "2", "sysparm_fields": _COLUMNS})
        if not isinstance(rows, list):
            raise PlatformError("ServiceNow answered the search with something other than a list", in_doubt=True)
        # ServiceNow leaves out a clause that it cannot use, such as one on a column hidden from the account, and gives
        # whatever the rest matches: somebody else's incidents, which say nothing about ours.
        found = [_row(row) for row in rows]
        for row in found:
            if row["correlation_id"] == key:
                return row
        if found:
            raise PlatformError(
                "ServiceNow ignored the search by correlation_id: let the account read that column of incident",
                permanent=True,
            )
        return None

    def remote(self, row: Mapping[str, str]) -> Remote:
        sys_id = row["sys_id"]
        target = quote(f"incident.do?sys_id={sys_id}", safe="")
        return Remote(id=row["number"] or sys_id, url=f"{self._base}/nav_to.do?uri={target}", data={"sysId": sys_id})

    def _result(self, method: str, sys_id: str, params: Mapping[str, str], body: Mapping[str, str] | None) -> Any:
        address = f"{self._base}/api/now/table/incident" + (f"/{quote(sys_id, safe='')}" if sys_id else "")
        try:
            reply = self._call.request(
                method,
                address,
                headers={"Accept": "application/json"},
                auth=self._auth,
                params={**params, "sysparm_exclude_reference_link": "true"},
                json=body,
            )
        except PlatformError as error:
            if error.status == 401:
                raise PlatformError("Invalid user name or password", permanent=True, status=401) from error
            raise
        try:
            answer = reply.json()
        except PlatformError as error:
            raise PlatformError(
                "ServiceNow answered with a page instead of data: is the instance hibernating, or the address wrong?",
                in_doubt=True,
                status=reply.status,
            ) from error
        # "Transaction cancelled: maximum execution time exceeded" comes with a 200.
        trouble = answer.get("error") if isinstance(answer, dict) else "no object"
        if trouble or "result" not in answer:
            said = trouble.get("message") if isinstance(trouble, dict) else trouble
            message = self._call.clean(f"ServiceNow could not finish: {said or 'no result'}")
            raise PlatformError(message, in_doubt=True, status=reply.status)
        return answer["result"]


def _row(result: Any) -> dict[str, str]:
    row = {name: result.get(name) for name in _COLUMNS.split(",")} if isinstance(result, dict) else {}
    if not isinstance(row.get("sys_id"), str) or not row["sys_id"]:
        raise PlatformError("ServiceNow answered without a sys_id", in_doubt=True)
    return {name: str(value or "") for name, value in row.items()}


def _new_row(settings: Settings, notice: Notice) -> dict[str, str]:
    return {
        "short_description": _unmarked(text.headline(notice, _SHORT_LIMIT, _size)),
        "description": _unmarked(text.summary(notice, _TEXT_LIMIT, _size)),
        **_weight(notice),
        "correlation_id": notice.key,
        "correlation_display": text.PRODUCT,
        "assignment_group": settings.get("assignmentGroup", ""),
    }


def _first_state(settings: Settings, notice: Notice) -> dict[str, str]:
    if notice.status == "acknowledged":
        return {"state": _IN_PROGRESS}
    return {"state": _RESOLVED, **_closing(settings, notice)} if notice.status == "resolved" else {}


def _changes(settings: Settings, notice: Notice, steps: tuple[Step, ...]) -> dict[str, str]:
    said = text.comment(notice, steps, _TEXT_LIMIT, _size)
    changes = {"work_notes": _unmarked(said)} if said else {}
    states = [_STATE[step] for step in steps if step in _STATE]
    if states:
        changes["state"] = states[-1]
    if states and states[-1] == _RESOLVED:
        changes |= _closing(settings, notice)
    if "escalate" in steps or "reopen" in steps:  # A reopened incident stands escalated no longer.
        changes |= _weight(notice)
    return changes


def _weight(notice: Notice) -> dict[str, str]:
    impact, urgency = ("1", "1") if notice.escalated else _WEIGHT.get(notice.severity, ("2", "2"))
    return {"impact": impact, "urgency": urgency}


def _closing(settings: Settings, notice: Notice) -> dict[str, str]:
    """Both are asked for by the instance's data policy."""
    actor = text.cut(text.one_line(notice.actor), _NAME_LIMIT, text.units)
    said = f"Resolved by {actor}." if actor else "Resolved."
    if text.cause(notice):
        said += f"\n\n{text.cause_heading(notice)}:\n{text.cause(notice)}"
    notes = _unmarked(text.cut(said, _TEXT_LIMIT, _size))
    return {"close_code": settings.get("closeCode") or _CLOSE_CODE, "close_notes": notes}


def _unmarked(value: str) -> str:
    """A space breaks the tag that journals would render."""
    return _CODE_TAG.sub("[ ", value)


def _size(value: str) -> int:
    return text.units(_unmarked(value))


PLATFORM: Platform = ServiceNow()
