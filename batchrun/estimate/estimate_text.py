"""An estimate in words: warnings and notes, and its tables in a terminal of 80 columns."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from batchrun.estimate.cost_lines import (
    CAPPED,
    TIERS,
    Answers,
    Estimate,
    InputTokens,
    PilotResult,
    tier_price,
)
from batchrun.estimate.tokens import (
    BYTES,
    MESSAGE_TOKENS,
    O200K,
    OTHER_FACTOR,
    REQUEST_TOKENS,
    CountedRows,
    Kind,
)
from batchrun.formats.amounts import duration, known_usd, plural, short_count, usd
from batchrun.formats.printable import brief, named, one_line, pricing_tables
from batchrun.formats.text_tables import Section, show_section, show_text
from batchrun.pricing.price_list import spellings
from batchrun.pricing.prices import STANDARD, Prices, meant_by, tier_name

# The o-series, and gpt-5 and later but for their chat variants.
_REASONING = re.compile(r"(o[1-9]|gpt-([5-9]|[1-9]\d))([-.@]|$)")
_FEW = 30  # rows of a pilot, below which its interval is not to be trusted
_MOST_MODELS = 20  # lines of input tokens
_MOST_RANGES = 5  # models whose range is said first
_NO_PRICE = "unknown"
_NAME = 24  # characters of a model's name
_ASKED = "as asked"  # in the service tiers that rows ask for


def show_estimate(estimate: Estimate, stream: TextIO) -> None:
    """Writes it; bold where the stream is a terminal."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(one_line(estimate.run), style="bold"), soft_wrap=True)
    for line in _head(estimate):
        show_text(line, console)
    costs = [_pilot(estimate.pilot)] if estimate.pilot is not None else []
    if estimate.pilot is None or len(estimate.answers) > 1:  # of each variant
        costs.append(_answers(estimate.answers))
    for section in (*costs, _inputs(estimate.inputs)):
        if section.rows:
            show_section(section, console)
    if estimate.notes:
        console.print()
    for note in estimate.notes:
        show_text(f"- {one_line(note)}", console, indent="")


def _head(estimate: Estimate) -> Iterator[str]:
    is_plain = estimate.source_rows in (0, estimate.rows)
    what = "row" if is_plain else "request"
    words = f"{plural(estimate.to_send, what)} to send of {estimate.rows:,}"
    words += "" if is_plain else f" ({plural(estimate.source_rows, 'row')})"
    if estimate.settled:
        words += f", {estimate.settled:,} complete"
        if estimate.spent_usd is not None:
            words += f" for {_spent(estimate.spent_usd, estimate)}"
    if estimate.bad_rows:
        words += f", {estimate.bad_rows:,} bad"
    if estimate.simulated:
        words += "; simulated, so nothing is paid"
    yield words
    yield from _decided_by(estimate)
    for warning in estimate.warnings:
        yield f"warning: {one_line(warning)}"


def _decided_by(estimate: Estimate) -> Iterator[str]:
    """The cost in a line, and what it depends on."""
    if estimate.pilot is not None:
        cost = estimate.pilot.cost_usd
        if cost is not None:
            yield (
                f"cost: {_spent(cost.total, estimate)} in all, {estimate.pilot.share:.0%} between "
                f"{usd(cost.low)} and {usd(cost.high)}; {usd(cost.so_far)} of it is spent"
            )
        return
    by_model: dict[str | None, list[Answers]] = {}
    of_all = [line for line in estimate.answers if line.variant is None]
    for line in of_all:
        by_model.setdefault(line.model, []).append(line)
    for model, lines in list(by_model.items())[:_MOST_RANGES]:
        if len(lines) > 1:
            yield f"{'cost' if model is None else _model(model)}: {_range(lines[0], lines[-1])}"
    if len(of_all) > len(by_model):
        how = "" if estimate.answers[0].model else "; --pilot N measures it"
        yield f"say how long they are with --expect-output N{how}"


