"""The intent of a seal: what is about to be renamed, deleted and replaced, synced before it.

While all the segments that it names are there they count, and its parts do not; once one of
them is gone its parts count, and what is left of the segments does not. Then the parts that it
replaces count as they will be, under their temporary names until they have their own.
An intent that names no segments, of parts that are rewritten to this schema, counts at once.
"""

from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.store.disk import replace_file
from batchrun.store.journal import Frame, frame_of, scan
from batchrun.store.names import (
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
    temporaries,
)


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
