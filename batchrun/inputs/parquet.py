"""Parquet to rows, a record batch at a time, in bounded memory.

What may be sent becomes plain JSON values; what is carried keeps its exact stored values.
"""

import datetime as dt
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import InputError
from batchrun.formats.arrow import (
    as_own_type,
    carried_type,
    check_values,
    is_list,
    own_type,
    plain_values,
)
from batchrun.formats.printable import cut, listed
from batchrun.inputs.carried import JSON, PinnedColumn, carry_options, unite
from batchrun.inputs.rows import (
    FileRows,
    RowProblem,
    SourceFile,
    SourceRow,
    Unsendable,
    to_json_text,
)
from batchrun.remote import remote_files
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.remote_files import RemoteFile

_BATCH_BYTES = 8 * 1024 * 1024  # about what a batch may take up once decoded
_BATCH_ROWS = 512
_BUFFER = 1024 * 1024
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_SHOWN = 200  # characters of a value in a message
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - the zone is written by hand
_is = pa.types

Values = Callable[[pa.Array], list[Any]]


class ColumnUse(Struct, frozen=True):
    """What to make of a file's columns."""

    used: frozenset[str] | None  # may be sent or fill a template; None: all
    carried: Mapping[str, PinnedColumn] = {}
    left_out: frozenset[str] = frozenset()  # of the carried ones: null in every row
    # Carried values are converted, so that those that cannot be stored are known, and dropped.
    check_only: bool = False
    sizes: Counter[str] | None = None  # gets the bytes of each carried column


def read_columns(file: SourceFile) -> tuple[dict[str, pa.DataType], set[str]]:
    """The type of each column, and the names that several columns have. Raises `InputError`."""
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
    counts = Counter(schema.names)
    types = {field.name: field.type for field in schema}
    for name, value in file.partitions:
        types.setdefault(name, _partition_type(value))
    return types, {name for name, count in counts.items() if count > 1}


def largest_group(file: SourceFile) -> int:
    """Rows of the largest row group. Raises `InputError`."""
    with _opened(file) as parquet:
        groups = range(parquet.metadata.num_row_groups)
        rows: list[int] = [parquet.metadata.row_group(at).num_rows for at in groups]
    return max(rows, default=0)


def copy_columns(file: SourceFile, path: Path, names: Collection[str]) -> None:
    """Writes the columns of these names, in lower case, for all rows. Raises `InputError`."""
    with _opened(file) as parquet:
        chosen = [name for name in parquet.schema_arrow.names if name.lower() in names]
        # Without a column there are no rows: the first stands for them.
        chosen = chosen or parquet.schema_arrow.names[:1]
        schema = pa.schema([parquet.schema_arrow.field(name) for name in chosen])
        with pq.ParquetWriter(path, schema) as copy:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=chosen):
                copy.write_batch(batch.select(chosen))


def read_rows(file: SourceFile, first: int, complete: bytearray | None, use: ColumnUse) -> FileRows:
    """The rows of the file, the first being `first`.

    Rows that `complete` marks are passed over undecoded; reading ends after the last other one.
    Raises `InputError` where the file cannot be read, or a column does not fit its pinned type.
    """
    row, last = first, None if complete is None else complete.rfind(0)
    with _opened(file) as parquet:
        reader = _BatchReader(file, parquet.schema_arrow, use)
        size = _batch_rows(parquet.metadata)
        for group in range(parquet.metadata.num_row_groups):
            end = row + parquet.metadata.row_group(group).num_rows
            if complete is not None and complete.find(0, row, end) < 0:
                row = end
                continue
            try:
                batches = parquet.iter_batches(size, row_groups=[group], columns=reader.needed)
                for batch in chain.from_iterable(map(_halved, batches)):
                    yield from reader.rows(batch, row, complete)
                    row += int(batch.num_rows)
                    if last is not None and row > last:
                        return row
            except OSError as error:
                if _is_encrypted(error):
                    raise _encrypted(file, parquet, group, reader) from error
                raise
    return row


