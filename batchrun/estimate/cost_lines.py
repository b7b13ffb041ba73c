"""Counts of tokens to lines with dollars and time.

What is not known has no figure: a model or a tier without a price, a time without
limits.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from msgspec import Struct

from batchrun.estimate.tokens import CountedRows, Kind, TokenCounts, Vocabulary
from batchrun.job.sections import LimitsJob
from batchrun.pricing.price import Price
from batchrun.pricing.price_list import steps
from batchrun.pricing.prices import STANDARD, Prices
from batchrun.records import NO_SEARCHES, Estimated, Usage

TIERS = (STANDARD, "batch", "flex")
CAPPED = ", capped"  # at the row's `max_output_tokens`, where that is less


class InputTokens(Struct, frozen=True):
    """The input of the rows that go to one model, as it will be billed."""

    model: str | None  # null: rows name none
    rows: int
    counted_in: str  # the vocabulary of its texts, or `bytes/4`
    factor: float  # what the count of the texts was multiplied by
    text_tokens: int  # of the texts alone, before the factor
    min: int  # of a row, and below
    median: int
    p95: int
    max: int
    total: int
    variant: str | None = None  # whose rows these are; null where there are none


class Answers(Struct, frozen=True):
    """What the rows cost if their answers have a certain length."""

    model: str | None  # null: each row's own
    name: str  # the assumption, in words
    each_tokens: float | None  # assumed for an answer; null: the row's `max_output_tokens`
    output_tokens: int
    usd: dict[str, float | None]  # by tier; null: no price is known
    least_s: float | None  # at the limits given; null: none is
    variant: str | None = None  # of its rows alone; null: of all
    asked_usd: float | None = None  # each row in the tier that it asks for; null: no price is known


class Range(Struct, frozen=True):
    """A figure for all rows: what is known, and an interval for the rest."""

    so_far: float
    total: float
    low: float
    high: float


class PilotResult(Struct, frozen=True):
    """What random rows say of all."""

    rows: int  # drawn
    ok: int
    used: int  # of them, those whose tokens are known
    share: float  # of how many such intervals hold the true figure
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range | None  # null where a price is missing
    latency_s: float | None  # mean of the attempts that counted


class Estimate(Struct, frozen=True):
    """What a run would cost, or the rest of it."""

    run: str
    simulated: bool
    rows: int  # of the source, times samples and variants
    settled: int
    spent_usd: float | None  # in the run directory so far; null where nothing is known
    to_send: int
    bad_rows: int
    inputs: tuple[InputTokens, ...]  # by model
    answers: tuple[Answers, ...]
    pilot: PilotResult | None = None
    estimated: Estimated | None = None  # what `report` will say of it
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # the plan's, and of the cap
    source_rows: int = 0  # of the source
    unknown_attempts: int = 0  # of complete rows, whose cost is not known: it is in no figure


class Group(Struct, frozen=True):
    """Rows that are priced alike."""

    kind: Kind
    model: str | None
    above: int  # the last of the price list's steps that their inputs are longer than
    rows: int
    input_tokens: int


def group(counted: Iterable[CountedRows]) -> list[Group]:
    """The rows by all that a price depends on."""
    edges = steps()
    rows: Counter[tuple[Kind, str | None, int]] = Counter()
    tokens = rows.copy()
    for one in counted:
        key = one.kind, one.model, edges[bisect_left(edges, one.input_tokens) - 1]
        rows[key] += one.rows
        tokens[key] += one.rows * one.input_tokens
    return [Group(*key, count, tokens[key]) for key, count in rows.items()]


def input_lines(
    counted: Iterable[CountedRows], counts: TokenCounts, variant: str | None = None
) -> list[InputTokens]:
    """A line for each model, most rows first; the rows are those of a variant."""
    by_model: dict[str | None, list[CountedRows]] = {}
    for one in counted:
        by_model.setdefault(one.model, []).append(one)
    lines = [
        _input_line(model, rows, counts.vocabulary(model), variant)
        for model, rows in by_model.items()
    ]
    return sorted(lines, key=lambda line: (-line.rows, line.model or ""))


def _input_line(
    model: str | None, counted: list[CountedRows], vocabulary: Vocabulary, variant: str | None
) -> InputTokens:
    counted = sorted(counted, key=lambda one: one.input_tokens)
    passed = list(accumulate(one.rows for one in counted))

    def percentile(share: float) -> int:
        """A size that a row really has."""
        return counted[bisect_left(passed, share * passed[-1])].input_tokens

    return InputTokens(
        model=model,
        rows=passed[-1],
        counted_in=vocabulary.name,
        factor=vocabulary.factor,
        text_tokens=sum(one.rows * one.text_tokens for one in counted),
        min=counted[0].input_tokens,
        median=percentile(0.5),
        p95=percentile(0.95),
        max=counted[-1].input_tokens,
        total=sum(one.rows * one.input_tokens for one in counted),
        variant=variant,
    )


def assumptions(
    groups: Sequence[Group], expect_output: int | None
) -> list[tuple[str, float | None]]:
    """How long answers are, in words and tokens: as `expect_output` says, or three lengths.

    Null tokens: as long as the row's `max_output_tokens`, which no answer is longer than.
    """
    limits = [one.kind.max_output_tokens for one in groups]
    least = min((limit for limit in limits if limit is not None), default=None)

    def each(before: str, tokens: int, unit: str = "") -> tuple[str, float]:
        capped = CAPPED if least is not None and least < tokens else ""
        return f"{before}{tokens:,}{unit} each{capped}", tokens

    if expect_output is not None:
        return [each("", expect_output, " tokens")]
    longest = each("long: ", 4_000) if None in limits else ("all at max_output_tokens", None)
    return [each("short: ", 100, " tokens"), each("medium: ", 500), longest]


def answer_line(
    groups: Sequence[Group],
    model: str | None,
    assumption: tuple[str, float | None],
    prices: Prices,
    limits: LimitsJob,
    at: int,
    latency_s: float | None = None,
    variant: str | None = None,
) -> Answers:
    """What the rows cost under one assumption, now (`at`, µs since 1970).

    `latency_s`: mean of an answer, where one is known. `variant`: whose rows alone these are.
    """
    name, each_tokens = assumption
    outputs = [_output_tokens(one, each_tokens) for one in groups]
    rows, tokens = sum(one.rows for one in groups), sum(one.input_tokens for one in groups)
    return Answers(
        model=model,
        name=name,
        each_tokens=each_tokens,
        output_tokens=sum(outputs),
        usd={tier: dollars(groups, outputs, tier, prices, at) for tier in TIERS},
        least_s=_least_time(rows, tokens + sum(outputs), limits, latency_s),
        variant=variant,
        asked_usd=dollars(groups, outputs, None, prices, at),
    )


def _output_tokens(one: Group, each_tokens: float | None) -> int:
    bounds = [bound for bound in (each_tokens, one.kind.max_output_tokens) if bound is not None]
    return round(one.rows * min(bounds, default=0))


def dollars(
    groups: Sequence[Group], outputs: Sequence[int], tier: str | None, prices: Prices, at: int
) -> float | None:
    """Null where one of the models has no price, or none for the tier.

    `tier` null: each row in the one that it asks for.
    """
    total = 0.0
    for one, output_tokens in zip(groups, outputs, strict=True):
        price = (
            asked_price(prices, one.model, one.kind, at)
            if tier is None
            else tier_price(prices, one.model, tier, at)
        )
        if price is None:
            return None
        usage = Usage(one.input_tokens, output_tokens=output_tokens)
        total += price.cost_of_many(usage, one.above, NO_SEARCHES, one.rows)
    return total


def tier_price(prices: Prices, model: str | None, tier: str, at: int) -> Price | None:
    """What a model costs in a tier; null where that is not known."""
    if model is None:
        return None
    price = prices.find(model, None, at, None if tier == STANDARD else tier)
    return price if price and tier in (STANDARD, price.tier) else None


def asked_price(prices: Prices, model: str | None, kind: Kind, at: int) -> Price | None:
    """What a model costs in the tier that rows ask for; the standard price where that has none."""
    return None if model is None else prices.find(model, None, at, kind.service_tier)


def _least_time(
    requests: int, tokens: float, limits: LimitsJob, latency_s: float | None
) -> float | None:
    """Seconds at the limits that are given, whichever takes longest; null where none is known."""
    times = []
    if limits.requests_per_minute:
        times.append(60 * requests / limits.requests_per_minute)
    if limits.tokens_per_minute:
        times.append(60 * tokens / limits.tokens_per_minute)
    if latency_s is not None and isinstance(limits.concurrency, int):
        times.append(requests * latency_s / limits.concurrency)
    return max(times, default=None)
