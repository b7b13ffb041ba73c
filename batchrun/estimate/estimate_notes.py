"""What the figures of an estimate rest on and leave out, in sentences."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from batchrun.estimate.cost_lines import (
    STANDARD,
    TIERS,
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
from batchrun.formats.amounts import plural, usd
from batchrun.pricing.price_list import spellings
from batchrun.pricing.prices import Prices

# The o-series, and gpt-5 and later but for their chat variants.
_REASONING = re.compile(r"(o[1-9]|gpt-([5-9]|[1-9]\d))([-.@]|$)")
_FEW = 30  # rows of a pilot, below which its interval is not to be trusted
_MOST_MODELS_NAMED = 10  # that are named one by one


def cap_warning(estimate: Estimate, cap_usd: float | None) -> list[str]:
    """Whether the cap may stop the run, at standard prices; it includes what is spent already."""
    if cap_usd is None:
        return []
    cap = f"the cap of {usd(cap_usd)} (--max-cost)"
    if estimate.pilot is not None and estimate.pilot.cost_usd is not None:
        if estimate.pilot.cost_usd.total > cap_usd:
            return [f"{cap} is below that: it is likely to stop the run before its end"]
        if estimate.pilot.cost_usd.high > cap_usd:
            return [f"{cap} lies within that interval: it may stop the run before its end"]
        return []
    above = []
    for line in estimate.answers:
        spent_usd = (estimate.spent_usd or 0.0) if line.model is None else 0.0
        dollars = line.usd[STANDARD]
        if dollars is not None and spent_usd + dollars > cap_usd:
            above.append(line.name if line.model is None else f"{line.model}, {line.name}")
    if above:
        return [f"{cap} stops a run before its end if answers are as in: {'; '.join(above)}"]
    return []


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
        yield from _on_pilot(estimate.pilot, *drawn)
    kinds: Counter[Kind] = Counter()
    for one in counted:
        kinds[one.kind] += one.rows
    models = [line.model for line in estimate.inputs]
    yield from _on_counting(estimate.inputs)
    yield from _on_kinds(kinds)
    if estimate.pilot is None:
        is_comparison = any(line.model is not None for line in estimate.answers)
        yield from _on_reasoning(models, () if is_comparison else kinds)
    yield from _on_prices(models, prices, at)
    if all(line.least_s is None for line in estimate.answers):
        yield (
            "how long it takes is not known without --rpm or --tpm, or a pilot and --concurrency "
            "N: a run finds out what the server allows"
        )


def _on_pilot(pilot: PilotResult | None, rows: int, unfinished: int) -> Iterator[str]:
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
        if pilot.used < _FEW:
            yield f"a pilot of less than {_FEW} rows: the interval may well be too narrow"


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
    if others := sorted(str(line.model) for line in inputs if line.factor != 1.0):
        yield (
            f"{_named(others)}: the vocabulary is not known, so the count in {O200K} is multiplied "
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
    tiers: Counter[str] = Counter()
    for kind, rows in kinds.items():
        if kind.service_tier not in (None, "auto", "default"):
            tiers[str(kind.service_tier)] += rows
    for tier, rows in tiers.items():
        yield f"the service tier {tier} is asked for in {plural(rows, 'row')}"


def _on_reasoning(models: Sequence[str | None], kinds: Iterable[Kind]) -> Iterator[str]:
    """By the models' names, and by what the requests ask for."""
    found = {kind.model for kind in kinds if kind.reasons}
    found |= {model for model in models if model and _may_reason(model)}
    if names := sorted(found - {None}, key=str):
        yield (
            f"{_named(list(map(str, names)))} may reason before an answer, which is billed as "
            "output: the lengths that are assumed leave it out, unless --expect-output includes "
            "it; --pilot measures it"
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
        yield (
            f"no price is known for {_named(unknown)}: give it in the job file or in "
            f'~/.config/batchrun/prices.toml, as [pricing."{unknown[0]}"] with input and output '
            "in USD for a million tokens"
        )
    if None in models:
        yield "rows that name no model have no price; a stored prompt has a model of its own"
    for tier, names in without.items():
        if priced := [name for name in names if name not in unknown]:
            yield f"no {tier} price is known for {_named(priced)}"
    yield "dollars are at the prices known today, with no discount for cached input"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_MODELS_NAMED
    return ", ".join(names[:_MOST_MODELS_NAMED]) + (f" and {more:,} more" if more > 0 else "")
