"""A row as a line of the Batch API's output and error files, for tools that read these.

`body` is put together from the columns: what the server said, and what the request asked for, as
the API echoes it. Where the request is not stored, the three fields without which the API's own
types refuse a response have the API's defaults.
"""

from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from batchrun.parse.json_text import decode
from batchrun.records import JsonObject
from batchrun.report.json_lines import as_json

# Of a request, what the API gives back in its response.
_ECHOED = (
    *("background", "conversation", "instructions", "max_output_tokens", "max_tool_calls"),
    *("metadata", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key"),
    *("reasoning", "safety_identifier", "store", "temperature", "text", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "truncation", "user"),
)
_DEFAULTS = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
_encode = msgspec.json.Encoder().encode


def batch_line(row: JsonObject) -> bytes:
    """`response` is null where no answer came, `error` wherever one did, if only of an error."""
    response, error = _result(row)
    return _encode(
        {
            "id": f"batch_req_{_mark(row)}",
            "custom_id": row["custom_id"],
            "response": response,
            "error": error,
        }
    )


def _mark(row: JsonObject) -> str:
    """The same for the same row each time, and for no other."""
    variant = "" if row["variant"] is None else f"{row['variant']} "  # no name holds a blank
    key = f"{variant}{row['sample']} {row['custom_id']}"
    return blake2b(key.encode(), digest_size=16).hexdigest()


def _result(row: JsonObject) -> tuple[JsonObject | None, JsonObject | None]:
    code, message = row["error_code"] or row["error_kind"], row["error_message"]
    body: JsonObject
    if row["output"] is not None:
        body = _body(row)
    elif (row["http_status"] or 0) >= 400:
        body = {
            "error": {"message": message, "type": None, "param": None, "code": row["error_code"]}
        }
    else:
        return None, {"code": code, "message": message}
    status_code = row["http_status"]
    return {"status_code": status_code, "request_id": row["request_id"], "body": body}, None


def _body(row: JsonObject) -> JsonObject:
    status, reason = row["status"], row["incomplete_reason"]
    failed = status in ("failed", "cancelled") and row["error_message"] is not None
    usage, tool_usage = _usage(row["usage"])
    body = {
        "id": row["response_id"],
        "object": "response",
        "created_at": _seconds(row["started_at"]),
        "status": status,
        "completed_at": _seconds(row["finished_at"]) if status == "completed" else None,
        "error": {"code": row["error_code"], "message": row["error_message"]} if failed else None,
        "incomplete_details": {"reason": reason} if reason is not None else None,
        "model": row["model"],
        "output": as_json(row["output"]),
        "service_tier": row["service_tier"],
        "usage": usage,
        **_DEFAULTS,
        **_asked(row["request"]),
    }
    if tool_usage is not None:
        body["tool_usage"] = tool_usage
    return body


def _usage(text: str | None) -> tuple[Any, Any]:
    """`usage` and `tool_usage`, which the table keeps in one."""
    usage = _decoded(text)
    if not isinstance(usage, dict) or "tool_usage" not in usage:
        return usage, None
    tool_usage = usage.pop("tool_usage")
    return usage or None, tool_usage


def _asked(request: str | None) -> JsonObject:
    asked = _decoded(request)
    if not isinstance(asked, dict):
        return {}
    return {name: asked[name] for name in _ECHOED if asked.get(name) is not None}


def _decoded(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return decode(text.encode())
    except (ValueError, RecursionError):
        return None


def _seconds(time: str | None) -> int | None:
    return None if time is None else int(datetime.fromisoformat(time).timestamp())
