"""What rows of a pilot say of the others."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from batchrun.estimate.cost_lines import PilotResult, group
from batchrun.estimate.pilot import SampledRow, as_estimated, extrapolate, store_estimated
from batchrun.estimate.tokens import TokenCounts
from batchrun.job.sections import PriceJob
from batchrun.pricing.prices import Prices
from batchrun.records import Estimated, Totals, Usage
from batchrun.store.reading import read_run_record
from batchrun.store.run_dir import RunDir
from tests.runs import run_record

USD = 1_000_000.0  # for a million tokens: a dollar each
PRICES = Prices({"m": PriceJob(input=USD, output=USD)})


def row(
    number: int, output: int | None, cost: float | None, given: int | None = None
) -> SampledRow:
    return SampledRow(number, None, output is not None, given, output, cost, 2.0)


def extrapolated(
    sampled: list[SampledRow],
    rows: int,
    prices: Prices = PRICES,
    request: Mapping[str, str] | None = None,
    at: int = 0,
) -> PilotResult | None:
    """All rows with 2, 3, 2, 3 ... tokens of text, guessed by bytes; the sampled ones are first."""
    counts = TokenCounts(by_bytes=True)
    for number in range(rows):
        text = "12345678" + "9" * (number % 2)
        counts.add(number, {"model": "m", **(request or {}), "input": text})
    complete = bytes(number < len(sampled) for number in range(rows))
    rest = group(counts.rows(complete, rows))
    totals = Totals(
        rows=len(sampled),
        input_tokens=sum(one.input_tokens or 0 for one in sampled),
        output_tokens=sum(one.output_tokens or 0 for one in sampled),
        cost_usd=sum(one.cost_usd or 0.0 for one in sampled),
    )
    return extrapolate(sampled, counts, {None: rest}, totals, prices, at)


def test_inputs_that_are_known_make_no_interval() -> None:
    # Every answer has 5 tokens; the inputs differ, as predicted (7 tokens of form besides).
    sampled = [row(at, 5, 5.0 + 9 + at % 2, 9 + at % 2) for at in range(10)]
    found = extrapolated(sampled, 100)
    assert found is not None
    assert found.cost_usd is not None
    everything = 100 * 5 + 50 * 9 + 50 * 10
    for figure in (found.cost_usd.low, found.cost_usd.total, found.cost_usd.high):
        assert figure == pytest.approx(everything)
    assert found.input_tokens.total == pytest.approx(950)
    assert found.output_tokens.total == 500


def test_inputs_are_counted_in_the_tier_that_rows_ask_for() -> None:
    """What the list says of flex is half of the standard price, of the inputs too."""
    prices = Prices({"gpt-5": PriceJob(factor=1_000.0)})
    now_at = 1_795_000_000_000_000
    flex = prices.find("gpt-5", None, now_at, "flex")
    assert flex is not None
    assert flex.tier == "flex"
    usages = [Usage(9 + at % 2, output_tokens=5) for at in range(10)]
    sampled = [row(at, 5, flex.cost(usage), usage.input_tokens) for at, usage in enumerate(usages)]
    found = extrapolated(sampled, 100, prices, {"model": "gpt-5", "service_tier": "flex"}, now_at)
    assert found is not None
    assert found.cost_usd is not None
    everything = 10 * sum(flex.cost(usage) or 0.0 for usage in usages)
    for figure in (found.cost_usd.low, found.cost_usd.total, found.cost_usd.high):
        assert figure == pytest.approx(everything)


def test_rows_that_failed_for_nothing_count_as_nothing() -> None:
    sampled = [row(at, 10, 19.0 + at % 2, 9 + at % 2) for at in range(5)]
    sampled += [row(at, None, 0.0) for at in range(5, 10)]
    found = extrapolated(sampled, 20)
    assert found is not None
    assert (found.rows, found.used, found.ok) == (10, 10, 5)
    assert found.output_tokens.total == pytest.approx(100)


def test_rows_that_ended_without_a_count_are_left_out() -> None:
    sampled = [row(0, 10, 19.0, 9), row(1, None, None), row(2, 10, 19.0, 9)]
    found = extrapolated(sampled, 6)
    assert found is not None
    assert (found.rows, found.used) == (3, 2)
    assert found.output_tokens.total == pytest.approx(50)


def test_without_a_price_there_are_tokens_and_no_dollars() -> None:
    found = extrapolated([row(at, 10 + at, None, 9) for at in range(4)], 8, Prices({}))
    assert found is not None
    assert found.cost_usd is None
    assert found.output_tokens.low < found.output_tokens.total < found.output_tokens.high
    assert as_estimated(found, 8, 1).cost_usd is None


def test_without_a_row_with_figures_there_is_no_result() -> None:
    assert extrapolated([row(0, None, None)], 5) is None
    assert extrapolated([], 5) is None


def test_the_first_estimate_by_so_many_rows_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_dir = RunDir.open(path)
    run_dir.save(run_record())
    run_dir.close()

    def stored() -> Estimated | None:
        record = read_run_record(path)
        assert record is not None
        return record.estimated

    first = Estimated(1, 50, 1_000, 500, 1.0, 0.9, 1.2)
    later = Estimated(2, 50, 1_000, 510, 1.1, 1.0, 1.2)
    larger = Estimated(3, 100, 1_000, 505, 1.05, 1.0, 1.1)
    for estimated, expected in ((first, first), (later, first), (larger, larger)):
        store_estimated(path, estimated)
        assert stored() == expected
