"""A run's rows in files, in the order of the input; there whole or not at all.

Times, dates and decimals are text in JSON Lines and CSV, times as ISO 8601; bytes stay bytes.

Batch: `body` is put together from the columns: what the server said, and what the request asked
for, as the API echoes it. Where the request is not stored, the three fields without which the API's
own types refuse a response have the API's defaults.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from fnmatch import fnmatch
from glob import glob
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.csv_text import BOM, csv_line
from batchrun.formats.json_text import decode, shown, value_of
from batchrun.formats.parquet_files import PART, write_parquet
from batchrun.formats.printable import nearest
from batchrun.records import JsonObject, RowKey, RunRecord, joined_key
from batchrun.reports.ordered_rows import in_order, rows_of, with_calls
from batchrun.reports.parsed import ParsedColumns
from batchrun.reports.sql import Files, read_files
from batchrun.store.columns import KEY, names_with_calls
from batchrun.store.files import RESPONSES, storing
from batchrun.store.reading import RUN_FILE, keys_vary, read_record

FORMATS = ("jsonl", "csv", "batch", "parquet")
_BY_ENDING = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_PIECE_BYTES = 1 << 20
_INPUT = (".jsonl", ".ndjson", ".json", ".parquet", ".gz", ".zst", ".bz2", ".xz")
_OURS = re.compile(rf"[^/]+=[^/]*/{re.escape(PART)}")  # in a folder that an export wrote
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


class Wanted(Struct, frozen=True):
    """What a file shall hold."""

    columns: tuple[str, ...] = ()  # in this order; none: all
    parsed: bool = False  # also the typed columns of the JSON schema
    partition_by: str | None = None  # a folder of files, one for each value of this column
    raw: bool = False  # CSV: text is never changed


ALL = Wanted()


class Exported(Struct, frozen=True):
    """What was written."""

    rows: int
    left: int  # rows of the source that have no outcome yet
    bytes: int
    misfits: int = 0  # answers that are no JSON, or not all of whose values fit their types


def format_of(target: Path, wanted: Wanted = ALL) -> str:
    """The format that the file's name says. Raises `JobError` where it names none."""
    ending = target.suffix.lower()
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    if wanted.partition_by is not None:
        return "parquet"
    raise JobError(
        f"{target}: the format is not clear from its name; give --format jsonl, csv, batch or "
        "parquet, or a name that ends in .jsonl, .csv or .parquet"
    )


def export_run(path: Path, target: Path, form: str, wanted: Wanted = ALL) -> Exported:
    """`target` holds all rows of the run, journal included; what it held before is replaced.

    Raises `JobError` where `target` can be no such file or has no such column, `StoreError`.
    """
    options = {"--partition-by": wanted.partition_by is not None and form != "parquet"}
    options["--raw"] = wanted.raw and form != "csv"
    options["--columns"] = bool(wanted.columns) and form == "batch"
    options["--parsed"] = wanted.parsed and form == "batch"
    for option, is_wrong in options.items():
        if is_wrong:
            needed = {"--partition-by": "parquet", "--raw": "csv"}.get(
                option, "jsonl, csv or parquet"
            )
            raise JobError(f"{option} does not go with the format {form}; give --format {needed}")
    check_target(path, target, is_folder=wanted.partition_by is not None)
    with replacing(target) as temporary:
        return read_files(path, lambda files: _write(path, temporary, form, files, wanted))


def check_target(path: Path, target: Path, *, is_folder: bool = False) -> None:
    """Raises `JobError` where `path` is not a run directory, or `target` cannot be replaced.

    It lies outside of every run directory, and is no file of the run's source.
    """
    record = read_record(path)
    if is_folder:
        _check_folder(target)
    elif target.exists() and not target.is_file():
        raise JobError(f"{target} is not a regular file; give the name of a file to write")
    if not target.parent.is_dir():
        raise JobError(f"{target.parent} is not a folder; create it first, or give another file")
    place = target.resolve()
    if place.is_relative_to(path.resolve()):
        raise JobError(f"{target} lies in the run directory itself; give a file outside of {path}")
    for folder in (place, *place.parents):
        if (folder / RUN_FILE).is_file() and (folder / RESPONSES).is_dir():
            raise JobError(f"{target} lies in another run directory, {folder}; give another file")
    for source in _sources(path, record):
        if _is_of(place, source):
            raise JobError(
                f"{target} is the source of the run, or would be read as part of it ({source}); "
                "give another file"
            )


