"""What runs cost, as text: tables for a terminal, CSV, Markdown. Names come from rows and servers.

A table is as wide as the terminal at most. The other forms hold one table, by run or by the columns
asked for, with everything.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from batchrun.formats.amounts import known_usd, plural, short_count, usd
from batchrun.formats.csv_text import csv_line
from batchrun.formats.printable import cut, one_line
from batchrun.formats.result_text import ResultColumn, result_text
from batchrun.formats.text_tables import Section, show_section, show_text, width_of, widths
from batchrun.reports.bill.cost import RUN, CostLine, Costs, RunCost
from batchrun.reports.bill.cost_queries import UsageCounts

_MOST_LINES = 20  # of a breakdown; all of them are in the other formats
_MOST_GROUPS = 1_000  # of the columns asked for
_MOST_NAME = 30  # characters of a name where there is little space
_UNLIMITED = 10_000  # characters of a line
_FIXED = ("rows", "attempts", "in", "out", "cost")
_OF_GROUPS = ("rows", "ok", "cost", "per ok row")
_UNPAID = "simulated, so nothing was paid"
_NO_COUNTS = (
    "rows, attempts and tokens do not fit beside it; leave --model and --tier out, or give "
    "--format json"
)


def cost_text(form: str, costs: Costs) -> Iterator[str]:
    """Pieces of CSV or Markdown: a line for each group, or else for each run.

    The total is a line of Markdown alone, so that what adds a column of the CSV up is right.
    """
    counts = [*UsageCounts.__struct_fields__, "unpriced"]
    taken = {*counts, "cost_usd", "usd_per_ok", "is_partly", "priced_as", *_OF_GROUPS}
    by = [f"by {name}" if name in taken else name for name in costs.grouped_by or (RUN,)]
    lines = costs.groups
    if not costs.grouped_by:
        lines = tuple(replace(run.total, values=(run.run,)) for run in costs.runs)
    if form == "csv":
        heads = [*by, *counts, "cost_usd", "usd_per_ok", "is_partly", "priced_as"]
        yield csv_line([*heads, *(f"cost_usd {name}" for name in costs.what_if)], for_sheets=True)
        for line in lines:
            figures: list[Any] = [getattr(line, name) for name in counts]
            figures += [line.cost_usd, line.usd_per_ok, line.is_partly, " ".join(line.priced_as)]
            yield csv_line([*line.values, *figures, *line.what_if_usd], for_sheets=True)
        return
    heads = [*by, *_OF_GROUPS[:2], "attempts", "input tokens", "output tokens"]
    heads += [*_OF_GROUPS[2:], *costs.what_if]
    columns = [ResultColumn(head, is_number=at >= len(by)) for at, head in enumerate(heads)]
    total = replace(costs.total, values=("total",) + ("",) * (len(by) - 1))
    rows = [_markdown_row(line) for line in (*lines, total)]
    yield from result_text("markdown", columns, lambda: rows, _UNLIMITED)
    for note in (*_notes(costs), *([costs.caveat] if costs.caveat else [])):
        yield f"\n{one_line(note)}\n"


def _markdown_row(line: CostLine) -> list[str]:
    counts = (line.rows, line.ok, line.attempts, line.input_tokens, line.output_tokens)
    return [
        *map(_name, line.values),
        *(f"{count:,}" for count in counts),
        _cost(line),
        _per_ok(line),
        *map(_dollars, line.what_if_usd, line.what_if_partly),
    ]


def show_costs(costs: Costs, stream: TextIO) -> None:
    """Runs and their total, then by the columns asked for, or by what is always of interest."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if len(costs.runs) == 1:
        _show_run(costs.runs[0], costs, console)
    elif costs.grouped_by:
        folder, _ = _short_names([run.run for run in costs.runs])
        words = f"{len(costs.runs):,} runs" + (f" in {one_line(folder)}" if folder else "")
        console.print(Text(words), soft_wrap=True)
        _show_sums(costs, [note for note in _notes(costs) if _UNPAID not in note], console)
    else:
        _show_runs(costs, console)
    if costs.grouped_by:
        _show_groups(costs, console)
    else:
        _show_breakdowns(costs, console)
    if costs.caveat:
        console.print()
        show_text(costs.caveat, console, "")


