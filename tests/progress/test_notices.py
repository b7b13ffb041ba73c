"""When something is told of a run, and that nothing is told twice."""

from typing import Any

import pytest

from batchrun.errors import JobError, StoreError
from batchrun.limits.budget import Budget
from batchrun.progress.apprise_process import hidden
from batchrun.progress.notices import Notice, Notices, of_end, of_failed_end, of_refusal
from batchrun.progress.summary import RunCounters, Summary
from batchrun.records import Totals
from tests.doc_examples import block


def summary(ok: int = 0, not_ok: int = 0, again: int = 0, **facts: Any) -> Summary:
    totals = Totals(rows=ok + not_ok, ok=ok, statuses={"completed": ok, "failed": not_ok})
    made = {"run": "my run", "state": "running", "rows": 10, "now_s": 1.0, **facts}
    return RunCounters(totals, 0.0, again).summary(**made)


def titles(notices: Notices, now: Summary, at_s: float, *budgets: Budget) -> list[str]:
    return [one.title.removeprefix("batchrun: my run ") for one in notices.look(now, budgets, at_s)]


def test_ten_minutes_without_a_row_are_told_once_and_so_is_the_next_row() -> None:
    notices = Notices()
    assert titles(notices, summary(), 1_000.0) == []
    assert titles(notices, summary(), 1_599.9) == []
    assert titles(notices, summary(), 1_600.0) == ["is stalled"]
    assert titles(notices, summary(), 9_000.0) == []
    (over,) = notices.look(summary(not_ok=1), (), 9_001.0)
    assert over.title == "batchrun: my run continues"
    assert "completed, after 2 h 13 min without one" in over.body
    assert titles(notices, summary(not_ok=1), 9_600.0) == []
    assert titles(notices, summary(not_ok=1), 9_601.0) == ["is stalled"]


def test_a_row_that_is_sent_again_counts_when_it_is_complete_again() -> None:
    notices = Notices()
    assert titles(notices, summary(ok=4, again=2), 0.0) == []
    assert titles(notices, summary(ok=4, again=1), 599.0) == []
    assert titles(notices, summary(ok=4, again=1), 1_198.0) == []
    assert titles(notices, summary(ok=4, again=1), 1_199.0) == ["is stalled"]


def test_what_it_waits_for_is_told_in_one_harmless_line() -> None:
    notices = Notices(stall_s=5.0)
    assert titles(notices, summary(binds="x"), 0.0) == []
    (told,) = notices.look(summary(binds="endpoint down: \x1b[2J\nno"), (), 5.0)
    assert "\nlimited by: endpoint down: \\x1b[2J no\n" in told.body
    assert told.body.splitlines()[-1] == "next: batchrun status 'my run'"


@pytest.mark.parametrize(
    ("spent", "unknown", "cap", "told"),
    [
        (0.79, 0.0, 1.0, []),
        (0.80, 0.0, 1.0, ["has spent 80% of --max-cost"]),
        (0.50, 0.31, 1.0, ["has spent 81% of --max-cost"]),
        (0.0, 0.0, 0.0, []),
        (5.0, 0.0, float("inf"), []),
    ],
)
def test_a_budget_is_told_of_at_80_percent(
    spent: float, unknown: float, cap: float, told: list[str]
) -> None:
    notices, budget = Notices(), Budget(cap, spent, unknown)
    assert titles(notices, summary(), 0.0, budget) == told
    assert titles(notices, summary(ok=1), 1.0, budget) == []


def test_each_cap_is_told_of() -> None:
    caps = Budget(10.0, 9.0), Budget(1.0, 0.9, of_command=True)
    found = titles(Notices(), summary(), 0.0, *caps)
    assert found == [
        "has spent 90% of --max-cost",
        "has spent 90% of --max-cost-per-command",
    ]


@pytest.mark.parametrize(
    ("made", "title", "kind"),
    [
        (summary(ok=10, state="finished", exit_code=0), "finished: all rows are ok", "success"),
        (
            summary(ok=8, not_ok=2, state="finished", exit_code=4),
            "finished: 2 rows are not ok",
            "warning",
        ),
        (
            summary(ok=3, not_ok=1, state="limited", exit_code=4, source_rows=20),
            "finished as far as was asked: 1 row is not ok",
            "warning",
        ),
        (summary(ok=1, state="stopped", exit_code=3, message="no"), "stopped early", "warning"),
        (summary(ok=1, state="interrupted", exit_code=143), "interrupted", "warning"),
        (summary(state="failed", exit_code=1, message="disk full"), "failed", "failure"),
    ],
)
def test_the_end_is_told_in_its_words(made: Summary, title: str, kind: str) -> None:
    told = of_end(made)
    assert (told.title, told.kind) == (f"batchrun: my run {title}", kind)
    assert f"(exit code {made.exit_code})" in told.body
    assert ("why: " in told.body) == (made.message is not None)


def test_an_end_names_what_remains_and_the_next_command() -> None:
    command = "batchrun run a.jsonl -o 'my run'"
    made = summary(
        ok=3,
        not_ok=1,
        state="stopped",
        exit_code=3,
        next_command=command,
        cap_usd=2.0,
        message="no",
    )
    told = of_end(made).body
    shown = block("unattended", "Messages about a run", "text")
    names = [[line.partition(":")[0] for line in text.splitlines()] for text in (shown, told)]
    assert names[0] == names[1]
    assert told == "\n".join(
        [
            "run: my run",
            "state: stopped early (exit code 3)",
            "rows: 4 of 10",
            "ok: 3",
            "not ok: 1 (1 failed)",
            "cost: nothing so far; the cap is $2.00 (--max-cost)",
            "remaining: 6",
            "why: no",
            "next step: continue with the 6 remaining rows",
            f"next: {command}",
        ]
    )


def test_what_never_began_or_failed_at_its_end_is_no_good_news() -> None:
    begun = of_refusal("runs/a", JobError("no such\nfile"), "batchrun run a")
    assert begun == Notice(
        "batchrun: runs/a did not start",
        "run: runs/a\nstate: nothing was sent (exit code 2)\nwhy: no such file\n"
        "next: batchrun run a",
        "failure",
    )
    bug = of_refusal("runs/a", KeyError("x"), None)
    assert "(exit code 1)\nwhy: KeyError: 'x'" in bug.body
    ended = of_failed_end(summary(ok=10, state="finished", exit_code=0), StoreError("no space"))
    assert (ended.title, ended.kind) == ("batchrun: my run failed", "failure")
    assert "why: no space" in ended.body


def test_what_apprise_says_holds_no_part_of_a_url() -> None:
    url = "tgram://123456:AAbb%2Fcc-DD/chat?topic=ops-room&format=text"
    said = [
        "another line",
        f"Could not send to {url}: 123456, AAbb/cc-DD or AAbb%2Fcc-DD in\nops-room; format, topic",
    ]
    assert hidden(said, url) == "Could not send to tgram://… ***, *** or *** in ***; format, topic"
    assert hidden([], url) == "no reason was given"
