"""The interval of a pilot: how often it holds the truth, and its edges."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.estimate.cost_lines import Range
from batchrun.estimate.pilot import sum_range
from benchmarks.pilot_coverage import coverage

SAMPLE = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


def test_nine_of_ten_intervals_hold_a_cost_with_a_long_tail() -> None:
    # docs/cost.md has the figures of 2,000 trials each.
    assert coverage(sigma=1.0, trials=200, seed=5).held >= 0.85


def test_the_same_sample_gives_the_same_interval() -> None:
    sample = [1.0, 2.0, 8.0, 3.0]
    assert sum_range(sample, 100) == sum_range(sample, 100)


def test_the_interval_is_longer_towards_the_long_tail() -> None:
    draw = random.Random(3)
    found = sum_range([draw.lognormvariate(0, 1) for _ in range(100)], 1_000)
    assert found.high - found.total > 1.2 * (found.total - found.low) > 0


def test_a_larger_sample_gives_a_narrower_interval() -> None:
    draw = random.Random(4)
    values = [draw.lognormvariate(0, 0.5) for _ in range(800)]
    few, many = sum_range(values[:50], 1_000), sum_range(values, 1_000)
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_the_rest_varies_though_the_mean_is_well_known() -> None:
    draw = random.Random(5)
    values = [draw.lognormvariate(0, 1) for _ in range(1_000)]
    one = sum_range(values, 1)
    spread = math.sqrt(sum((value - one.total) ** 2 for value in values) / 999)
    assert one.high - one.total > 1.4 * spread


def test_what_is_predicted_is_no_reason_for_an_interval() -> None:
    assert sum_range([2.0] * 10, 50, predicted=1_000.0) == Range(0.0, 1_100.0, 1_100.0, 1_100.0)


@pytest.mark.parametrize("sample", [[3.0], [3.0] * 40])
def test_one_row_or_equal_rows_give_no_spread(sample: list[float]) -> None:
    assert sum_range(sample, 10) == Range(0.0, 30.0, 30.0, 30.0)


def test_the_sum_of_no_rows_is_0() -> None:
    assert sum_range([1.0, 2.0, 3.0], 0) == Range(0.0, 0.0, 0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(SAMPLE, st.integers(0, 10**6), st.floats(0, 1e9))
def test_the_expected_sum_lies_within(sample: list[float], rows: int, predicted: float) -> None:
    found = sum_range(sample, rows, predicted=predicted)
    assert 0 <= found.low <= found.total <= found.high
    assert math.isfinite(found.high)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 0), min_size=2, max_size=20), st.integers(1, 1000))
def test_no_sum_is_below_0(sample: list[float], rows: int) -> None:
    found = sum_range(sample, rows)
    assert found.low == found.total == 0.0
    assert found.high >= 0.0
