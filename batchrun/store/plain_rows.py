"""Rows of the tables as plain values: what JSON and CSV have words for.

Times, dates and decimals are text, times as ISO 8601; bytes stay bytes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.records import JsonObject, RunRecord
from batchrun.store.files import TableFiles, read_files
from batchrun.store.in_order import in_order
from batchrun.store.keys import KEY
from batchrun.store.nested import with_flat
from batchrun.store.schema import response_schema

T = TypeVar("T")
_OF_ROW = ("row", *KEY, "response_id")  # as the row of `responses` says


def column_names(record: RunRecord) -> list[str]:
    """The columns of `responses`, in order."""
    return list(response_schema(record.layout, record.schema_version).names)


def read_rows(path: Path, read: Callable[[RunRecord, Iterator[JsonObject]], T]) -> T:
    """What `read` makes of all rows of `responses`, journal included, in the order of the input.

    Each has its calls besides, under `tool_calls`. `read` may be called again with new rows, see
    `read_files`. Raises `JobError`, `StoreError`.
    """
    return read_files(
        path, lambda files: read(files.record, _with_calls(files.responses, files.tool_calls))
    )


def _with_calls(responses: TableFiles, tool_calls: TableFiles) -> Iterator[JsonObject]:
    calls = _Calls(tool_calls)
    for table in in_order(responses):
        for row in plain_rows(table):
            row["tool_calls"] = calls.of(row) if row["tool_call_count"] else []
            yield row


class _Calls:
    """Walks through `tool_calls` beside `responses`, both in the order of the input."""

    def __init__(self, files: TableFiles) -> None:
        self._columns = [name for name in files.schema.names if name not in _OF_ROW]
        self._rows = (row for table in in_order(files) for row in plain_rows(table))
        self._next = next(self._rows, None)
        self._row = -1
        self._found: list[JsonObject] = []

    def of(self, row: JsonObject) -> list[JsonObject]:
        if row["row"] != self._row:
            self._row, self._found = row["row"], []
            while self._next is not None and self._next["row"] <= self._row:
                if self._next["row"] == self._row:
                    self._found.append(self._next)
                self._next = next(self._rows, None)
        mine = [call for call in self._found if all(call[name] == row[name] for name in KEY)]
        mine.sort(key=lambda call: call["position"])
        return [{name: call[name] for name in self._columns} for call in mine]


def plain_rows(table: pa.Table) -> Iterator[JsonObject]:
    """The rows, columns by name."""
    columns = [_plain_values(column) for column in table.columns]
    names = table.column_names
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _plain_values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    plain = with_flat(kind, _plain)
    if not plain.equals(kind):
        column = column.cast(plain)
    if pa.types.is_timestamp(kind):
        column = pc.replace_substring(column, " ", "T", max_replacements=1)
    values: list[Any] = column.to_pylist()
    return values


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_duration(kind):
        return pa.int64()  # in its own unit
    return pa.string() if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) else kind
