import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import ErrorKind
from batchrun.formats.amounts import usd
from batchrun.limits.budget import Budget
from batchrun.limits.verdicts import GO, Stop, Wait
from batchrun.records import Finish, Need, Scope, Slot

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")


def need(dollars: float) -> Need:
    return Need(SCOPE, 10, dollars)


def slot(dollars: float) -> Slot:
    return Slot(need(dollars), 0.0)


def test_an_attempt_starts_while_all_that_it_may_cost_fits() -> None:
    budget = Budget(1.0, 0.5)
    assert budget.verdict(need(0.5), 0.0) is GO
    assert budget.verdict(need(0.500001), 0.0) is not GO


def test_it_waits_for_what_is_in_flight_and_may_cost_less() -> None:
    budget = Budget(1.0, 0.0)
    budget.started(need(0.8), 0.0)
    assert budget.verdict(need(0.4), 0.0) == Wait(math.inf)
    budget.finished(slot(0.8), Finish(dollars=0.1), 1.0)
    assert budget.verdict(need(0.4), 1.0) is GO
    assert budget.spent_usd == 0.1
    assert budget.reserved_usd == 0.0


def test_with_nothing_in_flight_it_stops_and_says_what_to_do() -> None:
    budget = Budget(2.0, 1.5)
    verdict = budget.verdict(need(0.75), 0.0)
    assert isinstance(verdict, Stop)
    for words in ("$1.50 of $2.00 are spent", "may cost up to $0.75", "raise --max-cost"):
        assert words in verdict.reason


def test_attempts_that_cost_nothing_do_not_keep_it_waiting() -> None:
    budget = Budget(1.0, 1.0)
    budget.started(need(0.0), 0.0)
    assert isinstance(budget.verdict(need(0.1), 0.0), Stop)


def test_a_try_that_never_told_what_it_cost_counts_as_reserved() -> None:
    budget = Budget(1.0, None, unknown_usd=0.25)
    budget.started(need(0.5), 0.0)
    budget.finished(slot(0.5), Finish(kind=ErrorKind.TIMEOUT, answered=False), 1.0)
    assert (budget.spent_usd, budget.unknown_usd, budget.reserved_usd) == (0.0, 0.75, 0.0)
    verdict = budget.verdict(need(0.5), 1.0)
    assert isinstance(verdict, Stop)
    assert "at most $0.75 more by attempts whose cost is not known" in verdict.reason


def test_a_refused_try_costs_nothing() -> None:
    budget = Budget(1.0, 0.0)
    budget.started(need(1.0), 0.0)
    budget.finished(slot(1.0), Finish(kind=ErrorKind.RATE_LIMIT, dollars=0.0), 1.0)
    assert budget.verdict(need(1.0), 1.0) is GO


def test_it_stands_with_all_that_is_taken() -> None:
    budget = Budget(2.0, 0.5, unknown_usd=0.25)
    budget.started(need(0.25), 0.0)
    standing = budget.status(0.0)
    assert (standing.used, standing.most) == (1.0, 2.0)


def test_a_cap_may_be_nothing_or_without_end() -> None:
    assert isinstance(Budget(0.0, None).verdict(need(1e-9), 0.0), Stop)
    assert Budget(0.0, None).verdict(need(0.0), 0.0) is GO
    assert Budget(math.inf, 1e6).verdict(need(1e6), 0.0) is GO


@given(
    st.floats(0, 10),
    st.floats(0, 2),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1) | st.none()), max_size=200),
    st.integers(0, 2**32),
)
def test_a_start_is_never_above_the_cap_and_reservations_return_to_zero(
    cap: float, before: float, rows: list[tuple[float, float | None]], seed: int
) -> None:
    """Each row reserves dollars and costs a share of them, or nobody knows what."""
    budget = Budget(cap, before)
    rng = random.Random(seed)
    spent = Fraction(before)
    in_flight: list[tuple[float, float | None]] = []
    stopped = False
    for dollars, share in rows:
        while (verdict := budget.verdict(need(dollars), 0.0)) == Wait(math.inf):
            assert in_flight
            spent += _end(budget, in_flight.pop(rng.randrange(len(in_flight))))
        if isinstance(verdict, Stop):
            assert not any(reserved for reserved, _ in in_flight)
            stopped = True
            break
        # Exact but for the picodollars that sums are rounded up to.
        reserved = sum((Fraction(one) for one, _ in in_flight), Fraction(dollars))
        assert spent + reserved <= Fraction(cap)
        budget.started(need(dollars), 0.0)
        in_flight.append((dollars, share))
        while in_flight and rng.random() < 0.3:
            spent += _end(budget, in_flight.pop(rng.randrange(len(in_flight))))
    while in_flight:
        spent += _end(budget, in_flight.pop(rng.randrange(len(in_flight))))
    assert budget.reserved_usd == 0.0
    assert budget.spent_usd + budget.unknown_usd == pytest.approx(float(spent), abs=1e-9)
    if not stopped and rows and spent <= cap:
        assert budget.verdict(need(0.0), 0.0) is GO


def _end(budget: Budget, row: tuple[float, float | None]) -> Fraction:
    dollars, share = row
    cost = None if share is None else dollars * share
    budget.finished(slot(dollars), Finish(dollars=cost), 0.0)
    return Fraction(dollars if cost is None else cost)


@pytest.mark.parametrize(
    ("dollars", "words"),
    [
        (0.0, "$0.00"),
        (12.3, "$12.30"),
        (1234.5, "$1,234.50"),
        (0.125, "$0.12"),
        (0.1, "$0.10"),
        (0.05, "$0.05"),
        (0.04981, "$0.0498"),
        (0.0042, "$0.0042"),
        (0.000012, "$0.000012"),
    ],
)
def test_dollars_are_said_with_digits_that_tell(dollars: float, words: str) -> None:
    assert usd(dollars) == words


@given(
    spent=st.floats(0, 1e6),
    left=st.integers(1, 10**7),
    mean=st.none() | st.floats(0, 10),
    reserved=st.floats(1e-9, 10),
)
def test_a_higher_cap_is_enough_for_the_rest_and_for_one_reservation(
    spent: float, left: int, mean: float | None, reserved: float
) -> None:
    cost = None if mean is None else left * mean
    budget = Budget(0.0, spent)
    budget.refused_usd = reserved
    cap = budget.enough_usd(left, cost)
    least = spent + reserved + (cost or 0.0)
    assert cap >= least * (1 - 1e-9)
    assert cap <= 1.11 * (spent + (left * reserved if cost is None else cost + reserved)) + 1e-11
