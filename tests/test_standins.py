"""The stand-ins are as strict as what they stand for: whatever a vendor refuses, they refuse."""

import json
from urllib.parse import quote

import pytest

from tests.standins import Standins
from tests.standins.client import send
from tests.standins.servicenow import TRANSACTION_CANCELLED
from tests.standins.slack import Slack


@pytest.fixture(scope="module")
def running():
    with Standins() as standins:
        yield standins


@pytest.fixture
def s(running):
    running.settle()
    running.reset()
    return running


# -- PagerDuty


def pagerduty(s, action="trigger", key="k1", *, routing_key=None, payload=None, **more):
    settings = s.settings("pagerduty")
    event = {"routing_key": routing_key or settings["routingKey"], "event_action": action, "dedup_key": key, **more}
    if action == "trigger":
        event["payload"] = {"summary": "Disk full", "source": "db-1", "severity": "critical"} | (payload or {})
    return send("POST", settings["apiUrl"] + "/v2/enqueue", event)


def test_pagerduty_pages_once_per_open_alert_and_again_after_a_resolve(s):
    assert pagerduty(s).json() == {"status": "success", "message": "Event processed", "dedup_key": "k1"}
    pagerduty(s, payload={"severity": "error"})
    assert (s.pagerduty.pages, s.pagerduty.alerts["k1"][0].severity) == (1, "error")
    pagerduty(s, "acknowledge")
    assert s.pagerduty.alerts["k1"][0].state == "acknowledged"
    pagerduty(s, "resolve")
    pagerduty(s)
    assert [alert.state for alert in s.pagerduty.alerts["k1"]] == ["resolved", "triggered"]
    assert s.pagerduty.pages == 2


def test_pagerduty_drops_what_has_no_open_alert_and_says_202(s):
    assert pagerduty(s, "resolve", "never-seen").status == 202
    assert (s.pagerduty.alerts, s.pagerduty.effects) == ({}, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload": {"summary": ""}},
        {"payload": {"summary": "x" * 1025}},
        {"payload": {"source": ""}},
        {"payload": {"severity": "high"}},
        {"payload": {"timestamp": "yesterday"}},
        {"payload": {"custom_details": "text"}},
        {"payload": {"custom_details": {"log": "x" * 512_000}}},
        {"key": "x" * 256},
        {"links": [{"href": "", "text": "empty"}]},
        {"images": [{"src": "http://plain/x.png"}]},
        {"routing_key": "short"},
        {"action": "escalate"},
        {"dedupe_key": "misspelt"},
    ],
)
def test_pagerduty_refuses(s, wrong):
    reply = pagerduty(s, **wrong)
    assert (reply.status, reply.json()["status"]) == (400, "invalid event")
    assert reply.json()["errors"]
    assert s.pagerduty.pages == 0


def test_pagerduty_answers_an_unknown_key_in_plain_text_or_not_at_all(s):
    reply = pagerduty(s, routing_key="b" * 32)
    assert (reply.status, reply.text) == (400, "Invalid routing key")
    s.pagerduty.unknown_key = "swallow"
    try:
        assert pagerduty(s, routing_key="b" * 32).status == 202
    finally:
        s.pagerduty.unknown_key = "refuse"
    assert s.pagerduty.pages == 0


# -- Jira


def adf(text="What happened"):
    return {
        "type": "doc",
        "version": 1,
        "content": [{"type": "paragraph", "content": [{"type": "text", "text": text}]}],
    }


def jira(s, method, path, body=None, *, basic=None):
    settings = s.settings("jira")
    basic = basic or (settings["userEmail"], settings["apiToken"])
    return send(method, f"{settings['baseUrl']}/rest/api/3{path}", body, basic=basic)


def issue(**fields):
    given = {"project": {"key": "OPS"}, "issuetype": {"name": "Task"}, "summary": "Disk full", "description": adf()}
    return {"fields": {**given, "labels": ["inc-1"], "priority": {"name": "High"}, **fields}}


