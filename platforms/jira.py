"""Jira Cloud through its REST API v3: an incident is an issue that carries our key as a label.

https://developer.atlassian.com/cloud/jira/platform/rest/v3/

Jira knows no idempotency: the label is how an issue is found again after an answer was lost, with a search that may lag
behind by half a minute.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

from platforms import text, webhooks
from platforms.contract import (
    Category,
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
from platforms.http import Caller, Reply

_PRIORITY = {"critical": "Highest", "high": "High", "medium": "Medium", "low": "Low"}
# Statuses have whatever names a workflow gives them; only their categories are the same everywhere.
_CATEGORY: dict[str, str] = {"reopen": "new", "acknowledge": "indeterminate", "resolve": "done"}
_CATEGORY_OF_STATUS = {"acknowledged": "indeterminate", "resolved": "done"}
_CATEGORY_NAMES = {"new": "To Do", "indeterminate": "In Progress", "done": "Done"}
_DEEDS: dict[str, Deed] = {"new": "reopen", "indeterminate": "begin", "done": "resolve"}
_SEEN: dict[str, Category] = {"new": "open", "indeterminate": "acknowledged", "done": "resolved"}
_STATUS_LIMIT = 100
_ISSUE_TYPE = "Task"
_ISSUE_TYPES = ("Task", "Incident", "Bug", "Story")
_RIGHTS = {"CREATE_ISSUES": "create issues", "TRANSITION_ISSUES": "transition issues", "ADD_COMMENTS": "add comments"}
_SUMMARY_LIMIT = 255
# A description may take 32,767. Its parts are kept to these, as JSON, so that the whole document stays below.
_CAUSE_LIMIT = 6000
_NOTES_LIMIT = 3000
_DETAILS_LIMIT = 6000
_COMMENT_LIMIT = 16_000
_PARAGRAPHS = 60
_LABELS_READ = 100


class Jira:
    name = "jira"
    label = "Jira"
    pages = False
    keyed = False
    reopens_resolved_only = False
    searchable = True
    search_lag = 30.0
    readable = True
    fields = (
        Field("baseUrl", "Site", required=True, target=True, help="Such as https://your-org.atlassian.net"),
        Field("apiToken", "API token", required=True, secret=True, help="Expires after a year at most."),
        Field("userEmail", "User's e-mail", required=True, help="Of the account that the token belongs to."),
        Field("projectKey", "Project key", help="Needed where the account can create issues in several projects."),
        Field("issueType", "Issue type", default=_ISSUE_TYPE),
        Field(
            "webhookSecret",
            "Webhook secret",
            secret=True,
            help="Of a webhook of the event Issue updated that sends to /api/v1/inbound/jira: signs what Jira sends.",
        ),
    )
    identity = ("baseUrl", "projectKey")

    def warning(self, settings: Settings) -> str:
        return ""

    def create(self, call: Caller, settings: Settings, notice: Notice) -> Remote:
        site = _Site(call, settings)
        issue = _create_issue(site, settings, notice)
        key = issue["key"]
        remote = _remote(site, issue)
        with suppress(PlatformError):  # The issue's key is kept with the ticket; the label is for when that is lost.
            _keep_label(site, key, notice.key)
        if notice.status in _CATEGORY_OF_STATUS:
            with begun():  # Whoever tries again must look for the issue first.
                _move(site, key, _CATEGORY_OF_STATUS[notice.status])
        return remote

    def update(
        self, call: Caller, settings: Settings, notice: Notice, remote: Remote, steps: tuple[Step, ...]
    ) -> Remote:
        """First what may be repeated without harm, the comment last, so that a second attempt does not repeat it."""
        site = _Site(call, settings)
        moves = [_CATEGORY[step] for step in steps if step in _CATEGORY]
        said = text.comment(notice, steps, _COMMENT_LIMIT, text.json_units)
        try:
            if moves:
                _move(site, remote.id, moves[-1])
            ranked = True
            if "escalate" in steps or "reopen" in steps:  # A reopened incident stands escalated no longer.
                ranked = _set_priority(site, remote.id, _priority(notice))
            if "escalate" in steps and not ranked:
                said = f"{said}\n\nThe priority could not be set to Highest: the project does not have the field."
            if said and (notice.notes or {"escalate", "cause", "note"} & set(steps)):
                site.send("POST", f"/issue/{quote(remote.id, safe='')}/comment", {"body": _document(_paragraphs(said))})
        except PlatformError as error:
            if error.status != 404:
                raise
            site.myself()  # To who is not signed in, Jira says 404 as well.
            raise PlatformError(
                f"Jira does not show issue {remote.id} to this account: it was deleted, or the account lost the "
                "permission to browse it. Give the permission back, or create the ticket anew.",
                permanent=True,
                status=404,
            ) from error
        return remote

    def find(self, call: Caller, settings: Settings, key: str) -> Remote | None:
        """The oldest issue with this label. A wrong token is an error and never "there is none"."""
        site = _Site(call, settings)
        jql = f"labels = {_quoted(key)} ORDER BY created ASC"
        if settings.get("projectKey"):
            jql = f"project = {_quoted(settings['projectKey'])} AND {jql}"
        question = {"jql": jql, "maxResults": 2, "fields": ["labels", "status"]}
        answer = _object(site.send("POST", "/search/jql", question))
        for issue in answer.get("issues") or []:
            if key in (issue.get("fields") or {}).get("labels", []):
                return _remote(site, issue)
        # With a wrong token Jira may search as nobody, who sees nothing.
        site.myself()
        return None

    def look(self, call: Caller, settings: Settings, remote: Remote, key: str) -> Seen | None:
        """The issue's status; its category is what counts."""
        site = _Site(call, settings)
        reply = site.send("GET", f"/issue/{quote(remote.id, safe='')}", params={"fields": "status"}, expect={404})
        if reply.status == 404:
            site.myself()  # To who is not signed in, Jira says 404 as well.
            return Seen("Not found", "gone")
        status = (_object(reply).get("fields") or {}).get("status") or {}
        category = (status.get("statusCategory") or {}).get("key")
        if category not in _SEEN:
            raise PlatformError("Jira did not tell the issue's status", status=reply.status)
        return Seen(text.cut(call.clean(str(status.get("name") or "no status")), _STATUS_LIMIT), _SEEN[category])

    def test(self, call: Caller, settings: Settings) -> str:
        """Who we are, what we may do in the project, and whether it has the issue type."""
        site = _Site(call, settings)
        site.myself()
        project = _project(site, settings)
        query = {"projectKey": project, "permissions": ",".join(_RIGHTS)}
        missing = f"There is no project {project}, or this account does not see it"
        held = site.get("/mypermissions", query, missing)
        rights = held.get("permissions") or {}
        lacking = [words for right, words in _RIGHTS.items() if not (rights.get(right) or {}).get("havePermission")]
        if lacking:
            raise PlatformError(f"In project {project} the account may not {', '.join(lacking)}", permanent=True)
        wanted = settings.get("issueType") or _ISSUE_TYPE
        usable = _issue_type(site, project, wanted)
        if usable.lower() != wanted.lower():
            return f"Connection successful. Project {project} has no issue type {wanted}: {usable} will be used."
        return "Connection successful"

    def read(self, settings: Settings, headers: Mapping[str, str], body: bytes, now: datetime) -> Inbound | None:
        """An issue's change of status. https://developer.atlassian.com/cloud/jira/platform/webhooks/

        The account that made the issue is ours; whether it was we or a person with the same account is not told.
        """
        method, _, given = headers.get("X-Hub-Signature", "").partition("=")
        webhooks.prove_signature(settings, body, [given] if method == "sha256" else [])
        event = webhooks.document(body)
        fields, user = webhooks.value(event, "issue", "fields"), event.get("user")
        deed = _DEEDS.get(webhooks.word(fields, "status", "statusCategory", "key"))
        if event.get("webhookEvent") != "jira:issue_updated" or deed is None or not _status_changed(event):
            return None
        labels = webhooks.value(fields, "labels")
        account, creator = webhooks.word(user, "accountId"), webhooks.word(fields, "creator", "accountId")
        return Inbound(
            event=webhooks.event_id(webhooks.word(event, "changelog", "id"), body),
            deed=deed,
            by=webhooks.name(*(webhooks.word(user, name) for name in ("displayName", "name", "accountId"))),
            keys=tuple(str(label) for label in labels[:_LABELS_READ]) if isinstance(labels, list) else (),
            remote_ids=(webhooks.word(event, "issue", "key"), webhooks.word(event, "issue", "id")),
            at=webhooks.moment(webhooks.word(event, "timestamp")),
            maybe_ours=not (account and creator and account != creator),
        )


