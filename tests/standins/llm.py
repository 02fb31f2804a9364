"""A model server in OpenAI's shape: judges requests as strictly, answers what it is told to, or something that fits."""

import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tests.standins.standin import Refused, Standin
from tests.standins.wire import Answer, Request

SENTENCE = "The stand-in model sees the first error in the named service and takes it for the cause of the others."
# model: what it refuses
MODELS: dict[str, set[str]] = {
    "gpt-4o-mini": set(),
    "gpt-4": {"json_schema"},
    "o4-mini": {"max_tokens", "temperature"},
}
PARAMETERS = {
    "model", "messages", "response_format", "temperature", "top_p", "n", "stop", "max_tokens", "max_completion_tokens",
    "seed", "user", "stream", "presence_penalty", "frequency_penalty", "logprobs", "metadata", "store",
    "reasoning_effort", "service_tier",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant")
# For fault("status", code=429, body=...): the first must not be tried again, the second may.
QUOTA = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
}
RATE_LIMIT = {
    "error": {
        "message": "Rate limit reached for requests",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
}


class Model(Standin):
    name = "llm"
    routes = (
        ("POST", "/v1/chat/completions", "complete"),
        ("GET", "/v1/models", "list_models"),
        ("GET", "/v1/models/(?P<model>.+)", "read_model"),
    )
    options = ("lag", "rate_limit", "answer_with", "finish_reason")
    key = "sk-standin-0123456789abcdef"
    # Text as it is, other values as JSON, or a function of the request; None: something that fits the schema asked for.
    answer_with: str | dict | list | Callable[[dict[str, Any]], str] | None = None
    finish_reason = "stop"

    def settings(self) -> dict[str, str]:
        return {"provider": "openai", "model": "gpt-4o-mini", "apiKey": self.key, "baseUrl": f"{self.url}/v1"}

    def forget(self) -> None:
        self.requests: list[dict[str, Any]] = []  # the bodies of those that were answered

    def state(self) -> dict[str, object]:
        return {"generations": self.requests[-100:], "count": len(self.requests)}

    def refusal(self, code: int, message: str = "", *, param: str | None = None, name: str | None = None) -> Answer:
        if code == 429:
            return self.throttled(1)
        kind = "invalid_request_error" if code < 500 else "server_error"
        error = {"message": message or f"The server answers {code}", "type": kind, "param": param, "code": name}
        return Answer(code, {"error": error})

    def throttled(self, wait: int) -> Answer:
        headers = {
            "Retry-After": str(wait),
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{wait}s",
        }
        return Answer(429, RATE_LIMIT, headers)

    def admit(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            message = "You didn't provide an API key. You need to provide your API key in an Authorization header."
            raise Refused(self.refusal(401, message))
        if key != self.key:
            message = f"Incorrect API key provided: {key[:3]}****{key[-4:]}."
            raise Refused(self.refusal(401, message, name="invalid_api_key"))

    def list_models(self, request: Request) -> Answer:
        return Answer(200, {"object": "list", "data": [_model(name) for name in MODELS]})

    def read_model(self, request: Request, model: str) -> Answer:
        self._must_exist(unquote(model))
        return Answer(200, _model(unquote(model)))

    def complete(self, request: Request) -> Answer:
        body = self._body(request)
        self._must_exist(body.get("model"))
        self._check_messages(body.get("messages"))
        schema = self._check_format(body)
        for name in sorted(MODELS[body["model"]] & set(body)):
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise Refused(self.refusal(400, message, param=name, name="unsupported_parameter"))
        self.requests.append(body)
        text = self._text(body, schema)
        self.effect("answer", model=body["model"], characters=len(text))
        message = {"role": "assistant", "content": text, "refusal": None}
        tokens = sum(len(str(one["content"])) for one in body["messages"]) // 4
        usage = {"prompt_tokens": tokens, "completion_tokens": len(text) // 4, "total_tokens": tokens + len(text) // 4}
        choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}]
        head = {"id": f"chatcmpl-{len(self.requests)}", "object": "chat.completion", "created": int(time.time())}
        return Answer(200, {**head, "model": body["model"], "choices": choices, "usage": usage})

    def _must_exist(self, model: object) -> None:
        if model not in MODELS:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise Refused(self.refusal(404, message, param="model", name="model_not_found"))

    def _body(self, request: Request) -> dict[str, Any]:
        message = "We could not parse the JSON body of your request."
        if not request.is_json:
            raise Refused(self.refusal(400, message))
        try:
            body = request.json()
        except ValueError:
            raise Refused(self.refusal(400, message)) from None
        if not isinstance(body, dict):
            raise Refused(self.refusal(400, message))
        for name in sorted(set(body) - PARAMETERS):
            raise Refused(self.refusal(400, f"Unrecognized request argument supplied: {name}"))
        if body.get("stream"):
            raise Refused(self.refusal(400, "This stand-in does not stream.", param="stream"))
        return body

    def _check_messages(self, messages: object) -> None:
        if not isinstance(messages, list) or not messages:
            raise Refused(
                self.refusal(400, "Invalid 'messages': an array that is not empty is wanted.", param="messages")
            )
        for index, one in enumerate(messages):
            if (
                not isinstance(one, dict)
                or one.get("role") not in ROLES
                or not isinstance(one.get("content"), str | list)
            ):
                message = f"Invalid 'messages[{index}]': a role and a content are wanted."
                raise Refused(self.refusal(400, message, param=f"messages[{index}]"))

    def _check_format(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The schema that the answer must fit, if one is asked for."""
        wanted = body.get("response_format", {"type": "text"})
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        if kind == "text":
            return None
        if kind == "json_object":
            if "json" not in json.dumps(body["messages"]).lower():
                message = (
                    "'messages' must contain the word 'json' in some form, to use 'response_format' 'json_object'."
                )
                raise Refused(self.refusal(400, message, param="messages"))
            return {"type": "object"}
        given = wanted.get("json_schema") if kind == "json_schema" else None
        if not isinstance(given, dict) or not isinstance(given.get("schema"), dict):
            raise Refused(self.refusal(400, "Invalid 'response_format'.", param="response_format"))
        if "json_schema" in MODELS[body["model"]]:
            message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
            raise Refused(self.refusal(400, message, param="response_format"))
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(given.get("name", ""))):
            name = "response_format.json_schema.name"
            raise Refused(self.refusal(400, f"Invalid '{name}'.", param=name))
        if given.get("strict"):
            self._check_strict(given["schema"], ())
        return given["schema"]

    def _check_strict(self, schema: object, where: tuple[str, ...]) -> None:
        """Strict schemas: every object closed, every property required."""
        if not isinstance(schema, dict):
            return
        properties = schema.get("properties", {})
        problem = None
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            problem = "'additionalProperties' is required to be supplied and to be false."
        elif set(schema.get("required", [])) != set(properties):
            problem = "'required' is required to be supplied and to be an array including every key in properties."
        if problem:
            message = f"Invalid schema for response_format: In context={where}, {problem}"
            raise Refused(self.refusal(400, message, param="response_format"))
        for name, inner in properties.items():
            self._check_strict(inner, (*where, "properties", name))
        self._check_strict(schema.get("items"), (*where, "items"))

    def _text(self, body: dict[str, Any], schema: dict[str, Any] | None) -> str:
        answer = self.answer_with(body) if callable(self.answer_with) else self.answer_with
        if answer is None:
            answer = SENTENCE if schema is None else _sample(schema)
        return answer if isinstance(answer, str) else json.dumps(answer)


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "stand-in"}


def _sample(schema: dict[str, Any]) -> Any:
    """Something that fits the schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0])
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: _sample(inner) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [_sample(schema.get("items", {"type": "string"}))] * max(1, schema.get("minItems", 1))
        case "number" | "integer" as number:
            return schema.get("minimum", 0.5 if number == "number" else 1)
        case "boolean":
            return False
        case "null":
            return None
    return SENTENCE[: schema.get("maxLength", len(SENTENCE))]
