"""One output item that calls a tool, whatever its kind (PROTOCOL A.4)."""

from typing import Any

import msgspec
from msgspec import Struct

from batchrun.parse.json_text import text
from batchrun.parse.schemas import arguments_fit
from batchrun.records import Request, ToolCall

_ITEM_BYTES = 64 * 1024  # a longer item is cut in `tool_calls.item`, and whole in `output`


class _Item(Struct):
    """The fields of a call that are read; all others stay in its JSON."""

    call_id: Any = None
    name: Any = None
    arguments: Any = None
    input: Any = None  # custom tools
    status: Any = None
    action: Any = None  # web search, computer, shell
    actions: Any = None
    queries: Any = None  # file search
    code: Any = None
    container_id: Any = None
    operation: Any = None  # patches
    namespace: Any = None
    server_label: Any = None  # MCP
    revised_prompt: Any = None  # images


_decode_item = msgspec.json.Decoder(_Item).decode


def read_tool_call(position: int, kind: str, raw: bytes, request: Request) -> ToolCall:
    """The call as a row; what names it and what it was given depend on its kind."""
    item = _decode_item(raw)
    name = text(item.name)
    arguments = _as_text(_arguments(item))
    is_function = kind == "function_call"
    return ToolCall(
        position=position,
        type=kind,
        call_id=text(item.call_id),
        name=name if is_function else _name(item, name),
        arguments=arguments,
        arguments_valid=_fit(arguments, name, item, request) if is_function else None,
        status=text(item.status),
        item=raw[:_ITEM_BYTES].decode(errors="ignore"),
    )


def _fit(arguments: str | None, name: str | None, item: _Item, request: Request) -> bool | None:
    return arguments_fit(arguments, name, text(item.namespace), request.body)


def _arguments(item: _Item) -> object:
    given = (
        item.arguments,
        item.input,
        item.action,
        item.actions,
        item.operation,
        item.code,
        item.queries,
        item.revised_prompt,
    )
    return next((value for value in given if value is not None), None)


def _name(item: _Item, name: str | None) -> str | None:
    """A web search is named by its queries, an MCP call by its server too."""
    server = text(item.server_label)
    if server is not None:
        return server if name is None else f"{server}.{name}"
    if name is not None:
        return name
    several = item.actions if isinstance(item.actions, list) else []
    action = next((one for one in (item.action, *several) if isinstance(one, dict)), {})
    lists = (item.queries, action.get("queries"), [action.get("query")], action.get("commands"))
    for queries in lists:
        found = [word for word in queries if text(word)] if isinstance(queries, list) else []
        if found:
            return "; ".join(found)
    for value in (action.get("url"), action.get("type"), item.container_id):
        if text(value):
            return text(value)
    return text(item.operation, "type")


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