def _spent(dollars: float, estimate: Estimate) -> str:
    """With the mark of what is known in part alone."""
    return known_usd(dollars, is_partly=bool(estimate.unknown_attempts))


def _range(short: Answers, long: Answers) -> str:
    """From the shortest assumption to the longest, which differ by what answers cost alone."""
    low, high = short.asked_usd, long.asked_usd
    if low is None or high is None:
        return _NO_PRICE
    tokens = long.output_tokens - short.output_tokens
    input_usd = max(0.0, low - (high - low) * short.output_tokens / tokens) if tokens > 0 else low
    words = f"{usd(low)} to {usd(high)}, of it {usd(input_usd)} for the input"
    if 2 * input_usd > high:
        return f"{words}, which decides"
    longest = "max_output_tokens" if long.each_tokens is None else f"{long.each_tokens:,.0f} tokens"
    shortest = f"{short.each_tokens or 0:,.0f}"
    return f"{words}; the length of the answers decides: {shortest} to {longest} each"


def _inputs(inputs: tuple[InputTokens, ...]) -> Section:
    rows = [
        (_label(one), one.rows, one.min, one.median, one.p95, one.max, one.total)
        for one in inputs[:_MOST_MODELS]
    ]
    more = len(inputs) - len(rows)
    return Section(
        "inputs",
        "Input tokens",
        (
            "variant" if any(one.variant for one in inputs) else "model",
            "rows",
            "min",
            "median",
            "p95",
            "max",
            "total",
        ),
        tuple((model, *(f"{count:,}" for count in counts)) for model, *counts in rows),
        note=f"and {more:,} more" if more > 0 else None,
    )


def _answers(answers: tuple[Answers, ...]) -> Section:
    has_variants = any(one.variant is not None for one in answers)
    has_models = has_variants or any(one.model is not None for one in answers)
    has_times = any(one.least_s is not None for one in answers)
    is_standard = all(one.asked_usd == one.usd[STANDARD] for one in answers)
    # What the rows ask for comes first; where there is little space, the standard price makes room.
    asked = () if is_standard else (_ASKED,)
    tiers = TIERS[1:] if asked and has_models and has_times else TIERS
    rows = [
        (
            _label(one) if one.variant or not has_variants else "all",
            one.name,
            short_count(one.output_tokens) if has_models else f"{one.output_tokens:,}",
            *(_usd(one.asked_usd, one.asked_usd) for _ in asked),
            *(_usd(one.usd[tier], one.usd[STANDARD]) for tier in tiers),
            "-" if one.least_s is None else duration(one.least_s),
        )
        for one in answers
    ]
    head = "variant" if has_variants else "model"
    heads: tuple[str, ...] = (head, "if answers are", "output", *asked, *tiers, "time")
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
        cells = [_NO_PRICE] * 5
        if figure is not None:
            to_come = figure.total - figure.so_far
            values = (figure.so_far, to_come, figure.total, figure.low, figure.high)
            cells = [usd(v) if name == "cost" else f"{round(v):,}" for v in values]
        rows.append((name, *cells))
    return Section(
        "pilot",
        f"Pilot: {plural(pilot.rows, 'row')}, {pilot.ok:,} ok",
        ("", "so far", "to come", "total", f"{pilot.share:.0%} between", "and"),
        tuple(rows),
    )


def _model(name: str | None) -> str:
    return "(none)" if name is None else brief(name, _NAME)


def _label(one: InputTokens | Answers) -> str:
    return _model(one.model) if one.variant is None else brief(one.variant, _NAME)


def _usd(value: float | None, standard: float | None) -> str:
    if value is None:
        return _NO_PRICE if standard is None else "-"
    return usd(value)


