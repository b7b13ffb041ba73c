"""A report as tables of words, the same for the terminal and for the page."""

import textwrap
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchrun.formats.amounts import duration, plural, seconds, usd
from batchrun.formats.printable import one_line
from batchrun.records import Estimated
from batchrun.reports.report_queries import Report, Spread, TopRow

_NAME = 60  # characters of a name that rows or servers made
_MESSAGE = 160
_SPREADS = {
    "latency_s": "latency",
    "first_token_s": "first token",
    "elapsed_s": "first send to end",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "cost_usd": "cost",
}

_ELAPSED = "from first send to end, without waits between commands"


class Section(Struct, frozen=True):
    """One table; the first `words` columns are words, the others figures."""

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str | None = None
    message: bool = False  # the last column is a message


def headline(report: Report) -> str:
    """`finished: 3,000 rows, 2,990 ok, 10 left; $1.20`, in one line."""
    ok = sum(one.rows for one in report.outcomes if one.outcome == "ok")
    words = f"{report.state}: {plural(report.rows, 'row')}, {ok:,} ok"
    if report.left:
        words += f", {report.left:,} left"
    if report.cost_usd is not None:
        is_partly = report.unknown_attempts or report.unknown_usd
        words += f"; {usd(report.cost_usd)}{'+?' if is_partly else ''}"
        if report.simulated:
            words += ", simulated, so nothing is paid"
    return words


def remarks(report: Report) -> list[str]:
    """What a reader must know besides."""
    lines = []
    if report.started_at is not None and report.finished_at is not None:
        ran = report.timeline.span_s if report.timeline else 0.0
        resumed = len(report.timeline.resumed) if report.timeline else 0
        pauses = {0: "", 1: ", resumed once"}.get(resumed, f", resumed {resumed} times")
        first, last = moment(report.started_at), moment(report.finished_at)
        lines.append(f"from {first} to {last} UTC; {duration(ran)} of work{pauses}")
    if report.unknown_attempts:
        attempts = plural(report.unknown_attempts, "attempt")
        why = "no price, or they ended without a count of tokens"
        lines.append(f"the cost of {attempts} is not known and in no sum: {why}")
    if report.unknown_usd:
        most = usd(report.unknown_usd)
        lines.append(f"up to {most} more for tries that never told what they cost")
    if report.reported_cost_usd is not None:
        lines.append(f"cost as the gateway reports it: {usd(report.reported_cost_usd)}")
    if report.estimated is not None:
        lines.append(_against_the_estimate(report, report.estimated))
    if report.gone:
        lines.append(f"{report.gone:,} of the rows have left the input since")
    return lines


def _against_the_estimate(report: Report, told: Estimated) -> str:
    """What a pilot had told, and what it was."""
    pilot = f"estimated for {plural(told.rows, 'row')} by a pilot of {told.pilot_rows:,}: "
    if told.cost_usd is None or report.cost_usd is None:
        was = f"{report.tokens.output_tokens:,}"
        words = f"{pilot}{told.output_tokens:,} output tokens"
    else:
        was = usd(report.cost_usd)
        words = f"{pilot}{usd(told.cost_usd)}"
        if told.low_usd is not None and told.high_usd is not None:
            words += f", between {usd(told.low_usd)} and {usd(told.high_usd)}"
    if report.rows != told.rows:
        was += f" for {plural(report.rows, 'row')}"
    return f"{words}; so far it is {was}" if report.left else f"{words}; it was {was}"


def sections(report: Report) -> list[Section]:
    """Those that have rows."""
    found = [
        _outcomes(report),
        _models(report),
        _tokens(report),
        _spreads(report),
        Section(
            "attempts",
            "Attempts",
            ("kind", "attempts", "failed", "cost"),
            tuple(
                (one.kind, _count(one.attempts), _count(one.failed), _usd(one.cost_usd))
                for one in report.tries
            ),
        ),
        Section(
            "errors",
            "Errors",
            ("kind", "attempts", "rows", "such as"),
            tuple(
                (one.kind, _count(one.attempts), _count(one.rows), cut(one.example, _MESSAGE))
                for one in report.errors
            ),
            note="attempts that met it, and rows that ended with it",
            message=True,
        ),
        _tools(report),
        _top("slowest", "Slowest rows", report.slowest, note=_ELAPSED),
        _top("dearest", "Dearest rows", report.dearest),
    ]
    return [section for section in found if section.rows]


