"""The Responses API: its answers and its streams, total over any JSON. No I/O.

Nothing is validated strictly: fields of a wrong type count as absent, and unknown output items
are kept verbatim (PROTOCOL 0.1, A.3, A.4). What JSON refuses but servers send (lone surrogates,
NaN) is repaired once and read again.

Finished means that a terminal event was seen, not that the connection ended (PROTOCOL 0.6).
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from batchrun.dialects.output_items import (
    Item,
    ResponseBody,
    output_fits,
    read_body,
    read_items,
    read_tool_call,
)
from batchrun.dialects.sse import Event
from batchrun.errors import ErrorKind
from batchrun.formats.json_text import beginning, count, decode, is_bool, repaired, text
from batchrun.records import Citation, Failure, Request, Response, ToolCall, Usage
from batchrun.retry.error_kinds import ErrorBody, find_error

# Request fields that the API knows (openai 3.54, ResponseCreateParams), each with what it takes,
# as far as that says how to read it from a column: a structure may be JSON text there, an integer
# a float.
REQUEST_FIELDS = {
    "access_programs": "structure",
    "background": "other",
    "background_options": "structure",
    "context_management": "structure",
    "conversation": "text or structure",
    "image": "structure",
    "include": "structure",
    "input": "other",
    "instructions": "other",
    "max_output_tokens": "integer",
    "max_tool_calls": "integer",
    "metadata": "structure",
    "model": "other",
    "moderation": "structure",
    "parallel_tool_calls": "other",
    "previous_response_id": "other",
    "prompt": "other",
    "prompt_cache_key": "other",
    "prompt_cache_options": "structure",
    "prompt_cache_retention": "other",
    "reasoning": "structure",
    "safety_identifier": "other",
    "service_tier": "other",
    "store": "other",
    "stream": "other",
    "stream_options": "structure",
    "temperature": "other",
    "text": "structure",
    "tool_choice": "text or structure",
    "tools": "structure",
    "top_logprobs": "integer",
    "top_p": "other",
    "truncation": "other",
    "user": "other",
}
TRANSPORT_FIELDS = ("stream", "background")  # set by batchrun for each attempt
PATH = "/responses"  # after the base URL
RUNNING = ("queued", "in_progress")  # statuses of a response whose work goes on
END_STATUSES = ("completed", "incomplete", "failed", "cancelled")
# A request without input can be answered if it has one of these.
INPUT_ALTERNATIVES = ("prompt", "previous_response_id", "conversation")

_Count = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None


class Unreadable(Struct, frozen=True):
    """A complete body that is neither a response nor an error."""

    message: str


class _Details(Struct):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None


_NO_DETAILS = _Details()


class _Usage(Struct):
    """Usage as it should be."""

    input_tokens: _Count = None
    output_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cost: float | None = None


_raws_decoder = msgspec.json.Decoder(list[Raw])
_usage_decoder = msgspec.json.Decoder(_Usage)


def plain_body(body: bytes) -> bytes:
    """The request as sent. Some servers stream where `stream` is absent."""
    return _with_fields(body, b'"stream":false')


def stream_body(body: bytes) -> bytes:
    return _with_fields(body, b'"stream":true')


def background_body(body: bytes) -> bytes:
    """`store` is set: without it a server may forget the answer within minutes."""
    if b'"store"' in body:
        fields = msgspec.json.decode(body, type=dict[str, Raw])
        fields.pop("store", None)
        body = msgspec.json.encode(fields)
    return _with_fields(body, b'"stream":false,"background":true,"store":true')


def _with_fields(body: bytes, fields: bytes) -> bytes:
    return b"%b%b%b}" % (body[:-1], b"," if len(body) > 2 else b"", fields)


class _BackgroundState(Struct):
    id: Any = None
    status: Any = None


_state_decoder = msgspec.json.Decoder(_BackgroundState)


def background_state(body: bytes) -> tuple[str | None, str | None]:
    """Id and status of a response whose work may go on; null where the body does not say."""
    state = _decoded(body, _state_decoder) or _BackgroundState()
    return text(state.id), text(state.status)


def parse_response(
    body: bytes, request: Request, reported_cost_usd: float | None = None
) -> Response | ErrorBody | Unreadable:
    """What a 2xx body says."""
    try:
        return _response(body, request, reported_cost_usd)
    except (ValueError, RecursionError):
        pass  # once more, repaired
    try:
        return _response(repaired(body), request, reported_cost_usd)
    except (ValueError, RecursionError):
        return Unreadable(f"the answer is no JSON object: {beginning(body)}")


def _response(
    body: bytes, request: Request, reported_cost_usd: float | None
) -> Response | ErrorBody | Unreadable:
    answer = read_body(body)
    output = bytes(answer.output)
    has_items = output[:1] == b"["
    if not has_items:
        output = b"[]"
    is_response = answer.object == "response" or has_items
    status = answer.status or ("completed" if has_items else None)
    if not is_response or (answer.error and status not in ("failed", "cancelled")):
        said = find_error(decode(body)) if answer.error or not is_response else None
        return said or Unreadable(f"the answer is no response: {beginning(body)}")
    if status not in ("completed", "incomplete", "failed", "cancelled"):
        return Unreadable(f"the answer's status is {status}, which is no end")
    usage, cost_usd = _usage(answer.usage)
    reason = answer.incomplete_details.reason if answer.incomplete_details else None
    parts = _parts(output, request)
    output_text = "".join(parts.texts) if parts.texts else answer.output_text or None
    return Response(
        id=answer.id,
        status=status,
        model=answer.model,
        service_tier=answer.service_tier,
        output=output.decode(),
        output_text=output_text,
        refusal="".join(parts.refusals) if parts.refusals else None,
        reasoning_summary="\n\n".join(parts.summaries) if parts.summaries else None,
        citations=tuple(parts.citations),
        tool_calls=tuple(parts.tool_calls),
        usage=usage,
        usage_json=_usage_json(answer),
        truncated=_is_truncated(status, reason, usage, request.max_output_tokens),
        incomplete_reason=reason,
        reported_cost_usd=cost_usd if reported_cost_usd is None else reported_cost_usd,
        failure=_failure(status, answer.error),
        output_parsed_ok=output_fits(output_text, request.body),
    )


def _is_truncated(status: str, reason: str | None, usage: Usage, most: int | None) -> bool:
    """Some servers say completed when the limit cut the answer (PROTOCOL A.3)."""
    if status == "incomplete":
        return reason in (None, "max_output_tokens")
    return (
        status == "completed"
        and most is not None
        and usage.output_tokens is not None
        and usage.output_tokens >= most
    )


def _failure(status: str, error: object) -> Failure | None:
    if status not in ("failed", "cancelled"):
        return None
    kind = ErrorKind.CANCELLED if status == "cancelled" else ErrorKind.SERVER_ERROR
    said = find_error({"error": error}) if error else None
    if said is None:
        return Failure(kind, f"the response is {status}")
    return Failure(kind, said.message, said.code or said.type)


class _Parts(Struct):
    """What the output items hold, gathered."""

    texts: list[str] = []
    refusals: list[str] = []
    summaries: list[str] = []
    citations: list[Citation] = []
    tool_calls: list[ToolCall] = []


def _parts(output: bytes, request: Request) -> _Parts:
    parts = _Parts()
    raws: list[Raw] = []  # the items once more, verbatim: hardly any answer needs them
    for position, item in enumerate(read_items(output)):
        kind = item.type or ""
        if kind == "message":
            _read_message(item, parts)
        elif kind == "reasoning":
            parts.summaries += [part.text for part in item.summary or () if part.text]
        elif kind.endswith("_call"):
            raws = raws or _raws_decoder.decode(output)
            call = read_tool_call(position, kind, bytes(raws[position]), request)
            parts.tool_calls.append(call)
    return parts


def _read_message(item: Item, parts: _Parts) -> None:
    content = item.content
    if isinstance(content, str):
        parts.texts.append(content)
        return
    for part in content or ():
        kind = part.type
        if kind in ("output_text", "text"):
            parts.texts.append(part.text or "")
            for note in part.annotations or ():
                if isinstance(note, dict):
                    parts.citations.append(_citation(note))
        elif kind == "refusal":
            parts.refusals.append(part.refusal or "")


def _citation(note: dict[str, Any]) -> Citation:
    return Citation(
        type=text(note, "type") or "unknown",
        url=text(note, "url"),
        title=text(note, "title") or text(note, "filename"),
        file_id=text(note, "file_id"),
        start_index=count(note.get("start_index", note.get("index"))),
        end_index=count(note.get("end_index")),
    )


def _usage(raw: Raw) -> tuple[Usage, float | None]:
    """Any count may be missing or null (PROTOCOL A.3); the cost is a gateway's own."""
    try:
        said = _usage_decoder.decode(raw)
    except msgspec.ValidationError:
        return _odd_usage(raw)
    inputs = said.input_tokens_details or _NO_DETAILS
    outputs = said.output_tokens_details or _NO_DETAILS
    known = Usage(
        said.input_tokens,
        inputs.cached_tokens,
        inputs.cache_write_tokens,
        said.output_tokens,
        outputs.reasoning_tokens,
        said.total_tokens,
    )
    return known, said.cost


