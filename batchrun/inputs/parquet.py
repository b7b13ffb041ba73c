"""Parquet to rows, a record batch at a time, in bounded memory.

What may be sent becomes plain JSON values; what is carried keeps its exact stored values.
"""

import datetime as dt
import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import InputError
from batchrun.formats.arrow import carried_type, is_list, own_type, plain_values, unpack
from batchrun.inputs.carried import JSON, Misfit, as_json, as_text, misfit, unite
from batchrun.inputs.rows import Row, Unsendable
from batchrun.inputs.sources import SourceFile
from batchrun.records import Column

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_is = pa.types

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


def arrow_fit(column: Column, kind: pa.DataType, *, explicit: bool) -> Callable[[pa.Array], Any]:
    """From an array of the file's type `kind` to the list of stored values.

    Raises `Misfit` where the type cannot be put into the pinned one; so may the fit.
    """
    own = carried_type(own_type(kind))
    if column.type == JSON or (explicit and column.type == "string" and not _is_text(own)):
        make = sendable(own)
        text = as_json if column.type == JSON else as_text
        return lambda array: [
            None if value is None else text(make(value) if make else value)
            for value in plain_values(array)
        ]
    pinned = unpack(column.arrow)[0]
    united = unite([kind, pinned])
    if not explicit and (isinstance(united, str) or united is None or not united.equals(pinned)):
        raise Misfit(str(own))

    def fit(array: pa.Array) -> list[Any]:
        try:
            return plain_values(array, pinned)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Misfit(f"{own} ({error})") from error

    return fit


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plain(kind: pa.DataType) -> Values:
    make = sendable(carried_type(own_type(kind)))
    if make is None:
        return plain_values
    return lambda array: [None if value is None else make(value) for value in plain_values(array)]


def sendable(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """From a stored value, not null, to one for JSON; null where they are the same.

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
        item = sendable(kind.item_type) or _same
        return lambda pairs: {
            str(pair["key"]): item(pair["value"]) for pair in pairs if pair["value"] is not None
        }
    if is_list(kind):
        each = sendable(kind.value_type)
        return each and (lambda items: [None if item is None else each(item) for item in items])
    return None


def _same(value: Any) -> Any:
    return value


def _number_or_null(value: float) -> Any:
    """NaN is how many tools write that there is no value; infinity is a value JSON cannot say."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else Unsendable(str(value))


def _object(kind: pa.DataType) -> Callable[[Any], Any]:
    makers = {field.name: made for field in kind.fields if (made := sendable(field.type))}

    def make(value: dict[str, Any]) -> dict[str, Any]:
        made = {
            name: makers[name](inner) if name in makers and inner is not None else inner
            for name, inner in value.items()
        }
        return {name: inner for name, inner in made.items() if inner is not None}

    return make


def _as_iso(kind: pa.DataType) -> Callable[[Any], Any]:
    """Text without trailing zeros; times with a zone are told in UTC."""
    if _is.is_date32(kind):
        return lambda days: _iso_time(days * 86_400, "", "")[:-9]
    if _is.is_date64(kind):
        return lambda ms: _iso_time(ms // 1_000, "", "")[:-9]
    per_second = _PER_SECOND[kind.unit]
    digits = len(str(per_second)) - 1

    def fraction(count: int) -> str:
        parts = count % per_second
        return f".{parts:0{digits}d}".rstrip("0") if parts else ""

    if _is.is_timestamp(kind):
        zone = "" if kind.tz is None else "+00:00"
        return lambda count: _iso_time(count // per_second, fraction(count), zone)
    if _is.is_duration(kind):
        return lambda count: (
            f"{'-' if count < 0 else ''}PT{abs(count) // per_second}{fraction(abs(count))}S"
        )
    return lambda count: _iso_time(count // per_second, fraction(count), "")[11:]


def _iso_time(seconds: int, fraction: str, zone: str) -> str:
    try:
        moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001 - the zone is written by hand
    except OverflowError:
        return f"{seconds}{fraction} s since 1970"  # beyond the calendar
    return moment.isoformat() + fraction + zone
