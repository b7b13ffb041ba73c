import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from batchrun.errors import ErrorKind, InputError, JobError
from batchrun.inputs.prompt_set import find_source
from batchrun.job.job_file import load_job
from batchrun.job.sections import Job
from batchrun.pricing.prices import Prices
from batchrun.records import Attempt, Failure, Outcome, Request
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.plan import Plan, dry_run, make_plan, make_record
from batchrun.store.reading import read_unknown_usd
from batchrun.store.run_dir import RunDir


def _job(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Job:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return load_job(path, {"output.path": str(folder / "run"), **dotted})


def _said(plan: Plan) -> str:
    return "\n".join(plan.warnings)


def test_a_cap_with_a_model_without_a_price_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    rows = [{"input": "a", "model": "gpt-4.1"}, {"input": "b", "model": "my-model"}]
    dry_run(_job(tmp_path, rows))
    with pytest.raises(JobError, match="none is known for my-model") as raised:
        dry_run(_job(tmp_path, rows, limits__max_cost_usd=5.0))
    assert raised.value.exit_code == 2
    assert '[pricing."my-model"]' in str(raised.value)
    given = {"my-model": {"input": 1.0, "output": 2.0}}
    assert dry_run(_job(tmp_path, rows, limits__max_cost_usd=5.0, pricing=given)).to_send == 2


def test_a_cap_with_rows_that_name_no_model_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": "a", "prompt": {"id": "pmpt_1"}}]
    dry_run(_job(tmp_path, rows))
    with pytest.raises(JobError, match="some rows name none"):
        dry_run(_job(tmp_path, rows, limits__max_cost_usd=5.0))


def test_bad_rows_need_no_price(tmp_path: Path) -> None:
    rows = [{"input": "a", "model": "gpt-4.1"}, {"model": "my-model"}]
    job = _job(tmp_path, rows, limits__max_cost_usd=5.0, input__skip_bad_rows=True)
    assert dry_run(job).bad_rows == 1


def test_more_models_than_a_plan_looks_at_are_refused_with_a_cap(tmp_path: Path) -> None:
    rows = [{"input": "a", "model": f"gpt-4.1-{number}"} for number in range(1_100)]
    assert dry_run(_job(tmp_path, rows)).rows == 1_100
    with pytest.raises(JobError, match="1,000 models or more"):
        dry_run(_job(tmp_path, rows, limits__max_cost_usd=5.0))


def test_how_far_the_cap_may_be_passed_is_said_at_the_start(tmp_path: Path) -> None:
    bounded: dict[str, Any] = {"input": "a", "model": "gpt-4.1", "max_output_tokens": 10}
    rows = [bounded, {"input": "b", "model": "gpt-4.1"}, {**bounded, "tools": [{"type": "mcp"}]}]
    said = _said(dry_run(_job(tmp_path, rows, limits__max_cost_usd=5.0)))
    assert "2 rows of 3 to send may cost more than is reserved for them" in said
    assert "the cap of $5.00 may be exceeded by at most one answer for each request" in said
    assert "cap" not in _said(dry_run(_job(tmp_path, rows)))
    assert "cap" not in _said(dry_run(_job(tmp_path, [bounded], limits__max_cost_usd=5.0)))
    default = _job(tmp_path, rows[:2], limits__max_cost_usd=5.0, request__max_output_tokens=50)
    assert "cap" not in _said(dry_run(default))


def test_on_resume_only_the_rest_may_pass_the_cap(tmp_path: Path) -> None:
    job = _job(tmp_path, [{"input": "a", "model": "gpt-4.1"}] * 5, limits__max_cost_usd=5.0)
    assert "3 rows of 3 to send" in _said(dry_run(job, RowSelection(3)))
    run_dir = _begun(job, tmp_path)
    plan = make_plan(job, find_source(job.input), run_dir, run_dir.path)
    run_dir.start(part_rows=100, part_bytes=1 << 20)
    for request in plan.prompts.requests(plan.layout, bytearray(5), 4):
        assert isinstance(request, Request)
        failure = Failure(ErrorKind.BAD_REQUEST, "no")
        run_dir.store(Outcome(request, failure, (), "http://x", "plain"))
    run_dir.close(seal=True)
    plan = dry_run(job)
    assert "1 row of 1 to send may cost" in _said(plan)
    assert plan.first is not None
    assert plan.first.row == 4  # the first that would be sent
    assert dry_run(job, RowSelection(4)).first is None


def _begun(job: Job, folder: Path, **record: Any) -> RunDir:
    """A run directory as a command leaves it."""
    run_dir = RunDir.open(folder / "run")
    plan = make_plan(job, find_source(job.input), run_dir, run_dir.path, prices=Prices({}))
    made = make_record(job, plan, run_dir, simulate=False, command=None, sha256=None)
    run_dir.save(replace(made, **record))
    return run_dir


def test_after_a_kill_a_cap_says_what_it_leaves_out(tmp_path: Path) -> None:
    row = {"input": "a", "model": "gpt-4.1", "max_output_tokens": 10}
    job = _job(tmp_path, [row])
    _begun(job, tmp_path).close()
    assert "killed" not in _said(dry_run(job))
    capped = _job(tmp_path, [row], limits__max_cost_usd=5.0)
    assert "the last command was killed; what was in flight then" in _said(dry_run(capped))
    run_dir = RunDir.open(tmp_path / "run")
    assert run_dir.record is not None
    run_dir.save(replace(run_dir.record, state="stopped"))
    run_dir.close()
    assert "killed" not in _said(dry_run(capped))


def test_what_tries_may_have_cost_is_known_to_the_next_command(tmp_path: Path) -> None:
    job = _job(tmp_path, [{"input": "a", "model": "gpt-4.1"}])

    def known(run_dir: RunDir) -> float:
        assert run_dir.record is not None
        return read_unknown_usd(run_dir.path, run_dir.record)

    run_dir = _begun(job, tmp_path)
    assert known(run_dir) == 0.0
    run_dir.close()
    run_dir = _begun(job, tmp_path, unknown_usd=0.25)
    assert known(run_dir) == 0.25
    run_dir.write_live({"unknown_usd": 0.5})  # killed before it could say so in `run.json`
    assert known(run_dir) == 0.5
    run_dir.close()
    run_dir = _begun(job, tmp_path)
    assert run_dir.record is not None
    assert run_dir.record.unknown_usd == 0.5
    run_dir.close()


def test_after_a_kill_what_was_in_flight_counts_as_spent(tmp_path: Path) -> None:
    row = {"input": "a", "model": "gpt-4.1", "max_output_tokens": 10}
    job = _job(tmp_path, [row], limits__max_cost_usd=5.0)
    run_dir = _begun(job, tmp_path)
    run_dir.write_live({"unknown_usd": 0.5, "reserved_usd": 0.25})
    run_dir.close()
    assert "counts $0.75 for it" in _said(dry_run(job))
    run_dir = _begun(job, tmp_path, state="stopped")
    assert run_dir.record is not None
    assert run_dir.record.unknown_usd == 0.75
    assert read_unknown_usd(run_dir.path, run_dir.record) == 0.75  # ended well: no more than that
    run_dir.close()


def test_settled_rows_of_unknown_cost_are_told_to_whoever_sets_a_cap(tmp_path: Path) -> None:
    row = {"input": "a", "model": "gpt-4.1", "max_output_tokens": 10}
    job = _job(tmp_path, [row] * 3)
    run_dir = _begun(job, tmp_path, state="stopped")
    plan = make_plan(job, find_source(job.input), run_dir, run_dir.path)
    run_dir.start(part_rows=100, part_bytes=1 << 20)
    for request in plan.prompts.requests(plan.layout, bytearray(3), 2):
        assert isinstance(request, Request)
        failure = Failure(ErrorKind.TIMEOUT, "too long", status="no_answer")
        run_dir.store(Outcome(request, failure, (Attempt(0, 1.0, "first"),), "http://x", "plain"))
    run_dir.close(seal=True)
    capped = dry_run(_job(tmp_path, [row] * 3, limits__max_cost_usd=5.0))
    assert "the cost of 2 attempts of complete rows is not known" in _said(capped)
    assert capped.to_send == 1


def test_a_run_directory_s_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="NUL"):
        dry_run(_job(tmp_path, [{"input": "a", "model": "gpt-4.1"}], output__path="a\0b"))


def test_what_is_wrong_with_all_rows_alike_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        dry_run(_job(tmp_path, [{"input": "hi"}] * 12))
    said = str(raised.value)
    assert said.startswith("12 rows of 12 cannot be sent:")
    assert "prompts.jsonl:1 (and 9 after it): no model" in said
    assert said.count("no model") == 1
    assert "--skip-bad-rows" not in said


def test_what_is_wrong_with_some_rows_is_said_of_each(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": "hi", "model": "m"}, {"input": "a"}, {"input": "b"}]
    with pytest.raises(InputError) as raised:
        dry_run(_job(tmp_path, rows))
    assert str(raised.value).count("no model") == 2
    assert "--skip-bad-rows" in str(raised.value)
