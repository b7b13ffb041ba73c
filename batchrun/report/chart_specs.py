"""Vega-Lite specs: bars and areas over the time of a run, histograms, lying bars. Pure."""

from collections.abc import Callable, Sequence

from batchrun.records import JsonObject
from batchrun.report.amounts import seconds
from batchrun.report.figures import Bin
from batchrun.report.timeline import Moment, Timeline

_WIDTH, _HEIGHT = 430, 170
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelLimit": 150,
    },
    "axisX": {"grid": False},
    "axisY": {"domain": False, "ticks": False, "tickCount": 4},
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 11,
        "symbolType": "square",
        "columns": 4,
        "labelLimit": 120,
    },
}


def bars_over_time(
    line: Timeline,
    kinds: Sequence[tuple[str, Callable[[Moment], float]]],
    colours: Sequence[str],
    what: str,
    *,
    has_legend: bool = True,
) -> JsonObject:
    """Bars that stand on each other, one for each kind and moment; `kinds` read a moment."""
    unit, name = _unit(line)
    values = [
        {
            "x": one.at_s / unit,
            "x2": (one.at_s + line.width_s) / unit,
            "value": value,
            "kind": kind,
            "order": at,
            "told": f"{one.at_s / unit:,.4g} {name}: {value:,.4g} {what}, {kind}",
        }
        for one in line.moments
        for at, (kind, read) in enumerate(kinds)
        if (value := read(one))
    ]
    names = [kind for kind, _ in kinds]
    legend: JsonObject | None = {} if has_legend else None
    bars = {
        "data": {"values": values},
        "mark": {"type": "bar", "binSpacing": 0},
        "encoding": {
            "x": _time_axis(line, name, unit),
            "x2": {"field": "x2"},
            "y": {**_figures(what), "stack": "zero"},
            "color": {
                "field": "kind",
                "type": "nominal",
                "scale": {"domain": names, "range": list(colours)},
                "legend": legend,
            },
            "order": {"field": "order", "type": "quantitative"},
            "description": {"field": "told"},
        },
    }
    return _layered([*_pauses(line, unit), bars, *_resumed(line, unit)])


def area_over_time(
    line: Timeline, read: Callable[[Moment], float], what: str, form: str
) -> JsonObject:
    """A sum that grows from nothing; `read` gives it at a moment's end."""
    unit, name = _unit(line)
    points = [
        {"x": 0.0, "value": 0.0},
        *({"x": (one.at_s + line.width_s) / unit, "value": read(one)} for one in line.moments),
    ]
    area = {
        "data": {"values": points},
        "mark": {
            "type": "area",
            "line": {"color": "var(--c1)"},
            "opacity": 0.25,
            "color": "var(--c1)",
        },
        "encoding": {
            "x": {**_time_axis(line, name, unit), "bin": None},
            "y": _figures(what, form),
        },
    }
    return _layered([*_pauses(line, unit), area, *_resumed(line, unit)])


def histogram(bins: Sequence[Bin]) -> JsonObject:
    values = [
        {
            "x": one.low,
            "x2": one.high,
            "value": one.rows,
            "told": f"{seconds(one.low)} to {seconds(one.high)}: {one.rows:,} rows",
        }
        for one in bins
        if one.rows
    ]
    axis = {"format": "~r", "tickCount": 6, "labelOverlap": True}
    domain = [bins[0].low, bins[-1].high]
    return _spec(
        {
            "data": {"values": values},
            "mark": {"type": "bar", "color": "var(--c1)", "binSpacing": 1},
            "encoding": {
                "x": {
                    "field": "x",
                    "type": "quantitative",
                    "bin": "binned",
                    "scale": {"type": "log", "domain": domain, "nice": False},
                    "axis": {**axis, "title": "seconds, on a log scale"},
                },
                "x2": {"field": "x2"},
                "y": _figures("rows"),
                "description": {"field": "told"},
            },
        }
    )


def lying_bars(
    values: Sequence[JsonObject],
    names: Sequence[str],
    kinds: Sequence[str],
    colours: Sequence[str],
    what: str,
    *,
    has_legend: bool,
) -> JsonObject:
    """Lying bars, one for each name, in this order."""
    legend: JsonObject | None = {} if has_legend else None
    axis = {"title": None, "ticks": False, "domain": False}
    return _spec(
        {
            "height": {"step": 26},
            "data": {"values": list(values)},
            "mark": {"type": "bar", "height": {"band": 0.7}},
            "encoding": {
                "y": {"field": "name", "type": "nominal", "sort": list(names), "axis": axis},
                "x": {**_figures(what, ticks=5), "stack": "zero"},
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "scale": {"domain": list(kinds), "range": list(colours)},
                    "legend": legend,
                },
                "description": {"field": "told"},
            },
        }
    )


def _pauses(line: Timeline, unit: float) -> list[JsonObject]:
    """Shades behind the figures where all sending stood still."""
    values = [
        {
            "x": pause.from_s / unit,
            "x2": pause.to_s / unit,
            "told": f"{pause.name}, {seconds(pause.to_s - pause.from_s)}",
        }
        for pause in line.pauses
    ]
    if not values:
        return []
    mark = {"type": "rect", "color": "var(--pause)", "opacity": 0.5}
    encoding = {
        "x": {"field": "x", "type": "quantitative"},
        "x2": {"field": "x2"},
        "description": {"field": "told"},
    }
    return [{"data": {"values": values}, "mark": mark, "encoding": encoding}]


def _resumed(line: Timeline, unit: float) -> list[JsonObject]:
    """A rule where a later command went on; the time between is left out."""
    if not line.resumed:
        return []
    values = [{"x": at / unit, "told": "resumed"} for at in line.resumed]
    mark = {"type": "rule", "color": "var(--ink)", "strokeDash": [3, 3], "strokeWidth": 1}
    encoding = {"x": {"field": "x", "type": "quantitative"}, "description": {"field": "told"}}
    return [{"data": {"values": values}, "mark": mark, "encoding": encoding}]


def _unit(line: Timeline) -> tuple[float, str]:
    """What the axis counts in, so that its figures are short."""
    for size, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if line.span_s >= 3 * size:
            return size, name
    return 1.0, "seconds"


def _time_axis(line: Timeline, name: str, unit: float) -> JsonObject:
    end = (line.moments[-1].at_s + line.width_s) / unit
    return {
        "field": "x",
        "type": "quantitative",
        "bin": "binned",  # from x to x2: else Vega-Lite lays the bars down
        "scale": {"domain": [0, end], "nice": False},
        "axis": {"title": f"{name} of work", "tickCount": 8},
    }


def _figures(what: str, form: str = "~s", ticks: int = 4) -> JsonObject:
    axis = {"title": what, "format": form, "tickCount": ticks}
    return {"field": "value", "type": "quantitative", "axis": axis}


def _layered(layers: Sequence[JsonObject]) -> JsonObject:
    return _spec({"layer": list(layers)})


def _spec(body: JsonObject) -> JsonObject:
    return {"width": _WIDTH, "height": _HEIGHT, "padding": 4, "config": _CONFIG, **body}