def _status_changed(event: Mapping[str, Any]) -> bool:
    items = webhooks.value(event, "changelog", "items")
    return isinstance(items, list) and any(webhooks.word(item, "field") == "status" for item in items)


class _Site:
    """One Jira site with one account."""

    def __init__(self, call: Caller, settings: Settings) -> None:
        self.base = settings["baseUrl"].rstrip("/")
        self._call = call
        self._auth = (settings["userEmail"], settings["apiToken"])

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
    ) -> Reply:
        address = f"{self.base}/rest/api/3{path}"
        headers = {"Accept": "application/json"}
        try:
            return self._call.request(
                method, address, headers=headers, auth=self._auth, json=body, params=params, expect=expect
            )
        except PlatformError as error:
            if error.status == 401:
                message = "Invalid e-mail or API token: Jira refuses them (401). The token may have expired"
                raise PlatformError(message, permanent=True, status=401) from error
            if error.status == 409:  # Two changed the issue at once: the next attempt finds it at rest.
                raise PlatformError(error.message, status=409) from error
            raise

    def get(self, path: str, params: Mapping[str, str] | None = None, missing: str = "") -> Any:
        """The JSON object at `path`; `missing` is what to say where there is none."""
        try:
            return _object(self.send("GET", path, params=params))
        except PlatformError as error:
            if error.status in (400, 404) and missing:
                raise PlatformError(missing, permanent=True, status=error.status) from error
            raise

    def refused(self, reply: Reply) -> PlatformError:
        """The error that a reply amounts to, with all that Jira says is wrong."""
        answer = _object(reply)
        general, errors = answer.get("errorMessages"), answer.get("errors")
        said = list(general) if isinstance(general, list) else []
        said += [f"{name}: {why}" for name, why in errors.items()] if isinstance(errors, dict) else []
        return self._call.failure(reply, "; ".join(map(str, said)))

    def myself(self) -> None:
        """The one question that Jira never answers to somebody who is not signed in."""
        self.get("/myself")