def _odd_usage(raw: Raw) -> tuple[Usage, float | None]:
    """Usage of which something is of a wrong type: that counts as absent."""
    usage = decode(bytes(raw))
    if not isinstance(usage, dict):
        return Usage(), None
    inputs = usage.get("input_tokens_details")
    outputs = usage.get("output_tokens_details")
    inputs = inputs if isinstance(inputs, dict) else {}
    outputs = outputs if isinstance(outputs, dict) else {}
    cost = usage.get("cost")
    known = Usage(
        input_tokens=count(usage.get("input_tokens")),
        cached_tokens=count(inputs.get("cached_tokens")),
        cache_write_tokens=count(inputs.get("cache_write_tokens")),
        output_tokens=count(usage.get("output_tokens")),
        reasoning_tokens=count(outputs.get("reasoning_tokens")),
        total_tokens=count(usage.get("total_tokens")),
    )
    return known, float(cost) if isinstance(cost, int | float) and not is_bool(cost) else None


def _usage_json(answer: ResponseBody) -> str | None:
    usage, tool_usage = bytes(answer.usage).strip(), bytes(answer.tool_usage).strip()
    if tool_usage == b"null":
        return None if usage == b"null" else usage.decode()
    if usage[:1] == b"{":
        inner = usage[1:-1].strip()
        return (
            b"{" + inner + (b"," if inner else b"") + b'"tool_usage":' + tool_usage + b"}"
        ).decode()
    return (b'{"tool_usage":' + tool_usage + b"}").decode()


