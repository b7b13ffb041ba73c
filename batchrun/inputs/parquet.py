"""Parquet to rows, a record batch at a time, in bounded memory.

What may be sent becomes plain JSON values; what is carried keeps its exact stored values.
"""

import datetime as dt
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import InputError
from batchrun.formats.arrow import carried_type, is_list, own_type, plain_values
from batchrun.inputs.carried import JSON, PinnedColumn, unite
from batchrun.inputs.rows import FileRows, SourceFile, SourceRow, Unsendable

_BATCH_BYTES = 8 * 1024 * 1024  # about what a batch may take up once decoded
_BATCH_ROWS = 512
_BUFFER = 1024 * 1024
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - the zone is written by hand
_is = pa.types

Values = Callable[[pa.Array], list[Any]]


class ColumnUse(Struct, frozen=True):
    """What to make of a file's columns."""

    used: frozenset[str] | None  # may be sent or fill a template; None: all
    carried: Mapping[str, PinnedColumn] = {}
    decode_all: bool = False  # to know that the file is sound


def read_columns(file: SourceFile) -> dict[str, tuple[pa.DataType, int]]:
    """Type and bytes before compression of each column. Raises `InputError`."""
    with _opened(file) as parquet:
        sizes: Counter[str] = Counter()
        for group in range(parquet.metadata.num_row_groups):
            for leaf in range(parquet.metadata.num_columns):
                chunk = parquet.metadata.row_group(group).column(leaf)
                sizes[chunk.path_in_schema.split(".")[0]] += chunk.total_uncompressed_size
        return {one.name: (one.type, sizes[one.name]) for one in parquet.schema_arrow}


def read_rows(file: SourceFile, first: int, complete: bytearray | None, use: ColumnUse) -> FileRows:
    """The rows of the file, the first being `first`.

    Rows that `complete` marks are passed over undecoded.
    Raises `InputError` where the file cannot be read, or a column does not fit its pinned type.
    """
    row = first
    with _opened(file) as parquet:
        reader = _BatchReader(file, parquet.schema_arrow, use)
        size = _batch_rows(parquet.metadata)
        for group in range(parquet.metadata.num_row_groups):
            end = row + parquet.metadata.row_group(group).num_rows
            if complete is not None and complete.find(0, row, end) < 0:
                row = end
                continue
            batches = parquet.iter_batches(size, row_groups=[group], columns=reader.needed)
            for batch in chain.from_iterable(map(_halved, batches)):
                yield from reader.rows(batch, row, complete)
                row += batch.num_rows
    return row


class _BatchReader:
    """Makes rows of the batches of one file."""

    def __init__(self, file: SourceFile, schema: pa.Schema, use: ColumnUse) -> None:
        self._file = file
        self._names = tuple(schema.names)
        types = {field.name: field.type for field in schema}
        self._plain: dict[str, Values] = {
            name: _json_reader(kind)
            for name, kind in types.items()
            if use.used is None or name in use.used
        }
        # Null for a column that this file does not have.
        self._carried: dict[str, Values | None] = {
            name: _carried_reader(file, column, types[name]) if name in types else None
            for name, column in use.carried.items()
        }
        read = self._plain.keys() | use.carried.keys()
        self.needed = None if use.decode_all else [name for name in types if name in read]

    def rows(
        self, batch: pa.RecordBatch, first: int, complete: bytearray | None
    ) -> Iterator[SourceRow]:
        numbers: Sequence[int] = range(first, first + batch.num_rows)
        if complete is not None:
            numbers = [row for row in numbers[: max(len(complete) - first, 0)] if not complete[row]]
        if not numbers:
            return
        if len(numbers) < batch.num_rows and batch.num_columns:
            batch = batch.take(pa.array([row - first for row in numbers]))
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        try:
            plain = [(name, read(arrays[name])) for name, read in self._plain.items()]
            carried = [read and read(arrays[name]) for name, read in self._carried.items()]
        except (pa.ArrowException, ValueError) as error:
            raise _unreadable(self._file, error) from error
        for index, row in enumerate(numbers):
            data = {name: values[index] for name, values in plain if values[index] is not None}
            of_row = tuple([values and values[index] for values in carried])
            yield SourceRow(row, self._file.name, None, data, columns=self._names, carried=of_row)


