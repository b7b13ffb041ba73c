"""Whatever reads a run warns of a deleted part, not of one that was replaced by right."""

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from batchrun.cli.cost import cost
from batchrun.cli.export import export
from batchrun.cli.look import show, status
from batchrun.cli.report import report
from batchrun.records import Outcome
from batchrun.store.parts import count_rows
from batchrun.store.reading import read_missing_parts, read_totals
from batchrun.store.run_dir import RunDir

PART = "responses/w0-000001.parquet"


@pytest.fixture
def run(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Callable[..., Outcome]
) -> tuple[Path, RunDir]:
    """Ten rows in two parts, ended; its `run.json` names a third, whose rows are in others."""
    run_dir = begin(tmp_path / "run", part_rows=6)
    for row in range(10):
        run_dir.store(answered(row))
    run_dir.finish()
    assert run_dir.record is not None
    parts = count_rows(run_dir.path)
    totals = read_totals(run_dir.path)
    run_dir.save(replace(run_dir.record, state="finished", totals=totals, parts=parts))
    return run_dir.path, run_dir


@pytest.mark.parametrize(
    ("command", "more"),
    [(status, []), (report, []), (cost, []), (show, ["id-8"]), (export, ["all.jsonl"])],
)
def test_each_command_that_reads_a_run_warns_in_one_line_of_a_part_that_was_deleted(
    run: tuple[Path, RunDir], command: click.Command, more: list[str], tmp_path: Path
) -> None:
    path, run_dir = run
    run_dir.close()
    more = [str(tmp_path / word) if "." in word else word for word in more]
    whole = CliRunner().invoke(command, [str(path), *more], catch_exceptions=False)
    assert whole.stderr == ""
    (path / PART).unlink()
    found = CliRunner().invoke(command, [str(path), *more], catch_exceptions=False)
    said = f"warning: {path}: {PART} (6 rows) is missing and left out here; restore what "
    assert found.stderr == f"{said}batchrun verify {path} names\n"
    assert found.exit_code == 0


def test_after_a_kill_a_part_that_went_by_itself_is_not_missed(run: tuple[Path, RunDir]) -> None:
    path, run_dir = run
    record = run_dir.record
    assert record is not None
    parts = {**record.parts, "responses/w0-000009.parquet": 3}
    run_dir.save(replace(record, state="running", parts=parts))
    assert read_missing_parts(path) == {}
    (path / PART).unlink()
    assert read_missing_parts(path) == {}  # a process may be about to put it in order
    run_dir.close()
    assert read_missing_parts(path) == {PART: 6, "responses/w0-000009.parquet": 3}
