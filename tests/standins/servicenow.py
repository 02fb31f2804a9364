"""ServiceNow's Table API for incidents: computed priority, a state model, queries that ignore what they do not know."""

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.standins.standin import Refused, Standin
from tests.standins.wire import Answer, Request

TABLE = "/api/now/table/incident"
LENGTHS = {"short_description": 160, "description": 4000}
FIELDS = (
    "sys_id", "number", "short_description", "description", "impact", "urgency", "priority", "state", "hold_reason",
    "close_code", "close_notes", "correlation_id", "correlation_display", "category", "subcategory", "assignment_group",
    "assigned_to", "caller_id", "cmdb_ci", "opened_by", "work_notes", "comments", "active", "contact_type",
    "sys_created_on", "sys_updated_on", "sys_mod_count",
)  # fmt: skip
REFERENCES = {"assignment_group": "sys_user_group", "assigned_to": "sys_user", "caller_id": "sys_user",
              "cmdb_ci": "cmdb_ci", "opened_by": "sys_user"}  # fmt: skip
PAGE = "/nav_to.do"
JOURNALS = ("work_notes", "comments")
READ_ONLY = {"sys_id", "number", "priority", "opened_by", "sys_created_on", "sys_updated_on", "sys_mod_count"}
PRIORITY = {"11": "1", "12": "2", "13": "3", "21": "2", "22": "3", "23": "4", "31": "3", "32": "4", "33": "5"}
STATES = {"1": "New", "2": "In Progress", "3": "On Hold", "6": "Resolved", "7": "Closed", "8": "Canceled"}
CLOSE_CODES = (
    "Duplicate", "Known error", "Resolved by caller", "Resolved by change", "Resolved by problem",
    "Resolved by request", "Solution provided", "Workaround provided", "User error", "No resolution provided",
)  # fmt: skip
# A 200 that is none: for fault("status", code=200, body=TRANSACTION_CANCELLED)
TRANSACTION_CANCELLED = {
    "result": [],
    "error": {"message": "Transaction cancelled: maximum execution time exceeded", "detail": ""},
    "status": "failure",
}


