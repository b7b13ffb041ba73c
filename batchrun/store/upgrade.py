"""A run directory of schema 1 rewritten to this one, part by part, before its first new row.

`run.json` says so first, so that an older batchrun leaves the directory alone. Each part, with
its tool calls, is written anew under a temporary name; an intent then replaces the old one. After
a crash the next command goes on with the parts that are still of schema 1.
"""

from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from batchrun.records import Layout, RunRecord
from batchrun.store.disk import make_folders, storing, sync_file, sync_folder
from batchrun.store.intent import Intent, Rewrite, write_intent
from batchrun.store.names import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    FileId,
    id_of,
    intent_name,
    name_now,
    numbered,
)
from batchrun.store.part_files import opened
from batchrun.store.rewrite import rewritten
from batchrun.store.schema import (
    SCHEMA_VERSION,
    layout_of,
    new_names,
    response_schema,
    tool_call_schema,
    version_of,
)
from batchrun.store.seal import finish


def upgraded(record: RunRecord) -> RunRecord:
    """What `run.json` says from now on: carried columns may have other names."""
    record = replace(
        record,
        schema_version=SCHEMA_VERSION,
        older_schema=record.schema_version,
        layout=layout_of(record.layout, SCHEMA_VERSION),
    )
    done = record.totals.rows
    if record.state == "finished" and done < record.rows:  # as schema 1 said of a limit
        message = f"limit: {done:,} of {record.rows:,} rows done"
        return replace(record, state="limited", message=message)
    return record


def rewrite_parts(folder: Path, layout: Layout) -> None:
    """All parts are of this schema when this returns. Raises `StoreError`."""
    older: dict[FileId, list[Path]] = {}
    with storing(folder, "list"):
        for table in (TOOL_CALLS, RESPONSES):
            for name in numbered(folder / table, ".parquet"):
                of = id_of(name)
                if of is not None and _version(folder / table / name) < SCHEMA_VERSION:
                    older.setdefault(of, []).append(folder / table / name)
        if older:  # a copy of a run directory may have lost its empty folders
            make_folders(folder / JOURNAL)
    for of, paths in sorted(older.items()):
        with storing(paths[0].parent, "write parts"):
            _rewrite(folder, of, paths, layout)


def _rewrite(folder: Path, of: FileId, paths: list[Path], layout: Layout) -> None:
    """The parts of one seal. Raises `OSError`, `StoreError`."""
    rewrites: list[Rewrite] = []
    try:
        for path in paths:
            version = _version(path)
            is_calls = path.parent.name == TOOL_CALLS
            schema = tool_call_schema() if is_calls else response_schema(layout)
            names = {} if is_calls else new_names(layout, version)
            new = rewritten(path, None, schema, name=name_now(path.name), names=names)
            rewrites.append(new)
            sync_file(folder / new.source)
        for table in {path.parent for path in paths}:
            sync_folder(table)
        write_intent(folder, of, Intent((), (), tuple(rewrites)))
    except BaseException:
        for new in rewrites:
            with suppress(OSError):
                (folder / new.source).unlink()
        raise
    finish(folder, intent_name(of))


def _version(path: Path) -> int:
    with opened(path) as part:
        return version_of(part.schema_arrow) or 1
