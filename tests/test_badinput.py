"""Bad input: refused by name with JSON, or made fit by a rule that is told. Never a 5xx, nothing half done."""

import base64
import json
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from auditlog.models import Entry
from config import keys
from config.models import PlatformVersion, Section
from incidents.models import Anomaly, Incident
from tests import raw

pytestmark = pytest.mark.django_db

LIMIT = 10 * 1024 * 1024
NUL, SURROGATE = "\\u0000", "\\ud800"  # as JSON writes them
GOOD = '{"service": "payment-api", "severity": "high", "score": 1}'


@pytest.fixture
def ask(db):
    """Sends bytes as an admin, and holds the answer to what every answer promises."""
    _, key = keys.create(name="admin-tests", role="admin", actor="system")

    def send(method: str, target: str, body: bytes | str = b"", **headers) -> raw.Reply:
        body = body.encode() if isinstance(body, str) else body
        headers = {"Content_Type": "application/json", "Authorization": f"Bearer {key}"} | headers
        reply = raw.send(method, target, body, **headers)
        assert reply.status < 500, reply.body
        assert reply.headers["content-type"] == "application/json"
        if reply.status >= 400:
            told = reply.json()
            assert list(told) == ["status", "message", "errors"]
            assert told["status"] == "error"
            assert told["message"]
            assert len(reply.body) < 20_000
        return reply

    return send


@pytest.fixture
def incident_id(ask) -> str:
    return ask("POST", "/api/v1/anomalies", GOOD).json()["incidents"][0]


def rows() -> tuple[int, ...]:
    return tuple(model.objects.count() for model in (Incident, Anomaly, Entry, PlatformVersion, Section))


# --- Anomalies --------------------------------------------------------------------------------------------------------


def anomaly(**more: str) -> str:
    """An anomaly as JSON text; values are JSON texts too, and an empty one leaves the name out."""
    fields = {"service": '"bad"', "severity": '"high"', "score": "1"} | more
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items() if value) + "}"


REJECTED = [
    *({"score": value} for value in (
        "NaN", "Infinity", "-Infinity", "1e400", "-1", "-0.001", '"4.2"', "true", "null", "[]", "{}", "", "9" * 400,
        "9" * 5000, "-" + "9" * 5000,
    )),
    *({"severity": value} for value in ('"urgent"', "1", "null", "[]", "", '"critical\\u0000"', '"\\ud800"')),
    *({"service": value} for value in (
        '""', '"  "', "1", "null", "[]", "{}", "", f'"a{NUL}b"', f'"a{SURROGATE}b"', '"a\\nb"', '"a\\u202eb"',
        '"' + "x" * 201 + '"', '"a\\u001b[31m"',
    )),
    *({"eventId": value} for value in (
        '""', "1", "[]", '"' + "x" * 201 + '"', f'"{NUL}"', f'"{SURROGATE}"', '"a\\tb"',
    )),
    *({"timestamp": value} for value in (
        '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"', '"1969-12-31T23:59:59Z"',
        '"2126-01-01T00:00:00Z"',
        '"2024-03-01T24:00:00Z"', '"2024-03-01T23:59:60Z"', '"2024-03-01T15:30:00.123456789012Z"', "1709307000000",
        "9" * 5000, '"now"', "[]", "true", '"2024-02-30T00:00:00Z"', f'"{NUL}"',
    )),
    {"title": "1"},
    {"description": "[]"},
    {"traceId": "{}"},
    {"affectedServices": '"a"'},
    {"affectedServices": "[1]"},
]  # fmt: skip


