"""What batchrun 0.2 called ok stays so: in its parts, and in a journal that a kill left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Outcome, Resend
from batchrun.store.complete_rows import read_complete_rows
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import snapshot
from batchrun.store.verify import verify
from tests.runs import run_record

Make = Callable[..., Outcome]


def _empty(answered: Make, row: int) -> Outcome:
    outcome = answered(row, text="")
    result: Any = msgspec.structs.replace(outcome.result, is_empty=True)
    return msgspec.structs.replace(outcome, result=result)


def _write(path: Path, outcomes: list[Outcome], *, finish: bool = True) -> None:
    run_dir = RunDir.open(path)
    run_dir.save(run_record(rows=len(outcomes)))
    run_dir.start(part_rows=90, part_bytes=64 << 20)
    for outcome in outcomes:
        run_dir.store(outcome)
    if finish:
        run_dir.finish()
    run_dir.close()


def _sent_again(path: Path, *kinds: str) -> int:
    with snapshot(path) as now:
        return sum(read_complete_rows(now, Resend(failed=True, kinds=frozenset(kinds))).again)


def _as_older(path: Path) -> None:
    """The parts as batchrun 0.2 wrote them: such answers are ok, and have no `error_kind`."""
    for part in sorted(path.glob("responses/*.parquet")):
        table = pq.read_table(part)
        columns = {
            "ok": pa.array([True] * len(table)),
            "error_kind": pa.nulls(len(table), pa.string()),
            "error_message": pa.nulls(len(table), pa.string()),
        }
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, values)
        pq.write_table(table, part)


@pytest.mark.parametrize("is_older", [False, True])
def test_rows_of_older_parts_keep_their_ok(
    tmp_path: Path, answered: Make, *, is_older: bool
) -> None:
    run = tmp_path / "run"
    _write(run, [answered(0), _empty(answered, 1)])
    if is_older:
        _as_older(run)
    assert [line for line in verify(run).problems if "`ok`" in line] == []
    with snapshot(run) as now:
        totals = read_complete_rows(now).totals
    assert (totals.ok, totals.error_kinds) == ((2, {}) if is_older else (1, {"empty_output": 1}))
    assert _sent_again(run) == 0
    assert _sent_again(run, "empty_output") == (0 if is_older else 1)


def test_a_part_whose_ok_is_not_that_of_its_error_kind_is_found(
    tmp_path: Path, answered: Make
) -> None:
    run = tmp_path / "run"
    _write(run, [_empty(answered, 0)])
    (part,) = run.glob("responses/*.parquet")
    table = pq.read_table(part)
    at = table.schema.get_field_index("ok")
    pq.write_table(table.set_column(at, "ok", pa.array([True])), part)
    (problem,) = verify(run).problems
    assert "`ok` does not agree with status, truncated, refusal and error_kind" in problem


def test_an_older_journal_is_read_and_sealed(tmp_path: Path, answered: Make) -> None:
    """A record without the last field: whether an answer is empty, nobody has asked yet."""
    outcome = _empty(answered, 0)
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(outcome))
    at = Outcome.__struct_fields__.index("result") + 1  # after the tag
    assert fields[at][0] == "response"
    del fields[at][1 + type(outcome.result).__struct_fields__.index("is_empty") :]
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Outcome)
    assert (older.ok, older.failure, outcome.ok) == (True, None, False)
    assert outcome.failure is not None
    assert outcome.failure.kind is ErrorKind.EMPTY_OUTPUT
    run = tmp_path / "run"
    _write(run, [older], finish=False)
    _write(run, [answered(1)])
    assert verify(run).rows_in_parts == 2
    assert [line for line in verify(run).problems if "`ok`" in line] == []
