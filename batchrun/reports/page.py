"""A report as one HTML page: no script, no network, light and dark, fit to print.

Nothing that rows or models said is more than text in it; a policy in the page forbids the rest.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.amounts import seconds
from batchrun.formats.printable import brief, one_line
from batchrun.records import JsonObject
from batchrun.reports.export import check_target
from batchrun.reports.report_queries import Bin, Report, read_report
from batchrun.reports.report_sections import headline, remarks, sections
from batchrun.reports.timeline import Moment, Timeline
from batchrun.store.files import storing
from batchrun.version import VERSION

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
    names = [_unlike(brief(tool.name, 24), at, shown) for at, tool in enumerate(shown)]
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
    alike = [other for other, tool in enumerate(shown) if brief(tool.name, 24) == name]
    return f"{name} ({alike.index(at) + 1})" if len(alike) > 1 else name


_TEMPLATE = Path(__file__).with_name("page.html")
_SIZE = re.compile(r'width="[\d.]+" height="[\d.]+" (?=viewBox)')
# A mark's words become what a mouse that rests on it shows.
_TOLD = re.compile(r'(<path aria-label="([^"]*)" role="graphics-symbol"[^>]*)/>')


def write_page(path: Path, target: Path) -> int:
    """`target` is the page, whole or not at all; its size in bytes is returned.

    Raises `JobError` where it can be no such file or the extra is missing, `StoreError`.
    """
    check_target(path, target)
    page = render_page(read_report(path)).encode("utf-8", "replace")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with storing(target, "write"):
        try:
            temporary.write_bytes(page)
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink()
    return len(page)


def render_page(report: Report) -> str:
    """The page. Raises `JobError` where the extra `report` is not installed."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        name=one_line(report.run),
        headline=headline(report),
        remarks=remarks(report),
        charts=[(chart, Markup(_drawn(chart.spec))) for chart in charts(report)],  # noqa: S704
        sections=sections(report),
        has_pauses=report.timeline is not None and bool(report.timeline.pauses),
        has_resumed=report.timeline is not None and bool(report.timeline.resumed),
        version=VERSION,
    )


def _drawn(spec: JsonObject) -> str:
    """The chart as SVG; Vega escapes what stands in it."""
    try:
        import vl_convert  # noqa: PLC0415 - an extra, and large
    except ImportError as error:
        raise JobError(
            "the page's charts are drawn by vl-convert, which is not installed; "
            "pip install 'batchrun[report]', or leave --html out"
        ) from error
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return _TOLD.sub(r"\1><title>\2</title></path>", _SIZE.sub("", drawn, count=1))