def test_jira_creates_and_moves_by_the_transitions_it_offers(s):
    key = jira(s, "POST", "/issue", issue()).json()["key"]
    assert jira(s, "POST", f"/issue/{key}/comment", {"body": adf("A note")}).status == 201
    for category in ("indeterminate", "done", "new"):
        offered = jira(s, "GET", f"/issue/{key}/transitions").json()["transitions"]
        number = next(one["id"] for one in offered if one["to"]["statusCategory"]["key"] == category)
        assert jira(s, "POST", f"/issue/{key}/transitions", {"transition": {"id": number}}).status == 204
        assert s.jira.issues[key].category == category
    assert [comment["text"] for comment in s.jira.issues[key].comments] == ["A note"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("summary", ""),
        ("summary", "x" * 256),
        ("summary", "two\nlines"),
        ("description", "plain text"),
        ("description", adf("")),
        ("description", adf("x" * 32_768)),
        ("description", {"type": "doc", "version": 1, "content": [{"type": "text", "text": "not in a block"}]}),
        ("labels", ["with space"]),
        ("labels", "one"),
        ("priority", "High"),
        ("priority", {"name": "P1"}),
        ("project", {"key": "NONE"}),
        ("issuetype", {"name": "Nothing"}),
        ("customfield_1", "x"),
    ],
)
def test_jira_refuses(s, field, value):
    reply = jira(s, "POST", "/issue", issue(**{field: value}))
    assert reply.status == 400
    assert field in reply.json()["errors"]
    assert s.jira.issues == {}


@pytest.mark.parametrize("number", ["99", 31, None])
def test_jira_refuses_a_transition_that_is_not_offered_or_no_string(s, number):
    key = jira(s, "POST", "/issue", issue()).json()["key"]
    assert jira(s, "POST", f"/issue/{key}/transitions", {"transition": {"id": number}}).status == 400
    assert s.jira.issues[key].category == "new"


def test_jira_wants_a_resolution_exactly_where_the_screen_has_one(s):
    key = jira(s, "POST", "/issue", issue()).json()["key"]
    path, plain = f"/issue/{key}/transitions", {"transition": {"id": "31"}}
    resolved = {**plain, "fields": {"resolution": {"name": "Done"}}}
    assert jira(s, "POST", path, resolved).status == 400
    s.jira.resolution = "required"
    try:
        offered = jira(s, "GET", f"{path}?expand=transitions.fields").json()["transitions"]
        assert [one["id"] for one in offered if one["fields"].get("resolution", {}).get("required")] == ["31"]
        assert jira(s, "POST", path, plain).status == 400
        assert jira(s, "POST", path, resolved).status == 204
    finally:
        s.jira.resolution = "absent"


def test_jira_serves_wrong_credentials_as_nobody(s):
    key, nobody = jira(s, "POST", "/issue", issue()).json()["key"], ("agent@standin.example", "expired")
    query = {"jql": 'project = "OPS" AND labels = "inc-1"', "fields": ["status"]}
    assert jira(s, "GET", "/myself", basic=nobody).status == 401
    assert jira(s, "GET", f"/issue/{key}", basic=nobody).status == 404
    assert jira(s, "POST", "/issue", issue(), basic=nobody).status == 401
    assert jira(s, "POST", "/search/jql", query, basic=nobody).json()["issues"] == []
    assert jira(s, "GET", "/project/search?action=create", basic=nobody).json()["values"] == []
    assert len(s.jira.issues) == 1


def test_jira_search_lags_and_reads_jql(s):
    jira(s, "POST", "/issue", issue())
    jira(s, "POST", "/issue", issue(labels=["inc-2"]))

    def found(jql, **more):
        reply = jira(s, "POST", "/search/jql", {"jql": jql, "maxResults": 2, "fields": ["status"], **more})
        return [one["key"] for one in reply.json()["issues"]] if reply.status == 200 else reply.status

    assert found('project = "OPS" AND labels = "inc-2" ORDER BY created ASC') == ["OPS-2"]
    assert found("project = OPS ORDER BY created ASC") == ["OPS-1", "OPS-2"]
    assert found('project = "OPS" AND labels = "in\\"c"') == []
    assert found('project = "NONE"') == found("colour = blue") == found("ORDER BY created") == 400
    assert jira(s, "POST", "/search", {"jql": "project = OPS"}).status == 410
    s.jira.lag = 60
    try:
        assert found("project = OPS") == []
        assert found("project = OPS", reconcileIssues=[10001]) == ["OPS-1"]
    finally:
        s.jira.lag = 0


