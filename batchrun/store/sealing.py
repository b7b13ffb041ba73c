"""Journal segments become parts, in steps that a crash may fall between.

1. Parts are written under temporary names and synced; where rows were sent again, so are the
parts that hold their older outcomes, without these. 2. A synced intent names the renames and the
segments. 3. The renames: `tool_calls` first, then `responses`. 4. The segments are deleted, in
order. 5. Parts written anew replace the old ones. 6. The intent is deleted. A crash before 2 is
rolled back (temporaries go, the segments are still there); after it, `finish` does what is left.
The first deletion is the commit: before it an older outcome stands in its part and the new one in
a segment, which wins; after it the new parts count, and of a part to be replaced the new version.

`run.json` says so first, so that an older batchrun leaves the directory alone. Each part, with
its tool calls, is written anew under a temporary name; an intent then replaces the old one. After
a crash the next command goes on with the parts that are still of schema 1.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.records import Layout, Outcome, RowKey, RunRecord
from batchrun.store.columns import (
    SCHEMA_VERSION,
    layout_of,
    new_names,
    response_schema,
    tool_call_schema,
    version_of,
)
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    FileId,
    id_of,
    intent_name,
    make_folders,
    name_now,
    numbered,
    open_files,
    storing,
    sync_file,
    sync_folder,
    temporaries,
)
from batchrun.store.journal import (
    Damage,
    Frame,
    Torn,
    damage_warning,
    is_set_aside,
    read_outcomes,
    scan,
    set_aside,
)
from batchrun.store.keys import KEY, Keys
from batchrun.store.parts import rewritten, write_parts, write_rewrites
from batchrun.store.snapshot import Intent, Rewrite, opened, read_intent, read_part, write_intent

_READ_BYTES = 1 << 20


def seal(folder: Path, record: RunRecord, segments: Sequence[str]) -> None:
    """The segments' outcomes are in parts, on disk, when this returns. Raises `StoreError`."""
    finish(folder, intent_name(prepare(folder, record, segments)))


def finish_or_seal(folder: Path, record: RunRecord, segments: Sequence[str]) -> None:
    """`seal`, where another process may have begun it, or done it all. Raises `StoreError`."""
    intent = intent_name(_last(segments))
    if (folder / JOURNAL / intent).exists():
        finish(folder, intent)
    if (folder / JOURNAL / segments[-1]).exists():
        seal(folder, record, segments)


def prepare(folder: Path, record: RunRecord, segments: Sequence[str]) -> FileId:
    """Steps 1 and 2: parts under temporary names, and the intent. What they are called by.

    Raises `StoreError`.
    """
    last = _last(segments)
    with storing(folder / RESPONSES, "write parts"):
        intent = write_temporaries(folder, record, segments)
        for name in segments:  # they count until one is gone: after a loss of power too
            sync_file(folder / JOURNAL / name)
        sync_folder(folder / JOURNAL)
        write_intent(folder, last, intent)
    return last


def write_temporaries(folder: Path, record: RunRecord, segments: Sequence[str]) -> Intent:
    """Step 1, and what is still to be done. Raises `OSError`, `StoreError`."""
    replaced = Keys()
    renames = write_parts(
        folder,
        _last(segments),
        _outcomes(folder, segments, replaced),
        record.layout,
        store_request=record.store_request,
    )
    try:
        rewrites = write_rewrites(folder, replaced, record.layout)
    except BaseException:
        for source, _ in renames:
            with suppress(OSError):
                (folder / source).unlink()
        raise
    return Intent(tuple(segments), renames, rewrites)


def finish(folder: Path, name: str) -> None:
    """Steps 3 to 6 of the intent of this name, as far as they are not done. Raises `StoreError`."""
    with storing(folder / JOURNAL / name, "finish a seal"):
        intent = read_intent(folder, name)
        if not intent.segments:  # where a new version is gone, the old one stands
            there = [new for new in intent.rewrites if _is_at_hand(folder, new, is_committed=True)]
            intent = Intent((), intent.renames, tuple(there))
        if rename_parts(folder, intent):
            delete_segments(folder, intent)
            replace_parts(folder, intent)
        (folder / JOURNAL / name).unlink()
        sync_folder(folder / JOURNAL)


