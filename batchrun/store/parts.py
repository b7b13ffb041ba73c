"""Parquet parts: reads and checks them, writes them, and rewrites them without some rows."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Layout, Outcome, Response, RowKey, RunRecord
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.part_stubs import part_file
from batchrun.store.columns import (
    KEY,
    NO_COLUMNS,
    as_schema,
    repeating_columns,
    response_batch,
    response_schema,
    tool_call_batch,
    tool_call_schema,
)
from batchrun.store.files import (
    RESPONSES,
    TABLES,
    TOOL_CALLS,
    FileId,
    current_name,
    id_of,
    make_folders,
    part_names,
    storing,
    sync_path,
    temporary_name,
)

# What pyarrow raises for a damaged file; a column name may no longer be UTF-8.
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
_BATCH_ROWS = 16_384
# A slice is in memory as rows; below 1,000 a row costs more. A row group is what readers skip or
# read as a whole, so it is large, for fast scans.
SLICE_ROWS = 1_000
_SLICE_BYTES = 4 << 20
_GROUP_ROWS = 16_384
_GROUP_BYTES = 24 << 20
_REWRITE_ROWS = 1_024  # whole rows in memory at a time


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a part; errors in the block become a `StoreError` about it."""
    with storing(path, "read"):
        try:
            with pq.ParquetFile(part_file(path), page_checksum_verification=True) as part:
                yield part
        except RemoteError:
            raise
        except DAMAGED as error:
            # pyarrow raises the same for a file that cannot be read and for a damaged one.
            if isinstance(error, OSError) and (error.errno is not None or "[errno " in str(error)):
                raise
            raise StoreError(
                f"{path}: damaged ({error}); restore a copy of it, or start a new run directory"
            ) from error


