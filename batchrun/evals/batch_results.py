"""Results of the Batch API: a line for each request, with an answer or an error."""

import re
from collections.abc import Collection
from typing import Any

import msgspec

from batchrun.dialects.responses import Unreadable, parse_response
from batchrun.errors import ErrorKind
from batchrun.formats.json_text import beginning, count, decode, decode_as, encode_json, value_of
from batchrun.inputs.rows import SourceRow, to_json_text
from batchrun.records import Failure, JsonObject, Request, Response, RowKey, joined_key
from batchrun.reports.export import batch_id
from batchrun.retry.error_kinds import ErrorBody, find_error, kind_of, parse_error

_CHAT = "chat.completion"
_NULL = msgspec.Raw(b"null")
_MOST_DIGITS = 10  # of a sample
_STATUS = re.compile(r"[1-9][0-9]{2}")


class _Answer(msgspec.Struct):
    status_code: Any = None
    body: msgspec.Raw = _NULL


class _Line(msgspec.Struct):
    response: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL


_lines = msgspec.json.Decoder(_Line)
_answers = msgspec.json.Decoder(_Answer)


def is_batch_result(names: Collection[str]) -> bool:
    """Whether a row with these columns is one."""
    return "custom_id" in names and ("response" in names or "error" in names)


def key_of(custom_id: str, line_id: object) -> RowKey:
    """The parts of `ID|VARIANT|SAMPLE`, where an export of batchrun has joined them.

    The `id` of such a line tells it from one of others, whose ids may look the same.
    """
    name, _, sample = custom_id.rpartition("|")
    name, bar, variant = name.rpartition("|")
    if bar and sample.isdecimal() and len(sample) <= _MOST_DIGITS:
        key = name, int(sample), variant or None
        if line_id == batch_id(key) and custom_id == joined_key(key):
            return key
    return custom_id, 0, None


def read_batch_result(row: SourceRow, request: Request) -> Response | Failure:
    """What the row says: the answer, of `/v1/responses` or `/v1/chat/completions`, or why not.

    It is a line, or a row of Parquet, and may hold JSON as text.
    """
    said = decode_as(row.raw, _lines) if row.raw else None
    if said is None:
        said = decode_as(to_json_text(row.data, leniently=True).encode(), _lines) or _Line()
    response = _meant(said.response)
    if response == bytes(_NULL):
        error = find_error({"error": value_of(_meant(said.error).decode())})
        return _failure(0, error or ErrorBody("no answer, no error"))
    answer = decode_as(response, _answers)
    if answer is None:
        message = f"the response is not a JSON object: {beginning(response)}"
        return Failure(ErrorKind.UNREADABLE, message)
    body, status = _meant(answer.body), _status(answer.status_code)
    if status >= 400:
        return _failure(status, parse_error(body))
    made = parse_response(_as_response(body), request)
    if isinstance(made, Unreadable):
        return Failure(ErrorKind.UNREADABLE, made.message, http_status=status)
    return _failure(status, made) if isinstance(made, ErrorBody) else made


def _meant(value: msgspec.Raw) -> bytes:
    """The JSON of the value; of text, what it says."""
    written = bytes(value).strip()
    text = decode(written) if written[:1] == b'"' else None
    return written if text is None else text.encode()


def _status(value: object) -> int:
    """The HTTP status; 200 where none is given."""
    if isinstance(value, str) and _STATUS.fullmatch(value):
        return int(value)
    return count(value) or 200


def _failure(http_status: int, error: ErrorBody) -> Failure:
    kind = kind_of(http_status, error, None)
    return Failure(kind, error.message, error.code, http_status or None)


def _as_response(body: bytes) -> bytes:
    """The body; of a chat completion, what says the same as a response."""
    try:
        value = decode(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(value, dict) or value.get("object") != _CHAT:
        return body
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    message = first.get("message") if isinstance(first, dict) else None
    message = message if isinstance(message, dict) else {}
    parts = []
    if isinstance(message.get("content"), str):
        parts.append({"type": "output_text", "text": message["content"], "annotations": []})
    if isinstance(message.get("refusal"), str):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    items: list[JsonObject] = []
    if parts:
        items.append({"type": "message", "role": "assistant", "content": parts})
    calls = message.get("tool_calls")
    items += [
        {"type": "function_call", "call_id": call.get("id"), **call["function"]}
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict) and isinstance(call.get("function"), dict)
    ]
    made: JsonObject = {
        "object": "response",
        "id": value.get("id"),
        "status": "completed",
        "model": value.get("model"),
        "service_tier": value.get("service_tier"),
        "output": items,
        "usage": _usage(value.get("usage")),
    }
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    if reason := reasons.get(str(first.get("finish_reason") if isinstance(first, dict) else "")):
        made |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return encode_json(made)


def _usage(usage: Any) -> Any:
    """With the names that responses have."""
    if not isinstance(usage, dict):
        return None
    given, written = (usage.get(f"{name}_tokens_details") for name in ("prompt", "completion"))
    return {
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "total_tokens": usage.get("total_tokens"),
        "input_tokens_details": given if isinstance(given, dict) else {},
        "output_tokens_details": written if isinstance(written, dict) else {},
    }