def _halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in pieces: a file's sizes are averages, and large rows may follow each other."""
    if batch.num_rows <= 1 or batch.nbytes <= _BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _halved(batch.slice(0, half))
    yield from _halved(batch.slice(half))


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows a batch, so that large rows are not decoded by the hundred."""
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
        "another format: write the file again"
    )


def _json_reader(kind: pa.DataType) -> Values:
    """From an array to values for JSON."""
    make = sendable(carried_type(own_type(kind)))
    if make is None:
        return plain_values
    return lambda array: [None if value is None else make(value) for value in plain_values(array)]


def _carried_reader(file: SourceFile, column: PinnedColumn, kind: pa.DataType) -> Values:
    """From an array to the stored values of a column that the file has as `kind`.

    Raises `InputError` where the type cannot be put into the pinned one; so may the reader.
    """
    own = carried_type(own_type(kind))
    is_text = _is.is_string(own) or _is.is_large_string(own)
    as_text = column.type == JSON or (column.explicit and column.type == "string" and not is_text)
    if not as_text and not column.explicit and unite([kind, column.arrow]) != column.arrow:
        raise column.misfit(file, own)
    make = sendable(own)

    def read(array: pa.Array) -> list[Any]:
        try:
            values = plain_values(array, None if as_text else column.arrow)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise column.misfit(file, f"{own} ({error})") from error
        if not as_text:
            return values
        return [v if v is None else column.fit(make(v) if make else v, file) for v in values]

    return read


def sendable(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """From a stored value, not null, to one for JSON; None where they are the same.

    Nulls in objects are left out, NaN is null, maps become objects, times ISO text, and decimals
    numbers.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return sendable(kind.storage_type)
    if _is.is_floating(kind):
        return _number_or_null
    if _is.is_decimal(kind):
        return lambda value: Decimal(value) if type(value) is str else value
    if _is.is_binary(kind) or _is.is_large_binary(kind) or _is.is_fixed_size_binary(kind):
        return lambda _: Unsendable("binary")
    if _is.is_temporal(kind):
        return _as_iso(kind)
    if _is.is_struct(kind):
        return _object(kind)
    if _is.is_map(kind):
        item = sendable(kind.item_type) or (lambda value: value)
        return lambda pairs: {
            str(pair["key"]): item(pair["value"]) for pair in pairs if pair["value"] is not None
        }
    if is_list(kind):
        each = sendable(kind.value_type)
        return each and (lambda items: [None if item is None else each(item) for item in items])
    return None


def _number_or_null(value: float) -> Any:
    """NaN is how many tools write that there is no value; infinity is a value JSON cannot say."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else Unsendable(str(value))


def _object(kind: pa.DataType) -> Callable[[Any], Any]:
    makers = {field.name: made for field in kind.fields if (made := sendable(field.type))}

    def make(value: dict[str, Any]) -> dict[str, Any]:
        there = ((name, inner) for name, inner in value.items() if inner is not None)
        made = ((n, makers[n](inner) if n in makers else inner) for n, inner in there)
        return {name: inner for name, inner in made if inner is not None}

    return make


def _as_iso(kind: pa.DataType) -> Callable[[Any], Any]:
    """Text without trailing zeros; times with a zone are in UTC."""
    is_date, is_duration, is_time = _is.is_date(kind), _is.is_duration(kind), _is.is_time(kind)
    in_days = _is.is_date32(kind)
    per_second = (1 if in_days else 1_000) if is_date else _PER_SECOND[kind.unit]
    digits = len(str(per_second)) - 1
    zone = "+00:00" if _is.is_timestamp(kind) and kind.tz is not None else ""

    def iso(count: int) -> str:
        seconds, parts = divmod(abs(count) if is_duration else count, per_second)
        fraction = f".{parts:0{digits}d}".rstrip("0") if parts else ""
        if is_duration:
            return f"{'-' if count < 0 else ''}PT{seconds}{fraction}S"
        try:
            moment = _EPOCH + dt.timedelta(seconds=seconds * 86_400 if in_days else seconds)
        except OverflowError:
            return f"{seconds}{fraction} s since 1970"  # beyond the calendar
        if is_date:
            return moment.date().isoformat()
        text = moment.isoformat() + fraction + zone
        return text[11:] if is_time else text

    return iso
