"""What a run directory holds at one instant, for readers that race with a writer.

While all the segments that it names are there they count, and its parts do not; once one of
them is gone its parts count, and what is left of the segments does not. Then the parts that it
replaces count as they will be, under their temporary names until they have their own.
An intent that names no segments, of parts that are rewritten to this schema, counts at once.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Outcome
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    FileId,
    final_name,
    id_of,
    intent_name,
    name_before,
    name_now,
    numbered,
    replace_file,
    storing,
    temporaries,
)
from batchrun.store.journal import Frame, frame_of, may_replace, read_outcomes, scan
from batchrun.store.keys import KEY, Keys


class Rewrite(Struct, frozen=True):
    """A part that is to be replaced by a new version of itself."""

    source: str  # its new version
    to: str
    bytes: int  # of the new version: how it is told from the old one once it is renamed
    rows: int | None  # of the new version; without any, the part goes; null: not known
    replaces: str | None = None  # the old version, where it has another name than the new one


class Intent(Struct, frozen=True):
    """A seal whose temporary files are whole and on disk. Paths are relative to the folder."""

    segments: tuple[str, ...]  # names, in order of deletion
    renames: tuple[tuple[str, str], ...]  # from, to, in order
    rewrites: tuple[Rewrite, ...] = ()

    def targets(self, table: str) -> set[str]:
        """The names of the parts of a table that this intent makes."""
        return {Path(to).name for _, to in self.renames if Path(to).parent.name == table}

    def is_committed(self, segments: Collection[str]) -> bool:
        """Whether its parts count, where these segments are there."""
        return not self.segments or any(name not in segments for name in self.segments)


_decoder = msgspec.msgpack.Decoder(Intent)


def write_intent(folder: Path, of: FileId, intent: Intent) -> None:
    """On disk when this returns. Raises `OSError`."""
    path = folder / JOURNAL / intent_name(of)
    replace_file(path, frame_of(intent, 0), durable=True)


def read_intent(folder: Path, name: str) -> Intent:
    """The intent, taken from the names of the files around it where it is damaged. `OSError`."""
    with (folder / JOURNAL / name).open("rb") as file:
        frame = next(scan(file), None)
    if isinstance(frame, Frame):
        return _decoder.decode(frame.payload)
    of = id_of(name)
    assert of is not None  # noqa: S101 - it is listed by such names
    return _intent_by_names(folder, of)


def _intent_by_names(folder: Path, of: FileId) -> Intent:
    """An intent is there, so its temporaries were whole: what is left of them shows the rest."""
    renames: list[tuple[str, str]] = []
    rewrites = []
    for table in (TOOL_CALLS, RESPONSES):
        waiting = {final_name(path.name): path for path in temporaries(folder / table)}
        there = set(numbered(folder / table, ".parquet"))
        for name in sorted(waiting.keys() | there):
            source, to = f"{table}/.{name}.tmp", f"{table}/{name}"
            if id_of(name) != of:
                if name in waiting and name in there:
                    rewrites.append(Rewrite(source, to, waiting[name].stat().st_size, None))
            elif (was := name_before(name)) in there:
                size = (waiting.get(name) or folder / to).stat().st_size
                rewrites.append(Rewrite(source, to, size, None, f"{table}/{was}"))
            elif name_now(name) == name or name_now(name) not in waiting.keys() | there:
                renames.append((source, to))
    segments = numbered(folder / JOURNAL, ".log")
    older = (name for name in segments if _is_up_to(id_of(name), of))
    return Intent(tuple(older), tuple(renames), tuple(rewrites))


def _is_up_to(one: FileId | None, last: FileId) -> bool:
    return one is not None and one.writer == last.writer and one.number <= last.number


_TRIES = 1_000  # each failed one means that a seal took a step meanwhile
_READ_BYTES = 1 << 20

T = TypeVar("T")
Stamp = tuple[int, int, int]  # inode, size, time: another file has another one


class Snapshot(Struct, frozen=True):
    """Each row is in exactly one of these, however a seal stands or goes on.

    A row that was sent again and is not sealed yet is in a segment, and its older outcome in a
    part: `replaced` has its key, and the segment is what counts.
    """

    responses: tuple[Path, ...]  # parts
    tool_calls: tuple[Path, ...]
    segments: tuple[BinaryIO, ...]  # open, so that a seal may delete them
    counts: tuple[int | None, ...]  # how many outcomes of each segment count; null: all
    replaced: Keys
    stamps: tuple[Stamp, ...]  # of the parts of both tables

    def outcomes(self) -> Iterator[Outcome]:
        """The rows in the journal; what is damaged or still being written is left out.

        Raises `StoreError`.
        """
        for file, count in zip(self.segments, self.counts, strict=True):
            with storing(file.name, "read"):
                found = (piece for piece in read_outcomes(file) if isinstance(piece, Outcome))
                yield from found if count is None else islice(found, count)

    def holds(self) -> bool:
        """Whether no seal has replaced a part since; paths read before were those meant."""
        try:
            return self.stamps == _stamps((*self.responses, *self.tool_calls))
        except FileNotFoundError:
            return False


class _Listing(Struct, frozen=True):
    intents: tuple[str, ...]
    segments: tuple[str, ...]
    tool_calls: tuple[str, ...]
    responses: tuple[str, ...]
    temporaries: tuple[Path, ...]


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """What counts now. Raises `StoreError`.

    Two listings in a row that agree were true together: names come and go, but never come back
    while the same intent stands.
    """
    with ExitStack() as files:
        with storing(folder, "list"):
            before = _list(folder)
            for _ in range(_TRIES):
                opened = ExitStack()
                try:
                    taken = _take(folder, before, opened)
                    after = _list(folder)
                    if after == before:
                        files.push(opened)
                        break
                    before = after
                except FileNotFoundError:
                    before = _list(folder)
                opened.close()
            else:
                raise _too_fast(folder)
        yield _without_replaced(taken)


def read_snapshot(folder: Path, read: Callable[[Snapshot], T]) -> T:
    """What `read` makes of what counts now. Raises `StoreError` and what `read` raises.

    It is called again where a seal replaced a part meanwhile.
    """
    for _ in range(_TRIES):
        with snapshot(folder) as now:
            try:
                found = read(now)
            except StoreError:
                if now.holds():
                    raise
                continue
            if now.holds():
                return found
    raise _too_fast(folder)


def _too_fast(folder: Path) -> StoreError:
    return StoreError(f"{folder}: its files change faster than they can be read; try again")


def _list(folder: Path) -> _Listing:
    return _Listing(
        numbered(folder / JOURNAL, ".intent"),
        numbered(folder / JOURNAL, ".log"),
        numbered(folder / TOOL_CALLS, ".parquet"),
        numbered(folder / RESPONSES, ".parquet"),
        (*temporaries(folder / TOOL_CALLS), *temporaries(folder / RESPONSES)),
    )


def _take(folder: Path, listing: _Listing, opened: ExitStack) -> Snapshot:
    """Raises `FileNotFoundError` where the listing is already out of date."""
    segments = set(listing.segments)
    parts = {
        TOOL_CALLS: {name: folder / TOOL_CALLS / name for name in listing.tool_calls},
        RESPONSES: {name: folder / RESPONSES / name for name in listing.responses},
    }
    for name in listing.intents:
        intent = read_intent(folder, name)
        if not intent.is_committed(segments):
            for table, paths in parts.items():
                for target in intent.targets(table):
                    paths.pop(target, None)
        else:
            segments -= set(intent.segments)
            _take_new_versions(folder, intent, listing, parts)
    responses, tool_calls = (tuple(parts[table].values()) for table in (RESPONSES, TOOL_CALLS))
    files = tuple(
        opened.enter_context((folder / JOURNAL / n).open("rb", buffering=_READ_BYTES))
        for n in listing.segments
        if n in segments
    )
    counts = (None,) * len(files)
    return Snapshot(
        responses, tool_calls, files, counts, Keys(), _stamps((*responses, *tool_calls))
    )


def _take_new_versions(
    folder: Path, intent: Intent, listing: _Listing, parts: dict[str, dict[str, Path]]
) -> None:
    """Parts that the intent replaces count as they will be."""
    for rewrite in intent.rewrites:
        source, target = folder / rewrite.source, folder / rewrite.to
        of_table = parts[target.parent.name]
        before = Path(rewrite.replaces or rewrite.to).name
        # A loss of power may have taken the old version already, where its name is another one.
        is_due = before in of_table or before != target.name
        if source in listing.temporaries and is_due:
            of_table.pop(before, None)
            of_table[target.name] = source
        elif before != target.name and target.name in of_table:
            of_table.pop(before, None)


def _without_replaced(taken: Snapshot) -> Snapshot:
    """The same, knowing which rows the journal holds anew. Raises `StoreError`."""
    replaced = Keys()
    counts: list[int | None] = []
    for file in taken.segments:
        count = None
        with storing(file.name, "read"):
            if may_replace(file):
                count = 0
                for piece in read_outcomes(file):
                    if isinstance(piece, Outcome):
                        count += 1  # what is appended from now on is not known to replace a row
                        if piece.replaces:
                            replaced.add(piece.request.key)
        counts.append(count)
    return Snapshot(
        taken.responses, taken.tool_calls, taken.segments, tuple(counts), replaced, taken.stamps
    )


def _stamps(paths: tuple[Path, ...]) -> tuple[Stamp, ...]:
    found = [path.stat() for path in paths]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


BATCH_ROWS = 16_384
TABLES = (RESPONSES, TOOL_CALLS)
# What pyarrow raises where a file does not hold what it should; a name may be no UTF-8 any more.
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def read_part(
    path: Path, columns: tuple[str, ...] | None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """A part's rows, these columns alone (null: all). Raises `StoreError`."""
    with opened(path) as part:
        wanted = None if columns is None else list(columns)
        _check_columns(part, wanted or ())
        rows = 0
        for batch in part.iter_batches(batch_rows, columns=wanted):
            rows += batch.num_rows
            yield batch
        if rows != part.metadata.num_rows:
            raise pa.ArrowInvalid(f"it holds {rows} of {part.metadata.num_rows} rows")


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A part; what goes wrong inside becomes a `StoreError` about it."""
    with storing(path, "read"):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as part:
                yield part
        except DAMAGED as error:
            if is_from_system(error):
                raise
            raise StoreError(
                f"{path}: damaged ({error}); put back a copy of it, or start a new run directory"
            ) from error


def count_rows(folder: Path) -> dict[str, int]:
    """The parts of both tables, with their folder, and how many rows each holds. `StoreError`."""
    rows = {}
    with storing(folder, "list"):
        parts = [
            folder / table / n for table in TABLES for n in numbered(folder / table, ".parquet")
        ]
    for path in parts:
        with opened(path) as part:
            rows[f"{path.parent.name}/{path.name}"] = part.metadata.num_rows
    return rows


def _check_columns(part: pq.ParquetFile, wanted: Sequence[str]) -> None:
    """Raises `ArrowInvalid` where a column is gone; pyarrow would leave it out without a word."""
    leaves = {part.schema.column(at).path for at in range(len(part.schema))}
    there = leaves.union(part.schema_arrow.names)
    for name in wanted:
        if name not in there:
            raise pa.ArrowInvalid(f"it has no column {name}")


def is_from_system(error: Exception) -> bool:
    """Whether the file could not be read, rather than what it holds. pyarrow raises both alike."""
    return isinstance(error, OSError) and (error.errno is not None or "[errno " in str(error))


def read_standing(now: Snapshot, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """These columns of all rows of `responses` that stand in parts. Raises `StoreError`."""
    for path in now.responses:
        yield from read_standing_part(now, path, columns)


def read_standing_part(
    now: Snapshot, path: Path, columns: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    """The same of one part of `now`."""
    if not now.replaced:
        yield from read_part(path, columns)
        return
    for batch in read_part(path, tuple(dict.fromkeys((*columns, *KEY)))):
        yield now.replaced.left_of(batch)
