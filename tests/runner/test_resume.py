"""What is sent again, what stays, and what has left the input."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.errors import ErrorKind, InputError
from batchrun.inputs.prompt_set import find_source
from batchrun.job.job_file import load_job
from batchrun.job.sections import Job
from batchrun.records import (
    Attempt,
    BadRow,
    Earlier,
    Failure,
    Outcome,
    Request,
    Resend,
    Totals,
    Usage,
)
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.plan import Plan, make_plan, make_record
from batchrun.runner.resume import note_differences, with_earlier
from batchrun.store.complete_rows import EarlierRows
from batchrun.store.run_dir import RunDir
from tests.runs import response

RETRY = Resend(failed=True)
RERUN = Resend(changed=True)
Rows = Sequence[dict[str, Any]]


def _job(folder: Path, rows: Rows) -> Job:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"output.path": str(folder / "run"), "input.skip_bad_rows": True}
    return load_job(folder / "prompts.jsonl", {"request.model": "gpt-4.1", **settings})


def _rows(texts: str) -> list[dict[str, Any]]:
    """A row for each letter, known by it; its text is the letter."""
    return [{"id": letter.lower(), "input": letter} for letter in texts]


def _outcome(request: Request | BadRow, *, fails: bool) -> Outcome:
    if isinstance(request, BadRow):
        plain = Request(
            request.row, request.custom_id, "s", b"", request.hash, None, None, request.carried
        )
        return Outcome(plain, Failure(ErrorKind.INVALID_ROW, "bad", status="invalid"), (), "e", "p")
    answer = response(usage=Usage(10, 0, 0, 5, 0, 15))
    failure = Failure(ErrorKind.TIMEOUT, "late", status="no_answer")
    attempt = Attempt(request.row, 1.0, "first", cost_usd=0.25)
    return Outcome(request, failure if fails else answer, (attempt,), "e", "p", cost_usd=0.25)


def _settle(folder: Path, rows: Rows, failing: str = "", limit: int | None = None) -> None:
    """A run directory in which these rows are settled."""
    job = _job(folder, rows)
    run_dir = RunDir.open(folder / "run")
    plan = make_plan(job, find_source(job.input), run_dir, run_dir.path, RowSelection(limit))
    run_dir.save(make_record(job, plan, run_dir, simulate=False, command=None, sha256=None))
    run_dir.start(part_rows=4, part_bytes=1 << 20)
    for request in plan.prompts.requests(plan.layout, plan.resumed.complete, limit):
        run_dir.store(_outcome(request, fails=request.custom_id in failing))
    run_dir.close(seal=True)


def _plan(folder: Path, rows: Rows, resend: Resend, limit: int | None = None) -> Plan:
    job = _job(folder, rows)
    run_dir = RunDir.open(folder / "run")
    try:
        selection = RowSelection(limit, resend=resend)
        return make_plan(job, find_source(job.input), run_dir, run_dir.path, selection)
    finally:
        run_dir.close()


def _sent(plan: Plan, limit: int | None = None) -> str:
    rows = plan.prompts.requests(plan.layout, plan.resumed.complete, limit)
    return "".join(row.custom_id for row in rows)


def _again(plan: Plan) -> list[int]:
    return [row for row, mark in enumerate(plan.resumed.again) if mark]


def test_without_the_option_failed_rows_stay(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdef"), failing="bd")
    plan = _plan(tmp_path, _rows("abcdef"), Resend())
    assert (plan.to_send, _sent(plan), _again(plan)) == (0, "", [])


def test_the_failed_rows_are_sent_again_with_new_ones(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdef"), failing="bdf")
    plan = _plan(tmp_path, _rows("abcdefg"), RETRY)
    assert (plan.to_send, _sent(plan), _again(plan)) == (4, "bdfg", [1, 3, 5])
    assert plan.resumed.totals.rows == 6
    assert plan.resumed.resent == replace(
        Totals(), rows=3, statuses={"no_answer": 3}, error_kinds={"timeout": 3}, attempts=3,
        attempt_kinds={"first": 3}, cost_usd=0.75,
    )  # fmt: skip
    assert plan.rows_in_all == 7


def test_older_outcomes_are_found_where_the_rows_stand_now(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdefghij"), failing="adgij")
    plan = _plan(tmp_path, _rows("jihgfedcba"), RETRY)
    assert _sent(plan) == "jigda"
    requests = plan.prompts.requests(plan.layout, plan.resumed.complete)
    found = EarlierRows(plan.resumed.spans).find({row.key: row.row for row in requests})
    assert {key[0]: earlier.attempts[0].started_at for key, earlier in found.items()} == {
        "j": 9, "i": 8, "g": 6, "d": 3, "a": 0,
    }  # fmt: skip


def test_rows_beyond_the_limit_are_not_sent_again(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdef"), failing="be")
    plan = _plan(tmp_path, _rows("abcdef"), RETRY, limit=3)
    assert (plan.to_send, _sent(plan), _again(plan)) == (1, "b", [1])
    assert plan.resumed.resent.rows == 1


def test_only_the_kinds_asked_for_are_sent_again(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdef"), failing="be")
    asked = Resend(failed=True, kinds=frozenset({"server_error"}))
    assert _plan(tmp_path, _rows("abcdef"), asked).to_send == 0
    asked = Resend(failed=True, kinds=frozenset({"server_error", "timeout"}))
    assert _plan(tmp_path, _rows("abcdef"), asked).to_send == 2


def test_a_row_that_was_never_sent_is_not_sent_again(tmp_path: Path) -> None:
    rows = [*_rows("ab"), {"id": "c", "nothing": 1}]
    _settle(tmp_path, rows, failing="b")
    assert _sent(_plan(tmp_path, rows, RETRY)) == "b"


def test_changed_rows_stop_the_plan_and_name_the_option(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcd"), failing="b")
    for resend in (Resend(), RETRY):
        with pytest.raises(InputError, match="2 complete rows do") as raised:
            _plan(tmp_path, _rows("aBcD"), resend)
        assert "b (row 1): its request has changed" in str(raised.value)
        assert "--rerun-changed" in str(raised.value)
        assert raised.value.exit_code == 2


def test_changed_rows_are_sent_again_where_that_is_meant(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcd"), failing="c")
    plan = _plan(tmp_path, _rows("DaBc"), RERUN)
    assert (_sent(plan), _again(plan), plan.resumed.removed.rows) == ("db", [0, 2], 0)
    both = Resend(failed=True, changed=True)
    assert _sent(_plan(tmp_path, _rows("DaBc"), both)) == "dbc"


def test_a_bad_row_that_was_mended_is_sent_as_a_new_one(tmp_path: Path) -> None:
    _settle(tmp_path, [*_rows("ab"), {"id": "c", "nothing": 1}])
    for resend in (Resend(), RETRY, RERUN):
        plan = _plan(tmp_path, _rows("abc"), resend)
        assert (_sent(plan), _again(plan)) == ("c", [])
        assert plan.resumed.totals.rows == plan.resumed.totals.ok == 2
        assert plan.rows_in_all == 3
    _accept(tmp_path, _rows("abc"), Resend())
    names = [f"w0-00000{number}" for number in (1,)]
    assert [path.stem for path in (tmp_path / "run" / "responses").iterdir()] == names
    # A kill in between looks like no loss.
    assert _plan(tmp_path, _rows("abc"), Resend()).warnings == ()


def test_rows_that_left_the_input_are_named_and_left_out_of_the_totals(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdefghijklmn"), failing="b")
    with pytest.raises(InputError, match="13 complete rows do") as raised:
        _plan(tmp_path, _rows("n"), Resend())
    assert "a (row 0): removed" in str(raised.value)
    plan = _plan(tmp_path, _rows("nz"), RERUN)
    assert _sent(plan) == "z"
    assert plan.resumed.totals.rows == plan.resumed.totals.ok == 1
    assert plan.resumed.removed.rows == 13
    assert plan.resumed.removed.statuses == {"completed": 12, "no_answer": 1}
    (warning,) = plan.resumed.warnings
    assert "13 complete rows are not in the input any more" in warning
    assert warning.endswith("i (row 8), j (row 9) and 3 more")
    assert plan.rows_in_all == 2


def test_rows_known_by_number_that_are_cut_off_are_gone(tmp_path: Path) -> None:
    rows = [{"input": letter} for letter in "abcd"]
    _settle(tmp_path, rows)
    plan = _plan(tmp_path, [*rows[:1], {"input": "B"}, rows[2]], RERUN)
    assert (_again(plan), plan.resumed.removed.rows, _sent(plan)) == ([1], 1, "1")


def test_a_row_that_lost_its_name_is_gone_and_new(tmp_path: Path) -> None:
    _settle(tmp_path, [{"custom_id": "a", "input": "a"}])
    plan = _plan(tmp_path, [{"input": "A"}], RERUN)
    assert (_again(plan), plan.resumed.removed.rows, _sent(plan)) == ([], 1, "0")


Case = tuple[float | None, float | None, float | None]


@pytest.mark.parametrize("case", [(0.5, 0.25, 0.75), (None, 0.25, 0.25), (None, None, None)])
def test_older_attempts_and_their_cost_go_along(case: Case) -> None:
    before, now, both = case
    old = tuple(Attempt(at, 1.0, "first", cost_usd=before) for at in (1, 2))[: 1 + (not before)]
    request = Request(0, "a", "s", b"{}", "0" * 16, None, None, ())
    new = Outcome(
        request,
        Failure(ErrorKind.TIMEOUT, "late"),
        (Attempt(5, 1.0, "first"), Attempt(6, 1.0, "retry", cost_usd=now)),
        "e",
        "plain",
        cost_usd=now,
        counted=0,
    )
    whole = with_earlier(new, Earlier(old, before, Totals(rows=1)))
    assert [attempt.started_at for attempt in whole.attempts] == [*range(1, len(old) + 1), 5, 6]
    assert whole.attempts[whole.counted].started_at == 5
    assert whole.cost_usd == both
    assert whole.replaces


def test_totals_that_are_taken_out_leave_the_others() -> None:
    some = Totals(rows=1, ok=1, statuses={"completed": 1}, attempts=2, cost_usd=0.25)
    more = Totals(
        rows=3,
        ok=1,
        statuses={"completed": 1, "failed": 2},
        error_kinds={"timeout": 2},
        attempts=5,
        cost_usd=0.75,
        unpriced=1,
        unpriced_model="m",
    )
    left = more.without(some)
    assert left == Totals(
        rows=2,
        statuses={"failed": 2},
        error_kinds={"timeout": 2},
        attempts=3,
        cost_usd=0.5,
        unpriced=1,
        unpriced_model="m",
    )
    assert more.without(more) == Totals()
    assert more.without(Totals()) is more


def _accept(folder: Path, rows: Rows, resend: Resend = RERUN) -> None:
    """A command that sends nothing, yet notes what has left the input."""
    job = _job(folder, rows)
    run_dir = RunDir.open(folder / "run")
    plan = make_plan(
        job, find_source(job.input), run_dir, run_dir.path, RowSelection(resend=resend)
    )
    note_differences(run_dir, plan.resumed)
    run_dir.save(make_record(job, plan, run_dir, simulate=False, command=None, sha256=None))
    run_dir.close()


def test_rows_once_accepted_as_gone_are_not_asked_about_again(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdef"))
    _accept(tmp_path, _rows("xabce"))
    named = pq.read_table(tmp_path / "run" / "gone.parquet").to_pylist()
    assert {(one["custom_id"], one["row"], one["sample"]) for one in named} == {
        ("d", 3, 0),
        ("f", 5, 0),
    }
    plan = _plan(tmp_path, _rows("xabce"), Resend())
    assert (_sent(plan), plan.resumed.removed.rows) == ("x", 2)
    assert "d (row 3), f (row 5)" in " ".join(plan.warnings)
    with pytest.raises(InputError, match="1 complete row does") as raised:
        _plan(tmp_path, _rows("xabc"), Resend())
    assert "e (row 4): removed" in str(raised.value)
    assert "d (row 3)" not in str(raised.value)
    _accept(tmp_path, _rows("xabcde"), Resend())  # one has come back
    with pytest.raises(InputError, match="1 complete row does"):
        _plan(tmp_path, _rows("xabce"), Resend())
    _accept(tmp_path, _rows("xabcdef"), Resend())
    assert not (tmp_path / "run" / "gone.parquet").exists()


def test_a_part_that_was_deleted_is_named_and_never_paid_again_unasked(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdefgh"))
    _accept(tmp_path, _rows("abcdefgh"))
    part = tmp_path / "run" / "responses" / "w0-000002.parquet"
    kept = part.read_bytes()
    part.unlink()
    for resend in (Resend(), RETRY):
        with pytest.raises(InputError) as raised:
            _plan(tmp_path, _rows("abcdefgh"), resend)
        assert "responses/w0-000002.parquet (4 rows)" in str(raised.value)
        assert "--rerun-changed, which sends their rows again and pays" in str(raised.value)
    again = _plan(tmp_path, _rows("abcdefgh"), RERUN)
    assert _sent(again) == "efgh"
    assert "responses/w0-000002.parquet (4 rows)\n  Their rows are sent again" in again.warnings[0]
    part.write_bytes(kept)
    whole = _plan(tmp_path, _rows("abcdefgh"), Resend())
    assert (whole.to_send, whole.warnings) == (0, ())


def test_what_a_killed_run_had_and_lost_is_told_before_it_is_sent_again(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcdefgh"))
    run_dir = RunDir.open(tmp_path / "run")
    run_dir.write_live({"ok": 7, "not_ok": 1})
    run_dir.close()
    assert _plan(tmp_path, _rows("abcdefgh"), Resend()).warnings == ()
    (tmp_path / "run" / "responses" / "w0-000001.parquet").unlink()
    plan = _plan(tmp_path, _rows("abcdefgh"), Resend())
    assert _sent(plan) == "abcd"
    assert plan.warnings[0].startswith(
        "4 complete rows are not on disk any more, to be sent again:"
    )


def test_a_part_whose_rows_were_sent_again_is_not_missed(tmp_path: Path) -> None:
    _settle(tmp_path, _rows("abcd"), failing="bd")
    _accept(tmp_path, _rows("abcd"))
    job = _job(tmp_path, _rows("abcd"))
    run_dir = RunDir.open(tmp_path / "run")
    plan = make_plan(job, find_source(job.input), run_dir, run_dir.path, RowSelection(resend=RETRY))
    run_dir.start(part_rows=4, part_bytes=1 << 20, replaces=True)
    for request in plan.prompts.requests(plan.layout, plan.resumed.complete):
        run_dir.store(replace(_outcome(request, fails=False), replaces=True))
    run_dir.close(seal=True)  # and killed before `run.json` could say so
    assert not (tmp_path / "run" / "responses" / "w0-000001-not_ok.parquet").exists()
    plan = _plan(tmp_path, _rows("abcd"), Resend())
    assert (plan.to_send, plan.warnings) == (0, ())
