"""The result of a query as text: a table for terminals, CSV, JSON or Markdown.

A table fits its width: long text is cut, figures never are. Where that does not do, each row is
shown as a list of its columns. The other formats hold everything.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from batchrun.formats.csv_text import as_json, csv_line
from batchrun.formats.printable import brief, one_line, printable_json
from batchrun.formats.text_tables import BETWEEN, cell_len, fitted

_LEAST_TEXT = 12  # characters of text that is cut
_DIGITS = 9  # of a double; CSV and JSON have all of them


class ResultColumn(msgspec.Struct, frozen=True):
    """A column of the result."""

    name: str
    is_number: bool


Rows = Iterable[Sequence[Any]]


def result_text(
    form: str, columns: Sequence[ResultColumn], rows: Callable[[], Rows], width: int
) -> Iterator[str]:
    """Pieces of text. `rows`: gives all rows, each time it is called; `width`: of a table."""
    if form == "csv":
        yield csv_line((column.name for column in columns), for_sheets=False)
        yield from (csv_line(row, for_sheets=False) for row in rows())
    elif form == "json":
        yield from _json([column.name for column in columns], rows())
    elif form == "markdown":
        yield from markdown_table(columns, rows())
    else:
        yield from _table(columns, rows, width)


def _json(names: Sequence[str], rows: Rows) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + printable_json(as_json(dict(zip(names, row, strict=True))))
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def markdown_table(columns: Sequence[ResultColumn], rows: Rows) -> Iterator[str]:
    """Lines of a table in Markdown."""
    marks = ("---:" if column.is_number else "---" for column in columns)
    yield f"| {' | '.join(markdown_text(column.name) for column in columns)} |\n"
    yield f"| {' | '.join(marks)} |\n"
    for row in rows:
        cells = ("" if value is None else markdown_text(_shown(value)) for value in row)
        yield f"| {' | '.join(cells)} |\n"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is."""
    lines = (one_line(line) for line in text.replace("\r\n", "\n").split("\n"))
    inner = "<br>".join(line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)
    for mark in "\\|`*[":
        inner = inner.replace(mark, "\\" + mark)
    return inner


def _table(columns: Sequence[ResultColumn], rows: Callable[[], Rows], width: int) -> Iterator[str]:
    heads = [one_line(column.name) for column in columns]
    sizes = [cell_len(head) for head in heads]
    for row in rows():
        cells = zip(sizes, row, strict=True)
        sizes = [max(size, cell_len(_cell(value, width))) for size, value in cells]
    sizes = _narrowed(sizes, columns, width)
    if _total(sizes) > width:
        yield from _records(heads, rows(), width)
        return
    to_the_left = [not column.is_number for column in columns]
    yield _line(heads, sizes, to_the_left)
    count = 0
    for row in rows():
        count += 1
        yield _line([_cell(value, width) for value in row], sizes, to_the_left)
    if not count:
        yield "(no rows)\n"


def _line(cells: Sequence[str], sizes: Sequence[int], to_the_left: Sequence[bool]) -> str:
    parts = (
        fitted(cell, size, to_the_left=left)
        for cell, size, left in zip(cells, sizes, to_the_left, strict=True)
    )
    return BETWEEN.join(parts).rstrip() + "\n"


def _narrowed(sizes: list[int], columns: Sequence[ResultColumn], width: int) -> list[int]:
    """The widest columns of text give way, as far as they may."""
    text = [at for at, column in enumerate(columns) if not column.is_number]
    cap = max((sizes[at] for at in text), default=0)
    while _total(sizes) > width and cap > _LEAST_TEXT:
        cap -= 1
        sizes = [min(size, cap) if at in text else size for at, size in enumerate(sizes)]
    return sizes


def _total(sizes: Sequence[int]) -> int:
    return sum(sizes) + len(BETWEEN) * (len(sizes) - 1)


def _records(heads: Sequence[str], rows: Rows, width: int) -> Iterator[str]:
    size = max(map(cell_len, heads))
    space = max(_LEAST_TEXT, width - size - len(BETWEEN))
    for number, row in enumerate(rows, 1):
        yield f"{'' if number == 1 else chr(10)}row {number:,}\n"
        for head, value in zip(heads, row, strict=True):
            cell = _cell(value, width)
            cell = fitted(cell, space, to_the_left=True).rstrip()
            yield f"{fitted(head, size, to_the_left=True)}{BETWEEN}{cell}\n"


def _cell(value: Any, width: int) -> str:
    """In one line."""
    return "null" if value is None else brief(_shown(value), width)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.{_DIGITS if abs(value) < 10**_DIGITS else 15}g}"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, int) else as_json(value)