def cap_warnings(estimate: Estimate, cap_usd: float | None) -> Iterator[str]:
    """Whether the cap may stop the run; it includes what is spent already."""
    if cap_usd is None:
        return
    cap = f"the cap of {usd(cap_usd)} (--max-cost)"
    if estimate.pilot is not None and estimate.pilot.cost_usd is not None:
        if estimate.pilot.cost_usd.total > cap_usd:
            yield f"{cap} is below that: it is likely to stop the run before its end"
        elif estimate.pilot.cost_usd.high > cap_usd:
            yield f"{cap} lies within that interval: it may stop the run before its end"
        return
    above = []
    for line in (line for line in estimate.answers if line.variant is None):
        spent_usd = (estimate.spent_usd or 0.0) if line.model is None else 0.0
        if (cost := line.asked_usd) is not None and spent_usd + cost > cap_usd:
            above.append(line.name if line.model is None else f"{line.model}, {line.name}")
    if above:
        yield f"{cap} stops a run before its end if answers are as in: {'; '.join(above)}"


def notes(
    estimate: Estimate,
    counted: Sequence[CountedRows],
    drawn: tuple[int, int] | None,
    prices: Prices,
    at: int,
) -> Iterator[str]:
    """`counted`: the rows that are to be sent.

    `drawn`: how many rows were drawn for a pilot, and how many of them have no outcome.
    """
    if not counted:
        return
    if drawn is not None:
        yield from _on_pilot(estimate, *drawn)
    kinds: Counter[Kind] = Counter()
    for one in counted:
        kinds[one.kind] += one.rows
    models = list(dict.fromkeys(line.model for line in estimate.inputs))
    yield from _on_counting(estimate.inputs)
    if estimate.unknown_attempts:
        attempts = plural(estimate.unknown_attempts, "attempt")
        yield f"the cost of {attempts} of complete rows is not known, and not included"
    is_comparison = any(line.model is not None for line in estimate.answers)
    yield from _on_kinds(kinds)
    yield from _on_tiers(kinds, models if is_comparison else (), prices, at)
    if estimate.pilot is None:
        yield from _on_reasoning(models, () if is_comparison else kinds)
    yield from _on_prices(models, prices, at)
    if all(line.least_s is None for line in estimate.answers):
        yield (
            "how long it takes is not known without --rpm or --tpm, or a pilot and --concurrency "
            "N: a run finds out what the server allows"
        )


def _on_pilot(estimate: Estimate, rows: int, unfinished: int) -> Iterator[str]:
    pilot = estimate.pilot
    drawn = f"of the pilot's {plural(rows, 'row')}"
    if pilot is None and unfinished:
        yield (
            f"{unfinished:,} {drawn} have no outcome yet, so there is no estimate by it: give "
            "--pilot again to complete it"
        )
    elif pilot is None:
        yield (
            f"none {drawn} ended with a count of tokens, so there is no estimate by it: batchrun "
            "report says why"
        )
    else:
        if uncounted := pilot.rows - pilot.used:
            yield f"{uncounted:,} {drawn} ended without a count of tokens and are left out"
        yield from _on_the_rest(estimate)
        if pilot.used < _FEW:
            yield f"a pilot of less than {_FEW} rows: the interval may well be too narrow"


def _on_the_rest(estimate: Estimate) -> Iterator[str]:
    """The rows to come in other tiers, and how long they take."""
    rest = plural(estimate.to_send, "row")
    for line in (line for line in estimate.answers if line.variant is None):
        # The tier that they ask for is no other one, and none can ask for a batch.
        others = {
            tier: some
            for tier, some in line.usd.items()
            if some is not None and (tier == "batch" or some != line.asked_usd)
        }
        words = [f"{usd(some)} at {tier}" for tier, some in others.items()]
        if words:
            yield f"the {rest} to come would cost {' and '.join(words)} prices"
        if line.least_s is not None:
            yield f"the {rest} to come take at least {duration(line.least_s)} at the limits given"


