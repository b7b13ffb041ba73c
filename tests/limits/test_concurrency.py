import pytest

from batchrun.errors import ErrorKind
from batchrun.limits.concurrency import FirstAlone, InferredConcurrency, InFlight
from batchrun.limits.verdicts import GO, Wait
from batchrun.records import Finish, Need, Scope, Slot

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"), 10)
ANSWER = Finish()
NONE = Finish(ErrorKind.CONNECTION, answered=False)
OVERLOADED = Finish(ErrorKind.OVERLOADED)


def fill(limit: InferredConcurrency, from_s: float, until_s: float) -> list[Slot]:
    """All that may go in, where everybody wants to."""
    slots = []
    now_s = from_s
    while now_s < until_s:
        verdict = limit.verdict(NEED, now_s)
        if verdict is GO:
            limit.started(NEED, now_s)
            slots.append(Slot(NEED, now_s))
            continue
        assert isinstance(verdict, Wait)
        now_s = max(now_s + 1e-3, verdict.until_s)
    return slots


def test_no_more_than_the_limit_are_in_flight() -> None:
    limit = InFlight(2)
    for _ in range(2):
        assert limit.verdict(NEED, 0.0) is GO
        limit.started(NEED, 0.0)
    assert isinstance(limit.verdict(NEED, 0.0), Wait)
    limit.finished(Slot(NEED, 0.0), NONE, 0.0)
    assert limit.verdict(NEED, 0.0) is GO


def test_the_others_wait_for_the_first_answer() -> None:
    limit = FirstAlone(patience_s=10.0)
    assert limit.verdict(NEED, 0.0) is GO
    limit.started(NEED, 0.0)
    assert limit.verdict(NEED, 1.0) == Wait(10.0)
    limit.finished(Slot(NEED, 0.0), ANSWER, 2.0)
    assert limit.verdict(NEED, 2.0) is GO


def test_the_others_wait_ten_seconds_at_most() -> None:
    limit = FirstAlone(patience_s=10.0)
    limit.started(NEED, 5.0)
    assert limit.verdict(NEED, 14.9) == Wait(15.0)
    assert limit.verdict(NEED, 15.0) is GO


def test_after_a_first_try_without_an_answer_the_next_one_goes_alone() -> None:
    limit = FirstAlone(patience_s=10.0)
    limit.started(NEED, 0.0)
    limit.finished(Slot(NEED, 0.0), NONE, 1.0)
    assert limit.verdict(NEED, 1.0) is GO
    limit.started(NEED, 1.0)
    assert limit.verdict(NEED, 2.0) == Wait(10.0)


def test_what_is_learnt_grows_to_the_most_in_seconds_without_any_answer() -> None:
    limit = InferredConcurrency(1000)
    assert len(fill(limit, 0.0, 3.0)) == 1000
    assert limit.verdict(NEED, 3.0) == Wait()
    assert limit.status(3.0).used == 1000


def test_it_does_not_grow_where_it_is_not_used() -> None:
    limit = InferredConcurrency(1000)
    for second in range(100):
        limit.started(NEED, float(second))
        limit.finished(Slot(NEED, float(second)), ANSWER, second + 0.5)
    most = limit.status(100.0).most
    assert most is not None
    assert most < 20


def test_what_is_left_without_the_refused_ones_is_what_fits() -> None:
    limit = InferredConcurrency(1000)
    slots = fill(limit, 0.0, 0.3)
    for slot in slots[32:]:
        limit.finished(slot, OVERLOADED, 0.35)
    most = limit.status(0.35).most
    assert most is not None
    assert 32 <= most <= 36
    assert isinstance(limit.verdict(NEED, 0.36), Wait) or limit.now < most


def test_refusals_of_one_wave_cut_once() -> None:
    limit = InferredConcurrency(1000)
    slots = fill(limit, 0.0, 0.5)
    for slot in slots[-20:]:
        limit.finished(slot, OVERLOADED, 0.55)
    most = limit.status(0.55).most
    assert most is not None
    assert most >= len(slots) - 21


def test_errors_that_are_not_about_load_do_not_shrink_it() -> None:
    limit = InferredConcurrency(1000)
    slots = fill(limit, 0.0, 0.5)
    before = limit.status(0.5).most
    for slot, kind in zip(
        slots, (ErrorKind.SERVER_ERROR, ErrorKind.TIMEOUT, ErrorKind.RATE_LIMIT), strict=False
    ):
        limit.finished(slot, Finish(kind), 0.6)
    assert limit.status(0.6).most == before


def test_it_never_shrinks_below_one() -> None:
    limit = InferredConcurrency(1000)
    now_s = 0.0
    for _ in range(50):
        for slot in fill(limit, now_s, now_s + 0.1):
            limit.finished(slot, OVERLOADED, now_s + 0.2)
        now_s += 0.3
    assert limit.now == 0
    assert limit.verdict(NEED, now_s) is GO


@pytest.mark.parametrize("in_all", [12.0, 32.0, 7.0])
def test_what_several_processes_follow_adds_up_in_whole_requests(in_all: float) -> None:
    limits = [InferredConcurrency(1000) for _ in range(5)]
    for place, limit in enumerate(limits):
        limit.set_part(0.2, 0.2 * place)
        limit.follow(in_all, 0.0)
        assert limit.in_all == pytest.approx(in_all)
    assert sum(len(fill(limit, 0.1, 0.2)) for limit in limits) == in_all


def test_what_a_process_has_found_is_known_in_all_once_nothing_is_refused_for_a_while() -> None:
    limit = InferredConcurrency(1000)
    slots = fill(limit, 0.0, 0.3)
    for slot in slots[32:]:
        limit.finished(slot, OVERLOADED, 0.35)
    assert limit.in_all is not None
    assert not limit.is_settled(0.4)
    limit.finished(slots[0], ANSWER, 3.4)
    assert limit.is_settled(3.4)
    limit.set_part(0.25)
    assert limit.excess == 31 - int(0.25 * limit.in_all)
