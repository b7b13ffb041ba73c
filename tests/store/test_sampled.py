"""Results of some rows, from parts and journal."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from batchrun.estimate.pilot import SampledRow, read_sampled
from batchrun.records import Outcome
from batchrun.store.run_dir import RunDir

Make = Callable[..., Outcome]


def test_rows_are_read_from_parts_and_journal_in_their_order(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make, failed: Make
) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(msgspec.structs.replace(answered(3), cost_usd=0.5))
    run_dir.store(failed(1))
    run_dir.store(answered(2))
    run_dir.close(seal=True)
    run_dir = RunDir.open(tmp_path / "run")
    run_dir.start(part_rows=100, part_bytes=1 << 20)
    run_dir.store(answered(0))
    found = read_sampled(tmp_path / "run", [3, 0, 1, 77])
    run_dir.close()
    assert [row.row for row in found] == [0, 1, 3]
    first, no_answer, last = found
    assert (first.ok, first.input_tokens, first.output_tokens, first.cost_usd) == (
        True,
        10,
        5,
        None,
    )
    assert (no_answer.ok, no_answer.output_tokens) == (False, None)
    assert isinstance(last, SampledRow)
    assert last.cost_usd == 0.5


def test_no_rows_are_none(tmp_path: Path, begin: Callable[..., RunDir]) -> None:
    begin(tmp_path / "run").close()
    assert read_sampled(tmp_path / "run", []) == ()