def _remote(site: _Site, issue: Mapping[str, Any]) -> Remote:
    """With the id, which an issue keeps when it moves to another project and gets another key."""
    url = f"{site.base}/browse/{quote(issue['key'], safe='')}"
    return Remote(id=issue["key"], url=url, data={"issueId": str(issue.get("id") or "")})


def _create_issue(site: _Site, settings: Settings, notice: Notice) -> dict[str, Any]:
    """Returns the issue's key and id. What a project may not have, priority and issue type, gives way once each."""
    project = _project(site, settings)
    fields: dict[str, Any] = {
        "project": {"key": project},
        "issuetype": {"name": settings.get("issueType") or _ISSUE_TYPE},
        "summary": text.headline(notice, _SUMMARY_LIMIT),
        "description": _description(notice),
        "labels": [notice.key],
        "priority": {"name": _priority(notice)},
    }
    while True:
        reply = site.send("POST", "/issue", {"fields": fields}, expect={400})
        if reply.status != 400:
            issue = _object(reply)
            if not isinstance(issue.get("key"), str) or not issue["key"]:
                raise PlatformError("Jira did not tell the new issue's key", in_doubt=True, status=reply.status)
            return issue
        refused = _refused_fields(reply)
        if "priority" in refused and "priority" in fields:
            del fields["priority"]
        elif "issuetype" in refused and "name" in fields["issuetype"]:
            fields["issuetype"] = {"id": _usable_type(site, project, fields["issuetype"]["name"])["id"]}
        elif "labels" in refused:
            # Without its mark the issue could not be found again after a lost answer, and would be made twice.
            raise PlatformError(
                f"Project {project} does not let us set labels, by which an issue is found again: add the field Labels "
                "to the create screen of its issue type",
                permanent=True,
                status=400,
            )
        else:
            raise site.refused(reply)