def cut(text: str, most: int = _NAME) -> str:
    """The text in one harmless line, not longer than this."""
    text = one_line(" ".join(text[: 4 * most].split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def moment(at: int) -> str:
    """Microseconds since 1970 as `2026-11-22 21:05:09`."""
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _outcomes(report: Report) -> Section:
    rows = tuple(
        (
            one.outcome,
            _count(one.rows),
            _share(one.rows, report.rows),
            _count(one.output_tokens),
            _usd(one.cost_usd),
        )
        for one in report.outcomes
    )
    return Section("outcomes", "Outcomes", ("", "rows", "share", "output tokens", "cost"), rows)


def _models(report: Report) -> Section:
    rows = tuple(
        (
            cut(one.model or "-"),
            cut(one.service_tier or "-"),
            _count(one.rows),
            _count(one.input_tokens),
            _count(one.cached_tokens),
            _count(one.output_tokens),
            _usd(one.cost_usd),
        )
        for one in report.models
    )
    heads = ("model", "tier", "rows", "input", "cached", "output", "cost")
    return Section("models", "Models", heads, rows, words=2)


def _tokens(report: Report) -> Section:
    tokens = report.tokens
    both = tokens.input_tokens + tokens.output_tokens
    kinds = (
        ("input", tokens.input_tokens),
        ("  of it cached", tokens.cached_tokens),
        ("  of it written to the cache", tokens.cache_write_tokens),
        ("output", tokens.output_tokens),
        ("  of it reasoning", tokens.reasoning_tokens),
    )
    rows = tuple((name, _count(count), _share(count, both)) for name, count in kinds)
    note = "of the answers that counted"
    return Section("tokens", "Tokens", ("", "tokens", "share"), rows if both else (), note=note)


def _spreads(report: Report) -> Section:
    rows = tuple((_SPREADS[one.name], _count(one.rows), *_marks(one)) for one in report.spreads)
    heads = ("", "rows", "median", "p90", "p99", "most")
    note = "latency and first token: of the try that counted"
    return Section("spreads", "A row", heads, rows, note=note)


def _marks(spread: Spread) -> Iterable[str]:
    values = (spread.p50, spread.p90, spread.p99, spread.max)
    if spread.name.endswith("_s"):
        return map(seconds, values)
    if spread.name.endswith("_usd"):
        return map(usd, values)
    return (_count(int(value)) for value in values)


def _tools(report: Report) -> Section:
    rows = tuple(
        (
            cut(one.name),
            _count(one.calls),
            _count(one.valid),
            _count(one.invalid),
            _share(one.valid, one.valid + one.invalid),
        )
        for one in report.tools
    )
    heads = ("tool", "calls", "valid", "invalid", "share valid")
    note = "arguments that are JSON and fit the tool's schema"
    return Section("tools", "Tool calls", heads, rows, note=note)


def _top(name: str, title: str, top: Iterable[TopRow], note: str | None = None) -> Section:
    rows = tuple(
        (
            cut(one.custom_id, 40),
            one.outcome,
            _count(one.attempts),
            "-" if one.elapsed_s is None else seconds(one.elapsed_s),
            "-" if one.output_tokens is None else _count(one.output_tokens),
            _usd(one.cost_usd),
        )
        for one in top
    )
    heads = ("id", "outcome", "attempts", "time", "output tokens", "cost")
    return Section(name, title, heads, rows, words=2, note=note)


def _count(value: int) -> str:
    return f"{value:,}"


def _share(part: int, whole: int) -> str:
    """Never 100 % or 0 % where that is not so."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if part and share < 0.05:
        return "< 0.1 %"
    if part < whole and share >= 99.95:
        return "> 99.9 %"
    return f"{share:.1f} %"


def _usd(value: float | None) -> str:
    return "-" if value is None else usd(value)


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
