"""How fast a run goes, and how long it takes from now on."""

from batchrun.errors import ErrorKind
from batchrun.progress.summary import RunCounters, Summary
from batchrun.records import Attempt, Failure, Outcome, Request, Totals


def _failed(row: int) -> Outcome:
    request = Request(row, str(row), "a.jsonl", b"{}", "0" * 16, "m", None, ())
    failure = Failure(ErrorKind.BAD_REQUEST, "no", status="failed")
    return Outcome(request, failure, (Attempt(0, 1.0, "first"),), "http://x", "plain", None)


def _summary(tally: RunCounters, now_s: float) -> Summary:
    return tally.summary(run="run", state="running", rows=100, now_s=now_s)


def test_the_time_before_the_first_answers_is_no_part_of_the_rate() -> None:
    tally = RunCounters(Totals(), 0.0)
    for now_s in (1.0, 5.0, 60.0):  # the input is read
        assert _summary(tally, now_s).time_left_s is None
    tally.count([_failed(row) for row in range(20)])
    stand = _summary(tally, 62.0)
    assert (stand.rows_per_s, stand.time_left_s) == (10, 8)