def rename_parts(folder: Path, intent: Intent) -> bool:
    """Step 3; whether the parts are all in place. If they cannot be, none is, nor is one lost.

    Raises `OSError`; `StoreError` where a part is gone that no segment can replace.
    """
    journal = folder / JOURNAL
    is_committed = intent.is_committed([n for n in intent.segments if (journal / n).exists()])
    gone = [to for source, to in intent.renames if not _either(folder, source, to)]
    gone += [
        new.to for new in intent.rewrites if not _is_at_hand(folder, new, is_committed=is_committed)
    ]
    if gone:
        if is_committed:
            raise StoreError(
                f"{folder / gone[0]}: this part is missing, and its journal was already removed; "
                "put the file back"
            )
        for source, to in intent.renames:  # the segments still hold every row: start over
            for path in (folder / source, folder / to):
                path.unlink(missing_ok=True)
        for new in intent.rewrites:
            (folder / new.source).unlink(missing_ok=True)
        _sync_tables(folder, intent)
        return False
    for source, to in intent.renames:
        with suppress(FileNotFoundError):  # done before the crash
            (folder / source).rename(folder / to)
    _sync_tables(folder, intent)
    return True


def delete_segments(folder: Path, intent: Intent) -> None:
    """Step 4. Synced before the intent goes: else a loss of power could bring rows twice."""
    for name in intent.segments:
        (folder / JOURNAL / name).unlink(missing_ok=True)
    sync_folder(folder / JOURNAL)


def replace_parts(folder: Path, intent: Intent) -> None:
    """Step 5. Synced before the intent goes, for the same reason. Raises `OSError`."""
    for new in intent.rewrites:
        with suppress(FileNotFoundError):  # done before the crash
            (folder / new.source).rename(folder / new.to)
        if new.replaces is not None:
            (folder / new.replaces).unlink(missing_ok=True)
        if new.rows == 0:
            (folder / new.to).unlink(missing_ok=True)
    for table in sorted({(folder / new.to).parent for new in intent.rewrites}):
        sync_folder(table)


def _is_at_hand(folder: Path, new: Rewrite, *, is_committed: bool) -> bool:
    """Whether the new version of a part waits, or already has the part's name."""
    if (folder / new.source).exists():
        return True
    part = folder / new.to
    return is_committed and (part.stat().st_size == new.bytes if part.exists() else new.rows == 0)


def _either(folder: Path, source: str, to: str) -> bool:
    return (folder / source).exists() or (folder / to).exists()


def _sync_tables(folder: Path, intent: Intent) -> None:
    for table in sorted({(folder / to).parent for _, to in intent.renames}):
        sync_folder(table)


def _last(segments: Sequence[str]) -> FileId:
    """What a seal is called by."""
    last = id_of(segments[-1])
    assert last is not None  # noqa: S101 - segments are listed by such names
    return last


def _outcomes(folder: Path, segments: Sequence[str], replaced: Keys) -> Iterator[Outcome]:
    """All outcomes of the segments; `replaced` gets the keys of those that replace others.

    Raises `StoreError` at damage that nobody was told of.
    """
    for name in segments:
        path = folder / JOURNAL / name
        with path.open("rb", buffering=_READ_BYTES) as file:
            for piece in read_outcomes(file):
                if isinstance(piece, Outcome):
                    if piece.replaces:
                        replaced.add(piece.request.key)
                    yield piece
                elif isinstance(piece, Torn) or not is_set_aside(path, piece):
                    raise StoreError(
                        f"{path}: damaged at offset {piece.offset} since it was written; check the "
                        "disk, then run the same command again: the rows lost are sent again"
                    )


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


_READ_BYTES = 1 << 20


class Recovered(Struct, frozen=True):
    """What earlier processes left."""

    segments: tuple[str, ...]  # names, each with outcomes that are in no part
    parts: int  # of `responses`
    warnings: tuple[str, ...]


def recover(folder: Path) -> Recovered:
    """Finishes or rolls back interrupted seals, then mends each segment. Raises `StoreError`."""
    journal = folder / JOURNAL
    warnings: list[str] = []
    segments = []
    with storing(folder, "recover"):
        for name in numbered(journal, ".intent"):
            finish(folder, name)
        for place in (folder, journal, folder / RESPONSES, folder / TOOL_CALLS):
            for path in temporaries(place):
                path.unlink()
        for name in open_files(journal):
            _mend(journal / name, warnings)
        for name in numbered(journal, ".log"):
            if _mend(journal / name, warnings):
                segments.append(name)
            else:
                (journal / name).unlink()
        parts = len(numbered(folder / RESPONSES, ".parquet"))
    return Recovered(tuple(segments), parts, tuple(warnings))


def _mend(path: Path, warnings: list[str]) -> int:
    """Cuts a torn tail, sets damaged bytes aside; how many rows are left. Raises `OSError`."""
    rows = 0
    cut_at = None
    with path.open("rb", buffering=_READ_BYTES) as file:
        for piece in scan(file):
            match piece:
                case Frame():
                    rows += piece.offset > 0  # the header stands at 0
                case Damage():
                    if set_aside(path, piece):
                        warnings.append(damage_warning(path, piece))
                case Torn():
                    cut_at = piece.offset
    if cut_at is not None:
        os.truncate(path, cut_at)
        sync_file(path)
    return rows


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
