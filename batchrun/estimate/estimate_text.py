"""An estimate in a terminal: tables that fit 80 columns, and what they rest on below them."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Range,
    tier_price,
)
from batchrun.estimate.tokens import (
    MESSAGE_TOKENS,
    O200K,
    OTHER_FACTOR,
    REQUEST_TOKENS,
    Kind,
    vocabulary_of,
)
from batchrun.formats.amounts import duration, plural, short_count, usd
from batchrun.formats.printable import brief, one_line
from batchrun.pricing.price_list import spellings
from batchrun.pricing.prices import Prices
from batchrun.records import Pilot
from batchrun.reports.text_tables import Section, show_section


def on_cap(
    cap_usd: float | None,
    spent_usd: float,
    answers: Sequence[Answers],
    pilot: PilotResult | None,
) -> Iterator[str]:
    """`spent_usd`: on settled rows, which the cap takes in. Dollars are those of the standard tier.

    A pilot's cost takes in what is spent already.
    """
    if cap_usd is None:
        return
    said = f"the cap of {usd(cap_usd)} (--max-cost)"
    if pilot is not None and pilot.cost_usd is not None:
        cost = pilot.cost_usd
        if cost.total > cap_usd:
            yield f"{said} is below that: it is likely to stop the run before its end"
        elif cost.high > cap_usd:
            yield f"{said} lies within that interval: it may stop the run before its end"
        return
    above = [
        line.name if line.model is None else f"{line.model}, {line.name}"
        for line in answers
        if (dollars := line.usd[STANDARD]) is not None and spent_usd + dollars > cap_usd
    ]
    if above:
        yield f"{said} stops a run before its end if answers are as in: {'; '.join(above)}"


# The o-series, and gpt-5 and later but for their chat variants.
_REASONING = re.compile(r"(o[1-9]|gpt-([5-9]|[1-9]\d))([-.@]|$)")
_FEW = 30  # rows of a pilot, below which its interval is not to be trusted
_MOST_MODELS_NAMED = 10  # that are named one by one


def notes(
    picked: Pilot | None,
    settled: Sequence[int],
    pilot: PilotResult | None,
    counted: Mapping[tuple[Kind, int], int],
    models: Sequence[str],
    prices: Prices,
    at: int,
    *,
    by_bytes: bool,
    has_time: bool,
) -> Iterator[str]:
    """`counted`: (kind, text tokens) to rows that are to be sent; `models`: those to compare."""
    if not counted:
        return
    if pilot is not None:
        yield from _on_result(pilot)
    elif picked is not None:
        yield from _on_open_rows(picked, settled)
    kinds: Counter[Kind] = Counter()
    for (kind, _), rows in counted.items():
        kinds[kind] += rows
    asked: Sequence[str | None] = models
    if not models:
        asked = tuple(dict.fromkeys(kind.model for kind in kinds))
    yield from _on_counting(asked, by_bytes=by_bytes)
    yield from _on_kinds(kinds)
    if pilot is None:
        yield from _on_reasoning(asked, () if models else kinds)
    yield from _on_prices(asked, prices, at)
    if not has_time:
        yield (
            "how long it takes is not known without --rpm or --tpm, or a pilot and --concurrency "
            "N: what a server allows is learnt while it runs"
        )


def _on_result(pilot: PilotResult) -> Iterator[str]:
    left_out = pilot.rows - pilot.used
    if left_out:
        yield (
            f"{left_out:,} of the pilot's {plural(pilot.rows, 'row')} ended without a count of "
            "tokens and are left out"
        )
    if pilot.used < _FEW:
        yield f"a pilot of less than {_FEW} rows: the interval may well be too narrow"


def _on_open_rows(picked: Pilot, settled: Sequence[int]) -> Iterator[str]:
    missing = sum(not settled[row] for row in picked.rows)
    if missing:
        yield (
            f"{missing:,} of the pilot's {plural(len(picked.rows), 'row')} have no outcome yet, so "
            "nothing is told by them: give --pilot again to go on with it"
        )
    else:
        yield (
            f"none of the pilot's {plural(len(picked.rows), 'row')} ended with a count of tokens, "
            "so nothing is told by them: batchrun report says why"
        )


def _on_counting(models: Sequence[str | None], *, by_bytes: bool) -> Iterator[str]:
    around = (
        f"{MESSAGE_TOKENS} for each message and {REQUEST_TOKENS} for each request are added, and "
        "tools and schemas count as compact JSON"
    )
    if by_bytes:
        yield (
            "tokens are guessed at one for 4 bytes; pip install 'batchrun[tokens]' counts them. "
            f"{around}"
        )
        return
    names = sorted({vocabulary_of(model)[0] for model in models})
    yield f"texts are counted in {' and '.join(names)}; {around}"
    others = sorted(str(model) for model in models if vocabulary_of(model)[1] != 1.0)
    if others:
        yield (
            f"{_named(others)}: the vocabulary is not known, so the count in {O200K} is taken "
            f"times {OTHER_FACTOR}"
        )


def _on_kinds(kinds: Mapping[Kind, int]) -> Iterator[str]:
    unseen = sum(rows for kind, rows in kinds.items() if kind.unseen)
    if unseen:
        yield (
            f"in {plural(unseen, 'row')} the model reads more than text (images, files, stored "
            "context, hosted tools): that is not counted"
        )
    hosted = sum(rows for kind, rows in kinds.items() if kind.hosted)
    if hosted:
        yield (
            f"in {plural(hosted, 'row')} hosted tools may be used that are billed by the piece: "
            "these fees are not counted"
        )
    tiers: Counter[str] = Counter()
    for kind, rows in kinds.items():
        if kind.service_tier not in (None, "auto", "default"):
            tiers[str(kind.service_tier)] += rows
    for tier, rows in tiers.items():
        yield f"the service tier {tier} is asked for in {plural(rows, 'row')}"


def _on_reasoning(models: Sequence[str | None], kinds: Iterable[Kind]) -> Iterator[str]:
    """By the models' names, and by what the requests ask for."""
    told = {model for model in models if model is not None and _may_reason(model)}
    told |= {kind.model for kind in kinds if kind.reasons and kind.model is not None}
    if told:
        yield (
            f"{_named(sorted(told))} may reason before an answer, which is billed as output: the "
            "lengths that are assumed leave it out, unless --expect-output takes it in; --pilot "
            "measures it"
        )