@pytest.mark.parametrize("bad", REJECTED, ids=lambda bad: "-".join(f"{k}={v[:30]}" for k, v in bad.items()))
def test_a_bad_item_is_rejected_by_name_and_costs_no_neighbour(ask, bad):
    [name] = bad
    reply = ask("POST", "/api/v1/anomalies", f"[{GOOD}, {anomaly(**bad)}, {GOOD}]")
    answer = reply.json()
    assert reply.status == 200
    assert (answer["created"], answer["deduplicated"], answer["rejected"]) == (1, 1, 1)
    [error] = answer["errors"]
    assert error["index"] == 1
    assert name in error["message"]
    alone = ask("POST", "/api/v1/anomalies", anomaly(**bad))
    assert alone.status == 400
    assert Anomaly.objects.count() == 2
    assert len(json.loads(ask("GET", "/api/incidents").body)) == 1


@pytest.mark.parametrize("text", [NUL, SURROGATE, f"x{NUL}{SURROGATE}y", "\\udfff\\ud800"])
@pytest.mark.parametrize(
    "place",
    [
        '"title": "%s"', '"description": "%s"', '"traceId": "%s"', '"affectedServices": ["a", "%s"]',
        '"message": "%s"', '"environment": "%s"', '"tenant_id": "%s"', '"error_category": "%s"', '"%s": 1',
        '"nested": {"%s": {"%s": ["%s"]}}', '"evidence_logs": [{"message": "%s", "%s": 1}]',
        '"signal_weights": {"%s": 0.5}', '"blast_radius": {"estimated_user_impact": "%s"}', '"causal_chain": ["%s"]',
    ],
)  # fmt: skip
def test_texts_are_never_refused_for_their_content(ask, place, text):
    body = GOOD.removesuffix("}") + ", " + place.replace("%s", text) + "}"
    answer = ask("POST", "/api/v1/anomalies", body).json()
    assert answer["created"] == 1
    shown = ask("GET", f"/api/incidents/{answer['incidents'][0]}")
    assert shown.status == 200
    assert b"\\u0000" not in shown.body
    assert b"\x00" not in shown.body
    assert ask("GET", "/api/incidents").status == 200


@pytest.mark.parametrize(
    "extra",
    [
        '"id": "inc-1"', '"status": "resolved"', '"createdAt": "2000-01-01T00:00:00Z"', '"actor": "user:eve"',
        '"is_staff": true', '"platforms": ["pagerduty"]', '"tickets": [1]', '"anomalyCount": 99', '"fallback": false',
        '"acknowledgedBy": "user:eve"', '"rootCause": "me"', '"token": "x"',
    ],
)  # fmt: skip
def test_what_is_not_the_producers_to_say_is_never_applied(ask, extra):
    body = GOOD.removesuffix("}") + ", " + extra + "}"
    [incident_id] = ask("POST", "/api/v1/anomalies", body).json()["incidents"]
    shown = ask("GET", f"/api/incidents/{incident_id}").json()
    assert shown["id"].startswith("inc-2")
    assert (shown["status"], shown["platforms"], shown["anomalyCount"], shown["fallback"]) == ("open", [], 1, True)
    assert shown["acknowledgedBy"] is None
    assert shown["rootCause"] != "me"
    [entry] = Entry.objects.about(f"incident:{incident_id}")
    assert entry.actor == "key:admin-tests"


@pytest.mark.parametrize(
    "body", ["", " ", "null", "true", "1", '"x"', "[]", "{}", "[[]]", "[1]", "[null]", "{", "[1,]"]
)
def test_a_body_in_which_nothing_can_be_read_is_a_400(ask, body):
    before = rows()
    assert ask("POST", "/api/v1/anomalies", body).status == 400
    assert rows() == before


def test_items_are_counted(ask):
    assert ask("POST", "/api/v1/anomalies", "[" + ",".join(["{}"] * 10_001) + "]").status == 413
    reply = ask("POST", "/api/v1/anomalies", "[" + ",".join([GOOD] + ["{}"] * 9_999) + "]")
    answer = reply.json()
    assert reply.status == 200
    assert (answer["created"], answer["rejected"], len(answer["errors"])) == (1, 9_999, 1000)


# --- Bodies, wherever they go -----------------------------------------------------------------------------------------