def test_jira_tells_links_from_text(s):
    linked = adf("see")
    linked["content"][0]["content"][0]["marks"] = [{"type": "link", "attrs": {"href": "http://evil"}}]
    jira(s, "POST", "/issue", issue(description=adf("{code}[x|http://evil]!image!<b>")))
    assert s.jira.rendered == []
    jira(s, "POST", "/issue", issue(description=linked))
    assert [mark["text"] for mark in s.jira.shown("link")] == ["http://evil"]


def test_jira_probes_leave_no_effect(s):
    wanted = "/mypermissions?projectKey=OPS&permissions=CREATE_ISSUES,TRANSITION_ISSUES,ADD_COMMENTS"
    for path in ("/myself", wanted, "/issue/createmeta/OPS/issuetypes", "/project/search?action=create&maxResults=2"):
        assert jira(s, "GET", path).status == 200
    assert jira(s, "GET", "/mypermissions?projectKey=NONE&permissions=CREATE_ISSUES").status == 404
    assert s.jira.effects == []


# -- ServiceNow


def servicenow(s, method, path="", body=None, *, basic=None, headers=None):
    settings = s.settings("servicenow")
    basic = basic or (settings["username"], settings["password"])
    return send(method, f"{settings['instanceUrl']}/api/now/table/incident{path}", body, basic=basic, headers=headers)


def record(**fields):
    return {"short_description": "Disk full", "impact": "1", "urgency": "2", "correlation_id": "inc-1", **fields}


def test_servicenow_computes_the_priority_and_says_everything_in_strings(s):
    reply = servicenow(s, "POST", "", record(impact=1, assignment_group="g1", colour="blue"))
    result = reply.json()["result"]
    assert (reply.status, reply.headers["Location"].rsplit("/", 1)[1]) == (201, result["sys_id"])
    assert (result["priority"], result["impact"], result["state"]) == ("2", "1", "1")
    assert result["assignment_group"]["value"] == "g1"
    assert s.servicenow.ignored == ["colour"]
    narrow = servicenow(s, "GET", f"/{result['sys_id']}?sysparm_fields=number&sysparm_exclude_reference_link=true")
    assert narrow.json()["result"] == {"number": result["number"]}


def test_servicenow_keeps_to_its_state_model(s):
    path = "/" + servicenow(s, "POST", "", record()).json()["result"]["sys_id"]
    assert servicenow(s, "PATCH", path, {"state": "2", "work_notes": "seen"}).status == 200
    for incomplete in ({"state": "6"}, {"state": "6", "close_code": "Solution provided"}, {"state": "3"}):
        reply = servicenow(s, "PATCH", path, incomplete)
        assert (reply.status, reply.json()["status"]) == (403, "failure")
    done = {"state": "6", "close_code": "Solution provided", "close_notes": "Freed space"}
    assert servicenow(s, "PATCH", path, {**done, "close_code": "Invented"}).status == 403
    assert servicenow(s, "PATCH", path, done).status == 200
    assert servicenow(s, "PATCH", path, {"state": "2"}).status == 200
    s.servicenow.close(path[1:])
    assert servicenow(s, "PATCH", path, {"state": "2"}).status == 403
    assert s.servicenow.journal[path[1:]] == [{"field": "work_notes", "text": "seen"}]


@pytest.mark.parametrize(
    "wrong",
    [{"priority": "1"}, {"short_description": "x" * 161}, {"short_description": " "}, {"impact": "4"}, {"state": "99"}],
)
def test_servicenow_refuses(s, wrong):
    assert servicenow(s, "POST", "", record(**wrong)).status == 403
    assert s.servicenow.records == {}


