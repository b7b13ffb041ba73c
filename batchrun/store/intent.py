"""The intent of a seal: what is about to be renamed, deleted and replaced, synced before it.

While all the segments that it names are there they count, and its parts do not; once one of
them is gone its parts count, and what is left of the segments does not. Then the parts that it
replaces count as they will be, under their temporary names until they have their own.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.store.disk import replace_file
from batchrun.store.journal import Frame, frame_of, scan
from batchrun.store.names import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    final_name,
    intent_name,
    number_of,
    numbered,
    part_name,
    temporaries,
)


class Rewrite(Struct, frozen=True):
    """A part that is to be replaced by itself without some rows."""

    source: str  # its new version
    to: str
    bytes: int  # of the new version: how it is told from the old one once it is renamed
    rows: int | None  # of the new version; without any, the part goes; null: not known


class Intent(Struct, frozen=True):
    """A seal whose temporary files are whole and on disk. Paths are relative to the folder."""

    segments: tuple[str, ...]  # names, in order of deletion
    renames: tuple[tuple[str, str], ...]  # from, to, in order
    rewrites: tuple[Rewrite, ...] = ()

    def targets(self, table: str) -> set[str]:
        """The names of the parts of a table that this intent makes."""
        return {Path(to).name for _, to in self.renames if Path(to).parent.name == table}


_decoder = msgspec.msgpack.Decoder(Intent)


def write_intent(folder: Path, number: int, intent: Intent) -> None:
    """On disk when this returns. Raises `OSError`."""
    path = folder / JOURNAL / intent_name(number)
    replace_file(path, frame_of(intent, 0), durable=True)


def read_intent(folder: Path, name: str) -> Intent:
    """The intent, taken from the names of the files around it where it is damaged. `OSError`."""
    with (folder / JOURNAL / name).open("rb") as file:
        frame = next(scan(file), None)
    if isinstance(frame, Frame):
        return _decoder.decode(frame.payload)
    return _intent_by_names(folder, number_of(name) or 0)


def _intent_by_names(folder: Path, number: int) -> Intent:
    """An intent is there, so its temporaries were whole: what is left of them shows the rest."""
    renames: list[tuple[str, str]] = []
    rewrites = []
    for table in (TOOL_CALLS, RESPONSES):
        own = {part_name(number), part_name(number, other=True)}
        waiting = {final_name(path.name): path for path in temporaries(folder / table)}
        there = set(numbered(folder / table, ".parquet"))
        renames += [
            (f"{table}/.{name}.tmp", f"{table}/{name}")
            for name in sorted(own & (waiting.keys() | there))
        ]
        rewrites += [
            Rewrite(f"{table}/.{name}.tmp", f"{table}/{name}", waiting[name].stat().st_size, None)
            for name in sorted((waiting.keys() & there) - own)
            if (number_of(name) or 0) < number
        ]
    segments = numbered(folder / JOURNAL, ".log")
    return Intent(
        tuple(name for name in segments if (number_of(name) or 0) <= number),
        tuple(renames),
        tuple(rewrites),
    )
