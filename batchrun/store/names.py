"""The names of parts and journal segments: folder, writer, number."""

import re
from pathlib import Path
from typing import NamedTuple

JOURNAL = "journal"
RESPONSES = "responses"
TOOL_CALLS = "tool_calls"
INPUT = "input"
WRITER = 0  # of a run in one process

_NUMBERED = re.compile(
    r"w(?P<writer>\d+)-(?P<number>\d{6,})(?P<ending>\.log|\.intent|(?P<kind>-not_ok|-other)?\.parquet)"
)
_OPEN = re.compile(r"w\d+\.(open|started)")


class FileId(NamedTuple):
    """What a segment, its intent, and the parts made of it have in common; in order of making."""

    writer: int
    number: int

    def __str__(self) -> str:
        return f"w{self.writer}-{self.number:06}"


def segment_name(of: FileId) -> str:
    return f"{of}.log"


def intent_name(of: FileId) -> str:
    return f"{of}.intent"


def part_name(of: FileId, *, not_ok: bool = False) -> str:
    """`not_ok`: of the rows that are not ok, so that sending them again rewrites little."""
    return f"{of}{'-not_ok' if not_ok else ''}.parquet"


def open_name(writer: int) -> str:
    """The file of what is known of rows without an outcome."""
    return f"w{writer}.open"


def temporary_name(name: str) -> str:
    """Never matched by `*.parquet`, `*.log` or `*.intent`."""
    return f".{name}.tmp"


def final_name(temporary: str) -> str:
    return temporary.removeprefix(".").removesuffix(".tmp")


def id_of(name: str) -> FileId | None:
    """Whose file it is, by its name; null for a name that no writer gives."""
    found = _NUMBERED.fullmatch(name)
    return FileId(int(found["writer"]), int(found["number"])) if found else None


def is_not_ok(name: str) -> bool:
    """Whether a part's name says that its rows are not ok, `-other` in schema 1."""
    found = _NUMBERED.fullmatch(name)
    return found is not None and found["kind"] is not None


def name_now(name: str) -> str:
    """The name of a part as schema 2 has it."""
    return name.replace("-other.parquet", "-not_ok.parquet")


def name_before(name: str) -> str:
    """The name of a part as schema 1 had it, if it was another one; else empty."""
    before = name.replace("-not_ok.parquet", "-other.parquet")
    return before if before != name else ""


def numbered(folder: Path, ending: str) -> tuple[str, ...]:
    """The names in `folder` that writers give, with this ending, in order. Raises `OSError`."""
    found = []
    for name in _entries(folder):
        of = id_of(name) if name.endswith(ending) else None
        if of is not None:
            found.append((of, name))
    return tuple(name for _, name in sorted(found))


def open_files(folder: Path) -> tuple[str, ...]:
    """The names in `folder` of files of unfinished rows, of all writers. Raises `OSError`.

    Those of schema 1 come first: a kill may have left them beside the file that took them over.
    """
    names = (name for name in _entries(folder) if _OPEN.fullmatch(name))
    return tuple(sorted(names, key=lambda name: (name.endswith(".open"), name)))


def temporaries(folder: Path) -> tuple[Path, ...]:
    """What an interrupted write left in `folder`. Raises `OSError`."""
    names = sorted(name for name in _entries(folder) if name[0] == "." and name[-4:] == ".tmp")
    return tuple(folder / name for name in names)


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []
