"""Metrics as text: tables, CSV, JSON."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from batchrun.evals.means import Measure
from batchrun.evals.metrics import MetricLine, Metrics, PassRate
from batchrun.evals.tables.figure_tables import (
    FigureTable,
    figure,
    figure_table,
    interval_text,
    write_figures,
)
from batchrun.formats.amounts import known_usd, seconds, usd

_Column = tuple[str, Callable[[MetricLine], str]]
_PLAIN = (
    *("run", "scorer", "metric", "variant", "by", "questions", "clusters", "samples", "scored"),
    *("mean", "se", "low", "high", "method", "if_rest_wrong", "if_rest_right"),
    *("within", "between", "se_of_many"),
)
_SPENT = ("right", "cost_usd", "unpriced", "usd_per_1000", "usd_per_right", "latency_p50_s")


def write_metrics(found: Metrics, form: str, stream: TextIO, columns: str | None = None) -> None:
    """As `write_figures`."""
    write_figures(found, _csv(found.lines), metrics_tables(found), form, stream, columns)


def metrics_tables(found: Metrics) -> list[FigureTable]:
    """One for each scorer and metric."""
    groups: dict[str, list[MetricLine]] = {}
    for line in found.lines:
        groups.setdefault(line.name, []).append(line)
    return [
        figure_table(name, list(_names(found)), _figures(lines, found), lines)
        for name, lines in groups.items()
    ]


def _names(found: Metrics) -> Iterator[_Column]:
    """The columns that tell the lines of a scorer apart; at least one."""
    is_one = len({line.run for line in found.lines}) == 1
    has_variants = any(line.variant is not None for line in found.lines)
    if not is_one or not (has_variants or found.by):
        yield "run", lambda line: line.run
    if has_variants:
        yield "variant", lambda line: line.variant or ""
    if found.by is not None:
        yield found.by, lambda line: "(null)" if line.by is None else line.by


def _figures(lines: Sequence[MetricLine], found: Metrics) -> Iterator[_Column]:
    yield "questions", lambda line: f"{line.questions:,}"
    if found.cluster is not None:
        yield "clusters", lambda line: f"{line.clusters:,}"
    yield "samples", lambda line: f"{line.samples:,}"
    yield "scored", lambda line: f"{line.scored:,}"
    yield "mean", lambda line: figure(line.mean, line.se)
    yield "SE", lambda line: figure(line.se, line.se)
    yield (
        f"{100 * found.level:.4g} % interval",
        lambda line: interval_text(line.low, line.high, line.se),
    )
    for k in sorted({rate.k for line in lines for rate in line.passes}):
        yield f"pass@{k}", lambda line, k=k: _with_interval(_rate(line, k).at)  # type: ignore[misc]
        if k == 1:  # pass^1 is the same
            continue
        yield f"pass^{k}", lambda line, k=k: _with_interval(_rate(line, k).hat)  # type: ignore[misc]
    yield "majority", lambda line: _with_interval(line.majority)
    yield "var within", lambda line: _variance(line.within)
    yield "var between", lambda line: _variance(line.between)
    yield "SE with many samples", lambda line: figure(line.se_of_many, line.se_of_many)
    yield "cost", _cost
    yield "cost per 1k requests", lambda line: _usd(line.usd_per_1000)
    yield "cost per right answer", lambda line: _usd(line.usd_per_right)
    yield "p50 latency", lambda line: _seconds(line.latency_p50_s)


def _rate(line: MetricLine, k: int) -> PassRate:
    """Lines of few samples may lack one."""
    return next((rate for rate in line.passes if rate.k == k), PassRate(k, None, None, 0))


def _with_interval(of: Measure | None) -> str:
    if of is None:
        return ""
    return f"{figure(of.value, of.se)} {interval_text(of.low, of.high, of.se)}".rstrip()


def _variance(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _usd(dollars: float | None) -> str:
    return "" if dollars is None else usd(dollars)


def _cost(line: MetricLine) -> str:
    """With `+?` where it is not all; empty where nothing was sent."""
    if line.cost_usd is None and not line.unpriced:
        return ""
    return known_usd(line.cost_usd, is_partly=bool(line.unpriced))


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds(value)


def _csv(lines: Sequence[MetricLine]) -> Iterator[Sequence[Any]]:
    """The row of names, and a row for each line, with all digits."""
    ks = sorted({rate.k for line in lines for rate in line.passes})
    measures = ["majority", *(f"pass_{kind}_{k}" for k in ks for kind in ("at", "hat"))]
    fields = [f"{name}{end}" for name in measures for end in ("", "_se", "_low", "_high")]
    yield [*_PLAIN, *fields, *_SPENT]
    for line in lines:
        rates = [_rate(line, k) for k in ks]
        values = [line.majority, *(one for rate in rates for one in (rate.at, rate.hat))]
        yield [
            *(getattr(line, name) for name in _PLAIN),
            *(end for one in values for end in _ends(one)),
            *(getattr(line, name) for name in _SPENT),
        ]


def _ends(of: Measure | None) -> tuple[float | None, ...]:
    return (None,) * 4 if of is None else (of.value, of.se, of.low, of.high)
