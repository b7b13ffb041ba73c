"""Charts of a report as Vega-Lite specs: plain data, in the page's own colours. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from batchrun.records import JsonObject
from batchrun.report.chart_specs import (
    area_over_time,
    bars_over_time,
    histogram,
    lying_bars,
)
from batchrun.report.figures import Report
from batchrun.report.sections import cut
from batchrun.report.timeline import Moment, Timeline

_MOST_KINDS = 7  # colours that can be told apart; the rest is one kind more
_MOST_TOOLS = 12
_RATES = (("second", 1.0), ("minute", 60.0), ("hour", 3_600.0), ("day", 86_400.0))
_COLOURS = [f"var(--c{number})" for number in range(1, _MOST_KINDS + 2)]


class Chart(Struct, frozen=True):
    """One chart."""

    name: str
    title: str
    spec: JsonObject


def charts(report: Report) -> list[Chart]:
    """Those that have something to show."""
    found = []
    if report.timeline is not None:
        line = report.timeline
        found += [
            _throughput(line),
            Chart("in_flight", "Requests in flight", _in_flight(line)),
        ]
        if any(one.errors for one in line.moments):
            found.append(Chart("errors_over_time", "Failed attempts", _errors(line)))
        if line.moments[-1].cost_usd:
            found.append(Chart("cost", "Cost so far, USD", _cost(line)))
    for name, title, bins in (
        ("latency", "Latency of the try that counted", report.latency_bins),
        ("first_token", "Until the first token", report.first_token_bins),
    ):
        if bins:
            found.append(Chart(name, title, histogram(bins)))
    if report.tokens.input_tokens or report.tokens.output_tokens:
        found.append(Chart("tokens", "Tokens by kind", _tokens(report)))
    if report.tools:
        found.append(Chart("tool_calls", "Tool calls by their arguments", _tools(report)))
    return found


def _throughput(line: Timeline) -> Chart:
    """Rows a second, or a longer time where that would be fractions."""
    most = max(one.ok + one.not_ok for one in line.moments) / line.width_s
    word, per_s = next((word, size) for word, size in _RATES if most * size >= 1 or word == "day")
    kinds: list[tuple[str, Callable[[Moment], float]]] = [
        ("ok", lambda one: one.ok * per_s / line.width_s),
        ("not ok", lambda one: one.not_ok * per_s / line.width_s),
    ]
    spec = bars_over_time(line, kinds, ["var(--good)", "var(--bad)"], "rows")
    return Chart("throughput", f"Rows a{'n' if word == 'hour' else ''} {word}", spec)


def _errors(line: Timeline) -> JsonObject:
    met: Counter[str] = Counter()
    for one in line.moments:
        met.update(one.errors)
    kinds = [kind for kind, _ in met.most_common()]
    shown = [(kind, _errors_of(kind)) for kind in kinds[:_MOST_KINDS]]
    if kinds[_MOST_KINDS:]:
        rest = kinds[_MOST_KINDS:]
        shown.append(("others", lambda one: sum(one.errors.get(kind, 0) for kind in rest)))
    return bars_over_time(line, shown, _COLOURS[: len(shown)], f"in {_length(line.width_s)}")


def _length(width_s: float) -> str:
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if width_s >= size:
            return f"{width_s / size:g} {name}" if width_s > size else f"1 {name[:-1]}"
    return f"{width_s:g} s"


def _errors_of(kind: str) -> Callable[[Moment], float]:
    return lambda one: one.errors.get(kind, 0)


def _in_flight(line: Timeline) -> JsonObject:
    kinds = [("in flight", lambda one: one.in_flight)]
    return bars_over_time(line, kinds, _COLOURS[:1], "requests", has_legend=False)


def _cost(line: Timeline) -> JsonObject:
    return area_over_time(line, lambda one: one.cost_usd, "USD", ".2~f")


def _tokens(report: Report) -> JsonObject:
    tokens = report.tokens
    kinds = (
        ("input", tokens.input_tokens - tokens.cached_tokens),
        ("cached input", tokens.cached_tokens),
        ("output", tokens.output_tokens - tokens.reasoning_tokens),
        ("reasoning", tokens.reasoning_tokens),
    )
    values = [
        {"name": name, "value": max(0, count), "kind": name, "told": f"{name}: {count:,} tokens"}
        for name, count in kinds
    ]
    names = [name for name, _ in kinds]
    return lying_bars(values, names, names, _COLOURS[:4], "tokens", has_legend=False)


def _tools(report: Report) -> JsonObject:
    values = []
    shown = report.tools[:_MOST_TOOLS]
    names = [_unlike(cut(tool.name, 24), at, shown) for at, tool in enumerate(shown)]
    for name, tool in zip(names, shown, strict=True):
        rest = tool.calls - tool.valid - tool.invalid
        values += [
            {"name": name, "value": count, "kind": kind, "told": f"{name}: {count:,} {kind}"}
            for kind, count in (
                ("valid", tool.valid),
                ("invalid", tool.invalid),
                ("not judged", rest),
            )
            if count
        ]
    colours = ["var(--good)", "var(--bad)", "var(--line)"]
    return lying_bars(
        values, names, ["valid", "invalid", "not judged"], colours, "calls", has_legend=True
    )


def _unlike(name: str, at: int, shown: Iterable[Any]) -> str:
    """Two long names may look alike once they are cut."""
    alike = [other for other, tool in enumerate(shown) if cut(tool.name, 24) == name]
    return f"{name} ({alike.index(at) + 1})" if len(alike) > 1 else name