def read_part(
    path: Path,
    columns: Sequence[str] | None,
    batch_rows: int = _BATCH_ROWS,
    most_bytes: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a part, with these columns only (None: all). Raises `StoreError`.

    `most_bytes`: about the size of a batch's values; without it, large rows make large batches.
    """
    with opened(path) as part:
        wanted = None if columns is None else list(columns)
        _check_columns(part, wanted or ())
        if most_bytes is not None:
            batch_rows = max(1, min(batch_rows, most_bytes // _row_bytes(part, wanted)))
        rows = 0
        for batch in part.iter_batches(batch_rows, columns=wanted):
            rows += batch.num_rows
            yield batch
        if rows != part.metadata.num_rows:
            raise pa.ArrowInvalid(f"it holds {rows} of {part.metadata.num_rows} rows")


def _row_bytes(part: pq.ParquetFile, wanted: Collection[str] | None) -> int:
    """Bytes of a row's values in these columns, in the row group where they are largest."""
    largest = 1
    for number in range(part.num_row_groups):
        group = part.metadata.row_group(number)
        columns = (group.column(at) for at in range(group.num_columns))
        size = sum(
            column.total_uncompressed_size
            for column in columns
            if wanted is None or column.path_in_schema.partition(".")[0] in wanted
        )
        largest = max(largest, size // max(group.num_rows, 1))
    return largest


def _check_columns(part: pq.ParquetFile, wanted: Sequence[str]) -> None:
    """Raises `ArrowInvalid` for a missing column, which pyarrow would silently leave out.

    Only the Arrow schema is used. `part.schema` and the file's metadata refer to each other and
    keep 0.3 MB a part until the garbage is collected, which happens seldom in a run; and pyarrow
    crashes when it names a column of damaged metadata.
    """
    schema = part.schema_arrow
    for name in wanted:
        if name not in schema.names and not _has_path(schema, name):
            raise pa.ArrowInvalid(f"it has no column {name}")


def _has_path(schema: pa.Schema, path: str) -> bool:
    """Whether there is a field of this path, such as `attempts.list.element.cost_usd`."""
    fields = pa.struct(schema)
    for step in path.split("."):
        if pa.types.is_list(fields):
            if step == "list":
                continue
            if step != fields.value_field.name:
                return False
            fields = fields.value_type
        elif not pa.types.is_struct(fields) or (at := fields.get_field_index(step)) < 0:
            return False
        else:
            fields = fields.field(at).type
    return True


def count_rows(folder: Path) -> dict[str, int]:
    """The parts of both tables, with their folder, and the rows of each. Raises `StoreError`."""
    with storing(folder, "list"):
        names = part_names(folder, *TABLES)
    rows = {}
    for name in names:
        with opened(folder / name) as part:
            rows[name] = part.metadata.num_rows
    return rows


def keys_of(batch: pa.RecordBatch | pa.Table) -> Iterator[RowKey]:
    """The keys of the rows."""
    return zip(*(batch[name].to_pylist() for name in KEY), strict=True)


def found_in(batch: pa.RecordBatch, keys: Collection[RowKey]) -> pa.BooleanArray:
    """For each row of the batch, whether it has one of these keys."""
    return as_mask(bytearray(key in keys for key in keys_of(batch)))


def without(batch: pa.RecordBatch, keys: Collection[RowKey]) -> pa.RecordBatch:
    """The batch without the rows that have these keys."""
    return batch.filter(pc.invert(found_in(batch, keys))) if keys and batch.num_rows else batch


def as_mask(marks: bytearray | memoryview) -> pa.BooleanArray:
    """From one byte for each row to a mask of Arrow."""
    values = pa.Array.from_buffers(pa.uint8(), len(marks), [None, pa.py_buffer(marks)])
    return pc.not_equal(values, 0)


class PartFile:
    """A Parquet file that is being written; made with its first row group."""

    def __init__(self, run: Path, name: str, schema: pa.Schema) -> None:
        """`name`: its final name, with the folder."""
        self.rename = (temporary_name(name), name)
        self.path = run / temporary_name(name)
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
        """Ends it; whether there is a file: yes if anything was added, even without rows."""
        if self._batches:
            self._write_group()
        if self._writer is None:
            return False
        self._writer.close()
        return True

    def drop(self) -> None:
        """Deletes what was written: the disk may be full."""
        with suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
        with suppress(OSError):
            self.path.unlink()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._batches, self._schema)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.path,
                self._schema,
                compression="zstd",
                compression_level=1,  # 3 takes half as long again, and saves an eighth of the bytes
                use_dictionary=repeating_columns(self._schema),
                write_statistics=True,
                write_page_checksum=True,  # finds a flipped bit; costs 1 % of the writing
            )
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._batches, self._group_rows, self._group_bytes = [], 0, 0


@contextmanager
def new_files() -> Iterator[list[PartFile]]:
    """Temporary files that the block writes: synced when it ends, removed if it fails."""
    files: list[PartFile] = []
    try:
        yield files
        paths = [file.path for file in files if file.path.exists()]
        for path in (*paths, *{path.parent for path in paths}):
            sync_path(path)
    except BaseException:
        for file in files:
            file.drop()
        raise


def write_parts(
    files: list[PartFile],
    run: Path,
    of: FileId,
    outcomes: Iterable[Outcome],
    record: RunRecord,
) -> tuple[tuple[str, str], ...]:
    """Writes parts; returns the renames (from, to, in order) that will make them count.

    `files`: of the surrounding `new_files` block. Raises `OSError`.
    """
    layout, version, stores = record.layout, record.schema_version, record.store_request
    schema = response_schema(layout, version)
    calls = PartFile(run, of.part(TOOL_CALLS), tool_call_schema(version))
    ok = PartFile(run, of.part(RESPONSES), schema)
    not_ok = PartFile(run, of.part(RESPONSES, not_ok=True), schema)
    files += (calls, ok, not_ok)
    make_folders(run / TOOL_CALLS, run / RESPONSES)
    for outcomes_slice in slices(outcomes):
        by_ok: dict[bool, list[Outcome]] = {True: [], False: []}
        for outcome in outcomes_slice:
            by_ok[outcome.ok].append(outcome)
        for part, chosen in ((ok, by_ok[True]), (not_ok, by_ok[False])):
            if chosen:
                part.add(response_batch(chosen, layout, version, store_request=stores))
        calls.add(tool_call_batch(outcomes_slice, version))
    return tuple(part.rename for part in (calls, ok, not_ok) if part.finish())


