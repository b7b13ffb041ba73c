"""Parts being written: outcomes to temporary Parquet files, in slices of bounded memory."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.records import Layout, Outcome, Response
from batchrun.store.columns import response_batch, tool_call_batch
from batchrun.store.disk import make_folders, sync_file, sync_folder
from batchrun.store.names import RESPONSES, TOOL_CALLS, FileId, part_name, temporary_name
from batchrun.store.schema import (
    REPEATING,
    SCHEMA_VERSION,
    response_schema,
    tool_call_schema,
)

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
