"""What the rows of a pilot say of all the others.

Costs of answers have long tails: a normal interval would be too low. The bootstrap-t takes the
shape of the tails from the sample itself: it draws samples from the sample, and sees how far the
mean of each is from the mean it was drawn from, in its own standard errors. What the rest itself
will vary by is counted in, since its sum is asked for and not the mean of an endless supply.
"""

import math
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from operator import mul
from pathlib import Path

import duckdb
from msgspec import Struct
from msgspec.structs import replace

from batchrun.estimate.cost_lines import (
    STANDARD,
    Group,
    PilotResult,
    Range,
    factor_of,
    input_tokens,
    tier_price,
)
from batchrun.estimate.tokens import TokenCounts
from batchrun.pricing.prices import Prices
from batchrun.records import NO_SEARCHES, Estimated, Totals, Usage
from batchrun.reports.sql import ask
from batchrun.store.run_dir import RunDir

_ROWS = """
    SELECT "row", ok, input_tokens, output_tokens, cost_usd, latency_s
    FROM responses WHERE "row" IN (SELECT unnest($rows)) AND sample = 0 ORDER BY "row"
"""


class SampledRow(Struct, frozen=True):
    """One settled row; null where the server said nothing, and cost where there is no price."""

    row: int
    ok: bool
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None  # of all its attempts
    latency_s: float | None  # of the try that counted


def read_sampled(path: Path, rows: Collection[int]) -> tuple[SampledRow, ...]:
    """Those of the rows that are settled, in their order. Raises `JobError`, `StoreError`."""

    def read(database: duckdb.DuckDBPyConnection, _files: object) -> tuple[SampledRow, ...]:
        found = database.execute(_ROWS, {"rows": sorted(rows)}).fetchall()
        return tuple(SampledRow(*values) for values in found)

    return ask(path, read)


SHARE = 0.9  # of such intervals that are meant to hold the true sum
_ROUNDS = 1_000
_MOST_DRAWS = 1_500_000  # about half a second
_LEAST_ROUNDS = 200
_SEED = 20_261_122


class Sum(Struct, frozen=True):
    """A sum over rows that nobody has seen, and where it is likely to be."""

    expected: float
    low: float
    high: float


def sum_of_rest(sample: Sequence[float], rest_rows: int, foreseen: float = 0.0) -> Sum:
    """The sum over `rest_rows` rows of which `sample` is a fair picture; 0 is the least.

    `foreseen` is what is known of the sum beforehand; the sample then holds what came on top.
    """
    count = len(sample)
    mean = math.fsum(sample) / count
    expected = foreseen + rest_rows * mean
    error = _standard_error(sample, mean) if count > 1 and rest_rows else 0.0
    if error == 0.0:
        return Sum(*(max(0.0, expected),) * 3)
    # The mean of the rest varies too: by as much as a sample of its size would.
    spread = rest_rows * error * math.sqrt(1 + count / rest_rows)
    ratios = _ratios(sample, mean)
    edge = (1 - SHARE) / 2
    low = min(expected, expected - _quantile(ratios, 1 - edge) * spread)
    high = max(expected, expected - _quantile(ratios, edge) * spread)
    return Sum(max(0.0, expected), max(0.0, low), max(0.0, high))


def _standard_error(sample: Sequence[float], mean: float) -> float:
    squares = math.fsum((value - mean) ** 2 for value in sample)
    error = math.sqrt(squares / (len(sample) - 1) / len(sample))
    return error if error > 1e-12 * abs(mean) else 0.0  # what rounding leaves is no spread


