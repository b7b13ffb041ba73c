"""A report's charts, drawn by Vega-Lite as SVG: texts of models and servers are escaped by it.

Figures of one run over the same time have the same axis. Colours are those of the page.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.amounts import seconds
from batchrun.formats.printable import brief
from batchrun.records import JsonObject
from batchrun.reports.page.palette import COLOURS, OUTCOMES, REST, colour_of
from batchrun.reports.page.ticks import Tick, amount_ticks, log_ticks, time_ticks, time_unit
from batchrun.reports.report_queries import Bin, Report
from batchrun.reports.timeline import Moment, Timeline

_MOST_KINDS = 7  # as many colours as can be distinguished; the rest is one kind more
_MOST_TOOLS, _TOOL_NAME = 6, 20  # lines, and characters of a name
# Axes included: text has its size on a phone, and three charts fit beside each other.
_WIDTH, _HEIGHT = 340, 200
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_CONFIG = json.loads("""{
    "background": null, "font": "system-ui, sans-serif", "view": {"stroke": null},
    "axis": {
        "labelColor": "var(--quiet)", "titleColor": "var(--quiet)", "domainColor": "var(--line)",
        "tickColor": "var(--line)", "gridColor": "var(--line)", "titleFontWeight": "normal",
        "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 150, "labelOverlap": true
    },
    "axisX": {"grid": false},
    "axisY": {"domain": false, "ticks": false}
}""")
_X = {"field": "x", "type": "quantitative"}
_TO_X2 = {"x2": {"field": "x2"}}
_Kinds = Mapping[str, Callable[[Moment], float]]  # what is read of a moment, by its name
_SIZE = re.compile(r'width="[\d.]+" height="[\d.]+" (?=viewBox)')
# A mark's words become what a mouse that rests on it shows.
_MARK = re.compile(r'(<path aria-label="([^"]*)" role="graphics-symbol"[^>]*)/>')


class Chart(Struct, frozen=True):
    """One chart."""

    name: str
    title: str
    spec: JsonObject

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What its colours stand for: name and colour, where there are several."""
        layers = self.spec.get("layer", [self.spec])
        scales = [one["encoding"]["color"]["scale"] for one in layers if "color" in one["encoding"]]
        pairs = [pair for one in scales for pair in zip(one["domain"], one["range"], strict=True)]
        return [(name, colour) for name, colour in pairs if name]


def charts(report: Report) -> list[Chart]:
    """Those that have something to show."""
    found, are_unknown = list[Chart](), report.unknown_attempts > 0
    if report.timeline is not None:
        found += _over_time(report.timeline, are_unknown=are_unknown)
    for name, title, bins in (
        ("latency", "Rows by latency of the final attempt", report.latency_bins),
        ("first_token", "Rows by time to the first token", report.first_token_bins),
    ):
        if bins:
            found.append(Chart(name, title, _histogram(bins)))
    if report.tokens.input_tokens or report.tokens.output_tokens:
        found.append(Chart("tokens", "Tokens by kind", _tokens(report)))
    if tools := report.tables["tools"]:
        of = f" ({_MOST_TOOLS} tools of {tools[0]['in_all']:,})" if tools[_MOST_TOOLS:] else ""
        spec = _tools(tools[:_MOST_TOOLS])
        found.append(Chart("tool_calls", f"Tool calls, valid or not{of}", spec))
    return found


def drawn(spec: JsonObject) -> str:
    """The chart as SVG of any size. Raises `JobError` where the extra `report` is missing."""
    try:
        import vl_convert  # noqa: PLC0415 - an extra, and large
    except ImportError as error:
        raise JobError(
            "the page's charts are drawn by vl-convert, which is not installed; "
            "pip install 'batchrun[report]', or leave --html out"
        ) from error
    svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return _MARK.sub(r"\1><title>\2</title></path>", _SIZE.sub("", svg, count=1))


def _over_time(line: Timeline, *, are_unknown: bool) -> list[Chart]:
    """`are_unknown`: there are costs that are not known."""
    most = max(one.rows for one in line.moments) / line.width_s
    # Rows a second, or a longer time where that would be fractions.
    size, unit = next((s, u) for s, u in reversed(_UNITS) if most * s >= 1 or u == "day")
    per = size / line.width_s
    names = sorted({name for one in line.moments for name in one.outcomes}, key=_place)

    def rows_of(name: str) -> Callable[[Moment], float]:
        return lambda one: one.outcomes.get(name, 0) * per

    rows: _Kinds = {name: rows_of(name) for name in names}
    throughput = _bars_over_time(line, rows, list(map(colour_of, names)), "rows")
    in_flight = _bars_over_time(line, {"": lambda one: one.in_flight}, COLOURS[1:], "requests")
    found = [
        Chart("throughput", f"Rows a{'n' if unit == 'hour' else ''} {unit}", throughput),
        Chart("in_flight", "Requests in flight", in_flight),
    ]
    if any(one.errors for one in line.moments):
        found.append(_errors(line))
    if line.moments[-1].cost_usd:
        what = "Known cost" if are_unknown else "Cost"
        found.append(Chart("cost", f"{what} so far, USD", _cost(line)))
    return found


