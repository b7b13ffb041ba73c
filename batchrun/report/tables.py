"""A report in a terminal: tables that fit 80 columns."""

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchrun.report.figures import Report
from batchrun.report.printable import one_line
from batchrun.report.sections import Section, headline, remarks, sections


def show_report(report: Report, stream: TextIO) -> None:
    """Writes it; bold where the stream is a terminal."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(one_line(report.run), style="bold"), soft_wrap=True)
    for line in (headline(report), *remarks(report)):
        console.print(Text(f"  {line}"))
    for section in sections(report):
        show_section(section, console)


def show_section(section: Section, console: Console) -> None:
    """A line left free, the title, the table."""
    console.print()
    title = Text(section.title, style="bold")
    if section.note:
        title.append(f" ({section.note})", style="not bold")
    console.print(title)
    console.print(_table(section))


def _table(section: Section) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    last = len(section.heads) - 1
    for at, head in enumerate(section.heads):
        words = at < section.words
        message = section.message and at == last
        table.add_column(
            Text(head),
            justify="left" if words or message else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if message else None,
            # A figure is never cut, a name is where there is no room.
            min_width=None if words or message else _width(section, at),
        )
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _width(section: Section, at: int) -> int:
    return max(len(row[at]) for row in section.rows)
