"""Questions in SQL see each row once, whatever the folder is called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrun.errors import JobError, StoreError
from batchrun.records import Outcome
from batchrun.reports.sql import ask
from batchrun.store.run_dir import RunDir

Make = Callable[..., Outcome]


def _ask(path: Path, sql: str) -> list[tuple[Any, ...]]:
    return ask(path, lambda database, _files: database.execute(sql).fetchall())


@pytest.mark.parametrize("name", ["run", "a [b] 'c' *?", "ü$(x)", "ok=false"])
def test_parts_and_journal_are_one_table_and_a_row_sent_again_counts_once(
    name: str, tmp_path: Path, begin: Callable[..., RunDir], answered: Make, failed: Make
) -> None:
    run_dir = begin(tmp_path / name)
    for outcome in (answered(0, calls=1), failed(1), answered(2)):
        run_dir.store(outcome)
    run_dir.close(seal=True)
    run_dir = RunDir.open(tmp_path / name)
    run_dir.start(part_rows=100, part_bytes=1 << 20, replaces=True)
    run_dir.store(msgspec.structs.replace(answered(1, calls=2), replaces=True))
    run_dir.store(answered(3))
    before = sorted((tmp_path / name).rglob("*"))
    rows = _ask(tmp_path / name, 'SELECT "row", ok FROM responses ORDER BY 1')
    calls = _ask(tmp_path / name, 'SELECT "row", count(*) FROM tool_calls GROUP BY 1 ORDER BY 1')
    assert sorted((tmp_path / name).rglob("*")) == before
    run_dir.close()
    assert rows == [(0, True), (1, True), (2, True), (3, True)]
    assert calls == [(0, 1), (1, 2)]


def test_without_parts_the_tables_are_empty_and_have_their_columns(
    tmp_path: Path, begin: Callable[..., RunDir]
) -> None:
    begin(tmp_path / "run").close()
    assert _ask(tmp_path / "run", "SELECT cost_usd, attempts FROM responses") == []
    assert _ask(tmp_path / "run", "SELECT name FROM tool_calls") == []


def test_what_cannot_be_read_is_said(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    with pytest.raises(JobError, match="is not a run directory"):
        _ask(tmp_path, "SELECT 1")
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    run_dir.close(seal=True)
    (part,) = (tmp_path / "run" / "responses").glob("*.parquet")
    part.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(StoreError, match=r"cannot be read .* batchrun verify"):
        _ask(tmp_path / "run", "SELECT count(ok) FROM responses")