def test_servicenow_ignores_the_part_of_a_query_that_makes_no_sense(s):
    for name in ("a", "b"):
        servicenow(s, "POST", "", record(correlation_id=name))

    def found(query):
        reply = servicenow(s, "GET", f"?sysparm_query={quote(query)}&sysparm_fields=correlation_id&sysparm_limit=2")
        return [row["correlation_id"] for row in reply.json()["result"]]

    assert found("correlation_id=b^ORDERBYsys_created_on") == ["b"]
    assert found("corelation_id=b^impact=1") == ["a", "b"]
    assert found("correlation_id=nothing") == []
    assert found("correlation_id=nothing^ORcorrelation_id=a") == ["a"]


def test_servicenow_refuses_strangers_and_other_content(s):
    error = {"message": "User Not Authenticated", "detail": "Required to provide Auth information"}
    reply = servicenow(s, "GET", basic=("a", "b"))
    assert (reply.status, reply.json()) == (401, {"error": error, "status": "failure"})
    assert servicenow(s, "POST", "", record(), headers={"Content-Type": "text/plain"}).status == 415
    assert servicenow(s, "GET", headers={"Accept": "text/html"}).status == 406
    assert servicenow(s, "PATCH", "/" + "0" * 32, {"state": "2"}).status == 404
    s.servicenow.fault("status", code=200, body=TRANSACTION_CANCELLED)
    assert "Transaction cancelled" in servicenow(s, "GET").text


# -- OpsGenie


def opsgenie(s, method, path, body=None, *, key=None, settings="opsgenie"):
    given = s.settings(settings)
    return send(method, given["apiUrl"] + path, body, headers={"Authorization": f"GenieKey {key or given['apiKey']}"})


def outcome(s, reply):
    assert (reply.status, reply.json()["result"]) == (202, "Request will be processed")
    answer = opsgenie(s, "GET", f"/v2/alerts/requests/{reply.json()['requestId']}")
    return answer.json()["data"] if answer.status == 200 else answer.status


def act(s, alias, action, body=None):
    return outcome(s, opsgenie(s, "POST", f"/v2/alerts/{quote(alias, safe='')}/{action}?identifierType=alias", body))


ALERT = {"message": "Disk full", "alias": "inc/1 ä", "priority": "P1", "details": {"service": "db"}, "tags": ["db"]}


def test_opsgenie_keeps_one_open_alert_per_alias(s):
    assert outcome(s, opsgenie(s, "POST", "/v2/alerts", ALERT))["isSuccess"] is True
    opsgenie(s, "POST", "/v2/alerts", {**ALERT, "message": "Other"})
    alert = s.opsgenie.alerts["inc/1 ä"][0]
    assert (s.opsgenie.pages, alert.count, alert.message) == (1, 2, "Disk full")
    assert act(s, "inc/1 ä", "acknowledge", {"user": "anna"})["isSuccess"] is True
    assert act(s, "inc/1 ä", "notes", {"note": "seen"})["isSuccess"] is True
    assert act(s, "inc/1 ä", "close", {})["isSuccess"] is True
    assert (alert.status, alert.acknowledged, alert.notes) == ("closed", True, ["seen"])
    opsgenie(s, "POST", "/v2/alerts", ALERT)
    assert s.opsgenie.pages == 2


def test_opsgenie_tells_the_failure_only_to_those_who_ask(s):
    result = act(s, "unknown", "acknowledge")
    assert (result["isSuccess"], result["status"]) == (False, "Alert does not exist")
    s.opsgenie.lag = 60
    try:
        assert outcome(s, opsgenie(s, "POST", "/v2/alerts", ALERT)) == 404
        assert opsgenie(s, "GET", f"/v2/alerts/{quote('inc/1 ä', safe='')}?identifierType=alias").status == 404
    finally:
        s.opsgenie.lag = 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"message": ""},
        {"message": "x" * 131},
        {"details": {"score": 4.2}},
        {"details": {"log": "x" * 8001}},
        {"tags": ["x" * 51]},
        {"tags": ["x"] * 21},
        {"alias": "x" * 513},
        {"description": "x" * 15_001},
        {"priority": "critical"},
        {"responders": ["team"]},
        {"colour": "blue"},
    ],
)
def test_opsgenie_refuses(s, wrong):
    reply = opsgenie(s, "POST", "/v2/alerts", {**ALERT, **wrong})
    assert (reply.status, list(reply.json()["errors"])) == (422, list(wrong))
    assert s.opsgenie.pages == 0


