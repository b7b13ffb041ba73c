"""Text and tables in a terminal: they fit its width, and no figure is ever cut."""

import textwrap
from collections.abc import Sequence

from msgspec import Struct
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

__all__ = [
    "BETWEEN",
    "Section",
    "cell_len",
    "fitted",
    "show_section",
    "show_text",
    "width_of",
    "widths",
]
BETWEEN = "  "  # two columns
_LEAST_WORDS, _LEAST_MESSAGE = 12, 8  # characters of a column that is cut


class Section(Struct, frozen=True):
    """One table; the first `words` columns are words, the others figures."""

    name: str
    title: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    words: int = 1
    note: str | None = None
    message: bool = False  # the last column is a message


def show_text(text: str, console: Console, indent: str = "  ") -> None:
    """Lines of its words, the later ones indented further."""
    lines = textwrap.wrap(
        text,
        console.width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(Text(line))


def show_section(section: Section, console: Console, sizes: Sequence[int] | None = None) -> None:
    """An empty line, the title, the table; `sizes`: of its columns."""
    console.print()
    title = Text(section.title, style="bold")
    if section.note:
        title.append(f" ({section.note})", style="not bold")
    console.print(title)
    sizes = sizes or widths([section], console.width)
    words = {*range(section.words), *([len(sizes) - 1] if section.message else [])}
    for at, row in enumerate((section.heads, *section.rows)):
        cells = [
            fitted(cell, size, to_the_left=column in words)
            for column, (cell, size) in enumerate(zip(row, sizes, strict=True))
        ]
        line = Text(BETWEEN.join(cells).rstrip(), style="dim" if at == 0 else "")
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


def widths(sections: Sequence[Section], most: int) -> list[int]:
    """Of columns that are the same in all these sections; words give way to figures."""
    tables = [line for section in sections for line in (section.heads, *section.rows)]
    sizes = [max(map(cell_len, column)) for column in zip(*tables, strict=True)]
    excess = width_of(sizes) - most
    first = sections[0]
    cut = [(len(sizes) - 1, _LEAST_MESSAGE)] if first.message else []
    cut += [(column, _LEAST_WORDS) for column in reversed(range(first.words))]
    for column, least in cut:
        less = max(0, min(excess, sizes[column] - least))
        sizes[column] -= less
        excess -= less
    return sizes


def width_of(sizes: Sequence[int]) -> int:
    """Of a line of columns of these widths."""
    return sum(sizes) + len(BETWEEN) * (len(sizes) - 1)


def fitted(cell: str, size: int, *, to_the_left: bool) -> str:
    """The cell in exactly so many columns of a terminal, cut where it is wider."""
    missing = size - cell_len(cell)
    if missing < 0:
        return set_cell_size(cell, size - 1) + "…"
    return cell + " " * missing if to_the_left else " " * missing + cell
