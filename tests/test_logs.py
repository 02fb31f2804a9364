"""What the log says, to people and to machines, and what nobody can make it say."""

import json
import logging
import threading

import pytest
from django.contrib.auth import get_user_model

from tests.test_web import Site, refusal
from ticketing import logs

FORGED = 'x\r\n{"level": "critical"}\x1b[31m\x00\u2028\u202e'


def record(message: str, *args, error: BaseException | None = None, **extra) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.getLogger("test").makeRecord("test", logging.INFO, __file__, 1, message, args, info, extra=extra)
    assert logs.RequestFilter().filter(made)
    return made


def as_json(*args, **extra) -> dict:
    line = logs.JsonFormatter().format(record(*args, **extra))
    assert line.isascii()
    assert line.isprintable()
    return json.loads(line)


def failure(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


class TestJson:
    def test_a_line_has_the_ids_it_is_about(self):
        line = as_json("Ticket shows %s.", "open", incident="inc-20260101-001", ticket=7, platform="jira")
        assert (line["message"], line["level"], line["logger"]) == ("Ticket shows open.", "info", "test")
        assert (line["incident"], line["ticket"], line["platform"]) == ("inc-20260101-001", 7, "jira")
        assert line["time"].endswith("Z")
        assert "request_id" not in line

    def test_control_characters_are_shown_never_obeyed(self):
        line = as_json("Unknown service %s", FORGED, path=FORGED, actor=FORGED)
        for text in (line["message"], line["path"], line["actor"]):
            assert text.isprintable()
            assert "\\r\\n" in text
            assert "\\x1b" in text

    def test_a_lone_surrogate_breaks_nothing(self):
        assert as_json("%s", "\ud800")["message"] == "\\ud800"

    def test_a_traceback_stays_within_its_line(self):
        assert "ValueError" in as_json("Broke.", error=failure(FORGED))["traceback"]


class TestText:
    def test_a_line_for_people(self):
        line = logs.TextFormatter().format(record("Ticket shows %s.", "open", incident="inc-1", ticket=7))
        assert line.endswith("info    Ticket shows open. incident=inc-1 ticket=7")

    def test_an_errors_text_cannot_look_like_a_line_of_ours(self):
        error = failure("a\n12:00:00 info    all is well\x1b[2J")
        text = logs.TextFormatter().format(record("Broke %s", FORGED, error=error))
        first, *rest = text.split("\n")
        assert first.isprintable()
        assert rest
        assert all(line.startswith("    ") and line.isprintable() for line in rest)


@pytest.fixture
def lines(caplog):
    """The lines about this test's requests, as JSON says them."""
    caplog.set_level(logging.INFO, logger="ticketing.requests")
    caplog.handler.addFilter(logs.RequestFilter())

    def said() -> list[dict]:
        here = ("ticketing.requests", threading.get_ident())  # a server of an earlier test may still be answering
        mine = [made for made in caplog.records if (made.name, made.thread) == here]
        return [json.loads(logs.JsonFormatter().format(made)) for made in mine]

    return said


class TestRequests:
    def test_each_has_one_line_with_who_what_and_how_long(self, api, lines):
        response = api.get("/api/incidents?q=secret-word", headers={"X-Request-ID": "abc-1"})
        [line] = lines()
        assert (line["method"], line["path"], line["status"]) == ("GET", "/api/incidents", 200)
        assert (line["actor"], line["request_id"], response["X-Request-ID"]) == ("key:admin-tests", "abc-1", "abc-1")
        assert isinstance(line["ms"], int)
        assert "secret-word" not in json.dumps(line)

    def test_a_refused_one_too(self, client, db, lines):
        client.get("/api/incidents", headers={"Authorization": "Bearer tka_wrong"})
        elsewhere = {"X-Forwarded-For": "1.2.3.4"}
        client.post("/api/v1/anomalies", b'{"secret', content_type="application/json", headers=elsewhere)
        assert [(line["status"], line.get("actor")) for line in lines()] == [(401, None), (401, None)]
        assert "tka_wrong" not in json.dumps(lines())

    def test_a_path_forges_nothing(self, api, lines):
        api.get("/api/%0d%0a%7b%22level%22%3a%22critical%22%7d%1b%5b31m" + "x" * 5000)
        [line] = lines()
        assert line["path"].isprintable()
        assert len(line["path"]) < 400

    def test_a_login_is_named_without_asking_the_database_for_it(self, client, db, lines):
        client.force_login(get_user_model().objects.create_superuser("anna", password="a-long-one-1"))
        client.get("/admin/")
        client.get("/static/nothing.css")
        assert [(line["path"], line.get("actor")) for line in lines()] == [
            ("/admin/", "user:anna"),
            ("/static/nothing.css", None),
        ]

    def test_routine_has_no_line_unless_it_fails(self, api, lines):
        api.get("/health")
        api.get("/metrics")
        assert lines() == []
        api.get("/ready")
        assert [line["status"] for line in lines()] == [503]


def test_what_the_web_server_refuses_by_itself_has_a_line_with_the_replys_id(caplog):
    caplog.set_level(logging.INFO, logger="ticketing.web")
    site = Site()
    try:
        status, headers, _ = refusal(site.exchange(b"GET / HTTP/1.1\r\n\r\n"))
    finally:
        site.stop()
    [line] = [json.loads(logs.JsonFormatter().format(made)) for made in caplog.records if made.name == "ticketing.web"]
    assert (status, line["status"], line["request_id"]) == (400, 400, headers["x-request-id"])
