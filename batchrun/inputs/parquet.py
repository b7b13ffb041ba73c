"""Parquet to rows, a record batch at a time, in bounded memory.

What may be sent becomes plain JSON values; what is carried keeps its exact stored values.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import InputError
from batchrun.inputs.carried import (
    Misfit,
    arrow_fit,
    carried_type,
    misfit,
    own_type,
    plain_values,
    sendable,
)
from batchrun.inputs.rows import Row
from batchrun.inputs.sources import SourceFile
from batchrun.records import Column

_BATCH_BYTES = 8 * 1024 * 1024  # about what a batch may take up once decoded
_BATCH_ROWS = 512
_BUFFER = 1024 * 1024

Values = Callable[[pa.Array], list[Any]]


class Wanted(Struct, frozen=True):
    """What to make of a file's columns."""

    used: frozenset[str] | None  # may be sent or fill a template; null: all
    columns: tuple[Column, ...] = ()  # to carry
    explicit: frozenset[str] = frozenset()  # those of them whose type [input] types names
    whole: bool = False  # decode every column, to know that the file is sound


class Facts(Struct, frozen=True):
    """What a file says of itself."""

    types: dict[str, pa.DataType]  # in the order of the columns
    sizes: dict[str, int]  # bytes of a column before compression


def read_facts(file: SourceFile) -> Facts:
    """The file's columns. Raises `InputError`."""
    with _opened(file) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        sizes = dict.fromkeys(schema.names, 0)
        tops = [
            parquet.schema.column(leaf).path.split(".")[0] for leaf in range(metadata.num_columns)
        ]
        for group in range(metadata.num_row_groups):
            for leaf, top in enumerate(tops):
                size = metadata.row_group(group).column(leaf).total_uncompressed_size
                sizes[top] = sizes.get(top, 0) + size
        return Facts(types={field.name: field.type for field in schema}, sizes=sizes)


def read_rows(
    file: SourceFile,
    first: int,
    settled: bytearray | None,
    limit: int | None,
    wanted: Wanted,
) -> Generator[Row, None, int]:
    """The rows of the file, the first being `first`; returns the number after the last.

    Rows that `settled` marks are passed over undecoded; reading ends at row `limit`.
    Raises `InputError` where the file cannot be read, or a column does not fit its pinned type.
    """
    row = first
    with _opened(file) as parquet:
        view = _View(file, parquet.schema_arrow, wanted)
        size = _batch_rows(parquet.metadata)
        for group in range(parquet.metadata.num_row_groups):
            end = row + parquet.metadata.row_group(group).num_rows
            if limit is not None and row >= limit:
                return row
            if settled is not None and end <= len(settled) and settled.find(0, row, end) < 0:
                row = end
                continue
            for batch in _batches(parquet, group, size, view.needed):
                after = row + batch.num_rows
                yield from view.rows(batch, row, settled, limit)
                row = after
    return row


class _View:
    """How to read the columns of one file."""

    def __init__(self, file: SourceFile, schema: pa.Schema, wanted: Wanted) -> None:
        self._file = file
        self._names = tuple(schema.names)
        types = {field.name: field.type for field in schema}
        self._plain: list[tuple[str, Values]] = [
            (name, _plain(kind))
            for name, kind in types.items()
            if wanted.used is None or name in wanted.used
        ]
        self._carried: list[tuple[Column, Values | None]] = []
        for column in wanted.columns:
            kind = types.get(column.column)
            try:
                fit = kind and arrow_fit(column, kind, explicit=column.column in wanted.explicit)
            except Misfit as what:
                raise misfit(file.name, column, what) from None
            self._carried.append((column, fit))
        named = {name for name, _ in self._plain} | {c.column for c, fit in self._carried if fit}
        self.needed = None if wanted.whole else [name for name in types if name in named]

    def rows(
        self, batch: pa.RecordBatch, first: int, settled: bytearray | None, limit: int | None
    ) -> Iterator[Row]:
        count = batch.num_rows if limit is None else min(batch.num_rows, limit - first)
        numbers = range(first, first + max(count, 0))
        if settled is not None:
            known = len(settled)
            numbers = [row for row in numbers if row >= known or not settled[row]]  # type: ignore[assignment] # both are sequences
        if not numbers:
            return
        if len(numbers) < batch.num_rows and batch.num_columns:
            batch = batch.take(pa.array([row - first for row in numbers]))
        place = {name: at for at, name in enumerate(batch.schema.names)}
        try:
            plain = [(name, read(batch.column(place[name]))) for name, read in self._plain]
            carried = [self._read(column, read, batch, place) for column, read in self._carried]
        except (pa.ArrowException, ValueError) as error:
            raise _unreadable(self._file, error) from error
        source, names = self._file.name, self._names
        for at, row in enumerate(numbers):
            data = {name: values[at] for name, values in plain if values[at] is not None}
            kept = tuple([values and values[at] for values in carried])
            yield Row(row, source, None, data, columns=names, carried=kept)

    def _read(
        self, column: Column, read: Values | None, batch: pa.RecordBatch, place: dict[str, int]
    ) -> list[Any] | None:
        if read is None:
            return None
        try:
            return read(batch.column(place[column.column]))
        except Misfit as what:
            raise misfit(self._file.name, column, what) from None


def _plain(kind: pa.DataType) -> Values:
    make = sendable(carried_type(own_type(kind)))
    if make is None:
        return plain_values
    return lambda array: [None if value is None else make(value) for value in plain_values(array)]


def _batches(
    parquet: pq.ParquetFile, group: int, size: int, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    if columns is not None and not columns:  # rows of which nothing is wanted but that they are
        left = parquet.metadata.row_group(group).num_rows
        empty = pa.RecordBatch.from_arrays([pa.nulls(min(left, size))], names=[""])
        while left > 0:
            yield empty.slice(0, left)
            left -= size
        return
    for batch in parquet.iter_batches(batch_size=size, row_groups=[group], columns=columns):
        yield from _halved(batch)


def _halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in pieces: sizes told by a file are averages, and large rows come together."""
    if batch.num_rows <= 1 or batch.nbytes <= _BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _halved(batch.slice(0, half))
    yield from _halved(batch.slice(half))


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows a batch, so that large rows do not come by the hundred."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    largest = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(largest, 1)))


@contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    try:
        with (
            pa.OSFile(os.fsencode(file.path)) as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: SourceFile, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).split("\n")[0].split(". Detail")[0]
    return InputError(
        f"{file.path}: cannot be read as Parquet ({reason:.300}); it is cut short, damaged or of "
        "another format: make the file anew"
    )
