"""A run of schema 1 rewritten to this schema: whenever it dies, each row is there once."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from batchrun.records import RunRecord
from batchrun.reports.ordered_rows import read_rows
from batchrun.reports.sql import ask
from batchrun.store.reading import find_row, read_run_record
from batchrun.store.run_dir import RunDir
from batchrun.store.verify import verify
from tests.runs import standing_rows
from tests.store.crashes import Disk, Loss, Tree, read_tree, write_tree
from tests.store.recording import Recording

RELEASED = Path(__file__).parents[1] / "released" / "schema_1"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder where syncs cost nothing, if there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def _rewrite(path: Path) -> None:
    run_dir = RunDir.open(path)
    run_dir.start(part_rows=10, part_bytes=1 << 20)
    run_dir.close()


def _crashes(path: Path, loss: Loss) -> list[Tree]:
    """What a disk may hold after a crash at each step of the rewriting."""
    recording = Recording(path)
    with recording:
        _rewrite(path)
    disk, dice, trees = Disk(recording.start), random.Random(3), []
    for step in recording.steps:
        disk.take(step)
        trees.append(disk.after(loss, dice))
    return trees


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        pytest.param(
            name, loss, marks=() if name == "resending" or not loss_at else pytest.mark.long
        )
        for name in ("not_ok", "resending", "gone", "renamed")
        for loss_at, loss in enumerate(Loss)
    ],
)
def test_a_crash_at_any_step_of_the_rewriting_loses_no_row(
    folder: Path, name: str, loss: Loss
) -> None:
    path = folder / "run"
    shutil.copytree(RELEASED / name / "run", path)
    rows = standing_rows(path)
    seen: list[Tree] = []
    ends: list[Tree] = []  # each is looked at once; nearly always it is one
    for number, tree in enumerate(_crashes(path, loss)):
        if tree in seen:
            continue
        seen.append(tree)
        crashed = folder / f"crashed{number}"
        write_tree(tree, crashed)
        assert standing_rows(crashed) == rows
        if number % 5 == 0 and loss is Loss.NOTHING:
            _check_readers(crashed, name, len(rows))
        _rewrite(crashed)
        end = read_tree(crashed)
        if end not in ends:
            ends.append(end)
            _check_end(crashed, rows)
        shutil.rmtree(crashed)
    assert len(seen) > 5


def _check_end(path: Path, rows: dict[str, tuple[bool, int]]) -> None:
    """All of the run is of this schema, and each row is there once."""
    assert standing_rows(path) == rows
    for part in path.glob("*/*.parquet"):
        assert pq.read_metadata(part).metadata[b"batchrun.schema_version"] == b"2"
        assert not part.name.endswith("-other.parquet")
    assert not [*path.glob("*/.*.tmp"), *path.glob("journal/*.intent")]
    assert verify(path).problems == []


def _check_readers(path: Path, name: str, rows: int) -> None:
    """Readers of whole runs and of one row find all columns in what a crash left."""
    record = read_run_record(path)
    assert record is not None

    def lines(_: RunRecord, found: Iterator[dict[str, object]]) -> list[dict[str, object]]:
        return list(found)

    found = read_rows(path, lines)
    assert len(found) == rows
    counted = ask(path, lambda database, _: _one(database, "SELECT count(*) FROM responses"))
    assert counted == rows
    if name == "renamed" and record.schema_version == 2:
        for row in (*found, *find_row(path, "q03")):
            number = row["row"]
            assert row["api_input"] == f"api-{number}"
            assert (row["embedding"], row["embedding_input"]) == (None, f"text {number}")
            assert row["embedding_input_2"] == number
        said = "SELECT count(embedding), count(api_input) FROM all_responses"
        assert ask(path, lambda database, _: database.execute(said).fetchall()) == [(0, rows)]


def _one(database: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((value,),) = database.execute(sql).fetchall()
    assert isinstance(value, int)
    return value
