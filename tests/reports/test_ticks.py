"""Ticks are round, cover the figures, and no two of an axis say the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.reports.page.ticks import amount_ticks, log_ticks, time_ticks, time_unit


def _words(most: float, *, sign: str = "", whole: bool = False) -> list[str]:
    return [tick.words for tick in amount_ticks(most, sign=sign, whole=whole)]


@pytest.mark.parametrize(
    ("most", "words"),
    [
        (0.0, ["0", "1"]),
        (0.013, ["0", "0.005", "0.010", "0.015"]),
        (4, ["0", "1", "2", "3", "4"]),
        (61, ["0", "20", "40", "60", "80"]),
        (83, ["0", "20", "40", "60", "80", "100"]),
        (8_000, ["0", "2,000", "4,000", "6,000", "8,000"]),
        (52_000, ["0", "20k", "40k", "60k"]),
        (1_800_000, ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
    ],
)
def test_amounts_have_round_ticks(most: float, words: list[str]) -> None:
    assert _words(most) == words


def test_small_dollars_have_as_many_digits_as_tell_them_apart() -> None:
    assert _words(0.019, sign="$") == ["0", "$0.005", "$0.010", "$0.015", "$0.020"]
    assert _words(1.4, sign="$") == ["0", "$0.50", "$1.00", "$1.50"]
    assert _words(0.00007, sign="$") == ["0", "$0.00002", "$0.00004", "$0.00006", "$0.00008"]


def test_what_is_counted_has_no_halves() -> None:
    assert _words(1, whole=True) == ["0", "1"]
    assert _words(3, whole=True) == ["0", "1", "2", "3"]


@given(st.floats(1e-9, 1e15), st.booleans())
def test_no_two_ticks_of_an_amount_are_alike_and_all_figures_are_below_the_last(
    most: float, whole: bool
) -> None:
    ticks = amount_ticks(most, sign="$", whole=whole)
    assert len({tick.words for tick in ticks}) == len(ticks) <= 6
    assert ticks[-1].at >= most * (1 - 1e-9)
    assert all(float(tick.at).is_integer() for tick in ticks if whole)


@given(st.floats(0.001, 1e9))
def test_no_two_ticks_of_a_time_are_alike_and_all_are_within_it(span_s: float) -> None:
    size, _ = time_unit(span_s)
    ticks = time_ticks(span_s)
    assert len({tick.words for tick in ticks}) == len(ticks) <= 8
    assert len(ticks) >= 2
    assert ticks[-1].at * size <= span_s * (1 + 1e-9)
    assert [float(tick.words.replace(",", "")) for tick in ticks] == pytest.approx(
        [tick.at for tick in ticks]
    )


def test_times_have_the_steps_of_clocks() -> None:
    assert time_unit(5_400) == (60, "minutes")
    assert [tick.words for tick in time_ticks(5_400)] == ["0", "15", "30", "45", "60", "75", "90"]
    assert [tick.words for tick in time_ticks(13 * 3_600)] == ["0", "3", "6", "9", "12"]


@given(st.floats(0.001, 1_000), st.floats(2, 1e7))
def test_no_two_ticks_of_a_log_scale_are_alike(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert len({tick.words for tick in ticks}) == len(ticks)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick.at <= low * factor for tick in ticks)
