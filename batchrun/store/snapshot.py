"""What a run directory holds at one instant, for readers that race with a writer.

A seal that has begun has an intent. While all the segments that it names are there they count,
and its parts do not; once one of them is deleted its parts count, and the remaining segments do
not. Then the parts that it replaces count as they will be, under their temporary names until they
have their own. An intent that names no segments, of parts that are rewritten to this schema,
counts at once.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.records import Outcome
from batchrun.store.columns import KEY, response_batch
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    FileId,
    current_name,
    final_name,
    id_of,
    is_numbered,
    name_in_schema_1,
    numbered,
    replace_file,
    storing,
    temporaries,
)
from batchrun.store.journal import READ_BYTES, Frame, frame_of, may_replace, read_outcomes, scan
from batchrun.store.parts import SLICE_ROWS, Keys, Rewrite, read_part

_ATTEMPTS = 1_000  # each failed one means that a seal took a step meanwhile

T = TypeVar("T")
Stamp = tuple[int, int, int]  # inode, size, time: another file has another one


class Snapshot(Struct, frozen=True):
    """Each row is in exactly one of these, whatever step a seal has reached.

    A row that was sent again and is not sealed yet is in a segment, and its older outcome in a
    part: `replaced` has its key, and the segment is what counts.
    """

    responses: tuple[Path, ...]  # parts
    tool_calls: tuple[Path, ...]
    # Open, so that a seal may delete them; with how many outcomes of each count, null: all.
    segments: tuple[tuple[BinaryIO, int | None], ...]
    replaced: Keys
    stamps: tuple[Stamp, ...]  # of the parts of both tables

    def outcomes(self) -> Iterator[Outcome]:
        """The rows in the journal; what is damaged or still being written is left out.

        Raises `StoreError`.
        """
        for file, count in self.segments:
            with storing(file.name, "read"):
                found = (piece for piece in read_outcomes(file) if isinstance(piece, Outcome))
                yield from islice(found, count)

    def batches(self, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Columns of all rows of `responses`, first those in parts. Raises `StoreError`."""
        for path in self.responses:
            yield from self.part_batches(path, columns)
        yield from self.journal_batches(columns)

    def part_batches(self, path: Path, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The same of one part of `responses`; its rows that the journal replaces are left out."""
        wanted = dict.fromkeys((*columns, *KEY) if self.replaced else columns)
        for batch in read_part(path, list(wanted)):
            yield self.replaced.left_out(batch)

    def journal_batches(self, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The same of the journal; of columns that are named by paths the whole columns."""
        outcomes, names = self.outcomes(), dict.fromkeys(name.partition(".")[0] for name in columns)
        while some := list(islice(outcomes, SLICE_ROWS)):
            yield response_batch(some, names=names)

    def is_current(self) -> bool:
        """Whether no seal has replaced a part since; paths read before were those meant."""
        try:
            return self.stamps == _stamps((*self.responses, *self.tool_calls))
        except FileNotFoundError:
            return False


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """What counts now. Raises `StoreError`.

    Two listings in a row that agree were true together: names come and go, but never come back
    while the same intent is there.
    """
    with ExitStack() as files:
        with storing(folder, "list"):
            for _ in range(_ATTEMPTS):
                listing = _list(folder)
                with ExitStack() as opened, suppress(FileNotFoundError):
                    taken = _take(folder, listing, opened)
                    if _list(folder) == listing:
                        files.push(opened.pop_all())
                        break
            else:
                raise _too_fast(folder)
        yield _with_replaced(taken)


def read_snapshot(folder: Path, read: Callable[[Snapshot], T]) -> T:
    """What `read` makes of what counts now. Raises `StoreError` and what `read` raises.

    It is called again where a seal replaced a part meanwhile.
    """
    for _ in range(_ATTEMPTS):
        with snapshot(folder) as now:
            try:
                found = read(now)
            except StoreError:
                if now.is_current():
                    raise
                continue
            if now.is_current():
                return found
    raise _too_fast(folder)


def _too_fast(folder: Path) -> StoreError:
    return StoreError(f"{folder}: its files change faster than they can be read; try again")


class _Listing(NamedTuple):
    intents: tuple[str, ...]
    segments: tuple[str, ...]
    tool_calls: tuple[str, ...]
    responses: tuple[str, ...]
    temporaries: tuple[Path, ...]


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
        if intent.is_committed(segments):
            segments -= set(intent.segments)
            _take_new_versions(folder, intent, listing, parts)
        else:
            for _, to in intent.renames:
                table, _, target = to.partition("/")
                parts[table].pop(target, None)
    responses, tool_calls = (tuple(parts[table].values()) for table in (RESPONSES, TOOL_CALLS))
    paths = [folder / JOURNAL / name for name in listing.segments if name in segments]
    files = [opened.enter_context(path.open("rb", buffering=READ_BYTES)) for path in paths]
    stamps = _stamps((*responses, *tool_calls))
    return Snapshot(responses, tool_calls, tuple((one, None) for one in files), Keys(), stamps)


def _take_new_versions(
    folder: Path, intent: "Intent", listing: _Listing, parts: dict[str, dict[str, Path]]
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


def _with_replaced(taken: Snapshot) -> Snapshot:
    """The same, with the keys of the rows that the journal replaces. Raises `StoreError`."""
    replaced = Keys()
    segments: list[tuple[BinaryIO, int | None]] = []
    for file, _ in taken.segments:
        count = None
        with storing(file.name, "read"):
            if may_replace(file):
                count = 0
                for piece in read_outcomes(file):
                    if isinstance(piece, Outcome):
                        count += 1  # what is appended from now on is not known to replace a row
                        if piece.replaces:
                            replaced.add(piece.request.key)
        segments.append((file, count))
    return replace(taken, segments=tuple(segments), replaced=replaced)


def _stamps(paths: tuple[Path, ...]) -> tuple[Stamp, ...]:
    found = [path.stat() for path in paths]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


class Intent(Struct, frozen=True):
    """A seal whose temporary files are whole and on disk. Paths are relative to the folder."""

    segments: tuple[str, ...]  # names, in order of deletion
    renames: tuple[tuple[str, str], ...]  # from, to, in order
    rewrites: tuple[Rewrite, ...] = ()

    def is_committed(self, segments: Collection[str]) -> bool:
        """Whether its parts count, where these segments are there."""
        return not self.segments or any(name not in segments for name in self.segments)


_decoder = msgspec.msgpack.Decoder(Intent)


def write_intent(folder: Path, of: FileId, intent: Intent) -> None:
    """On disk when this returns. Raises `OSError`."""
    replace_file(folder / JOURNAL / of.intent, frame_of(intent, 0), durable=True)


def read_intent(folder: Path, name: str) -> Intent:
    """The intent, taken from the names of the files around it where it is damaged. `OSError`."""
    with (folder / JOURNAL / name).open("rb") as file:
        frame = next(scan(file), None)
    if isinstance(frame, Frame):
        return _decoder.decode(frame.payload)
    return _intent_by_names(folder, id_of(name))


def _intent_by_names(folder: Path, of: FileId) -> Intent:
    """An intent is there, so its temporaries were whole: those that remain show the rest."""
    renames: list[tuple[str, str]] = []
    rewrites = []
    for table in (TOOL_CALLS, RESPONSES):
        found = {final_name(path.name): path for path in temporaries(folder / table)}
        waiting = {name: path for name, path in found.items() if is_numbered(name)}
        there = set(numbered(folder / table, ".parquet"))
        for name in sorted(waiting.keys() | there):
            source, to = f"{table}/.{name}.tmp", f"{table}/{name}"
            before, now = name_in_schema_1(name), current_name(name)
            if id_of(name) != of:
                if name in waiting and name in there:
                    rewrites.append(Rewrite(source, to, waiting[name].stat().st_size, None))
            elif before != name and before in there:
                size = (waiting.get(name) or folder / to).stat().st_size
                rewrites.append(Rewrite(source, to, size, None, f"{table}/{before}"))
            elif now == name or now not in waiting.keys() | there:
                renames.append((source, to))
    ids = {name: id_of(name) for name in numbered(folder / JOURNAL, ".log")}
    older = (name for name, one in ids.items() if one.writer == of.writer and one <= of)
    return Intent(tuple(older), tuple(renames), tuple(rewrites))