def _project(site: _Site, settings: Settings) -> str:
    if settings.get("projectKey"):
        return settings["projectKey"]
    found = site.get("/project/search", {"action": "create", "maxResults": "2"}).get("values") or []
    if len(found) != 1:
        count = "several projects" if found else "no project"
        raise PlatformError(f"Set projectKey: the account can create issues in {count}", permanent=True)
    return found[0]["key"]


def _issue_type(site: _Site, project: str, wanted: str) -> str:
    return str(_usable_type(site, project, wanted)["name"])


def _usable_type(site: _Site, project: str, wanted: str) -> dict[str, Any]:
    """The wanted type where the project has it, else the first usual one, else any that is no sub-task."""
    missing = f"There is no project {project}, or this account may not create issues in it"
    answer = site.get(f"/issue/createmeta/{quote(project, safe='')}/issuetypes", missing=missing)
    types = [kind for kind in answer.get("issueTypes") or answer.get("values") or [] if not kind.get("subtask")]
    by_name = {str(kind["name"]).lower(): kind for kind in types}
    for name in (wanted, *_ISSUE_TYPES):
        if name.lower() in by_name:
            return by_name[name.lower()]
    if not types:
        raise PlatformError(missing, permanent=True)
    return types[0]


def _keep_label(site: _Site, issue: str, key: str) -> None:
    """See that the mark can be read, and set it again where some rule of the project took it away."""
    fields = site.get(f"/issue/{quote(issue, safe='')}", {"fields": "labels"}).get("fields") or {}
    if key not in (fields.get("labels") or []):
        site.send("PUT", f"/issue/{quote(issue, safe='')}", {"update": {"labels": [{"add": key}]}})


def _move(site: _Site, issue: str, category: str) -> None:
    """Transition the issue into a category of status, unless it is there."""
    path = f"/issue/{quote(issue, safe='')}"
    status = (site.get(path, {"fields": "status"}).get("fields") or {}).get("status") or {}
    if (status.get("statusCategory") or {}).get("key") == category:
        return
    answer = site.get(f"{path}/transitions", {"expand": "transitions.fields"})
    in_the_way: set[str] = set()
    for transition in answer.get("transitions") or []:
        if ((transition.get("to") or {}).get("statusCategory") or {}).get("key") != category:
            continue
        fields, unknown = _screen(transition.get("fields") or {}, category)
        if not unknown:
            body: dict[str, Any] = {"transition": {"id": str(transition["id"])}}
            _changed(site.send("POST", f"{path}/transitions", {**body, "fields": fields} if fields else body))
            return
        in_the_way |= unknown
    raise PlatformError(_no_way(issue, status, category, in_the_way), permanent=True)


def _screen(fields: Mapping[str, Any], category: str) -> tuple[dict[str, Any], set[str]]:
    """What to fill into a transition's screen, and the required fields that we cannot fill."""
    filled: dict[str, Any] = {}
    unknown: set[str] = set()
    for name, field in fields.items():
        if name == "resolution" and category == "done":
            names = [str(value["name"]) for value in field.get("allowedValues") or [] if value.get("name")]
            filled[name] = {"name": "Done" if "Done" in names or not names else names[0]}
        elif field.get("required") and not field.get("hasDefaultValue"):
            unknown.add(str(field.get("name") or name))
    return filled, unknown


