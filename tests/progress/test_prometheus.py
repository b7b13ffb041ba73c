"""Metrics of a run: valid, every figure as the summary has it, and unknown ones left out."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrun.progress.prometheus import ENDED, GOES_ON, WORKER_STATES, prometheus_text
from batchrun.progress.summary import RunCounters, Summary, WorkerState
from batchrun.records import Totals
from tests.doc_examples import page
from tests.progress.exposition import Samples, samples_of


def _summary(state: str, done: Totals, **facts: Any) -> Summary:
    exit_code = None if state in GOES_ON else 0
    summary = RunCounters(done, 0.0).summary(
        run="r", state=state, rows=max(done.rows, 10), now_s=2.0, exit_code=exit_code
    )
    return replace(summary, **facts)


def _of(samples: Samples, name: str, **labels: str) -> float | None:
    """The one sample with these labels, whatever the run."""
    wanted = set(labels.items())
    found = [
        value
        for (one, given), value in samples.items()
        if one == f"batchrun_{name}" and {pair for pair in given if pair[0] != "run"} == wanted
    ]
    assert len(found) < 2
    return found[0] if found else None


DONE = Totals(
    rows=9,
    ok=4,
    truncated=1,
    refused=1,
    statuses={"completed": 6, "incomplete": 1, "failed": 1, "invalid": 1},
    error_kinds={"refusal": 1, "truncated": 1, "empty_output": 1, "timeout": 1},
    attempts=11,
    attempt_kinds={"first": 8, "retry": 2, "reask": 1},
    input_tokens=100,
    cached_tokens=10,
    output_tokens=50,
    reasoning_tokens=5,
    cost_usd=0.00012,
)


def test_figures_are_those_of_the_summary() -> None:
    summary = _summary("running", DONE, in_flight=3, most_in_flight=64, p50_s=1.25)
    samples = samples_of(prometheus_text(summary, Path("/runs/a")))
    assert _of(samples, "rows") == 10
    assert _of(samples, "rows_remaining") == 1
    outcomes = {"ok": 4, "truncated": 1, "refused": 1, "empty_output": 1, "invalid_output": 0}
    outcomes |= {"incomplete": 0, "failed": 1, "no_answer": 0, "cancelled": 0, "invalid": 1}
    for outcome, rows in outcomes.items():
        assert _of(samples, "rows_complete", outcome=outcome) == rows
    assert _of(samples, "row_errors", kind="timeout") == 1
    assert _of(samples, "row_errors", kind="refusal") is None
    assert [_of(samples, "attempts_total", kind=kind) for kind in ("first", "retry", "reask")] == [
        8,
        2,
        1,
    ]
    assert _of(samples, "cost_usd_total") == 0.00012
    assert [_of(samples, "tokens", type=one) for one in ("input", "cached")] == [100, 10]
    assert _of(samples, "requests_in_flight") == 3
    assert _of(samples, "requests_in_flight_limit") == 64
    assert _of(samples, "latency_p50_seconds") == 1.25
    assert _of(samples, "paused", by="cooldown") == 0
    assert {labels for _, labels in samples if ("run", "/runs/a") not in labels} == set()


def test_what_is_not_known_has_no_sample() -> None:
    samples = samples_of(prometheus_text(_summary("running", Totals()), Path("/r")))
    for name in ("cost_usd_total", "max_cost_usd", "time_left_seconds", "latency_p50_seconds"):
        assert _of(samples, name) is None
    assert _of(samples, "exit_code") is None


@pytest.mark.parametrize("state", [*GOES_ON, *ENDED, "waiting for the disk"])
def test_a_run_is_in_one_state(state: str) -> None:
    samples = samples_of(prometheus_text(_summary(state, DONE), Path("/r")))
    states = {s: _of(samples, "state", state=s) for s in (*GOES_ON, *ENDED)}
    assert sum(filter(None, states.values())) == 1
    assert states[state if state in states else "running"] == 1
    assert (_of(samples, "requests_in_flight") is None) == (state in ENDED)


@settings(max_examples=50)
@given(
    st.text(st.characters(exclude_characters="/\0"), min_size=1).filter(
        lambda name: name.strip(".")
    ),
    st.integers(0, 10**12),
    st.one_of(st.none(), st.floats(0, 1e9)),
)
def test_any_name_and_any_figure_give_valid_text(
    name: str, rows: int, cost_usd: float | None
) -> None:
    done = Totals(rows=rows, ok=rows, statuses={"completed": rows}, cost_usd=cost_usd)
    summary = _summary("running", done)
    samples = samples_of(prometheus_text(summary, Path("/") / name))
    ((_, value),) = {labels[0] for one, labels in samples if one == "batchrun_rows"}
    assert value == "/" + name.encode("utf-8", "replace").decode()
    assert _of(samples, "cost_usd_total") == summary.cost_usd
    assert _of(samples, "rows_complete", outcome="ok") == rows


def test_each_metric_is_documented_and_nothing_else() -> None:
    summary = _summary("running", DONE, cap_usd=2.0, time_left_s=3.0, p50_s=1.0, p99_s=2.0)
    workers = (WorkerState("w1", "host", 1, "running"),)
    text = prometheus_text(replace(summary, most_in_flight=9, workers=workers), Path("/r"))
    text += prometheus_text(_summary("finished", DONE), Path("/r"))
    names = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")}
    told = set(re.findall(r"`(batchrun_[a-z0-9_]+)", page("summary")))
    assert told == names


def test_workers_are_counted_by_state() -> None:
    workers = (WorkerState("w1", "a", 1, "running"), WorkerState("w2", "b", 2, "lost"))
    samples = samples_of(prometheus_text(_summary("running", DONE, workers=workers), Path("r")))
    states = {state: _of(samples, "workers", state=state) for state in WORKER_STATES}
    assert states == {state: float(state in ("running", "lost")) for state in WORKER_STATES}
    without = samples_of(prometheus_text(_summary("running", DONE), Path("r")))
    assert not [name for name, _ in without if name == "batchrun_workers"]
