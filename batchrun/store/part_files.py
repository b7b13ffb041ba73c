"""Parts read, a batch in memory at a time; a row that the journal holds anew is left out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.errors import StoreError
from batchrun.store.disk import storing
from batchrun.store.keys import KEY
from batchrun.store.names import RESPONSES, TOOL_CALLS, numbered
from batchrun.store.snapshot import Snapshot

BATCH_ROWS = 16_384
TABLES = (RESPONSES, TOOL_CALLS)
# What pyarrow raises where a file does not hold what it should; a name may be no UTF-8 any more.
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def read_part(
    path: Path, columns: tuple[str, ...] | None, batch_rows: int = BATCH_ROWS
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


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A part; what goes wrong inside becomes a `StoreError` about it."""
    with storing(path, "read"):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as part:
                yield part
        except DAMAGED as error:
            if is_from_system(error):
                raise
            raise StoreError(
                f"{path}: damaged ({error}); put back a copy of it, or start a new run directory"
            ) from error


def count_rows(folder: Path) -> dict[str, int]:
    """The parts of both tables, with their folder, and how many rows each holds. `StoreError`."""
    rows = {}
    with storing(folder, "list"):
        parts = [
            folder / table / n for table in TABLES for n in numbered(folder / table, ".parquet")
        ]
    for path in parts:
        with opened(path) as part:
            rows[f"{path.parent.name}/{path.name}"] = part.metadata.num_rows
    return rows


def _check_columns(part: pq.ParquetFile, wanted: Sequence[str]) -> None:
    """Raises `ArrowInvalid` where a column is gone; pyarrow would leave it out without a word."""
    leaves = {part.schema.column(at).path for at in range(len(part.schema))}
    there = leaves.union(part.schema_arrow.names)
    for name in wanted:
        if name not in there:
            raise pa.ArrowInvalid(f"it has no column {name}")


def is_from_system(error: Exception) -> bool:
    """Whether the file could not be read, rather than what it holds. pyarrow raises both alike."""
    return isinstance(error, OSError) and (error.errno is not None or "[errno " in str(error))


def read_standing(now: Snapshot, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """These columns of all rows of `responses` that stand in parts. Raises `StoreError`."""
    for path in now.responses:
        yield from read_standing_part(now, path, columns)


def read_standing_part(
    now: Snapshot, path: Path, columns: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    """The same of one part of `now`."""
    if not now.replaced:
        yield from read_part(path, columns)
        return
    for batch in read_part(path, tuple(dict.fromkeys((*columns, *KEY)))):
        yield now.replaced.left_of(batch)
