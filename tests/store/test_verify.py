"""What is wrong with a run's files is found and named; what is right is not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.records import Outcome
from batchrun.store.complete_rows import totals_at, write_removed_rows
from batchrun.store.parts import count_rows
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir
from batchrun.store.verify import Proof, verify

Make = Callable[..., Outcome]
Begin = Callable[..., RunDir]

PART = "w0-000001.parquet"


@pytest.fixture(scope="module")
def ended(
    tmp_path_factory: pytest.TempPathFactory, begin: Begin, answered: Make, failed: Make
) -> Path:
    """A run of ten rows that ended well, with tool calls and failures."""
    path = tmp_path_factory.mktemp("verify") / "run"
    run_dir = begin(path, part_rows=6)
    for row in range(10):
        run_dir.store(failed(row) if row % 4 == 0 else answered(row, calls=row % 3))
    run_dir.finish()
    assert run_dir.record is not None
    run_dir.save(replace(run_dir.record, state="finished", totals=read_totals(path)))
    run_dir.close()
    return path


@pytest.fixture
def copy(ended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ended, tmp_path / "run"))


def the_problem(path: Path) -> str:
    proof = verify(path)
    assert len(proof.problems) == 1, proof.problems
    return proof.problems[0]


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_a_run_that_ended_is_proved(ended: Path) -> None:
    assert verify(ended) == Proof(
        state="finished",
        problems=[],
        notes=[],
        rows_in_parts=10,
        parts=6,
        tool_calls=6,
        totals_agree=True,
    )


def test_rows_in_the_journal_count(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run", part_rows=4)
    for row in range(6):
        run_dir.store(answered(row, calls=1))
    run_dir.close()
    proof = verify(tmp_path / "run")
    assert (proof.rows_in_parts, proof.rows_in_journal, proof.tool_calls) == (4, 2, 6)
    assert proof.problems == []
    assert not proof.totals_agree  # what nobody has added up cannot be compared


def test_a_run_that_goes_on_is_called_live(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    proof = verify(tmp_path / "run")
    assert (proof.state, proof.problems, proof.rows_in_journal) == ("live", [], 1)
    run_dir.close(seal=True)


def test_no_run_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not a run directory"):
        verify(tmp_path)


def test_a_run_file_that_cannot_be_read_is_a_problem(copy: Path) -> None:
    (copy / "run.json").write_text("{")
    assert "run.json: " in the_problem(copy)


def test_a_run_of_a_newer_batchrun_is_refused(copy: Path) -> None:
    (copy / "run.json").write_text('{"schema_version": 99}')
    with pytest.raises(JobError, match="written by a newer batchrun"):
        verify(copy)


def test_a_row_that_is_stored_twice_is_named(copy: Path) -> None:
    source, target = copy / "responses" / PART, copy / "responses" / "w0-000009.parquet"
    pq.write_table(pq.read_table(source).slice(1, 1), target)
    said = the_problem(copy)
    assert said.startswith("responses/w0-000009.parquet, row 0 of it: row 2 (id-2): it is stored 2")
    assert f"first in responses/{PART} (row 1 of it)" in said


def test_only_the_first_ten_are_named(copy: Path) -> None:
    for table in ("responses", "tool_calls"):
        for part in sorted((copy / table).iterdir()):
            number = int(part.name[3:9]) + 10
            shutil.copy(part, part.with_name(f"w0-{number:06}{part.name[9:]}"))
    problems = verify(copy).problems
    assert sum("it is stored 2 times" in problem for problem in problems) == 10
    assert sum("tool calls of this row have the position" in one for one in problems) == 6


def test_a_missing_row_shows_in_the_totals(copy: Path) -> None:
    rewrite(copy / "responses" / PART, lambda table: table.filter(pc.field("row") != 3))
    (problem,) = [said for said in verify(copy).problems if "totals.rows" in said]
    assert problem == "run.json: totals.rows is 10, the tables add up to 9"


def test_a_missing_tool_call_is_named(copy: Path) -> None:
    rewrite(copy / "tool_calls" / PART, lambda table: table.slice(1))
    said = the_problem(copy)
    assert said.endswith("row 1 (id-1): tool_call_count is 1, and tool_calls has 0")


def test_tool_calls_of_no_row_are_named(copy: Path) -> None:
    rewrite(copy / "responses" / PART, lambda table: table.filter(pc.field("row") != 5))
    problems = verify(copy).problems
    assert len(problems) == 2
    assert all("row 5 (id-5): this tool call belongs to no row" in said for said in problems)


def test_a_tool_call_with_another_row_number_is_named(copy: Path) -> None:
    def moved(table: pa.Table) -> pa.Table:
        return table.set_column(0, "row", pc.add(table["row"], 50))

    rewrite(copy / "tool_calls" / PART, moved)
    assert "row 51 (id-1): `row` or response_id of this tool call" in verify(copy).problems[0]


def test_ok_that_is_not_so_is_named(copy: Path) -> None:
    part = copy / "responses" / "w0-000001-not_ok.parquet"

    def all_ok(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("ok")
        return table.set_column(at, "ok", pa.array([True] * table.num_rows))

    rewrite(part, all_ok)
    assert "row 0 (id-0): `ok` does not agree with status" in verify(copy).problems[0]


def test_a_flipped_bit_in_a_part_is_found(copy: Path) -> None:
    part = copy / "responses" / PART
    group = pq.read_metadata(part).row_group(0)
    at = [group.column(i).path_in_schema for i in range(group.num_columns)].index("output_text")
    pages = group.column(at)
    data = bytearray(part.read_bytes())
    data[
        (pages.dictionary_page_offset or pages.data_page_offset) + pages.total_compressed_size - 1
    ] ^= 1
    part.write_bytes(data)
    problems = verify(copy).problems
    assert f"responses/{PART}: " in problems[0]
    assert "damaged" in problems[0]


def test_a_part_cut_short_is_found(copy: Path) -> None:
    part = copy / "responses" / PART
    part.write_bytes(part.read_bytes()[:-20])
    assert verify(copy).problems[0].startswith(f"responses/{PART}: cannot be read")


def test_other_columns_than_pinned_are_found(copy: Path) -> None:
    rewrite(copy / "responses" / PART, lambda table: table.drop_columns(["usage"]))
    assert f"responses/{PART}: its columns are not those" in verify(copy).problems[0]


def test_a_part_of_another_schema_version_is_found(copy: Path) -> None:
    rewrite(copy / "responses" / PART, lambda table: table.replace_schema_metadata({}))
    assert f"responses/{PART}: its schema version is not 2" in verify(copy).problems[0]


def test_damage_in_the_journal_is_named_by_offset(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    run_dir = begin(tmp_path / "run")
    for row in range(3):
        run_dir.store(answered(row))
    run_dir.close()
    segment = tmp_path / "run" / "journal" / "w0-000001.log"
    data = bytearray(segment.read_bytes())
    data[-5] ^= 1
    segment.write_bytes(data)
    assert "w0-000001.log: " in the_problem(tmp_path / "run")
    assert "damaged bytes at offset" in the_problem(tmp_path / "run")
    RunDir.open(tmp_path / "run").close(seal=True)  # which sets them aside and says so
    proof = verify(tmp_path / "run")
    assert proof.problems == []
    assert any("damaged bytes set aside" in note for note in proof.notes)


def test_a_torn_end_is_no_problem(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run")
    for row in range(3):
        run_dir.store(answered(row))
    run_dir.close()
    segment = tmp_path / "run" / "journal" / "w0-000001.log"
    segment.write_bytes(segment.read_bytes()[:-5])
    proof = verify(tmp_path / "run")
    assert (proof.problems, proof.rows_in_journal) == ([], 2)
    assert "was not written whole; the next command drops it" in proof.notes[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("journal/w0-000007.intent", "left when the writing of parts was interrupted"),
        ("journal/w0-000007.log", "its rows should be in parts by now"),
        ("responses/.w0-000007.parquet.tmp", "left by a write that was interrupted"),
        (".run.json.tmp", "left by a write that was interrupted"),
        ("tool_calls/a copy.parquet", "not a part of this run, but read with its tables"),
    ],
)
def test_leftovers_are_named(copy: Path, name: str, said: str) -> None:
    (copy / name).write_bytes(b"")
    assert the_problem(copy).startswith(f"{name}: {said}")


def test_after_a_kill_leftovers_are_noted_and_no_problem(copy: Path) -> None:
    run_dir = RunDir.open(copy)
    assert run_dir.record is not None
    run_dir.save(replace(run_dir.record, state="running"))
    run_dir.close()
    (copy / "responses" / ".w0-000007.parquet.tmp").write_bytes(b"")
    proof = verify(copy)
    assert proof.problems == []
    assert len(proof.notes) == 1


def test_rows_removed_from_the_input_are_not_in_the_totals(copy: Path) -> None:
    run_dir = RunDir.open(copy)
    assert run_dir.record is not None
    settled = run_dir.complete_rows()
    marks = bytearray(row in (2, 4) for row in settled.rows)
    removed = totals_at(copy, marks)
    assert (removed.rows, removed.ok, removed.statuses) == (2, 1, {"completed": 1, "failed": 1})
    left = settled.totals.without(removed)
    write_removed_rows(copy, marks)
    run_dir.save(replace(run_dir.record, rows=8, totals=left, gone=removed))
    run_dir.close()
    assert verify(copy).problems == []
    assert verify(copy).rows_in_parts == 10
    assert read_totals(copy) == left
    (copy / "gone.parquet").unlink()
    said = "gone.parquet: names 0 rows that were removed from the input, and run.json counts 2"
    assert the_problem(copy) == said


@pytest.mark.parametrize("table", ["responses", "tool_calls"])
def test_a_part_that_was_deleted_is_named(copy: Path, table: str) -> None:
    run_dir = RunDir.open(copy)
    assert run_dir.record is not None
    parts = count_rows(copy)
    run_dir.save(replace(run_dir.record, parts=parts))
    run_dir.close()
    (copy / table / PART).unlink()
    said = f"{table}/{PART}: missing; it held {parts[f'{table}/{PART}']} rows. Restore it"
    assert said in verify(copy).problems


def test_after_a_kill_a_part_is_missed_where_rows_are(copy: Path) -> None:
    run_dir = RunDir.open(copy)
    assert run_dir.record is not None
    parts = {**count_rows(copy), "responses/w0-000009.parquet": 3}
    run_dir.save(replace(run_dir.record, state="running", parts=parts))
    run_dir.close()
    assert verify(copy).problems == []  # its rows were sent again and are in others
    (copy / "responses" / PART).unlink()
    assert any(f"responses/{PART}: missing" in said for said in verify(copy).problems)


def test_nothing_is_changed(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    verify(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
