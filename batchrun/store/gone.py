"""`gone.parquet`: the rows of a run's tables that are not in the input any more, by name.

It is what the user has agreed to leave out, and what other tools can leave out by.
"""

from array import array
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.errors import StoreError
from batchrun.store.disk import replace_file, storing
from batchrun.store.keys import KEY, as_mask, hash_keys
from batchrun.store.part_files import read_part, read_standing
from batchrun.store.snapshot import snapshot

GONE_FILE = "gone.parquet"
_COLUMNS = ("row", *KEY)
_TYPES = (pa.int64(), pa.string(), pa.int32(), pa.string())
_SCHEMA = pa.schema(list(zip(_COLUMNS, _TYPES, strict=True)))


def write_gone(folder: Path, marks: bytearray) -> None:
    """The file names the rows that `marks` marks, in the order of `read_settled`.

    Without any, `marks` may be empty, and there is no file. Raises `StoreError`.
    """
    path = folder / GONE_FILE
    if 1 not in marks:  # nearly always: no part is opened for it
        with storing(path, "write"):
            path.unlink(missing_ok=True)
        return
    with snapshot(folder) as now, storing(path, "write"):
        buffer, at = pa.BufferOutputStream(), 0
        with pq.ParquetWriter(buffer, _SCHEMA, compression="zstd") as file:
            for batch in read_standing(now, _COLUMNS):
                gone = batch.filter(as_mask(marks[at : at + batch.num_rows]))
                at += batch.num_rows
                if gone.num_rows:
                    file.write_batch(gone.select(_COLUMNS).cast(_SCHEMA))
            kept = [o.request for o, mark in zip(now.outcomes(), marks[at:], strict=True) if mark]
            rows = [(request.row, *request.key) for request in kept]
            if rows:
                columns = map(pa.array, zip(*rows, strict=True), _SCHEMA.types)
                file.write_batch(pa.record_batch(list(columns), _SCHEMA))
        replace_file(path, buffer.getvalue().to_pybytes(), durable=True)


def read_gone(folder: Path) -> "array[int]":
    """This process's hash of each key in the file, in order; none where it is damaged.

    Then the rows are asked about anew. Raises `StoreError` where it cannot be read.
    """
    hashes: list[int] = []
    path = folder / GONE_FILE
    if path.exists():
        try:
            for batch in read_part(path, None):
                hashes += hash_keys(batch)
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
                raise
            return array("q")
    return array("q", sorted(hashes))
