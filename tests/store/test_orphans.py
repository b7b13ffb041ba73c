"""Rows of a deleted part may be sent again: their older tool calls are out of the way."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.records import Outcome
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir
from batchrun.store.sealing import drop_orphan_calls
from batchrun.store.verify import verify

Make = Callable[..., Outcome]
Begin = Callable[..., RunDir]


@pytest.mark.parametrize("deleted", ["w0-000001.parquet", "w0-000001-not_ok.parquet"])
def test_the_calls_of_rows_that_were_deleted_are_taken_out(
    tmp_path: Path, begin: Begin, answered: Make, deleted: str
) -> None:
    path = tmp_path / "run"
    outcomes = [answered(row, calls=2, truncated=row % 2 == 0) for row in range(12)]
    run_dir = begin(path, part_rows=6)
    for outcome in outcomes:
        run_dir.store(outcome)
    run_dir.close(seal=True)
    part = path / "responses" / deleted
    lost = set(pq.read_table(part, columns=["custom_id"])["custom_id"].to_pylist())
    part.unlink()
    run_dir = RunDir.open(path)
    drop_orphan_calls(run_dir.path)
    drop_orphan_calls(run_dir.path)  # as after a crash
    assert run_dir.record is not None
    run_dir.start(part_rows=6, part_bytes=1 << 20)
    for outcome in outcomes:
        if outcome.request.custom_id in lost:
            run_dir.store(outcome)
    run_dir.finish()
    ended = replace(run_dir.record, state="finished", rows=12, totals=read_totals(path))
    run_dir.save(ended)
    run_dir.close()
    assert len(lost) == 3
    proof = verify(path)
    assert (proof.problems, proof.rows_in_parts, proof.tool_calls) == ([], 12, 24)


def test_where_nothing_is_missing_no_file_is_touched(
    tmp_path: Path, begin: Begin, answered: Make, failed: Make
) -> None:
    run_dir = begin(tmp_path / "run", part_rows=4)
    for row in range(8):
        run_dir.store(failed(row) if row < 4 else answered(row, calls=1))
    run_dir.finish()
    calls = list((tmp_path / "run" / "tool_calls").iterdir())
    before = {one: one.stat().st_ino for one in calls}
    drop_orphan_calls(run_dir.path)
    assert {one: one.stat().st_ino for one in calls} == before
    run_dir.close()
