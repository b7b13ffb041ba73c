"""What all rows will cost, judged by a pilot: random rows that were sent.

Costs of answers have long tails: a normal interval would be too low. The bootstrap-t takes the
shape of the tails from the sample itself: it draws samples from the sample, and sees how far the
mean of each is from the mean it was drawn from, in its own standard errors. The variation of the
remaining rows themselves is included, since their sum is asked for, not the mean of an endless
supply.
"""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from operator import mul
from pathlib import Path
from statistics import fmean, quantiles, stdev

import duckdb
from msgspec import Struct
from msgspec.structs import replace

from batchrun.estimate.cost_lines import Group, PilotResult, Range, asked_price, dollars
from batchrun.estimate.tokens import CountedRows, TokenCounts
from batchrun.job.expansion import PLAIN, Expansion
from batchrun.pricing.prices import Prices
from batchrun.records import Estimated, Totals, Usage
from batchrun.reports.sql import ask
from batchrun.store.run_dir import RunDir

SHARE = 0.9  # of such intervals that are meant to hold the true sum
_ROUNDS = 1_000
_MOST_DRAWS = 1_500_000  # about half a second
_LEAST_ROUNDS = 200
_SEED = 20_261_122
_ROWS = """
    SELECT "row", variant, ok, input_tokens, output_tokens, cost_usd, latency_s
    FROM responses WHERE "row" IN (SELECT unnest($rows)) AND sample = 0 ORDER BY "row"
"""


class SampledRow(Struct, frozen=True):
    """One complete row; null where the server said nothing, and cost where there is no price."""

    row: int
    variant: str | None
    ok: bool
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None  # of all its attempts
    latency_s: float | None  # of the attempt that counted


def read_sampled(path: Path, rows: Collection[int]) -> tuple[SampledRow, ...]:
    """Those of the rows that are complete, in their order. Raises `JobError`, `StoreError`."""

    def read(database: duckdb.DuckDBPyConnection, _files: object) -> tuple[SampledRow, ...]:
        found = database.execute(_ROWS, {"rows": sorted(rows)}).fetchall()
        return tuple(SampledRow(*values) for values in found)

    return ask(path, read)


def extrapolate(
    sampled: Sequence[SampledRow],
    counts: TokenCounts,
    rest: Mapping[str | None, Sequence[Group]],
    totals: Totals,
    prices: Prices,
    at: int,
    expansion: Expansion = PLAIN,
) -> PilotResult | None:
    """Figures for all rows, by those of the sampled ones; null where none of these has any.

    `rest` are the rows without an outcome, by variant; `totals` those with one, the sampled ones
    among them. What the texts predict of each row is subtracted first, and added again for the
    rest: rows of different lengths are no reason for a wide interval. The variants of a row of the
    source are one member of the sample, each as often as it remains, since they go together.
    """
    known = [row for row in sampled if row.output_tokens is not None or row.cost_usd == 0.0]
    remaining = {name: sum(one.rows for one in groups) for name, groups in rest.items()}
    rows = -(-max(remaining.values(), default=0) // expansion.samples)
    weights = {name: count / rows for name, count in remaining.items() if count}
    of_row: dict[int, list[SampledRow]] = {}
    for row in known:
        if row.variant in weights:
            of_row.setdefault(row.row, []).append(row)
    members = [some for some in of_row.values() if len(some) == len(weights)]
    if not members:
        return None
    every = [one for groups in rest.values() for one in groups]

    def predicted_usd(one: CountedRows) -> float:
        price = asked_price(prices, one.model, one.kind, at)
        return (price.cost(Usage(one.input_tokens, output_tokens=0)) or 0.0) if price else 0.0

    def counted(row: SampledRow) -> CountedRows:
        return counts.row(expansion.first_sample(row.row, row.variant))

    def sample(value: Callable[[SampledRow], float]) -> list[float]:
        """A value for each member."""
        return [sum(weights[one.variant] * value(one) for one in some) for some in members]

    cost = None
    if all(row.cost_usd is not None for some in members for row in some):
        beyond = sample(lambda row: (row.cost_usd or 0.0) - predicted_usd(counted(row)))
        predicted = sum(dollars([one], [0], None, prices, at) or 0.0 for one in every)
        cost = sum_range(beyond, rows, totals.cost_usd or 0.0, predicted)
    latencies = [row.latency_s for row in known if row.latency_s is not None]
    return PilotResult(
        rows=len(sampled),
        ok=sum(row.ok for row in sampled),
        used=len(known),
        share=SHARE,
        input_tokens=sum_range(
            sample(lambda row: (row.input_tokens or 0) - counted(row).input_tokens),
            rows,
            totals.input_tokens,
            sum(one.input_tokens for one in every),
        ),
        output_tokens=sum_range(
            sample(lambda row: row.output_tokens or 0), rows, totals.output_tokens
        ),
        cost_usd=cost,
        latency_s=fmean(latencies) if latencies else None,
    )


def as_estimated(result: PilotResult, rows: int, at: int) -> Estimated:
    """What is stored of it, for the report to compare with what the rows did cost."""
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


def store_estimated(path: Path, estimated: Estimated) -> None:
    """In `run.json`, unless it holds an earlier estimate by as many rows.

    Raises `JobError`, `StoreError`.
    """
    with closing(RunDir.open(path)) as run_dir:
        record = run_dir.record
        if record is None:
            return
        if record.estimated is None or record.estimated.pilot_rows != estimated.pilot_rows:
            run_dir.save(replace(record, estimated=estimated))


def sum_range(
    sample: Sequence[float], rest_rows: int, so_far: float = 0.0, predicted: float = 0.0
) -> Range:
    """The sum over all rows: `so_far`, and `rest_rows` rows that `sample` represents, at least 0.

    `predicted`: the part of the rest that is known beforehand; the sample holds what exceeds it.
    """
    count, mean = len(sample), fmean(sample)
    expected = predicted + rest_rows * mean
    low = high = expected
    error = stdev(sample, mean) / math.sqrt(count) if count > 1 and rest_rows else 0.0
    if error > 1e-12 * abs(mean):  # a rounding error is no spread
        # The mean of the rest varies too: by as much as a sample of its size would.
        spread = rest_rows * error * math.sqrt(1 + count / rest_rows)
        lowest, *_, highest = quantiles(
            _ratios(sample, mean), n=round(2 / (1 - SHARE)), method="inclusive"
        )
        low = min(expected, expected - highest * spread)
        high = max(expected, expected - lowest * spread)
    return Range(so_far, *(so_far + max(0.0, value) for value in (expected, low, high)))


def _ratios(sample: Sequence[float], mean: float) -> list[float]:
    """How far the means of samples from the sample are from its own, in standard errors."""
    count = len(sample)
    rounds = max(_LEAST_ROUNDS, min(_ROUNDS, _MOST_DRAWS // count))
    draw = random.Random(_SEED)  # noqa: S311 - a sample, no secret
    centred = [value - mean for value in sample]
    ratios = []
    for _ in range(rounds):
        drawn = draw.choices(centred, k=count)
        shift = sum(drawn) / count
        variance = (sum(map(mul, drawn, drawn)) / count - shift * shift) / (count - 1)
        if variance > 0.0:
            ratios.append(shift / math.sqrt(variance))
    return ratios if len(ratios) > 1 else [0.0, 0.0]
