from batchrun.policy.concurrency import FirstAlone, InFlight
from batchrun.policy.verdicts import GO, Wait
from batchrun.records import Need, Scope

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"), 10)


def test_no_more_than_the_limit_are_in_flight() -> None:
    limit = InFlight(2)
    for _ in range(2):
        assert limit.verdict(NEED, 0.0) is GO
        limit.started(NEED, 0.0)
    assert isinstance(limit.verdict(NEED, 0.0), Wait)
    limit.finished(NEED, 0.0, answered=False)
    assert limit.verdict(NEED, 0.0) is GO


def test_the_others_wait_for_the_first_answer() -> None:
    limit = FirstAlone(patience_s=10.0)
    assert limit.verdict(NEED, 0.0) is GO
    limit.started(NEED, 0.0)
    assert limit.verdict(NEED, 1.0) == Wait(10.0)
    limit.finished(NEED, 2.0, answered=True)
    assert limit.verdict(NEED, 2.0) is GO


def test_the_others_wait_ten_seconds_at_most() -> None:
    limit = FirstAlone(patience_s=10.0)
    limit.started(NEED, 5.0)
    assert limit.verdict(NEED, 14.9) == Wait(15.0)
    assert limit.verdict(NEED, 15.0) is GO


def test_after_a_first_try_without_an_answer_the_next_one_goes_alone() -> None:
    limit = FirstAlone(patience_s=10.0)
    limit.started(NEED, 0.0)
    limit.finished(NEED, 1.0, answered=False)
    assert limit.verdict(NEED, 1.0) is GO
    limit.started(NEED, 1.0)
    assert limit.verdict(NEED, 2.0) == Wait(10.0)