class ServiceNow(Standin):
    name = "servicenow"
    routes = (
        ("GET", TABLE, "query"),
        ("POST", TABLE, "create"),
        ("GET", TABLE + "/(?P<sys_id>[^/]+)", "read"),
        ("PATCH", TABLE + "/(?P<sys_id>[^/]+)", "change"),
        ("PUT", TABLE + "/(?P<sys_id>[^/]+)", "change"),
        ("GET", "/api/now/table/(?P<table>[^/]+)", "other_table"),
        ("POST", "/api/now/table/(?P<table>[^/]+)", "other_table"),
        ("GET", PAGE, "browse"),
    )
    username = "standin.agent"
    password = "standin-servicenow-password"
    close_codes = CLOSE_CODES

    def settings(self) -> dict[str, str]:
        return {"instanceUrl": self.url, "username": self.username, "password": self.password}

    def forget(self) -> None:
        self.records: dict[str, dict[str, str]] = {}  # by sys_id, oldest first
        self.journal: dict[str, list[dict[str, str]]] = {}  # by sys_id: {"field", "text"}
        self.ignored: list[str] = []  # fields that were sent and that the table does not have
        self._created = 0

    def state(self) -> dict[str, object]:
        return {"records": self.records, "journal": self.journal, "ignored": self.ignored}

    def close(self, sys_id: str) -> None:
        """Time passes: the record is closed and read-only."""
        with self.lock:
            self.records[sys_id] |= {"state": "7", "active": "false"}

    def remove(self, sys_id: str) -> None:
        """Somebody deletes the record."""
        with self.lock:
            del self.records[sys_id]

    def refusal(self, code: int, message: str = "", detail: str = "") -> Answer:
        if code == 429:
            return self.throttled(1)
        error = {"message": message or f"ServiceNow answers {code}", "detail": detail}
        return Answer(code, {"error": error, "status": "failure"})

    def throttled(self, wait: int) -> Answer:
        allowed = self.rate_limit[0] if isinstance(self.rate_limit, tuple | list) else self.rate_limit or 10
        detail = f"Rate limit of {allowed:g} requests per hour for Table API exceeded"
        headers = {
            "Retry-After": str(wait),
            "X-RateLimit-Limit": f"{allowed:g}",
            "X-RateLimit-Reset": str(int(time.time()) + wait),
            "X-RateLimit-Rule": "Table API",
        }
        error = {"message": "Rate limit exceeded", "detail": detail}
        return Answer(429, {"error": error, "status": "failure"}, headers)

    def browse(self, request: Request) -> Answer:
        """What a person sees who follows a link."""
        sys_id = request.query.get("uri", [""])[0].partition("sys_id=")[2]
        if not (record := self.records.get(sys_id)):
            return Answer(404, "Record not found")
        head = f"Stand-in for ServiceNow: {record['number']} · {STATES[record['state']]}"
        said = [note["text"] for note in self.journal.get(sys_id, [])]
        return Answer(200, "\n\n".join([head, record["short_description"], record["description"], *said]))

    def admit(self, request: Request) -> None:
        if request.path == PAGE:
            return
        if request.basic() != (self.username, self.password):
            answer = self.refusal(401, "User Not Authenticated", "Required to provide Auth information")
            raise Refused(Answer(401, answer.body, {"WWW-Authenticate": 'BASIC realm="Service-now"'}))
        accepted = request.headers.get("accept", "")
        if not any(kind in accepted for kind in ("application/json", "application/*", "*/*")):
            raise Refused(self.refusal(406, "Accept header must include application/json"))
        if request.method in ("POST", "PUT", "PATCH") and not request.is_json:
            raise Refused(self.refusal(415, "Unsupported content type"))

    def other_table(self, request: Request, table: str) -> Answer:
        return self.refusal(400, f"Invalid table {table}")

    # -- writing

    def create(self, request: Request) -> Answer:
        given, notes = self._given(request)
        self._created += 1
        sys_id = hashlib.md5(f"{self.name}{self._created}".encode(), usedforsecurity=False).hexdigest()
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        record = dict.fromkeys(FIELDS, "") | {
            "sys_id": sys_id,
            "number": f"INC{10000 + self._created:07}",
            "state": "1",
            "impact": "3",
            "urgency": "3",
            "category": "inquiry",
            "opened_by": self.username,
            "sys_created_on": now,
            "sys_updated_on": now,
            "sys_mod_count": "0",
        }
        record |= given
        self._obey_the_rules(record)
        self.records[sys_id], self.journal[sys_id] = record, []
        about = {"number": record["number"], "correlation_id": record["correlation_id"], "state": record["state"]}
        self.effect("ticket", key=sys_id, **about)
        self._note(record, notes)
        location = {"Location": f"{self.url}{TABLE}/{sys_id}"}
        return Answer(201, {"result": self._shown(record, request)}, location)

    def change(self, request: Request, sys_id: str) -> Answer:
        record = self._record(sys_id)
        given, notes = self._given(request)
        if record["state"] in ("7", "8"):
            raise Refused(self._operation_failed(f"The record is {STATES[record['state']]} and read-only"))
        changed = record | given
        self._obey_the_rules(changed)
        changed["sys_updated_on"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        changed["sys_mod_count"] = str(int(changed["sys_mod_count"]) + 1)
        moved = changed["state"] != record["state"]
        self.records[sys_id] = changed
        self.effect("transition" if moved else "update", key=sys_id, state=changed["state"], fields=sorted(given))
        self._note(changed, notes)
        return Answer(200, {"result": self._shown(changed, request)})

    def _record(self, sys_id: str) -> dict[str, str]:
        if sys_id not in self.records:
            detail = "Record doesn't exist or ACL restricts the record retrieval"
            raise Refused(self.refusal(404, "No Record found", detail))
        return self.records[sys_id]

    def _given(self, request: Request) -> tuple[dict[str, str], dict[str, str]]:
        """The fields sent, as strings, and the journal entries among them."""
        try:
            body = request.json()
        except ValueError as error:
            raise Refused(self.refusal(400, "Exception while reading request", str(error))) from None
        if not isinstance(body, dict) or any(isinstance(value, dict | list) for value in body.values()):
            raise Refused(self.refusal(400, "Exception while reading request", "an object of plain values is wanted"))
        if forbidden := sorted(READ_ONLY & set(body)):
            raise Refused(self._operation_failed(f"Read-only fields: {', '.join(forbidden)}"))
        self.ignored += [name for name in body if name not in FIELDS]
        values = {name: _string(value) for name, value in body.items() if name in FIELDS}
        for name, most in LENGTHS.items():
            if len(values.get(name, "")) > most:
                raise Refused(self._operation_failed(f"{name} is longer than {most} characters"))
        notes = {name: values.pop(name) for name in JOURNALS if name in values}
        return values, {name: text for name, text in notes.items() if text}

    def _obey_the_rules(self, record: dict[str, str]) -> None:
        """Data policies, then the computed fields."""
        if record["state"] not in STATES:
            raise Refused(self._operation_failed(f"Invalid state {record['state']}"))
        if record["impact"] + record["urgency"] not in PRIORITY:
            raise Refused(self._operation_failed("Impact and urgency are 1, 2 or 3"))
        mandatory = {"3": ["hold_reason"], "6": ["close_code", "close_notes"], "7": ["close_code", "close_notes"]}
        if missing := [name for name in mandatory.get(record["state"], []) if not record[name].strip()]:
            raise Refused(self._operation_failed(f"The following fields are mandatory: {', '.join(missing)}"))
        if record["close_code"] and record["close_code"] not in self.close_codes:
            raise Refused(self._operation_failed(f"Invalid close code {record['close_code']}"))
        if not record["short_description"].strip():
            raise Refused(self._operation_failed("The following fields are mandatory: short_description"))
        record["priority"] = PRIORITY[record["impact"] + record["urgency"]]
        record["active"] = "false" if record["state"] in ("7", "8") else "true"

    def _operation_failed(self, why: str) -> Answer:
        return self.refusal(403, "Operation Failed", f"Data Policy Exception: {why}")

    def _note(self, record: dict[str, str], notes: dict[str, str]) -> None:
        for name, text in notes.items():
            self.journal[record["sys_id"]].append({"field": name, "text": text})
            if "[code]" in text.lower():  # what stands between [code] and [/code] is rendered as HTML
                self.render("html", f"{record['number']} {name}", text)
            self.effect("comment", key=record["sys_id"], field=name, text=text[:200])

    # -- reading

    def read(self, request: Request, sys_id: str) -> Answer:
        return Answer(200, {"result": self._shown(self._record(sys_id), request)})

    def query(self, request: Request) -> Answer:
        limit, offset = request.first("sysparm_limit", "10000"), request.first("sysparm_offset", "0")
        if not limit.isdigit() or not offset.isdigit():
            return self.refusal(400, "Invalid sysparm_limit or sysparm_offset")
        found = _search(list(self.records.values()), request.first("sysparm_query"))
        page = found[int(offset) : int(offset) + int(limit)]
        return Answer(200, {"result": [self._shown(r, request) for r in page]}, {"X-Total-Count": str(len(found))})

    def _shown(self, record: dict[str, str], request: Request) -> dict[str, Any]:
        wanted = [name for name in request.first("sysparm_fields").split(",") if name] or list(FIELDS)
        shown: dict[str, Any] = {name: record[name] for name in wanted if name in record}
        if request.first("sysparm_exclude_reference_link") != "true":
            for name, table in REFERENCES.items():
                if shown.get(name):
                    link = f"{self.url}/api/now/table/{table}/{shown[name]}"
                    shown[name] = {"link": link, "value": shown[name]}
        return shown


def _string(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


_OPERATORS: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    # the longer of two that begin alike first
    ("ISNOTEMPTY", lambda have, _: have != ""),
    ("ISEMPTY", lambda have, _: have == ""),
    ("STARTSWITH", lambda have, want: have.startswith(want)),
    ("NOT IN", lambda have, want: have not in want.split(",")),
    ("LIKE", lambda have, want: want.lower() in have.lower()),
    ("IN", lambda have, want: have in want.split(",")),
    ("!=", lambda have, want: have != want),
    (">=", lambda have, want: have >= want),
    ("<=", lambda have, want: have <= want),
    ("=", lambda have, want: have == want),
    (">", lambda have, want: have > want),
    ("<", lambda have, want: have < want),
)


def _search(rows: list[dict[str, str]], query: str) -> list[dict[str, str]]:
    """An encoded query. A clause that makes no sense (an unknown field) is ignored, and the rest returns rows."""
    order: list[tuple[str, bool]] = []
    alternatives: list[list[Callable[[dict[str, str]], bool]]] = []  # all must hold, one of each
    for part in query.split("^"):
        for word, backwards in (("ORDERBYDESC", True), ("ORDERBY", False)):
            if part.startswith(word):
                order.append((part.removeprefix(word), backwards))
                break
        else:
            joined = part.startswith("OR") and alternatives
            clause = _clause(part.removeprefix("OR") if joined else part)
            if clause is not None and joined:
                alternatives[-1].append(clause)
            elif clause is not None:
                alternatives.append([clause])
    found = [row for row in rows if all(any(clause(row) for clause in one) for one in alternatives)]
    for name, backwards in reversed(order):
        found.sort(key=lambda row, name=name: row.get(name, ""), reverse=backwards)
    return found


def _clause(part: str) -> Callable[[dict[str, str]], bool] | None:
    name = next((name for name in sorted(FIELDS, key=len, reverse=True) if part.startswith(name)), None)
    if name is None:
        return None
    rest = part.removeprefix(name)
    for operator, holds in _OPERATORS:
        if rest.startswith(operator):
            want = rest.removeprefix(operator)
            return lambda row: holds(row[name], want)
    return None