class _BatchReader:
    """Makes rows of the batches of one file."""

    def __init__(self, file: SourceFile, schema: pa.Schema, use: ColumnUse) -> None:
        self._file = file
        types = {field.name: field.type for field in schema}
        self._partitions = {n: value for n, value in file.partitions if n not in types}
        types |= {name: _partition_type(value) for name, value in self._partitions.items()}
        self._names = tuple(types)
        self._plain: dict[str, Values] = {
            name: _json_reader(name, kind)
            for name, kind in types.items()
            if use.used is None or name in use.used
        }
        # Null for a column that this file does not have.
        self._carried: dict[str, _CarriedReader | None] = {
            name: _CarriedReader(file, column, types[name], use.check_only)
            if name in types and name not in use.left_out
            else None
            for name, column in use.carried.items()
        }
        self.may_send = self._plain.keys()
        self._check_only, self._sizes = use.check_only, use.sizes
        read = self._plain.keys() | (use.carried.keys() - use.left_out)
        self.needed = [name for name in schema.names if name in read]

    def rows(
        self, batch: pa.RecordBatch, first: int, complete: bytearray | None
    ) -> Iterator[SourceRow]:
        numbers: Sequence[int] = range(first, first + batch.num_rows)
        if complete is not None:
            numbers = [row for row in numbers[: max(len(complete) - first, 0)] if not complete[row]]
        if not numbers:
            return
        chosen = None
        if len(numbers) < batch.num_rows and batch.num_columns:
            chosen = pa.array([row - first for row in numbers])
        arrays = {}
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if chosen is not None:  # views and run lengths cannot be taken from
                array = as_own_type(array).take(chosen)  # noqa: PLW2901
            arrays[name] = array
        for name, value in self._partitions.items():
            arrays[name] = pa.repeat(pa.scalar(value, _partition_type(value)), len(numbers))
        misfits: defaultdict[int, dict[str, str]] = defaultdict(dict)
        try:
            plain = [(name, read(arrays[name])) for name, read in self._plain.items()]
            carried = [
                read and read.values(arrays[name], misfits) for name, read in self._carried.items()
            ]
        except (pa.ArrowException, ValueError) as error:
            raise _unreadable(self._file, error) from error
        if self._sizes is not None:
            self._sizes.update({n: arrays[n].nbytes for n, read in self._carried.items() if read})
        for index, row in enumerate(numbers):
            data = {name: values[index] for name, values in plain if values[index] is not None}
            of_row = () if self._check_only else tuple([v and v[index] for v in carried])
            yield SourceRow(
                row,
                self._file.name,
                None,
                data,
                columns=self._names,
                carried=of_row,
                misfits=misfits.get(index) if misfits else None,
            )


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
        if isinstance(file.path, RemoteFile):
            size, stream = remote_files.BUFFER, pa.PythonFile(file.path.open(), "r")
        else:
            size, stream = _BUFFER, pa.OSFile(os.fsencode(file.path))
        with stream, pq.ParquetFile(stream, buffer_size=size, pre_buffer=False) as parquet:
            yield parquet
    except RemoteError as error:
        raise InputError(str(error)) from error
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: SourceFile, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).split("\n")[0].split(". Detail")[0]
    if _is_encrypted(error):
        return InputError(
            f"{file.path}: the file is encrypted, which batchrun does not read; write it again "
            "without encryption"
        )
    return InputError(
        f"{file.path}: cannot be read as Parquet ({reason:.300}); it is cut short, damaged or of "
        "another format: write the file again"
    )


def _is_encrypted(error: Exception) -> bool:
    return "crypt" in str(error)


def _encrypted(
    file: SourceFile, parquet: pq.ParquetFile, group: int, reader: _BatchReader
) -> InputError:
    """Names the columns that cannot be decrypted: their metadata may not even be looked at."""

    def is_readable(name: str) -> bool:
        try:
            next(parquet.iter_batches(1, row_groups=[group], columns=[name]), None)
        except OSError:
            return False
        return True

    names = list(dict.fromkeys(parquet.schema_arrow.names))
    readable = [name for name in names if is_readable(name)]
    hidden = [name for name in names if name not in readable and name in reader.needed]
    cure = "write the file again without encryption"
    if reader.may_send.isdisjoint(hidden):
        cure = f"leave out what is encrypted with {carry_options(readable)}, or {cure}"
    what = f"column `{hidden[0]}` is" if len(hidden) == 1 else f"columns {listed(hidden)} are"
    return InputError(f"{file.path}: {what} encrypted and cannot be read; {cure}")


def _partition_type(value: int | str | None) -> pa.DataType:
    """Values of one column are all numbers or all text, whatever the file, or null."""
    if value is None:
        return pa.null()
    return pa.int64() if isinstance(value, int) else pa.string()


def _json_reader(column: str, kind: pa.DataType) -> Values:
    """From an array to values for JSON, with `Unsendable` for those that cannot be read."""
    make = sendable(carried_type(own_type(kind)), column)

    def read(array: pa.Array) -> list[Any]:
        values = plain_values(array)
        return values if make is None else [v if v is None else make(v) for v in values]

    def read_each(array: pa.Array) -> list[Any]:
        unread: dict[int, Exception] = {}
        values = _salvaged(array, read, unread)
        for at, error in unread.items():
            values[at] = Unsendable(_said(array[at : at + 1], error)[0], None, column)
        return values

    return lambda array: _first_that_works(array, read, read_each)


def _first_that_works(array: pa.Array, read: Values, else_read: Values) -> list[Any]:
    try:
        return read(array)
    except (pa.ArrowException, ValueError, RowProblem):
        return else_read(array)


def _salvaged(
    array: pa.Array, read: Values, unread: dict[int, Exception], first: int = 0
) -> list[Any]:
    """The values, null for each that cannot be read; `unread` gets why, by its place."""
    try:
        return read(array)
    except (pa.ArrowException, ValueError, RowProblem) as error:
        if len(array) == 1:
            unread[first] = error
            return [None]
    half = len(array) // 2
    return [
        *_salvaged(array[:half], read, unread, first),
        *_salvaged(array[half:], read, unread, first + half),
    ]


