"""The tables in `benchmarks/README.md`, each between two marker comments of its own."""

from pathlib import Path

PAGE = Path(__file__).parent / "README.md"


def read_lines(section: str) -> list[str]:
    """What stands between a section's markers."""
    lines = PAGE.read_text().splitlines()
    begin, end = _bounds(lines, section)
    return lines[begin:end]


def write_lines(section: str, within: list[str]) -> None:
    """Puts these lines between a section's markers and leaves all else."""
    lines = PAGE.read_text().splitlines()
    begin, end = _bounds(lines, section)
    lines[begin:end] = within
    PAGE.write_text("\n".join(lines) + "\n")


def _bounds(lines: list[str], section: str) -> tuple[int, int]:
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    if begin not in lines or end not in lines:
        raise SystemExit(f"{PAGE} lacks the lines {begin} and {end}; put them where the table goes")
    return lines.index(begin) + 1, lines.index(end)
