from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import ErrorKind
from batchrun.job.sections import RetryJob
from batchrun.records import Failure
from batchrun.retry.next_step import (
    FACTS,
    Again,
    Cure,
    GiveUp,
    Halt,
    judge,
)

SETTINGS = RetryJob()


def _judge(
    *kinds: ErrorKind,
    hint_s: float | None = None,
    elapsed_s: float = 0.0,
    has_succeeded: bool = False,
    settings: RetryJob = SETTINGS,
    should_retry: bool | None = None,
    jitter: float = 0.5,
    excused: list[bool] | None = None,
) -> Again | GiveUp | Halt:
    return judge(
        [Failure(kind, "m") for kind in kinds],
        excused=excused,
        give_up_after_s=1800.0,
        hint_s=hint_s,
        should_retry=should_retry,
        elapsed_s=elapsed_s,
        settings=settings,
        has_succeeded=has_succeeded,
        jitter=jitter,
    )


def test_every_kind_has_a_cure() -> None:
    assert set(FACTS) == set(ErrorKind)


def test_a_server_error_gets_six_tries() -> None:
    for count in range(1, 6):
        assert isinstance(_judge(*[ErrorKind.SERVER_ERROR] * count), Again)
    end = _judge(*[ErrorKind.SERVER_ERROR] * 6)
    assert isinstance(end, GiveUp)
    assert end.status == "no_answer"


def test_a_rate_limit_never_uses_up_a_try_but_time_ends_it() -> None:
    many = [ErrorKind.RATE_LIMIT] * 200
    assert isinstance(_judge(*many), Again)
    assert isinstance(_judge(*many, *[ErrorKind.SERVER_ERROR] * 5), Again)
    end = _judge(*many, elapsed_s=3599.9)
    assert isinstance(end, GiveUp)
    assert end.status == "no_answer"


def test_what_may_be_billed_twice_gets_one_more_try_and_advice() -> None:
    for kind in (ErrorKind.TIMEOUT, ErrorKind.GATEWAY_TIMEOUT):
        assert isinstance(_judge(kind), Again)
        end = _judge(kind, kind)
        assert isinstance(end, GiveUp)
        assert "may be billed" in end.reason
        assert ("stream or background" in end.reason) is (kind is ErrorKind.GATEWAY_TIMEOUT)
    mixed = _judge(ErrorKind.TIMEOUT, ErrorKind.SERVER_ERROR, ErrorKind.GATEWAY_TIMEOUT)
    assert isinstance(mixed, GiveUp)


def test_an_unreadable_answer_gets_two_more_tries() -> None:
    assert isinstance(_judge(*[ErrorKind.UNREADABLE] * 2), Again)
    assert isinstance(_judge(*[ErrorKind.UNREADABLE] * 3), GiveUp)


def test_used_up_quota_stops_the_run_at_any_time() -> None:
    for has_succeeded in (False, True):
        assert isinstance(_judge(ErrorKind.QUOTA, has_succeeded=has_succeeded), Halt)


def test_a_refused_key_stops_the_run_until_something_has_succeeded() -> None:
    for kind in (ErrorKind.UNAUTHORIZED, ErrorKind.FORBIDDEN, ErrorKind.NOT_FOUND):
        end = _judge(kind)
        assert isinstance(end, Halt)
        assert end.reason
        assert _judge(kind, has_succeeded=True) == GiveUp("failed", "")


def test_a_bad_request_fails_the_row_at_once() -> None:
    assert _judge(ErrorKind.BAD_REQUEST) == GiveUp("failed", "")


def test_a_hint_is_waited_for_in_full_however_long_the_backoff_may_be() -> None:
    assert _judge(ErrorKind.SERVER_ERROR, hint_s=90.0) == Again(90.0)
    assert _judge(ErrorKind.BUSY, hint_s=0.02) == Again(0.02)


