"""What is counted of a run: outcomes, rates, and quantiles in flat memory."""

import math

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrun.errors import ErrorKind
from batchrun.progress.summary import Latencies, RunCounters, Summary
from batchrun.progress.summary_text import render_end
from batchrun.records import Attempt, Failure, Outcome, Request, Totals

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


def _failed(row: int) -> Outcome:
    request = Request(row, str(row), "a.jsonl", b"{}", "0" * 16, "m", None, ())
    failure = Failure(ErrorKind.BAD_REQUEST, "no", status="failed")
    return Outcome(request, failure, (Attempt(0, 1.0, "first"),), "http://x", "plain", None)


def _summary(counters: RunCounters, now_s: float) -> Summary:
    return counters.summary(run="run", state="running", rows=100, now_s=now_s)


def test_the_time_before_the_first_answers_is_no_part_of_the_rate() -> None:
    counters = RunCounters(Totals(), 0.0)
    for now_s in (1.0, 5.0, 60.0):  # the input is read
        assert _summary(counters, now_s).time_left_s is None
    counters.count([_failed(row) for row in range(20)])
    stand = _summary(counters, 62.0)
    assert (stand.rows_per_s, stand.time_left_s) == (10, 8)


def test_the_rate_of_a_command_is_that_from_its_first_request_to_its_last_answer() -> None:
    counters = RunCounters(Totals(rows=5, ok=5), 0.0, began_at=50_000_000)
    assert counters.summary(run="r", state="x", rows=9, now_s=9.0, exit_code=0).rows_per_s == 0
    planned = _failed(0)
    for at, earlier in ((70_000_000, False), (69_000_000, True), (73_000_000, False)):
        attempts = (Attempt(at, 2.0, "first"), Attempt(at, 1.0, "hedge"))
        old = (Attempt(1_000_000, 60.0, "first"),) if earlier else ()
        counters.count([replace(planned, attempts=(*old, *attempts))])
    ended = counters.summary(run="r", state="finished", rows=8, now_s=99.0, exit_code=0)
    assert (ended.sent_s, ended.rows_per_s, ended.completed) == (6.0, 0.5, 3)
    assert "; 30.0 rows/min over 6.0 s of this command\n" in render_end(ended, "r")
    counters.follow(Totals(rows=9), completed=4, again=0, examples={}, spans=[None, (1, 7)])
    assert counters.summary(run="r", state="x", rows=9, now_s=99.0, exit_code=0).sent_s > 60


def test_a_row_sent_again_is_counted_once_and_left_until_it_has_a_new_outcome() -> None:
    request = Request(0, "a", "s", b"{}", "0" * 16, None, None, ())
    failure = Failure(ErrorKind.TIMEOUT, "late", status="no_answer")
    attempt = Attempt(0, 1.0, "first", cost_usd=0.5)
    first = Outcome(request, failure, (attempt,), "e", "plain", cost_usd=0.5)
    one = Totals(
        rows=1,
        statuses={"no_answer": 1},
        error_kinds={"timeout": 1},
        attempts=1,
        attempt_kinds={"first": 1},
        cost_usd=0.5,
    )
    counters = RunCounters(replace(one, rows=2, ok=1), 0.0, again=1)
    assert (counters.remaining(2), counters.remaining(3)) == (1, 2)
    summary = counters.summary(run="r", state="running", rows=2, now_s=1.0)
    assert (summary.settled, summary.left, summary.again) == (1, 1, 1)
    more = replace(first, attempts=(attempt, attempt), cost_usd=1.0, replaces=True)
    counters.take_out(one)
    counters.count((more,))
    assert counters.totals() == replace(
        one, rows=2, ok=1, attempts=2, attempt_kinds={"first": 2}, cost_usd=1.0
    )
    summary = counters.summary(run="r", state="running", rows=2, now_s=1.0)
    assert (summary.settled, summary.left, summary.again) == (2, 0, 0)