WRITES = [
    ("POST", "/api/v1/anomalies"),
    ("POST", "/api/incidents/ID/acknowledge"),
    ("POST", "/api/v1/incidents/batch"),
    ("POST", "/api/v1/tickets/retry"),
    ("PATCH", "/api/v1/config/platforms"),
    ("PATCH", "/api/v1/config/routing"),
    ("PATCH", "/api/v1/config/anomaly"),
    ("PATCH", "/api/v1/config/llm"),
    ("POST", "/api/v1/test-connection"),
]
UNREADABLE = [
    ("[" * 1000 + "]" * 1000, 400),
    ("[" * 20_000, 400),
    ('{"a":' * 70 + "1" + "}" * 70, 400),
    ("[" * LIMIT, 400),
    ('{"a": ' + "9" * 5000, 400),
    (b"\xff\xfe{\x00}\x00", 400),
    (b"\xef\xbb\xbf{}", 400),
    (b'{"a": "\xff"}', 400),
    ("{'a': 1}", 400),
    ('{"a": 1} x', 400),
    ("\u0000", 400),
    (b" " * (LIMIT + 1), 413),
    ("[" + "1," * 600_000 + "1]", 413),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_a_body_that_cannot_be_read_changes_nothing(ask, incident_id, method, path):
    before = rows()
    for body, status in UNREADABLE:
        assert ask(method, path.replace("ID", incident_id), body).status == status, body[:20]
    assert rows() == before


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("body", ["[]", "1", "true", '"x"', "null", "NaN", "1e400", "[null]", '["acknowledge"]'])
def test_a_body_of_the_wrong_shape_is_a_400(ask, incident_id, method, path, body):
    before = rows()
    assert ask(method, path.replace("ID", incident_id), body).status == 400
    assert rows() == before


@pytest.mark.parametrize(
    "content_type",
    [
        "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/html", "x", "/",
        "*/*", "application/json; charset=utf-16", "application/json; charset=latin-1", "application/xml",
        "application/json; charset=bz2_codec", "application/json; charset=idna",
        "application/json; charset*=foo''utf-8",
        "application/json; charset*=utf-8''utf-8", "application/json;" + "a=b;" * 2000, "application/json" + " " * 300,
        "application/json; charset=\x00", 'application/json; x="', "a" * 5000, "application/json; charset*0*=''x",
        "multipart/form-data", "application/json; boundary*=x'y", ";;;", "application/json\r\nX: y",
    ],
)  # fmt: skip
def test_another_content_type_is_a_415(ask, incident_id, content_type):
    for method, path in (*WRITES[:3], WRITES[4]):
        body = '{"ids": ["x"], "action": "acknowledge"}'
        reply = ask(method, path.replace("ID", incident_id), body, Content_Type=content_type)
        assert reply.status == 415, reply.body
    assert ask("GET", "/api/incidents?q=%C3%A4", Content_Type=content_type).status == 200
    assert Incident.objects.get().status == "open"


@pytest.mark.parametrize("content_type", ["application/json", 'Application/JSON; charset="UTF-8"', "application/json;"])
def test_json_in_utf_8_is_welcome(ask, content_type):
    assert ask("POST", "/api/v1/anomalies", GOOD, Content_Type=content_type).status == 200


def test_a_compressed_body_is_a_415(ask):
    assert ask("POST", "/api/v1/anomalies", b"\x1f\x8b", Content_Encoding="gzip").status == 415


def test_of_duplicate_keys_the_last_one_wins(ask):
    answer = ask("POST", "/api/v1/anomalies", anomaly(score="1")[:-1] + ', "score": 2}').json()
    assert Incident.objects.get(pk=answer["incidents"][0]).anomaly_score == 2


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "", "\x00", ",".join(f'a/b{n};c="d"' for n in range(5000))])
def test_whatever_is_accepted_the_answer_is_json(ask, accept):
    assert ask("GET", "/api/incidents", Accept=accept).status == 200
    assert ask("GET", "/nope", Accept=accept).status == 404


