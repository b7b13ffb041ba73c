"""The interval of a pilot: how often it holds the truth, and its edges."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.estimate.pilot import Sum, sum_of_rest
from benchmarks.pilot_coverage import coverage

SAMPLE = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


def test_nine_of_ten_intervals_hold_a_cost_with_a_long_tail() -> None:
    # docs/cost.md has the figures of 2,000 trials each.
    assert coverage(sigma=1.0, trials=200, seed=5).held >= 0.85


def test_the_same_sample_gives_the_same_interval() -> None:
    sample = [1.0, 2.0, 8.0, 3.0]
    assert sum_of_rest(sample, 100) == sum_of_rest(sample, 100)


def test_the_interval_leans_to_the_long_tail() -> None:
    draw = random.Random(3)
    found = sum_of_rest([draw.lognormvariate(0, 1) for _ in range(100)], 1_000)
    assert found.high - found.expected > 1.2 * (found.expected - found.low) > 0


def test_a_larger_sample_gives_a_narrower_interval() -> None:
    draw = random.Random(4)
    values = [draw.lognormvariate(0, 0.5) for _ in range(800)]
    few, many = sum_of_rest(values[:50], 1_000), sum_of_rest(values, 1_000)
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_what_is_left_varies_though_the_mean_is_well_known() -> None:
    draw = random.Random(5)
    values = [draw.lognormvariate(0, 1) for _ in range(1_000)]
    one = sum_of_rest(values, 1)
    spread = math.sqrt(sum((value - one.expected) ** 2 for value in values) / 999)
    assert one.high - one.expected > 1.4 * spread


def test_what_is_foreseen_is_no_reason_for_an_interval() -> None:
    assert sum_of_rest([2.0] * 10, 50, foreseen=1_000.0) == Sum(1_100.0, 1_100.0, 1_100.0)


@pytest.mark.parametrize("sample", [[3.0], [3.0] * 40])
def test_one_row_or_equal_rows_give_no_spread(sample: list[float]) -> None:
    assert sum_of_rest(sample, 10) == Sum(30.0, 30.0, 30.0)


def test_nothing_left_is_nothing() -> None:
    assert sum_of_rest([1.0, 2.0, 3.0], 0) == Sum(0.0, 0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(SAMPLE, st.integers(0, 10**6), st.floats(0, 1e9))
def test_the_expected_sum_lies_within(sample: list[float], rows: int, foreseen: float) -> None:
    found = sum_of_rest(sample, rows, foreseen)
    assert 0 <= found.low <= found.expected <= found.high
    assert math.isfinite(found.high)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 0), min_size=2, max_size=20), st.integers(1, 1000))
def test_no_sum_is_less_than_nothing(sample: list[float], rows: int) -> None:
    found = sum_of_rest(sample, rows)
    assert found.low == found.expected == 0.0
    assert found.high >= 0.0
