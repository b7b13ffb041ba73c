"""Promises, stocks and grants: what is promised together is never more than there is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.executors.grants import Grants, Promises, Stock, divide
from batchrun.limits.sharing.shares import Flow


def test_a_promise_holds_until_the_worker_obeys_a_later_one() -> None:
    promises = Promises()
    promises.tell(1, 10)
    promises.tell(2, 4)
    promises.tell(3, 6)
    assert (promises.latest, promises.most) == (6, 10)
    promises.obeys(2)
    assert promises.most == 6  # that of tick 3 may reach it any time
    promises.tell(4, 1)
    promises.obeys(3)
    assert promises.most == 6
    promises.obeys(4)
    assert promises.most == 1


@given(st.integers(0, 100), st.lists(st.floats(0, 60) | st.just(math.inf), max_size=6))
def test_a_division_is_even_and_gives_nobody_more_than_it_wants(
    total: int, wants: list[float]
) -> None:
    parts = divide(total, wants)
    assert sum(parts) <= total
    assert all(
        part <= math.ceil(want) for part, want in zip(parts, wants, strict=True) if want < 99
    )
    short = [part for part, want in zip(parts, wants, strict=True) if part < want]
    if short:
        assert sum(parts) == total
        assert max(parts) <= min(short) + 1


def test_slots_are_lowered_first_and_given_once_that_is_obeyed() -> None:
    stock = Stock(10)
    stock.join(1)
    assert stock.give(1, 1) == 10
    stock.join(2)
    assert stock.give(2, 1) == 0
    stock.heard(1, 1, 10, math.inf)
    assert stock.give(1, 2) == 5
    assert stock.give(2, 2) == 0  # the first may not have heard it
    stock.heard(1, 2, 8, math.inf)
    assert stock.give(2, 3) == 2  # eight are still in flight there
    stock.heard(1, 3, 5, math.inf)
    assert stock.give(2, 4) == 5
    stock.leave(1)
    stock.heard(2, 4, 5, math.inf)
    assert stock.give(2, 5) == 10


def test_what_a_worker_needs_no_more_goes_to_one_that_does() -> None:
    stock = Stock(12)
    for worker in (1, 2):
        stock.join(worker)
        stock.give(worker, 1)
    stock.heard(1, 1, 1, 3.0)
    stock.heard(2, 1, 0, math.inf)
    assert stock.give(1, 2) == 3
    stock.heard(1, 2, 1, 3.0)
    assert stock.give(2, 2) == 9


def test_dollars_of_a_dead_worker_count_as_far_as_it_may_have_spent_them() -> None:
    grants = Grants(100, expires=False)
    grants.join(1)
    grants.heard(1, 0, 0.0, Flow(0, 0, wanted=30), 0.0)
    assert grants.give(1, 1, 60, 0.0) == 60
    grants.heard(1, 1, math.inf, Flow(20, 20), 0.0)
    grants.leave(1, 1.0)
    assert grants.free(1e9) == 40
    grants.join(2)
    grants.heard(2, 0, 5.0, Flow(0, 0, wanted=50), 0.0)
    assert grants.give(2, 1, 50, 6.0) == 0
    assert grants.lacking(6.0) == 50


@pytest.mark.parametrize("first", [1, 2])
def test_the_one_that_waits_longest_is_served_first(first: int) -> None:
    grants = Grants(10, expires=True)
    second = 3 - first
    for worker in (1, 2):
        grants.join(worker)
    grants.heard(first, 0, 1.0, Flow(0, 0, wanted=8), 0.0)
    grants.heard(second, 0, 2.0, Flow(0, 0, wanted=5), 0.0)
    assert grants.give(second, 1, 5, 3.0) == 0
    assert grants.give(first, 1, 0, 3.0) == 8
    grants.heard(first, 1, math.inf, Flow(8, 8), 0.0)
    assert grants.give(second, 2, 5, 4.0) == 0
    grants.heard(first, 1, math.inf, Flow(8, 0), 0.0)  # a minute later
    assert grants.give(second, 3, 5, 70.0) == 5


def test_what_is_above_the_limit_alone_goes_when_nothing_else_counts() -> None:
    grants = Grants(10, expires=True)
    for worker in (1, 2):
        grants.join(worker)
    grants.heard(1, 0, 1.0, Flow(0, 0, wanted=25), 0.0)
    grants.heard(2, 0, math.inf, Flow(4, 4), 0.0)
    assert grants.give(1, 1, 0, 2.0) == 0
    assert grants.give(2, 1, 5, 2.0) == 4  # what it has started: it waits for that one
    grants.heard(2, 1, math.inf, Flow(4, 0), 0.0)
    assert grants.give(1, 2, 0, 62.0) == 25


def test_what_a_silent_worker_has_used_ceases_to_count_when_it_would_have() -> None:
    grants = Grants(100, expires=True)
    for worker in (1, 2):
        grants.join(worker)
    grants.heard(1, 0, 1.0, Flow(0, 0, wanted=40), 10.0)
    assert grants.give(1, 1, 40, 10.0) == 40
    grants.heard(1, 1, math.inf, Flow(30, 30, lapses=(5, 0, 10, 15)), 20.0)
    frees = [grants.free(20.0 + age_s) for age_s in (0.9, 1.0, 2.9, 3.0, 4.0, 99.0)]
    assert frees == [60, 65, 65, 75, 90, 90]  # ten that it may still start are never free


def test_what_a_dead_worker_has_used_ceases_to_count_when_it_would_have() -> None:
    grants = Grants(100, expires=True)
    grants.join(1)
    grants.heard(1, 0, 1.0, Flow(0, 0, wanted=40), 10.0)
    assert grants.give(1, 1, 40, 10.0) == 40
    grants.heard(1, 1, math.inf, Flow(30, 30, lapses=(5, 0, 10, 15)), 20.0)
    grants.leave(1, 22.5, 60.0)
    frees = [grants.free(at_s) for at_s in (22.5, 23.0, 24.0, 82.0, 82.5)]
    assert frees == [65, 75, 90, 90, 100]


def test_nobody_waits_for_what_a_silent_worker_waits_for() -> None:
    grants = Grants(10, expires=True)
    for worker in (1, 2):
        grants.join(worker)
    grants.heard(1, 0, 1.0, Flow(4, 4, wanted=8), 0.0)
    grants.heard(2, 0, 2.0, Flow(0, 0, wanted=3), 0.0)
    assert grants.give(2, 1, 5, 3.0) == 0
    grants.suspend(1)
    assert grants.give(2, 2, 5, 3.0) == 5
    grants.heard(1, 0, 1.0, Flow(4, 0, wanted=8), 0.0)
    assert grants.give(2, 3, 5, 4.0) == 0  # it is served first again


def test_the_part_of_a_worker_that_stands_still_goes_to_the_others_at_once() -> None:
    stock = Stock(10)
    for worker in (1, 2):
        stock.join(worker)
    stock.heard(1, 0, 0, math.inf)
    stock.heard(2, 0, 0, math.inf)
    assert (stock.give(1, 1), stock.give(2, 1)) == (5, 5)
    stock.suspend(1)
    assert stock.give(2, 2) == 10
    assert (stock.before(1), stock.before(2)) == (0, 0)
    stock.heard(1, 1, 0, math.inf)
    assert stock.give(1, 2) == 0  # until the other has given it back
    assert stock.give(2, 3) == 5
    stock.heard(2, 3, 0, math.inf)
    assert stock.give(1, 3) == 5
    assert stock.before(2) == 5
