"""What runs cost, as tables for a terminal. Names in them come from rows and servers."""

import textwrap
from collections.abc import Sequence

from msgspec import Struct

from batchrun.formats.amounts import short_count, usd
from batchrun.formats.printable import one_line, printable
from batchrun.reports.cost import CostLine, Costs, RunCost

_NO_PRICE = "unknown"
_MOST_LINES = 20  # of a breakdown; all of them are in the JSON
_LEAST_NAME, _MOST_NAME = 12, 30  # where there is little room
_COST_WIDTH = 14  # of most costs, and of the name of a run above them
_NO_COUNTS = (
    "rows, tries and tokens do not fit beside it: leave --model and --tier out, or give --json"
)


class _Table(Struct):
    """Cells of text: the first column to the left, all others to the right."""

    head: list[str]
    rows: list[list[str]]
    below: list[str] = []


def _rendered(tables: Sequence[_Table], width: int) -> list[str]:
    """The tables below each other, their columns of one width."""
    sizes = _sizes(tables)
    others = sum(size + 2 for size in sizes[1:])
    sizes[0] = min(sizes[0], max(width - 2 - others, _LEAST_NAME))
    lines = []
    for table in tables:
        lines.append("")
        for name, *cells in (table.head, *table.rows):
            shown = name if len(name) <= sizes[0] else name[: sizes[0] - 1] + "…"
            rest = "".join(f"  {cell:>{size}}" for cell, size in zip(cells, sizes[1:], strict=True))
            lines.append(f"  {shown:<{sizes[0]}}{rest}".rstrip())
        for line in table.below:
            lines += _wrapped(line, width, "    ")
    return lines


def _sizes(tables: Sequence[_Table]) -> list[int]:
    lines = [line for table in tables for line in (table.head, *table.rows)]
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def render_costs(costs: Costs, width: int = 80) -> str:
    """One run by what its cost is made of; several beside each other."""
    runs = costs.runs
    lines: list[str] = []
    if len(runs) == 1:
        lines += _one_run(runs[0], costs.what_if, width)
    else:
        lines += _several(runs, costs.what_if, width)
    if costs.caveat:
        lines += ["", *_wrapped(costs.caveat, width)]
    return printable("\n".join(lines))


def _one_run(run: RunCost, what_if: Sequence[str], width: int) -> list[str]:
    total = run.total
    said = f"cost: {_dollars(total.cost_usd, is_partly=False)}{_partly(run)}{_simulated(run)}"
    lines = [one_line(run.run), *_wrapped(said, width, "  ")]
    counts = (
        f"{total.rows:,} rows, {total.attempts:,} tries; {total.input_tokens:,} tokens in "
        f"({total.cached_tokens:,} cached), {total.output_tokens:,} out"
    )
    lines += _wrapped(counts, width, "  ")
    lines += _beside(run)
    for note in run.notes:
        lines += _wrapped(f"note: {one_line(note)}", width, "  ")
    if what_if:
        rows = [["as it was", _total(run), ""]]
        rows += [
            [one_line(name), _total_if(run, at), _change(total.what_if_usd[at], total)]
            for at, name in enumerate(what_if)
        ]
        lines += _rendered([_Table(["what if", "cost", ""], rows)], width)
    return lines + _breakdowns(run, what_if, width)


def _breakdowns(run: RunCost, what_if: Sequence[str], width: int) -> list[str]:
    """All dollars, in several blocks of tables where one is too narrow; the counts give way."""
    tables = [_breakdown(title, breakdown, what_if) for title, breakdown in run.by.items()]
    if not what_if or sum(size + 2 for size in _sizes(tables)) <= width:
        return _rendered(tables, width)
    lines = _wrapped(_NO_COUNTS, width, "  ")
    name, *_, cost = _sizes([_breakdown(title, some, ()) for title, some in run.by.items()])
    sizes = _sizes(tables)[-len(what_if) :]
    room = max(width - (min(name, _MOST_NAME) + 2) - (cost + 2), 0)
    first = 0
    while first < len(what_if):
        end, taken = first, 0
        while end < len(what_if) and (end == first or taken + sizes[end] + 2 <= room):
            taken += sizes[end] + 2
            end += 1
        some = range(first, end)
        lines += _rendered([_dollars_alone(table, what_if, some) for table in tables], width)
        first = end
    return lines


def _dollars_alone(table: _Table, what_if: Sequence[str], some: range) -> _Table:
    """The name, the cost and these columns of `what_if`."""
    cost = len(table.head) - len(what_if) - 1
    places = (0, cost, *(cost + 1 + at for at in some))
    head, *rows = ([line[at] for at in places] for line in (table.head, *table.rows))
    return _Table(head, rows, table.below)


def _beside(run: RunCost) -> list[str]:
    """What was reckoned while it ran and what the gateway said, where it is something else."""
    said = []
    if run.recorded_usd is not None and not _same(run.recorded_usd, run.total.cost_usd):
        said.append(f"reckoned while it ran: {usd(run.recorded_usd)}")
    if run.reported_usd is not None:
        said.append(f"the gateway says {usd(run.reported_usd)}")
    return [f"  {'; '.join(said)}"] if said else []


def _same(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) <= 1e-6 * max(abs(one), abs(other), 1e-6)