def test_opsgenies_successor_is_the_same_but_wants_an_alias(s):
    nameless = {"message": "Disk full"}
    assert opsgenie(s, "POST", "/v2/alerts", nameless, settings="jsm").status == 422
    assert opsgenie(s, "POST", "/v2/alerts", nameless).status == 202
    assert opsgenie(s, "POST", "/v2/alerts", ALERT, settings="jsm").status == 202
    assert "inc/1 ä" in s.opsgenie.alerts


def test_opsgenies_account_key_may_read_but_not_write(s):
    key = s.opsgenie.account_key
    assert opsgenie(s, "GET", "/v2/alerts?limit=1", key=key).status == 200
    reply = opsgenie(s, "POST", "/v2/alerts/x/acknowledge?identifierType=alias", {}, key=key)
    assert (reply.status, reply.json()["code"]) == (403, 40301)
    assert opsgenie(s, "GET", "/v2/account", key="wrong").json()["message"] == "Could not authenticate"


def test_opsgenie_shows_html_that_was_not_escaped(s):
    opsgenie(s, "POST", "/v2/alerts", {**ALERT, "message": "a &lt;b&gt; 1 < 2"})
    assert s.opsgenie.rendered == []
    opsgenie(s, "POST", "/v2/alerts", {"message": "<script>x</script>", "alias": "two"})
    assert [mark["text"] for mark in s.opsgenie.shown("html")] == ["<script>", "</script>"]


# -- Slack


def slack(s, body, *, content_type="application/json", url=None):
    return send("POST", url or s.settings("slack")["webhookUrl"], body, headers={"Content-Type": content_type})


def section(text, **more):
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, **more}}


def test_slack_posts_and_says_ok(s):
    blocks = [{"type": "header", "text": {"type": "plain_text", "text": "Disk full"}}, section("a &lt;b&gt;")]
    reply = slack(s, {"text": "Disk full", "blocks": blocks})
    assert (reply.status, reply.text) == (200, "ok")
    assert s.slack.messages[0].shown == "Disk full\na &lt;b&gt;"
    assert s.slack.rendered == []


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"text": "half', "invalid_payload"),
        ([], "invalid_payload"),
        ({"text": 1}, "invalid_payload"),
        ({"txt": "x"}, "invalid_payload"),
        ({"text": ""}, "no_text"),
        ({"blocks": [section("x")]}, "no_text"),
        ({"text": "x", "blocks": [{"type": "divider"}] * 51}, "invalid_blocks"),
        ({"text": "x", "blocks": [section("x" * 3001)]}, "invalid_blocks"),
        ({"text": "x", "blocks": [section("")]}, "invalid_blocks"),
        ({"text": "x", "blocks": [section("x" * 2900)] * 5}, "msg_blocks_too_long"),
        (
            {"text": "x", "blocks": [{"type": "section", "fields": [{"type": "mrkdwn", "text": "x"}] * 11}]},
            "invalid_blocks",
        ),
        ({"text": "x", "blocks": [{"type": "header", "text": {"type": "mrkdwn", "text": "x"}}]}, "invalid_blocks"),
        (
            {"text": "x", "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}]},
            "invalid_blocks",
        ),
        ({"text": "x", "blocks": [{"type": "context", "elements": []}]}, "invalid_blocks"),
        ({"text": "x", "blocks": [{"type": "marquee"}]}, "invalid_blocks"),
        ({"text": "x", "blocks": [{"type": "divider", "color": "red"}]}, "invalid_blocks"),
    ],
)
def test_slack_refuses(s, body, answer):
    reply = slack(s, body)
    assert (reply.status, reply.text) == (400, answer)
    assert s.slack.messages == []


