"""Atlassian Document Format as Jira judges it: is it valid, what does it say, what in it is more than text."""

from typing import Any

_INLINE = {"text", "hardBreak", "mention", "emoji", "date", "status", "inlineCard"}
_ITEM = {"paragraph", "bulletList", "orderedList", "codeBlock", "mediaSingle"}
_BLOCKS = {
    "paragraph", "heading", "bulletList", "orderedList", "codeBlock", "blockquote", "panel", "rule", "table", "expand",
    "mediaSingle", "mediaGroup", "blockCard", "taskList", "decisionList",
}  # fmt: skip
# node type: which types it may hold (None: no content)
_CONTENT: dict[str, set[str] | None] = {
    "doc": _BLOCKS,
    "paragraph": _INLINE,
    "heading": _INLINE,
    "codeBlock": {"text"},
    "bulletList": {"listItem"},
    "orderedList": {"listItem"},
    "listItem": _ITEM,
    "blockquote": {"paragraph", "bulletList", "orderedList", "codeBlock"},
    "panel": {"paragraph", "heading", "bulletList", "orderedList", "codeBlock", "rule"},
    "expand": _BLOCKS - {"expand"},
    "table": {"tableRow"},
    "tableRow": {"tableCell", "tableHeader"},
    "tableCell": _BLOCKS - {"table", "expand"},
    "tableHeader": _BLOCKS - {"table", "expand"},
    "rule": None,
    "text": None,
    "hardBreak": None,
    "mention": None,
    "emoji": None,
    "date": None,
    "status": None,
    "inlineCard": None,
    "blockCard": None,
}
_NEVER_EMPTY = set(_CONTENT) - {"doc", "paragraph", "heading", "codeBlock"}
_ATTRS: dict[str, dict[str, type | tuple]] = {
    "heading": {"level": (1, 2, 3, 4, 5, 6)},
    "panel": {"panelType": ("info", "note", "warning", "success", "error")},
    "mention": {"id": str},
    "emoji": {"shortName": str},
    "date": {"timestamp": str},
    "status": {"text": str, "color": str},
    "inlineCard": {"url": str},
    "blockCard": {"url": str},
}
_MARKS = {"strong", "em", "code", "link", "strike", "underline", "textColor", "backgroundColor", "subsup"}
_KEYS = {"type", "content", "attrs", "marks", "text"}


class Invalid(ValueError):
    """Why a document is not valid ADF."""


def check(document: object) -> None:
    """Raise Invalid unless `document` is a whole ADF document."""
    if not isinstance(document, dict) or document.get("type") != "doc":
        raise Invalid("the document must be an object of type doc")
    if document.get("version") != 1 or isinstance(document.get("version"), bool):
        raise Invalid("the version must be 1")
    if not isinstance(document.get("content"), list):
        raise Invalid("the document has no content")
    _node({name: value for name, value in document.items() if name != "version"}, "doc")


def text(node: Any) -> str:
    """What a document says, a line per block."""
    if node.get("type") == "text":
        return node["text"]
    if node.get("type") == "hardBreak":
        return "\n"
    parts = [text(child) for child in node.get("content", [])]
    inline = all(child.get("type") in _INLINE for child in node.get("content", []))
    return "".join(parts) if inline else "\n".join(parts)


def live(node: Any) -> list[tuple[str, str]]:
    """(kind, target) of each mention and link in it; wiki and HTML markup in text nodes is inert and not listed."""
    found = []
    attrs = node.get("attrs", {})
    if node.get("type") == "mention":
        found.append(("mention", attrs["id"]))
    if node.get("type") in ("inlineCard", "blockCard"):
        found.append(("link", attrs["url"]))
    found += [("link", mark["attrs"]["href"]) for mark in node.get("marks", []) if mark["type"] == "link"]
    for child in node.get("content", []):
        found += live(child)
    return found


def _node(node: object, where: str) -> None:
    if not isinstance(node, dict) or node.get("type") not in _CONTENT:
        raise Invalid(f"{where}: no known node")
    kind = node["type"]
    if unknown := set(node) - _KEYS:
        raise Invalid(f"{where}: {kind} has unknown keys {sorted(unknown)}")
    _attrs(node, kind, where)
    if kind == "text":
        if not isinstance(node.get("text"), str) or not node["text"]:
            raise Invalid(f"{where}: a text node must not be empty")
        _marks(node.get("marks", []), where)
    elif "text" in node:
        raise Invalid(f"{where}: {kind} holds no text of its own")
    _children(node, kind, where)


def _attrs(node: dict[str, Any], kind: str, where: str) -> None:
    attrs = node.get("attrs", {})
    if not isinstance(attrs, dict):
        raise Invalid(f"{where}: attrs must be an object")
    for name, wanted in _ATTRS.get(kind, {}).items():
        value = attrs.get(name)
        fits = isinstance(value, str) and value if wanted is str else value in wanted and not isinstance(value, bool)
        if not fits:
            raise Invalid(f"{where}: {kind} needs a valid {name}")


def _children(node: dict[str, Any], kind: str, where: str) -> None:
    allowed, content = _CONTENT[kind], node.get("content", [])
    if allowed is None:
        if "content" in node:
            raise Invalid(f"{where}: {kind} holds nothing")
        return
    if not isinstance(content, list) or (kind in _NEVER_EMPTY and not content):
        raise Invalid(f"{where}: {kind} needs content")
    for index, child in enumerate(content):
        _node(child, f"{where}.{index}")
        if child["type"] not in allowed:
            raise Invalid(f"{where}.{index}: {child['type']} is not allowed in {kind}")
        if kind == "codeBlock" and child.get("marks"):
            raise Invalid(f"{where}.{index}: no marks in a code block")


def _marks(marks: object, where: str) -> None:
    if not isinstance(marks, list):
        raise Invalid(f"{where}: marks must be an array")
    for mark in marks:
        if not isinstance(mark, dict) or mark.get("type") not in _MARKS:
            raise Invalid(f"{where}: unknown mark")
        if mark["type"] == "link" and not str((mark.get("attrs") or {}).get("href") or ""):
            raise Invalid(f"{where}: a link needs its href")
    kinds = [mark["type"] for mark in marks]
    if len(set(kinds)) != len(kinds) or ("code" in kinds and set(kinds) - {"code", "link"}):
        raise Invalid(f"{where}: these marks do not go together")
