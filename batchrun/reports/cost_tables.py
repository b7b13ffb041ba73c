"""What runs cost, as tables for a terminal. Names in them come from rows and servers."""

import math
from collections.abc import Sequence
from typing import TextIO

from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from batchrun.formats.amounts import plural, short_count, usd
from batchrun.formats.printable import cut, one_line
from batchrun.formats.text_tables import Section, show_section, show_text, width_of, widths
from batchrun.reports.cost import CostLine, Costs, RunCost

_MOST_LINES = 20  # of a breakdown; all of them are in the JSON
_MOST_NAME = 30  # characters of a name where there is little space
_RUN_NAME = 12  # the same of a run's, above its costs
_UNLIMITED = 10_000  # characters of a line
_FIXED = ("rows", "attempts", "in", "out", "cost")
_NO_COUNTS = (
    "rows, attempts and tokens do not fit beside it; leave --model and --tier out, or give --json"
)


def show_costs(costs: Costs, stream: TextIO) -> None:
    """One run by model, tier, status and kind of attempt; several runs side by side."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if len(costs.runs) == 1:
        _show_run(costs.runs[0], costs.what_if, console)
    else:
        _show_runs(costs.runs, costs.what_if, console)
    if costs.caveat:
        console.print()
        show_text(costs.caveat, console, "")


def _show_run(run: RunCost, what_if: Sequence[str], console: Console) -> None:
    total, recorded = run.total, run.recorded_usd
    cost = "unknown" if total.cost_usd is None else usd(total.cost_usd)
    if total.cost_usd is not None and (_is_partly(total) or run.unknown_usd):
        cost += ", as far as it is known"
    console.print(Text(one_line(run.run)), soft_wrap=True)
    tokens = f"{total.input_tokens:,} tokens in ({total.cached_tokens:,} cached)"
    counts = f"{plural(total.rows, 'row')}, {plural(total.attempts, 'attempt')}; {tokens}"
    lines = [
        f"cost: {cost}{'; simulated, so nothing was paid' if run.simulated else ''}",
        f"{counts}, {total.output_tokens:,} out",
    ]
    known = -1.0 if total.cost_usd is None else total.cost_usd
    if recorded is not None and not math.isclose(recorded, known, rel_tol=1e-6, abs_tol=1e-12):
        lines.append(f"calculated during the run: {usd(recorded)}")
    if run.reported_usd is not None:
        lines.append(f"according to the gateway: {usd(run.reported_usd)}")
    for line in (*lines, *(f"note: {note}" for note in run.notes)):
        show_text(one_line(line), console)
    if what_if:
        changes = ("", *(_change(total, cost) for cost in total.what_if_usd))
        rows = list(zip(("as run", *what_if), _totals(run), changes, strict=True))
        _show_tables([_section("What if", ("", "cost", ""), rows)], 3, console)
    tables = [_breakdown(title, lines, what_if) for title, lines in run.by.items()]
    fixed = 1 + len(_FIXED)
    if what_if and width_of(widths(tables, _UNLIMITED)) > console.width:
        show_text(_NO_COUNTS, console)
        without = (0, *range(fixed - 1, len(tables[0].heads)))
        tables, fixed = [_columns(table, without) for table in tables], 2
    _show_tables(tables, fixed, console)


def _show_runs(runs: Sequence[RunCost], what_if: Sequence[str], console: Console) -> None:
    rows = [(run.run, *_counts(run.total), _totals(run)[0]) for run in runs]
    _show_tables([_section("Runs", ("", *_FIXED), rows)], 1 + len(_FIXED), console)
    for run in runs:
        simulated = ["simulated, so nothing was paid"] if run.simulated else []
        for note in (*simulated, *run.notes):
            show_text(f"{one_line(run.run)}: {one_line(note)}", console)
    heads = ("", *_short_names([run.run for run in runs]))
    tables = []
    if what_if:
        totals = zip(("as run", *what_if), *map(_totals, runs), strict=True)
        tables.append(_section("What if", heads, list(totals)))
    for title in runs[0].by:
        of_runs = [{line.name: line for line in run.by[title]} for run in runs]
        names = dict.fromkeys(name for lines in of_runs for name in lines)
        rows = [
            (_name(name), *(_cost(lines[name]) if name in lines else "" for lines in of_runs))
            for name in names
        ]
        tables.append(_section(f"By {title}", heads, rows))
    _show_tables(tables, 1, console)


def _breakdown(title: str, lines: Sequence[CostLine], what_if: Sequence[str]) -> Section:
    rows = [
        (
            _name(line.name),
            *_counts(line),
            _cost(line),
            *map(_dollars, line.what_if_usd, line.what_if_partly),
        )
        for line in lines
    ]
    renamed = dict.fromkeys(
        f"{_name(line.name)} as {name}"
        for line in lines[:_MOST_LINES]
        for name in line.priced_as
        if name != line.name and title == "model"
    )
    note = one_line(f"priced: {', '.join(renamed)}") if renamed else None
    return _section(f"By {title}", ("", *_FIXED, *what_if), rows, note)


def _section(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str | None = None
) -> Section:
    """The first lines of the table."""
    if len(rows) > _MOST_LINES:
        more = f"{_MOST_LINES} of {len(rows):,}; --json has them all"
        note = f"{more}; {note}" if note else more
    shown = tuple(tuple(map(one_line, row)) for row in rows[:_MOST_LINES])
    return Section(title, title, tuple(map(one_line, heads)), shown, note=note)


def _show_tables(tables: Sequence[Section], fixed: int, console: Console) -> None:
    """Columns of one width; those that do not fit follow in further tables, beside the first ones.

    `fixed`: how many columns each table begins with.
    """
    sizes = widths(tables, _UNLIMITED)
    sizes[0] = min(sizes[0], _MOST_NAME)
    blocks: list[list[int]] = [[]]
    for column in range(fixed, len(sizes)):
        taken = [*range(fixed), *blocks[-1], column]
        if blocks[-1] and width_of([sizes[one] for one in taken]) > console.width:
            blocks.append([])
        blocks[-1].append(column)
    for block in blocks:
        parts = [_columns(table, (*range(fixed), *block)) for table in tables]
        of_part = widths(parts, console.width)
        for part in parts:
            show_section(part, console, of_part)


def _columns(section: Section, columns: Sequence[int]) -> Section:
    heads, *rows = (
        tuple(line[column] for column in columns) for line in (section.heads, *section.rows)
    )
    return replace(section, heads=heads, rows=tuple(rows))


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last words of paths, cut where they still differ, else numbers."""
    last = [one_line(path.rstrip("/").rpartition("/")[2]) for path in paths]
    begins = [cut(name, _RUN_NAME) for name in last]
    ends = [name if len(name) <= _RUN_NAME else "…" + name[1 - _RUN_NAME :] for name in last]
    for names in (begins, ends):
        if len(set(names)) == len(names):
            return names
    return [f"run {number}" for number in range(1, len(paths) + 1)]


