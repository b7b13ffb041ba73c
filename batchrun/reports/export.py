"""A run's rows in one file, in the order of the input; there whole or not at all.

Rows are stored in the order of arrival, which is about that of the input, so a window of the input
lies in few row groups, which their statistics name. Groups that were read lately stay in memory;
each is read about once, and again only where rows of one group are far apart in the input.

Times, dates and decimals are text, times as ISO 8601; bytes stay bytes.

CSV: text is quoted, null is empty, lists are JSON. Text whose first letter would make a spreadsheet
compute gets an apostrophe before it.

Batch: `body` is put together from the columns: what the server said, and what the request asked
for, as the API echoes it. Where the request is not stored, the three fields without which the API's
own types refuse a response have the API's defaults.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from hashlib import blake2b
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from batchrun.errors import JobError, StoreError
from batchrun.formats.arrow import with_parts
from batchrun.formats.json_text import decode, value_of
from batchrun.records import JsonObject, RunRecord
from batchrun.reports.sql import TableFiles, read_files
from batchrun.store.columns import KEY, as_schema, response_schema
from batchrun.store.files import storing
from batchrun.store.parts import opened, without
from batchrun.store.reading import read_record

T = TypeVar("T")
_CACHE_BYTES = 64 << 20  # of row groups in memory, but for one
_WINDOW_BYTES = 4 << 20
_WINDOW_ROWS = 4_096
_OF_ROW = ("row", *KEY, "response_id")  # as the row of `responses` says


def read_rows(path: Path, read: Callable[[RunRecord, Iterator[JsonObject]], T]) -> T:
    """What `read` returns for all rows of `responses`, journal included, in the input's order.

    Each has its calls too, under `tool_calls`. `read` may be called again with new rows, see
    `read_files`. Raises `JobError`, `StoreError`.
    """
    return read_files(
        path, lambda files: read(files.record, _with_calls(files.responses, files.tool_calls))
    )


def _with_calls(responses: TableFiles, tool_calls: TableFiles) -> Iterator[JsonObject]:
    """Reads both tables side by side."""
    names = [name for name in tool_calls.schema.names if name not in _OF_ROW]
    groups = groupby(_plain_rows(tool_calls), key=lambda call: call["row"])
    number: float = -1
    calls: list[JsonObject] = []
    for row in _plain_rows(responses):
        while number < row["row"]:
            number, group = next(groups, (math.inf, iter(())))
            calls = list(group)
        row["tool_calls"] = []
        if number == row["row"] and row["tool_call_count"]:
            own = [call for call in calls if all(call[name] == row[name] for name in KEY)]
            own.sort(key=lambda call: call["position"])
            row["tool_calls"] = [{name: call[name] for name in names} for call in own]
        yield row


def _plain_rows(files: TableFiles) -> Iterator[JsonObject]:
    """The rows, columns by name."""
    for table in _in_order(files):
        columns = [_plain_values(column) for column in table.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(table.column_names, values, strict=True))


def _plain_values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    plain = _plain(kind)
    if not plain.equals(kind):
        column = column.cast(plain)
    if pa.types.is_timestamp(kind):
        column = pc.replace_substring(column, " ", "T", max_replacements=1)
    values: list[Any] = column.to_pylist()
    return values


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_duration(kind):
        return pa.int64()  # in its own unit
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    return with_parts(kind, _plain)


def _in_order(files: TableFiles) -> Iterator[pa.Table]:
    """All rows, by `row`, in pieces of some thousand. Raises `StoreError`."""
    groups = sorted(_groups(files), key=lambda group: group.first)
    reader = _GroupReader(files)
    for start, end in pairwise(_bounds(files, groups)):
        near = [group for group in groups if group.first < end]
        is_near = (pc.field("row") >= start) & (pc.field("row") < end)
        window = pa.concat_tables([reader.read(group).filter(is_near) for group in near])
        if window.num_rows:
            # Stable: of rows with the same number (the input's order changed between two
            # commands) the one in the older part comes first.
            yield window.take(pc.sort_indices(window["row"]))
        for group in near:
            if group.last < end:
                reader.drop(group)
        groups = [group for group in groups if group.last >= end]


class _Group(Struct, frozen=True):
    """One row group."""

    path: Path
    number: int  # within its file
    first: int  # the smallest `row` in it
    last: int
    bytes: int


def _groups(files: TableFiles) -> Iterator[_Group]:
    for path in (*files.parts, *files.journal):
        with opened(path) as part:
            column = part.schema_arrow.names.index("row")
            for number in range(part.num_row_groups):
                about = part.metadata.row_group(number)
                rows = about.column(column).statistics
                if about.num_rows == 0:
                    continue
                if rows is None or not rows.has_min_max:
                    raise StoreError(
                        f"{path}: its row groups have no statistics, so another tool has rewritten "
                        "it; restore a copy of it"
                    )
                yield _Group(path, number, rows.min, rows.max, about.total_byte_size)


def _bounds(files: TableFiles, groups: list[_Group]) -> list[int]:
    """Where windows of about the same number of light rows begin, and where the last one ends.

    It takes 16 bytes a row for a moment: what is known of the groups does not say where in the
    input their rows are.
    """
    if not groups:
        return []
    tables = []
    for path in (*files.parts, *files.journal):
        with opened(path) as part:
            tables.append(part.read(columns=["row"]))
    numbers = pa.concat_tables(tables)["row"]
    size = sum(group.bytes for group in groups) / len(numbers)
    step = max(1, min(_WINDOW_ROWS, int(_WINDOW_BYTES / max(size, 1.0))))
    places = pa.array(range(0, len(numbers), step))
    begins = numbers.take(pc.sort_indices(numbers).take(places))
    return [*pc.unique(begins).to_pylist(), max(group.last for group in groups) + 1]


class _GroupReader:
    """Reads row groups, and has the last ones in memory."""

    def __init__(self, files: TableFiles) -> None:
        self._files = files
        self._cache: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._bytes = 0

    def read(self, group: _Group) -> pa.Table:
        """The group's rows that count. Raises `StoreError`."""
        key = (group.path, group.number)
        table = self._cache.get(key)
        if table is None:
            while self._cache and self._bytes + group.bytes > _CACHE_BYTES:
                self._bytes -= self._cache.popitem(last=False)[1].nbytes
            table = self._cache[key] = self._read(group)
            self._bytes += table.nbytes
        self._cache.move_to_end(key)
        return table

    def drop(self, group: _Group) -> None:
        """It will not be asked for again."""
        table = self._cache.pop((group.path, group.number), None)
        self._bytes -= table.nbytes if table is not None else 0

    def _read(self, group: _Group) -> pa.Table:
        files = self._files
        with opened(group.path) as part:
            table = as_schema(part.read_row_group(group.number), files.schema, files.layout)
        if not files.replaced or group.path in files.journal:
            return table
        batches = [without(batch, files.replaced) for batch in table.to_batches()]
        return pa.Table.from_batches(batches, table.schema)


