"""Tool calls whose row was deleted with its part, taken out: else it would have them twice."""

from pathlib import Path

import pyarrow.parquet as pq

from batchrun.records import RowKey
from batchrun.store.disk import storing, sync_file
from batchrun.store.intent import Intent
from batchrun.store.keys import KEY, Keys
from batchrun.store.names import RESPONSES, TOOL_CALLS, id_of, numbered
from batchrun.store.part_files import read_part
from batchrun.store.rewrite import rewritten
from batchrun.store.seal import replace_parts


def drop_orphan_calls(folder: Path) -> None:
    """No tool call in a part is without its row when this returns. Raises `StoreError`.

    Each file is replaced as a whole; after a crash it may be done again.
    """
    with storing(folder / TOOL_CALLS, "write"):
        rewrites = []
        for name in numbered(folder / TOOL_CALLS, ".parquet"):
            orphans = _orphans(folder, name)
            if orphans:
                path = folder / TOOL_CALLS / name
                rewrites.append(rewritten(path, orphans, pq.read_schema(path)))
        for rewrite in rewrites:
            sync_file(folder / rewrite.source)
        replace_parts(folder, Intent((), (), tuple(rewrites)))


def _orphans(folder: Path, calls: str) -> Keys:
    """Of one part; a seal gives the calls of its rows its own name."""
    rows: set[RowKey] = set()
    for name in numbered(folder / RESPONSES, ".parquet"):
        if id_of(name) == id_of(calls):
            rows.update(_keys(folder / RESPONSES / name))
    orphans = Keys()
    for key in _keys(folder / TOOL_CALLS / calls) - rows:
        orphans.add(key)
    return orphans


def _keys(path: Path) -> set[RowKey]:
    return {
        key
        for batch in read_part(path, KEY)
        for key in zip(*(batch[name].to_pylist() for name in KEY), strict=True)
    }
