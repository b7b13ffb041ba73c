"""What the figures of an estimate rest on, and what they leave out, in words."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from batchrun.estimate.counts import MESSAGE_TOKENS, REQUEST_TOKENS, Kind
from batchrun.estimate.figures import PilotResult
from batchrun.estimate.lines import STANDARD, TIERS, tier_price
from batchrun.estimate.tokens import O200K, OTHER_FACTOR, vocabulary_of
from batchrun.pricing.model_names import spellings
from batchrun.pricing.prices import Prices
from batchrun.records import Pilot
from batchrun.report.amounts import rows_in_words

# The o-series, and gpt-5 and later but for their chat variants.
_REASONING = re.compile(r"(o[1-9]|gpt-([5-9]|[1-9]\d))([-.@]|$)")
_FEW = 30  # rows of a pilot, below which its interval is not to be trusted
_MOST_MODELS = 10  # that are named one by one


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
            f"{left_out:,} of the pilot's {rows_in_words(pilot.rows)} ended without a count of "
            "tokens and are left out"
        )
    if pilot.used < _FEW:
        yield f"a pilot of less than {_FEW} rows: the interval may well be too narrow"


def _on_open_rows(picked: Pilot, settled: Sequence[int]) -> Iterator[str]:
    missing = sum(not settled[row] for row in picked.rows)
    if missing:
        yield (
            f"{missing:,} of the pilot's {rows_in_words(len(picked.rows))} have no outcome yet, so "
            "nothing is told by them: give --pilot again to go on with it"
        )
    else:
        yield (
            f"none of the pilot's {rows_in_words(len(picked.rows))} ended with a count of tokens, "
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
            f"in {rows_in_words(unseen)} the model reads more than text (images, files, stored "
            "context, hosted tools): that is not counted"
        )
    hosted = sum(rows for kind, rows in kinds.items() if kind.hosted)
    if hosted:
        yield (
            f"in {rows_in_words(hosted)} hosted tools may be used that are billed by the piece: "
            "these fees are not counted"
        )
    tiers: Counter[str] = Counter()
    for kind, rows in kinds.items():
        if kind.service_tier not in (None, "auto", "default"):
            tiers[str(kind.service_tier)] += rows
    for tier, rows in tiers.items():
        yield f"the service tier {tier} is asked for in {rows_in_words(rows)}"


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
    more = len(names) - _MOST_MODELS
    return ", ".join(names[:_MOST_MODELS]) + (f" and {more:,} more" if more > 0 else "")
