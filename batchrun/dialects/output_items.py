"""Output items of a response: messages, reasoning, tool calls, searches; schemas they must fit.

What is of a wrong type counts as absent (PROTOCOL 0.1): hardly any answer has such a field, and
then it is read once more, field by field.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from inspect import isclass
from typing import Any, get_args, get_origin

import msgspec
from jsonschema_rs import ReferencingError, ValidationError, validator_for
from msgspec import Raw, Struct

from batchrun.formats.json_text import count, decode, is_bool, text
from batchrun.records import NO_SEARCHES, Citation, Request, Searches, ToolCall

_NULL = Raw(b"null")


class OutputItems(Struct):
    """What the output items hold."""

    texts: list[str] = []
    refusals: list[str] = []
    summaries: list[str] = []
    reasoning: list[str] = []
    citations: list[Citation] = []
    tool_calls: list[ToolCall] = []
    has_other: bool = False  # a result of another kind: an image, audio, a compaction, ...

    @property
    def have_result(self) -> bool:
        """Whether there is anything besides text: a refusal, a call, or something else."""
        return bool(self.refusals or self.tool_calls or self.has_other)

    @property
    def has_said(self) -> bool:
        """Whether the model wrote or thought anything."""
        written = self.texts or self.refusals or self.summaries or self.reasoning
        return bool(self.tool_calls) or any(written)


class _Part(Struct):
    """A piece of a message or of a summary."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None


class _Item(Struct):
    type: str | None = None
    content: list[_Part] | str | None = None
    summary: list[_Part] | str | None = None


# Items and parts that are no result, beside messages with their texts: alone they are no answer.
_NO_RESULTS = (None, "", "mcp_list_tools", "reasoning_text", "summary_text", "thinking")
_items_decoder = msgspec.json.Decoder(list[_Item])
_raw_items_decoder = msgspec.json.Decoder(list[Raw])


def read_items(output: bytes, request: Request) -> OutputItems:
    """Of a JSON array. Raises `ValueError` where it is none."""
    try:
        items = _items_decoder.decode(output)
    except msgspec.ValidationError:
        items = [fitting(raw, _Item) or _Item() for raw in _raw_items_decoder.decode(output)]
    found = OutputItems()
    raws: list[Raw] = []  # the items once more, verbatim: hardly any answer needs them
    for position, item in enumerate(items):
        kind = item.type or ""
        if kind == "message":
            _read_message(item.content, found)
        elif kind == "reasoning":
            found.summaries += _reasoning(item.summary)
            found.reasoning += _reasoning(item.content)
        elif kind.endswith("_call"):
            raws = raws or _raw_items_decoder.decode(output)
            found.tool_calls.append(_read_call(position, kind, bytes(raws[position]), request))
        elif kind not in _NO_RESULTS:
            found.has_other = True
    return found


def _reasoning(parts: list[_Part] | str | None) -> list[str]:
    if isinstance(parts, str):
        return [parts] if parts else []
    return [part.text for part in parts or () if part.text]


def _read_message(content: list[_Part] | str | None, found: OutputItems) -> None:
    if isinstance(content, str):
        found.texts.append(content)
        return
    for part in content or ():
        kind = part.type
        if kind in ("output_text", "text"):
            found.texts.append(part.text or "")
            for note in part.annotations or ():
                if isinstance(note, dict):
                    found.citations.append(_citation(note))
        elif kind == "refusal":
            found.refusals.append(part.refusal or "")
        elif kind not in _NO_RESULTS:
            found.has_other = True


def _citation(note: dict[str, Any]) -> Citation:
    return Citation(
        type=text(note, "type") or "unknown",
        url=text(note, "url"),
        title=text(note, "title") or text(note, "filename"),
        file_id=text(note, "file_id"),
        start_index=count(note.get("start_index", note.get("index"))),
        end_index=count(note.get("end_index")),
    )


