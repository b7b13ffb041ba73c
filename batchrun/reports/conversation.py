"""What was said in a row: its request and its answer as turns. Takes any JSON; no I/O."""

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from batchrun.formats.json_text import value_of
from batchrun.records import JsonObject

_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_SHOWN = 200  # characters of a URL or of data in a part that is no text


class Turn(Struct, frozen=True):
    """Who said, called or returned what."""

    who: str  # instructions, user, assistant, "assistant calls look_up", ...
    text: str


def turns_of(request: str | None, output: str | None) -> list[Turn]:
    """The whole conversation, the answer last; both are JSON as the tables hold it."""
    body, items = value_of(request), value_of(output)
    turns = list(_asked(body)) if isinstance(body, dict) else []
    for item in items if isinstance(items, list) else []:
        turns += _item(item)
    return turns


def _asked(body: JsonObject) -> Iterator[Turn]:
    if body.get("instructions") is not None:
        yield Turn("instructions", _content(body["instructions"]))
    if body.get("prompt") is not None:
        yield Turn("prompt", _json(body["prompt"]))
    given = body.get("input")
    if isinstance(given, list):
        for item in given:
            yield from _item(item, "user")
    elif given is not None:
        yield Turn("user", _content(given))


def _item(item: Any, role: str = "assistant") -> Iterator[Turn]:
    if not isinstance(item, dict):
        yield Turn(role, _content(item))
        return
    kind = item.get("type") or "message"
    if kind == "message":
        yield from _message(item, role)
    elif kind == "reasoning":
        said = [*_listed(item.get("summary")), *_listed(item.get("content"))]
        if text := "\n\n".join(filter(None, (_content([part]) for part in said))):
            yield Turn("reasoning", text)
    elif kind in ("function_call", "custom_tool_call"):
        call_id = item.get("call_id")
        name = f"{item.get('name')}" + (f" ({call_id})" if call_id else "")
        yield Turn(f"assistant calls {name}", _content(item.get("arguments", item.get("input"))))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        yield Turn(f"result of {item.get('call_id')}", _content(item.get("output")))
    else:
        yield Turn(str(kind), _json(item))


def _message(item: JsonObject, role: str) -> Iterator[Turn]:
    who = str(item.get("role") or role)
    content = item.get("content")
    refused = [p for p in _listed(content) if isinstance(p, dict) and p.get("type") == "refusal"]
    said = [part for part in _listed(content) if part not in refused]
    if said or not refused:
        yield Turn(who, _content(said if refused else content))
    if refused:
        yield Turn(f"{who} refuses", _content(refused))


def _content(content: Any) -> str:
    """Text as it is, parts that are none as JSON."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else _json(content)
    return "\n".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type")
        field = _PARTS.get(kind, "text") if isinstance(kind, str) else "text"
        if isinstance(part.get(field), str):
            return str(part[field])
    return f"[{_json(_short(part))}]"


def _short(value: Any) -> Any:
    """The same with an end to texts, which may be images of a megabyte."""
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]}… ({len(value):,} characters)"
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
