"""The Responses API: its requests, its answers and its streams, total over any JSON. No I/O.

Nothing is validated strictly: fields of a wrong type count as absent, and unknown output items
are kept verbatim (PROTOCOL 0.1, A.3, A.4). What JSON refuses but servers send (lone surrogates,
NaN) is repaired once and read again.

A dialect is a module with this content: the path; the fields of a request, those that batchrun
sets, and the limit of an answer's length; a body as each mode sends it; what a body says of work
in the background; `parse_response`; and `StreamAnswer`, which makes of a stream's events the body
that a plain request would have brought.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from batchrun.dialects.other_apis import other_api
from batchrun.dialects.output_items import fitting, output_fits, read_items
from batchrun.dialects.sse import Event
from batchrun.dialects.statuses import END_STATUSES, RUNNING, ended, is_at_limit, status_of
from batchrun.dialects.stream_items import (
    DELTAS,
    DONE,
    ITEM_ADDED,
    ITEM_DONE,
    PART_ADDED,
    PART_DONE,
    EventData,
    StreamItems,
)
from batchrun.dialects.token_usage import read_usage, without_zeros
from batchrun.errors import ErrorKind
from batchrun.formats.json_text import beginning, decode, decode_as, repaired, says_something, text
from batchrun.records import Failure, Request, Response, Usage
from batchrun.retry.error_kinds import ErrorBody, classify, find_error

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
OUTPUT_LIMIT = "max_output_tokens"


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


_NULL = Raw(b"null")


class _State(Struct):
    id: Any = None
    status: Any = None
    output: Raw = _NULL


_state_decoder = msgspec.json.Decoder(_State)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])


def background_state(body: bytes) -> tuple[str | None, str | None]:
    """Id and status of a response whose work may go on; None where the body does not say.

    The status is one of `RUNNING` or `END_STATUSES`, or a word that nobody knows.
    """
    state = decode_as(body, _state_decoder) or _State()
    has_items = _has_items(bytes(state.output))
    return text(state.id), status_of(text(state.status), has_items=has_items)


def _has_items(output: bytes) -> bool:
    return output[:1] == b"[" and output[1:].lstrip()[:1] != b"]"


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
    incomplete_details: _Incomplete | str | None = None
    output: Raw = _NULL
    output_text: str | None = None  # some servers send the SDK's property besides
    usage: Raw = _NULL
    tool_usage: Raw = _NULL


_body_decoder = msgspec.json.Decoder(_Body)


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
        return Unreadable(f"the answer is not a JSON object: {beginning(body)}")


def _response(
    body: bytes, request: Request, reported_cost_usd: float | None
) -> Response | ErrorBody | Unreadable:
    try:
        answer = _body_decoder.decode(body)
    except msgspec.ValidationError:
        answer = fitting(_fields_decoder.decode(body), _Body)
    output = bytes(answer.output)
    is_list = output[:1] == b"["
    if not is_list:
        output = b"[]"
    details = answer.incomplete_details
    said = answer.status or ("completed" if is_list else None)
    reason = details.reason if isinstance(details, _Incomplete) else details
    status = said
    if said != "completed" or reason is not None:
        status, reason = ended(said, reason, has_items=_has_items(output))
    is_response = is_list or answer.object == "response"
    if answer.error and status not in ("failed", "cancelled") and says_something(answer.error):
        is_response = False
    if not is_response:
        error = find_error(decode(body))
        if error is None and (api := other_api(body)) is not None:
            return Unreadable(f"the answer is {api}, not a response: check --base-url")
        return error or Unreadable(f"the answer is not a response: {beginning(body)}")
    if status not in END_STATUSES:
        return Unreadable(f"the answer's status is {said}, which is not final")
    usage, cost_usd = read_usage(answer.usage)
    items = read_items(output, request)
    output_text = "".join(items.texts) if items.texts else answer.output_text or None
    if not (usage.input_tokens and usage.output_tokens) and (output_text or items.has_said):
        usage = without_zeros(usage)
    is_empty = status == "completed" and (not output_text or output_text.isspace())
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
        failure=None if status == "completed" else _failure(status, answer.error),
        output_parsed_ok=output_fits(output_text, request.body, items.texts),
        reasoning_text="\n\n".join(items.reasoning) if items.reasoning else None,
        is_empty=is_empty and not items.have_result,
    )


def _is_truncated(status: str, reason: str | None, usage: Usage, most: int | None) -> bool:
    """Some servers say completed when the limit cut the answer (PROTOCOL A.3)."""
    if status == "incomplete":
        return is_at_limit(reason)
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
    found = find_error({"error": error}) if says_something(error) else None
    if found is None:
        return Failure(kind, f"the response is {status}")
    if kind is not ErrorKind.CANCELLED:  # the type counts too where the code says nothing
        kind = classify(200, found.code, found.type, "", param=found.param)
    return Failure(kind, found.message, found.code or found.type)


def _usage_json(answer: _Body) -> str | None:
    """The usage verbatim, with `tool_usage` as a further field of it."""
    usage = bytes(answer.usage).strip()
    tool_usage = b"null" if answer.tool_usage is _NULL else bytes(answer.tool_usage).strip()
    if tool_usage == b"null":
        return None if usage == b"null" else usage.decode()
    inner = usage[1:-1].strip() if usage[:1] == b"{" else b""
    return (b'{%b%b"tool_usage":%b}' % (inner, b"," if inner else b"", tool_usage)).decode()


_FINAL_EVENTS = {f"response.{status}": status for status in END_STATUSES}
_FINAL_EVENTS["response.done"] = "completed"
_ERROR_EVENTS = ("error", "response.error")
_DONE_MARK = b"[DONE]"


class _Item(Struct):
    type: Any = None


_item_decoder = msgspec.json.Decoder(_Item)
_OTHER_WORK = re.compile("reasoning|_call|mcp_|compaction")  # in the names of events
_event_decoder = msgspec.json.Decoder(EventData)


class StreamAnswer:
    """The answer as far as a stream's events have brought it.

    It is finished when a terminal event was seen, not when the connection ended (PROTOCOL 0.6).
    """

    def __init__(self) -> None:
        self.has_begun = False  # a first non-empty delta, of text, arguments or reasoning
        self.is_writing_text = False  # the last it said was text, not reasoning or a tool's work
        self.response_id: str | None = None
        self.words = b""  # the first that is said in no event of the API
        self._begun = b""  # the response as the first events have it
        self._items = StreamItems()
        self._final: tuple[str, bytes] | None = None  # status and response of the terminal event
        self._usage = _NULL  # beside a response, as some servers send it
        self._error: bytes | None = None
        self._is_error_last = False  # nothing of the answer has followed it so far
        self._is_over = False  # an event that ends streams, after which nothing has come so far
        self._number: Any = None  # of the last event, and the event
        self._data = b""
        self._is_numbered = False  # the numbers differ: some servers number all events alike

    @property
    def has_last_event(self) -> bool:
        return self._final is not None

    @property
    def is_finished(self) -> bool:
        return self._final is not None or self._is_over

    @property
    def ends_in_error(self) -> bool:
        """Whether an error event is the last that it said so far."""
        return self._final is None and self._is_over and self._is_error_last

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said that belongs to an answer."""
        return self.response_id is None and not self._items.has_said

    @property
    def error_message(self) -> str | None:
        """What the last error said."""
        error = self._error_body()
        return None if error is None else error.message

    def _error_body(self) -> ErrorBody | None:
        try:
            return None if self._error is None else find_error(decode(self._error))
        except (ValueError, RecursionError):
            return None

    def take(self, event: Event) -> None:
        """One more event."""
        data = decode_as(event.data, _event_decoder)
        if data is None:
            self._take_words(event)
            return
        if (number := data.sequence_number) is not None:
            if number == self._number and self._is_numbered and event.data == self._data:
                return  # the last event once more
            self._is_numbered = self._is_numbered or self._number not in (None, number)
            self._number, self._data = number, event.data
        # The `type` in the data counts: some servers send no `event:` line (PROTOCOL 0.7).
        kind = text(data.type) or event.name
        self.is_writing_text = _is_writing_text(kind, data, self.is_writing_text)
        if (said := DELTAS.get(kind)) is not None:
            if not self.has_begun:
                self.has_begun = isinstance(data.delta, str) and data.delta != ""
            self._is_over = self._is_error_last = False
            self._items.add_delta(said, data)
            return
        response = bytes(data.response)
        if data.usage is not _NULL and bytes(data.usage) != b"null":
            self._usage = data.usage
        if kind in _FINAL_EVENTS:
            if self._final is None or response != b"null":
                self._final = (_FINAL_EVENTS[kind], response)
            if data.error:
                self._error = event.data
        elif kind in DONE or kind in PART_DONE or kind in (ITEM_ADDED, ITEM_DONE):
            self._is_over = self._is_error_last = False
            if kind in DONE:
                self._items.add_done(DONE[kind], data)
            elif kind in PART_DONE:
                self._items.add_part(data)
            else:
                self._items.add_item(data, is_finished=kind == ITEM_DONE)
        elif kind in PART_ADDED:
            self._items.begin_part()
        elif kind in _ERROR_EVENTS or event.name in _ERROR_EVENTS:
            self._take_error(event.data if data.error else _error_body(data))
        elif data.error and response == b"null":
            self._take_error(event.data, is_end=not kind)  # beside a type of its own it is none
        elif not kind and response == b"null":
            self._take_untyped(event.data)
        elif self.response_id is None and response != b"null":
            self._begun = response
            self.response_id, _ = background_state(response)

    def _take_error(self, error: bytes, *, is_end: bool = True) -> None:
        self._error, self._is_error_last = error, True
        self._is_over = self._is_over or is_end

    def _take_words(self, event: Event) -> None:
        """Data that is no JSON object."""
        if event.data.strip() == _DONE_MARK:
            self._is_over = True
        elif event.name in _ERROR_EVENTS:
            said = {"message": event.data.decode(errors="replace")}
            self._take_error(msgspec.json.encode({"error": said}))
        else:
            self.words = self.words or event.data

    def _take_untyped(self, data: bytes) -> None:
        """An object without a type: an error in another shape, or the whole response."""
        try:
            said = decode(data)
        except (ValueError, RecursionError):
            return
        is_response = isinstance(said, dict) and isinstance(said.get("output"), list)
        if is_response or text(said, "object") == "response":
            if self._final is None and background_state(data)[1] in END_STATUSES:
                self._final = ("completed", data)
        elif find_error(said) is not None:
            self._take_error(data)

    def body(self, *, sends_last_events: bool = False) -> bytes | None:
        """The answer as a plain request would have brought it; None while none is complete.

        Items that are all done are an answer too, but not where the server `sends_last_events`:
        there a stream without one was cut, and more items may have been to come.
        """
        if self._final is None:
            is_end = self._is_over or not sends_last_events
            if is_end and not self.ends_in_error and self._items.is_whole:
                return self._put_together("completed")
            return self._error if self._is_error_last else None
        status, response = self._final
        fields: dict[str, Raw] | None
        if response == b"null":  # the first events said more
            fields = decode_as(self._begun or b"{}", _fields_decoder) or {}
            fields.pop("status", None)
        else:
            fields = decode_as(response, _fields_decoder)
        is_as_sent = response != b"null" and fields is not None
        if fields is None:
            if not self._items.has_said:
                return response
            fields = {}
        has_error = bytes(fields.get("error", _NULL)) != b"null"
        if status == "failed" and not has_error and (error := self._error_body()) is not None:
            # An event before said more.
            fields["error"], is_as_sent = Raw(msgspec.json.encode(error)), False
        if self._usage is not _NULL and not _counts(bytes(fields.get("usage", _NULL))):
            fields["usage"], is_as_sent = self._usage, False
        output = bytes(fields.get("output", _NULL))
        if (more := self._items.output(output, "completed")) is not None:
            fields["output"], is_as_sent = Raw(more), False
        elif output == b"null":
            fields["output"], is_as_sent = Raw(b"[]"), False
        _, within = background_state(response)
        if within is None or within in RUNNING:
            fields["status"], is_as_sent = Raw(f'"{status}"'.encode()), False
        if is_as_sent:
            return response
        fields.setdefault("object", Raw(b'"response"'))
        return msgspec.json.encode(fields)

    def partial(self) -> bytes:
        """What was said of an answer that did not arrive whole, as a response; else nothing."""
        if self._final is not None or not self._items.has_said:
            return b""
        return self._put_together("incomplete")

    def _put_together(self, status: str) -> bytes:
        """A response of what was said without a last event."""
        fields = decode_as(self._begun or b"{}", _fields_decoder) or {}
        fields |= {
            "object": Raw(b'"response"'),
            "status": Raw(f'"{status}"'.encode()),
            "output": Raw(self._items.output(b"", status) or b"[]"),
            "usage": self._usage,
            "error": _NULL,
            "incomplete_details": _NULL,
        }
        return msgspec.json.encode(fields)


def _counts(usage: bytes) -> bool:
    """Whether there is any number but 0 in it."""
    return any(digit in usage for digit in b"123456789")


def _is_writing_text(kind: str, data: EventData, was: bool) -> bool:
    """Whether text is in the making after this event; some events, such as pings, do not tell."""
    if (said := DELTAS.get(kind)) is not None and said.item == "message":
        return was or (isinstance(data.delta, str) and data.delta != "")
    if not was or not kind.startswith("response."):
        return was
    if kind in (ITEM_ADDED, ITEM_DONE):
        return text((decode_as(bytes(data.item), _item_decoder) or _Item()).type) == "message"
    return _OTHER_WORK.search(kind) is None


def _error_body(data: EventData) -> bytes:
    """A flat error in the shape that plain answers have."""
    error = {"code": data.code, "message": data.message}
    if data.type not in _ERROR_EVENTS:
        error["type"] = data.type
    return msgspec.json.encode({"error": error})
