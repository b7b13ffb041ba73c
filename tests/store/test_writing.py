"""Parts made by a process of its own: it lives no longer than the run's, and may die before it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batchrun.errors import StoreError
from batchrun.records import Outcome, RunRecord
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir

Make = Callable[..., Outcome]
Query = Callable[..., list[tuple[int, ...]]]
Find = Callable[[Path], list[int]]
Wait = Callable[..., None]

PART_ROWS = 50


@pytest.fixture
def run_dir(tmp_path: Path, record: Callable[..., RunRecord]) -> RunDir:
    run_dir = RunDir.open(tmp_path / "run")
    run_dir.save(record())
    run_dir.start(part_rows=PART_ROWS, part_bytes=64 << 20, seal_in_process=True)
    return run_dir


def parts(path: Path) -> list[Path]:
    return sorted((path / "responses").glob("*.parquet"))


def check_rows(path: Path, query: Query, rows: int) -> None:
    assert not list((path / "journal").iterdir())
    assert not list(path.rglob("*.tmp"))
    found = query("select row from read_parquet(?) order by row", path)
    assert found == [(row,) for row in range(rows)]


def test_parts_are_made_by_a_process_while_rows_are_stored(
    run_dir: RunDir, answered: Make, query: Query, seal_processes: Find, wait_until: Wait
) -> None:
    run_dir.store_some([answered(row) for row in range(PART_ROWS - 1)])
    assert seal_processes(run_dir.path) == []  # not before there is something to seal
    run_dir.store(answered(PART_ROWS - 1))
    wait_until(lambda: seal_processes(run_dir.path))
    (process,) = seal_processes(run_dir.path)
    assert os.getpgid(process) == process  # Ctrl-C is not for it
    wait_until(lambda: parts(run_dir.path))
    run_dir.store_some([answered(row) for row in range(PART_ROWS, 2 * PART_ROWS)])
    run_dir.store_some([answered(row) for row in range(2 * PART_ROWS, 2 * PART_ROWS + 1)])
    run_dir.close(seal=True)
    assert seal_processes(run_dir.path) == []
    check_rows(run_dir.path, query, 2 * PART_ROWS + 1)
    assert len(parts(run_dir.path)) == 3


def test_what_an_earlier_process_left_is_sealed_by_its_age_though_no_row_comes(
    run_dir: RunDir, answered: Make, query: Query, wait_until: Wait
) -> None:
    """As that of a command whose workers store the rows."""
    run_dir.store(answered(0))
    run_dir.close()
    later = RunDir.open(run_dir.path)
    assert later.record is not None
    later.save(later.record)
    later.start(part_rows=PART_ROWS, part_bytes=64 << 20, part_seconds=0.01)

    def is_sealed() -> bool:
        later.seal_old()
        return bool(parts(run_dir.path))

    wait_until(is_sealed)
    later.close(seal=True)
    check_rows(run_dir.path, query, 1)


def test_the_rest_when_all_was_sent_needs_no_process(
    run_dir: RunDir, answered: Make, query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead, called = tmp_path / "instead", tmp_path / "called"
    instead.write_text(f"#!/bin/sh\ntouch '{called}'\n")
    instead.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(instead))
    run_dir.store_some([answered(row) for row in range(PART_ROWS - 1)])
    run_dir.close(seal=True)
    check_rows(run_dir.path, query, PART_ROWS - 1)
    assert not called.exists()


@pytest.mark.parametrize("instead", ["/nowhere/python", "/bin/false"])
def test_where_no_process_runs_a_thread_seals(
    run_dir: RunDir,
    answered: Make,
    query: Query,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
    instead: str,
) -> None:
    monkeypatch.setattr(sys, "executable", instead)
    for row in range(2 * PART_ROWS):
        run_dir.store(answered(row))
    wait_until(lambda: len(parts(run_dir.path)) == 2)
    run_dir.close(seal=True)
    check_rows(run_dir.path, query, 2 * PART_ROWS)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6])
def test_a_process_that_is_killed_costs_no_row(
    run_dir: RunDir,
    answered: Make,
    query: Query,
    seal_processes: Find,
    wait_until: Wait,
    after_s: float,
) -> None:
    for row in range(20 * PART_ROWS):
        run_dir.store(answered(row, calls=1))
    wait_until(lambda: seal_processes(run_dir.path))
    time.sleep(after_s)
    for process in seal_processes(run_dir.path):
        os.kill(process, signal.SIGKILL)
    for row in range(20 * PART_ROWS, 21 * PART_ROWS + 7):
        run_dir.store(answered(row, calls=1))
    run_dir.close(seal=True)
    assert seal_processes(run_dir.path) == []
    check_rows(run_dir.path, query, 21 * PART_ROWS + 7)
    calls = query("select row from read_parquet(?) order by row", run_dir.path, "tool_calls")
    assert calls == [(row,) for row in range(21 * PART_ROWS + 7)]


def test_what_a_seal_over_there_fails_of_ends_the_run(
    run_dir: RunDir, answered: Make, query: Query, seal_processes: Find
) -> None:
    in_the_way = run_dir.path / "responses" / ".w0-000001.parquet.tmp"
    (in_the_way / "folder").mkdir(parents=True)

    with pytest.raises(StoreError, match=r"cannot write parts \(.*then run the same command again"):
        for row in range(10_000):
            run_dir.store(answered(row))
            time.sleep(0.005)
    run_dir.close()
    assert seal_processes(run_dir.path) == []
    kept = read_totals(run_dir.path).rows
    assert kept >= PART_ROWS
    (in_the_way / "folder").rmdir()
    in_the_way.rmdir()
    RunDir.open(run_dir.path).close(seal=True)
    check_rows(run_dir.path, query, kept)
