"""What goes wrong with a stand-in goes wrong on demand, exactly as asked, and what was done stays on record."""

import gzip
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.standins import Standins
from tests.standins.client import send
from tests.waiting import until

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def running():
    with Standins() as standins:
        yield standins


@pytest.fixture
def s(running):
    running.settle()
    running.reset()
    return running


def pagerduty(s, action="trigger", key="k1", *, routing_key=None, payload=None, **more):
    settings = s.settings("pagerduty")
    event = {"routing_key": routing_key or settings["routingKey"], "event_action": action, "dedup_key": key, **more}
    if action == "trigger":
        event["payload"] = {"summary": "Disk full", "source": "db-1", "severity": "critical"} | (payload or {})
    return send("POST", settings["apiUrl"] + "/v2/enqueue", event)


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


def slack(s, body, *, content_type="application/json", url=None):
    return send("POST", url or s.settings("slack")["webhookUrl"], body, headers={"Content-Type": content_type})


# -- faults


def test_a_lost_answer_leaves_the_work_done(s):
    s.pagerduty.fault("lost", path="enqueue$", method="post")
    with pytest.raises(http.client.RemoteDisconnected):
        pagerduty(s)
    assert s.pagerduty.pages == 1
    assert pagerduty(s).status == 202


def test_a_reset_and_a_hang_do_nothing(s):
    for when in ("before", "after"):
        s.pagerduty.fault("reset", when=when)
        with pytest.raises(ConnectionResetError):
            pagerduty(s)
    s.jira.fault("hang")
    with pytest.raises(TimeoutError):
        send("GET", s.jira.url + "/rest/api/3/myself", timeout=0.1)
    assert s.pagerduty.pages == 0


def test_answers_may_come_late_in_drops_in_other_shapes_or_huge(s):
    for kind, options, wanted in (
        ("late", {"seconds": 0.01}, (202, b"success")),
        ("drip", {"seconds": 0.0001}, (202, b"success")),
        ("status", {"code": 503, "headers": {"Retry-After": "7"}}, (503, b"error")),
        ("status", {"code": 500, "body": {"x": 1}}, (500, b'{"x": 1}')),
        ("html", {}, (200, b"<html>")),
        ("empty", {}, (200, b"")),
        ("malformed", {}, (200, b'"succ')),
        ("huge", {"megabytes": 3}, (200, b"xxxx")),
        ("redirect", {"location": "http://127.0.0.1:1/x"}, (307, b"")),
    ):
        s.pagerduty.fault(kind, **options)
        reply = pagerduty(s)
        assert (reply.status, wanted[1] in reply.body) == (wanted[0], True), kind
    s.pagerduty.fault("gzipbomb", megabytes=2)
    assert len(gzip.decompress(pagerduty(s).body)) == 2 * 1024 * 1024
    for what in ("length", "chunk", "head"):
        s.pagerduty.fault("malformed", what=what)
        with pytest.raises(http.client.HTTPException):
            pagerduty(s)


def test_faults_pass_over_what_does_not_fit_and_can_be_cleared(s):
    s.jira.fault("status", times=None, code=500, path="/issue$", method="POST", skip=1)
    assert jira(s, "GET", "/myself").status == 200
    assert [jira(s, "POST", "/issue", issue()).status for _ in range(3)] == [201, 500, 500]
    s.clear_faults()
    assert jira(s, "POST", "/issue", issue()).status == 201
    with pytest.raises(ValueError, match="unknown fault"):
        s.jira.fault("explode")


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("pagerduty", {"Retry-After": None}),
        ("jira", {"Retry-After": "1", "RateLimit-Reason": "jira-burst-based"}),
        ("servicenow", {"Retry-After": "1", "X-RateLimit-Rule": "Table API"}),
        ("opsgenie", {"Retry-After": None, "X-RateLimit-State": "THROTTLED"}),
        ("slack", {"Retry-After": "1"}),
        ("llm", {"Retry-After": "1"}),
    ],
)
def test_too_many_requests_are_told_so_in_each_vendors_way(s, name, headers):
    s[name].rate_limit = 1
    try:
        assert send("GET", s[name].url + "/v2/nothing").status != 429
        # The second within a second, which on a busy machine may not be the very next.
        refused = until(lambda: (reply := send("GET", s[name].url + "/v2/nothing")).status == 429 and reply)
    finally:
        s[name].rate_limit = None
    assert {header: refused.headers[header] for header in headers} == headers


def test_a_stand_in_can_be_down_and_come_back_on_its_port(s):
    url = s.slack.url
    s.slack.down()
    with pytest.raises(ConnectionRefusedError):
        slack(s, {"text": "x"})
    s.slack.up()
    assert (s.slack.url, slack(s, {"text": "x"}).text) == (url, "ok")


# -- as a whole


def test_fifty_clients_at_once_are_served_on_kept_connections(s):
    settings = s.settings("pagerduty")
    parts = urlsplit(settings["apiUrl"])
    accepted = s.pagerduty.listener.accepted
    statuses = []

    def client(number):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        for turn in range(10):
            payload = {"summary": "x", "source": "y", "severity": "info"}
            event = {"routing_key": settings["routingKey"], "event_action": "trigger", "dedup_key": f"{number}-{turn}"}
            body = json.dumps({**event, "payload": payload})
            connection.request("POST", "/v2/enqueue", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (statuses, s.pagerduty.pages) == ([202] * 500, 500)
    assert s.pagerduty.listener.accepted - accepted == 50


def test_the_ledger_is_written_before_the_answer(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Standins(path) as standins:
        standins.pagerduty.fault("lost")
        with pytest.raises(http.client.RemoteDisconnected):
            pagerduty(standins)
        slack(standins, {"text": "hello"})
        pagerduty(standins, "resolve", "never-seen")
        assert jira(standins, "POST", "/issue", issue(summary="")).status == 400
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["platform"], line["effect"]) for line in lines] == [("pagerduty", "page"), ("slack", "message")]


def test_they_run_as_a_process_that_is_steered_over_http(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-m", "tests.standins", "--ledger", str(ledger)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            settings = json.loads(process.stdout.readline())
            assert list(settings) == ["pagerduty", "jira", "servicenow", "opsgenie", "slack", "llm"]
            url = settings["slack"]["webhookUrl"]
            base = url.split("/services")[0]
            assert send("POST", base + "/_faults", {"kind": "status", "code": 410}).json()[0]["used"] == 0
            assert send("POST", url, {"text": "hello"}).text == "channel_is_archived"
            assert send("POST", url, {"text": "hello"}).text == "ok"
            state = send("GET", base + "/_state").json()
            assert [message["text"] for message in state["messages"]] == ["hello"]
            assert send("GET", base + "/_counts").json() == {"requests": 2, "message": 1}
            assert send("POST", base + "/_faults", {"kind": "explode"}).status == 400
            assert send("POST", base + "/_options", {"rate_limit": 5}).json()["rate_limit"] == 5
            assert send("POST", base + "/_reset").status == 200
            assert send("GET", base + "/_state").json()["messages"] == []
            assert len(ledger.read_text().splitlines()) == 1
        finally:
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
    assert time.monotonic() - started < 20
