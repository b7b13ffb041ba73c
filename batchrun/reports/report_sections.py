"""A report as tables of words, the same for the terminal and for the page."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from batchrun.formats.amounts import UNKNOWN, duration, known_usd, plural, seconds, usd
from batchrun.formats.printable import brief, named, one_line
from batchrun.formats.text_tables import Section, show_section, show_text
from batchrun.records import Estimated
from batchrun.reports.report_queries import TABLES, Report, Spread, Tokens

_HIDDEN = ("unknown", "in_all")  # columns that are no part of a table
_LONGEST = {  # characters of what rows or servers made
    "id": 40,
    "example": 160,
    "outcome": 160,
    **dict.fromkeys(("variant", "model", "tool"), 120),
}
_LONGEST_NAME = 60
_LONGEST_LIMIT = 120
# What was true for a moment.
_NEXT = re.compile(r"(, next request in [\d.]+ s)?(, gives up in [\w. ]+)?")
_WORKERS = Section(
    "workers",
    "Workers",
    words=3,
    note="adopted: the worker was lost; its stored rows count, and others completed the rest",
)
_SPREADS = {
    "latency_s": "latency",
    "first_token_s": "first token",
    "elapsed_s": "first send to end",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "cost_usd": "cost",
}


def show_report(report: Report, stream: TextIO) -> None:
    """Writes it; bold where the stream is a terminal."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(one_line(report.run), style="bold"), soft_wrap=True)
    for line in (headline(report), *remarks(report)):
        show_text(line, console)
    for section in sections(report):
        show_section(section, console)


def ok_rows(report: Report) -> int:
    return sum(row["rows"] for row in report.tables["outcomes"] if row["outcome"] == "ok")


def headline(report: Report) -> str:
    """`finished: 3,000 rows, 2,990 ok, 10 remaining; $1.20`, in one line."""
    words = f"{report.state}: {plural(report.rows, 'row')}, {ok_rows(report):,} ok"
    if report.left:
        words += f", {report.left:,} remaining"
    if report.not_asked:
        words += f" ({not_asked_in_words(report)})"
    is_partly = bool(report.unknown_attempts or report.unknown_usd)
    if report.cost_usd is None and not is_partly:  # nothing was sent
        return words
    money = known_usd(report.cost_usd, is_partly=is_partly)
    words += "; cost unknown" if money == UNKNOWN else f"; {money}"
    return words + (", simulated, so nothing is paid" if report.simulated else "")


def not_asked_in_words(report: Report) -> str:
    """`not asked for`, or `80 not asked for`: of the remaining rows."""
    words = "not asked for"
    return words if report.not_asked == report.left else f"{report.not_asked:,} {words}"


def remarks(report: Report) -> list[str]:
    """What else a reader must know."""
    lines = []
    if report.started_at is not None and report.finished_at is not None:
        ran = report.timeline.span_s if report.timeline else 0.0
        resumed = len(report.timeline.resumed) if report.timeline else 0
        pauses = {0: "", 1: ", resumed once"}.get(resumed, f", resumed {resumed} times")
        times = (report.started_at, report.finished_at)
        first, last = (f"{datetime.fromtimestamp(at / 1e6, UTC):%Y-%m-%d %H:%M:%S}" for at in times)
        lines.append(f"from {first} to {last} UTC; {duration(ran)} of work{pauses}")
    if report.timeline is not None and report.timeline.limits:
        limit = report.timeline.limits[0]
        words = brief(_NEXT.sub("", limit.words), _LONGEST_LIMIT)
        lines.append(f"for {share_in_words(limit.share)} of the time limited by {words}")
    if report.unknown_attempts:
        attempts = plural(report.unknown_attempts, "attempt")
        models = sorted(report.unpriced_models)
        why = f"no price for {named(models)}" if models else "no price, or no usage reported"
        lines.append(f"the cost of {attempts} is not included ({why})")
    if report.unknown_usd:
        most = usd(report.unknown_usd)
        lines.append(f"at most {most} more for attempts whose cost is not known")
    if report.reported_cost_usd is not None:
        lines.append(f"cost as the gateway reports it: {usd(report.reported_cost_usd)}")
    if report.estimated is not None:
        lines.append(_against_the_estimate(report, report.estimated))
    if report.calls_in_text or report.chat_calls:
        lines.append(_stray_calls(report))
    if report.not_in_input:
        lines.append(f"{plural(report.not_in_input, 'row')} no longer in the input")
    return lines


