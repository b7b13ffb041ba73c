"""A run's rows in one file, in the order of the input; there whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from batchrun.errors import JobError
from batchrun.records import JsonObject, RunRecord
from batchrun.report.batch_lines import batch_line
from batchrun.report.csv_lines import csv_head, csv_line
from batchrun.report.json_lines import json_line
from batchrun.report.target import check_target
from batchrun.store.disk import storing
from batchrun.store.plain_rows import column_names, read_rows

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
