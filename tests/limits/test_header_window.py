"""Which window a header's limit is for, as its answers show one after the other."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.limits.header_window import HeaderWindow
from batchrun.records import AdvertisedLimit


def _heard(
    limit: float,
    answers: Iterable[tuple[float, float, float]],
    *,
    is_by_second: bool = True,
    window_s: float | None = None,
) -> HeaderWindow:
    """After answers: the time, what remains and the time until it is full again."""
    header = HeaderWindow(is_by_second=is_by_second)
    for now_s, remaining, reset_s in answers:
        said = AdvertisedLimit("h", "requests", limit, remaining, reset_s, window_s)
        header.update(said, limit, now_s)
    return header


def test_a_bucket_of_a_day_is_no_rate_from_its_first_answer_on() -> None:
    answers = [(0.1 * used, 14_400 - used, 6.0 * used) for used in range(1, 40)]
    for heard in range(1, 40):
        assert _heard(14_400, answers[:heard]).rate == math.inf


@pytest.mark.parametrize("is_rounded", [True, False])
def test_a_bucket_of_a_minute_shows_itself_as_it_is_used(is_rounded: bool) -> None:
    resets = [math.ceil(0.06 * used) if is_rounded else 0.06 * used for used in range(1, 200)]
    answers = [(0.01 * used, 1000 - used, float(resets[used - 1])) for used in range(1, 200)]
    assert _heard(1000, answers[:1]).rate == math.inf
    assert _heard(1000, answers).rate == pytest.approx(1000 / 60)


def test_a_window_of_a_minute_shows_itself_by_its_length() -> None:
    answers = [(0.1 * used, 1000 - used, 40.0 - 0.1 * used) for used in range(1, 200)]
    assert _heard(1000, answers[:1]).rate == pytest.approx(1000 / 60)
    assert _heard(1000, answers).rate == pytest.approx(1000 / 60)


def test_a_window_of_a_second_shows_itself_by_filling_at_once() -> None:
    answers = [(0.05 * tick, 50 - 2 * (tick % 20) - 1, 1.0) for tick in range(200)]
    assert _heard(50, answers[:3]).rate == math.inf
    assert _heard(50, answers).rate == 50.0
    late = [(now_s, remaining, 4.0) for now_s, remaining, _ in answers]  # its clock is off
    assert _heard(50, late).rate == math.inf


def test_a_limit_whose_time_nobody_says_is_one_by_the_minute() -> None:
    header = HeaderWindow(is_by_second=True)
    header.update(AdvertisedLimit("h", "requests", 600.0, 599.0), 600.0, 0.0)
    assert header.rate == 10.0


def test_tokens_are_by_the_minute_unless_they_take_hours() -> None:
    assert _heard(18_000, [(0, 17_997, 7.66)], is_by_second=False).rate == 300.0
    assert _heard(18_000, [(0, 9_000, 3600.0)], is_by_second=False).rate == math.inf


def test_what_remains_of_an_hour_lasts_until_its_end() -> None:
    for remaining, reset_s, rate in ((9_000, 3500, math.inf), (3_600, 1800, 2.0), (0, 10, 0.0027)):
        header = _heard(9_999, [(0, remaining, reset_s)], window_s=3600.0)
        assert header.rate == pytest.approx(rate, rel=0.05)
    assert _heard(100, [(0, 40, 100)], window_s=600.0).rate == pytest.approx(0.4)


@given(
    st.floats(1, 1e9),
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e9), st.floats(0, 1e6))),
    st.sampled_from([None, 1.0, 60.0, 3600.0]),
    st.booleans(),
)
def test_any_answers_give_a_rate(
    limit: float,
    answers: list[tuple[float, float, float]],
    window_s: float | None,
    is_by_second: bool,
) -> None:
    header = _heard(limit, answers, is_by_second=is_by_second, window_s=window_s)
    assert header.rate > 0 or not answers
    assert 0 < header.factor < 1.1


def test_a_long_window_that_is_over_has_its_even_rate_until_an_answer_comes() -> None:
    header = _heard(3600, [(100.0, 0, 5)], window_s=3600.0)
    assert (header.full_s, header.is_spread) == (105.0, True)
    assert header.rate < 0.01
    header.refill(105.0)
    assert (header.rate, header.full_s) == (1.0, 3705.0)
    assert not _heard(600, [(0, 0, 5)], window_s=60.0).is_spread
