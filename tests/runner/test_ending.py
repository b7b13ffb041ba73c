"""One rule for how a run ended: the same for any set of causes, in any order."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import (
    BatchrunError,
    InputError,
    Interrupted,
    RunStopped,
    StopCause,
    StoreError,
)
from batchrun.job.sections import LimitsJob
from batchrun.records import Judged, Totals
from batchrun.runner.ending import End, end_of, judge_rows

# The strongest first, with the state and the exit code that it gives.
TABLE: list[tuple[BaseException, str, int]] = [
    (StoreError("the disk is full"), "failed", 1),
    (BatchrunError("a bug"), "failed", 1),
    (RunStopped("no money", StopCause.QUOTA), "stopped", 3),
    (RunStopped("wrong key", StopCause.KEY), "stopped", 3),
    (RunStopped("the cap", StopCause.BUDGET), "stopped", 3),
    (RunStopped("down", StopCause.ENDPOINT), "stopped", 3),
    (RunStopped("too many", StopCause.FAILURES), "stopped", 3),
    (RunStopped("time is up", StopCause.TIME), "stopped", 3),
    (InputError("the file changed"), "stopped", 3),
    (Interrupted("interrupted by SIGTERM", 143), "interrupted", 143),
    (Interrupted("interrupted by Ctrl-C", 130), "interrupted", 130),
    (Interrupted("interrupted by SIGHUP", 129), "interrupted", 129),
]
SETS = st.sets(st.integers(0, len(TABLE) - 1), min_size=1)


@given(SETS, st.randoms(use_true_random=False), st.integers(0, 5), st.integers(0, 5))
def test_the_strongest_cause_says_how_a_run_ended_whatever_the_order(
    causes: set[int], dice: random.Random, remaining: int, not_ok: int
) -> None:
    order = [TABLE[at][0] for at in sorted(causes)]
    dice.shuffle(order)
    cause, state, exit_code = TABLE[min(causes)]
    end = end_of(order, remaining=remaining + 1, not_asked=0, not_ok=not_ok)
    assert end == End(state, exit_code, cause, str(cause))


@given(SETS)
def test_a_cause_that_comes_twice_changes_nothing(causes: set[int]) -> None:
    once = [TABLE[at][0] for at in causes]
    ends = [end_of(some, remaining=1, not_asked=0, not_ok=0) for some in (once, once + once[::-1])]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("cause", StopCause)
def test_each_reason_to_stop_has_its_place(cause: StopCause) -> None:
    end = end_of([RunStopped("why", cause)], remaining=1, not_asked=0, not_ok=0)
    assert (end.state, end.exit_code, end.message) == ("stopped", 3, "why")


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 3))
def test_without_a_cause_finished_means_that_no_row_remains(
    remaining: int, not_asked: int, not_ok: int
) -> None:
    end = end_of([], remaining=remaining, not_asked=not_asked, not_ok=not_ok)
    if remaining > not_asked:
        assert (end.state, end.exit_code) == ("failed", 1)
        assert end.message is not None
        assert f"{remaining - not_asked} row" in end.message
    else:
        assert end.exit_code == (4 if not_ok else 0)
        assert end.state == ("limited" if remaining else "finished")


def test_an_error_that_nobody_foresaw_is_a_bug_and_is_told_without_a_traceback() -> None:
    end = end_of([KeyError("x"), Interrupted("", 130)], remaining=3, not_asked=0, not_ok=0)
    assert (end.state, end.exit_code) == ("failed", 1)
    assert end.message is not None
    assert "a bug of batchrun ended the run (KeyError: 'x')" in end.message


def test_time_ends_nothing_where_no_row_is_left_to_send() -> None:
    time = RunStopped("time is up", StopCause.TIME)
    assert end_of([time], remaining=0, not_asked=0, not_ok=0) == End("finished", 0)
    assert end_of([time], remaining=2, not_asked=2, not_ok=1) == End("limited", 4)
    assert end_of([time], remaining=2, not_asked=1, not_ok=0).exit_code == 3


@pytest.mark.parametrize(
    ("tolerate", "not_ok", "counted"),
    [(None, 3, 13), (3, 3, 0), (2, 3, 13), ("3%", 3, 0), ("2.9%", 3, 13), ("100%", 3, 0)],
)
def test_rows_of_earlier_commands_are_not_judged_again(
    tolerate: Any, not_ok: int, counted: int
) -> None:
    totals = Totals(rows=1_100, ok=1_100 - 10 - not_ok)
    judged = Judged(rows=1_000, ok=990)
    found, words = judge_rows(LimitsJob(tolerate=tolerate), totals, judged)
    assert found == counted
    assert (words is None) == (tolerate is None)
    if words is not None:
        assert words.startswith(f"{not_ok} of 100 rows")
    assert judge_rows(LimitsJob(tolerate=tolerate), Totals(rows=5, ok=5), Judged()) == (0, None)