# --- Moves and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [f"a{NUL}b", f"a{SURROGATE}b"])
def test_a_note_is_made_fit(ask, incident_id, text):
    assert ask("POST", f"/api/incidents/{incident_id}/acknowledge", f'{{"note": "{text}"}}').status == 200
    audit = ask("GET", f"/api/v1/audit?incident_id={incident_id}").json()
    assert audit["entries"][-1]["note"] == "a\ufffdb"


@pytest.mark.parametrize("note", ["1", "[]", "{}", "true", "1e400", '"' + "x" * 2001 + '"'])
def test_a_note_is_a_text_of_2000_characters(ask, incident_id, note):
    for path, more in (
        (f"{incident_id}/acknowledge", ""),
        ("batch", f'"ids": ["{incident_id}"], "action": "resolve", '),
    ):
        reply = ask("POST", f"/api/incidents/{path}", f'{{{more}"note": {note}}}')
        assert reply.status == 400
        assert list(reply.json()["errors"]) == ["note"]
    assert Incident.objects.get().status == "open"


@pytest.mark.parametrize(
    "name", ["notes", "Note", "actor", "acknowledgedAt", "id", "status", "", NUL, SURROGATE, "y" * 5000, "__class__"]
)
def test_what_a_move_does_not_know_is_named_and_nothing_moves(ask, incident_id, name):
    before = rows()
    for path, more in (
        (f"{incident_id}/acknowledge", ""),
        (f"{incident_id}/resolve", ""),
        ("batch", f'"ids": ["{incident_id}"], "action": "resolve", '),
    ):
        reply = ask("POST", f"/api/incidents/{path}", f'{{{more}"note": "x", "{name}": "lost"}}')
        assert reply.status == 400
        [said] = reply.json()["errors"].values()
        assert said == ("Unknown. Known are ids, action, note." if more else "Unknown. Known is note.")
    assert (rows(), Incident.objects.get().status) == (before, "open")


@pytest.mark.parametrize(
    "ids",
    ["", "{}", "[]", '"ID"', "null", "[1]", "[null]", '["ID", 1]', '[["ID"]]', "[{}]", '["x"' + ', "x"' * 1000 + "]"],
)
def test_a_batch_names_its_mistake_and_moves_nothing(ask, incident_id, ids):
    ids = f'"ids": {ids.replace("ID", incident_id)}, ' if ids else ""
    reply = ask("POST", "/api/v1/incidents/batch", f'{{{ids}"action": "acknowledge"}}')
    assert reply.status == 400
    assert list(reply.json()["errors"]) == ["ids"]
    assert Incident.objects.get().status == "open"


@pytest.mark.parametrize(
    "odd", [NUL, SURROGATE, "", "x" * 5000, "inc-20240301-001\\n", "inc-٢٠٢٤٠٣٠١-001", "' OR 1=1--"]
)
def test_an_odd_id_fails_alone(ask, incident_id, odd):
    body = f'{{"ids": ["{odd}", "{incident_id}"], "action": "acknowledge"}}'
    answer = ask("POST", "/api/v1/incidents/batch", body).json()
    assert (answer["updated"], answer["ids"], len(answer["failed"])) == (1, [incident_id], 1)
    assert len(answer["failed"][0]["id"]) <= 100


@pytest.mark.parametrize(
    "body",
    ['{"ids": [0]}', '{"ids": [-1]}', '{"ids": [1.5]}', '{"ids": [true]}', '{"ids": ["1"]}', '{"ids": [1e400]}',
     '{"ids": [%s]}' % ("9" * 30), '{"ids": []}', '{"ids": {}}', "{}", '{{"ids": [{}]}}'.format(",".join("1" * 101)),
     '{"incidentId": 1}', '{"incidentId": null}'],
)  # fmt: skip
def test_a_retry_names_tickets_by_number(ask, body):
    reply = ask("POST", "/api/v1/tickets/retry", body)
    assert reply.status == 400
    assert list(reply.json()["errors"]) == ["ids"]


# --- Paths, queries and headers ---------------------------------------------------------------------------------------

