"""Jira Cloud, REST API v3: issues, their workflow, and a search that lags behind."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from tests.standins import adf, jira_fields, jql
from tests.standins.standin import Refused, Standin
from tests.standins.wire import Answer, Request

API = "/rest/api/3"
KEY = r"(?P<key>[^/]+)"
CATEGORIES = {"To Do": (2, "new"), "In Progress": (4, "indeterminate"), "Done": (3, "done")}
PERMISSIONS = ("BROWSE_PROJECTS", "CREATE_ISSUES", "EDIT_ISSUES", "TRANSITION_ISSUES", "ADD_COMMENTS", "DELETE_ISSUES",
               "RESOLVE_ISSUES", "ASSIGN_ISSUES")  # fmt: skip
UNKNOWN_USER = "You are not authenticated. Authentication required to perform this operation."
BAD_PAYLOAD = "Invalid request payload. Refer to the REST API documentation and try again."
REMOVED = "The requested API has been removed. Please migrate to the /rest/api/3/search/jql API."
NOT_FOUND = "Issue does not exist or you do not have permission to see it."
CANNOT_BE_SET = "Field '{}' cannot be set. It is not on the appropriate screen, or unknown."


@dataclass
class Issue:
    id: str
    key: str
    created: float
    fields: dict[str, Any]  # as set; project, issuetype and priority as their names, the description as ADF
    status: str = "To Do"
    resolution: str | None = None
    comments: list[dict[str, Any]] = field(default_factory=list)  # {"id", "body" (ADF), "text"}
    properties: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)  # the statuses it went through

    @property
    def summary(self) -> str:
        return self.fields["summary"]

    @property
    def labels(self) -> list[str]:
        return self.fields.get("labels", [])

    @property
    def category(self) -> str:
        """new, indeterminate or done."""
        return CATEGORIES[self.status][1]

    @property
    def text(self) -> str:
        """What the description says."""
        return adf.text(self.fields["description"]) if self.fields.get("description") else ""


class Jira(Standin):
    name = "jira"
    options = ("lag", "rate_limit", "resolution", "priority_on_screen", "comment_limit")
    routes = (
        ("POST", f"{API}/issue", "create"),
        ("GET", f"{API}/issue/createmeta/{KEY}/issuetypes", "list_issue_types"),
        ("GET", f"{API}/issue/{KEY}", "read"),
        ("PUT", f"{API}/issue/{KEY}", "edit"),
        ("GET", f"{API}/issue/{KEY}/transitions", "list_transitions"),
        ("POST", f"{API}/issue/{KEY}/transitions", "transition"),
        ("GET", f"{API}/issue/{KEY}/comment", "list_comments"),
        ("POST", f"{API}/issue/{KEY}/comment", "comment"),
        ("GET", f"{API}/issue/{KEY}/properties/(?P<name>[^/]+)", "read_property"),
        ("PUT", f"{API}/issue/{KEY}/properties/(?P<name>[^/]+)", "set_property"),
        ("GET", f"{API}/search/jql", "search_by_get"),
        ("POST", f"{API}/search/jql", "search"),
        ("GET", f"{API}/search", "search_as_of_old"),
        ("POST", f"{API}/search", "search_as_of_old"),
        ("GET", f"{API}/myself", "myself"),
        ("GET", f"{API}/mypermissions", "my_permissions"),
        ("GET", f"{API}/project/search", "list_projects"),
        ("GET", f"{API}/project/{KEY}", "read_project"),
        ("GET", f"{API}/priority", "list_priorities"),
        ("GET", f"{API}/serverInfo", "server_info"),
        ("GET", f"/browse/{KEY}", "browse"),
    )
    email = "agent@standin.example"
    token = "standin-jira-token-0123456789abcdef"
    resolution = "absent"  # on the screen of the transition to Done: absent, optional or required
    priority_on_screen = True
    comment_limit = 5000

    def __init__(self, *args: Any, **options: Any) -> None:
        self.projects = {"OPS": "Operations"}  # key: name; with more than one, a client must say which
        self.issue_types = ("Task", "Bug", "Incident")
        self.permissions = set(PERMISSIONS)
        # status: its transitions (id, name, status it leads to). Their names say nothing about the category.
        self.workflow = {
            "To Do": [("21", "Start", "In Progress"), ("31", "Close it", "Done")],
            "In Progress": [("11", "Stop", "To Do"), ("32", "Close it", "Done")],
            "Done": [("12", "Again", "To Do")],
        }
        super().__init__(*args, **options)

    def settings(self) -> dict[str, str]:
        account = {"apiToken": self.token, "userEmail": self.email}
        return {"baseUrl": self.url, **account, "projectKey": next(iter(self.projects))}

    def forget(self) -> None:
        self.issues: dict[str, Issue] = {}  # by key, oldest first
        self._created = 0

    def state(self) -> dict[str, object]:
        return {"issues": {key: _issue_state(issue) for key, issue in self.issues.items()}}

    def remove(self, key: str) -> None:
        """Somebody deletes the issue."""
        with self.lock:
            del self.issues[key]

    def move(self, key: str, status: str) -> None:
        """Somebody moves the issue on Jira's own pages."""
        with self.lock:
            self.issues[key].status = status
            self.issues[key].history.append(status)

    def refusal(self, code: int, message: str = "", /, **errors: str) -> Answer:
        if code == 429:
            return self.throttled(1)
        messages = [message] if message else [] if errors else [f"Jira answers {code}"]
        return Answer(code, {"errorMessages": messages, "errors": errors})

    def throttled(self, wait: int) -> Answer:
        reset = datetime.now(UTC) + timedelta(seconds=wait)
        headers = {
            "Retry-After": str(wait),
            "X-RateLimit-Reset": reset.strftime("%Y-%m-%dT%H:%MZ"),
            "RateLimit-Reason": "jira-burst-based",
        }
        return Answer(429, {"errorMessages": ["Rate limit exceeded."], "errors": {}}, headers)

    def browse(self, request: Request, key: str) -> Answer:
        """What a person sees who follows a link."""
        if not (issue := self.issues.get(key)):
            return Answer(404, NOT_FOUND)
        head = f"Stand-in for Jira: {key} · {issue.status}"
        said = [comment["text"] for comment in issue.comments]
        return Answer(200, "\n\n".join([head, issue.summary, issue.text, *said]))

    # -- who asks: wrong credentials are served as nobody, who sees nothing

    def _known(self, request: Request) -> bool:
        return request.basic() == (self.email, self.token)

    def _must_be_known(self, request: Request) -> None:
        """POST and PUT of nobody: 401; GET of nobody: 404, as if the issue were not there."""
        if self._known(request):
            return
        if request.method == "GET":
            raise Refused(self.refusal(404, NOT_FOUND))
        raise Refused(self.refusal(401, UNKNOWN_USER))

    def _must_be_allowed(self, permission: str) -> None:
        if permission not in self.permissions:
            raise Refused(self.refusal(403, f"You do not have the permission {permission}."))

    def myself(self, request: Request) -> Answer:
        if not self._known(request):
            return Answer(401, "Client must be authenticated to access this resource.")
        user = {"accountId": "standin-account", "emailAddress": self.email, "displayName": "Agent", "active": True}
        return Answer(200, {"self": f"{self.url}{API}/user?accountId=standin-account", **user})

    def my_permissions(self, request: Request) -> Answer:
        asked = [name for name in request.first("permissions").split(",") if name]
        if not asked:
            return self.refusal(400, "The 'permissions' query parameter is required.")
        if unknown := [name for name in asked if name not in PERMISSIONS]:
            return self.refusal(400, f"Unrecognized permission: {', '.join(unknown)}")
        project = request.first("projectKey")
        if project and (not self._known(request) or project not in self.projects):
            return self.refusal(404, f"No project could be found with key '{project}'.")
        have = self.permissions if self._known(request) else set()
        return Answer(200, {"permissions": {name: {"key": name, "havePermission": name in have} for name in asked}})

    # -- projects

    def list_projects(self, request: Request) -> Answer:
        visible = self._known(request) and (request.first("action") != "create" or "CREATE_ISSUES" in self.permissions)
        projects = [self._project(key) for key in self.projects] if visible else []
        most = int(request.first("maxResults", "50"))
        page = {"maxResults": most, "startAt": 0, "total": len(projects), "isLast": len(projects) <= most}
        return Answer(200, {**page, "values": projects[:most]})

    def read_project(self, request: Request, key: str) -> Answer:
        if not self._known(request) or key not in self.projects:
            return self.refusal(404, f"No project could be found with key '{key}'.")
        return Answer(200, self._project(key))

    def list_issue_types(self, request: Request, key: str) -> Answer:
        if not self._known(request) or key not in self.projects:
            return self.refusal(404, f"No project could be found with key '{key}'.")
        types = [{"id": str(10001 + i), "name": name, "subtask": False} for i, name in enumerate(self.issue_types)]
        return Answer(200, {"startAt": 0, "maxResults": 50, "total": len(types), "issueTypes": types})

    def list_priorities(self, request: Request) -> Answer:
        self._must_be_known(request)
        return Answer(200, [{"id": str(i + 1), "name": name} for i, name in enumerate(jira_fields.PRIORITIES)])

    def server_info(self, request: Request) -> Answer:
        return Answer(200, {"baseUrl": self.url, "deploymentType": "Cloud", "version": "1001.0.0-SNAPSHOT"})

    def _project(self, key: str) -> dict[str, str]:
        return {"id": str(10000 + list(self.projects).index(key)), "key": key, "name": self.projects[key]}

    # -- issues

    def create(self, request: Request) -> Answer:
        self._must_be_known(request)
        body = self._body(request, {"fields", "properties", "update", "historyMetadata"})
        self._must_be_allowed("CREATE_ISSUES")
        fields = self._fields(body.get("fields"), creating=True)
        properties = jira_fields.properties(body.get("properties", []))
        self._created += 1
        number = str(10000 + self._created)
        issue = Issue(number, f"{fields['project']}-{self._created}", time.time(), fields, properties=properties)
        self.issues[issue.key] = issue
        self._rendered(f"{issue.key} description", fields.get("description"))
        self.effect("ticket", key=issue.key, labels=issue.labels, summary=issue.summary)
        return Answer(201, {"id": issue.id, "key": issue.key, "self": f"{self.url}{API}/issue/{issue.id}"})

    def read(self, request: Request, key: str) -> Answer:
        issue = self._issue(request, key)
        wanted = request.first("fields", "*all").split(",")
        return Answer(200, self._shown(issue, None if "*all" in wanted else wanted))

    def edit(self, request: Request, key: str) -> Answer:
        issue = self._issue(request, key)
        body = self._body(request, {"fields", "update", "properties", "historyMetadata"})
        self._must_be_allowed("EDIT_ISSUES")
        given = dict(body.get("fields") or {})
        for name, operations in (body.get("update") or {}).items():
            given[name] = self._operated(issue, name, operations)
        fields = self._fields(given, creating=False)
        issue.properties.update(jira_fields.properties(body.get("properties", [])))
        issue.fields.update(fields)
        self._rendered(f"{issue.key} description", fields.get("description"))
        self.effect("update", key=issue.key, fields=sorted(fields))
        return Answer(204)

    def _issue(self, request: Request, key: str) -> Issue:
        self._must_be_known(request)
        key = unquote(key)
        issue = self.issues.get(key) or next((i for i in self.issues.values() if i.id == key), None)
        if issue is None or "BROWSE_PROJECTS" not in self.permissions:
            raise Refused(self.refusal(404, NOT_FOUND))
        return issue

    def _body(self, request: Request, allowed: set[str]) -> dict[str, Any]:
        if not request.is_json:
            raise Refused(Answer(415, ""))
        try:
            body = request.json()
        except ValueError as error:
            raise Refused(self.refusal(400, f"There was an error parsing JSON: {error}")) from None
        if not isinstance(body, dict) or set(body) - allowed:
            raise Refused(self.refusal(400, BAD_PAYLOAD))
        return body

    def _operated(self, issue: Issue, name: str, operations: object) -> object:
        """A field after `update` operations, which Jira takes beside `fields`."""
        value: Any = list(issue.labels) if name == "labels" else None
        for operation in operations if isinstance(operations, list) else [None]:
            match operation:
                case {"set": new}:
                    value = new
                case {"add": str(label)} if name == "labels":
                    value = [*value, label]
                case {"remove": str(label)} if name == "labels":
                    value = [one for one in value if one != label]
                case _:
                    raise Refused(self.refusal(400, **{name: "Field does not support this operation."}))
        return value

    def _fields(self, fields: object, *, creating: bool) -> dict[str, Any]:
        """The fields as stored; raises Refused naming every mistake, as Jira does."""
        if not isinstance(fields, dict):
            raise Refused(self.refusal(400, "Field 'fields' is required."))
        checks: dict[str, Callable[[Any], Any]] = {
            "summary": jira_fields.summary,
            "description": jira_fields.description,
            "labels": jira_fields.labels,
            "priority": jira_fields.priority,
            "issuetype": self._issue_type,
        }
        if creating:
            checks["project"] = self._project_key
        if not self.priority_on_screen:
            del checks["priority"]
        errors: dict[str, str] = {}
        stored: dict[str, Any] = {}
        required = {"project": None, "issuetype": None, "summary": None} if creating else {}
        for name, value in {**required, **fields}.items():
            if name not in checks:
                errors[name] = CANNOT_BE_SET.format(name)
                continue
            try:
                stored[name] = checks[name](value)
            except adf.Invalid as error:
                raise Refused(self.refusal(400, "INVALID_INPUT", **{name: str(error)})) from None
            except ValueError as error:
                errors[name] = str(error)
        if errors:
            raise Refused(self.refusal(400, **errors))
        return stored

    def _project_key(self, value: Any) -> str:
        key = value.get("key") if isinstance(value, dict) else None
        if isinstance(value, dict) and set(value) == {"id"}:
            key = next((key for key in self.projects if self._project(key)["id"] == value["id"]), None)
        if key not in self.projects:
            raise ValueError("valid project is required")
        return key

    def _issue_type(self, value: Any) -> str:
        name = value.get("name") if isinstance(value, dict) else None
        if isinstance(value, dict) and set(value) == {"id"}:
            ids = {str(10001 + i): name for i, name in enumerate(self.issue_types)}
            name = ids.get(str(value["id"]))
        if name not in self.issue_types:
            raise ValueError("Specify a valid issue type")
        return name

    def _rendered(self, where: str, document: Any) -> None:
        for kind, target in adf.live(document) if document else []:
            self.render(kind, where, target)

    def _shown(self, issue: Issue, wanted: list[str] | None) -> dict[str, Any]:
        identifier, category = CATEGORIES[issue.status]
        status = {"name": issue.status, "statusCategory": {"id": identifier, "key": category, "name": issue.status}}
        fields = {
            **issue.fields,
            "project": self._project(issue.fields["project"]),
            "issuetype": {"name": issue.fields["issuetype"]},
            "priority": {"name": issue.fields.get("priority", "Medium")},
            "labels": issue.labels,
            "description": issue.fields.get("description"),
            "status": status,
            "resolution": {"name": issue.resolution} if issue.resolution else None,
            "created": datetime.fromtimestamp(issue.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000"),
            "comment": {"comments": issue.comments, "total": len(issue.comments)},
        }
        if wanted is not None:
            fields = {name: value for name, value in fields.items() if name in wanted}
        return {"id": issue.id, "key": issue.key, "self": f"{self.url}{API}/issue/{issue.id}", "fields": fields}

    # -- workflow

    def list_transitions(self, request: Request, key: str) -> Answer:
        issue = self._issue(request, key)
        allowed = self.workflow[issue.status] if "TRANSITION_ISSUES" in self.permissions else []
        expand = "transitions.fields" in request.first("expand")
        transitions = [self._transition(*one, expand) for one in allowed]
        return Answer(200, {"expand": "transitions", "transitions": transitions})

    def _transition(self, number: str, name: str, status: str, expand: bool) -> dict[str, Any]:
        identifier, category = CATEGORIES[status]
        to = {"name": status, "statusCategory": {"id": identifier, "key": category, "name": status}}
        screen = status == "Done" and self.resolution != "absent"
        shown: dict[str, Any] = {"id": number, "name": name, "to": to, "hasScreen": screen, "isAvailable": True}
        if expand:
            values = [{"id": "10000", "name": "Done"}, {"id": "10001", "name": "Won't Do"}]
            required = self.resolution == "required"
            about = {"required": required, "name": "Resolution", "key": "resolution", "allowedValues": values}
            shown["fields"] = {"resolution": about} if screen else {}
        return shown

    def transition(self, request: Request, key: str) -> Answer:
        issue = self._issue(request, key)
        body = self._body(request, {"transition", "fields", "update", "historyMetadata", "properties"})
        self._must_be_allowed("TRANSITION_ISSUES")
        number = body.get("transition", {}).get("id") if isinstance(body.get("transition"), dict) else None
        if not isinstance(number, str):
            return self.refusal(400, "Missing 'transition' identifier: a string is wanted.")
        status = next((to for one, _, to in self.workflow[issue.status] if one == number), None)
        if status is None:
            return self.refusal(400, f"Transition id '{number}' is not valid for this issue.")
        resolution = self._resolution(body.get("fields") or {}, status)
        comments = self._transition_comments(body.get("update") or {})
        issue.status, issue.resolution = status, resolution
        issue.history.append(status)
        self.effect("transition", key=issue.key, status=status, category=issue.category)
        for comment in comments:
            self._add_comment(issue, comment)
        return Answer(204)

    def _resolution(self, fields: dict[str, Any], status: str) -> str | None:
        screen = status == "Done" and self.resolution != "absent"
        if unknown := set(fields) - ({"resolution"} if screen else set()):
            raise Refused(self.refusal(400, **{name: CANNOT_BE_SET.format(name) for name in unknown}))
        value = fields.get("resolution")
        if value is None:
            if screen and self.resolution == "required":
                raise Refused(self.refusal(400, resolution="Resolution is required."))
            return "Done" if status == "Done" else None
        name = value.get("name") if isinstance(value, dict) else None
        if name not in ("Done", "Won't Do"):
            raise Refused(self.refusal(400, resolution="Specify a valid 'id' or 'name' for Resolution"))
        return name

    def _transition_comments(self, update: dict[str, Any]) -> list[Any]:
        if set(update) - {"comment"}:
            raise Refused(self.refusal(400, **{name: CANNOT_BE_SET.format(name) for name in update}))
        bodies = [one.get("add", {}).get("body") for one in update.get("comment", [])]
        for body in bodies:
            self._check_comment(body)
        return bodies

    # -- comments and properties

    def list_comments(self, request: Request, key: str) -> Answer:
        comments = self._issue(request, key).comments
        return Answer(200, {"startAt": 0, "maxResults": 5000, "total": len(comments), "comments": comments})

    def comment(self, request: Request, key: str) -> Answer:
        issue = self._issue(request, key)
        body = self._body(request, {"body", "visibility", "properties"}).get("body")
        self._must_be_allowed("ADD_COMMENTS")
        self._check_comment(body)
        if len(issue.comments) >= self.comment_limit:
            return self.refusal(413, "The issue has reached its limit of comments.")
        return Answer(201, self._add_comment(issue, body))

    def _check_comment(self, body: object) -> None:
        try:
            if jira_fields.description(body) is None or not adf.text(body).strip():
                raise ValueError("Comment body can not be empty!")
        except adf.Invalid as error:
            raise Refused(self.refusal(400, "INVALID_INPUT", comment=str(error))) from None
        except ValueError as error:
            raise Refused(self.refusal(400, comment=str(error))) from None

    def _add_comment(self, issue: Issue, body: Any) -> dict[str, Any]:
        comment = {"id": str(20000 + len(issue.comments)), "body": body, "text": adf.text(body)}
        issue.comments.append(comment)
        self._rendered(f"{issue.key} comment", body)
        self.effect("comment", key=issue.key, text=comment["text"][:200])
        return comment

    def read_property(self, request: Request, key: str, name: str) -> Answer:
        properties, name = self._issue(request, key).properties, unquote(name)
        if name not in properties:
            return self.refusal(404, f"The property with key '{name}' does not exist.")
        return Answer(200, {"key": name, "value": properties[name]})

    def set_property(self, request: Request, key: str, name: str) -> Answer:
        issue = self._issue(request, key)
        try:
            value = request.json()
        except ValueError:
            return self.refusal(400, "The property value must be JSON.")
        new = unquote(name) not in issue.properties
        issue.properties.update(jira_fields.properties([{"key": unquote(name), "value": value}]))
        self.effect("property", key=issue.key, name=unquote(name))
        return Answer(201 if new else 200, b"")

    # -- search

    def search_as_of_old(self, request: Request) -> Answer:
        return self.refusal(410, REMOVED)

    def search_by_get(self, request: Request) -> Answer:
        wanted = [name for name in request.first("fields").split(",") if name]
        return self._search(request, request.first("jql"), wanted, request.first("maxResults", "50"), [])

    def search(self, request: Request) -> Answer:
        allowed = {"jql", "maxResults", "fields", "nextPageToken", "expand", "properties", "fieldsByKeys", "failFast"}
        body = self._body(request, allowed | {"reconcileIssues"})
        fields = body.get("fields", [])
        if not isinstance(body.get("jql"), str) or not isinstance(fields, list):
            return self.refusal(400, BAD_PAYLOAD)
        return self._search(request, body["jql"], fields, body.get("maxResults", 50), body.get("reconcileIssues", []))

    def _search(self, request: Request, query: str, fields: list[str], most: object, sure: list[int]) -> Answer:
        """Nobody finds nothing, with 200. `sure` are ids that are found whatever the lag."""
        if not str(most).isdigit():
            return self.refusal(400, "maxResults must be a number.")
        visible = [
            issue
            for issue in self.issues.values()
            if self._known(request) and (time.time() - issue.created >= self.lag or int(issue.id) in sure)
        ]
        known = self.projects if self._known(request) else None
        try:
            found = jql.search(
                query, visible, _READ, lambda name, value: name != "project" or known is None or value in known
            )
        except jql.JqlError as error:
            return self.refusal(400, str(error))
        page = [self._shown(issue, fields) if fields else {"id": issue.id} for issue in found[: int(str(most))]]
        return Answer(200, {"issues": page, "isLast": len(found) <= int(str(most))})


_READ: dict[str, Callable[[Any], list[str]]] = {
    "project": lambda issue: [issue.fields["project"]],
    "labels": lambda issue: issue.labels,
    "key": lambda issue: [issue.key],
    "issuekey": lambda issue: [issue.key],
    "id": lambda issue: [issue.id],
    "issuetype": lambda issue: [issue.fields["issuetype"]],
    "status": lambda issue: [issue.status],
    "statuscategory": lambda issue: [issue.category, issue.status],
    "summary": lambda issue: [issue.summary],
    "created": lambda issue: [f"{issue.created:020.6f}", issue.id.zfill(12)],
}


def _issue_state(issue: Issue) -> dict[str, Any]:
    return {
        "id": issue.id,
        "status": issue.status,
        "category": issue.category,
        "resolution": issue.resolution,
        "fields": issue.fields,
        "text": issue.text,
        "comments": issue.comments,
        "properties": issue.properties,
        "history": issue.history,
    }
