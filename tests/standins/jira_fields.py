"""Jira's fields: each function takes what was sent and returns what is stored, or raises ValueError in Jira's words."""

from typing import Any

from tests.standins import adf
from tests.standins.standin import Refused
from tests.standins.wire import Answer

TEXT_LIMIT = 32_767
PRIORITIES = ("Highest", "High", "Medium", "Low", "Lowest")


def summary(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("You must specify a summary of the issue.")
    if "\n" in value or "\r" in value:
        raise ValueError("The summary is invalid because it contains newline characters.")
    if len(value) > 255:
        raise ValueError("Summary can't exceed 255 characters.")
    return value


def description(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("Operation value must be an Atlassian Document (see the Atlassian Document Format)")
    adf.check(value)
    if len(adf.text(value)) > TEXT_LIMIT:
        raise ValueError("The entered text is too long. It exceeds the allowed limit of 32,767 characters.")
    return value


def labels(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(label, str) and label for label in value):
        raise ValueError("data was not an array of strings")
    for label in value:
        if any(character.isspace() for character in label):
            raise ValueError(f"The label '{label}' contains spaces which is invalid.")
        if len(label) > 255:
            raise ValueError(f"The label '{label[:20]}...' exceeds the limit of 255 characters.")
    return list(dict.fromkeys(value))


def priority(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError("Specify a valid 'id' or 'name' for Priority: data was not an object")
    name = value.get("name")
    if set(value) == {"id"} and str(value["id"]) in "12345":
        name = PRIORITIES[int(value["id"]) - 1]
    if name not in PRIORITIES:
        raise ValueError("The priority selected is invalid.")
    return name


def properties(value: Any) -> dict[str, Any]:
    for one in value if isinstance(value, list) else [None]:
        if not isinstance(one, dict) or set(one) != {"key", "value"} or not 0 < len(str(one["key"])) <= 255:
            message = "Each property needs a key of at most 255 characters and a value."
            raise Refused(Answer(400, {"errorMessages": [message], "errors": {}}))
    return {one["key"]: one["value"] for one in value}