_TERMINAL = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
_ERRORS = ("error", "response.error")
# Deltas of what the model says or thinks; those of hosted tools' own work are none of it.
_SPOKEN = frozenset(
    f"response.{what}.delta"
    for what in (
        "output_text",
        "refusal",
        "function_call_arguments",
        "custom_tool_call_input",
        "reasoning_text",
        "reasoning_summary_text",
        "reasoning",
    )
)
_NOTHING = Raw(b"")
_ABSENT = (b"", b"null")
_ENDS = frozenset(b'"' + status.encode() + b'"' for status in _TERMINAL.values())


Decoded = TypeVar("Decoded")


class _Data(Struct):
    type: Any = None
    response: Raw = _NOTHING
    item: Raw = _NOTHING
    output_index: Any = None
    delta: Any = None
    error: Any = None
    code: Any = None
    message: Any = None


class _Id(Struct):
    id: Any = None


_decoder = msgspec.json.Decoder(_Data)
_object_decoder = msgspec.json.Decoder(dict[str, Raw])


class StreamAnswer:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.has_begun = False  # a first non-empty delta, of text, arguments or reasoning
        self.response_id: str | None = None
        self._items: dict[int, bytes] = {}  # finished output items by their place
        self._final: tuple[str, bytes] | None = None  # status and object of the terminal event
        self._error: bytes | None = None

    @property
    def is_finished(self) -> bool:
        return self._final is not None or self._error is not None

    def take(self, event: Event) -> None:
        """One more event; what cannot be read is passed over."""
        data = _decoded(event.data, _decoder)
        if data is None:
            return
        # The `type` in the data rules: some servers send no `event:` line (PROTOCOL 0.7).
        kind = text(data.type) or event.name
        if kind in _TERMINAL:
            self._final = (_TERMINAL[kind], bytes(data.response))
        elif kind == "response.output_item.done":
            self._keep(data.output_index, bytes(data.item))
        elif kind in _SPOKEN:
            self.has_begun = self.has_begun or (isinstance(data.delta, str) and data.delta != "")
        elif _is_error(kind, event.name, data):
            self._error = event.data if data.error else _nested(data)
        elif self.response_id is None and bytes(data.response) not in _ABSENT:
            self.response_id = _id_in(bytes(data.response))

    def _keep(self, place: object, item: bytes) -> None:
        if item in _ABSENT:
            return
        if isinstance(place, int):
            self._items[place] = item
        elif item not in self._items.values():  # sent twice
            self._items[len(self._items)] = item

    def body(self) -> bytes | None:
        """The answer as a plain request would have brought it; null while none is complete."""
        if self._final is not None:
            status, response = self._final
            return self._completed(status, response)
        return self._error

    def _completed(self, status: str, response: bytes) -> bytes | None:
        try:
            fields = _object_decoder.decode(b"{}" if response in _ABSENT else response)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return response
        said = bytes(fields.get("error", b"null"))
        if status == "failed" and said == b"null" and self._error is not None:
            return self._error  # the event before said more
        has_output = bytes(fields.get("output", b"[]")) not in (b"[]", b"null")
        has_ended = bytes(fields.get("status", b"")) in _ENDS
        if has_output and has_ended:
            return response
        if not has_output:
            items = b",".join(item for _, item in sorted(self._items.items()))
            fields["output"] = Raw(b"[" + items + b"]")
        if not has_ended:
            fields["status"] = Raw(b'"' + status.encode() + b'"')
        fields.setdefault("object", Raw(b'"response"'))
        return msgspec.json.encode(fields)


def _decoded(data: bytes, decoder: "msgspec.json.Decoder[Decoded]") -> Decoded | None:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # once more, repaired; `[DONE]` is no JSON either
    try:
        return decoder.decode(repaired(data))
    except (ValueError, RecursionError):
        return None


def _is_error(kind: str, name: str, data: _Data) -> bool:
    if kind in _ERRORS or name in _ERRORS:
        return True
    return bool(data.error) and bytes(data.response) in _ABSENT


def _nested(data: _Data) -> bytes:
    """A flat error in the shape that plain answers have."""
    said = {"code": data.code, "message": data.message}
    if data.type not in _ERRORS:
        said["type"] = data.type
    return msgspec.json.encode({"error": said})


def _id_in(response: bytes) -> str | None:
    try:
        return text(msgspec.json.decode(response, type=_Id).id)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
