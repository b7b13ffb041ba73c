"""An estimate in a terminal: tables that fit 80 columns, and what they rest on below them."""

from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from batchrun.estimate.cost_lines import (
    CAPPED,
    STANDARD,
    TIERS,
    Answers,
    Estimate,
    InputTokens,
    PilotResult,
)
from batchrun.formats.amounts import duration, plural, short_count, usd
from batchrun.formats.printable import brief, one_line
from batchrun.reports.text_tables import Section, show_section, show_text

_MOST_MODELS = 20
_NO_PRICE = "unknown"
_NAME = 24  # characters of a model's name


def show_estimate(estimate: Estimate, stream: TextIO) -> None:
    """Writes it; bold where the stream is a terminal."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(one_line(estimate.run), style="bold"), soft_wrap=True)
    for line in _head(estimate):
        show_text(line, console)
    sections = [_inputs(estimate.inputs), _answers(estimate.answers)]
    if estimate.pilot is not None:
        sections.append(_pilot(estimate.pilot))
    for section in sections:
        if section.rows:
            show_section(section, console)
    if estimate.notes:
        console.print()
    for note in estimate.notes:
        show_text(f"- {one_line(note)}", console, indent="")


def _head(estimate: Estimate) -> Iterator[str]:
    words = f"{plural(estimate.to_send, 'row')} to send of {estimate.rows:,}"
    if estimate.settled:
        words += f", {estimate.settled:,} complete"
        if estimate.spent_usd is not None:
            words += f" for {usd(estimate.spent_usd)}"
    if estimate.bad_rows:
        words += f", {estimate.bad_rows:,} bad"
    if estimate.simulated:
        words += "; simulated, so nothing is paid"
    yield words
    for warning in estimate.warnings:
        yield f"warning: {one_line(warning)}"


def _inputs(inputs: tuple[InputTokens, ...]) -> Section:
    rows = [
        (_model(one.model), one.rows, one.min, one.median, one.p95, one.max, one.total)
        for one in inputs[:_MOST_MODELS]
    ]
    more = len(inputs) - len(rows)
    return Section(
        "inputs",
        "Input tokens",
        ("model", "rows", "min", "median", "p95", "max", "total"),
        tuple((model, *(f"{count:,}" for count in counts)) for model, *counts in rows),
        note=f"and {more:,} more models" if more > 0 else None,
    )


def _answers(answers: tuple[Answers, ...]) -> Section:
    has_models = any(one.model is not None for one in answers)
    has_times = any(one.least_s is not None for one in answers)
    rows = [
        (
            _model(one.model),
            one.name,
            short_count(one.output_tokens) if has_models else f"{one.output_tokens:,}",
            *(_usd(one.usd[tier], one.usd[STANDARD]) for tier in TIERS),
            "-" if one.least_s is None else duration(one.least_s),
        )
        for one in answers
    ]
    heads: tuple[str, ...] = ("model", "if answers are", "output", *TIERS, "time")
    columns = slice(0 if has_models else 1, None if has_times else -1)
    notes = ["time: at the limits given, at least"] if has_times else []
    if any(one.name.endswith(CAPPED) for one in answers):
        notes.append("capped: no answer is longer than its row's max_output_tokens")
    return Section(
        "answers",
        "Cost",
        heads[columns],
        tuple(row[columns] for row in rows),
        words=2 if has_models else 1,
        note="; ".join(notes) or None,
    )


def _pilot(pilot: PilotResult) -> Section:
    figures = {
        "input tokens": pilot.input_tokens,
        "output tokens": pilot.output_tokens,
        "cost": pilot.cost_usd,
    }
    rows = []
    for name, figure in figures.items():
        values = figure and (figure.so_far, figure.total, figure.low, figure.high)
        cells = [usd(v) if name == "cost" else f"{round(v):,}" for v in values or ()]
        rows.append((name, *(cells or [_NO_PRICE] * 4)))
    return Section(
        "pilot",
        f"Pilot: {plural(pilot.rows, 'row')}, {pilot.ok:,} ok",
        ("", "so far", "total", f"{pilot.share:.0%} between", "and"),
        tuple(rows),
    )


def _model(name: str | None) -> str:
    return "(none)" if name is None else brief(name, _NAME)


def _usd(value: float | None, standard: float | None) -> str:
    if value is None:
        return _NO_PRICE if standard is None else "-"
    return usd(value)
