"""What a run is estimated at: counts of tokens to lines with dollars and time.

What is not known has no figure: a model without a price, a tier without one of its own, a time
without limits.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from batchrun.estimate.tokens import BYTES, Kind, vocabulary_of
from batchrun.job.sections import LimitsJob
from batchrun.pricing.price import Price
from batchrun.pricing.price_list import steps
from batchrun.pricing.prices import Prices
from batchrun.records import NO_SEARCHES, Estimated, Usage


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


class Answers(Struct, frozen=True):
    """What it comes to if answers are so long."""

    model: str | None  # null: each row's own
    name: str  # the assumption, in words
    each_tokens: float | None  # assumed for an answer; null: the row's `max_output_tokens`
    output_tokens: int
    usd: dict[str, float | None]  # by tier; null: no price is known
    least_s: float | None  # at the limits given; null: none is


class Range(Struct, frozen=True):
    """A figure for all rows: what is known, and an interval for the rest."""

    so_far: float
    total: float
    low: float
    high: float


class PilotResult(Struct, frozen=True):
    """What rows picked by chance say of all."""

    rows: int  # picked
    ok: int
    used: int  # of them, those whose tokens are known
    share: float  # of how many such intervals hold the true figure
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range | None  # null where a price is missing
    latency_s: float | None  # mean of the tries that counted


class Estimate(Struct, frozen=True):
    """What a run would cost, or what is left of it."""

    run: str
    simulated: bool
    rows: int  # of the source
    settled: int
    spent_usd: float | None  # on settled rows; null where nothing is known
    to_send: int
    bad_rows: int
    inputs: tuple[InputTokens, ...]  # by model
    answers: tuple[Answers, ...]
    pilot: PilotResult | None = None
    estimated: Estimated | None = None  # what `report` will say of it
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # the plan's, and of the cap


STANDARD = "standard"
TIERS = (STANDARD, "batch", "flex")
_SHORT, _MIDDLING, _LONG = 100, 500, 4_000
CAPPED = ", capped"  # at the row's `max_output_tokens`, where that is less


class Assumption(Struct, frozen=True):
    """How long answers are; never longer than a row's `max_output_tokens`."""

    name: str
    each_tokens: float | None  # null: as long as they may be


class Group(Struct, frozen=True):
    """Rows that are priced alike."""

    kind: Kind
    model: str | None
    above: int  # the last of the price list's steps that their inputs are longer than
    rows: int
    input_tokens: int


Tokens = Mapping[tuple[Kind, int], int]  # (kind, text tokens) to rows


def input_tokens(kind: Kind, text_tokens: int, factor: float) -> int:
    """Of a row, with what stands around its texts."""
    return round(text_tokens * factor) + kind.form_tokens


def factor_of(model: str | None, *, by_bytes: bool) -> float:
    """The rule by bytes has none: it is rough in itself."""
    return 1.0 if by_bytes else vocabulary_of(model)[1]


def group(counted: Tokens, model: str | None, *, by_bytes: bool) -> list[Group]:
    """The rows by all that a price depends on; `model`: in place of each row's own."""
    edges = steps()
    sums: dict[tuple[Kind, int], list[int]] = {}
    for (kind, text_tokens), rows in counted.items():
        factor = factor_of(model or kind.model, by_bytes=by_bytes)
        tokens = input_tokens(kind, text_tokens, factor)
        above = edges[bisect_left(edges, tokens) - 1]
        entry = sums.setdefault((kind, above), [0, 0])
        entry[0] += rows
        entry[1] += rows * tokens
    return [
        Group(kind, model or kind.model, above, rows, tokens)
        for (kind, above), (rows, tokens) in sums.items()
    ]


