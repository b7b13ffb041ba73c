"""The Responses API: its requests, its answers and its streams, total over any JSON. No I/O.

Nothing is validated strictly: fields of a wrong type count as absent, and unknown output items
are kept verbatim (PROTOCOL 0.1, A.3, A.4). What JSON refuses but servers send (lone surrogates,
NaN) is repaired once and read again.

A dialect is a module with this content: the path; the fields of a request, those that batchrun
sets, and the limit of an answer's length; a body as each mode sends it; what a body says of work
in the background; `parse_response`; and `StreamAnswer`, which makes of a stream's events the body
that a plain request would have brought.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from batchrun.dialects.output_items import fitting, output_fits, read_items
from batchrun.dialects.sse import Event
from batchrun.errors import ErrorKind
from batchrun.formats.json_text import beginning, decode, repaired, text
from batchrun.records import Failure, Request, Response, Usage
from batchrun.retry.error_kinds import ErrorBody, find_error

Decoded = TypeVar("Decoded")

PATH = "/responses"  # after the base URL
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
# A request without input can be answered if it has one of these.
INPUT_ALTERNATIVES = ("prompt", "previous_response_id", "conversation")
OUTPUT_LIMIT = "max_output_tokens"  # a field, and the reason of an answer that was cut there
RUNNING = ("queued", "in_progress")  # statuses of a response whose work goes on
END_STATUSES = ("completed", "incomplete", "failed", "cancelled")


def output_limit(body: Mapping[str, Any]) -> int | None:
    """The most tokens of an answer; None where the request sets none."""
    most = body.get(OUTPUT_LIMIT)
    return most if type(most) is int else None


def plain_body(body: bytes) -> bytes:
    """The request as sent. Some servers stream where `stream` is absent."""
    return _with_fields(body, b'"stream":false')


def stream_body(body: bytes) -> bytes:
    return _with_fields(body, b'"stream":true')


def background_body(body: bytes) -> bytes:
    """`store` is set: without it a server may forget the answer within minutes."""
    if b'"store"' in body:
        fields = _fields_decoder.decode(body)
        fields.pop("store", None)
        body = msgspec.json.encode(fields)
    return _with_fields(body, b'"stream":false,"background":true,"store":true')


def _with_fields(body: bytes, fields: bytes) -> bytes:
    return b"%b%b%b}" % (body[:-1], b"," if len(body) > 2 else b"", fields)


class _State(Struct):
    id: Any = None
    status: Any = None


_NULL = Raw(b"null")
_state_decoder = msgspec.json.Decoder(_State)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


def background_state(body: bytes) -> tuple[str | None, str | None]:
    """Id and status of a response whose work may go on; None where the body does not say."""
    state = _decoded(body, _state_decoder) or _State()
    return text(state.id), text(state.status)


def _decoded(data: bytes, decoder: "msgspec.json.Decoder[Decoded]") -> Decoded | None:
    """None where it is no JSON of that shape, even once it is repaired."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return decoder.decode(repaired(data))
    except (ValueError, RecursionError):
        return None


class Unreadable(Struct, frozen=True):
    """A complete body that is neither a response nor an error."""

    message: str


class _Incomplete(Struct):
    reason: str | None = None


class _Body(Struct):
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


_Count = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None


class _Details(Struct):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    reasoning_tokens: _Count = None


class _Usage(Struct):
    input_tokens: _Count = None
    output_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cost: float | None = None  # a gateway's own


_NO_DETAILS = _Details()
_body_decoder = msgspec.json.Decoder(_Body)
_usage_decoder = msgspec.json.Decoder(_Usage)


def parse_response(
    body: bytes, request: Request, reported_cost_usd: float | None = None
) -> Response | ErrorBody | Unreadable:
    """What a 2xx body says."""
    try:
        return _response(body, request, reported_cost_usd)
    except (ValueError, RecursionError):
        pass
    try:
        return _response(repaired(body), request, reported_cost_usd)
    except (ValueError, RecursionError):
        return Unreadable(f"the answer is no JSON object: {beginning(body)}")