def _place(outcome: str) -> int:
    return list(OUTCOMES).index(outcome) if outcome in OUTCOMES else len(OUTCOMES)


def _errors(line: Timeline) -> Chart:
    counts = sum((Counter(one.errors) for one in line.moments), Counter[str]())
    kinds = [kind for kind, _ in counts.most_common()]
    groups = {kind: [kind] for kind in kinds[:_MOST_KINDS]}
    if kinds[_MOST_KINDS:]:
        groups["others"] = kinds[_MOST_KINDS:]

    def of(group: Sequence[str]) -> Callable[[Moment], float]:
        return lambda one: sum(one.errors.get(kind, 0) for kind in group)

    read = {name: of(group) for name, group in groups.items()}
    size, unit = next((s, u) for s, u in _UNITS if line.width_s >= s or u == "second")
    count = line.width_s / size
    many = f"per {count:g} {unit}s" if count != 1 else f"a{'n' if unit == 'hour' else ''} {unit}"
    spec = _bars_over_time(line, read, [*COLOURS[1:], REST], "", whole=True)
    return Chart("errors_over_time", f"Failed attempts {many}", spec)


def _cost(line: Timeline) -> JsonObject:
    """A sum that grows from 0, at each moment's end."""
    unit, _ = time_unit(line.span_s)
    ends = {(one.at_s + line.width_s) / unit: one.cost_usd for one in line.moments}
    points = [{"x": x, "value": value} for x, value in {0.0: 0.0, **ends}.items()]
    mark = {"type": "area", "line": {"color": COLOURS[1]}, "opacity": 0.25, "color": COLOURS[1]}
    x = {**_time_axis(line), "bin": None}
    most = line.moments[-1].cost_usd
    return _with_pauses(line, _layer(points, mark, x=x, y=_amount(most, sign="$")))


def _bars_over_time(
    line: Timeline, kinds: _Kinds, colours: Sequence[str], what: str, *, whole: bool = False
) -> JsonObject:
    """Stacked bars, one for each kind and moment. `whole`: they are counts."""
    unit, name = time_unit(line.span_s)
    values = [
        {
            "x": one.at_s / unit,
            "x2": (one.at_s + line.width_s) / unit,
            "value": value,
            "kind": kind,
            "order": at,
            "words": " ".join(f"{one.at_s / unit:,.4g} {name}: {value:,.4g} {what} {kind}".split()),
        }
        for one in line.moments
        for at, (kind, read) in enumerate(kinds.items())
        if (value := read(one))
    ]
    most = max(sum(read(one) for read in kinds.values()) for one in line.moments)
    bars = _layer(
        values,
        {"type": "bar", "binSpacing": 0},
        x=_time_axis(line),
        **_TO_X2,
        y={**_amount(most, whole=whole), "stack": "zero"},
        color=_colour(list(kinds), colours),
        order={"field": "order", "type": "quantitative"},
    )
    return _with_pauses(line, bars)


def _with_pauses(line: Timeline, chart: JsonObject) -> JsonObject:
    """Shades where requests waited for a pause; a rule where a later command began."""
    unit, _ = time_unit(line.span_s)
    pauses = [
        {
            "x": pause.from_s / unit,
            "x2": pause.to_s / unit,
            "words": f"{pause.name}, {seconds(pause.to_s - pause.from_s)}",
        }
        for pause in line.pauses
    ]
    resumed = [{"x": at / unit, "words": "resumed"} for at in line.resumed]
    shade = {"type": "rect", "color": "var(--pause)", "opacity": 0.5}
    rule = {"type": "rule", "color": "var(--ink)", "strokeDash": [3, 3], "strokeWidth": 1}
    layers = [_layer(pauses, shade, x=_X, **_TO_X2)] if pauses else []
    layers += [chart, *([_layer(resumed, rule, x=_X)] if resumed else [])]
    return _spec({"layer": layers})


def _histogram(bins: Sequence[Bin]) -> JsonObject:
    values = [
        {
            "x": one.low,
            "x2": one.high,
            "value": one.rows,
            "words": f"{seconds(one.low)} to {seconds(one.high)}: {one.rows:,} rows",
        }
        for one in bins
        if one.rows
    ]
    low, high = bins[0].low, bins[-1].high
    scale = {"type": "log", "domain": [low, high], "nice": False}
    axis = {**_ticks(log_ticks(low, high)), "title": "seconds, on a log scale"}
    x = {**_X, "bin": "binned", "scale": scale, "axis": axis}
    mark = {"type": "bar", "color": COLOURS[1], "binSpacing": 1}
    y = _amount(max(one.rows for one in bins), whole=True)
    return _spec(_layer(values, mark, x=x, **_TO_X2, y=y))


