"""A run whose command was killed while its workers write: what each command makes of it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from batchrun.store.reading import read_record, read_totals
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import snapshot
from batchrun.store.workers.worker_dir import WorkerDir
from tests.processes import read_until
from tests.runs import standing_rows
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]

_ROWS, _IN_FLIGHT = 300, 8  # of the command that is killed
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_whatever_reads_or_goes_on_with_a_run_takes_the_rows_of_all_writers(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    wait_until: Callable[..., None],
    workers: ExitStack,
) -> None:
    source = write_rows(questions(_ROWS))
    base_url = simulator("--latency", "0.3")
    command = ("run", source, *_ASK, "--base-url", base_url)
    run = tmp_path / "run"
    first = begin(*command, "--concurrency", _IN_FLIGHT)
    wait_until(lambda: (run / "run.json").exists() and read_totals(run).rows > 30, first)
    first.kill()
    first.wait(HANG_S)
    one, other = _given_to_workers(run, workers)
    stored = len(standing_rows(run))

    state = json.loads(batchrun("status", "run", "--json").stdout)
    assert (state["state"], state["ok"], state["left"]) == ("stopping", stored, _ROWS - stored)
    assert "2 workers (w1, w2) still wait for requests in flight" in state["message"]
    assert batchrun("verify", "run").returncode == 0
    counted = batchrun("sql", "run", "select count(*) as n from responses", "--format", "json")
    assert json.loads(counted.stdout) == [{"n": stored}]
    with snapshot(run) as now:
        last = list(now.outcomes())[-1].request.custom_id
    assert batchrun("show", "run", last).returncode == 0
    cost = batchrun("cost", "run", "--format", "json")
    assert str(stored) in cost.stdout, cost.stdout
    assert f"{stored}" in batchrun("report", "run").stdout
    assert batchrun("export", "run", "answers.jsonl").returncode == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == stored

    again = begin(*command, "--concurrency", _ROWS)
    read_until(again, "waiting for workers of the last command, which have requests in flight")
    one.close(has_drained=True)
    assert again.poll() is None
    other.close()  # as a kill
    _, said = again.communicate(timeout=HANG_S)
    assert again.returncode == 0, said
    assert len(standing_rows(run)) == _ROWS
    assert stats(base_url)["completions"] <= _ROWS + _IN_FLIGHT
    assert not list((run / "journal").iterdir())
    assert batchrun("verify", "run").returncode == 0


def _given_to_workers(run: Path, opened: ExitStack) -> list[WorkerDir]:
    """Two workers that write, one of them parts; they have completed what the command had."""
    with snapshot(run) as now:
        outcomes = list(now.outcomes())
    for segment in run.glob("journal/*.log"):
        segment.unlink()
    driver = RunDir.open(run)
    numbers = [driver.new_writer() for _ in range(2)]
    driver.close()
    found = []
    for number, part_rows, some in zip(
        numbers, (5, 1_000), (outcomes[::2], outcomes[1::2]), strict=True
    ):
        worker = WorkerDir.open(run, number, read_record(run))
        opened.callback(worker.close)
        worker.start(part_rows=part_rows, part_bytes=1 << 26)
        for outcome in some:
            worker.store(outcome)
        found.append(worker)
    return found
