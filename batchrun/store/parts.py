"""Parts being written, also anew without the rows that are replaced."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.records import Layout, Outcome, Response
from batchrun.store.columns import (
    REPEATING,
    SCHEMA_VERSION,
    as_schema,
    response_batch,
    response_schema,
    tool_call_batch,
    tool_call_schema,
)
from batchrun.store.columns import TOOL_CALLS as TOOL_CALL_SCHEMA
from batchrun.store.files import (
    RESPONSES,
    TOOL_CALLS,
    FileId,
    id_of,
    is_not_ok,
    make_folders,
    numbered,
    part_name,
    sync_file,
    sync_folder,
    temporary_name,
)
from batchrun.store.keys import KEY, Keys
from batchrun.store.snapshot import Rewrite

# A slice is what is in memory as rows: below 1,000 a row costs more. A row group is what readers
# skip or take whole: large, so that it scans well.
SLICE_ROWS = 1_000
_SLICE_BYTES = 4 << 20
_GROUP_ROWS = 16_384
_GROUP_BYTES = 24 << 20


def write_parts(
    folder: Path,
    of: FileId,
    outcomes: Iterable[Outcome],
    layout: Layout,
    *,
    store_request: bool,
    version: int = SCHEMA_VERSION,
) -> tuple[tuple[str, str], ...]:
    """The renames (from, to, in order) that will make the parts count; none without outcomes.

    The files are on disk when this returns. Raises `OSError`, having removed them.
    """
    schema = response_schema(layout, version)
    calls = PartFile(folder / TOOL_CALLS, part_name(of), tool_call_schema(version))
    ok = PartFile(folder / RESPONSES, part_name(of), schema)
    not_ok = PartFile(folder / RESPONSES, part_name(of, not_ok=True), schema)
    parts = (calls, ok, not_ok)
    try:
        make_folders(calls.folder, ok.folder)
        for outcomes_slice in _slices(outcomes):
            fine: list[Outcome] = []
            others: list[Outcome] = []
            for outcome in outcomes_slice:
                (fine if outcome.ok else others).append(outcome)
            for part, kept in ((ok, fine), (not_ok, others)):
                if kept:
                    part.add(
                        response_batch(kept, layout, store_request=store_request, version=version)
                    )
            calls.add(tool_call_batch(outcomes_slice, version))
        written = [part for part in parts if part.finish()]
        for part in written:
            sync_file(part.temporary)
        for table in {part.folder for part in written}:
            sync_folder(table)
    except BaseException:
        for part in parts:
            part.drop()
        raise
    return tuple(part.rename for part in written)


class PartFile:
    """One Parquet file being written; made when its first row group is."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.folder = folder
        self.temporary = folder / temporary_name(name)
        self.rename = (f"{folder.name}/{temporary_name(name)}", f"{folder.name}/{name}")
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
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
                use_dictionary=[name for name in REPEATING if _holds(self._schema, name)],
                write_statistics=True,
                write_page_checksum=True,  # a flipped bit is found, and costs 1 % to write
            )
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._batches, self._rows, self._bytes = [], 0, 0


def _holds(schema: pa.Schema, path: str) -> bool:
    return path.partition(".")[0] in schema.names


def _slices(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Outcomes in lists that are short and, but for single large ones, light."""
    kept: list[Outcome] = []
    weight = 0
    for outcome in outcomes:
        kept.append(outcome)
        weight += _weight(outcome)
        if len(kept) >= SLICE_ROWS or weight >= _SLICE_BYTES:
            yield kept
            kept, weight = [], 0
    if kept:
        yield kept


def _weight(outcome: Outcome) -> int:
    """About how many bytes the outcome holds: the two fields that can be large."""
    result = outcome.result
    answer = len(result.output) if isinstance(result, Response) else 0
    return len(outcome.request.body) + answer


_BATCH_ROWS = 1_024  # in memory at a time, whole rows
_SAME: Mapping[str, str] = {}


def write_rewrites(folder: Path, keys: Keys, layout: Layout) -> tuple[Rewrite, ...]:
    """The parts that hold rows of these keys, made anew without them.

    The files are on disk when this returns. Raises `OSError`, having removed them.
    """
    if not keys:
        return ()
    written: list[Rewrite] = []
    try:
        _write(folder, keys, response_schema(layout), written)
    except BaseException:
        for rewrite in written:
            with suppress(OSError):
                (folder / rewrite.source).unlink()
        raise
    return tuple(written)


def _write(folder: Path, keys: Keys, schema: pa.Schema, written: list[Rewrite]) -> None:
    left = len(keys)
    found_in = set()
    for name in _likely_first(numbered(folder / RESPONSES, ".parquet")):
        if not left:
            break
        found = _count(folder / RESPONSES / name, keys)
        if found:
            left -= found
            found_in.add(id_of(name))
            written.append(rewritten(folder / RESPONSES / name, keys, schema))
    for of in sorted(filter(None, found_in)):  # a seal gives the calls of its rows its own name
        path = folder / TOOL_CALLS / part_name(of)
        if path.exists() and _count(path, keys):
            written.append(rewritten(path, keys, TOOL_CALL_SCHEMA))
    for rewrite in written:
        sync_file(folder / rewrite.source)
    for table in {(folder / rewrite.to).parent for rewrite in written}:
        sync_folder(table)


def _likely_first(names: Sequence[str]) -> list[str]:
    """Parts of rows that are not ok come first."""
    return sorted(names, key=lambda name: not is_not_ok(name))


def _count(path: Path, keys: Keys) -> int:
    count = 0
    with pq.ParquetFile(path) as part:
        for batch in part.iter_batches(columns=list(KEY)):
            found = keys.found_in(batch)
            count += 0 if found is None else found.true_count
    return count


def rewritten(
    path: Path,
    keys: Keys | None,
    schema: pa.Schema,
    *,
    name: str | None = None,
    names: Mapping[str, str] = _SAME,
) -> Rewrite:
    """One part, made anew without these rows; not synced. Raises `OSError`.

    `name`: of the new part, where it has another one; `names`: see `as_schema`.
    """
    new = PartFile(path.parent, name or path.name, schema)
    rows = 0
    try:
        with pq.ParquetFile(path) as part:
            new.add(_empty(schema))
            for batch in part.iter_batches(_BATCH_ROWS):
                left = batch if keys is None else keys.left_of(batch)
                if left.num_rows:
                    rows += left.num_rows
                    new.add(as_schema(left, schema, names))
        new.finish()
    except BaseException:
        new.drop()
        raise
    source, to = new.rename
    before = f"{path.parent.name}/{path.name}"
    size = new.temporary.stat().st_size
    return Rewrite(
        source, to, size, rows if keys is not None else None, before if before != to else None
    )


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    """So that there is a file even where no row is left."""
    return pa.RecordBatch.from_pylist([], schema)
