"""Output items of a response: messages, tool calls, searches, and the schemas they must fit.

What is of a wrong type counts as absent (PROTOCOL 0.1): hardly any answer has such a field, and
then it is read once more, field by field.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema_rs import ReferencingError, ValidationError, validator_for
from msgspec import Raw, Struct

from batchrun.formats.json_text import decode, text
from batchrun.records import NO_SEARCHES, Request, Searches, ToolCall

_NULL = Raw(b"null")


class _Tool(Struct):
    type: Any = None
    name: Any = None
    parameters: Raw = _NULL
    tools: Raw = _NULL  # of a namespace


class _Format(Struct):
    type: Any = None
    schema: Raw = _NULL


class _Text(Struct):
    format: _Format | None = None


class _Tools(Struct):
    tools: list[Raw] | None = None


class _Formatted(Struct):
    text: _Text | None = None


def arguments_fit(
    arguments: str | None, name: str | None, namespace: str | None, body: bytes
) -> bool | None:
    """Whether a call's arguments are JSON and fit; null where the schema is unusable."""
    return _fits(arguments or "", _parameters_of(name, namespace, body))


def output_fits(output_text: str | None, body: bytes) -> bool | None:
    """Whether the output parses and fits; null where no schema was asked for, or nothing came."""
    if output_text is None or b'"json_schema"' not in body:
        return None
    try:
        asked = msgspec.json.decode(body, type=_Formatted).text
    except msgspec.DecodeError:
        return None
    if asked is None or asked.format is None or asked.format.type != "json_schema":
        return None
    return _fits(output_text, bytes(asked.format.schema))


def _fits(written: str, schema: bytes) -> bool | None:
    try:
        value = json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    if schema == b"null":
        return True
    validator = _validator(schema)
    if validator is None:
        return None
    try:
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):
        return False


def _parameters_of(name: str | None, namespace: str | None, body: bytes) -> bytes:
    tools = list(_tools_in(body))
    if namespace is not None:
        within = (tool for tool in tools if tool.type == "namespace" and tool.name == namespace)
        tools = [inner for tool in within for inner in _tools_in(b'{"tools":%b}' % tool.tools)]
    for tool in tools:
        if tool.name == name and tool.type == "function":
            return bytes(tool.parameters)
    return b"null"


def _tools_in(body: bytes) -> Iterator[_Tool]:
    try:
        tools = msgspec.json.decode(body, type=_Tools).tools or []
    except msgspec.DecodeError:
        return
    for raw in tools:
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(raw, type=_Tool)


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


_NULL = Raw(b"null")


class _Incomplete(Struct):
    reason: str | None = None


class ResponseBody(Struct):
    """A body as it should be: its fields are checked while they are decoded, in one pass."""

    object: str | None = None
    id: str | None = None
    status: str | None = None
    model: str | None = None
    service_tier: str | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None
    output: Raw = _NULL
    output_text: str | None = None  # some servers send the SDK's property besides
    usage: Raw = _NULL
    tool_usage: Raw = _NULL


class _OddBody(Struct):
    """The same of any types."""

    object: Any = None
    id: Any = None
    status: Any = None
    model: Any = None
    service_tier: Any = None
    error: Any = None
    incomplete_details: Any = None
    output: Raw = _NULL
    output_text: Any = None
    usage: Raw = _NULL
    tool_usage: Raw = _NULL


class Part(Struct):
    """A piece of a message or of a summary, as it should be."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None


class Item(Struct):
    """What an output item says, as it should be."""

    type: str | None = None
    content: list[Part] | str | None = None
    summary: list[Part] | None = None


_body_decoder = msgspec.json.Decoder(ResponseBody)
_odd_body_decoder = msgspec.json.Decoder(_OddBody)
_items_decoder = msgspec.json.Decoder(list[Item])
_raw_items_decoder = msgspec.json.Decoder(list[Raw])


def read_body(body: bytes) -> ResponseBody:
    """Raises `ValueError` where it is no JSON object."""
    try:
        return _body_decoder.decode(body)
    except msgspec.ValidationError:  # something is of a wrong type: that counts as absent
        odd = _odd_body_decoder.decode(body)
    return ResponseBody(
        object=text(odd.object),
        id=text(odd.id),
        status=text(odd.status),
        model=text(odd.model),
        service_tier=text(odd.service_tier),
        error=odd.error,
        incomplete_details=_Incomplete(text(odd.incomplete_details, "reason")),
        output=odd.output,
        output_text=text(odd.output_text),
        usage=odd.usage,
        tool_usage=odd.tool_usage,
    )


def read_items(output: bytes) -> list[Item]:
    """Of a JSON array. Raises `ValueError` where it is none."""
    try:
        return _items_decoder.decode(output)
    except msgspec.ValidationError:  # something is of a wrong type: that counts as absent
        return [_odd_item(raw) for raw in _raw_items_decoder.decode(output)]


def _odd_item(raw: Raw) -> Item:
    odd = decode(bytes(raw))
    if not isinstance(odd, dict):  # it stays in `output`
        return Item()
    said = odd.get("content")
    content = said if isinstance(said, str) else _odd_parts(said)
    return Item(text(odd, "type"), content, _odd_parts(odd.get("summary")))


def _odd_parts(value: object) -> list[Part]:
    return [
        Part(
            type=text(part, "type"),
            text=text(part, "text"),
            refusal=text(part, "refusal"),
            annotations=notes if isinstance(notes := part.get("annotations"), list) else None,
        )
        for part in (value if isinstance(value, list) else ())
        if isinstance(part, dict)
    ]


# Types of output items that may be billed by the piece.
SEARCHING = ("web_search_call", "file_search_call")
PAGE_ACTIONS = ("open_page", "find_in_page", "find")  # a page is read, nothing is searched


class _Action(Struct):
    type: Any = None


class _SearchItem(Struct):
    action: _Action | None = None


class _Web(Struct):
    num_requests: Any = None


class _ToolUsage(Struct):
    web_search: _Web | None = None


class _Usage(Struct):
    tool_usage: _ToolUsage | None = None


_decode_search_item = msgspec.json.Decoder(_SearchItem).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


def count_searches(
    usage_json: str | None, calls: Iterable[tuple[str, str | None, str]]
) -> Searches:
    """Of an answer with this usage and these calls: type, status and item of each.

    Of the web, what the server itself counts; else the calls that searched and did not fail.
    """
    web = file = 0
    for kind, status, item in calls:
        if kind not in SEARCHING or status == "failed":
            continue
        if kind == "file_search_call":
            file += 1
        else:
            web += _has_searched(item)
    if usage_json is not None and '"tool_usage"' in usage_json:
        said = _said(usage_json)
        web = web if said is None else said
    return Searches(web, file) if web or file else NO_SEARCHES


def _has_searched(item: str) -> bool:
    try:
        action = _decode_search_item(item).action
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # cut, or of an unknown shape
        return True
    return action is None or action.type not in PAGE_ACTIONS


def _said(usage_json: str) -> int | None:
    try:
        told = _decode_usage(usage_json).tool_usage
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    count = told.web_search.num_requests if told and told.web_search else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 0
    return count if is_count else None


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
