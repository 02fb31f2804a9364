"""How we ask a language model: one answer in a given JSON shape, and whether it could be asked at all.

A model's answer is foreign text. It is handed back as it came; whoever asked checks it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from platforms.contract import PlatformError, Settings
from platforms.http import Caller, Reply

_ERRORS = range(400, 500)  # read here, not by the caller: the reason decides what to do
_FORMATS = ("json_schema", "json_object", "text")
# How much may be written. Reasoning models know the second name only, and count what they think.
_LIMITS = (("max_tokens", 1024), ("max_completion_tokens", 4096))
_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "credit_exhausted"}


@dataclass(frozen=True)
class Provider:
    """One way to talk to models. The functions get settings with `baseUrl` filled in, no slash at its end."""

    label: str
    base_url: str
    explain: Callable[[Caller, Settings, str, str, dict[str, Any]], str]
    probe: Callable[[Caller, Settings], None]


def explain(call: Caller, settings: Settings, system: str, user: str, schema: dict[str, Any]) -> str:
    """The model's answer to `user` under the instructions `system`: JSON text that should, but need not, fit `schema`.

    Settings: provider, model, apiKey, baseUrl. Raises PlatformError.
    """
    provider, filled = _chosen(settings)
    return provider.explain(call, filled, system, user, schema)


def probe(call: Caller, settings: Settings) -> None:
    """Asks, without using tokens, whether the model is there and the key is good. Raises PlatformError if not."""
    provider, filled = _chosen(settings)
    provider.probe(call, filled)


def _chosen(settings: Settings) -> tuple[Provider, Settings]:
    name = settings.get("provider") or "openai"
    provider = PROVIDERS.get(name)
    if provider is None:
        raise PlatformError(f"Unknown LLM provider: {name}", permanent=True)
    if not settings.get("model"):
        raise PlatformError("No LLM model is set", permanent=True)
    return provider, {**settings, "baseUrl": (settings.get("baseUrl") or provider.base_url).rstrip("/")}


# OpenAI's chat completions, which vLLM, Ollama, LM Studio and others speak too.


def _openai_explain(call: Caller, settings: Settings, system: str, user: str, schema: dict[str, Any]) -> str:
    form, limit = 0, 0
    while True:
        reply = call.request(
            "POST",
            f"{settings['baseUrl']}/chat/completions",
            headers=_openai_headers(settings),
            json=_openai_question(settings["model"], system, user, schema, _FORMATS[form], _LIMITS[limit]),
            expect=_ERRORS,
        )
        if reply.status < 400:
            return _openai_answer(call, reply)
        # Every step goes one way only, so there are four requests at most.
        if limit == 0 and _openai_refuses(reply, "max_tokens"):
            limit = 1
        elif form < len(_FORMATS) - 1 and _openai_refuses(reply, "response_format", "json_schema", "json_object"):
            form += 1
        else:
            raise _openai_failure(call, reply)


def _openai_question(
    model: str, system: str, user: str, schema: dict[str, Any], form: str, limit: tuple[str, int]
) -> dict[str, Any]:
    """The request's body. No temperature: reasoning models refuse any."""
    if form != "json_schema":
        system += (
            f"\n\nAnswer with one JSON object and nothing else. It follows this JSON schema:\n{json.dumps(schema)}"
        )
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    question: dict[str, Any] = {"model": model, "messages": messages, limit[0]: limit[1]}
    if form == "json_schema":
        strict = {"name": "answer", "strict": True, "schema": schema}
        question["response_format"] = {"type": "json_schema", "json_schema": strict}
    elif form == "json_object":
        question["response_format"] = {"type": "json_object"}
    return question


def _openai_refuses(reply: Reply, *parameters: str) -> bool:
    """Whether a 400 (422 at servers built on pydantic) is about one of these parameters, by its text or its `param`."""
    return reply.status in (400, 422) and any(parameter in reply.text for parameter in parameters)


def _openai_answer(call: Caller, reply: Reply) -> str:
    data = reply.json()
    if isinstance(data, dict) and data.get("error"):  # some gateways say 200 to everything
        raise PlatformError(call.clean(f"The model answered with an error: {_openai_error(reply)[0]}"), permanent=True)
    try:
        choice = data["choices"][0]
        message = choice["message"]
        content, refused = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise PlatformError("The reply is not a chat completion", permanent=True, status=reply.status) from None
    if refused:
        raise PlatformError(call.clean(f"The model refused to answer: {refused}"), permanent=True)
    finish = choice.get("finish_reason")
    if finish == "length":
        raise PlatformError("The model's answer was cut off by its length", permanent=True)
    if finish == "content_filter":
        raise PlatformError("The model's answer was held back by a content filter", permanent=True)
    if isinstance(content, list):  # in parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str) or not content.strip():
        raise PlatformError("The model's answer is empty", permanent=True)
    return _json_part(content)


def _openai_probe(call: Caller, settings: Settings) -> None:
    """Ollama and vLLM do not have every model's own page, so the list is looked through where there is none."""
    base, model, headers = settings["baseUrl"], settings["model"], _openai_headers(settings)
    reply = call.request("GET", f"{base}/models/{quote(model, safe='')}", headers=headers, expect=_ERRORS)
    if reply.status in (404, 405):
        reply = call.request("GET", f"{base}/models", headers=headers, expect=_ERRORS)
        if reply.status == 404 or (reply.status < 400 and not _lists(reply.json(), model)):
            raise PlatformError(call.clean(f"model not found: {model}"), permanent=True, status=404)
    if reply.status >= 400:
        raise _openai_failure(call, reply)
    data = reply.json()
    if isinstance(data, dict) and data.get("error"):
        raise PlatformError(call.clean(_openai_error(reply)[0]), permanent=True)


def _lists(data: Any, model: str) -> bool:
    entries = data.get("data") if isinstance(data, dict) else None
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return model in ids or (":" not in model and f"{model}:latest" in ids)  # Ollama's names have tags


def _openai_headers(settings: Settings) -> dict[str, str]:
    """Local servers have no key, and some refuse an empty one."""
    key = settings.get("apiKey")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _openai_failure(call: Caller, reply: Reply) -> PlatformError:
    text, codes = _openai_error(reply)
    if reply.status == 401:
        return PlatformError("API key refused", permanent=True, status=401)
    if reply.status == 403:  # a key may be good but not for this
        return PlatformError(call.clean(f"API key refused: {text}"), permanent=True, status=403)
    if reply.status == 429 and codes & _NO_QUOTA:  # unlike other 429s this one does not pass by itself
        return PlatformError(call.clean(f"429 {text}"), permanent=True, status=429)
    return call.failure(reply, text)


def _openai_error(reply: Reply) -> tuple[str, set[str]]:
    """What an error says, and its `code` and `type`. vLLM (older) has them at the top, Ollama a bare string."""
    try:
        data = reply.json()
    except PlatformError:
        return "", set()
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return str(error), set()
    return str(error.get("message") or ""), {str(error.get("code")), str(error.get("type"))}


def _json_part(text: str) -> str:
    """The JSON object in an answer, without the fences, thoughts and politeness that models put around it."""
    text = re.sub(r"<think>.*?</think>", "", text, count=1, flags=re.DOTALL)
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        raise PlatformError("The model's answer is not JSON", permanent=True)
    return text[start : end + 1]


PROVIDERS: dict[str, Provider] = {
    "openai": Provider(
        label="OpenAI, or a server that speaks its API",
        base_url="https://api.openai.com/v1",
        explain=_openai_explain,
        probe=_openai_probe,
    ),
}
