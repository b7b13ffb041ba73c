"""Results of the Batch API: a line for each request, with an answer or an error."""

from typing import Any

import msgspec

from batchrun.dialects.responses import Unreadable, parse_response
from batchrun.errors import ErrorKind
from batchrun.formats.json_text import decode, encode_json
from batchrun.records import Failure, JsonObject, Request, Response
from batchrun.retry.error_kinds import ErrorBody, find_error, kind_of, parse_error

_CHAT = "chat.completion"


class _Answer(msgspec.Struct):
    status_code: int | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    response: _Answer | None = None
    error: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode


def is_batch_result(data: JsonObject) -> bool:
    """Whether a row is one."""
    names = data.keys()
    return {"custom_id", "response"} <= names or {"custom_id", "error"} <= names


def read_batch_result(line: bytes, request: Request) -> Response | Failure:
    """What the line says: the answer, of `/v1/responses` or `/v1/chat/completions`, or why not."""
    try:
        said = _decode_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = msgspec.convert(decode(line), _Line, strict=False)
    answer = said.response
    if answer is None:
        return _failure(0, find_error({"error": said.error}) or ErrorBody("no answer, no error"))
    body, status = bytes(answer.body), answer.status_code or 200
    if status >= 400:
        return _failure(status, parse_error(body))
    made = parse_response(_as_response(body), request)
    if isinstance(made, Unreadable):
        return Failure(ErrorKind.UNREADABLE, made.message, http_status=status)
    return _failure(status, made) if isinstance(made, ErrorBody) else made


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
    items += [
        {"type": "function_call", "call_id": call.get("id"), **call["function"]}
        for call in message.get("tool_calls") or ()
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
