"""What a run directory holds at one instant, for readers that race with a writer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Outcome
from batchrun.store.disk import storing
from batchrun.store.intent import read_intent
from batchrun.store.journal import read_outcomes
from batchrun.store.names import JOURNAL, RESPONSES, TOOL_CALLS, numbered

_TRIES = 1_000  # each failed one means that a seal took a step meanwhile
_READ_BYTES = 1 << 20


class Snapshot(Struct, frozen=True):
    """Each row is in exactly one of these, however a seal stands or goes on."""

    responses: tuple[Path, ...]  # parts
    tool_calls: tuple[Path, ...]
    segments: tuple[BinaryIO, ...]  # open, so that a seal may delete them

    def outcomes(self) -> Iterator[Outcome]:
        """The rows in the journal; what is damaged or still being written is left out.

        Raises `StoreError`.
        """
        for file in self.segments:
            with storing(file.name, "read"):
                for piece in read_outcomes(file):
                    if isinstance(piece, Outcome):
                        yield piece


class _Listing(Struct, frozen=True):
    intents: tuple[str, ...]
    segments: tuple[str, ...]
    tool_calls: tuple[str, ...]
    responses: tuple[str, ...]


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """What counts now. Raises `StoreError`.

    Two listings in a row that agree were true together: names come and go, but never come back.
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
                raise StoreError(f"{folder}: its files change faster than they can be read")
        yield taken


def _list(folder: Path) -> _Listing:
    return _Listing(
        numbered(folder / JOURNAL, ".intent"),
        numbered(folder / JOURNAL, ".log"),
        numbered(folder / TOOL_CALLS, ".parquet"),
        numbered(folder / RESPONSES, ".parquet"),
    )


def _take(folder: Path, listing: _Listing, opened: ExitStack) -> Snapshot:
    """Raises `FileNotFoundError` where the listing is already out of date."""
    segments = set(listing.segments)
    parts = {RESPONSES: set(listing.responses), TOOL_CALLS: set(listing.tool_calls)}
    for name in listing.intents:
        intent = read_intent(folder, name)
        if segments.issuperset(intent.segments):
            for table in parts:
                parts[table] -= intent.targets(table)
        else:
            segments -= set(intent.segments)
    return Snapshot(
        tuple(folder / RESPONSES / n for n in listing.responses if n in parts[RESPONSES]),
        tuple(folder / TOOL_CALLS / n for n in listing.tool_calls if n in parts[TOOL_CALLS]),
        tuple(
            opened.enter_context((folder / JOURNAL / n).open("rb", buffering=_READ_BYTES))
            for n in listing.segments
            if n in segments
        ),
    )