def _may_reason(model: str) -> bool:
    return any(_REASONING.match(name) and "-chat" not in name for _, name in spellings(model))


def _on_prices(models: Sequence[str | None], prices: Prices, at: int) -> Iterator[str]:
    unknown = sorted(
        str(model) for model in models if model and tier_price(prices, model, STANDARD, at) is None
    )
    if unknown:
        yield (
            f"no price is known for {_named(unknown)}: give it in the job file or in "
            f'~/.config/batchrun/prices.toml, as [pricing."{unknown[0]}"] with input and output '
            "in USD for a million tokens"
        )
    if None in models:
        yield "rows that name no model have no price; a stored prompt has a model of its own"
    for tier in TIERS:
        without = sorted(
            str(model)
            for model in models
            if str(model) not in unknown and tier_price(prices, model, tier, at) is None
        )
        if without and tier != STANDARD:
            yield f"no {tier} price is known for {_named(without)}"
    yield "dollars are at the prices known today, with no discount for cached input"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_MODELS_NAMED
    return ", ".join(names[:_MOST_MODELS_NAMED]) + (f" and {more:,} more" if more > 0 else "")


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
    words = f"{plural(estimate.to_send, 'row')} to send of {estimate.rows:,}"
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
        f"Pilot: {plural(pilot.rows, 'row')}, {pilot.ok:,} ok",
        ("", "so far", "in all", f"{share} between", "and"),
        rows,
    )


def _model(name: str | None) -> str:
    return "(none)" if name is None else brief(name, _NAME)


def _usd(value: float | None, *, standard: float | None) -> str:
    if value is None:
        return _NO_PRICE if standard is None else "-"
    return usd(value)
