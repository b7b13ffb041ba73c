"""Quantiles in flat memory, against the sorted list."""

import math

from hypothesis import given
from hypothesis import strategies as st

from batchrun.progress.summary import Latencies

SECONDS = st.floats(min_value=1e-3, max_value=1e5)


@given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_is_right_to_two_per_cent(seconds: list[float], share: float) -> None:
    latencies = Latencies()
    latencies.add(seconds)
    exact = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    found = latencies.quantile(share)
    assert found is not None
    assert abs(math.log(found / exact)) <= 0.021


def test_without_answers_there_is_none() -> None:
    assert Latencies().quantile(0.5) is None


def test_what_is_out_of_range_counts_at_its_end() -> None:
    latencies = Latencies()
    latencies.add((0.0, -1.0, 1e9))
    low, high = latencies.quantile(0.1), latencies.quantile(0.99)
    assert low is not None
    assert high is not None
    assert low < 1e-3
    assert high > 1e5
