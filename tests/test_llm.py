import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from platforms import llm
from platforms.contract import PlatformError
from platforms.egress import Egress
from platforms.http import Caller

SCHEMA = {"type": "object", "properties": {"cause": {"type": "string"}}}
ANSWER = '{"cause": "disk full"}'


class Model(ThreadingHTTPServer):
    """Answers each request with the next of `replies`: a status and what to say as JSON; the last one again."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.asked = [], []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def settings(self):
        base = f"http://127.0.0.1:{self.server_port}/v1"
        return {"provider": "openai", "model": "gpt-4", "apiKey": "sk-secret", "baseUrl": base}

    def explain(self, *replies, **changed):
        self.replies = list(replies)
        return llm.explain(_caller(), {**self.settings, **changed}, "You explain.", "What broke?", SCHEMA)

    def probe(self, *replies, seconds=60, **changed):
        self.replies = list(replies)
        llm.probe(_caller(seconds), {**self.settings, **changed})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.path, dict(self.headers), body))
        replies = self.server.replies
        status, data = replies.pop(0) if len(replies) > 1 else replies[0]
        payload = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_POST = do_GET

    def log_message(self, *args):
        pass


def _caller(seconds=60):
    return Caller(egress=Egress(["127.0.0.0/8"]), seconds=seconds, secrets=["sk-secret"])


def said(content, finish="stop", **message):
    return 200, {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}


def error(status, message, **more):
    return status, {"error": {"message": message, **more}}


@pytest.fixture
def model():
    server = Model()
    yield server
    server.shutdown()
    server.server_close()


NO_SCHEMA = error(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.")
NO_JSON = error(400, "response_format json_object is not supported")
NO_MAX = error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens")


def test_a_question_goes_out_as_a_strict_chat_completion(model):
    assert model.explain(said(ANSWER)) == ANSWER
    [(path, headers, body)] = model.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret"
    assert body["model"] == "gpt-4"
    assert body["messages"] == [
        {"role": "system", "content": "You explain."},
        {"role": "user", "content": "What broke?"},
    ]
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": SCHEMA}
    assert body["max_tokens"] > 0
    assert "temperature" not in body


def test_a_slash_at_the_end_of_the_base_url_is_left_out(model):
    model.explain(said(ANSWER), baseUrl=model.settings["baseUrl"] + "/")
    assert model.asked[0][0] == "/v1/chat/completions"


def test_a_local_server_without_a_key_gets_no_authorization(model):
    model.explain(said(ANSWER), apiKey="")
    assert "Authorization" not in model.asked[0][1]


def test_what_a_model_cannot_do_is_given_up_step_by_step_and_once_each(model):
    assert model.explain(NO_SCHEMA, NO_MAX, NO_JSON, said(ANSWER)) == ANSWER
    bodies = [body for _, _, body in model.asked]
    assert [body.get("response_format", {}).get("type") for body in bodies] == [
        "json_schema",
        "json_object",
        "json_object",
        None,
    ]
    assert ["max_tokens" in body for body in bodies] == [True, True, False, False]
    assert "max_completion_tokens" in bodies[3]
    assert json.dumps(SCHEMA) in bodies[3]["messages"][0]["content"], "the schema is told where it cannot be set"


@pytest.mark.parametrize("refusal", [NO_SCHEMA, NO_MAX])
def test_a_server_that_refuses_everything_is_not_asked_for_ever(model, refusal):
    with pytest.raises(PlatformError) as caught:
        model.explain(refusal)
    assert caught.value.permanent
    assert len(model.asked) <= 4


def test_another_bad_request_is_told_at_once(model):
    with pytest.raises(PlatformError, match="400 This model's maximum context length is 8192") as caught:
        model.explain(error(400, "This model's maximum context length is 8192", code="context_length_exceeded"))
    assert caught.value.permanent
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{ANSWER}\n```",
        f"Sure, here it is: {ANSWER} Anything else?",
        f"<think>maybe {{x}}</think>\n{ANSWER}",
        [{"type": "text", "text": ANSWER}],
    ],
)
def test_the_json_is_taken_out_of_what_models_put_around_it(model, content):
    assert model.explain(said(content)) == ANSWER


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (said(None, refusal="I cannot"), "refused to answer: I cannot"),
        (said('{"cause": "di', finish="length"), "cut off"),
        (said("", finish="content_filter"), "content filter"),
        (said(""), "empty"),
        (said(None), "empty"),
        (said(7), "empty"),
        (said("The disk is full."), "not JSON"),
        ((200, {"choices": []}), "not a chat completion"),
        ((200, {"choices": [{"message": None}]}), "not a chat completion"),
        ((200, [1]), "not a chat completion"),
        ((200, {"error": "model crashed"}), "model crashed"),
        (error(402, "pay"), "402 pay"),
    ],
)
def test_an_answer_that_is_none_is_a_permanent_error(model, reply, says):
    with pytest.raises(PlatformError, match=says) as caught:
        model.explain(reply)
    assert caught.value.permanent
    assert len(model.asked) == 1


def test_an_exhausted_quota_does_not_pass_by_itself_but_a_rate_limit_does(model):
    quota = error(429, "You exceeded your current quota. " + "x" * 400, type="insufficient_quota")
    with pytest.raises(PlatformError) as caught:
        model.explain(quota)
    assert (caught.value.permanent, caught.value.pause) == (True, False)
    with pytest.raises(PlatformError) as caught:
        model.explain(error(429, "Slow down", code="rate_limit_exceeded"))
    assert (caught.value.permanent, caught.value.pause) == (False, True)


def test_a_servers_trouble_is_worth_another_try(model):
    with pytest.raises(PlatformError) as caught:
        model.explain((503, {"error": "queue full"}))
    assert not caught.value.permanent


def test_an_answer_of_five_megabytes_is_given_up(model):
    with pytest.raises(PlatformError, match="larger than 1 MiB"):
        model.explain(said("x" * 5_000_000))


@pytest.mark.parametrize("body", [b"<html>", b"NaN", b"", b"[" * 5000])
def test_a_reply_that_is_no_json_is_an_error(model, body):
    with pytest.raises(PlatformError, match="not JSON"):
        model.explain((200, body))
    with pytest.raises(PlatformError):
        model.probe((200, body))


def test_a_key_echoed_by_the_server_is_hidden(model):
    with pytest.raises(PlatformError) as caught:
        model.explain(error(403, "key sk-secret has no access"))
    assert caught.value.message == "API key refused: key **** has no access"


@pytest.mark.parametrize("ask", [Model.explain, Model.probe])
def test_a_refused_key_is_told_in_three_words(model, ask):
    with pytest.raises(PlatformError) as caught:
        ask(model, error(401, "Incorrect API key provided: sk-se***et", code="invalid_api_key"))
    assert (caught.value.message, caught.value.permanent) == ("API key refused", True)


def test_a_probe_asks_for_the_model_by_name(model):
    model.probe((200, {"id": "meta/llama 3"}), model="meta/llama 3")
    assert [path for path, _, _ in model.asked] == ["/v1/models/meta%2Fllama%203"]


@pytest.mark.parametrize("listed", ["gpt-4", "gpt-4:latest"])
def test_a_server_without_model_pages_is_asked_for_its_list(model, listed):
    model.probe((404, b"not found"), (200, {"data": [{"id": "other"}, {"id": listed}]}))
    assert [path for path, _, _ in model.asked] == ["/v1/models/gpt-4", "/v1/models"]


@pytest.mark.parametrize("listing", [(200, {"data": [{"id": "gpt-4o"}]}), (200, {}), (200, []), (404, b"")])
def test_a_model_that_is_nowhere_is_not_found(model, listing):
    with pytest.raises(PlatformError, match="model not found: gpt-4") as caught:
        model.probe((404, {"error": {"code": "model_not_found"}}), listing)
    assert caught.value.permanent


def test_a_key_that_only_the_list_refuses_is_refused(model):
    with pytest.raises(PlatformError, match="API key refused"):
        model.probe((404, b""), (401, b""))


def test_a_hanging_server_is_given_up_in_the_words_of_the_documentation():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"model": "m", "baseUrl": f"http://127.0.0.1:{silent.getsockname()[1]}/v1"}
        started = time.monotonic()
        with pytest.raises(PlatformError) as caught:
            llm.probe(_caller(0.2), settings)
    assert caught.value.message == "Connection timeout after 0.2s"
    assert time.monotonic() - started < 10


def test_the_deadline_is_told_as_whole_seconds():
    call = Caller(egress=Egress(["127.0.0.0/8"]), seconds=5, started=-1e9)
    with pytest.raises(PlatformError, match=r"^Connection timeout after 5s$"):
        llm.probe(call, {"model": "m", "baseUrl": "http://127.0.0.1:1"})


def test_settings_that_cannot_work_are_permanent_errors():
    for settings, says in [({"provider": "nobody", "model": "m"}, "Unknown LLM provider"), ({}, "No LLM model")]:
        with pytest.raises(PlatformError, match=says) as caught:
            llm.probe(_caller(), settings)
        assert caught.value.permanent


def test_the_default_address_is_openais():
    assert llm.PROVIDERS["openai"].base_url == "https://api.openai.com/v1"