def _name(name: str | None) -> str:
    return "(null)" if name is None else name


def _counts(line: CostLine) -> tuple[str, ...]:
    """Of rows, attempts and tokens; lines of attempts alone have no rows."""
    rows = f"{line.rows:,}" if line.rows else ""
    tokens = short_count(line.input_tokens), short_count(line.output_tokens)
    return rows, f"{line.attempts:,}", *tokens


def _cost(line: CostLine) -> str:
    return _dollars(line.cost_usd, _is_partly(line))


def _totals(run: RunCost) -> list[str]:
    """What it cost, and would cost in each scenario."""
    total = run.total
    costs = (total.cost_usd, *total.what_if_usd)
    is_partly = (_is_partly(total), *total.what_if_partly)
    return [
        _dollars(cost, some or run.unknown_usd > 0)
        for cost, some in zip(costs, is_partly, strict=True)
    ]


def _dollars(cost: float | None, is_partly: bool) -> str:
    """With `+?` where it is not all."""
    return "unknown" if cost is None else usd(cost) + ("+?" if is_partly else "")


def _is_partly(line: CostLine) -> bool:
    return bool(line.unpriced or line.unknown)


def _change(total: CostLine, cost: float | None) -> str:
    """Empty where the two are not of the same tokens."""
    if cost is None or not total.cost_usd or total.unpriced:
        return ""
    return f"{(cost - total.cost_usd) / total.cost_usd:+.0%}"