FORMATS = ("jsonl", "csv", "batch")
_BY_ENDING = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PIECE_BYTES = 1 << 20
# As OWASP names them; with the forms of full width, which some programs read alike.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_OF_JSON = ("output", "usage", "request")
# Of a request, what the API echoes in its response.
_ECHOED = (
    *("background", "conversation", "instructions", "max_output_tokens", "max_tool_calls"),
    *("metadata", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key"),
    *("reasoning", "safety_identifier", "store", "temperature", "text", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "truncation", "user"),
)
_DEFAULTS = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(msgspec.Raw).decode


class Exported(Struct, frozen=True):
    """What was written."""

    rows: int
    left: int  # rows of the source that have no outcome yet
    bytes: int


def format_of(target: Path) -> str:
    """The format that the file's name says. Raises `JobError` where it names none."""
    ending = target.suffix.lower()
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    raise JobError(
        f"{target}: its name says no format; give --format jsonl, csv or batch, or a name that "
        "ends in .jsonl or .csv"
    )


def export_run(path: Path, target: Path, form: str) -> Exported:
    """`target` holds all rows of the run, journal included; what it held before is replaced.

    Raises `JobError` where `target` can be no such file, `StoreError`.
    """
    check_target(path, target)
    with replacing(target) as temporary:
        return read_rows(path, lambda record, rows: _write(temporary, form, record, rows))


def check_target(path: Path, target: Path) -> None:
    """Raises `JobError` where `path` is no run directory, or `target` no file outside of it."""
    read_record(path)
    if target.exists() and not target.is_file():
        raise JobError(f"{target} is no regular file; give the name of a file to write")
    if not target.parent.is_dir():
        raise JobError(f"{target.parent} is no folder; make it first, or give another file")
    if target.resolve().is_relative_to(path.resolve()):
        raise JobError(f"{target} lies in the run directory itself; give a file outside of {path}")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file that replaces `target` at the end, unless something failed. Raises `StoreError`."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with storing(target, "write"):
        try:
            yield temporary
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _write(temporary: Path, form: str, record: RunRecord, rows: Iterator[JsonObject]) -> Exported:
    line: Callable[[JsonObject], bytes] = batch_line
    piece = bytearray()
    if form == "csv":
        columns = response_schema(record.layout, record.schema_version).names
        piece += csv_head(columns)
        line = partial(csv_line, columns=columns)
    elif form == "jsonl":
        of_json = {column.name for column in record.layout.columns if column.type == "json"}
        line = partial(json_line, of_json=of_json)
    count = size = 0
    with temporary.open("wb") as file:
        for row in rows:
            count += 1
            piece += line(row) + b"\n"
            if len(piece) >= _PIECE_BYTES:
                size += file.write(piece)
                piece.clear()
        size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return Exported(count, max(0, record.rows - (count - record.gone.rows)), size)


def csv_head(columns: Sequence[str]) -> bytes:
    """The line of names, with its end."""
    return ",".join(map(_quoted, columns)).encode() + b"\n"


def csv_line(row: JsonObject, columns: Sequence[str]) -> bytes:
    return ",".join([_cell(row[name]) for name in columns]).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return _quoted(value.hex() if isinstance(value, bytes) else _encode(value).decode())


def _quoted(text: str) -> str:
    if text.lstrip(" ").startswith(_FORMULA_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def json_line(row: JsonObject, of_json: Collection[str] = ()) -> bytes:
    """`of_json` are the carried columns that hold JSON as text."""
    for name in (*_OF_JSON, *of_json):
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
        # Between values a line break is a space. All else is copied, as a number of forty digits.
        raw = bytes(_check(data))
        return msgspec.Raw(raw.replace(b"\n", b" ").replace(b"\r", b" "))
    except (ValueError, RecursionError):
        return value_of(text)


def batch_line(row: JsonObject) -> bytes:
    """`response` is null where no answer came, `error` wherever one did, if only of an error."""
    response, error = _result(row)
    line = {"id": f"batch_req_{_mark(row)}", "custom_id": row["custom_id"]}
    return _encode({**line, "response": response, "error": error})


def _mark(row: JsonObject) -> str:
    """The same for the same row each time, and for no other."""
    variant = "" if row["variant"] is None else f"{row['variant']} "  # no name holds a blank
    key = f"{variant}{row['sample']} {row['custom_id']}"
    return blake2b(key.encode(), digest_size=16).hexdigest()


def _result(row: JsonObject) -> tuple[JsonObject | None, JsonObject | None]:
    code, message, status_code = row["error_code"], row["error_message"], row["http_status"]
    if row["output"] is not None:
        body = _body(row)
    elif (status_code or 0) >= 400:
        body = {"error": {"message": message, "type": None, "param": None, "code": code}}
    else:
        return None, {"code": code or row["error_kind"], "message": message}
    return {"status_code": status_code, "request_id": row["request_id"], "body": body}, None


def _body(row: JsonObject) -> JsonObject:
    status, reason = row["status"], row["incomplete_reason"]
    failed = status in ("failed", "cancelled") and row["error_message"] is not None
    usage, asked = value_of(row["usage"]), value_of(row["request"])
    # The table has both in one.
    tool_usage = usage.pop("tool_usage", None) if isinstance(usage, dict) else None
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
        "usage": usage if tool_usage is None else usage or None,
        **_DEFAULTS,
    }
    if isinstance(asked, dict):
        body |= {name: asked[name] for name in _ECHOED if asked.get(name) is not None}
    if tool_usage is not None:
        body["tool_usage"] = tool_usage
    return body


def _seconds(time: str | None) -> int | None:
    return None if time is None else int(datetime.fromisoformat(time).timestamp())