def fitting(value: Any, kind: Any) -> Any:
    """`value` as the type `kind`: fields of a wrong type are absent, at any depth; else None.

    Of lists only objects are read. A raw value is decoded where `kind` is not raw too.
    """
    if kind is Raw:
        return value
    if isinstance(value, Raw):
        value = decode(bytes(value))
    for option in get_args(kind) or (kind,):
        if isinstance(value, list) and get_origin(option) is list:
            return [fitting(one, *get_args(option)) for one in value if isinstance(one, dict)]
        if isinstance(value, dict) and isclass(option) and issubclass(option, Struct):
            fields = {field.name: field.type for field in msgspec.structs.fields(option)}
            fields = {name: type_ for name, type_ in fields.items() if name in value}
            return option(**{name: fitting(value[name], kind) for name, kind in fields.items()})
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        is_whole = isinstance(value, float) and value.is_integer()
        return fitting(int(value), kind) if is_whole else None


_ITEM_BYTES = 64 * 1024  # a longer item is cut in `tool_calls.item`, and whole in `output`


class _Call(Struct):
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


_decode_call = msgspec.json.Decoder(_Call).decode


def _read_call(position: int, kind: str, raw: bytes, request: Request) -> ToolCall:
    """What names a call and what it was given depend on its kind."""
    call = _decode_call(raw)
    name, arguments = text(call.name), _arguments(call)
    is_function = kind == "function_call"
    return ToolCall(
        position=position,
        type=kind,
        call_id=text(call.call_id),
        name=name if is_function else _name(call, name),
        arguments=arguments,
        arguments_valid=_is_valid(kind, name, text(call.namespace), arguments, request.body),
        status=text(call.status),
        item=raw[:_ITEM_BYTES].decode(errors="ignore"),
    )


def _arguments(call: _Call) -> str | None:
    given = (
        *(call.arguments, call.input, call.action, call.actions),
        *(call.operation, call.code, call.queries, call.revised_prompt),
    )
    value = next((value for value in given if value is not None), None)
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _name(call: _Call, name: str | None) -> str | None:
    """A web search is named by its queries, an MCP call by its server too."""
    server = text(call.server_label)
    if server is not None:
        return server if name is None else f"{server}.{name}"
    if name is not None:
        return name
    actions = call.actions if isinstance(call.actions, list) else []
    action = next((one for one in (call.action, *actions) if isinstance(one, dict)), {})
    lists = (call.queries, action.get("queries"), [action.get("query")], action.get("commands"))
    for queries in lists:
        found = [query for query in queries if text(query)] if isinstance(queries, list) else []
        if found:
            return "; ".join(found)
    for value in (action.get("url"), action.get("type"), call.container_id):
        if text(value):
            return text(value)
    return text(call.operation, "type")


class _Format(Struct):
    type: Any = None
    schema: Raw = _NULL


class _Text(Struct):
    format: _Format | None = None


class _WithText(Struct):
    text: _Text | None = None


class _Tool(Struct):
    type: Any = None
    name: Any = None
    parameters: Raw = _NULL
    tools: Raw = _NULL  # of a namespace
    function: Any = None  # of chat completions


class _WithTools(Struct):
    tools: Raw = _NULL
    prompt: Raw = _NULL


def asked_schema(body: bytes) -> bytes | None:
    """The JSON schema that a request asks for, as JSON; None where it asks for none."""
    if b'"json_schema"' not in body:
        return None
    try:
        asked = msgspec.json.decode(body, type=_WithText).text
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if asked is None or asked.format is None or asked.format.type != "json_schema":
        return None
    return bytes(asked.format.schema)


def output_fits(output_text: str | None, body: bytes, parts: Sequence[str] = ()) -> bool | None:
    """Whether the output is JSON that fits; None without output or a usable schema.

    Of several `parts` the last one may fit alone: some models say first what they are about to do.
    """
    schema = None if output_text is None else asked_schema(body)
    if output_text is None or schema is None:
        return None
    fits = _fits(output_text, schema)
    return _fits(parts[-1], schema) if fits is False and len(parts) > 1 else fits


