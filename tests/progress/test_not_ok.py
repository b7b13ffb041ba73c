"""Every row that is not ok is in some count of the summary."""

import pytest

from batchrun.progress.display import not_ok_in_words
from batchrun.progress.summary import RunCounters
from batchrun.records import Totals


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        (Totals(rows=9, ok=9, statuses={"completed": 9}), []),
        (
            Totals(
                rows=300,
                ok=164,
                truncated=53,
                refused=27,
                statuses={"completed": 191, "incomplete": 67, "failed": 40, "no_answer": 2},
            ),
            ["53 truncated", "27 refused", "14 incomplete", "40 failed", "2 no_answer"],
        ),
    ],
)
def test_all_rows_that_are_not_ok_are_counted(totals: Totals, said: list[str]) -> None:
    summary = RunCounters(totals, 0.0).summary(
        run="r", state="finished", rows=totals.rows, now_s=1.0
    )
    assert not_ok_in_words(summary) == said
    assert sum(int(words.split()[0]) for words in said) == summary.not_ok