def _breakdown(title: str, breakdown: Sequence[CostLine], what_if: Sequence[str]) -> _Table:
    """With the dollars of `what_if` where it names any."""
    has_rows = title != "attempt"
    rows = [
        [
            _name(line),
            f"{line.rows:,}" if has_rows else "",
            f"{line.attempts:,}",
            short_count(line.input_tokens),
            short_count(line.output_tokens),
            _cost(line),
            *(_cost_if(line, at) for at in range(len(what_if))),
        ]
        for line in breakdown[:_MOST_LINES]
    ]
    below = _more(len(breakdown))
    if title == "model":
        renamed = dict.fromkeys(
            f"{_name(line)} as {one_line(name)}"
            for line in breakdown[:_MOST_LINES]
            for name in line.priced_as
            if name != line.name
        )
        below += [f"priced: {', '.join(renamed)}"] if renamed else []
    head = [f"by {title}", "rows" if has_rows else "", "tries", "in", "out", "cost"]
    return _Table([*head, *map(one_line, what_if)], rows, below)


def _more(lines: int) -> list[str]:
    hidden = lines - _MOST_LINES
    return [f"and {hidden:,} more; --json has them all"] if hidden > 0 else []


def _several(runs: Sequence[RunCost], what_if: Sequence[str], width: int) -> list[str]:
    rows = [
        [
            one_line(run.run),
            f"{run.total.rows:,}",
            f"{run.total.attempts:,}",
            short_count(run.total.input_tokens),
            short_count(run.total.output_tokens),
            _total(run),
        ]
        for run in runs
    ]
    lines = _rendered([_Table(["run", "rows", "tries", "in", "out", "cost"], rows)], width)[1:]
    for run in runs:
        simulated = ["simulated, so nothing was paid"] if run.simulated else []
        for note in (*simulated, *run.notes):
            lines += _wrapped(f"{one_line(run.run)}: {one_line(note)}", width, "  ")
    names = _short_names([run.run for run in runs])
    beside = max(1, (width - 2 * _LEAST_NAME) // _COST_WIDTH)
    for at in range(0, len(runs), beside):
        some = slice(at, at + beside)
        lines += _rendered(_beside_each_other(runs[some], names[some], what_if), width)
    return lines


def _beside_each_other(
    runs: Sequence[RunCost], names: Sequence[str], what_if: Sequence[str]
) -> list[_Table]:
    tables = []
    if what_if:
        first = ["as it was", *map(_total, runs)]
        rows = [
            [one_line(name), *(_total_if(run, at) for run in runs)]
            for at, name in enumerate(what_if)
        ]
        tables.append(_Table(["what if", *names], [first, *rows]))
    for title in runs[0].by:
        of_runs = [{line.name: line for line in run.by[title]} for run in runs]
        called = {name: line for lines_of in of_runs for name, line in lines_of.items()}
        rows = [
            [_name(line), *(_cost(of[name]) if name in of else "" for of in of_runs)]
            for name, line in list(called.items())[:_MOST_LINES]
        ]
        tables.append(_Table([f"by {title}", *names], rows, _more(len(called))))
    return tables


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last words of paths, cut where they still differ, else numbers."""
    last = [one_line(path.rstrip("/").rpartition("/")[2]) for path in paths]
    most = _COST_WIDTH - 2
    begins = [name if len(name) <= most else name[: most - 1] + "…" for name in last]
    ends = [name if len(name) <= most else "…" + name[1 - most :] for name in last]
    for names in (begins, ends):
        if len(set(names)) == len(names):
            return names
    return [f"run {number}" for number in range(1, len(paths) + 1)]


def _name(line: CostLine) -> str:
    return "(null)" if line.name is None else one_line(line.name)


def _cost(line: CostLine) -> str:
    return _dollars(line.cost_usd, is_partly=_is_partly(line))


def _cost_if(line: CostLine, at: int) -> str:
    return _dollars(line.what_if_usd[at], is_partly=line.what_if_partly[at])


def _total(run: RunCost) -> str:
    is_partly = _is_partly(run.total) or bool(run.unknown_usd)
    return _dollars(run.total.cost_usd, is_partly=is_partly)


def _total_if(run: RunCost, at: int) -> str:
    is_partly = run.total.what_if_partly[at] or bool(run.unknown_usd)
    return _dollars(run.total.what_if_usd[at], is_partly=is_partly)


def _dollars(cost: float | None, *, is_partly: bool) -> str:
    """With `+?` where it is not all."""
    return _NO_PRICE if cost is None else usd(cost) + ("+?" if is_partly else "")


def _is_partly(line: CostLine) -> bool:
    return bool(line.unpriced or line.unknown)


def _partly(run: RunCost) -> str:
    is_partly = run.total.cost_usd is not None and (_is_partly(run.total) or run.unknown_usd)
    return ", as far as it is known" if is_partly else ""


def _simulated(run: RunCost) -> str:
    return "; simulated, so nothing was paid" if run.simulated else ""


def _change(cost: float | None, total: CostLine) -> str:
    """Nothing where the two do not tell of the same tokens."""
    if cost is None or not total.cost_usd or total.unpriced:
        return ""
    return f"{(cost - total.cost_usd) / total.cost_usd:+.0%}"


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