def test_slack_refuses_other_addresses_and_content(s):
    url = s.settings("slack")["webhookUrl"]
    assert slack(s, {"text": "x"}, url=url.replace(Slack.team, "T1")).text == "no_team"
    assert slack(s, {"text": "x"}, url=url.replace(Slack.hook, "B1")).text == "no_service"
    reply = slack(s, b"{", url=url.replace(Slack.token, "x" * 24))
    assert (reply.status, reply.text) == (403, "invalid_token")
    assert slack(s, b"payload=%7B%7D", content_type="application/x-www-form-urlencoded").status == 400
    assert s.slack.messages == []


def test_slack_shows_mentions_and_links_that_were_not_escaped(s):
    slack(s, {"text": "<!channel> <@U1>", "blocks": [section("<https://evil|Fix now> http://bare", verbatim=True)]})
    assert [mark["text"] for mark in s.slack.shown("mention")] == ["!channel", "@U1"]
    assert [mark["text"] for mark in s.slack.shown("link")] == ["https://evil|Fix now"]
    assert s.slack.shown("autolink") == []
    slack(s, {"text": "x", "blocks": [section("http://bare")]})
    slack(s, {"text": "x", "blocks": [{"type": "section", "text": {"type": "plain_text", "text": "<!here> http://x"}}]})
    assert [mark["text"] for mark in s.slack.shown("autolink")] == ["http://bare"]
    assert len(s.slack.shown("mention")) == 2


# -- the model


def model(s, *, key=None, **more):
    settings = s.settings("llm")
    body = {"model": settings["model"], "messages": [{"role": "user", "content": "Why? Answer in JSON."}], **more}
    headers = {"Authorization": f"Bearer {key or settings['apiKey']}"}
    return send("POST", settings["baseUrl"] + "/chat/completions", body, headers=headers)


def schema(**more):
    inner = {"type": "object", "properties": {"cause": {"type": "string"}}, "required": ["cause"], **more}
    return {"type": "json_schema", "json_schema": {"name": "cause", "strict": True, "schema": inner}}


def test_the_model_answers_what_fits_the_schema(s):
    reply = model(s, response_format=schema(additionalProperties=False)).json()
    assert json.loads(reply["choices"][0]["message"]["content"])["cause"]
    s.llm.answer_with = {"cause": "the disk"}
    try:
        assert model(s).json()["choices"][0]["message"]["content"] == '{"cause": "the disk"}'
    finally:
        s.llm.answer_with = None
    assert len(s.llm.requests) == 2


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"response_format": schema()}, 400, None),
        ({"model": "gpt-4", "response_format": schema(additionalProperties=False)}, 400, None),
        ({"model": "o4-mini", "max_tokens": 5}, 400, "unsupported_parameter"),
        ({"model": "none"}, 404, "model_not_found"),
        ({"messages": []}, 400, None),
        ({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}}, 400, None),
        ({"format": "json"}, 400, None),
        ({"key": "sk-wrong"}, 401, "invalid_api_key"),
    ],
)
def test_the_model_refuses(s, wrong, status, code):
    reply = model(s, **wrong)
    assert (reply.status, reply.json()["error"]["code"]) == (status, code)
    assert s.llm.requests == []


def test_a_person_can_follow_the_links_of_tickets(s):
    jira(s, "POST", "/issue", issue())
    sys_id = servicenow(s, "POST", body=record()).json()["result"]["sys_id"]
    page = send("GET", f"{s.jira.url}/browse/{next(iter(s.jira.issues))}")
    assert "To Do" in page.body.decode()
    page = send("GET", f"{s.servicenow.url}/nav_to.do?uri={quote(f'incident.do?sys_id={sys_id}')}")
    assert "New" in page.body.decode()
    assert send("GET", f"{s.jira.url}/browse/OPS-999").status == 404
