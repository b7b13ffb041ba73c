"""A crash between any two steps of a seal, made by doing only the first of them by hand.

Tool calls of rows that were deleted, which may be sent again.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.records import Outcome, RunRecord
from batchrun.store.files import FileId
from batchrun.store.reading import find_row, read_totals, responses, tool_calls
from batchrun.store.run_dir import RunDir
from batchrun.store.sealing import (
    drop_orphan_calls,
    finish_or_seal,
    rename_parts,
    seal,
    write_temporaries,
)
from batchrun.store.snapshot import read_intent, write_intent
from batchrun.store.verify import verify

Make = Callable[..., Outcome]
Record = Callable[..., RunRecord]
Begin = Callable[..., RunDir]
Query = Callable[..., list[tuple[int, ...]]]

ROWS = 12
SEGMENTS = ("w0-000002.log", "w0-000003.log", "w0-000004.log")


@pytest.fixture(scope="module")
def unsealed(
    tmp_path_factory: pytest.TempPathFactory, begin: Begin, answered: Make, failed: Make
) -> Path:
    """Rows 0 to 2 in parts, 3 to 11 in three segments of three processes."""
    path = tmp_path_factory.mktemp("seal") / "run"
    for first in range(0, ROWS, 3):
        run_dir = begin(path)
        for row in range(first, first + 3):
            run_dir.store(failed(row) if row % 4 == 0 else answered(row, calls=1))
        run_dir.close(seal=first == 0)
    assert names(path / "journal") == list(SEGMENTS)
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def seal_stopped_after(folder: Path, record: RunRecord, step: int) -> Iterator[int]:
    """The steps of a seal, one at a time; how many there are once it is exhausted."""
    intent = write_temporaries(folder, record, SEGMENTS)
    yield 1
    write_intent(folder, FileId(0, 4), intent)
    yield 2
    for at, (source, to) in enumerate(intent.renames):
        (folder / source).rename(folder / to)
        yield 3 + at
    for at, name in enumerate(SEGMENTS):
        (folder / "journal" / name).unlink()
        yield 3 + len(intent.renames) + at
    (folder / "journal" / "w0-000004.intent").unlink()
    yield step


STEPS = range(9)  # 0: not begun; 1 temporaries; 2 intent; 3-5 renames; 6-8 segments


def crashed(unsealed: Path, copy: Path, record: RunRecord, step: int) -> Path:
    shutil.copytree(unsealed, copy)
    steps = seal_stopped_after(copy, record, step)
    for _ in range(step):
        next(steps)
    return copy


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_sealed(path: Path, query: Query) -> None:
    assert names(path / "journal") == []
    assert not [p for p in path.rglob("*") if p.name.startswith(".")]
    rows = query("select row from read_parquet(?) order by row", path)
    assert rows == [(row,) for row in range(ROWS)]
    calls = query("select row from read_parquet(?) order by row", path, "tool_calls")
    assert calls == [(row,) for row in range(ROWS) if row % 4]


@pytest.mark.parametrize("step", STEPS)
def test_readers_see_each_row_once_after_a_crash_at_any_step(
    unsealed: Path, tmp_path: Path, record: Record, step: int
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), step)
    before = tree(path)
    totals = read_totals(path)
    assert (totals.rows, totals.ok, totals.tool_calls) == (ROWS, 9, 9)
    for row in range(ROWS):
        (found,) = find_row(path, f"id-{row}")
        assert len(found["tool_calls"]) == bool(row % 4)
    committed = ROWS if step > 5 else 3
    assert responses(path).count_rows() == committed
    assert tool_calls(path).count_rows() == (9 if committed == ROWS else 2)
    assert tree(path) == before


@pytest.mark.parametrize("step", STEPS)
def test_the_next_owner_finishes_or_rolls_back(
    unsealed: Path, tmp_path: Path, record: Record, query: Query, step: int
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), step)
    run_dir = RunDir.open(path)
    assert sorted(run_dir.complete_rows().rows) == list(range(ROWS))
    assert names(path / "journal") == ([] if step >= 2 else list(SEGMENTS))
    run_dir.close(seal=True)
    assert_sealed(path, query)
    assert run_dir.warnings == ()


@pytest.mark.parametrize("step", STEPS[2:])
def test_a_damaged_intent_is_read_off_the_names(
    unsealed: Path, tmp_path: Path, record: Record, query: Query, step: int
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), step)
    intent = path / "journal" / "w0-000004.intent"
    if step < 6:
        whole = read_intent(path, intent.name)
        intent.write_bytes(b"?" * 40)
        damaged = read_intent(path, intent.name)
        assert damaged.segments == whole.segments
        assert sorted(damaged.renames) == sorted(whole.renames)
    else:
        intent.write_bytes(b"")
    RunDir.open(path).close(seal=True)
    assert_sealed(path, query)


def test_a_seal_whose_part_vanished_starts_over_from_the_segments(
    unsealed: Path, tmp_path: Path, record: Record, query: Query
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), 3)
    (path / "responses" / ".w0-000004.parquet.tmp").unlink()
    RunDir.open(path).close(seal=True)
    assert_sealed(path, query)


def test_a_part_that_vanished_after_its_segment_is_named(
    unsealed: Path, tmp_path: Path, record: Record
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), 7)
    (path / "responses" / "w0-000004-not_ok.parquet").unlink()
    with pytest.raises(StoreError, match=r"w0-000004-not_ok\.parquet: this part is missing"):
        RunDir.open(path)


def test_tool_calls_are_renamed_first(unsealed: Path, tmp_path: Path, record: Record) -> None:
    shutil.copytree(unsealed, tmp_path / "run")
    intent = write_temporaries(tmp_path / "run", record(), SEGMENTS)
    assert [to for _, to in intent.renames] == [
        "tool_calls/w0-000004.parquet",
        "responses/w0-000004.parquet",
        "responses/w0-000004-not_ok.parquet",
    ]
    assert rename_parts(tmp_path / "run", intent)


def test_temporaries_match_no_glob(
    unsealed: Path, tmp_path: Path, record: Record, query: Query
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), 2)
    assert {p.name for p in path.glob("*/*.parquet")} == {
        "w0-000001.parquet",
        "w0-000001-not_ok.parquet",
    }
    assert query("select count(*) from read_parquet(?)", path) == [(3,)]


def test_damage_that_nobody_was_warned_of_stops_the_seal(
    unsealed: Path, tmp_path: Path, record: Record
) -> None:
    path = tmp_path / "run"
    shutil.copytree(unsealed, path)
    segment = path / "journal" / SEGMENTS[0]
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    with pytest.raises(StoreError, match=r"w0-000002\.log: damaged at offset \d+ since"):
        seal(path, record(), SEGMENTS)
    assert names(path / "journal") == list(SEGMENTS)
    assert not list(path.rglob("*.tmp"))
    run_dir = RunDir.open(path)  # which sets the bytes aside and says so
    assert len(run_dir.warnings) == 1
    run_dir.close(seal=True)
    assert read_totals(path).rows == ROWS - 1


@pytest.mark.parametrize("step", [*STEPS, "done"])
def test_a_seal_that_another_process_began_is_finished_by_this_one(
    tmp_path: Path, unsealed: Path, record: Record, query: Query, step: int | str
) -> None:
    path = tmp_path / "run"
    if isinstance(step, int):
        crashed(unsealed, path, record(), step)
    else:
        shutil.copytree(unsealed, path)
        seal(path, record(), SEGMENTS)
    finish_or_seal(path, record(), SEGMENTS)
    assert names(path / "journal") == []
    assert not list(path.rglob("*.tmp"))
    rows = query("select row from read_parquet(?) order by row", path)
    assert rows == [(row,) for row in range(ROWS)]


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
