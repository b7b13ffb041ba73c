from typing import Any

import pytest

from batchrun.errors import ErrorKind, JobError
from batchrun.job.job_file import load_job
from batchrun.job.sections import LimitsJob
from batchrun.records import Attempt, Failure, Outcome, Request, Totals
from batchrun.runner.ending import WINDOW_ROWS, FirstRows, TooManyFailures
from tests.runs import response

BAD = ErrorKind.BAD_REQUEST


def _outcome(kind: ErrorKind | None, status: str = "failed") -> Outcome:
    request = Request(0, "0", "file", b"{}", "0" * 16, "m", None, ())
    attempts = () if status == "invalid" else (Attempt(0, 1.0, "first"),)
    if kind is not None:
        return Outcome(request, Failure(kind, "because", status=status), attempts, "url", "plain")
    return Outcome(request, response(), attempts, "url", "plain")


def _told(rule: FirstRows, *kinds: ErrorKind | None) -> list[str | None]:
    return [rule.count(_outcome(kind)) for kind in kinds]


def test_twenty_first_rows_that_fail_the_same_way_stop_the_run() -> None:
    said = _told(FirstRows(Totals()), *[ErrorKind.BAD_REQUEST] * 21)
    assert said[:19] == [None] * 19
    assert "because" in str(said[19])
    assert said[20] is None


def test_the_first_rows_are_counted_over_resumes() -> None:
    earlier = Totals(rows=15, error_kinds={"bad_request": 15}, statuses={"failed": 15})
    said = _told(FirstRows(earlier), *[ErrorKind.BAD_REQUEST] * 5)
    assert said[:4] == [None] * 4
    assert said[4] is not None
    assert _told(FirstRows(earlier), *[ErrorKind.TOO_LONG] * 20) == [None] * 20


def test_a_resume_of_nothing_but_failures_is_stopped_again() -> None:
    bad = ErrorKind.BAD_REQUEST
    earlier = Totals(rows=20, error_kinds={"bad_request": 20}, statuses={"failed": 20})
    said = _told(FirstRows(earlier), *[bad] * 20)
    assert said[:19] == [None] * 19
    assert said[19] is not None
    assert _told(FirstRows(earlier), bad, None, *[bad] * 30) == [None] * 32


def test_one_answer_or_one_other_failure_among_the_first_lets_the_run_go_on() -> None:
    bad = ErrorKind.BAD_REQUEST
    assert _told(FirstRows(Totals()), *[bad] * 10, None, *[bad] * 30) == [None] * 41
    assert _told(FirstRows(Totals()), bad, ErrorKind.TOO_LONG, *[bad] * 30) == [None] * 32
    assert _told(FirstRows(Totals(rows=1, ok=1)), *[bad] * 30) == [None] * 30


def test_rows_that_were_never_sent_do_not_count_among_the_first() -> None:
    rule = FirstRows(Totals())
    never_sent = _outcome(ErrorKind.INVALID_ROW, "invalid")
    assert [rule.count(never_sent) for _ in range(30)] == [None] * 30


def _stops_at(most: int | str | None, *kinds: ErrorKind | None) -> int | None:
    """Which of the rows, from 1, stops the run."""
    rule = TooManyFailures(LimitsJob(max_failures=most))
    for number, kind in enumerate(kinds, 1):
        if rule.count(_outcome(kind)) is not None:
            return number
    return None


def test_a_count_of_failed_rows_stops_the_run() -> None:
    assert _stops_at(3, BAD, None, BAD, None, ErrorKind.TIMEOUT, BAD) == 5
    assert _stops_at(3, BAD, BAD, None, None) is None
    assert _stops_at(None, *[BAD] * 500) is None


def test_a_share_is_taken_over_the_last_rows_and_never_over_fewer() -> None:
    start = [None] * 1000
    assert _stops_at("5%", *start, *[BAD] * 5, None, BAD) == 1007
    assert _stops_at("5%", *start, *([BAD] * 5 + [None] * 95) * 5) is None
    assert _stops_at("5%", *[BAD] * (WINDOW_ROWS - 1)) is None
    assert _stops_at("5%", *[BAD] * WINDOW_ROWS) == WINDOW_ROWS


def test_rows_that_were_never_sent_do_not_count_as_failed() -> None:
    rule = TooManyFailures(LimitsJob(max_failures=1))
    assert rule.count(_outcome(ErrorKind.INVALID_ROW, "invalid")) is None


def test_the_reason_says_how_many_and_what_and_what_to_do() -> None:
    said = TooManyFailures(LimitsJob(max_failures=1)).count(_outcome(BAD))
    assert said is not None
    for word in ("1 row failed", "limits.max_failures = 1", "bad_request", "--max-failures"):
        assert word in said


@pytest.mark.parametrize("most", ["5", "101%", "-1%", "five", 0, -3, ""])
def test_what_is_neither_a_count_nor_a_share_is_refused(most: Any) -> None:
    with pytest.raises(JobError, match=r"limits\.max_failures"):
        load_job("a.jsonl", {"limits.max_failures": most})


def test_what_workers_counted_is_judged_as_single_rows_are() -> None:
    kinds = {"bad_request": 19}
    first = FirstRows(Totals())
    assert first.look(19, kinds, BAD, "because") is None
    assert "because" in str(first.look(25, {"bad_request": 25}, BAD, "because"))
    assert first.look(40, {"bad_request": 40}, BAD, "because") is None  # said once
    mixed = FirstRows(Totals())
    assert mixed.look(19, kinds, BAD, "because") is None
    assert mixed.look(30, {"bad_request": 29, "refusal": 1}, BAD, "because") is None
    most = TooManyFailures(LimitsJob(max_failures=30))
    assert most.look(1_000, 29, BAD, "because") is None
    assert "31 rows failed" in str(most.look(1_100, 31, BAD, "because"))


def test_a_share_is_one_of_the_rows_that_workers_counted_last() -> None:
    share = TooManyFailures(LimitsJob(max_failures="10%"))
    assert share.look(60, 30, BAD, "because") is None  # less than a window
    early = share.look(WINDOW_ROWS + 20, 30, BAD, "because")
    assert early is None  # none of the rows since then failed
    assert share.look(1_000, 80, BAD, "because") is None
    said = share.look(1_100, 95, BAD, "because")
    assert "15 of the last 100 rows failed" in str(said)