def _no_way(issue: str, status: Mapping[str, Any], category: str, in_the_way: set[str]) -> str:
    where = f"{issue} cannot go from {status.get('name') or 'its status'} to a status of the category "
    where += _CATEGORY_NAMES[category]
    if in_the_way:
        return f"{where}: the transition asks for {', '.join(sorted(in_the_way))}. Make these optional, then retry."
    return f"{where}: add such a transition to the project's workflow, or move the issue by hand, then retry."


def _priority(notice: Notice) -> str:
    return "Highest" if notice.escalated else _PRIORITY.get(notice.severity, "Medium")


def _set_priority(site: _Site, issue: str, name: str) -> bool:
    body = {"fields": {"priority": {"name": name}}}
    reply = site.send("PUT", f"/issue/{quote(issue, safe='')}", body, expect={400})
    if reply.status == 400 and "priority" not in _refused_fields(reply):
        raise site.refused(reply)
    if reply.status != 400:
        _changed(reply)
    return reply.status != 400


def _changed(reply: Reply) -> None:
    """Jira confirms a change with 204. A page that some proxy answers with is a 200 as well."""
    if reply.status != 204:
        raise PlatformError("Jira did not confirm the change", in_doubt=True, status=reply.status)


def _description(notice: Notice) -> dict[str, Any]:
    """Text nodes of our own making: Jira finds no markup in them. The details keep their lines as a block of code."""
    facts = [_paragraph([_text(f"{label}: ", "strong"), _text(value)]) for label, value in text.facts(notice)]
    content = [_heading(text.title(notice)), *facts]
    for label, address in (("Open the incident", text.link(notice)), ("Continues", text.previous_link(notice))):
        if address:
            content.append(_paragraph([_text(f"{label}: "), _link(address)]))
    cause = text.cut(text.cause(notice), _CAUSE_LIMIT, text.json_units)
    if cause:
        content += [_heading(text.cause_heading(notice)), *_paragraphs(cause)]
    notes = text.cut(text.notes(notice), _NOTES_LIMIT, text.json_units)
    if notes:
        content += [_heading("Notes"), *_paragraphs(notes)]
    details = text.cut(text.clean(notice.description), _DETAILS_LIMIT, text.json_units)
    if details:
        content += [_heading("Details"), {"type": "codeBlock", "content": [_text(details)]}]
    return _document(content)


def _document(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "doc", "version": 1, "content": content}


def _paragraphs(value: str) -> list[dict[str, Any]]:
    """One for each line that is not blank, since Jira refuses empty text; past sixty the rest runs on in one."""
    lines = [line.strip() for line in value.split("\n") if line.strip()]
    if len(lines) > _PARAGRAPHS:
        lines[_PARAGRAPHS - 1 :] = [" ".join(lines[_PARAGRAPHS - 1 :])]
    return [_paragraph([_text(line)]) for line in lines]


def _paragraph(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "paragraph", "content": nodes}


def _heading(value: str) -> dict[str, Any]:
    return {"type": "heading", "attrs": {"level": 3}, "content": [_text(text.cut(value, _SUMMARY_LIMIT, text.units))]}


def _text(value: str, mark: str = "") -> dict[str, Any]:
    node: dict[str, Any] = {"type": "text", "text": value}
    return {**node, "marks": [{"type": mark}]} if mark else node


def _link(address: str) -> dict[str, Any]:
    return {"type": "text", "text": address, "marks": [{"type": "link", "attrs": {"href": address}}]}


def _quoted(value: str) -> str:
    """A JQL string. https://support.atlassian.com/jira-software-cloud/docs/search-for-issues-using-the-text-field/"""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _object(reply: Reply) -> Any:
    answer = reply.json()
    if not isinstance(answer, dict):
        raise PlatformError("Jira answered something other than an object", in_doubt=True, status=reply.status)
    return answer


def _refused_fields(reply: Reply) -> set[str]:
    errors = _object(reply).get("errors")
    return set(errors) if isinstance(errors, dict) else set()


PLATFORM: Platform = Jira()