def slices(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Outcomes in lists with few of them and few bytes, except single large ones."""
    some: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        some.append(outcome)
        result = outcome.result
        # About its bytes, from the two fields that can be large.
        size += len(outcome.request.body)
        size += len(result.output) if isinstance(result, Response) else 0
        if len(some) >= SLICE_ROWS or size >= _SLICE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


Change = Callable[[pa.RecordBatch], pa.RecordBatch]


class Rewrite(Struct, frozen=True):
    """A part that a new version of it will replace. Paths are relative to the run."""

    source: str  # its new version
    to: str
    bytes: int  # of the new version; distinguishes it from the old one after the rename
    rows: int | None  # of the new version; 0: the part is deleted; None: it always stays
    replaces: str | None = None  # the old version, if its name is another one


def rewrite_part(
    files: list[PartFile],
    run: Path,
    part: str,
    schema: pa.Schema,
    layout: Layout = NO_COLUMNS,
    *,
    dropped: Collection[RowKey] = (),
    change: Change | None = None,
) -> Rewrite:
    """Rewrites a part with the columns of `schema` and without the rows `dropped`.

    `change`: makes the rows that remain, with these columns. `files`: of the surrounding
    `new_files` block; `layout`: see `as_schema`. Raises `OSError`, `StoreError`.
    """
    new = PartFile(run, current_name(part), schema)
    files.append(new)
    new.add(pa.RecordBatch.from_pylist([], schema))  # makes a file even if no row remains
    for batch in read_part(run / part, None, _REWRITE_ROWS):
        rows = without(batch, dropped)
        if rows.num_rows:
            rows = as_schema(rows, schema, layout)
            new.add(rows if change is None else change(rows))
    new.finish()
    source, to = new.rename
    size, rows_left = new.path.stat().st_size, new.rows if dropped else None
    return Rewrite(source, to, size, rows_left, part if part != to else None)


def with_variant(rows: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """The rows; those without a variant have this one."""
    at = rows.schema.names.index("variant")
    return rows.set_column(at, rows.schema.field(at), pc.fill_null(rows["variant"], name))


def rewrite_without(
    files: list[PartFile],
    run: Path,
    keys: Collection[RowKey],
    layout: Layout,
    changed_keys: Collection[RowKey] = (),
    change: Change | None = None,
) -> tuple[Rewrite, ...]:
    """Rewrites the parts with rows of these keys, without these. As `rewrite_part`.

    `changed_keys`: of rows that `change` makes other rows of.
    """
    wanted = {*keys, *changed_keys} if changed_keys else keys
    remaining = len(wanted)
    rewrites, changed = [], set()
    names = part_names(run, RESPONSES) if wanted else ()
    # Parts of rows that are not ok come first.
    for part in sorted(names, key=lambda part: part == id_of(part).part(RESPONSES)):
        if remaining and (found := count_keys(run / part, wanted)):
            remaining -= found
            changed.add(id_of(part))
            schema = response_schema(layout)
            new = rewrite_part(files, run, part, schema, layout, dropped=keys, change=change)
            rewrites.append(new)
    for of in sorted(changed):  # the calls of a part's rows are in the part of the same name
        part = of.part(TOOL_CALLS)
        if keys and (run / part).exists() and count_keys(run / part, keys):
            rewrites.append(rewrite_part(files, run, part, tool_call_schema(), dropped=keys))
    return tuple(rewrites)


def count_keys(path: Path, keys: Collection[RowKey]) -> int:
    """How many rows of a part have one of these keys. Raises `StoreError`."""
    return sum(found_in(batch, keys).true_count for batch in read_part(path, KEY))
