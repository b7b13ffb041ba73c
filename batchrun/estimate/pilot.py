"""What the rows of a pilot say of all the others."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from batchrun.estimate.counts import TokenCounts
from batchrun.estimate.figures import PilotResult, Range
from batchrun.estimate.interval import SHARE, Sum, sum_of_rest
from batchrun.estimate.lines import STANDARD, Group, factor_of, input_tokens, tier_price
from batchrun.pricing.prices import Prices
from batchrun.records import NO_SEARCHES, Estimated, Totals, Usage
from batchrun.store.run_dir import RunDir
from batchrun.store.sampled import SampledRow


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