ODD = [
    "%00",
    "a%00b",
    "%ED%A0%80",
    "%FF",
    "%u0000",
    "%",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "x" * 5000,
    "%0d%0aX:%20y",
]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_path_is_a_404(ask, odd):
    for path in (
        f"/api/incidents/{odd}",
        f"/api/{odd}",
        f"/{odd}",
        f"/api/ticketing/{odd}",
        f"/api/v1/incidents/{odd}",
    ):
        assert ask("GET", path).status == 404, path
    assert ask("POST", f"/api/incidents/{odd}/acknowledge").status == 404


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "name", ["status", "severity", "service", "platform", "since", "until", "q", "ordering", "limit", "cursor", "x", ""]
)
def test_an_odd_query_is_searched_for_or_a_400_that_names_it(ask, incident_id, name, odd):
    reply = ask("GET", f"/api/incidents?{name}={odd}")
    if reply.status == 400:
        assert list(reply.json()["errors"]) == [name]
    else:
        assert (reply.status, name in ("q", "service")) == (200, True)
        assert reply.body == b"[]"


def test_odd_query_names_and_numbers_of_them(ask):
    for query in ("%00=1", "%ED%A0%80=1", "a%00b=1", "x" * 5000 + "=1", "=", "&" * 1000):
        assert ask("GET", f"/api/incidents?{query}").status in (200, 400), query
    assert ask("GET", "/api/incidents?" + "&".join(f"a{n}=1" for n in range(2000))).status == 400
    assert ask("GET", "/api/incidents?service=" + ",".join(f"s{n}" for n in range(201))).status == 400
    assert ask("GET", "/api/incidents?q=a&q=b").status == 400
    assert ask("GET", "/api/v1/audit?incident_id=%00").status == 404
    assert ask("GET", "/api/v1/audit?incident_id=").status == 400
    assert ask("GET", "/api/v1/audit").status == 400


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00%2B14:00",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01",
        "9999-12-31",
        "2024-03-01T15:30:00+01:00",
    ],
)
def test_times_at_the_ends_of_the_calendar_are_searched_for(ask, incident_id, moment):
    for name in ("since", "until"):
        assert ask("GET", f"/api/incidents?{name}={moment}").status == 200


@pytest.mark.parametrize(
    "cursor",
    [
        ["created_at", True, "0001-01-01T00:00:00+14:00", "2024-03-01T15:30:00+00:00", 1],
        ["created_at", True, "9999-12-31T23:59:59-14:00", "2024-03-01T15:30:00+00:00", 1],
        ["created_at", True, "2024-03-01T15:30:00+00:00", "9999-12-31T23:59:59-14:00", 1],
        ["created_at", True, "2024-03-01T15:30:00", "2024-03-01T15:30:00", 1],
        ["created_at", True, 1, "2024-03-01T15:30:00+00:00", 1],
        ["created_at", True, "2024-03-01T15:30:00+00:00", "2024-03-01T15:30:00+00:00", 2**70],
        ["created_at", True, "2024-03-01T15:30:00+00:00", "2024-03-01T15:30:00+00:00", "1"],
        ["created_at", True, "2024-03-01T15:30:00+00:00", "2024-03-01T15:30:00+00:00", [1]],
        ["password", True, 1, "2024-03-01T15:30:00+00:00", 1],
        [], {}, None, 5, "x", [[]] * 5,
    ],
)  # fmt: skip
def test_a_forged_cursor_is_a_400(ask, incident_id, cursor):

    text = base64.urlsafe_b64encode(json.dumps(cursor).encode()).decode().rstrip("=")
    reply = ask("GET", f"/api/incidents?limit=1&cursor={text}")
    assert reply.status == 400
    assert list(reply.json()["errors"]) == ["cursor"]


