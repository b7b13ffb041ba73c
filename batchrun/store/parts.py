"""Parquet parts: read and checked, written, and written anew without some rows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Layout, Outcome, Response, RowKey
from batchrun.store.columns import (
    KEY,
    NO_COLUMNS,
    SCHEMA_VERSION,
    as_schema,
    repeating_columns,
    response_batch,
    response_schema,
    tool_call_batch,
    tool_call_schema,
)
from batchrun.store.files import (
    RESPONSES,
    TOOL_CALLS,
    FileId,
    current_name,
    id_of,
    is_not_ok,
    make_folders,
    numbered,
    storing,
    sync_path,
    temporary_name,
)

TABLES = (RESPONSES, TOOL_CALLS)
# What pyarrow raises where a file does not hold what it should; a name may be no UTF-8 any more.
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
_BATCH_ROWS = 16_384
# A slice is what is in memory as rows: below 1,000 a row costs more. A row group is what readers
# skip or take whole: large, so that it scans well.
SLICE_ROWS = 1_000
_SLICE_BYTES = 4 << 20
_GROUP_ROWS = 16_384
_GROUP_BYTES = 24 << 20
_REWRITE_ROWS = 1_024  # in memory at a time, whole rows


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A part; what goes wrong inside becomes a `StoreError` about it."""
    with storing(path, "read"):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as part:
                yield part
        except DAMAGED as error:
            # pyarrow raises alike where a file cannot be read and where it is damaged.
            if isinstance(error, OSError) and (error.errno is not None or "[errno " in str(error)):
                raise
            raise StoreError(
                f"{path}: damaged ({error}); put back a copy of it, or start a new run directory"
            ) from error


def read_part(
    path: Path, columns: Sequence[str] | None, batch_rows: int = _BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """A part's rows, these columns alone (null: all). Raises `StoreError`."""
    with opened(path) as part:
        wanted = None if columns is None else list(columns)
        _check_columns(part, wanted or ())
        rows = 0
        for batch in part.iter_batches(batch_rows, columns=wanted):
            rows += batch.num_rows
            yield batch
        if rows != part.metadata.num_rows:
            raise pa.ArrowInvalid(f"it holds {rows} of {part.metadata.num_rows} rows")


def _check_columns(part: pq.ParquetFile, wanted: Sequence[str]) -> None:
    """Raises `ArrowInvalid` for a missing column; pyarrow would leave it out without a word."""
    leaves = {part.schema.column(at).path for at in range(len(part.schema))}
    for name in wanted:
        if name not in leaves and name not in part.schema_arrow.names:
            raise pa.ArrowInvalid(f"it has no column {name}")


def count_rows(folder: Path) -> dict[str, int]:
    """The parts of both tables, with their folder, and how many rows each holds. `StoreError`."""
    with storing(folder, "list"):
        names = [f"{one}/{name}" for one in TABLES for name in numbered(folder / one, ".parquet")]
    rows = {}
    for name in names:
        with opened(folder / name) as part:
            rows[name] = part.metadata.num_rows
    return rows


class Keys:
    """Rows known by their keys, to be found in batches: as many as a segment or two can hold."""

    def __init__(self, keys: Iterable[RowKey] = ()) -> None:
        self._keys = set(keys)
        self._ids: pa.Array | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: RowKey) -> bool:
        return key in self._keys

    def add(self, key: RowKey) -> None:
        self._keys.add(key)
        self._ids = None

    def table(self) -> pa.Table:
        """All of them, in the columns of `KEY`."""
        schema = pa.schema([response_schema(NO_COLUMNS).field(name) for name in KEY])
        return pa.Table.from_pylist([dict(zip(KEY, k, strict=True)) for k in self._keys], schema)

    def found_in(self, batch: pa.RecordBatch) -> pa.BooleanArray | None:
        """True for each row of the batch that is one of these; null where none is."""
        if not self._keys or not batch.num_rows:
            return None
        if self._ids is None:
            self._ids = pa.array(sorted({custom_id for custom_id, *_ in self._keys}), pa.string())
        same_id = pc.is_in(batch["custom_id"], value_set=self._ids)
        places = pc.indices_nonzero(same_id).to_pylist()
        keys = keys_of(batch.select(KEY).take(places)) if places else ()
        marks = bytearray(batch.num_rows)
        for at, key in zip(places, keys, strict=True):
            marks[at] = key in self._keys
        return as_mask(marks) if 1 in marks else None

    def left_out(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch without these rows."""
        found = self.found_in(batch)
        return batch if found is None else batch.filter(pc.invert(found))


def keys_of(batch: pa.RecordBatch | pa.Table) -> Iterator[RowKey]:
    """The key of each row."""
    return zip(*(batch[name].to_pylist() for name in KEY), strict=True)


def as_mask(marks: bytearray | memoryview) -> pa.BooleanArray:
    """One byte for each row, as Arrow wants it."""
    values = pa.Array.from_buffers(pa.uint8(), len(marks), [None, pa.py_buffer(marks)])
    return pc.not_equal(values, 0)


class PartFile:
    """One Parquet file being written; made when its first row group is."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.folder = folder
        self.temporary = folder / temporary_name(name)
        self.rename = (f"{folder.name}/{temporary_name(name)}", f"{folder.name}/{name}")
        self.rows = 0
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._group_rows = self._group_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self.rows += batch.num_rows
        self._group_rows += batch.num_rows
        self._group_bytes += batch.nbytes
        if self._group_rows >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._write_group()

    def finish(self) -> bool:
        """Whether there is a file: there is one if anything was added, be it without rows."""
        if self._batches:
            self._write_group()
        if self._writer is None:
            return False
        self._writer.close()
        return True

    def drop(self) -> None:
        """Frees what was written: the disk may be full."""
        with suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
        with suppress(OSError):
            self.temporary.unlink()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._batches, self._schema)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.temporary,
                self._schema,
                compression="zstd",
                compression_level=1,  # 3 takes half as long again and saves an eighth
                use_dictionary=repeating_columns(self._schema),
                write_statistics=True,
                write_page_checksum=True,  # a flipped bit is found, and costs 1 % to write
            )
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._batches, self._group_rows, self._group_bytes = [], 0, 0


