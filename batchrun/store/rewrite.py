"""Parts written anew without the rows that a seal replaces, under temporary names."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.records import Layout
from batchrun.store.disk import sync_file, sync_folder
from batchrun.store.intent import Rewrite
from batchrun.store.keys import KEY, Keys
from batchrun.store.names import RESPONSES, TOOL_CALLS, id_of, is_not_ok, numbered, part_name
from batchrun.store.parts import PartFile
from batchrun.store.schema import TOOL_CALLS as TOOL_CALL_SCHEMA
from batchrun.store.schema import as_schema, response_schema

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