@pytest.mark.parametrize("value", ["NaN", "1e400", "-1e400", "1e200", "9" * 400, "true", "null", '"x"', "[]", "-0.5"])
@pytest.mark.parametrize("field", ["anomaly_score", "anomaly_count", "rank"])
def test_a_cursor_of_any_value_breaks_nothing(ask, incident_id, field, value):

    text = f'["{field}", false, {value}, "2024-03-01T15:30:00+00:00", 1]'
    cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    ordering = {"anomaly_score": "anomalyScore", "anomaly_count": "anomalyCount", "rank": "severity"}[field]
    reply = ask("GET", f"/api/incidents?limit=1&ordering={ordering}&cursor={cursor}")
    assert reply.status in (200, 400)


@pytest.mark.parametrize("value", ["\x00", "\xff", "a" * 5000, "é", "\ud7ff".encode().decode("latin-1"), "a\r\nb", '"'])
@pytest.mark.parametrize(
    "header",
    ["X_Request_ID", "If_None_Match", "Idempotency_Key", "Cookie", "User_Agent", "Referer", "Origin", "Accept_Language",
     "X_Forwarded_For", "X_HTTP_Method_Override", "If_Modified_Since", "Content_Encoding", "Accept_Encoding"],
)  # fmt: skip
def test_an_odd_header_breaks_nothing(ask, header, value):
    assert ask("GET", "/api/incidents", **{header: value}).status == 200
    reply = ask("POST", "/api/v1/anomalies", GOOD, **{header: value})
    assert reply.status in (200, 400, 415)


@pytest.mark.parametrize("value", ["session_18081=\"abcdefgh\\000\"",
                                    "session_18081=" + "a" * 5000, "csrf_18081=\"\\000\"",
                                   'messages="\\000"', "=;=;", "session_18081=%00"])  # fmt: skip
def test_an_odd_cookie_is_no_login_and_breaks_nothing(client, value, db):
    for path in ("/api/incidents", "/health", "/ready"):
        assert raw.send("GET", path, Cookie=value).status in (200, 401, 503)
    assert raw.send("GET", "/api/incidents", Cookie=value).status == 401


@pytest.mark.parametrize("length", ["", "-1", "x", "9" * 5000, "1e3", "٣"])
def test_an_odd_content_length_breaks_nothing(ask, length):
    assert ask("POST", "/api/v1/anomalies", GOOD, Content_Length=length).status in (200, 400, 413)


@pytest.mark.parametrize("host", ["", "evil.example", "a b", "\x00", "[::1", "localhost@evil", "x" * 300])
def test_a_host_that_is_not_ours_is_a_400(db, host):
    reply = raw.send("GET", "/api/incidents", host=host)
    assert reply.status == 400
    assert reply.json()["status"] == "error"


@pytest.mark.parametrize(
    "name", ["X_Forwarded_Host", "X_Forwarded_Proto", "X_Forwarded_Port", "X_Original_Host", "Forwarded"]
)
def test_a_forged_host_leads_nobody_elsewhere(ask, name):
    ask("POST", "/api/v1/anomalies", json.dumps([json.loads(anomaly(service=f'"s{n}"')) for n in range(2)]))
    link = ask("GET", "/api/incidents?limit=1", **{name: "evil.example"}).headers["link"]
    assert link.startswith("<http://testserver/api/incidents?")


@pytest.mark.parametrize("depth", [1000, 20_000])
def test_a_deep_body_is_told_what_is_wrong(ask, depth):
    assert "nested too deeply" in ask("POST", "/api/v1/anomalies", "[" * depth + "]" * depth).json()["message"]


# --- Configuration ----------------------------------------------------------------------------------------------------