@contextmanager
def new_files() -> Iterator[list[PartFile]]:
    """Collects the files that the block writes, under temporary names.

    They are on disk when it ends, and removed where it fails. Raises `OSError`.
    """
    files: list[PartFile] = []
    try:
        yield files
        written = [file for file in files if file.temporary.exists()]
        for file in written:
            sync_path(file.temporary)
        for folder in {file.folder for file in written}:
            sync_path(folder)
    except BaseException:
        for file in files:
            file.drop()
        raise


def write_parts(
    files: list[PartFile],
    folder: Path,
    of: FileId,
    outcomes: Iterable[Outcome],
    layout: Layout,
    *,
    store_request: bool,
    version: int = SCHEMA_VERSION,
) -> tuple[tuple[str, str], ...]:
    """The renames (from, to, in order) that will make the parts count; none without outcomes.

    `files`: of the `new_files` block that it stands in. Raises `OSError`.
    """
    schema = response_schema(layout, version)
    calls = PartFile(folder / TOOL_CALLS, of.part(), tool_call_schema(version))
    ok = PartFile(folder / RESPONSES, of.part(), schema)
    not_ok = PartFile(folder / RESPONSES, of.part(not_ok=True), schema)
    files += (calls, ok, not_ok)
    make_folders(calls.folder, ok.folder)
    for outcomes_slice in _slices(outcomes):
        by_ok: dict[bool, list[Outcome]] = {True: [], False: []}
        for outcome in outcomes_slice:
            by_ok[outcome.ok].append(outcome)
        for part, chosen in ((ok, by_ok[True]), (not_ok, by_ok[False])):
            if chosen:
                part.add(
                    response_batch(chosen, layout, store_request=store_request, version=version)
                )
        calls.add(tool_call_batch(outcomes_slice, version))
    return tuple(part.rename for part in (calls, ok, not_ok) if part.finish())


def _slices(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Outcomes in lists that are short and, but for single large ones, light."""
    some: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        some.append(outcome)
        result = outcome.result
        # About how many bytes it holds: the two fields that can be large.
        size += len(outcome.request.body)
        size += len(result.output) if isinstance(result, Response) else 0
        if len(some) >= SLICE_ROWS or size >= _SLICE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


class Rewrite(Struct, frozen=True):
    """A part that is to be replaced by a new version of itself. Paths are relative to the run."""

    source: str  # its new version
    to: str
    bytes: int  # of the new version: how it is told from the old one once it is renamed
    rows: int | None  # of the new version; without any, the part goes; null: it stays in any case
    replaces: str | None = None  # the old version, where it has another name than the new one


def rewrite_part(
    files: list[PartFile],
    path: Path,
    schema: pa.Schema,
    layout: Layout = NO_COLUMNS,
    *,
    without: Keys | None = None,
) -> Rewrite:
    """One part with the columns of `schema`, `without` some rows. Raises `OSError`, `StoreError`.

    `files`: of the `new_files` block that it stands in; `layout`: see `as_schema`.
    """
    new = PartFile(path.parent, current_name(path.name), schema)
    files.append(new)
    new.add(pa.RecordBatch.from_pylist([], schema))  # there is a file even where no row remains
    for batch in read_part(path, None, _REWRITE_ROWS):
        rows = batch if without is None else without.left_out(batch)
        if rows.num_rows:
            new.add(as_schema(rows, schema, layout))
    new.finish()
    source, to = new.rename
    before = f"{path.parent.name}/{path.name}"
    return Rewrite(
        source,
        to,
        new.temporary.stat().st_size,
        None if without is None else new.rows,
        before if before != to else None,
    )


def rewrite_without(
    files: list[PartFile], folder: Path, keys: Keys, layout: Layout
) -> tuple[Rewrite, ...]:
    """The parts that hold rows of these keys, rewritten without them. As `rewrite_part`."""
    remaining = len(keys)
    rewrites, changed = [], set()
    names = numbered(folder / RESPONSES, ".parquet") if keys else ()
    for name in sorted(names, key=lambda name: not is_not_ok(name)):  # the likely ones first
        path = folder / RESPONSES / name
        if remaining and (found := _count(path, keys)):
            remaining -= found
            changed.add(id_of(name))
            schema = response_schema(layout)
            rewrites.append(rewrite_part(files, path, schema, layout, without=keys))
    for of in sorted(changed):  # a seal gives the calls of its rows its own name
        path = folder / TOOL_CALLS / of.part()
        if path.exists() and _count(path, keys):
            rewrites.append(rewrite_part(files, path, tool_call_schema(), without=keys))
    return tuple(rewrites)


def _count(path: Path, keys: Keys) -> int:
    masks = (keys.found_in(batch) for batch in read_part(path, KEY))
    return sum(mask.true_count for mask in masks if mask is not None)
