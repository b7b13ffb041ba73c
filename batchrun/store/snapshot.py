"""What a run directory holds at one instant, for readers that race with a writer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Outcome
from batchrun.store.disk import storing
from batchrun.store.intent import Intent, read_intent
from batchrun.store.journal import may_replace, read_outcomes
from batchrun.store.keys import Keys
from batchrun.store.names import JOURNAL, RESPONSES, TOOL_CALLS, numbered, temporaries

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