WRONG = [
    "null",
    "1",
    "true",
    "[]",
    "{}",
    "NaN",
    "1e400",
    f'"{NUL}"',
    f'"a{SURROGATE}"',
    '"a\\nb"',
    '"' + "x" * 2001 + '"',
]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    ("platform", "name"),
    [("pagerduty", "routingKey"), ("jira", "baseUrl"), ("jira", "userEmail"), ("jira", "projectKey"),
     ("slack", "webhookUrl"), ("servicenow", "password"), ("opsgenie", "webhookSecret")],
)  # fmt: skip
def test_a_wrong_setting_is_named_and_nothing_is_stored(ask, platform, name, value):
    before = rows()
    body = f'{{"pagerduty": {{"apiUrl": ""}}, "{platform}": {{"{name}": {value}}}}}'
    reply = ask("PATCH", "/api/v1/config/platforms", body)
    assert reply.status == 400
    assert list(reply.json()["errors"]) == [f"{platform}.{name}"]
    assert rows() == before


@pytest.mark.parametrize("name", ["x", NUL, SURROGATE, "", "y" * 5000, "__class__", "enabled "])
def test_an_odd_name_is_named_wherever_it_stands(ask, name):
    before = rows()
    for path, body in (
        ("platforms", '{"%s": {"enabled": true}}'),
        ("platforms", '{"jira": {"%s": "x"}}'),
        ("routing", '{"%s": []}'),
        ("routing", '{"low": ["%s"]}'),
        ("anomaly", '{"%s": 1}'),
        ("llm", '{"%s": "x"}'),
        ("llm", '{"provider": "p%s"}'),
    ):
        reply = ask("PATCH", f"/api/v1/config/{path}", body % name)
        assert reply.status == 400, body
        assert len(reply.json()["errors"]) == 1
    assert rows() == before


@pytest.mark.parametrize("value", ["null", "1", '"x"', "{}", "[1]", "[null]", '[["jira"]]', '["jira", "jira"]', "[{}]"])
def test_a_wrong_route_is_named(ask, value):
    reply = ask("PATCH", "/api/v1/config/routing", f'{{"high": [], "low": {value}}}')
    assert reply.status == 400
    assert list(reply.json()["errors"]) == ["low"]


@pytest.mark.parametrize("value", ["null", '"0.9"', "true", "-1", "NaN", "1e400", "-1e400", "9" * 5000, "[]", "{}"])
def test_a_wrong_score_is_named(ask, value):
    reply = ask("PATCH", "/api/v1/config/anomaly", f'{{"lookbackWindow": "30m", "minimumScore": {value}}}')
    assert reply.status == 400
    assert list(reply.json()["errors"]) == ["minimumScore"]
    assert ask("GET", "/api/v1/config").json()["anomaly"] == {"minimumScore": 0.85, "lookbackWindow": "15m"}


@pytest.mark.parametrize("value", ["0", "1", "1e300", "123456789012345678901234567890"])
def test_a_large_score_is_a_score(ask, value):
    assert ask("PATCH", "/api/v1/config/anomaly", f'{{"minimumScore": {value}}}').status == 200
    assert ask("POST", "/api/v1/anomalies", GOOD).status == 200


