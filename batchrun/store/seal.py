"""A seal: journal segments become parts, in steps that a crash may fall between.

1. Parts are written under temporary names and synced. 2. A synced intent names the renames and
the segments. 3. The renames: `tool_calls` first, then `responses`. 4. The segments are deleted,
in order. 5. The intent is deleted. A crash before 2 is rolled back (temporaries go, the segments
are still there); after it, `finish` does what is left.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from batchrun.errors import StoreError
from batchrun.records import Outcome, RunRecord
from batchrun.store.damage import damaged_path
from batchrun.store.disk import storing, sync_folder
from batchrun.store.intent import Intent, read_intent, write_intent
from batchrun.store.journal import Damage, Torn, read_outcomes
from batchrun.store.names import (
    JOURNAL,
    RESPONSES,
    intent_name,
    number_of,
)
from batchrun.store.parts import write_parts

_READ_BYTES = 1 << 20


def seal(folder: Path, record: RunRecord, segments: Sequence[str]) -> None:
    """The segments' outcomes are in parts, on disk, when this returns. Raises `StoreError`."""
    number = prepare(folder, record, segments)
    finish(folder, intent_name(number))


def prepare(folder: Path, record: RunRecord, segments: Sequence[str]) -> int:
    """Steps 1 and 2: parts under temporary names, and the intent. The seal's number is returned.

    Raises `StoreError`.
    """
    number = number_of(segments[-1]) or 0
    with storing(folder / RESPONSES, "write parts"):
        renames = write_temporaries(folder, record, segments)
        write_intent(folder, number, Intent(tuple(segments), renames))
    return number


def write_temporaries(
    folder: Path, record: RunRecord, segments: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Step 1; the renames still to be done. Raises `OSError`, `StoreError`."""
    return write_parts(
        folder,
        number_of(segments[-1]) or 0,
        _outcomes(folder, segments),
        record.layout,
        store_request=record.store_request,
    )


def finish(folder: Path, name: str) -> None:
    """Steps 3 to 5 of the intent of this name, as far as they are not done. Raises `StoreError`."""
    with storing(folder / JOURNAL / name, "finish a seal"):
        intent = read_intent(folder, name)
        if rename_parts(folder, intent):
            delete_segments(folder, intent)
        (folder / JOURNAL / name).unlink()
        sync_folder(folder / JOURNAL)


def rename_parts(folder: Path, intent: Intent) -> bool:
    """Step 3; whether the parts are all in place. If they cannot be, none is, nor is one lost.

    Raises `OSError`; `StoreError` where a part is gone that no segment can replace.
    """
    gone = [to for source, to in intent.renames if not _either(folder, source, to)]
    if gone:
        if any(not (folder / JOURNAL / name).exists() for name in intent.segments):
            raise StoreError(
                f"{folder / gone[0]}: this part is missing, and its journal was already removed; "
                "put the file back"
            )
        for source, to in intent.renames:  # the segments still hold every row: start over
            for path in (folder / source, folder / to):
                path.unlink(missing_ok=True)
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


def _either(folder: Path, source: str, to: str) -> bool:
    return (folder / source).exists() or (folder / to).exists()


def _sync_tables(folder: Path, intent: Intent) -> None:
    for table in sorted({(folder / to).parent for _, to in intent.renames}):
        sync_folder(table)


def _is_known(path: Path, piece: Damage | Torn) -> bool:
    return isinstance(piece, Damage) and damaged_path(path, piece).exists()


def _outcomes(folder: Path, segments: Sequence[str]) -> Iterator[Outcome]:
    """All outcomes of the segments. Raises `StoreError` at damage that nobody was told of."""
    for name in segments:
        path = folder / JOURNAL / name
        with path.open("rb", buffering=_READ_BYTES) as file:
            for piece in read_outcomes(file):
                if isinstance(piece, Outcome):
                    yield piece
                elif not _is_known(path, piece):
                    raise StoreError(
                        f"{path}: damaged at offset {piece.offset} since it was written; check the "
                        "disk, then run the same command again: the rows lost are sent again"
                    )
