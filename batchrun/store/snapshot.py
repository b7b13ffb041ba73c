"""The content of a run directory at one moment, for readers while a writer works on it.

A seal that has begun has an intent. While all segments that it names exist, they count, and its
parts do not. When one of them is deleted, its parts count, and the remaining segments do not; parts
that it replaces count with their new versions, under temporary names until they have their own. An
intent without segments, for parts that are rewritten to this schema, counts at once.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import pyarrow as pa
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Outcome, RowKey
from batchrun.remote.part_stubs import is_replaced
from batchrun.store.columns import KEY, response_batch
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TABLES,
    FileId,
    current_name,
    final_name,
    id_of,
    is_numbered,
    numbered,
    part_names,
    replace_file,
    storing,
    temporaries,
    temporary_name,
)
from batchrun.store.journal import READ_BYTES, Frame, frame_of, may_replace, read_outcomes, scan
from batchrun.store.parts import SLICE_ROWS, Rewrite, keys_of, read_part, without

_ATTEMPTS = 1_000  # each failure means that a seal took a step meanwhile, ...
_AT_ONCE = 100  # ... or, after so many, that a file system shows another host's steps late
_PAUSE_S = 0.1

T = TypeVar("T")
Stamp = tuple[int, int, int]  # inode, size and time, which identify a version of a file


class Snapshot(Struct, frozen=True):
    """Files with each row exactly once, whatever step a seal has reached.

    A row that was sent again and is not sealed yet is in a segment, and its older outcome is in a
    part. `replaced` has its key; the segment counts.
    """

    responses: tuple[Path, ...]  # parts
    tool_calls: tuple[Path, ...]
    # Open, so that a seal may delete them; with the number of outcomes that count, None: all.
    segments: tuple[tuple[BinaryIO, int | None], ...]
    replaced: frozenset[RowKey]
    stamps: tuple[Stamp, ...]  # of the parts of both tables

    def outcomes(self) -> Iterator[Outcome]:
        """The rows in the journal, except damaged or incomplete ones. Raises `StoreError`."""
        for file, count in self.segments:
            with storing(file.name, "read"):
                found = (piece for piece in read_outcomes(file) if isinstance(piece, Outcome))
                yield from islice(found, count)

    def batches(self, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Columns of all rows of `responses`, those in parts first. Raises `StoreError`."""
        for path in self.responses:
            yield from self.part_batches(path, columns)
        yield from self.journal_batches(columns)

    def part_batches(
        self, path: Path, columns: Collection[str], most_bytes: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The same for one part of `responses`, without rows that the journal replaces.

        `most_bytes`: about the size of a batch's values.
        """
        wanted = dict.fromkeys((*columns, *KEY) if self.replaced else columns)
        for batch in read_part(path, list(wanted), most_bytes=most_bytes):
            yield without(batch, self.replaced)

    def journal_batches(self, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The same for the journal; for a path into a column, the whole column."""
        outcomes, names = self.outcomes(), dict.fromkeys(name.partition(".")[0] for name in columns)
        while some := list(islice(outcomes, SLICE_ROWS)):
            yield response_batch(some, names=names)

    def is_current(self) -> bool:
        """Whether no seal has replaced a part since, so that the paths are still right."""
        try:
            return self.stamps == _stamps((*self.responses, *self.tool_calls))
        except FileNotFoundError:
            return False

    def is_outdated(self) -> bool:
        """Whether a store has a new version of a part already, whose stub is about to come."""
        return any(map(is_replaced, (*self.responses, *self.tool_calls)))


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """The files that count now. Raises `StoreError`.

    Two equal listings in a row show one moment: names come and go, but a name never comes back
    while the same intent exists.
    """
    with ExitStack() as files:
        with storing(folder, "list"):
            for attempt in range(_ATTEMPTS):
                if attempt > _AT_ONCE:
                    time.sleep(_PAUSE_S)
                listing = _list(folder)
                with ExitStack() as opened, suppress(FileNotFoundError):
                    taken = _take(folder, listing, opened)
                    if _list(folder) == listing:
                        files.push(opened.pop_all())
                        break
            else:
                raise _too_fast(folder)
        yield taken


def read_snapshot(folder: Path, read: Callable[[Snapshot], T]) -> T:
    """Calls `read` with the files that count now. Raises `StoreError` and what `read` raises.

    It is called again if a seal replaced a part meanwhile.
    """
    return read_snapshots([folder], lambda now: read(now[0]))


def read_snapshots(folders: Sequence[Path], read: Callable[[Sequence[Snapshot]], T]) -> T:
    """The same for several run directories, each at its own moment."""
    outdated = 0
    for _ in range(_ATTEMPTS):
        with ExitStack() as stack:
            taken = [stack.enter_context(snapshot(folder)) for folder in folders]
            try:
                found = read(taken)
            except StoreError:
                if all(now.is_current() for now in taken):
                    if not any(now.is_outdated() for now in taken):
                        raise
                    outdated += 1
                    if outdated > _AT_ONCE:
                        break
                    time.sleep(_PAUSE_S)
                continue
            if all(now.is_current() for now in taken):
                return found
    raise _too_fast(folders[0])


def _too_fast(folder: Path) -> StoreError:
    return StoreError(f"{folder}: its files change faster than they can be read; try again")


def _list(folder: Path) -> tuple[Sequence[str], ...]:
    """Lists intents, segments, parts, and files that will be parts."""
    journal = folder / JOURNAL
    intents, segments = numbered(journal, ".intent"), numbered(journal, ".log")
    return intents, segments, part_names(folder, *TABLES), temporaries(folder, *TABLES)


def _take(folder: Path, listing: tuple[Sequence[str], ...], opened: ExitStack) -> Snapshot:
    """Raises `FileNotFoundError` if the listing is already out of date; `StoreError`."""
    intents, segments, parts, waiting = listing
    counted = {part: part for part in parts}  # the file that each is read from
    for name in intents:
        intent = read_intent(folder, name)
        if intent.is_committed(segments):
            segments = [name for name in segments if name not in intent.segments]
            for new in intent.rewrites:
                before = new.replaces or new.to
                # A loss of power may have deleted the old version, if it has another name.
                if new.source in waiting and (before in counted or new.replaces):
                    counted.pop(before, None)
                    counted[new.to] = new.source
                elif new.replaces and new.to in counted:
                    counted.pop(new.replaces, None)
        else:
            for _, part in intent.renames:
                counted.pop(part, None)
    paths = [folder / name for name in counted.values()]
    responses, tool_calls = (
        tuple(path for path in paths if path.parent.name == table) for table in TABLES
    )
    found, replaced = [], set[RowKey]()
    for name in segments:
        file = opened.enter_context((folder / JOURNAL / name).open("rb", buffering=READ_BYTES))
        found.append((file, _count_replacing(file, replaced) if may_replace(file) else None))
    stamps = _stamps((*responses, *tool_calls))
    return Snapshot(responses, tool_calls, tuple(found), frozenset(replaced), stamps)


def _count_replacing(file: BinaryIO, replaced: set[RowKey]) -> int:
    """How many outcomes there are; adds the keys of those that replace others to `replaced`."""
    count = 0
    for piece in read_outcomes(file):
        if isinstance(piece, Outcome):
            count += 1
            if piece.replaces:
                replaced.add(piece.request.key)
    return count


def _stamps(paths: tuple[Path, ...]) -> tuple[Stamp, ...]:
    found = [path.stat() for path in paths]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


class Intent(Struct, frozen=True):
    """A seal whose temporary files are complete and on disk. Paths are relative to the folder."""

    segments: tuple[str, ...]  # names, in order of deletion
    renames: tuple[tuple[str, str], ...]  # from, to, in order
    rewrites: tuple[Rewrite, ...] = ()

    def is_committed(self, segments: Collection[str]) -> bool:
        """Whether its parts count, if these segments exist."""
        return not self.segments or any(name not in segments for name in self.segments)


_decoder = msgspec.msgpack.Decoder(Intent)


def write_intent(folder: Path, of: FileId, intent: Intent) -> None:
    """Writes it and syncs it. Raises `OSError`."""
    replace_file(folder / JOURNAL / of.intent, frame_of(intent, 0), durable=True)


def read_intent(folder: Path, name: str) -> Intent:
    """Reads the intent; if it is damaged, takes it from the names of files. Raises `OSError`."""
    with (folder / JOURNAL / name).open("rb") as file:
        frame = next(scan(file), None)
    if isinstance(frame, Frame):
        return _decoder.decode(frame.payload)
    return _intent_by_names(folder, id_of(name))


def _intent_by_names(folder: Path, of: FileId) -> Intent:
    """An intent exists, so its temporaries were complete; the remaining files show the rest."""
    renames: list[tuple[str, str]] = []
    rewrites = []
    there = set(part_names(folder, *TABLES))
    waiting = set(filter(is_numbered, map(final_name, temporaries(folder, *TABLES))))
    for part in sorted(waiting | there, reverse=True):  # `tool_calls` first
        source, now = temporary_name(part), current_name(part)
        before = part.replace("-not_ok.parquet", "-other.parquet")
        size = (folder / (source if part in waiting else part)).stat().st_size
        if id_of(part) != of:
            if part in waiting and part in there:
                rewrites.append(Rewrite(source, part, size, None))
        elif before != part and before in there:
            rewrites.append(Rewrite(source, part, size, None, before))
        elif now == part or now not in waiting | there:
            renames.append((source, part))
    sealed = _sealed_segments(folder, of, [source for source, _ in renames])
    return Intent(tuple(sealed), tuple(renames), tuple(rewrites))


def _sealed_segments(folder: Path, of: FileId, sources: Sequence[str]) -> Iterator[str]:
    """The segments whose rows are in the parts of this id; `sources`: names before the rename."""
    names = numbered(folder / JOURNAL, ".log")
    if not any(name != of.segment for name in names):
        yield from names
        return
    paths = (
        folder / (source if (folder / source).exists() else final_name(source))
        for source in sources
        if source.startswith(f"{RESPONSES}/")
    )
    keys = {key for path in paths for batch in read_part(path, KEY) for key in keys_of(batch)}
    for name in names:
        with (folder / JOURNAL / name).open("rb", buffering=READ_BYTES) as file:
            outcomes = (piece for piece in read_outcomes(file) if isinstance(piece, Outcome))
            first = next(outcomes, None)
        if name == of.segment or (first is not None and first.request.key in keys):
            yield name
