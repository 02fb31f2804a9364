"""A Slack incoming webhook: judges blocks as Slack does, and says what people would see as a mention or a link."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from tests.standins.standin import Refused, Standin
from tests.standins.wire import Answer, Request

TEXT_LIMIT = 40_000  # longer text is cut, not refused
BLOCKS_LIMIT = 50
BLOCKS_TEXT_LIMIT = 13_200  # undocumented: all blocks together
MARKDOWN_LIMIT = 12_000
MESSAGE_FIELDS = {
    "text", "blocks", "attachments", "thread_ts", "mrkdwn", "unfurl_links", "unfurl_media", "link_names", "parse",
    "response_type", "replace_original", "delete_original", "username", "icon_emoji", "icon_url", "channel", "metadata",
}  # fmt: skip
_CONTROL = re.compile(r"<([^<>\n]+)>")
_URL = re.compile(r"https?://[^\s<>|]+")


@dataclass(frozen=True)
class Message:
    text: str  # the fallback, as it was sent
    blocks: list[dict[str, Any]]
    shown: str  # everything that people read, a line per text, as it was sent (still escaped)
    body: dict[str, Any]


class InvalidBlocks(ValueError):
    """Why Slack would answer invalid_blocks."""


class Slack(Standin):
    name = "slack"
    routes = (("POST", r"/services/(?P<team>[^/]+)/(?P<hook>[^/]+)/(?P<token>[^/]+)", "post"),)
    team, hook, token = "T0STANDIN", "B0STANDIN", "standin0slack0webhook0to"

    def settings(self) -> dict[str, str]:
        return {"webhookUrl": f"{self.url}/services/{self.team}/{self.hook}/{self.token}"}

    def forget(self) -> None:
        self.messages: list[Message] = []

    def state(self) -> dict[str, object]:
        return {"messages": [asdict(message) for message in self.messages]}

    def refusal(self, code: int, message: str = "") -> Answer:
        words = {400: "invalid_payload", 403: "action_prohibited", 404: "no_service", 410: "channel_is_archived"}
        if code == 429:
            return self.throttled(1)
        return Answer(code, message or words.get(code, "rollup_error"))

    def throttled(self, wait: int) -> Answer:
        return Answer(429, "rate_limited", {"Retry-After": str(wait)})

    def post(self, request: Request, team: str, hook: str, token: str) -> Answer:
        for given, wanted, answer in (
            (team, self.team, (404, "no_team")),
            (hook, self.hook, (404, "no_service")),
            (token, self.token, (403, "invalid_token")),
        ):
            if given != wanted:
                return self.refusal(*answer)
        body = self._body(request)
        text, blocks = body.get("text", ""), body.get("blocks", [])
        try:
            texts = _blocks(blocks) + _attachments(body.get("attachments", []))
        except InvalidBlocks as error:
            # the body stays exactly Slack's; the reason is for whoever debugs a test
            raise Refused(Answer(400, "invalid_blocks", {"X-Standin-Reason": _header(str(error))})) from None
        if not text.strip():  # also where there are blocks: notifications would be empty
            return self.refusal(400, "no_text")
        if sum(len(shown.text) for shown in texts) > BLOCKS_TEXT_LIMIT:
            return self.refusal(400, "msg_blocks_too_long")
        shown = "\n".join([*([] if blocks else [text[:TEXT_LIMIT]]), *(one.text for one in texts)])
        self.messages.append(Message(text, blocks, shown, body))
        self._rendered(body, texts)
        self.effect("message", text=text[:200])
        return Answer(200, "ok")

    def _body(self, request: Request) -> dict[str, Any]:
        if not request.is_json:
            raise Refused(self.refusal(400, "invalid_payload"))
        try:
            body = request.json()
        except ValueError:
            raise Refused(self.refusal(400, "invalid_payload")) from None
        kinds = {"text": str, "blocks": list, "attachments": list}
        fits = isinstance(body, dict) and all(isinstance(body[name], kinds[name]) for name in kinds if name in body)
        if not fits or set(body) - MESSAGE_FIELDS:
            raise Refused(self.refusal(400, "invalid_payload"))
        return body

    def _rendered(self, body: dict[str, Any], texts: list["_Shown"]) -> None:
        """The fallback text notifies too; it is shown with its links only where there are no blocks."""
        where = f"message {len(self.messages)}"
        fallback = _Shown(body.get("text", ""), live=body.get("mrkdwn") is not False, verbatim=bool(body.get("blocks")))
        names = body.get("link_names") in (True, 1, "1", "true") or body.get("parse") == "full"
        for shown in (fallback, *texts):
            if names and re.search(r"@(channel|here|everyone)\b", shown.text):
                self.render("mention", where, shown.text)
            if not shown.live:
                continue
            for control in _CONTROL.findall(shown.text):
                self.render("mention" if control[0] in "!@#" else "link", where, control)
            if not shown.verbatim:
                for url in _URL.findall(_CONTROL.sub("", shown.text)):
                    self.render("autolink", where, url)


@dataclass(frozen=True)
class _Shown:
    text: str
    live: bool = False  # mrkdwn: <...> is acted upon
    verbatim: bool = False  # bare URLs stay text


def _header(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ")[:200]


def _blocks(blocks: list[Any]) -> list[_Shown]:
    """Every text in the blocks; raises InvalidBlocks."""
    if len(blocks) > BLOCKS_LIMIT:
        raise InvalidBlocks(f"{len(blocks)} blocks")
    shown: list[_Shown] = []
    identifiers: list[str] = []
    markdown = 0
    for index, block in enumerate(blocks):
        if not isinstance(block, dict) or block.get("type") not in _BLOCKS:
            raise InvalidBlocks(f"block {index}: unknown type")
        read, keys = _BLOCKS[block["type"]]
        if unknown := set(block) - keys - {"type", "block_id"}:
            raise InvalidBlocks(f"block {index}: unknown keys {sorted(unknown)}")
        if "block_id" in block:
            identifiers.append(_string(block["block_id"], 255, f"block {index}: block_id"))
        texts = read(block, f"block {index}")
        markdown += sum(len(one.text) for one in texts) if block["type"] == "markdown" else 0
        shown += texts
    if len(set(identifiers)) != len(identifiers):
        raise InvalidBlocks("block_id repeated")
    if markdown > MARKDOWN_LIMIT:
        raise InvalidBlocks("markdown blocks too long")
    return shown


def _string(value: object, most: int, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidBlocks(f"{where}: a string of 1 to {most} characters is wanted")
    return value


def _text(value: object, most: int, where: str, *, plain: bool = False) -> _Shown:
    """A text object."""
    if not isinstance(value, dict) or value.get("type") not in (("plain_text",) if plain else ("plain_text", "mrkdwn")):
        raise InvalidBlocks(f"{where}: a {'plain_text' if plain else 'text'} object is wanted")
    allowed = {"type", "text", "emoji"} if value["type"] == "plain_text" else {"type", "text", "verbatim"}
    if unknown := set(value) - allowed:
        raise InvalidBlocks(f"{where}: unknown keys {sorted(unknown)}")
    text = _string(value.get("text"), most, where)
    return _Shown(text, live=value["type"] == "mrkdwn", verbatim=value.get("verbatim") is True)


def _list(value: object, most: int, where: str) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise InvalidBlocks(f"{where}: 1 to {most} are wanted")
    return value


def _header_block(block: dict[str, Any], where: str) -> list[_Shown]:
    return [_text(block.get("text"), 150, where, plain=True)]


def _section(block: dict[str, Any], where: str) -> list[_Shown]:
    if "text" not in block and "fields" not in block:
        raise InvalidBlocks(f"{where}: text or fields are wanted")
    shown = [_text(block["text"], 3000, where)] if "text" in block else []
    if "fields" in block:
        shown += [_text(one, 2000, f"{where} fields") for one in _list(block["fields"], 10, where)]
    if "accessory" in block:
        shown += _element(block["accessory"], where)
    return shown


def _context(block: dict[str, Any], where: str) -> list[_Shown]:
    shown = []
    for one in _list(block.get("elements"), 10, where):
        if isinstance(one, dict) and one.get("type") == "image":
            shown += _image(one, where)
        else:
            shown.append(_text(one, 3000, where))
    return shown


def _actions(block: dict[str, Any], where: str) -> list[_Shown]:
    return [shown for one in _list(block.get("elements"), 25, where) for shown in _element(one, where)]


def _element(element: object, where: str) -> list[_Shown]:
    """A button or an image: what a webhook without an app has use for."""
    if isinstance(element, dict) and element.get("type") == "image":
        return _image(element, where)
    if not isinstance(element, dict) or element.get("type") != "button":
        raise InvalidBlocks(f"{where}: unknown element")
    if unknown := set(element) - {"type", "text", "action_id", "url", "value", "style", "accessibility_label"}:
        raise InvalidBlocks(f"{where}: unknown keys {sorted(unknown)}")
    for name, most in (("action_id", 255), ("url", 3000), ("value", 2000), ("accessibility_label", 75)):
        if name in element:
            _string(element[name], most, f"{where} {name}")
    if element.get("style", "primary") not in ("primary", "danger"):
        raise InvalidBlocks(f"{where}: style")
    return [_text(element.get("text"), 75, where, plain=True)]


def _image(block: dict[str, Any], where: str) -> list[_Shown]:
    _string(block.get("image_url"), 3000, f"{where} image_url")
    return [_Shown(_string(block.get("alt_text"), 2000, f"{where} alt_text"))]


def _markdown(block: dict[str, Any], where: str) -> list[_Shown]:
    return [_Shown(_string(block.get("text"), MARKDOWN_LIMIT, where), live=True)]


def _divider(block: dict[str, Any], where: str) -> list[_Shown]:
    return []


def _rich_text(block: dict[str, Any], where: str) -> list[_Shown]:
    return [one for element in _list(block.get("elements"), 1000, where) for one in _rich_element(element, where)]


def _rich_element(element: object, where: str) -> list[_Shown]:
    """Rich text says outright what is a mention or a link; its text is never parsed."""
    if not isinstance(element, dict):
        raise InvalidBlocks(f"{where}: an object is wanted")
    match element.get("type"):
        case "rich_text_section" | "rich_text_list" | "rich_text_quote" | "rich_text_preformatted":
            elements = element.get("elements")
            if not isinstance(elements, list):
                raise InvalidBlocks(f"{where}: elements are wanted")
            return [shown for one in elements for shown in _rich_element(one, where)]
        case "text":
            return [_Shown(_string(element.get("text"), 3000, where))]
        case "emoji":
            return []
        case "link":
            return [_Shown(f"<{_string(element.get('url'), 3000, where)}>", live=True)]
        case "user" | "usergroup" | "broadcast" | "channel" as kind:
            return [_Shown(f"<!{kind}>", live=True)]
    raise InvalidBlocks(f"{where}: unknown rich text")


def _attachments(attachments: list[Any]) -> list[_Shown]:
    if len(attachments) > 100:
        raise InvalidBlocks("more than 100 attachments")
    shown = []
    for one in attachments:
        if not isinstance(one, dict):
            raise InvalidBlocks("an attachment must be an object")
        shown += [
            _Shown(one[name], live=True) for name in ("pretext", "title", "text") if isinstance(one.get(name), str)
        ]
        for pair in one.get("fields", []):
            shown += [_Shown(str(pair.get(name, "")), live=True) for name in ("title", "value")]
        shown += _blocks(one.get("blocks", []))
    return shown


_BLOCKS = {
    "header": (_header_block, {"text"}),
    "section": (_section, {"text", "fields", "accessory", "expand"}),
    "divider": (_divider, set()),
    "context": (_context, {"elements"}),
    "actions": (_actions, {"elements"}),
    "image": (_image, {"image_url", "alt_text", "title"}),
    "markdown": (_markdown, {"text"}),
    "rich_text": (_rich_text, {"elements"}),
}
