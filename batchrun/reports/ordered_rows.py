"""A table's rows in the order of the input, as plain values, with flat memory.

Rows stand in the order of arrival, which is about that of the input: so a window of the input lies
in few row groups, which their statistics name. Groups read lately are kept; each is read about
once, and again only where rows of one group are far apart in the input.

Times, dates and decimals are text, times as ISO 8601; bytes stay bytes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.formats.arrow import with_parts
from batchrun.records import JsonObject, Layout, RunRecord
from batchrun.reports.sql import TableFiles, read_files
from batchrun.store.columns import KEY, as_schema, response_schema
from batchrun.store.parts import Keys, opened

_KEPT_BYTES = 64 << 20  # of row groups in memory, but for one
_WINDOW_BYTES = 4 << 20
_WINDOW_ROWS = 4_096
_NONE = Keys()


class _Group(Struct, frozen=True):
    """One row group."""

    path: Path
    number: int  # within its file
    first: int  # the smallest `row` in it
    last: int
    bytes: int
    replaced: Keys
    schema: pa.Schema  # that its rows are read with
    layout: Layout  # of the carried columns in `schema`


class _Groups:
    """Reads row groups and keeps the last ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._bytes = 0

    def read(self, group: _Group) -> pa.Table:
        """The group's rows that count. Raises `StoreError`."""
        key = (group.path, group.number)
        table = self._kept.get(key)
        if table is None:
            while self._kept and self._bytes + group.bytes > _KEPT_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            table = self._kept[key] = _read_group(group)
            self._bytes += table.nbytes
        self._kept.move_to_end(key)
        return table

    def drop(self, group: _Group) -> None:
        """It will not be asked for again."""
        table = self._kept.pop((group.path, group.number), None)
        self._bytes -= table.nbytes if table is not None else 0


def in_order(files: TableFiles) -> Iterator[pa.Table]:
    """All rows, by `row`, in pieces of some thousand. Raises `StoreError`."""
    groups = sorted(_groups(files), key=lambda group: group.first)
    reader = _Groups()
    for start, end in pairwise(_bounds(files, groups)):
        near = [group for group in groups if group.first < end]
        pieces = [_between(reader.read(group), start, end) for group in near]
        window = pa.concat_tables(pieces)
        if window.num_rows:
            # Stable: of rows with the same number (the input's order changed between two
            # commands) the one in the older part comes first.
            yield window.take(pc.sort_indices(window["row"]))
        for group in near:
            if group.last < end:
                reader.drop(group)
        groups = [group for group in groups if group.last >= end]


def _bounds(files: TableFiles, groups: list[_Group]) -> list[int]:
    """Where windows of about the same number of light rows begin, and where the last one ends.

    It takes 16 bytes a row for a moment: what is known of the groups does not say where in the
    input their rows are.
    """
    if not groups:
        return []
    numbers = pa.concat_tables([_numbers(path) for path in (*files.parts, *files.journal)])["row"]
    size = sum(group.bytes for group in groups) / len(numbers)
    step = max(1, min(_WINDOW_ROWS, int(_WINDOW_BYTES / max(size, 1.0))))
    places = pa.array(range(0, len(numbers), step))
    begins = numbers.take(pc.sort_indices(numbers).take(places))
    return [*pc.unique(begins).to_pylist(), max(group.last for group in groups) + 1]


def _numbers(path: Path) -> pa.Table:
    with opened(path) as part:
        return part.read(columns=["row"])


def _between(table: pa.Table, start: int, end: int) -> pa.Table:
    rows = table["row"]
    return table.filter(pc.and_(pc.greater_equal(rows, start), pc.less(rows, end)))


def _groups(files: TableFiles) -> Iterator[_Group]:
    for paths, replaced in ((files.parts, files.replaced), (files.journal, _NONE)):
        for path in paths:
            with opened(path) as part:
                at = part.schema_arrow.names.index("row")
                for number in range(part.num_row_groups):
                    about = part.metadata.row_group(number)
                    told = about.column(at).statistics
                    if about.num_rows == 0:
                        continue
                    if told is None or not told.has_min_max:
                        raise StoreError(
                            f"{path}: its row groups have no statistics; it was rewritten by "
                            "another tool: put back a copy of it"
                        )
                    size = about.total_byte_size
                    yield _Group(
                        path, number, told.min, told.max, size, replaced, files.schema, files.layout
                    )


def _read_group(group: _Group) -> pa.Table:
    with opened(group.path) as part:
        table = as_schema(part.read_row_group(group.number), group.schema, group.layout)
    if not group.replaced:
        return table
    batches = [group.replaced.left_out(batch) for batch in table.to_batches()]
    return pa.Table.from_batches(batches, table.schema)


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