def _tokens(report: Report) -> JsonObject:
    tokens = report.tokens
    kinds = {
        "uncached input": tokens.input_tokens - tokens.cached_tokens,
        "cached input": tokens.cached_tokens,
        "answer": tokens.output_tokens - tokens.reasoning_tokens,
        "reasoning": tokens.reasoning_tokens,
    }
    bars = [(name, "", max(0, count)) for name, count in kinds.items()]
    return _horizontal_bars(bars, [""], COLOURS[1:], "tokens")


def _tools(tools: Sequence[Mapping[str, Any]]) -> JsonObject:
    bars: list[tuple[str, str, int]] = []
    names: Counter[str] = Counter()
    for tool in tools:
        name = brief(tool["tool"], _TOOL_NAME)
        names[name] += 1
        if names[name] > 1:  # two long names may look alike once they are cut
            name = f"{name[: _TOOL_NAME - 4]} ({names[name]})"
        kinds = {"valid": tool["valid"], "invalid": tool["invalid"]}
        kinds["not judged"] = tool["calls"] - sum(kinds.values())
        bars += [(name, kind, count) for kind, count in kinds.items() if count]
    colours = {"valid": COLOURS[0], "invalid": COLOURS[3], "not judged": REST}
    there = {kind for _, kind, _ in bars}
    colours = {kind: colour for kind, colour in colours.items() if kind in there}
    return _horizontal_bars(bars, list(colours), list(colours.values()), "calls")


def _horizontal_bars(
    bars: Sequence[tuple[str, str, int]], kinds: Sequence[str], colours: Sequence[str], what: str
) -> JsonObject:
    """One for each name, in this order; `bars` are name, kind and count."""
    values = [
        {"name": name, "kind": kind, "value": count, "words": f"{name}: {count:,} {kind or what}"}
        for name, kind, count in bars
    ]
    sums: Counter[str] = Counter()
    for name, _, count in bars:
        sums[name] += count
    names = list(sums)
    axis = {"title": None, "ticks": False, "domain": False, "labelPadding": 6}
    most = max(sums.values())
    layer = _layer(
        values,
        {"type": "bar", "height": {"band": 0.65}},
        y={"field": "name", "type": "nominal", "sort": names, "axis": axis},
        x={**_amount(most, whole=True), "stack": "zero"},
        color=_colour(kinds, colours),
    )
    return _spec(layer)


def _time_axis(line: Timeline) -> JsonObject:
    unit, name = time_unit(line.span_s)
    end_s = line.moments[-1].at_s + line.width_s
    scale = {"domain": [0, end_s / unit], "nice": False}
    axis = {**_ticks(time_ticks(line.span_s)), "title": f"{name} of work"}
    # Binned from x to x2: else Vega-Lite draws horizontal bars.
    return {**_X, "bin": "binned", "scale": scale, "axis": axis}


def _amount(most: float, *, sign: str = "", whole: bool = False) -> JsonObject:
    """An axis from 0 to the first tick that is not below `most`; the chart's title names it."""
    ticks = amount_ticks(most, sign=sign, whole=whole)
    scale = {"domain": [0, ticks[-1].at], "nice": False}
    axis = {**_ticks(ticks), "title": None}
    return {"field": "value", "type": "quantitative", "scale": scale, "axis": axis}


def _ticks(ticks: Iterable[Tick]) -> JsonObject:
    """Those and no others, in our words: Vega finds each by its place on the axis."""
    words = {tick.at: tick.words for tick in ticks}
    nearest = " : ".join(
        f"abs(datum.value - {at}) <= {abs(at) * 1e-9} ? '{said}'" for at, said in words.items()
    )
    return {"values": list(words), "labelExpr": f"{nearest} : ''"}


def _colour(kinds: Sequence[str], colours: Sequence[str]) -> JsonObject:
    scale = {"domain": list(kinds), "range": list(colours[: len(kinds)])}
    # The page has the keys in its own text, whose width depends on the reader's fonts.
    return {"field": "kind", "type": "nominal", "scale": scale, "legend": None}


def _layer(values: Sequence[JsonObject], mark: JsonObject, **encoding: JsonObject) -> JsonObject:
    """Marks for values, each described by its `words`."""
    encoding["description"] = {"field": "words"}
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def _spec(body: JsonObject) -> JsonObject:
    size = {"width": _WIDTH, "height": _HEIGHT, "padding": 4, "autosize": {"type": "fit"}}
    return {**size, "config": _CONFIG, **body}
