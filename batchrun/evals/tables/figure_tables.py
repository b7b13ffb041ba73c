"""Tables of figures as text: for terminals, Markdown and LaTeX; and how figures are rounded."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TextIO

import msgspec
from msgspec import Struct
from rich.console import Console

from batchrun.errors import JobError
from batchrun.formats.csv_text import csv_line
from batchrun.formats.json_text import shown
from batchrun.formats.printable import nearest, one_line, printable, printable_json
from batchrun.formats.result_text import ResultColumn, markdown_table, markdown_text
from batchrun.formats.text_tables import Section, cell_len, show_section, show_text, width_of

_MOST_DECIMALS = 9
# What LaTeX takes for commands.
_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


Column = tuple[str, Callable[[Any], str]]  # a head, and the cell of a line


class Figures(Protocol):
    """What there is to write."""

    @property
    def notes(self) -> Sequence[str]: ...


class FigureTable(Struct, frozen=True):
    """Heads and cells as text; the first `words` columns are words, the others figures."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def without_empty(self) -> "FigureTable":
        """Without columns in which nothing stands."""
        return self._of([at for at in range(len(self.heads)) if any(row[at] for row in self.rows)])

    def with_figures(self, heads: Sequence[str]) -> "FigureTable":
        """The words, and the figures with these heads, in their order."""
        places = {head: at for at, head in enumerate(self.heads) if at >= self.words}
        return self._of([*range(self.words), *(places[one] for one in heads if one in places)])

    def _of(self, kept: Sequence[int]) -> "FigureTable":
        words = sum(at < self.words for at in kept)
        heads, *rows = (tuple(line[at] for at in kept) for line in (self.heads, *self.rows))
        return FigureTable(self.title, heads, tuple(rows), words)


def figure_table(
    title: str, names: Sequence[Column], figures: Iterable[Column], lines: Iterable[Any]
) -> FigureTable:
    """A row for each of the lines: its names, and those figures that any of them has."""
    columns = [*names, *figures]
    rows = tuple(tuple(cell(line) for _, cell in columns) for line in lines)
    heads = tuple(head for head, _ in columns)
    return FigureTable(title, heads, rows, len(names)).without_empty()


def write_figures(
    found: Figures,
    lines: Iterable[Sequence[Any]],
    tables: Iterable[FigureTable],
    form: str,
    stream: TextIO,
    columns: str | None,
) -> None:
    """As `table`, `markdown` or `latex` the tables, as `csv` the lines, as `json` all.

    `columns`: of the tables, `A,B`. Raises `JobError`.
    """
    wanted = _chosen_heads(columns, form)
    if form == "json":
        stream.write(printable_json(msgspec.json.encode(found).decode()) + "\n")
    elif form == "csv":  # what a terminal could take for a command is shown by its code
        shown = printable if stream.isatty() else str
        stream.writelines(shown(csv_line(line, for_sheets=False)) for line in lines)
    elif form == "table":
        _show(_with_columns([*tables], wanted), found.notes, stream)
    else:
        write = _markdown if form == "markdown" else _latex
        stream.writelines(write(_with_columns([*tables], wanted), found.notes))


def _chosen_heads(text: str | None, form: str) -> list[str]:
    """Heads as `A,B` names them. Raises `JobError` for formats that have all figures."""
    heads = [name for one in (text or "").split(",") if (name := one.strip())]
    if text is not None and form in ("json", "csv"):
        raise JobError(f"--columns is for tables; {form} has all figures under names of their own")
    if text is not None and not heads:
        raise JobError("--columns: name the figures by their headings, such as mean,interval")
    return heads


def _with_columns(tables: Sequence[FigureTable], names: Sequence[str]) -> list[FigureTable]:
    """With these columns alone, in this order, beside those of words; no names: with all.

    `interval` is the one whose head names its level. Raises `JobError` where no table has one.
    """
    if not names:
        return [*tables]
    heads = dict.fromkeys(head for table in tables for head in table.heads[table.words :])
    known = {head.casefold(): head for head in heads}
    known.update(("interval", head) for head in heads if head.endswith(" % interval"))
    for name in names:
        if name.casefold() not in known:
            raise JobError(f"--columns: there is no {shown(name)}; {nearest(name, heads, 'they')}")
    wanted = [*dict.fromkeys(known[name.casefold()] for name in names)]
    return [table.with_figures(wanted) for table in tables]


def _show(tables: Sequence[FigureTable], notes: Sequence[str], stream: TextIO) -> None:
    """For a terminal: columns that do not fit follow in a further table, beside the names."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    for table in tables:
        lines = [tuple(map(one_line, line)) for line in (table.heads, *table.rows)]
        sizes = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        names, blocks = [*range(table.words)], [[*range(table.words)]]
        for column in range(table.words, len(sizes)):
            taken = [*blocks[-1], column]
            if blocks[-1] != names and width_of([sizes[at] for at in taken]) > console.width:
                blocks.append([*names])
            blocks[-1].append(column)
        for block in blocks:
            heads, *rows = (tuple(line[at] for at in block) for line in lines)
            title = one_line(table.title)
            show_section(Section(title, title, heads, tuple(rows), words=table.words), console)
    if notes:
        console.print()
    for note in notes:
        show_text(f"note: {one_line(note)}", console, "")


def _markdown(tables: Sequence[FigureTable], notes: Sequence[str]) -> Iterator[str]:
    """Lines of Markdown: each table under its title."""
    for table in tables:
        yield f"**{markdown_text(table.title)}**\n\n"
        columns = [ResultColumn(head, at >= table.words) for at, head in enumerate(table.heads)]
        yield from (*markdown_table(columns, table.rows), "\n")
    for note in notes:
        yield f"- {markdown_text(note)}\n"


def _latex(tables: Sequence[FigureTable], notes: Sequence[str]) -> Iterator[str]:
    """Lines of LaTeX: a tabular for each table, with the rules of booktabs."""
    yield "% \\usepackage{booktabs}\n"
    for table in tables:
        columns = "l" * table.words + "r" * (len(table.heads) - table.words)
        yield f"% {one_line(table.title)}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        for at, line in enumerate((table.heads, *table.rows)):
            yield f"{' & '.join(map(_escaped, line))} \\\\\n" + ("\\midrule\n" if at == 0 else "")
        yield "\\bottomrule\n\\end{tabular}\n"
    for note in notes:
        yield f"% {one_line(note)}\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def decimals_of(se: float | None) -> int:
    """How many decimals show two digits of a standard error; three where there is none."""
    if not se:
        return 3
    return max(0, min(_MOST_DECIMALS, 1 - math.floor(math.log10(se))))


def figure(value: float | None, se: float | None) -> str:
    """A value to the digits that its standard error leaves."""
    return "" if value is None else f"{value:.{decimals_of(se)}f}"


def interval_text(low: float | None, high: float | None, se: float | None) -> str:
    """`[0.329, 0.382]`."""
    return "" if low is None or high is None else f"[{figure(low, se)}, {figure(high, se)}]"


def chance(p: float | None) -> str:
    """A p value: `0.43`, `0.0027`, `<0.0001`."""
    if p is None:
        return ""
    if p < 0.0001:
        return "<0.0001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:#.2g}"