def _on_counting(inputs: Sequence[InputTokens]) -> Iterator[str]:
    form = (
        f"{MESSAGE_TOKENS} for each message and {REQUEST_TOKENS} for each request are added, and "
        "tools and schemas count as compact JSON"
    )
    names = sorted({line.counted_in for line in inputs})
    if BYTES in names:
        how = "tokens are guessed at one for 4 bytes; pip install 'batchrun[tokens]' counts them"
        yield f"{how}. {form}"
        return
    yield f"texts are counted in {' and '.join(names)}; {form}"
    if others := sorted({str(line.model) for line in inputs if line.factor != 1.0}):
        yield (
            f"{named(others)}: the vocabulary is not known, so the count in {O200K} is multiplied "
            f"by {OTHER_FACTOR}"
        )


def _on_kinds(kinds: Counter[Kind]) -> Iterator[str]:
    if unseen := sum(rows for kind, rows in kinds.items() if kind.unseen):
        yield (
            f"in {plural(unseen, 'row')} the model reads more than text (images, files, stored "
            "context, hosted tools): that is not counted"
        )
    if hosted := sum(rows for kind, rows in kinds.items() if kind.hosted):
        yield (
            f"in {plural(hosted, 'row')} hosted tools may be used that are billed by the piece: "
            "these fees are not counted"
        )


def _on_tiers(
    kinds: Counter[Kind], models: Sequence[str | None], prices: Prices, at: int
) -> Iterator[str]:
    """The tiers asked for, and models without a price there; `models`: instead of the rows'."""
    tiers: dict[str, Counter[str | None]] = {}
    for kind, rows in kinds.items():
        if (tier := tier_name(kind.service_tier)) != STANDARD:
            tiers.setdefault(tier, Counter())[kind.model] += rows
    for tier, asking in tiers.items():
        said = f"the service tier {tier} is asked for in {plural(asking.total(), 'row')}"
        known = [model for model in models or asking if tier_price(prices, model, STANDARD, at)]
        without = [str(model) for model in known if not tier_price(prices, model, tier, at)]
        yield said + (", and its price is counted there" if len(without) < len(known) else "")
        if without:
            names = named(sorted(without))
            yield f"no {tier} price is known for {names}, so the standard one is counted"


def _on_reasoning(models: Sequence[str | None], kinds: Iterable[Kind]) -> Iterator[str]:
    """By the models' names, and by what the requests ask for."""
    found = {kind.model for kind in kinds if kind.reasons}
    found |= {model for model in models if model and _may_reason(model)}
    if names := sorted(found - {None}, key=str):
        yield (
            f"{named(list(map(str, names)))} may reason before an answer, which is billed as "
            "output: the assumed lengths do not include it, unless --expect-output does; --pilot "
            "measures it"
        )


def _may_reason(model: str) -> bool:
    return any(_REASONING.match(name) and "-chat" not in name for _, name in spellings(model))


def _on_prices(models: Sequence[str | None], prices: Prices, at: int) -> Iterator[str]:
    without = {
        tier: sorted(model for model in models if model and not tier_price(prices, model, tier, at))
        for tier in TIERS
    }
    unknown = without.pop(STANDARD)
    if unknown:
        # A price for an alias would not be read.
        aliases = {model: alias for model in unknown if (alias := prices.alias_of(model))}
        names = list(dict.fromkeys(aliases.get(model, model) for model in unknown))
        labels = [
            f"{one} (an alias of {aliases[one]})" if one in aliases else one for one in unknown
        ]
        near = [f"{name} by {model}" for model, name in meant_by(prices, names, at).items()]
        meant = f". Did you mean {', '.join(near)}? Else" if near else ":"
        correct = "correct the alias, or " if aliases else ""
        yield (
            f"no price is known for {named(labels)}{meant} {correct}give it in the job file or in "
            f"~/.config/batchrun/prices.toml, as {pricing_tables(names)} with input and output "
            "in USD for a million tokens"
        )
    if None in models:
        yield "rows that name no model have no price; a stored prompt names its model itself"
    for tier, names in without.items():
        if priced := [name for name in names if name not in unknown]:
            yield f"no {tier} price is known for {named(priced)}"
    yield "dollars are at the prices known today, with no discount for cached input"
