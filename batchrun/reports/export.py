"""A run's rows in one file, in the order of the input; there whole or not at all.

Text is quoted, null is nothing at all, lists are JSON. Text whose first letter would make a
spreadsheet compute gets an apostrophe before it.

`body` is put together from the columns: what the server said, and what the request asked for, as
the API echoes it. Where the request is not stored, the three fields without which the API's own
types refuse a response have the API's defaults.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.json_text import decode
from batchrun.records import JsonObject, RunRecord
from batchrun.reports.ordered_rows import column_names, read_rows
from batchrun.store.files import storing
from batchrun.store.reading import read_record


def check_target(path: Path, target: Path) -> None:
    """Raises `JobError` where `path` is no run directory, or `target` no file outside of it."""
    read_record(path)
    if target.exists() and not target.is_file():
        raise JobError(f"{target} is no regular file; give the name of a file to write")
    if not target.parent.is_dir():
        raise JobError(f"{target.parent} is no folder; make it first, or give another file")
    if target.resolve().is_relative_to(path.resolve()):
        raise JobError(f"{target} lies in the run directory itself; give a file outside of {path}")


# As OWASP names them; with the forms of full width, which some programs read alike.
_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_encode = msgspec.json.Encoder().encode


def csv_head(columns: Sequence[str]) -> bytes:
    """The line of names, with its end."""
    return ",".join(_quoted(name) for name in columns).encode() + b"\n"


def csv_line(row: JsonObject, columns: Sequence[str]) -> bytes:
    return ",".join([_cell(row[name]) for name in columns]).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted(value)
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, bytes):
        return _quoted(value.hex())
    return _quoted(_encode(value).decode())


def _quoted(text: str) -> str:
    if text.lstrip(" ").startswith(_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


OF_JSON = ("output", "usage", "request")
_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(msgspec.Raw).decode


def json_line(row: JsonObject, of_json: Collection[str] = ()) -> bytes:
    """`of_json` are the carried columns that hold JSON as text."""
    for name in (*OF_JSON, *of_json):
        text = row[name]
        if text is not None:
            row[name] = as_json(text)
    for call in row["tool_calls"]:
        if call["item"] is not None:
            call["item"] = as_json(call["item"])
    for attempt in row["attempts"] or ():
        attempt["started_at"] = attempt["started_at"].replace(" ", "T", 1)
    return _encode(row)


def as_json(text: str) -> Any:
    """What the text means, to be encoded on one line; the text itself where it is no JSON."""
    data = text.encode()
    try:
        if "\\u" in text:  # may be half of a pair, which not every reader takes
            return decode(data)
        # Between values a line break is a space. Nothing else is changed: a number of forty digits
        # keeps them.
        raw = bytes(_check(data))
        return msgspec.Raw(raw.replace(b"\n", b" ").replace(b"\r", b" "))
    except (ValueError, RecursionError):
        pass
    try:
        return decode(data)
    except (ValueError, RecursionError):
        return text


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


FORMATS = ("jsonl", "csv", "batch")
_BY_ENDING = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PIECE_BYTES = 1 << 20


class Exported(Struct, frozen=True):
    """What was written."""

    rows: int
    left: int  # rows of the source that have no outcome yet
    bytes: int


def format_of(target: Path) -> str:
    """What the file's name says. Raises `JobError` where it says nothing."""
    ending = target.suffix.lower()
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    raise JobError(
        f"{target}: its name says no format; give --format {', '.join(FORMATS[:-1])} or "
        f"{FORMATS[-1]}, or a name that ends in .jsonl or .csv"
    )


def export_run(path: Path, target: Path, form: str) -> Exported:
    """`target` holds all rows of the run, journal included; what it held before is replaced.

    Raises `JobError` where `target` can be no such file, `StoreError`.
    """
    check_target(path, target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with storing(target, "write"):
            exported = read_rows(path, lambda record, rows: _write(temporary, form, record, rows))
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return exported


def _write(temporary: Path, form: str, record: RunRecord, rows: Iterator[JsonObject]) -> Exported:
    head, line = _lines(form, record)
    with temporary.open("wb") as file:
        count, size = _write_lines(file, head, line, rows)
        file.flush()
        os.fsync(file.fileno())
    settled = count - record.gone.rows
    return Exported(count, max(0, record.rows - settled), size)


def _lines(form: str, record: RunRecord) -> tuple[bytes, Callable[[JsonObject], bytes]]:
    """What comes first, and what makes a line of a row."""
    if form == "batch":
        return b"", batch_line
    columns = column_names(record)
    if form == "csv":
        return csv_head(columns), lambda row: csv_line(row, columns)
    of_json = {column.name for column in record.layout.columns if column.type == "json"}
    return b"", lambda row: json_line(row, of_json)


def _write_lines(
    file: BinaryIO, head: bytes, line: Callable[[JsonObject], bytes], rows: Iterator[JsonObject]
) -> tuple[int, int]:
    """Rows, and bytes."""
    piece = bytearray(head)
    count = size = 0
    for row in rows:
        piece += line(row)
        piece += b"\n"
        count += 1
        if len(piece) >= _PIECE_BYTES:
            size += file.write(piece)
            piece.clear()
    size += file.write(piece)
    return count, size