def _fits(written: str, schema: bytes) -> bool | None:
    """Null where the schema is unusable."""
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


def _is_valid(
    kind: str, name: str | None, namespace: str | None, arguments: str | None, body: bytes
) -> bool | None:
    """Whether a call names a tool of the request, with arguments that it takes.

    None where nothing says so: for hosted tools, and for the text that a custom tool takes.
    """
    if kind not in ("function_call", "custom_tool_call"):
        return None
    try:
        asked = msgspec.json.decode(body, type=_WithTools)
    except msgspec.DecodeError:
        return None
    tools = _offered(asked.tools, namespace)
    offered = [tool for tool in tools if tool.name == name and name is not None]
    if not offered and not _may_offer_more(asked, body):
        return False
    if kind == "custom_tool_call":
        return None
    schema = next((bytes(tool.parameters) for tool in offered if tool.type == "function"), b"null")
    if not (arguments or "").strip() and _takes_nothing(schema):
        arguments = "{}"  # some models write nothing instead
    return _fits(arguments or "", schema)


def _offered(tools: Raw, namespace: str | None) -> list[_Tool]:
    """The tools of a request by their names, those in namespaces too; of one namespace if given."""
    offered: list[_Tool] = []
    for tool in _tools_in(tools):
        if tool.type == "namespace":
            offered += _tools_in(tool.tools) if namespace in (None, "", tool.name) else ()
        elif isinstance(tool.function, dict):
            parameters = Raw(msgspec.json.encode(tool.function.get("parameters")))
            offered.append(_Tool("function", tool.function.get("name"), parameters))
        elif not namespace:
            offered.append(tool)
    return offered


def _may_offer_more(asked: _WithTools, body: bytes) -> bool:
    """Whether tools may come from elsewhere: a stored prompt, a search for tools, input items."""
    return bytes(asked.prompt) != b"null" or any(kind in body for kind in _BRING_TOOLS)


def _takes_nothing(schema: bytes) -> bool:
    """Whether these are the parameters of a function without any."""
    value = decode(schema)
    return value is None or (isinstance(value, dict) and not value.get("properties"))


def _tools_in(tools: Raw) -> Iterator[_Tool]:
    with suppress(msgspec.DecodeError):
        for raw in msgspec.json.decode(tools, type=list[Raw] | None) or ():
            with suppress(msgspec.DecodeError):
                yield msgspec.json.decode(raw, type=_Tool)


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any | None:
    """A compiled schema; None where it is none. Compiling takes far longer than checking."""
    try:
        return validator_for(decode(schema), retriever=_refuse)
    except (ValidationError, ReferencingError, ValueError, TypeError):
        return None


def _refuse(what: str) -> Any:
    """A constant that is not JSON, or the address of a schema: no connection is opened for it."""
    raise ValueError(what)


# Tools and input items that bring further tools.
_BRING_TOOLS = (b'"tool_search"', b'"tool_search_output"', b'"additional_tools"')
# Types of output items that may be billed by the piece.
SEARCHING = ("web_search_call", "file_search_call")
PAGE_ACTIONS = ("open_page", "find_in_page", "find")  # a page is read, nothing is searched


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
        elif _field(item, "action", "type") not in PAGE_ACTIONS:  # also where it is cut
            web += 1
    if usage_json is not None and '"tool_usage"' in usage_json:
        reported = _field(usage_json, "tool_usage", "web_search", "num_requests")
        if isinstance(reported, int) and not is_bool(reported) and reported >= 0:
            web = reported
    return Searches(web, file) if web or file else NO_SEARCHES


def _field(json_text: str, *names: str) -> Any:
    """A field within an object; None where there is none."""
    try:
        value = decode(json_text.encode(errors="surrogatepass"))
    except ValueError:
        return None
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
