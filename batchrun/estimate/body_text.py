"""The text of a request that a model reads, in pieces as they are counted.

What is read but does not stand in the request as text is told and never guessed at: images, files,
stored context, what hosted tools bring in. Total over any body.
"""

import json
from typing import Any

from msgspec import Struct, field

from batchrun.inputs.json_text import encode
from batchrun.records import JsonObject

_TEXTS = ("text", "refusal")  # of a part of a message
_ITEM_TEXTS = ("name", "arguments", "input", "output")  # of a call, or of what came of one
_STORED = frozenset({"prompt", "previous_response_id", "conversation"})
_OWN_TOOLS = ("function", "custom")  # the others run, and read, at the provider
_PRIVATE = ("encrypted_content", "file_data", "image_url", "file_id", "file_url", "data")


class BodyText(Struct):
    """What a request says to the model."""

    own: list[str] = field(default_factory=list)  # texts of this row
    shared: list[str] = field(default_factory=list)  # that many rows are likely to have
    messages: int = 0
    unseen: bool = False  # the model reads more than these texts
    hosted: bool = False  # it may use tools that are billed by the piece


def read_body_text(body: JsonObject) -> BodyText:
    """The pieces of a body; each is counted by itself."""
    found = BodyText()
    given = body.get("input")
    if type(given) is str:
        found.own.append(given)
        found.messages += 1
    elif type(given) is list:
        for item in given:
            _add_item(found, item)
    instructions = body.get("instructions")
    if type(instructions) is str:
        found.shared.append(instructions)
        found.messages += 1
    tools = body.get("tools")
    if type(tools) is list:
        for tool in tools:
            _add_tool(found, tool)
    form = body.get("text")
    if type(form) is dict and type(form.get("format")) is dict:
        schema = form["format"].get("schema")
        if schema is not None:
            found.shared.append(_compact(schema))
    if not _STORED.isdisjoint(body) and any(body.get(name) is not None for name in _STORED):
        found.unseen = True
    return found


def _add_item(found: BodyText, item: Any) -> None:
    if type(item) is str:
        found.own.append(item)
        found.messages += 1
        return
    if type(item) is not dict:
        found.unseen = True
        return
    found.messages += 1
    kind = item.get("type")
    if kind == "item_reference":
        found.unseen = True
    elif "role" in item or kind == "message":
        texts = found.shared if item.get("role") in ("system", "developer") else found.own
        _add_content(found, texts, item.get("content"))
    elif kind == "reasoning":
        _add_content(found, found.own, item.get("summary"))
        _add_content(found, found.own, item.get("content"))
        if item.get("encrypted_content") is not None:
            found.unseen = True
    elif any(name in item for name in _ITEM_TEXTS):
        for name in _ITEM_TEXTS:
            _add_content(found, found.own, item.get(name))
    else:
        found.own.append(_compact(_without_private(found, item)))


def _add_content(found: BodyText, texts: list[str], content: Any) -> None:
    """Text, or a list of parts."""
    if type(content) is str:
        texts.append(content)
        return
    for part in content if type(content) is list else ():
        if type(part) is str:
            texts.append(part)
            continue
        said = (
            [part[name] for name in _TEXTS if type(part.get(name)) is str]
            if (type(part) is dict)
            else []
        )
        texts += said
        if not said:
            found.unseen = True


def _add_tool(found: BodyText, tool: Any) -> None:
    if type(tool) is dict and tool.get("type") not in _OWN_TOOLS:
        found.unseen = found.hosted = True
    found.shared.append(_compact(tool))


def _without_private(found: BodyText, item: JsonObject) -> JsonObject:
    """The item without what is no text to the model."""
    kept = {name: value for name, value in item.items() if name not in _PRIVATE}
    if len(kept) < len(item):
        found.unseen = True
    return kept


def _compact(value: Any) -> str:
    try:
        return encode(value).decode("utf-8", "replace")
    except RecursionError:
        return json.dumps(str(value)[:1000])
