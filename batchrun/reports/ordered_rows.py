"""A run's rows in the order of the input, whatever order they arrived in.

Rows are stored in the order of arrival, which is about that of the input, so a window of the input
lies in few row groups, which their statistics name. Groups that were read lately stay in memory;
each is read about once, and again only where rows of one group are far apart in the input.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.formats.arrow import json_values
from batchrun.records import JsonObject, RunRecord
from batchrun.reports.sql import TableFiles, read_files
from batchrun.store.columns import CALLS, KEY, as_schema, put_beside
from batchrun.store.parts import opened, without

T = TypeVar("T")
_CACHE_BYTES = 64 << 20  # of row groups in memory, but for one
_WINDOW_BYTES = 4 << 20
_WINDOW_ROWS = 4_096
_ORDER = [("row", "ascending"), ("variant", "ascending"), ("sample", "ascending")]
_OF_ROW = ("row", *KEY, "response_id")  # as the row of `responses` says


def read_rows(path: Path, read: Callable[[RunRecord, Iterator[JsonObject]], T]) -> T:
    """What `read` returns for all rows of `responses`, journal included, in the input's order.

    Each has its calls too, under `tool_calls`. `read` may be called again with new rows, see
    `read_files`. Raises `JobError`, `StoreError`.
    """
    return read_files(
        path, lambda files: read(files.record, with_calls(files.responses, files.tool_calls))
    )


def with_calls(responses: TableFiles, tool_calls: TableFiles) -> Iterator[JsonObject]:
    """All rows of `responses`, each with its calls; reads both tables side by side."""
    names = [name for name in tool_calls.schema.names if name not in _OF_ROW]
    groups = groupby(_plain_rows(tool_calls), key=lambda call: call["row"])
    number: float = -1
    calls: list[JsonObject] = []
    for row in _plain_rows(responses):
        while number < row["row"]:
            number, group = next(groups, (math.inf, iter(())))
            calls = list(group)
        own: list[JsonObject] = []
        if number == row["row"] and row["tool_call_count"]:
            own = [call for call in calls if all(call[name] == row[name] for name in KEY)]
            own.sort(key=lambda call: call["position"])
        put_beside(row, CALLS, [{name: call[name] for name in names} for call in own])
        yield row


def _plain_rows(files: TableFiles) -> Iterator[JsonObject]:
    """The rows, columns by name."""
    for table in in_order(files):
        yield from rows_of(table)


def rows_of(table: pa.Table) -> Iterator[JsonObject]:
    """Each row, columns by name: times, dates and decimals are text, times as ISO 8601."""
    columns = [json_values(column) for column in table.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(table.column_names, values, strict=True))


def in_order(files: TableFiles) -> Iterator[pa.Table]:
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
            yield window.take(pc.sort_indices(window, sort_keys=_ORDER))
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