def _check_folder(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise JobError(f"{target} is a file, but a folder is to be written; give another name")
    for found in target.rglob("*"):
        name = found.relative_to(target).as_posix()
        if found.is_file() and not _OURS.fullmatch(name):
            raise JobError(
                f"{target} holds {name}, which no export wrote; give a new or an empty folder"
            )


def _sources(path: Path, record: RunRecord) -> Iterator[Path]:
    """Where the run's prompt set was, and where it is if both were moved together."""
    if record.source_path:
        yield Path(record.source_path)
        yield Path(os.path.normpath(path.resolve() / record.source))


def _is_of(place: Path, source: Path) -> bool:
    """Whether the place is a file of the source, or would be one."""
    with suppress(OSError):
        if source.is_dir():
            return place.is_relative_to(source.resolve()) and place.suffix.lower() in _INPUT
        if source.exists():
            return place == source.resolve() or (place.exists() and place.samefile(source))
        if any(place == Path(one).resolve() for one in glob(str(source), recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
            return True
    return fnmatch(str(place), str(source))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """What replaces `target` at the end, unless something failed: a file or a folder.

    Raises `StoreError`.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    before = target.with_name(f".{target.name}.{os.getpid()}.old")
    with storing(target, "write"):
        try:
            yield temporary
            if target.is_dir():
                target.rename(before)
            try:
                temporary.replace(target)
            except OSError:
                if before.exists():  # else it would be deleted, and nothing be in its place
                    before.rename(target)
                raise
        finally:
            for left in (temporary, before):
                shutil.rmtree(left, ignore_errors=True)
                with suppress(OSError):
                    left.unlink()


def _write(run: Path, temporary: Path, form: str, files: Files, wanted: Wanted) -> Exported:
    parsed = ParsedColumns(run, files) if wanted.parsed else None
    names = _names(files, form, wanted, parsed)
    if form == "parquet":
        tables = (_chosen(table, names, parsed) for table in in_order(files.responses))
        types = {} if parsed is None else {name: one.arrow for name, one in parsed.types.items()}
        own = {field.name: field.type for field in files.responses.schema}
        schema = pa.schema([(name, {**own, **types}[name]) for name in names])
        rows, size = write_parquet(temporary, tables, schema, wanted.partition_by)
    else:
        rows, size = _write_lines(temporary, _lines(form, files, names, parsed, raw=wanted.raw))
        rows -= form == "csv"  # the line of names
    left, _ = files.record.left(rows)
    return Exported(rows, left, size, 0 if parsed is None else parsed.misfits)


def _names(files: Files, form: str, wanted: Wanted, parsed: ParsedColumns | None) -> list[str]:
    """The columns of the file, in order. Raises `JobError` for one that there is not."""
    own: list[str] = files.responses.schema.names
    own = names_with_calls(own) if form == "jsonl" else own
    new = [] if parsed is None else list(parsed.types)
    # A name may hold a comma, which also stands between names.
    given = [
        name
        for some in wanted.columns
        for name in ([some] if some in own + new else map(str.strip, some.split(",")))
    ]
    names = list(dict.fromkeys(given or own))
    names += [name for name in new if name not in names]
    by = [] if wanted.partition_by is None else [wanted.partition_by]
    if names == by:
        raise JobError(f"no column is left beside {by[0]}; give further --columns")
    for name in (*names, *by):
        if name not in own and name not in new:
            raise JobError(
                f"there is no column {shown(name)}; {nearest(name, [*own, *new], 'columns')}"
            )
    return [*names, *(name for name in by if name not in names)]


def _chosen(table: pa.Table, names: Sequence[str], parsed: ParsedColumns | None) -> pa.Table:
    return (table if parsed is None else parsed.added(table)).select(names)


def _lines(
    form: str, files: Files, names: Sequence[str], parsed: ParsedColumns | None, *, raw: bool
) -> Iterator[bytes]:
    if form == "csv":
        yield (BOM + csv_line(names, for_sheets=not raw)).encode()
        for table in in_order(files.responses):
            for row in rows_of(_chosen(table, names, parsed)):
                yield csv_line(row.values(), for_sheets=not raw).encode()
        return
    responses = files.responses
    columns = responses.schema.names
    names_of = dict(zip(columns, names_with_calls(columns), strict=False))
    carried = files.record.layout.columns
    of_json = [names_of[column.name] for column in carried if column.type == "json"]
    varies = form == "batch" and keys_vary(files.record, (*responses.parts, *responses.journal))
    for row in with_calls(files.responses, files.tool_calls):
        if form == "batch":
            yield batch_line(row, varies=varies) + b"\n"
            continue
        new = {} if parsed is None else parsed.values(row)
        values = {**json_row(row, of_json), **new}
        yield _encode({name: values[name] for name in names}) + b"\n"


def _write_lines(temporary: Path, lines: Iterator[bytes]) -> tuple[int, int]:
    """How many lines and bytes."""
    count = size = 0
    piece = bytearray()
    with temporary.open("wb") as file:
        for line in lines:
            count += 1
            piece += line
            if len(piece) >= _PIECE_BYTES:
                size += file.write(piece)
                piece.clear()
        size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return count, size


def json_row(row: JsonObject, of_json: Collection[str]) -> JsonObject:
    """The row with values for JSON text; `of_json` are the carried columns that hold such."""
    for name in (*_OF_JSON, *of_json):
        text = row[name]
        if text is not None:
            row[name] = as_json(text)
    for call in row["tool_calls"]:
        if call["item"] is not None:
            call["item"] = as_json(call["item"])
    for attempt in row["attempts"] or ():
        attempt["started_at"] = attempt["started_at"].replace(" ", "T", 1)
    return row


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


def batch_line(row: JsonObject, *, varies: bool = False) -> bytes:
    """`response` is null where no answer came, `error` wherever one did, if only of an error.

    `varies`: rows of one `custom_id` differ in sample or variant, so that both are named with it.
    """
    response, error = _result(row)
    custom_id, sample, variant = (row[name] for name in KEY)
    name = joined_key((custom_id, sample, variant)) if varies else custom_id
    line = {"id": batch_id((custom_id, sample, variant)), "custom_id": name}
    return _encode({**line, "response": response, "error": error})


def batch_id(key: RowKey) -> str:
    """The same for the same row each time, and for no other; `import` knows its rows by it."""
    custom_id, sample, variant = key
    of = "" if variant is None else f"{variant} "  # no name holds a blank
    mark = blake2b(f"{of}{sample} {custom_id}".encode(), digest_size=16).hexdigest()
    return f"batch_req_{mark}"


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