def test_a_refused_row_waits_as_long_as_the_server_asks_and_that_is_none_of_its_time() -> None:
    assert _judge(ErrorKind.RATE_LIMIT, hint_s=90.0) == Again(90.0, asked_s=90.0)
    assert _judge(ErrorKind.OVERLOADED, hint_s=0.02) == Again(0.02, asked_s=0.02)
    late = _judge(ErrorKind.RATE_LIMIT, hint_s=90.0, elapsed_s=RetryJob().max_elapsed_s - 1.0)
    assert late == Again(90.0, asked_s=90.0)
    assert isinstance(_judge(*[ErrorKind.RATE_LIMIT] * 3, hint_s=90.0), Again)
    thrice = _judge(*[ErrorKind.RATE_LIMIT] * 3, hint_s=90.0, elapsed_s=3599.0)
    assert isinstance(thrice, GiveUp)


def test_an_outage_costs_a_row_no_try() -> None:
    kinds = [ErrorKind.OVERLOADED] * 40
    assert isinstance(_judge(*kinds), GiveUp)
    assert isinstance(_judge(*kinds, excused=[True] * 40), Again)
    assert isinstance(_judge(*kinds, excused=[False] * 6 + [True] * 34), Again)
    assert isinstance(_judge(*kinds, excused=[True] * 34 + [False] * 6), GiveUp)
    timeouts = [ErrorKind.TIMEOUT] * 3
    assert isinstance(_judge(*timeouts, excused=[True, True, False]), Again)
    assert isinstance(_judge(*timeouts, excused=[True, False, False]), GiveUp)


def test_a_hint_that_was_too_short_twice_is_not_believed_alone() -> None:
    again = _judge(*[ErrorKind.RATE_LIMIT] * 5, hint_s=0.0)
    assert isinstance(again, Again)
    assert again.wait_s >= 8.0


def test_a_hint_beyond_what_the_endpoint_may_be_down_stops_the_run() -> None:
    end = _judge(ErrorKind.RATE_LIMIT, hint_s=86400.0)
    assert isinstance(end, Halt)
    assert "86400" in end.reason


@given(
    st.lists(st.sampled_from(sorted(ErrorKind)), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 4000),
)
def test_without_a_hint_the_wait_is_between_half_a_second_and_the_longest(
    failures: list[ErrorKind], jitter: float, elapsed_s: float
) -> None:
    verdict = _judge(*failures, jitter=jitter, elapsed_s=elapsed_s)
    if isinstance(verdict, Again):
        assert 0.5 <= verdict.wait_s <= SETTINGS.max_wait_s
        assert elapsed_s + verdict.wait_s <= SETTINGS.max_elapsed_s
        counted = sum(FACTS[kind].cure not in (Cure.WAIT, Cure.LOST) for kind in failures)
        assert counted < SETTINGS.max_attempts or FACTS[failures[-1]].cure in (Cure.WAIT, Cure.LOST)


def test_what_the_server_says_about_another_attempt_is_obeyed() -> None:
    end = _judge(ErrorKind.SERVER_ERROR, should_retry=False)
    assert end == GiveUp("failed", "")
    assert isinstance(_judge(ErrorKind.BAD_REQUEST, should_retry=True), Again)
    assert isinstance(_judge(*[ErrorKind.BAD_REQUEST] * 6, should_retry=True), GiveUp)
    assert isinstance(_judge(ErrorKind.QUOTA, should_retry=True), Halt)


def _judge_all(failures: list[Failure]) -> Again | GiveUp | Halt:
    return judge(
        failures,
        hint_s=None,
        should_retry=None,
        elapsed_s=0.0,
        settings=SETTINGS,
        give_up_after_s=1800.0,
        has_succeeded=False,
        jitter=0.5,
    )


def test_an_error_of_its_own_that_comes_back_three_times_ends_the_row() -> None:
    same = Failure(ErrorKind.SERVER_ERROR, "no parser for tool 7", "tool_parser_failed", 500)
    other = Failure(ErrorKind.SERVER_ERROR, "something else", "other", 500)
    assert isinstance(_judge_all([same, same]), Again)
    assert isinstance(_judge_all([same, other, same]), Again)
    end = _judge_all([same, other, same, same])
    assert end == GiveUp("failed", "the same 3 times")


def test_errors_that_a_server_gives_when_it_is_down_are_tried_to_the_end() -> None:
    for code in (None, "server_error"):
        down = Failure(ErrorKind.SERVER_ERROR, "the server had an error", code, 500)
        assert isinstance(_judge_all([down] * 5), Again)