def _response(
    body: bytes, request: Request, reported_cost_usd: float | None
) -> Response | ErrorBody | Unreadable:
    try:
        answer = _body_decoder.decode(body)
    except msgspec.ValidationError:
        answer = fitting(_fields_decoder.decode(body), _Body)
    output = bytes(answer.output)
    has_items = output[:1] == b"["
    if not has_items:
        output = b"[]"
    is_response = answer.object == "response" or has_items
    status = answer.status or ("completed" if has_items else None)
    if not is_response or (answer.error and status not in ("failed", "cancelled")):
        error = find_error(decode(body)) if answer.error or not is_response else None
        return error or Unreadable(f"the answer is no response: {beginning(body)}")
    if status not in END_STATUSES:
        return Unreadable(f"the answer's status is {status}, which is not final")
    usage, cost_usd = _usage(answer.usage)
    reason = answer.incomplete_details.reason if answer.incomplete_details else None
    items = read_items(output, request)
    output_text = "".join(items.texts) if items.texts else answer.output_text or None
    return Response(
        id=answer.id,
        status=status,
        model=answer.model,
        service_tier=answer.service_tier,
        output=output.decode(),
        output_text=output_text,
        refusal="".join(items.refusals) if items.refusals else None,
        reasoning_summary="\n\n".join(items.summaries) if items.summaries else None,
        citations=tuple(items.citations),
        tool_calls=tuple(items.tool_calls),
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
        return reason in (None, OUTPUT_LIMIT)
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
    found = find_error({"error": error}) if error else None
    if found is None:
        return Failure(kind, f"the response is {status}")
    return Failure(kind, found.message, found.code or found.type)


def _usage(raw: Raw) -> tuple[Usage, float | None]:
    """Any count may be missing or null (PROTOCOL A.3); the cost in dollars too."""
    try:
        usage = _usage_decoder.decode(raw)
    except msgspec.ValidationError:
        usage = fitting(raw, _Usage) or _Usage()
    inputs = usage.input_tokens_details or _NO_DETAILS
    outputs = usage.output_tokens_details or _NO_DETAILS
    tokens = Usage(
        usage.input_tokens,
        inputs.cached_tokens,
        inputs.cache_write_tokens,
        usage.output_tokens,
        outputs.reasoning_tokens,
        usage.total_tokens,
    )
    return tokens, usage.cost


def _usage_json(answer: _Body) -> str | None:
    """The usage verbatim, with `tool_usage` as a further field of it."""
    usage, tool_usage = bytes(answer.usage).strip(), bytes(answer.tool_usage).strip()
    if tool_usage == b"null":
        return None if usage == b"null" else usage.decode()
    inner = usage[1:-1].strip() if usage[:1] == b"{" else b""
    return (b'{%b%b"tool_usage":%b}' % (inner, b"," if inner else b"", tool_usage)).decode()


_FINAL_EVENTS = {f"response.{status}": status for status in END_STATUSES}
_ERROR_EVENTS = ("error", "response.error")
# Deltas of what the model writes or thinks; those of hosted tools' own work are none of it.
_MODEL_DELTAS = frozenset(
    f"response.{what}.delta"
    for what in (
        *("output_text", "refusal", "function_call_arguments", "custom_tool_call_input"),
        *("reasoning_text", "reasoning_summary_text", "reasoning"),
    )
)
_QUOTED_ENDS = frozenset(f'"{status}"'.encode() for status in END_STATUSES)


class _EventData(Struct):
    type: Any = None
    response: Raw = _NULL
    item: Raw = _NULL
    output_index: Any = None
    delta: Any = None
    error: Any = None
    code: Any = None
    message: Any = None


_event_decoder = msgspec.json.Decoder(_EventData)


class StreamAnswer:
    """The answer as far as a stream's events have brought it.

    It is finished when a terminal event was seen, not when the connection ended (PROTOCOL 0.6).
    """

    def __init__(self) -> None:
        self.has_begun = False  # a first non-empty delta, of text, arguments or reasoning
        self.response_id: str | None = None
        self._items: dict[int, bytes] = {}  # finished output items by their index
        self._final: tuple[str, bytes] | None = None  # status and response of the terminal event
        self._error: bytes | None = None

    @property
    def is_finished(self) -> bool:
        return self._final is not None or self._error is not None

    def take(self, event: Event) -> None:
        """One more event; what cannot be read, such as `[DONE]`, is passed over."""
        data = _decoded(event.data, _event_decoder)
        if data is None:
            return
        # The `type` in the data counts: some servers send no `event:` line (PROTOCOL 0.7).
        kind = text(data.type) or event.name
        response = bytes(data.response)
        if kind in _FINAL_EVENTS:
            self._final = (_FINAL_EVENTS[kind], response)
        elif kind == "response.output_item.done":
            self._add_item(data.output_index, bytes(data.item))
        elif kind in _MODEL_DELTAS:
            self.has_begun = self.has_begun or (isinstance(data.delta, str) and data.delta != "")
        elif (
            kind in _ERROR_EVENTS
            or event.name in _ERROR_EVENTS
            or (data.error and response == b"null")
        ):
            self._error = event.data if data.error else _error_body(data)
        elif self.response_id is None and response != b"null":
            self.response_id, _ = background_state(response)

    def _add_item(self, index: object, item: bytes) -> None:
        if item == b"null":
            return
        if isinstance(index, int):
            self._items[index] = item
        elif item not in self._items.values():  # sent twice
            self._items[len(self._items)] = item

    def body(self) -> bytes | None:
        """The answer as a plain request would have brought it; None while none is complete."""
        if self._final is None:
            return self._error
        status, response = self._final
        fields = _decoded(b"{}" if response == b"null" else response, _fields_decoder)
        if fields is None:
            return response
        has_error = bytes(fields.get("error", _NULL)) != b"null"
        if status == "failed" and not has_error and self._error is not None:
            return self._error  # the event before said more
        has_output = bytes(fields.get("output", _NULL)) not in (b"[]", b"null")
        has_ended = bytes(fields.get("status", _NULL)) in _QUOTED_ENDS
        if has_output and has_ended:
            return response
        if not has_output:
            items = b",".join(item for _, item in sorted(self._items.items()))
            fields["output"] = Raw(b"[%b]" % items)
        if not has_ended:
            fields["status"] = Raw(f'"{status}"'.encode())
        fields.setdefault("object", Raw(b'"response"'))
        return msgspec.json.encode(fields)


def _error_body(data: _EventData) -> bytes:
    """A flat error in the shape that plain answers have."""
    error = {"code": data.code, "message": data.message}
    if data.type not in _ERROR_EVENTS:
        error["type"] = data.type
    return msgspec.json.encode({"error": error})
