"""The names of parts and journal segments: folder, writer, number."""

import re
from pathlib import Path

JOURNAL = "journal"
RESPONSES = "responses"
TOOL_CALLS = "tool_calls"
INPUT = "input"
WRITER = "w0"  # one writer today; each gets an id of its own

_NUMBERED = re.compile(
    rf"{WRITER}-(?P<number>\d{{6,}})(?P<ending>\.log|\.intent|\.parquet|-other\.parquet)"
)


def segment_name(number: int) -> str:
    return f"{WRITER}-{number:06}.log"


def intent_name(number: int) -> str:
    return f"{WRITER}-{number:06}.intent"


def part_name(number: int, *, other: bool = False) -> str:
    """`other` holds the rows that are not ok, so that sending them again rewrites little."""
    return f"{WRITER}-{number:06}{'-other' if other else ''}.parquet"


def temporary_name(name: str) -> str:
    """Never matched by `*.parquet`, `*.log` or `*.intent`."""
    return f".{name}.tmp"


def final_name(temporary: str) -> str:
    return temporary.removeprefix(".").removesuffix(".tmp")


def number_of(name: str) -> int | None:
    """The number in a name that this writer gave; null for any other name."""
    found = _NUMBERED.fullmatch(name)
    return int(found["number"]) if found else None


def numbered(folder: Path, ending: str) -> tuple[str, ...]:
    """The names in `folder` with a number and this ending, by number. Raises `OSError`."""
    try:
        entries = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return ()
    return tuple(
        sorted(
            (name for name in entries if name.endswith(ending) and number_of(name) is not None),
            key=lambda name: (number_of(name), name),
        )
    )


def temporaries(folder: Path) -> tuple[Path, ...]:
    """What an interrupted write left in `folder`. Raises `OSError`."""
    if not folder.is_dir():
        return ()
    return tuple(
        sorted(
            entry
            for entry in folder.iterdir()
            if entry.name.startswith(".") and entry.name.endswith(".tmp")
        )
    )