def _show_run(run: RunCost, costs: Costs, console: Console) -> None:
    total, recorded = run.total, run.recorded_usd
    console.print(Text(one_line(run.run)), soft_wrap=True)
    more = []
    known = -1.0 if total.cost_usd is None else total.cost_usd
    if recorded is not None and not math.isclose(recorded, known, rel_tol=1e-6, abs_tol=1e-12):
        more.append(f"calculated during the run: {usd(recorded)}")
    if run.reported_usd is not None:
        more.append(f"according to the gateway: {usd(run.reported_usd)}")
    _show_sums(costs, (*more, *(f"note: {note}" for note in run.notes)), console)
    if costs.what_if:
        changes = ("", *(_change(total, cost) for cost in total.what_if_usd))
        rows = list(zip(("as run", *costs.what_if), _total(costs), changes, strict=True))
        _show_tables([_section("What if", ("", "cost", ""), rows)], 3, console)


def _show_sums(costs: Costs, more: Iterable[str], console: Console) -> None:
    """Of all runs together."""
    total = costs.total
    tokens = f"{total.input_tokens:,} tokens in ({total.cached_tokens:,} cached)"
    counts = f"{plural(total.rows, 'row')}, {plural(total.attempts, 'attempt')}; {tokens}"
    unpaid = f"; {_UNPAID}" if all(run.simulated for run in costs.runs) else ""
    lines = [f"cost: {_total(costs)[0]}{unpaid}", f"{counts}, {total.output_tokens:,} out"]
    for line in (*lines, *more):
        show_text(one_line(line), console)


def _show_runs(costs: Costs, console: Console) -> None:
    folder, names = _short_names([run.run for run in costs.runs])
    rows = [
        (name, *_counts(run.total), *_all_costs(run.total, run.unknown_usd))
        for name, run in zip(names, costs.runs, strict=True)
    ]
    rows.append(("total", *_counts(costs.total), *_total(costs)))
    heads = ("", *_FIXED, *costs.what_if)
    title = f"Runs in {_end_of(folder, console.width - 8)}" if folder else "Runs"
    section = replace(_section("Runs", heads, rows, most=len(rows)), title=title)
    _show_with_counts([section], costs, console)
    if notes := list(_notes(costs)):
        console.print()
    for note in notes:
        show_text(one_line(note), console)


def _notes(costs: Costs) -> Iterator[str]:
    """Those of each run, with its name, and what there is to say of the total."""
    count = sum(run.simulated for run in costs.runs)
    of_note: dict[str, list[str]] = {}
    for run, name in zip(costs.runs, _short_names([run.run for run in costs.runs])[1], strict=True):
        is_apart = run.simulated and count < len(costs.runs)
        for note in (*([_UNPAID] if is_apart else []), *run.notes):
            of_note.setdefault(note, []).append(name)
    for note, names in of_note.items():
        if len(costs.runs) == 1:
            yield note
        else:
            yield f"{names[0] if len(names) == 1 else f'in each of {len(names)} runs'}: {note}"
    if count == len(costs.runs):
        yield f"all runs are {_UNPAID}"
    elif costs.simulated_usd is not None:
        yield f"{usd(costs.simulated_usd)} of the total is of simulated runs and was not paid"


def _show_groups(costs: Costs, console: Console) -> None:
    by = [one_line(name) for name in costs.grouped_by]
    values = [list(map(_name, line.values)) for line in costs.groups]
    if RUN in costs.grouped_by:
        at = costs.grouped_by.index(RUN)
        paths = list(dict.fromkeys(row[at] for row in values))
        short = dict(zip(paths, _short_names(paths)[1], strict=True))
        for row in values:
            row[at] = short[row[at]]
    rows = [(*row, *_figures(line)) for row, line in zip(values, costs.groups, strict=True)]
    if len(rows) > 1:
        total = ("total", *[""] * (len(by) - 1), *_figures(costs.total))
        rows = [*rows[:_MOST_GROUPS], total]
    heads = (*by, *_OF_GROUPS, *costs.what_if)
    section = _section(f"By {', '.join(by)}", heads, rows, most=len(rows))
    if len(costs.groups) > _MOST_GROUPS:
        more = f"{_MOST_GROUPS:,} of {len(costs.groups):,}; --format csv has them all"
        section = replace(section, note=more)
    section = replace(section, words=len(by))
    _show_tables([section], len(by) + len(_OF_GROUPS), console)


def _figures(line: CostLine) -> tuple[str, ...]:
    """As `_OF_GROUPS` names them, and what it would have cost."""
    counts = (f"{line.rows:,}", f"{line.ok:,}") if line.rows else ("", "")
    return (*counts, _cost(line), _per_ok(line), *_all_costs(line)[1:])