def _ratios(sample: Sequence[float], mean: float) -> list[float]:
    """How far the means of samples from the sample are from its own, in standard errors, sorted."""
    count = len(sample)
    rounds = max(_LEAST_ROUNDS, min(_ROUNDS, _MOST_DRAWS // count))
    draw = random.Random(_SEED)  # noqa: S311 - chance, not secrecy
    centred = [value - mean for value in sample]
    ratios = []
    for _ in range(rounds):
        drawn = draw.choices(centred, k=count)
        shift = sum(drawn) / count
        variance = (sum(map(mul, drawn, drawn)) / count - shift * shift) / (count - 1)
        if variance > 0.0:
            ratios.append(shift / math.sqrt(variance))
    return sorted(ratios) or [0.0]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two values beside it, by how near they are."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def extrapolate(
    sampled: Sequence[SampledRow],
    counts: TokenCounts,
    rest: Sequence[Group],
    totals: Totals,
    prices: Prices,
    at: int,
    *,
    by_bytes: bool,
) -> PilotResult | None:
    """All of it, by what came of the sampled rows; null where none of them says anything.

    `rest` are the rows without an outcome, `totals` those with one, the sampled ones among them.
    What the texts foretell of each row is taken out before, and added again for the rest: rows of
    different lengths are no reason for a wide interval.
    """
    known = [row for row in sampled if row.output_tokens is not None or row.cost_usd == 0.0]
    if not known:
        return None

    def foretold(row: SampledRow) -> int:
        kind, text_tokens = counts.of_row(row.row)
        return input_tokens(kind, text_tokens, factor_of(kind.model, by_bytes=by_bytes))

    def price_foretold(row: SampledRow) -> float:
        price = tier_price(prices, counts.of_row(row.row)[0].model, STANDARD, at)
        return (price.cost(Usage(foretold(row), output_tokens=0)) or 0.0) if price else 0.0

    rows = sum(one.rows for one in rest)
    inputs = _told(known, lambda row: (row.input_tokens or 0) - foretold(row))
    outputs = _told(known, lambda row: row.output_tokens or 0)
    costs = None
    if all(row.cost_usd is not None for row in known):
        costs = _told(known, lambda row: (row.cost_usd or 0.0) - price_foretold(row))
    latencies = [row.latency_s for row in known if row.latency_s is not None]
    rest_tokens = sum(one.input_tokens for one in rest)
    return PilotResult(
        rows=len(sampled),
        ok=sum(row.ok for row in sampled),
        used=len(known),
        share=SHARE,
        input_tokens=_whole(totals.input_tokens, sum_of_rest(inputs, rows, rest_tokens)),
        output_tokens=_whole(totals.output_tokens, sum_of_rest(outputs, rows)),
        cost_usd=None
        if costs is None
        else _whole(
            totals.cost_usd or 0.0, sum_of_rest(costs, rows, _dollars_foretold(rest, prices, at))
        ),
        latency_s=math.fsum(latencies) / len(latencies) if latencies else None,
    )


def _told(known: Sequence[SampledRow], value: Callable[[SampledRow], float]) -> list[float]:
    return [value(row) for row in known]


def _dollars_foretold(rest: Sequence[Group], prices: Prices, at: int) -> float:
    """For the inputs, as far as there are prices."""
    total = 0.0
    for one in rest:
        price = tier_price(prices, one.model, STANDARD, at)
        if price is not None:
            usage = Usage(one.input_tokens, output_tokens=0)
            total += price.cost_of_many(usage, one.above, NO_SEARCHES, one.rows)
    return total


def _whole(so_far: float, rest: Sum) -> Range:
    return Range(so_far, so_far + rest.expected, so_far + rest.low, so_far + rest.high)


def as_estimated(result: PilotResult, rows: int, at: int) -> Estimated:
    """What is kept of it, to be held against what it will have been."""
    cost = result.cost_usd
    return Estimated(
        at=at,
        pilot_rows=result.used,
        rows=rows,
        output_tokens=round(result.output_tokens.total),
        cost_usd=cost.total if cost else None,
        low_usd=cost.low if cost else None,
        high_usd=cost.high if cost else None,
    )


def keep_estimated(path: Path, estimated: Estimated) -> None:
    """`run.json` says it from now on, unless it has what as many rows told earlier.

    Raises `JobError`, `StoreError`.
    """
    with closing(RunDir.open(path)) as run_dir:
        record = run_dir.record
        if record is None:
            return
        if record.estimated is None or record.estimated.pilot_rows != estimated.pilot_rows:
            run_dir.save(replace(record, estimated=estimated))
