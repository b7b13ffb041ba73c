"""Killed at any moment and run again: each row once, and nothing that is stored paid for twice."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from batchrun.records import Outcome
from batchrun.store import tables
from batchrun.store.snapshot import snapshot

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]
Query = Callable[..., list[tuple[Any, ...]]]

_ROWS = 1_500
_IN_FLIGHT = 16
_LATENCY_S = 0.03
_JOB = """
[input]
path = "prompts.jsonl"

[request]
model = "gpt-4.1"
# The loop makes the plan take its time.
input = "{% for turn in range(3000) %}{% endfor %}{{ question }}"

[[request.tools]]
type = "function"
name = "count_things"
[request.tools.parameters]
type = "object"
required = ["kind", "number"]
[request.tools.parameters.properties]
kind = { type = "string" }
number = { type = "integer" }

[endpoint]
base_url = "BASE_URL"

[limits]
concurrency = IN_FLIGHT

[output]
path = "run"
part_rows = 40
"""
_TWELVE = (
    "start",
    "plan",
    "first answer",
    "plan",
    "steady",
    "sealing",
    "first answer",
    "steady",
    "sealing",
    "plan",
    "steady",
    "sealing",
)


def _key(body: str | bytes) -> str:
    """How the simulator's table of bodies names a request."""
    fields = json.loads(body)
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def _stored(run: Path) -> Iterator[str]:
    """The keys of all rows that have an outcome, in parts and journal."""
    if not run.exists():
        return
    with snapshot(run) as now:
        for part in now.responses:
            yield from map(_key, pq.read_table(part, columns=["request"])["request"].to_pylist())
        for outcome in now.outcomes():
            yield _key(outcome.request.body)


def _is_sealing(run: Path) -> bool:
    """Whether a seal is under way: its files are written under names of their own first."""
    folders = (run / "tool_calls", run / "responses", run / "journal")
    try:
        names = [entry.name for folder in folders for entry in folder.iterdir()]
    except FileNotFoundError:
        return False
    return any(name.endswith((".tmp", ".intent")) for name in names)


def _journal(run: Path) -> list[Outcome]:
    if not run.exists():
        return []
    with snapshot(run) as now:
        return list(now.outcomes())


@pytest.fixture
def job(write_rows: Any, questions: Any, simulator: Any, tmp_path: Path) -> str:
    """A job file against a simulator whose base URL it returns."""
    write_rows(questions(_ROWS))
    base_url: str = simulator("--latency", str(_LATENCY_S), "--latency-spread", "0")
    text = _JOB.replace("BASE_URL", base_url).replace("IN_FLIGHT", str(_IN_FLIGHT))
    (tmp_path / "job.toml").write_text(text)
    return base_url


@pytest.mark.timeout(180)
def test_twelve_kills_lose_nothing_and_pay_for_nothing_twice(
    tmp_path: Path,
    job: str,
    begin: Begin,
    batchrun: Run,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    query: Query,
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    run = tmp_path / "run"
    paid: dict[str, int] = {}  # requests for each body that is stored, counted at the kill
    completions = stored = in_journal = unsent = 0

    def answered(more: int) -> bool:
        return bool(stats(job)["completions"] > completions + more)

    for stage in _TWELVE:
        process = begin("run", "job.toml", stdout=DEVNULL, stderr=DEVNULL)
        match stage:
            case "start":
                time.sleep(0.2)
            case "plan":  # the directory is in its hands, and nothing is sent yet
                wait_until(lambda: tables.is_running(run) or answered(0), process)
            case "first answer":
                wait_until(lambda: answered(0), process)
            case "steady":
                wait_until(lambda: answered(4 * _IN_FLIGHT), process)
            case "sealing":
                wait_until(lambda: answered(0), process)
                wait_until(lambda: _is_sealing(run), process)
        process.kill()
        process.wait()
        wait_until(lambda: stats(job)["in_flight"] == 0)
        time.sleep(3 * _LATENCY_S)  # what hung up is completed when it would have been ready
        keys = list(_stored(run))
        counts, bodies = stats(job), stats(job, by="body")
        assert len(keys) == len(set(keys))
        lost = (counts["completions"] - completions) - (len(keys) - stored)
        assert 0 <= lost <= _IN_FLIGHT, stage
        for key, requests in paid.items():
            assert bodies[key]["requests"] == requests, stage
        unsent += counts["completions"] == completions
        in_journal += len(_journal(run))
        completions, stored = counts["completions"], len(keys)
        paid = {key: bodies[key]["requests"] for key in keys}
    assert 0 < stored < _ROWS
    assert in_journal > 0
    assert unsent > 0
    assert batchrun("run", "job.toml").returncode == 0
    assert totals() == (_ROWS, _ROWS, _ROWS)
    bodies = stats(job, by="body")
    assert {key: bodies[key]["requests"] for key in paid} == paid
    assert set(_stored(run)) == set(bodies)
    assert stats(job)["most_in_flight"] <= _IN_FLIGHT
    counted = query("SELECT row, tool_call_count FROM read_parquet(?) ORDER BY row")
    pairs = query("SELECT row, count(*) FROM read_parquet(?) GROUP BY row", table="tool_calls")
    calls: dict[int, int] = dict(pairs)
    assert [(row, calls.get(row, 0)) for row, _ in counted] == counted
    assert sum(calls.values()) > _ROWS
    twice = "SELECT row, position FROM read_parquet(?) GROUP BY ALL HAVING count(*) > 1"
    assert query(twice, table="tool_calls") == []
    assert list((run / "journal").iterdir()) == []
    assert not _is_sealing(run)


def test_kills_within_the_first_plan_leave_nothing_behind(
    tmp_path: Path, job: str, begin: Begin, stats: Callable[..., dict[str, Any]]
) -> None:
    endless = "{% for one in range(90000) %}{% endfor %}{{ question }}"  # seconds, for all rows
    for pause_s in (0.05, 0.4, 0.8):
        process = begin("run", "job.toml", "--prompt", endless, stdout=DEVNULL, stderr=DEVNULL)
        time.sleep(pause_s)
        process.kill()
        process.wait()
        assert not (tmp_path / "run").exists()
    assert stats(job)["requests"] == 0