def _show_breakdowns(costs: Costs, console: Console) -> None:
    tables = [_breakdown(title, lines, costs.what_if) for title, lines in costs.by.items()]
    _show_with_counts(tables, costs, console)


def _show_with_counts(tables: Sequence[Section], costs: Costs, console: Console) -> None:
    """Without the counts, where they do not fit beside what it would have cost."""
    fixed = 1 + len(_FIXED)
    if costs.what_if and width_of(widths(tables, _UNLIMITED)) > console.width:
        show_text(_NO_COUNTS, console)
        without = (0, *range(fixed - 1, len(tables[0].heads)))
        tables, fixed = [_columns(table, without) for table in tables], 2
    _show_tables(tables, fixed, console)


def _breakdown(title: str, lines: Sequence[CostLine], what_if: Sequence[str]) -> Section:
    rows = [(_name(line.name), *_counts(line), *_all_costs(line)) for line in lines]
    renamed = dict.fromkeys(
        f"{_name(line.name)} as {name}"
        for line in lines[:_MOST_LINES]
        for name in line.priced_as
        if name != line.name and title == "model"
    )
    note = one_line(f"priced: {', '.join(renamed)}") if renamed else None
    return _section(f"By {title}", ("", *_FIXED, *what_if), rows, note)


def _section(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str | None = None,
    most: int = _MOST_LINES,
) -> Section:
    """The first lines of the table."""
    if len(rows) > most:
        more = f"{most} of {len(rows):,}; --format json has them all"
        note = f"{more}; {note}" if note else more
    shown = tuple(tuple(map(one_line, row)) for row in rows[:most])
    return Section(title, title, tuple(map(one_line, heads)), shown, note=note)


def _show_tables(tables: Sequence[Section], fixed: int, console: Console) -> None:
    """Columns of one width; those that do not fit follow in further tables, beside the first ones.

    `fixed`: how many columns each table begins with.
    """
    sizes = widths(tables, _UNLIMITED)
    for column in range(tables[0].words):
        sizes[column] = min(sizes[column], _MOST_NAME)
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


def _short_names(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all are in, if there is one, and what tells the paths apart."""
    runs = [Path(path) for path in paths]
    folder = ""
    with suppress(ValueError):  # of full and relative paths
        folder = os.path.commonpath([run.parent for run in runs])
    inner = [run if folder in ("", ".", "..") else run.relative_to(folder) for run in runs]
    folder = "" if inner == runs else folder
    names = [one_line(str(name)) for name in inner]
    begins = [cut(name, _MOST_NAME) for name in names]
    ends = [_end_of(name, _MOST_NAME) for name in names]
    for some in (begins, ends):
        if len(set(some)) == len(some):
            return folder, some
    return folder, [f"{number}: {name}" for number, name in enumerate(names, 1)]


def _end_of(text: str, most: int) -> str:
    text = one_line(text)
    return text if len(text) <= most else "…" + text[1 - most :]


def _name(name: str | None) -> str:
    return "(null)" if name is None else name


def _counts(line: CostLine) -> tuple[str, ...]:
    """Of rows, attempts and tokens; lines of attempts alone have no rows."""
    rows = f"{line.rows:,}" if line.rows else ""
    tokens = short_count(line.input_tokens), short_count(line.output_tokens)
    return rows, f"{line.attempts:,}", *tokens


def _cost(line: CostLine) -> str:
    return _dollars(line.cost_usd, line.is_partly)


def _per_ok(line: CostLine) -> str:
    return "" if line.usd_per_ok is None else _dollars(line.usd_per_ok, line.is_partly)


def _all_costs(line: CostLine, unknown_usd: float = 0.0) -> list[str]:
    """What it cost, and would have cost; `unknown_usd`: at most so much more."""
    costs = (line.cost_usd, *line.what_if_usd)
    is_partly = (line.is_partly, *line.what_if_partly)
    return [
        _dollars(cost, some or unknown_usd > 0) for cost, some in zip(costs, is_partly, strict=True)
    ]


def _total(costs: Costs) -> list[str]:
    return _all_costs(costs.total, costs.unknown_usd)


def _dollars(cost: float | None, is_partly: bool) -> str:
    return known_usd(cost, is_partly=is_partly)


def _change(total: CostLine, cost: float | None) -> str:
    """Empty where the two are not of the same tokens."""
    if cost is None or not total.cost_usd or total.unpriced:
        return ""
    return f"{(cost - total.cost_usd) / total.cost_usd:+.0%}"
