"""Turns journal segments into parts ("seals" them), in steps between which it may crash.

1. Parts are written under temporary names and synced. If rows were sent again, the parts with
their older outcomes are rewritten without these. 2. A synced intent names the renames and the
segments. 3. The renames: `tool_calls` first, then `responses`. 4. The segments are deleted, in
order. 5. Rewritten parts replace the old ones. 6. The intent is deleted. A crash before step 2 is
rolled back: temporaries are deleted, and the segments are still there. After step 2, `finish` does
the remaining steps. The first deletion is the commit. Before it, an older outcome is in its part
and the new one in a segment, which counts. After it, the new parts count, and the new versions of
rewritten parts.

A run of schema 1 is rewritten part by part, and so is a run that begins to carry a further column.
`run.json` says so first, so that an older batchrun does not touch the directory. Each part, with
its tool calls, is written under a temporary name; an intent then replaces the old one. After a
crash, the next command continues with the parts that are not yet rewritten.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.records import Layout, Outcome, RowKey, RunRecord
from batchrun.remote.object_stores import MULTIPART_BYTES
from batchrun.remote.part_stubs import part_size
from batchrun.remote.run_link import Link, read_link
from batchrun.remote.run_upload import put_parts, replace_together
from batchrun.store.columns import (
    KEY,
    NO_COLUMNS,
    SCHEMA_VERSION,
    layout_of,
    response_schema,
    tool_call_schema,
    version_of,
)
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TABLES,
    TOOL_CALLS,
    FileId,
    id_of,
    make_folders,
    next_id,
    numbered,
    open_files,
    part_names,
    storing,
    sync_path,
    temporaries,
    writer_of,
)
from batchrun.store.journal import (
    READ_BYTES,
    Damage,
    Frame,
    Torn,
    damaged_path,
    read_outcomes,
    scan,
    set_aside,
)
from batchrun.store.merge.overlap import Overlap
from batchrun.store.parts import (
    Rewrite,
    keys_of,
    new_files,
    opened,
    read_part,
    rewrite_part,
    rewrite_without,
    with_variant,
    write_parts,
)
from batchrun.store.snapshot import Intent, read_intent, write_intent


def seal(folder: Path, record: RunRecord, segments: Sequence[str]) -> None:
    """Writes the outcomes of segments to parts, and syncs them. Raises `StoreError`.

    In a store no part is larger than one request, unless a single segment makes it: a larger upload
    has several requests, and a kill could leave some of them in the store, to be paid for.
    """
    last = id_of(segments[-1])
    with storing(folder / RESPONSES, "write parts"):
        try:
            intent = write_temporaries(folder, record, segments)
        except _TooLarge:
            half = len(segments) // 2
            seal(folder, record, segments[:half])
            seal(folder, record, segments[half:])
            return
        for name in segments:  # they count until one is deleted, also after a loss of power
            sync_path(folder / JOURNAL / name)
        sync_path(folder / JOURNAL)
        write_intent(folder, last, intent)
    finish(folder, last.intent)


class _TooLarge(Exception):  # noqa: N818 - the segments are sealed apart
    """Several segments would make a part that is too large."""


def finish_or_seal(folder: Path, record: RunRecord, segments: Sequence[str]) -> None:
    """As `seal`, if another process may have begun or finished it. Raises `StoreError`."""
    for name in segments:
        if (folder / JOURNAL / id_of(name).intent).exists():
            finish(folder, id_of(name).intent)
    remaining = [name for name in segments if (folder / JOURNAL / name).exists()]
    if remaining:
        seal(folder, record, remaining)


def write_temporaries(folder: Path, record: RunRecord, segments: Sequence[str]) -> Intent:
    """Does step 1; returns the intent. Raises `OSError`, `StoreError`, `_TooLarge`."""
    replaced, link = set[RowKey](), read_link(folder)
    outcomes, overlap = _outcomes(folder, segments, replaced), _overlap(folder, link, segments)
    if overlap is not None:
        outcomes, replaced = overlap.counting(outcomes), overlap.replaced
    with new_files() as files:
        renames = write_parts(files, folder, id_of(segments[-1]), outcomes, record)
        if link is not None and len(segments) > 1:
            sizes = [(folder / temporary).stat().st_size for temporary, _ in renames]
            if max(sizes, default=0) >= MULTIPART_BYTES:
                raise _TooLarge
        longer, change = ((), None) if overlap is None else (overlap.longer, overlap.lengthen)
        rewrites = rewrite_without(files, folder, replaced, record.layout, longer, change)
    return Intent(tuple(segments), renames, rewrites)


def _overlap(folder: Path, link: Link | None, segments: Sequence[str]) -> Overlap | None:
    """None unless another machine may have completed the same rows since."""
    if link is None or not link.is_doubtful:
        return None
    return Overlap(folder, {one.request.key for one in _outcomes(folder, segments, set())})


def _outcomes(folder: Path, segments: Sequence[str], replaced: set[RowKey]) -> Iterator[Outcome]:
    """The outcomes of segments; fills `replaced`. Raises `StoreError` for new damage."""
    for name in segments:
        path = folder / JOURNAL / name
        with path.open("rb", buffering=READ_BYTES) as file:
            for piece in read_outcomes(file):
                if isinstance(piece, Outcome):
                    if piece.replaces:
                        replaced.add(piece.request.key)
                    yield piece
                elif isinstance(piece, Torn) or not damaged_path(path, piece).exists():
                    raise StoreError(
                        f"{path}: damaged at offset {piece.offset} since it was written; check the "
                        "disk, then run the same command again: the rows lost are sent again"
                    )


def finish(folder: Path, name: str) -> None:
    """Does what is not done of steps 3 to 6 of the intent of this name. `StoreError`."""
    with storing(folder / JOURNAL / name, "finish a seal"):
        intent = read_intent(folder, name)
        if not intent.segments:  # if a new version is missing, the old one counts
            there = [new for new in intent.rewrites if _exists(folder, new, is_committed=True)]
            intent = replace(intent, rewrites=tuple(there))
        if rename_parts(folder, intent):
            _publish(folder, name, intent)
            delete_segments(folder, intent)
            replace_parts(folder, intent.rewrites)
        (folder / JOURNAL / name).unlink()
        sync_path(folder / JOURNAL)


def undo_seals(folder: Path) -> None:
    """Rolls back seals of which no segment is deleted yet. Raises `StoreError`.

    Their segments get new numbers, since other machines may know parts with the old ones.
    """
    journal = folder / JOURNAL
    with storing(journal, "undo a seal"):
        for name in numbered(journal, ".intent"):
            intent = read_intent(folder, name)
            if intent.is_committed(numbered(journal, ".log")):
                continue
            for part in (*chain(*intent.renames), *(new.source for new in intent.rewrites)):
                (folder / part).unlink(missing_ok=True)
            put_parts(folder, [part for _, part in intent.renames])
            (journal / name).unlink()
            for segment in intent.segments:
                (journal / segment).rename(journal / next_id(folder, id_of(segment).writer).segment)
        if journal.is_dir():
            sync_path(journal)


def rename_parts(folder: Path, intent: Intent) -> bool:
    """Does step 3; whether all parts are in place. If not, none is, and nothing is lost.

    Raises `OSError`; `StoreError` if a part is missing that no segment can replace.
    """
    journal, renames, rewrites = folder / JOURNAL, intent.renames, intent.rewrites
    is_committed = intent.is_committed([n for n in intent.segments if (journal / n).exists()])
    missing = [
        *(to for source, to in renames if not any((folder / one).exists() for one in (source, to))),
        *(new.to for new in rewrites if not _exists(folder, new, is_committed=is_committed)),
    ]
    if missing and is_committed:
        raise StoreError(
            f"{folder / missing[0]}: this part is missing, and its journal was already removed; "
            "restore the file"
        )
    if missing:  # the segments still hold every row: begin again
        for name in (*chain(*renames), *(new.source for new in rewrites)):
            (folder / name).unlink(missing_ok=True)
    else:
        for source, to in renames:
            with suppress(FileNotFoundError):  # done before the crash
                (folder / source).rename(folder / to)
    _sync_tables(folder, [to for _, to in renames])
    return not missing


def _publish(folder: Path, name: str, intent: Intent) -> None:
    """Uploads the parts of a run in a store, between 3 and 4. Raises `OSError`, `StoreError`."""
    parts = [to for _, to in intent.renames]
    if not intent.rewrites:
        put_parts(folder, parts, are_new=True)
        return
    deleted = [new.to for new in intent.rewrites if new.rows == 0]
    deleted += [new.replaces for new in intent.rewrites if new.replaces is not None]
    puts = [(part, part) for part in parts]
    puts += [
        (new.source, new.to)
        for new in intent.rewrites
        if new.rows != 0 and (folder / new.source).exists()
    ]
    replace_together(folder, name, puts, deleted)


def _exists(folder: Path, new: Rewrite, *, is_committed: bool) -> bool:
    """Whether there is a new version of a part, with a temporary or its final name."""
    if (folder / new.source).exists():
        return True
    part = folder / new.to
    return is_committed and (part_size(part) == new.bytes if part.exists() else new.rows == 0)


def delete_segments(folder: Path, intent: Intent) -> None:
    """Step 4. Synced before the intent is deleted, or a loss of power could double rows."""
    for name in intent.segments:
        (folder / JOURNAL / name).unlink(missing_ok=True)
    sync_path(folder / JOURNAL)


def replace_parts(folder: Path, rewrites: Sequence[Rewrite]) -> None:
    """Step 5. Synced before the intent is deleted, for the same reason. Raises `OSError`."""
    for new in rewrites:
        with suppress(FileNotFoundError):  # done before the crash
            (folder / new.source).rename(folder / new.to)
        if new.replaces is not None:
            (folder / new.replaces).unlink(missing_ok=True)
        if new.rows == 0:
            (folder / new.to).unlink(missing_ok=True)
    _sync_tables(folder, [new.to for new in rewrites])


def _sync_tables(folder: Path, parts: Sequence[str]) -> None:
    for table in sorted({(folder / part).parent for part in parts}):
        sync_path(table)


class Recovered(Struct, frozen=True):
    """What earlier processes left."""

    segments: tuple[str, ...]  # the names of those with outcomes that are in no part
    has_parts: bool
    warnings: tuple[str, ...]


def recover(folder: Path, writer: int | None = None) -> Recovered:
    """Finishes or rolls back interrupted seals, then repairs each segment. Raises `StoreError`.

    `writer`: only of this one, while others write; None: of all, which are dead.
    """
    journal = folder / JOURNAL

    def is_meant(name: str) -> bool:
        return writer is None or writer_of(name) == writer

    warnings: list[str] = []
    segments = []
    with storing(folder, "recover"):
        for name in filter(is_meant, numbered(journal, ".intent")):
            finish(folder, name)
        for name in filter(is_meant, temporaries(folder, "", JOURNAL, *TABLES)):
            (folder / name).unlink()
        for name in filter(is_meant, open_files(journal)):
            _repair(journal / name, warnings)
        for name in filter(is_meant, numbered(journal, ".log")):
            if _repair(journal / name, warnings):
                segments.append(name)
            else:
                (journal / name).unlink()
        parts = list(filter(is_meant, part_names(folder, RESPONSES)))
    return Recovered(tuple(segments), bool(parts), tuple(warnings))


def _repair(path: Path, warnings: list[str]) -> int:
    """Cuts an incomplete end, moves damaged bytes; how many rows remain. Raises `OSError`."""
    rows = 0
    with path.open("rb", buffering=READ_BYTES) as file:
        for piece in scan(file):
            match piece:
                case Frame(offset):
                    rows += offset > 0  # the header is at 0
                case Damage():
                    if warning := set_aside(path, piece):
                        warnings.append(warning)
                case Torn(offset):
                    os.truncate(path, offset)
                    sync_path(path)
    return rows


def upgraded(record: RunRecord) -> RunRecord:
    """The new `run.json`: carried columns may have other names."""
    record = replace(
        record,
        schema_version=SCHEMA_VERSION,
        older_schema=record.schema_version,
        layout=layout_of(record.layout, SCHEMA_VERSION),
    )
    done = record.totals.rows
    if record.state == "finished" and done < record.rows:  # as schema 1 called a reached limit
        message = f"limit: {done:,} of {record.rows:,} rows done"
        return replace(record, state="limited", message=message)
    return record


def rewrite_parts(folder: Path, layout: Layout) -> None:
    """Rewrites all parts to this schema, with these columns. Raises `StoreError`."""
    kinds = {
        TOOL_CALLS: (tool_call_schema(), NO_COLUMNS),
        RESPONSES: (response_schema(layout), layout),
    }
    older: dict[FileId, list[str]] = {}
    with storing(folder, "list"):
        for part in part_names(folder, TOOL_CALLS, RESPONSES):
            with opened(folder / part) as file:
                found = file.schema_arrow
            wanted, _ = kinds[part.partition("/")[0]]
            if (version_of(found) or 1) < SCHEMA_VERSION or not found.equals(wanted):
                older.setdefault(id_of(part), []).append(part)
        if older:  # a copy of a run directory may lack empty folders
            make_folders(folder / JOURNAL)
    for of, parts in sorted(older.items()):
        tables = [part.partition("/")[0] for part in parts]
        with storing(folder / tables[0], "write parts"):
            with new_files() as files:
                rewrites = [
                    rewrite_part(files, folder, part, *kinds[table])
                    for part, table in zip(parts, tables, strict=True)
                ]
            write_intent(folder, of, Intent((), (), tuple(rewrites)))
        finish(folder, of.intent)


def name_variant(folder: Path, of: FileId, layout: Layout, name: str) -> None:
    """Gives all rows without a variant this one, in one step. Raises `StoreError`.

    `of`: a free id, for the intent.
    """
    kinds = {
        TOOL_CALLS: (tool_call_schema(), NO_COLUMNS),
        RESPONSES: (response_schema(layout), layout),
    }
    with storing(folder, "write parts"):
        parts = part_names(folder, TOOL_CALLS, RESPONSES)
        if not parts:
            return
        make_folders(folder / JOURNAL)
        change = partial(with_variant, name=name)
        with new_files() as files:
            rewrites = [
                rewrite_part(files, folder, part, *kinds[part.partition("/")[0]], change=change)
                for part in parts
            ]
        write_intent(folder, of, Intent((), (), tuple(rewrites)))
    finish(folder, of.intent)


def drop_rows(folder: Path, keys: Collection[RowKey], layout: Layout) -> None:
    """Removes the rows of these keys from all parts, which are of this schema then.

    Only for rows without an answer. The journal must be empty. Raises `StoreError`.
    """
    with storing(folder / RESPONSES, "write"):
        with new_files() as files:
            rewrites = rewrite_without(files, folder, keys, layout)
        if not rewrites:
            return
        make_folders(folder / JOURNAL)
        of = id_of(rewrites[0].to)
        write_intent(folder, of, Intent((), (), rewrites))
    finish(folder, of.intent)


def drop_orphan_calls(folder: Path) -> None:
    """Removes tool calls without a row from the parts. Raises `StoreError`.

    Each file is replaced as a whole; it can be repeated after a crash.
    """
    with storing(folder / TOOL_CALLS, "write"):
        rewrites = []
        with new_files() as files:
            for calls in part_names(folder, TOOL_CALLS):
                # The calls of a part's rows are in the part of the same name.
                parts = [one for one in part_names(folder, RESPONSES) if id_of(one) == id_of(calls)]
                orphans = _keys(folder / calls).difference(*(_keys(folder / one) for one in parts))
                if orphans:
                    with opened(folder / calls) as part:
                        schema = part.schema_arrow
                    rewrites.append(rewrite_part(files, folder, calls, schema, dropped=orphans))
        replace_parts(folder, rewrites)
        put_parts(folder, [new.to for new in rewrites])


def _keys(path: Path) -> set[RowKey]:
    return {key for batch in read_part(path, KEY) for key in keys_of(batch)}
