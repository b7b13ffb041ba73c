"""A seal: journal segments become parts, in steps that a crash may fall between.

1. Parts are written under temporary names and synced; where rows were sent again, so are the
parts that hold their older outcomes, without these. 2. A synced intent names the renames and the
segments. 3. The renames: `tool_calls` first, then `responses`. 4. The segments are deleted, in
order. 5. Parts written anew replace the old ones. 6. The intent is deleted. A crash before 2 is
rolled back (temporaries go, the segments are still there); after it, `finish` does what is left.
The first deletion is the commit: before it an older outcome stands in its part and the new one in
a segment, which wins; after it the new parts count, and of a part to be replaced the new version.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from batchrun.errors import StoreError
from batchrun.records import Outcome, RunRecord
from batchrun.store.damage import is_set_aside
from batchrun.store.disk import storing, sync_file, sync_folder
from batchrun.store.intent import Intent, Rewrite, read_intent, write_intent
from batchrun.store.journal import Torn, read_outcomes
from batchrun.store.keys import Keys
from batchrun.store.names import JOURNAL, RESPONSES, FileId, id_of, intent_name
from batchrun.store.parts import write_parts
from batchrun.store.rewrite import write_rewrites

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