def read_inputs(counted: Tokens, model: str | None, *, by_bytes: bool) -> list[InputTokens]:
    """A line for each model, most rows first; `model`: one line, in place of each row's own."""
    by_model: dict[str | None, Counter[int]] = {}
    texts: Counter[str | None] = Counter()
    for (kind, text_tokens), rows in counted.items():
        name = model or kind.model
        factor = factor_of(name, by_bytes=by_bytes)
        sizes = by_model.setdefault(name, Counter())
        sizes[input_tokens(kind, text_tokens, factor)] += rows
        texts[name] += rows * text_tokens
    lines = [
        _inputs(name, sizes, texts[name], by_bytes=by_bytes) for name, sizes in by_model.items()
    ]
    return sorted(lines, key=lambda line: (-line.rows, line.model or ""))


def _inputs(
    model: str | None, sizes: Counter[int], text_tokens: int, *, by_bytes: bool
) -> InputTokens:
    ordered = sorted(sizes)
    rows = sizes.total()

    def percentile(share: float) -> int:
        """A size that a row really has."""
        passed = 0
        for size in ordered:
            passed += sizes[size]
            if passed >= share * rows:
                return size
        return ordered[-1]

    return InputTokens(
        model=model,
        rows=rows,
        counted_in=BYTES if by_bytes else vocabulary_of(model)[0],
        factor=factor_of(model, by_bytes=by_bytes),
        text_tokens=text_tokens,
        min=ordered[0],
        median=percentile(0.5),
        p95=percentile(0.95),
        max=ordered[-1],
        total=sum(size * count for size, count in sizes.items()),
    )


def assumptions(groups: Sequence[Group], expect_output: int | None) -> tuple[Assumption, ...]:
    """The one asked for, or three that are stated."""
    bounds = [one.kind.max_output_tokens for one in groups]
    least = min((bound for bound in bounds if bound is not None), default=None)

    def each(before: str, tokens: int, unit: str = "") -> Assumption:
        is_capped = least is not None and least < tokens
        return Assumption(f"{before}{tokens:,}{unit} each{CAPPED if is_capped else ''}", tokens)

    if expect_output is not None:
        return (each("", expect_output, " tokens"),)
    return (
        each("short: ", _SHORT, " tokens"),
        each("middling: ", _MIDDLING),
        Assumption("all at max_output_tokens", None)
        if None not in bounds
        else each("long: ", _LONG),
    )


def answers(
    groups: Sequence[Group],
    model: str | None,
    assumption: Assumption,
    prices: Prices,
    limits: LimitsJob,
    at: int,
) -> Answers:
    """What it comes to under one assumption; `at` is now, in µs since 1970."""
    outputs = [_output_tokens(one, assumption.each_tokens) for one in groups]
    return Answers(
        model=model,
        name=assumption.name,
        each_tokens=assumption.each_tokens,
        output_tokens=sum(outputs),
        usd={tier: dollars(groups, outputs, tier, prices, at) for tier in TIERS},
        least_s=least_time(
            sum(one.rows for one in groups),
            sum(one.input_tokens for one in groups) + sum(outputs),
            limits,
        ),
    )


def _output_tokens(one: Group, each_tokens: float | None) -> int:
    most = one.kind.max_output_tokens
    bounds = [bound for bound in (each_tokens, most) if bound is not None]
    return round(one.rows * min(bounds, default=0))


def dollars(
    groups: Iterable[Group], outputs: Sequence[int], tier: str, prices: Prices, at: int
) -> float | None:
    """Null where one of the models has no price, or none of its own for the tier."""
    total = 0.0
    for one, output_tokens in zip(groups, outputs, strict=True):
        price = tier_price(prices, one.model, tier, at)
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
    if price is None or (tier not in (STANDARD, price.tier)):
        return None
    return price


def least_time(
    requests: int, tokens: float, limits: LimitsJob, latency_s: float | None = None
) -> float | None:
    """Seconds at the limits that are given, whichever takes longest; null where none is known.

    `latency_s`: mean of an answer, where one is known.
    """
    times = []
    if limits.requests_per_minute:
        times.append(60 * requests / limits.requests_per_minute)
    if limits.tokens_per_minute:
        times.append(60 * tokens / limits.tokens_per_minute)
    if latency_s is not None and isinstance(limits.concurrency, int):
        times.append(requests * latency_s / limits.concurrency)
    return max(times, default=None)
