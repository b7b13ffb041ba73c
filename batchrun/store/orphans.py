"""Tool calls whose row was deleted with its part, taken out: else it would have them twice."""

from pathlib import Path

from batchrun.store.disk import storing, sync_file
from batchrun.store.intent import Intent
from batchrun.store.keys import KEY, Keys
from batchrun.store.names import RESPONSES, TOOL_CALLS, number_of, numbered, part_name
from batchrun.store.part_files import read_part
from batchrun.store.rewrite import rewritten
from batchrun.store.schema import TOOL_CALLS as TOOL_CALL_SCHEMA
from batchrun.store.seal import replace_parts


def drop_orphan_calls(folder: Path) -> None:
    """No tool call in a part is without its row when this returns. Raises `StoreError`.

    Each file is replaced as a whole; after a crash it may be done again.
    """
    with storing(folder / TOOL_CALLS, "write"):
        rewrites = []
        for name in numbered(folder / TOOL_CALLS, ".parquet"):
            orphans = _orphans(folder, number_of(name) or 0)
            if orphans:
                rewrites.append(rewritten(folder / TOOL_CALLS / name, orphans, TOOL_CALL_SCHEMA))
        for rewrite in rewrites:
            sync_file(folder / rewrite.source)
        replace_parts(folder, Intent((), (), tuple(rewrites)))


def _orphans(folder: Path, number: int) -> Keys:
    """Of one part; a seal gives the calls of its rows its own number."""
    rows: set[tuple[str, int]] = set()
    for name in (part_name(number), part_name(number, other=True)):
        path = folder / RESPONSES / name
        if path.exists():
            rows.update(_keys(path))
    orphans = Keys()
    for custom_id, sample in _keys(folder / TOOL_CALLS / part_name(number)) - rows:
        orphans.add(custom_id, sample)
    return orphans


def _keys(path: Path) -> set[tuple[str, int]]:
    return {
        key
        for batch in read_part(path, KEY)
        for key in zip(*(batch[name].to_pylist() for name in KEY), strict=True)
    }
