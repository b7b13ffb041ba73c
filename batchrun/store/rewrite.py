"""Parts written anew without the rows that a seal replaces, under temporary names."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.records import Layout
from batchrun.store.disk import sync_file, sync_folder
from batchrun.store.intent import Rewrite
from batchrun.store.keys import KEY, Keys
from batchrun.store.names import RESPONSES, TOOL_CALLS, number_of, numbered, part_name
from batchrun.store.parts import PartFile
from batchrun.store.schema import TOOL_CALLS as TOOL_CALL_SCHEMA
from batchrun.store.schema import response_schema

_BATCH_ROWS = 1_024  # in memory at a time, whole rows


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
    numbers = set()
    for name in _likely_first(numbered(folder / RESPONSES, ".parquet")):
        if not left:
            break
        found = _count(folder / RESPONSES / name, keys)
        if found:
            left -= found
            numbers.add(number_of(name) or 0)
            written.append(rewritten(folder / RESPONSES / name, keys, schema))
    for number in sorted(numbers):  # a seal gives the calls of its rows its own number
        path = folder / TOOL_CALLS / part_name(number)
        if path.exists() and _count(path, keys):
            written.append(rewritten(path, keys, TOOL_CALL_SCHEMA))
    for rewrite in written:
        sync_file(folder / rewrite.source)
    for table in {(folder / rewrite.to).parent for rewrite in written}:
        sync_folder(table)


def _likely_first(names: Sequence[str]) -> list[str]:
    """Parts of rows that are not ok come first."""
    others = {part_name(number_of(name) or 0, other=True) for name in names}
    return sorted(names, key=lambda name: name not in others)


def _count(path: Path, keys: Keys) -> int:
    count = 0
    with pq.ParquetFile(path) as part:
        for batch in part.iter_batches(columns=list(KEY)):
            found = keys.found_in(batch)
            count += 0 if found is None else found.true_count
    return count


def rewritten(path: Path, keys: Keys, schema: pa.Schema) -> Rewrite:
    """One part, made anew without these rows; not synced. Raises `OSError`."""
    new = PartFile(path.parent, path.name, schema)
    rows = 0
    try:
        with pq.ParquetFile(path) as part:
            new.add(_empty(schema))
            for batch in part.iter_batches(_BATCH_ROWS):
                left = keys.left_of(batch)
                if left.num_rows:
                    rows += left.num_rows
                    new.add(left if left.schema.equals(schema) else left.cast(schema))
        new.finish()
    except BaseException:
        new.drop()
        raise
    source, to = new.rename
    return Rewrite(source, to, new.temporary.stat().st_size, rows)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    """So that there is a file even where no row is left."""
    return pa.RecordBatch.from_pylist([], schema)