def _stray_calls(report: Report) -> str:
    """That the server left calls where they are no output items."""
    seen = {
        "what looks like tool calls inside the text": report.calls_in_text,
        "`tool_calls` as chat completions have them": report.chat_calls,
    }
    words = [f"{plural(rows, 'row')} with {what}" for what, rows in seen.items() if rows]
    return (
        f"{', '.join(words)}: they are stored as they came, and are not in the table tool_calls; "
        "check the tool-call parser of the server"
    )


def _against_the_estimate(report: Report, estimated: Estimated) -> str:
    """What a pilot had estimated, and what it was."""
    if estimated.cost_usd is None or report.cost_usd is None:
        expected = f"{estimated.output_tokens:,} output tokens"
        was = f"{report.tokens.output_tokens:,}"
    else:
        expected, was = usd(estimated.cost_usd), usd(report.cost_usd)
        if estimated.low_usd is not None and estimated.high_usd is not None:
            expected += f", between {usd(estimated.low_usd)} and {usd(estimated.high_usd)}"
    rows, of_rows = (plural(count, "row") for count in (estimated.rows, report.rows))
    was += f" for {of_rows}" if of_rows != rows else ""
    so_far = "so far it is" if report.left else "it was"
    pilot = f"a pilot of {estimated.pilot_rows:,}"
    return f"estimated for {rows} by {pilot}: {expected}; {so_far} {was}"


def sections(report: Report) -> list[Section]:
    """Those that have rows."""
    found = [_filled(section, report.tables[section.name]) for section in TABLES]
    found[3:3] = [_tokens(report.tokens), _spreads(report.spreads)]
    found.append(_filled(_WORKERS, report.tables["workers"]))
    if report.is_expanded:
        found = [
            replace(one, heads=("id|variant|sample", *one.heads[1:])) if "id" in one.heads else one
            for one in found
        ]
    return [section for section in found if section.rows]


def _filled(section: Section, rows: Sequence[Mapping[str, Any]]) -> Section:
    heads = tuple(head for head in rows[0] if head not in _HIDDEN) if rows else ()
    cells = tuple(
        tuple(_cost(row) if head == "cost" else _cell(head, row[head]) for head in heads)
        for row in rows
    )
    in_all = rows[0].get("in_all", 0) if rows else 0
    note = f"the first {len(rows)} of {in_all:,}" if in_all > len(rows) else None
    notes = "; ".join(filter(None, (section.note, note))) or None
    return replace(section, heads=heads, rows=cells, note=notes)


def _cost(row: Mapping[str, Any]) -> str:
    """As every command shows a cost; what was never sent has cost nothing."""
    is_partly = bool(row["unknown"])
    return known_usd(row["cost"] if is_partly else row["cost"] or 0.0, is_partly=is_partly)


def _cell(head: str, value: str | float | None) -> str:
    """A figure in the unit of its column, a text harmless and not too long."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return brief(value, _LONGEST.get(head, _LONGEST_NAME))
    if isinstance(value, int):
        return f"{value:,}"
    if head.startswith("share"):
        return share_in_words(value)
    return usd(value) if head == "cost" else seconds(value)


def _tokens(tokens: Tokens) -> Section:
    both = tokens.input_tokens + tokens.output_tokens
    kinds = {
        "input": tokens.input_tokens,
        "  of it cached": tokens.cached_tokens,
        "  of it written to the cache": tokens.cache_write_tokens,
        "output": tokens.output_tokens,
        "  of it reasoning": tokens.reasoning_tokens,
    }
    rows = tuple(
        (name, f"{count:,}", share_in_words(count / both)) for name, count in kinds.items() if both
    )
    note = "of the answers that counted"
    return Section("tokens", "Tokens", ("", "tokens", "share of all"), rows, note=note)


def _spreads(spreads: Iterable[Spread]) -> Section:
    rows = tuple((_SPREADS[one.name], f"{one.rows:,}", *_percentiles(one)) for one in spreads)
    heads = ("", "rows", "median", "p90", "p99", "most")
    note = "latency and first token of the final attempt"
    return Section("spreads", "Per row", heads, rows, note=note)


def _percentiles(spread: Spread) -> Iterator[str]:
    head = "cost" if spread.name == "cost_usd" else "time"
    return (_cell(head, value) for value in (spread.p50, spread.p90, spread.p99, spread.max))


def share_in_words(share: float) -> str:
    """Never 100 % or 0 % where that is not so."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{share:.1%}".replace("%", " %")