def test_the_longest_model_name_can_be_asked_about(ask):
    assert ask("PATCH", "/api/v1/config/llm", '{"model": "%s"}' % ("m" * 2000)).status == 200
    assert ask("GET", "/api/v1/llm-status").status == 200
    assert ask("POST", "/api/v1/test-llm").status == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1", "https://127.0.0.1", "https://127.1", "https://2130706433", "https://0x7f000001",
        "https://0",
        "https://0177.0.0.1", "https://[::1]", "https://[::]", "https://[::ffff:169.254.169.254]", "https://localhost.",
        "https://[64:ff9b::a9fe:a9fe]", "https://[2002:a9fe:a9fe::]", "https://[::169.254.169.254]",
        "https://localhost",
        "https://[fd00:ec2::254]", "https://[fe80::1%25eth0]", "https://100.100.100.200", "https://192.0.0.192",
        "https://168.63.129.16", "https://metadata.google.internal", "https://user@example.com",
        "https://u:p@example.com",
        "https://example.com:6379", "https://example.com\\r\\nX: y", "file:///etc/passwd", "gopher://example.com",
        "http://example.com", "//example.com", "example.com", "https://", "https://example.com:99999",
        "https://exa m.com",
        "https://10.0.0.1", "https://192.168.1.1", "https://172.16.0.1", "https://169.254.169.254", "javascript:x",
        "https://example.com/?x=1", "https://example.com/#x", "https://example.com/../x", "https://\\ud800.com",
        "https://[",
    ],
)  # fmt: skip
def test_an_address_that_may_not_be_reached_is_refused_when_it_is_set(ask, settings, url):
    settings.EGRESS_ALLOWED_NETWORKS = []
    before = rows()
    secret = {"jira": "apiToken", "servicenow": "password", "pagerduty": "routingKey", "opsgenie": "apiKey"}
    names = {"jira": "baseUrl", "servicenow": "instanceUrl", "pagerduty": "apiUrl", "opsgenie": "apiUrl"}
    for platform, name in names.items():
        body = f'{{"{platform}": {{"{name}": "{url}", "{secret[platform]}": "s"}}}}'
        reply = ask("PATCH", "/api/v1/config/platforms", body)
        assert reply.status == 400, platform
        assert list(reply.json()["errors"]) == [f"{platform}.{name}"]
    reply = ask("PATCH", "/api/v1/config/platforms", f'{{"slack": {{"webhookUrl": "{url}/services/T/B/x"}}}}')
    assert list(reply.json()["errors"]) == ["slack.webhookUrl"]
    reply = ask("PATCH", "/api/v1/config/llm", f'{{"baseUrl": "{url}", "apiKey": "s"}}')
    assert list(reply.json()["errors"]) == ["baseUrl"]
    assert rows() == before


# --- What it costs ----------------------------------------------------------------------------------------------------


def statements(run) -> int:
    """How many kinds of statement it takes: SQLite is given long inserts in pieces, which count once."""
    with CaptureQueriesContext(
        connection,
    ) as captured:
        run()
    kinds = []
    for query in captured.captured_queries:
        kind = re.sub(r"\(.*", "", query["sql"].split(" VALUES ")[0])[:60]
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return len(kinds)


def test_a_batch_costs_the_same_for_10_ids_and_for_500(ask, connect, settled):
    connect("pagerduty", "slack")
    body = [json.loads(anomaly(service=f'"s{n}"', severity='"critical"')) for n in range(510)]
    ids = ask("POST", "/api/v1/anomalies", json.dumps(body)).json()["incidents"]

    def batch(ids: list[str], action: str) -> int:
        answer = []
        body = json.dumps({"ids": ids, "action": action})
        count = statements(lambda: answer.append(ask("POST", "/api/v1/incidents/batch", body).json()))
        assert answer[0]["updated"] == len(ids)
        return count

    for action in ("acknowledge", "escalate", "resolve"):
        few, many = batch(ids[:10], action), batch(ids[10:], action)
        assert many == few < 25, action


@pytest.mark.parametrize("services", [1, 1000])
def test_intake_costs_the_same_for_one_event_and_for_1000(ask, connect, settled, services):
    connect("pagerduty", "slack")

    def take(count: int, first: int) -> int:
        events = [
            {
                "service": f"s{(first + n) % services}-{first}",
                "severity": "critical",
                "score": 1,
                "eventId": f"{first}-{n}",
            }
            for n in range(count)
        ]
        return statements(lambda: ask("POST", "/api/v1/anomalies", json.dumps(events)))

    one = take(1, first=0)
    assert take(1000, first=1) <= one + 2
    assert one < 30


def test_a_list_costs_the_same_for_one_incident_and_for_300(ask, settled):
    def cost(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            ask("GET", path)
        return len(captured)

    ask("POST", "/api/v1/anomalies", GOOD)
    paths = ("/api/incidents", "/api/incidents?limit=1000", "/api/incidents?platform=jira&q=x&ordering=severity")
    one = [cost(path) for path in paths]
    body = [json.loads(anomaly(service=f'"s{n}"')) for n in range(300)]
    ask("POST", "/api/v1/anomalies", json.dumps(body))
    assert [cost(path) for path in paths] == one
