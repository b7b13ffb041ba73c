"""One tool call, and whether its arguments fit what the request asked for."""

import json
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema_rs import ReferencingError, ValidationError, validator_for
from msgspec import Raw, Struct

from batchrun.parse.json_text import decode, text
from batchrun.records import Request, ToolCall

_ITEM_BYTES = 64 * 1024  # a longer item is cut in `tool_calls.item`, and whole in `output`


class Item(Struct):
    """The fields of an output item that are read; all others stay in its JSON."""

    type: Any = None
    call_id: Any = None
    name: Any = None
    arguments: Any = None
    input: Any = None
    status: Any = None
    content: Any = None
    summary: Any = None


def read_tool_call(position: int, kind: str, item: Item, raw: bytes, request: Request) -> ToolCall:
    arguments = item.arguments if item.arguments is not None else item.input
    if arguments is not None and not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    name = text(item.name)
    return ToolCall(
        position=position,
        type=kind,
        call_id=text(item.call_id),
        name=name,
        arguments=arguments,
        arguments_valid=_fits(arguments, name, request) if kind == "function_call" else None,
        status=text(item.status),
        item=raw[:_ITEM_BYTES].decode(errors="ignore"),
    )


class _Tool(Struct):
    type: Any = None
    name: Any = None
    parameters: Raw = Raw(b"null")


class _ToolsOf(Struct):
    tools: list[Raw] | None = None


def _fits(arguments: str | None, name: str | None, request: Request) -> bool | None:
    """Whether the arguments are JSON and fit the schema; null where the schema is unusable."""
    try:
        value = json.loads(arguments or "", parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    schema = _schema_of(name, request.body)
    if schema is None:
        return True
    validator = _validator(schema)
    if validator is None:
        return None
    try:
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):
        return False


def _schema_of(name: str | None, body: bytes) -> bytes | None:
    try:
        tools = msgspec.json.decode(body, type=_ToolsOf).tools or []
    except msgspec.DecodeError:
        return None
    for raw in tools:
        try:
            tool = msgspec.json.decode(raw, type=_Tool)
        except msgspec.DecodeError:
            continue
        if tool.name == name and tool.type == "function" and bytes(tool.parameters) != b"null":
            return bytes(tool.parameters)
    return None


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any | None:
    """A compiled schema; null where it is none. Compiling takes far longer than checking."""
    try:
        return validator_for(decode(schema), retriever=_fetch_nothing)
    except (ValidationError, ReferencingError, ValueError, TypeError):
        return None


def _fetch_nothing(uri: str) -> Any:
    """A schema that points elsewhere must not make us open a connection."""
    raise ValueError(uri)


def _refuse(constant: str) -> float:
    raise ValueError(constant)
