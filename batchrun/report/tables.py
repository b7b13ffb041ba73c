"""A report in a terminal: tables that fit 80 columns."""

import textwrap
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchrun.report.figures import Report
from batchrun.report.printable import one_line
from batchrun.report.sections import Section, cut, headline, remarks, sections

_BETWEEN = 2  # two columns
_LEAST_MESSAGE = 8


def show_report(report: Report, stream: TextIO) -> None:
    """Writes it; bold where the stream is a terminal."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(one_line(report.run), style="bold"), soft_wrap=True)
    for line in (headline(report), *remarks(report)):
        said = textwrap.fill(line, console.width, initial_indent="  ", subsequent_indent="    ")
        console.print(Text(said))
    for section in sections(report):
        show_section(section, console)


def show_section(section: Section, console: Console) -> None:
    """A line left free, the title, the table."""
    console.print()
    title = Text(section.title, style="bold")
    if section.note:
        title.append(f" ({section.note})", style="not bold")
    console.print(title)
    console.print(_table(section, console.width))


def _table(section: Section, width: int) -> Table:
    table = Table(box=None, padding=(0, _BETWEEN, 0, 0), pad_edge=False, header_style="dim")
    last = len(section.heads) - 1
    for at, head in enumerate(section.heads):
        words = at < section.words
        message = section.message and at == last
        table.add_column(
            Text(head),
            justify="left" if words or message else "right",
            no_wrap=True,
            overflow="ellipsis",
            # A figure is never cut, a name is where there is no room and no message to be cut.
            min_width=None if message or (words and not section.message) else _width(section, at),
        )
    others = sum(_width(section, at) + _BETWEEN for at in range(last))
    for row in section.rows:
        *cells, end = row
        if section.message:
            end = cut(end, max(width - others, _LEAST_MESSAGE))
        table.add_row(*map(Text, cells), Text(end))
    return table


def _width(section: Section, at: int) -> int:
    return max(len(row[at]) for row in (section.heads, *section.rows))
