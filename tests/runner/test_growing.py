"""A run that grows by rows, samples and variants sends exactly what is missing."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.inputs.prompt_set import find_source
from batchrun.job.job_file import load_job
from batchrun.job.sections import ExpandJob, Job, VariantJob
from batchrun.records import (
    NOTHING_SENT_AGAIN,
    Answered,
    Attempt,
    BadRow,
    Outcome,
    Request,
    Resend,
    RowKey,
    ToolCall,
    Usage,
)
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.plan import Plan, make_plan, make_record
from batchrun.runner.resume import note_differences
from batchrun.store.run_dir import RunDir
from batchrun.store.verify import verify
from tests.runs import response

# The first is what a job without variants asks.
VARIANTS = (
    VariantJob("a"),
    VariantJob("b", request={"temperature": 0.5}),
    VariantJob("c", request={"model": "other"}, drop=("top_p",)),
)


class Step(NamedTuple):
    """What is asked of the run, and how far it comes."""

    rows: int = 3
    samples: int = 1
    variants: str = ""  # names in order; empty: none is declared
    only: str = ""  # `--variant`
    limit: int | None = None
    comes_to: int = 1_000  # requests, before it is killed
    backwards: bool = False  # the rows of the input


def _job(folder: Path, step: Step, request: dict[str, Any] | None = None) -> Job:
    rows = [{"id": f"q{n}", "input": f"text {n}"} for n in range(step.rows)]
    rows = rows[::-1] if step.backwards else rows
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = request or {"model": "m", "top_p": 0.5}
    job = load_job(folder / "p.jsonl", {f"request.{key}": value for key, value in asked.items()})
    variants = tuple(next(one for one in VARIANTS if one.name == name) for name in step.variants)
    return replace(job, expand=ExpandJob(step.samples), variants=variants)


def _wanted(step: Step) -> list[RowKey]:
    """In the order in which they are sent, of ids, samples and variants as asked."""
    rows = range(step.rows)[::-1] if step.backwards else range(step.rows)
    return [
        (f"q{row}", sample, variant)
        for row in rows[: step.limit]
        for variant in (step.only or step.variants or [None])
        for sample in range(step.samples)
    ]


def _outcome(request: Request | BadRow) -> Outcome:
    assert isinstance(request, Request)
    call = ToolCall(0, "function_call", "c", "n", "{}", None, None, "{}")
    answer = response(tool_calls=(call,), usage=Usage(1, 0, 0, 1, 0, 2))
    return Outcome(request, answer, (Attempt(0, 1.0, "first", cost_usd=0.5),), "e", "plain")


def _carry_out(
    folder: Path, step: Step, resend: Resend = NOTHING_SENT_AGAIN
) -> tuple[Plan, list[Request | BadRow]]:
    """As a run does, without sending; what it sends until it is killed, which is all stored."""
    job = _job(folder, step)
    run_dir = RunDir.open(folder / "run")
    try:
        if resend.is_asked or (job.variants and run_dir.has_no_variants):
            run_dir.finish()
        plan = make_plan(
            job,
            find_source(job.input),
            run_dir,
            run_dir.path,
            RowSelection(step.limit, variants=tuple(step.only), resend=resend),
        )
        if plan.resumed.adopted is not None:
            run_dir.name_variant(plan.resumed.adopted)
        note_differences(run_dir, plan.resumed)
        run_dir.save(make_record(job, plan, run_dir, simulate=False, command=None, sha256=None))
        requests = plan.prompts.requests(plan.layout, plan.resumed.complete, plan.limit)
        sent = list(islice(requests, step.comes_to))
        if plan.to_complete:
            run_dir.start(part_rows=4, part_bytes=1 << 20)
            for one in sent:
                run_dir.store(_outcome(one))
    finally:
        run_dir.close(seal=step.comes_to % 2 == 0)
    return plan, sent


def _plan(folder: Path, step: Step) -> Plan:
    """The plan of a step, and nothing else."""
    job = _job(folder, step)
    run_dir = RunDir.open(folder / "run")
    try:
        return make_plan(job, find_source(job.input), run_dir, run_dir.path)
    finally:
        run_dir.close()


def _stored(folder: Path, table: str = "responses") -> Counter[RowKey]:
    sql = "SELECT custom_id, sample, variant FROM read_parquet(?)"
    with duckdb.connect() as connection:
        found = connection.execute(sql, [f"{folder}/run/{table}/*.parquet"])
        return Counter(found.fetchall())


STEPS = st.builds(
    Step,
    rows=st.integers(1, 5),
    samples=st.integers(1, 3),
    variants=st.sampled_from(["", "a", "ab", "ba", "abc", "cba"]),
    only=st.sampled_from(["", "", "a"]),
    limit=st.sampled_from([None, None, 2]),
    comes_to=st.sampled_from([1_000, 7, 3, 4]),
    backwards=st.booleans(),
)


def _grown(before: Step, step: Step) -> Step:
    """Never less than before: that is refused."""
    names = before.variants + "".join(n for n in step.variants if n not in before.variants)
    names = names if set(names) != set(step.variants) else step.variants  # in another order
    return step._replace(
        rows=max(step.rows, before.rows),
        samples=max(step.samples, before.samples),
        variants=names,
        only=step.only if step.only and step.only in names else "",
    )


@settings(max_examples=10, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=4))
@example([Step(), Step(samples=2)])
@example([Step(samples=2, comes_to=4), Step(samples=4)])
@example([Step(comes_to=3), Step(variants="ba")])
@example([Step(variants="ab"), Step(variants="cab")])
@example([Step(rows=2), Step(rows=4, samples=2, variants="cba", backwards=True)])
def test_each_step_sends_exactly_the_missing_requests(steps: Sequence[Step]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = set[RowKey]()
        before = Step(rows=1)
        for asked in (*steps, steps[-1]._replace(only="", limit=None, comes_to=1_000)):
            step = _grown(before, asked)
            if step.variants:
                done = {(key, sample, variant or "a") for key, sample, variant in done}
            missing = [key for key in _wanted(step) if key not in done]
            plan, sent = _carry_out(folder, step)
            assert [one.key for one in sent] == missing[: step.comes_to]
            assert (plan.to_send, plan.resumed.totals.rows) == (len(missing), len(done))
            done.update(one.key for one in sent)
            before = step
        proof = verify(folder / "run")
        assert proof.problems == []
        RunDir.open(folder / "run").close(seal=True)
        assert _stored(folder) == Counter(dict.fromkeys(done, 1))
        assert _stored(folder, "tool_calls") == Counter(dict.fromkeys(done, 1))


def test_rows_from_before_variants_may_be_of_any_of_them_or_of_none(tmp_path: Path) -> None:
    _carry_out(tmp_path, Step(samples=2))
    with pytest.raises(InputError, match="makes the same requests") as raised:
        _carry_out(tmp_path, Step(samples=2, variants="bc"))
    assert "6 rows from before variants were declared" in str(raised.value)
    assert "-o" in str(raised.value)
    assert {variant for *_, variant in _stored(tmp_path)} == {None}
    plan, sent = _carry_out(tmp_path, Step(samples=2, variants="ba"))
    assert plan.resumed.adopted == "a"
    assert any("6 rows from before variants" in warning for warning in plan.warnings)
    assert {one.variant for one in sent} == {"b"}


def test_fewer_is_refused_unless_it_is_meant_and_may_grow_again(tmp_path: Path) -> None:
    _carry_out(tmp_path, Step(rows=2, samples=2, variants="ab"))
    for less in (
        Step(rows=2, samples=1, variants="ab"),
        Step(rows=2, samples=2, variants="a"),
        Step(rows=1, samples=2, variants="ab"),
        Step(rows=2, samples=2),
    ):
        with pytest.raises(InputError, match="complete rows do not agree"):
            _carry_out(tmp_path, less)
    plan, sent = _carry_out(tmp_path, Step(rows=2, variants="a"), Resend(changed=True))
    assert (sent, plan.resumed.totals.rows, plan.resumed.removed.rows) == ([], 2, 6)
    # Agreed once; what has been answered counts again when it is asked for again.
    plan, sent = _carry_out(tmp_path, Step(rows=2, variants="a"))
    assert (sent, plan.resumed.removed.rows) == ([], 6)
    plan, sent = _carry_out(tmp_path, Step(rows=2, samples=3, variants="ab"))
    assert {one.key[1:] for one in sent} == {(2, "a"), (2, "b")}
    assert (plan.resumed.removed.rows, verify(tmp_path / "run").problems) == (0, [])


def test_rows_that_left_before_variants_came_are_named_too(tmp_path: Path) -> None:
    _carry_out(tmp_path, Step(rows=3))
    _carry_out(tmp_path, Step(rows=1), Resend(changed=True))
    plan, sent = _carry_out(tmp_path, Step(rows=1, variants="ab"))
    assert ([one.key for one in sent], plan.resumed.removed.rows) == ([("q0", 0, "b")], 2)
    _, sent = _carry_out(tmp_path, Step(rows=3, variants="ab"))
    assert [one.key for one in sent] == [("q1", 0, "b"), ("q2", 0, "b")]


def test_a_changed_variant_changes_its_rows_alone(tmp_path: Path) -> None:
    _carry_out(tmp_path, Step(rows=2, samples=2, variants="ab"))
    job = replace(
        _job(tmp_path, Step(rows=2, samples=2, variants="ab")),
        variants=(VARIANTS[0], VariantJob("b", request={"temperature": 0.7})),
    )
    run_dir = RunDir.open(tmp_path / "run")
    source = find_source(job.input)
    with pytest.raises(InputError, match="4 complete rows do not agree") as raised:
        make_plan(job, source, run_dir, run_dir.path)
    assert "q0|b|1 (row 0)" in str(raised.value)
    plan = make_plan(job, source, run_dir, run_dir.path, RowSelection(resend=Resend(changed=True)))
    sent = plan.prompts.requests(plan.layout, plan.resumed.complete)
    assert {one.key[1:] for one in sent} == {(0, "b"), (1, "b")}
    run_dir.close()


def test_what_is_known_of_unfinished_rows_belongs_to_the_variant_too(tmp_path: Path) -> None:
    """Without it background work would be begun, and an answer paid for, once more."""
    _, sent = _carry_out(tmp_path, Step(rows=3, comes_to=1))
    plan = _plan(tmp_path, Step(rows=3))
    open_rows = list(plan.prompts.requests(plan.layout, plan.resumed.complete))
    assert len(sent) == 1
    assert len(open_rows) == 2
    run_dir = RunDir.open(tmp_path / "run")
    first, second = open_rows
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    run_dir.unfinished.begin(first, "e", "resp_1")
    run_dir.unfinished.record(Answered(second.key, 0, _outcome(second), None))
    run_dir.close()
    _carry_out(tmp_path, Step(rows=3, variants="ba", comes_to=0))
    run_dir = RunDir.open(tmp_path / "run")
    begun = run_dir.unfinished.begun(("q1", 0, "a"))
    answered = run_dir.unfinished.answered(("q2", 0, "a"))
    assert begun is not None
    assert answered is not None
    assert (begun.response_id, begun.hash) == ("resp_1", first.hash)
    assert (answered.key, answered.outcome.request.key) == (("q2", 0, "a"), ("q2", 0, "a"))
    assert list(run_dir.unfinished.unnamed()) == []
    run_dir.close()