def _said(array: pa.Array, error: Exception) -> tuple[str, bool]:
    """The one value of the array as a message shows it, and whether it can be read at all."""
    if isinstance(error, RowProblem):
        return error.message, False
    try:
        (value,) = plain_values(array)
        make = sendable(carried_type(own_type(array.type)))
        value = make(value) if make and value is not None else value
        return cut(to_json_text(value, leniently=True), _SHOWN), True
    except UnicodeDecodeError as wrong:
        text = wrong.object.decode(errors="backslashreplace")
        return f"text that is not UTF-8 ({cut(text, _SHOWN)})", False
    except (pa.ArrowException, ValueError) as wrong:
        return f"a value that cannot be read ({cut(str(wrong), _SHOWN)})", False


def _may_fit(kind: pa.DataType, own: pa.DataType, column: PinnedColumn) -> bool:
    """Whether values of the type can be put into the pinned one with nothing lost, if not all."""
    to = column.arrow
    if column.explicit:
        try:
            pa.array([], own).cast(to)
        except pa.ArrowNotImplementedError:
            return False
        return True
    are_numbers = _is.is_integer(to) and (_is.is_integer(own) or _is.is_floating(own))
    are_times = _is.is_timestamp(to) and _is.is_timestamp(own) and to.tz == own.tz
    are_texts = all(map(_is_text_or_bytes, (to, own)))
    return are_numbers or are_times or are_texts or unite([kind, to]) == to


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    is_text = _is.is_string(kind) or _is.is_large_string(kind)
    return bool(is_text or _is.is_binary(kind) or _is.is_large_binary(kind))


class _CarriedReader:
    """From arrays to the stored values of a column that the file has as `kind`.

    Raises `InputError` where the type cannot be put into the pinned one.
    """

    def __init__(
        self, file: SourceFile, column: PinnedColumn, kind: pa.DataType, check_only: bool
    ) -> None:
        own = carried_type(own_type(kind))
        is_text = _is.is_string(own) or _is.is_large_string(own)
        as_text = column.type == JSON or (
            column.explicit and column.type == "string" and not is_text
        )
        if not as_text and not _may_fit(kind, own, column):
            raise column.misfit_of_file(file, own)
        self._column, self._make = column, sendable(own)
        self._read = self._texts if as_text else (self._check if check_only else self._stored)

    def values(self, array: pa.Array, misfits: defaultdict[int, dict[str, str]]) -> list[Any]:
        """Null where a value cannot be stored: `misfits` then says why, by place and column."""
        try:
            return self._read(array)
        except (pa.ArrowException, ValueError, RowProblem):
            unread: dict[int, Exception] = {}
            # A check of some rows would look at all that a struct or list holds.
            read = self._stored if self._read == self._check else self._read
            values = _salvaged(array, read, unread)
            for at, error in unread.items():
                what, is_readable = _said(array[at : at + 1], error)
                misfit = self._column.misfit(what, is_readable=is_readable)
                misfits[at][self._column.name] = misfit
            return values

    def _stored(self, array: pa.Array) -> list[Any]:
        return plain_values(array, self._column.arrow)

    def _check(self, array: pa.Array) -> list[Any]:
        check_values(array, self._column.arrow)
        return []

    def _texts(self, array: pa.Array) -> list[Any]:
        make, fit = self._make, self._column.stored
        made = [v if v is None or make is None else make(v) for v in plain_values(array)]
        return [v if v is None else fit(v) for v in made]


def sendable(kind: pa.DataType, column: str = "") -> Callable[[Any], Any] | None:
    """From a stored value, not null, to one for JSON; None where they are the same.

    Nulls in objects are left out, NaN is null, maps become objects, times ISO text, decimals
    numbers, and bytes that are UTF-8 text. `column` is for messages.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return sendable(kind.storage_type, column)
    if _is.is_floating(kind):
        return partial(_number_or_null, column)
    if _is.is_decimal(kind):
        return lambda value: Decimal(value) if type(value) is str else value
    if _is.is_binary(kind) or _is.is_large_binary(kind) or _is.is_fixed_size_binary(kind):
        return partial(_text_or_bytes, column)
    if _is.is_temporal(kind):
        return _as_iso(kind)
    if _is.is_struct(kind):
        return _object(kind, column)
    if _is.is_map(kind):
        item = sendable(kind.item_type, column) or (lambda value: value)
        name = sendable(kind.key_type, column) or (lambda value: value)
        return lambda pairs: {
            str(name(pair["key"])): item(pair["value"])
            for pair in pairs
            if pair["value"] is not None
        }
    if is_list(kind):
        each = sendable(kind.value_type, column)
        return each and (lambda items: [None if item is None else each(item) for item in items])
    return None


def _number_or_null(column: str, value: float) -> Any:
    """NaN is how many tools write that there is no value; infinity is a value JSON cannot say."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else Unsendable(str(value), value, column)


def _text_or_bytes(column: str, value: bytes) -> Any:
    """Many tools write text without saying that it is text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Unsendable("binary", value, column)


def _object(kind: pa.DataType, column: str) -> Callable[[Any], Any]:
    makers = {field.name: made for field in kind.fields if (made := sendable(field.type, column))}

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
