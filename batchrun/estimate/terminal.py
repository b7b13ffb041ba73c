"""An estimate in a terminal: tables that fit 80 columns, and what they rest on below them."""

import textwrap
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.text import Text

from batchrun.estimate.figures import Answers, Estimate, InputTokens, PilotResult, Range
from batchrun.estimate.lines import CAPPED, TIERS
from batchrun.policy.budget import usd
from batchrun.report.amounts import duration, rows_in_words, short_count
from batchrun.report.printable import one_line
from batchrun.report.sections import Section, cut
from batchrun.report.tables import show_section

_MOST_MODELS = 20
_NO_PRICE = "unknown"
_NAME = 24


def show_estimate(estimate: Estimate, stream: TextIO) -> None:
    """Writes it; bold where the stream is a terminal."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(one_line(estimate.run), style="bold"), soft_wrap=True)
    for line in _head(estimate):
        console.print(Text(f"  {line}"))
    for section in sections(estimate):
        show_section(section, console)
    if estimate.notes:
        console.print()
    for note in estimate.notes:
        for line in textwrap.wrap(f"- {one_line(note)}", console.width, subsequent_indent="  "):
            console.print(Text(line))


def _head(estimate: Estimate) -> Iterable[str]:
    words = f"{rows_in_words(estimate.to_send)} to send of {estimate.rows:,}"
    if estimate.settled:
        words += f", {estimate.settled:,} settled"
        if estimate.spent_usd is not None:
            words += f" for {usd(estimate.spent_usd)}"
    if estimate.bad_rows:
        words += f", {estimate.bad_rows:,} bad"
    if estimate.simulated:
        words += "; simulated, so nothing is paid"
    yield words
    for warning in estimate.warnings:
        yield f"warning: {one_line(warning)}"


def sections(estimate: Estimate) -> list[Section]:
    """Those that have rows."""
    found = [_inputs(estimate.inputs), _answers(estimate.answers)]
    if estimate.pilot is not None:
        found.append(_pilot(estimate.pilot))
    return [section for section in found if section.rows]


def _inputs(inputs: tuple[InputTokens, ...]) -> Section:
    shown = inputs[:_MOST_MODELS]
    rows = tuple(
        (
            _model(one.model),
            *(
                f"{count:,}"
                for count in (one.rows, one.min, one.median, one.p95, one.max, one.total)
            ),
        )
        for one in shown
    )
    more = len(inputs) - len(shown)
    return Section(
        "inputs",
        "Input tokens",
        ("model", "rows", "least", "median", "p95", "most", "in all"),
        rows,
        note=f"and {more:,} more models" if more > 0 else None,
    )


def _answers(answers: tuple[Answers, ...]) -> Section:
    models = any(one.model is not None for one in answers)
    times = any(one.least_s is not None for one in answers)
    rows = tuple(
        (
            *((_model(one.model),) if models else ()),
            one.name,
            short_count(one.output_tokens) if models else f"{one.output_tokens:,}",
            *(_usd(one.usd[tier], standard=one.usd[TIERS[0]]) for tier in TIERS),
            *(("-" if one.least_s is None else duration(one.least_s),) if times else ()),
        )
        for one in answers
    )
    heads = (
        *(("model",) if models else ()),
        "if answers are",
        "output",
        *TIERS,
        *(("time",) if times else ()),
    )
    said = ["time: at the limits given, at least"] if times else []
    if any(one.name.endswith(CAPPED) for one in answers):
        said.append("capped: no answer is longer than its row's max_output_tokens")
    note = "; ".join(said) or None
    return Section("answers", "Cost", heads, rows, words=2 if models else 1, note=note)


def _pilot(pilot: PilotResult) -> Section:
    lines: list[tuple[str, Range | None]] = [
        ("input tokens", pilot.input_tokens),
        ("output tokens", pilot.output_tokens),
        ("cost", pilot.cost_usd),
    ]
    rows = tuple(
        (
            name,
            *(
                (_NO_PRICE,) * 4
                if one is None
                else (
                    usd(value) if name == "cost" else f"{round(value):,}"
                    for value in (one.so_far, one.total, one.low, one.high)
                )
            ),
        )
        for name, one in lines
    )
    share = f"{pilot.share:.0%}"
    return Section(
        "pilot",
        f"Pilot: {rows_in_words(pilot.rows)}, {pilot.ok:,} ok",
        ("", "so far", "in all", f"{share} between", "and"),
        rows,
    )


def _model(name: str | None) -> str:
    return "(none)" if name is None else cut(name, _NAME)


def _usd(value: float | None, *, standard: float | None) -> str:
    if value is None:
        return _NO_PRICE if standard is None else "-"
    return usd(value)
