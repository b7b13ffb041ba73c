"""What runs cost, as tables for a terminal. Names in them come from rows and servers."""

import textwrap
from collections.abc import Sequence

from msgspec import Struct

from batchrun.policy.budget import usd
from batchrun.report.cost import Costs, Line, RunCost
from batchrun.report.printable import one_line, printable

_NO_PRICE = "unknown"
_MOST_LINES = 20  # of a breakdown; all of them are in the JSON
_LEAST_NAME = 12


class _Table(Struct):
    """Cells of text: the first column to the left, all others to the right."""

    head: list[str]
    rows: list[list[str]]

    def render(self, width: int) -> list[str]:
        columns = list(zip(self.head, *self.rows, strict=True))
        sizes = [max(map(len, column)) for column in columns]
        others = sum(size + 2 for size in sizes[1:])
        sizes[0] = min(sizes[0], max(width - 2 - others, _LEAST_NAME))
        lines = []
        for name, *cells in (self.head, *self.rows):
            shown = name if len(name) <= sizes[0] else name[: sizes[0] - 1] + "…"
            rest = "".join(f"  {cell:>{size}}" for cell, size in zip(cells, sizes[1:], strict=True))
            lines.append(f"  {shown:<{sizes[0]}}{rest}".rstrip())
        return lines

    def width(self) -> int:
        columns = zip(self.head, *self.rows, strict=True)
        return sum(max(map(len, column)) + 2 for column in columns)


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
    lines = [f"{one_line(run.run)}: {_dollars(total.cost_usd)}{_partly(total)}{_simulated(run)}"]
    lines.append(
        f"  {total.rows:,} rows, {total.attempts:,} tries; {total.input_tokens:,} tokens in "
        f"({total.cached_tokens:,} cached), {total.output_tokens:,} out"
    )
    lines += _beside(run)
    for note in run.notes:
        lines += _wrapped(f"note: {one_line(note)}", width, "  ")
    if what_if:
        now = _dollars(total.cost_usd)
        rows = [["as it was", now, ""]]
        rows += [
            [one_line(name), _dollars(cost), _change(cost, total.cost_usd)]
            for name, cost in zip(what_if, total.what_if_usd, strict=True)
        ]
        lines += ["", *_Table(["what if", "cost", ""], rows).render(width)]
    for title, breakdown in run.by.items():
        lines += ["", *_breakdown(title, breakdown, what_if, width)]
    return lines


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


def _breakdown(
    title: str, breakdown: Sequence[Line], what_if: Sequence[str], width: int
) -> list[str]:
    shown = breakdown[:_MOST_LINES]
    per_row = title != "attempt"
    head = [f"by {title}", *(["rows"] if per_row else []), "tries", "in", "out", "cost"]
    rows = [
        [
            _name(line, title),
            *([f"{line.rows:,}"] if per_row else []),
            f"{line.attempts:,}",
            _short(line.input_tokens),
            _short(line.output_tokens),
            _dollars(line.cost_usd) + ("+?" if _is_partly(line) else ""),
        ]
        for line in shown
    ]
    table = _Table(head, rows)
    wide = _Table(
        [*head, *map(one_line, what_if)],
        [[*row, *map(_dollars, line.what_if_usd)] for row, line in zip(rows, shown, strict=True)],
    )
    lines = (wide if wide.width() <= width else table).render(width)
    if len(breakdown) > len(shown):
        lines.append(f"  and {len(breakdown) - len(shown):,} more; --json has them all")
    return lines


def _several(runs: Sequence[RunCost], what_if: Sequence[str], width: int) -> list[str]:
    head = ["run", "rows", "tries", "in", "out", "cost"]
    rows = [
        [
            one_line(run.run),
            f"{run.total.rows:,}",
            f"{run.total.attempts:,}",
            _short(run.total.input_tokens),
            _short(run.total.output_tokens),
            _dollars(run.total.cost_usd) + ("+?" if _is_partly(run.total) else ""),
        ]
        for run in runs
    ]
    lines = _Table(head, rows).render(width)
    for run in runs:
        simulated = ["simulated, so nothing was paid"] if run.simulated else []
        for note in (*simulated, *run.notes):
            lines += _wrapped(f"{one_line(run.run)}: {one_line(note)}", width, "  ")
    names = _short_names([run.run for run in runs])
    if what_if:
        first = ["as it was", *(_dollars(run.total.cost_usd) for run in runs)]
        rows = [
            [one_line(name), *(_dollars(run.total.what_if_usd[at]) for run in runs)]
            for at, name in enumerate(what_if)
        ]
        lines += ["", *_Table(["what if", *names], [first, *rows]).render(width)]
    for title in runs[0].by:
        of_runs = [{line.name: line for line in run.by[title]} for run in runs]
        called = {name: line for lines_of in of_runs for name, line in lines_of.items()}
        rows = [
            [
                _name(line, title),
                *(_dollars(of[name].cost_usd) if name in of else "" for of in of_runs),
            ]
            for name, line in list(called.items())[:_MOST_LINES]
        ]
        lines += ["", *_Table([f"by {title}", *names], rows).render(width)]
        if len(called) > _MOST_LINES:
            lines.append(f"  and {len(called) - _MOST_LINES:,} more; --json has them all")
    return lines


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last words of paths where they differ, else numbers."""
    last = [one_line(path.rstrip("/").rpartition("/")[2])[-16:] for path in paths]
    if len(set(last)) == len(last):
        return last
    return [f"run {number}" for number in range(1, len(paths) + 1)]


def _name(line: Line, title: str) -> str:
    name = "(null)" if line.name is None else one_line(line.name)
    others = [one_line(priced_as) for priced_as in line.priced_as if priced_as != line.name]
    return f"{name} as {', '.join(others)}" if title == "model" and others else name


def _dollars(cost: float | None) -> str:
    return _NO_PRICE if cost is None else usd(cost)


def _is_partly(line: Line) -> bool:
    return line.cost_usd is not None and bool(line.unpriced or line.unknown)


def _partly(total: Line) -> str:
    return ", as far as it is known" if _is_partly(total) else ""


def _simulated(run: RunCost) -> str:
    return "; simulated, so nothing was paid" if run.simulated else ""


def _change(cost: float | None, now: float | None) -> str:
    if cost is None or not now:
        return ""
    return f"{(cost - now) / now:+.0%}"


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
