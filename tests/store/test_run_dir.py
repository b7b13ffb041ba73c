import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from batchrun.errors import JobError, StoreError
from batchrun.records import Column, Layout, Outcome, RunRecord, Totals
from batchrun.store.complete_rows import rows_at
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import SCHEMA_VERSION, RunDir
from tests.waiting import HANG_S

Make = Callable[..., Outcome]
Record = Callable[..., RunRecord]
Begin = Callable[..., RunDir]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path / "runs" / "new")
    assert run_dir.record is None
    assert stat.S_IMODE(run_dir.path.stat().st_mode) == 0o700
    assert len(run_dir.complete_rows().rows) == 0
    run_dir.close(seal=True)


def test_an_empty_folder_becomes_a_run_directory(tmp_path: Path) -> None:
    RunDir.open(tmp_path).close(seal=True)
    RunDir.open(tmp_path).close(seal=True)  # now it holds a lock and nothing else


def test_some_other_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        JobError, match=r'not a run directory and not empty \(it holds "thesis.tex"\)'
    ):
        RunDir.open(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(JobError, match="is a file; give a directory"):
        RunDir.open(tmp_path / "out")


def test_what_was_saved_is_found(tmp_path: Path, record: Record) -> None:
    run_dir = RunDir.open(tmp_path / "run")
    saved = record(state="stopped", exit_code=3, message="é", totals=Totals(rows=3))
    run_dir.save(saved)
    assert run_dir.record == saved
    run_dir.close(seal=True)
    assert RunDir.open(tmp_path / "run").record == saved


def test_a_path_that_is_no_utf8_can_be_saved(tmp_path: Path, record: Record) -> None:
    run_dir = RunDir.open(tmp_path / "run")
    run_dir.save(record(source=os.fsdecode(b"caf\xe9.jsonl")))
    run_dir.close(seal=True)
    found = RunDir.open(tmp_path / "run").record
    assert found is not None
    assert found.source == "caf\ufffd.jsonl"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema_version":1}', b"\xff", b"\0" * 90])
def test_a_damaged_run_json_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"run\.json: damaged"):
        RunDir.open(tmp_path)
    (tmp_path / "run.json").unlink()
    RunDir.open(tmp_path).close(seal=False)  # the lock was given back


def test_a_newer_schema_is_refused(tmp_path: Path, record: Record) -> None:
    text = msgspec.json.encode(record(schema_version=SCHEMA_VERSION + 1))
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(JobError, match="written by a newer batchrun"):
        RunDir.open(tmp_path)


def test_outcomes_without_run_json_are_not_overwritten(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    for seal in (False, True):
        path = tmp_path / str(seal)
        run_dir = begin(path)
        run_dir.store(answered(0))
        run_dir.close(seal=seal)
        (path / "run.json").unlink()
        with pytest.raises(StoreError, match=r"run\.json is missing, but there are stored rows"):
            RunDir.open(path)


def test_all_that_was_stored_is_complete(
    tmp_path: Path, begin: Begin, answered: Make, failed: Make
) -> None:
    run_dir = begin(tmp_path / "run", part_rows=4)
    outcomes = [failed(row) if row % 3 == 0 else answered(row, calls=1) for row in range(10)]
    for outcome in outcomes:
        run_dir.store(outcome)
    run_dir.close(seal=True)
    assert names(tmp_path / "run" / "journal") == []
    assert names(tmp_path / "run" / "responses") == [
        *("w0-000001-not_ok.parquet", "w0-000001.parquet"),
        *("w0-000002-not_ok.parquet", "w0-000002.parquet"),
        *("w0-000003-not_ok.parquet", "w0-000003.parquet"),
    ]
    assert names(tmp_path / "run" / "tool_calls") == [
        "w0-000001.parquet",
        "w0-000002.parquet",
        "w0-000003.parquet",
    ]
    settled = RunDir.open(tmp_path / "run").complete_rows()
    found = sorted(zip(settled.rows, settled.ids, settled.hashes, strict=True))
    assert found == [
        (o.request.row, hash(o.request.custom_id), int(o.request.hash, 16)) for o in outcomes
    ]
    assert settled.totals == Totals(
        rows=10,
        ok=6,
        statuses={"completed": 6, "failed": 4},
        error_kinds={"bad_request": 4},
        tool_calls=6,
        attempts=10,
        attempt_kinds={"first": 10},
        unknown_attempts=10,
        input_tokens=sum(10 + row for row in range(10) if row % 3),
        output_tokens=30,
        total_tokens=sum(15 + row for row in range(10) if row % 3),
        unpriced=10,
        unpriced_model="m",
        unpriced_models=("m",),
    )


def test_a_part_is_sealed_when_it_has_bytes_enough(
    tmp_path: Path, record: Record, answered: Make
) -> None:
    run_dir = RunDir.open(tmp_path / "run")
    run_dir.save(record())
    run_dir.start(part_rows=1_000, part_bytes=100_000)
    for row in range(12):
        run_dir.store(answered(row, text="x" * 20_000))
    run_dir.close(seal=False)
    assert names(tmp_path / "run" / "responses") == ["w0-000001.parquet", "w0-000002.parquet"]
    assert names(tmp_path / "run" / "journal") == ["w0-000003.log"]
    assert read_totals(tmp_path / "run").rows == 12


def test_leftover_segments_are_sealed_with_the_next_one(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    path = tmp_path / "run"
    for row in range(3):
        run_dir = begin(path)
        assert list(run_dir.complete_rows().rows) == list(range(row))
        run_dir.store(answered(row))
        run_dir.close(seal=False)
    assert names(path / "journal") == [f"w0-00000{n}.log" for n in (1, 2, 3)]
    run_dir = begin(path, part_rows=5)
    for row in range(3, 8):
        run_dir.store(answered(row))
    run_dir.store(answered(8))
    run_dir.close(seal=False)
    assert names(path / "responses") == ["w0-000004.parquet"]
    assert names(path / "journal") == ["w0-000005.log"]
    RunDir.open(path).close(seal=True)  # sealed without a start
    assert names(path / "responses") == ["w0-000004.parquet", "w0-000005.parquet"]
    assert names(path / "journal") == []
    assert read_totals(path).rows == 9


def test_a_run_that_stored_nothing_leaves_no_segment(tmp_path: Path, begin: Begin) -> None:
    for seal in (True, False):
        begin(tmp_path / "run").close(seal=seal)
        assert names(tmp_path / "run" / "journal") == []
    assert not (tmp_path / "run" / "responses").exists()


def test_close_may_come_twice(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    run_dir.close(seal=True)
    run_dir.close(seal=True)
    run_dir.close(seal=False)
    again = RunDir.open(tmp_path / "run")
    run_dir.close(seal=True)  # gives back nothing of the new owner's
    with pytest.raises(JobError):
        RunDir.open(tmp_path / "run")
    again.close(seal=False)


def test_ids_of_rows_are_found_in_parts_and_journal(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    run_dir = begin(tmp_path / "run", part_rows=3)
    for row in range(5):
        run_dir.store(answered(row))
    names = {at: row["custom_id"] for at, row in rows_at(run_dir.path, [1, 4, 99]).items()}
    assert names == {1: "id-1", 4: "id-4"}
    run_dir.close(seal=True)


def test_live_json_is_replaced(tmp_path: Path) -> None:
    class Summary(msgspec.Struct):
        done: int

    run_dir = RunDir.open(tmp_path)
    for done in (1, 2):
        run_dir.write_live(Summary(done))
        assert json.loads((tmp_path / "live.json").read_text()) == {"done": done}
    run_dir.close(seal=False)
    assert names(tmp_path) == ["live.json"]


def test_events_are_lines_with_a_time(tmp_path: Path, record: Record) -> None:
    for turn in range(2):
        run_dir = RunDir.open(tmp_path)
        run_dir.save(record())
        run_dir.log_event("started", turn=turn, model="m\n\ud800")
        run_dir.close(seal=False)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["turn"], line["model"]) for line in lines] == [
        ("started", 0, "m\n\ufffd"),
        ("started", 1, "m\n\ufffd"),
    ]
    assert lines[0]["at"].endswith("+00:00")


def test_input_is_made_on_demand(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path)
    assert not (tmp_path / "input").exists()
    assert run_dir.input_dir == tmp_path / "input"
    (run_dir.input_dir / "stdin.jsonl").touch()
    run_dir.close(seal=False)
    assert names(tmp_path) == []  # nothing was saved


def test_what_somebody_else_put_beside_the_input_stays(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path / "run")
    (run_dir.input_dir / "stdin.jsonl").touch()
    (run_dir.input_dir / "notes.txt").touch()
    run_dir.close(seal=False)
    assert names(tmp_path / "run" / "input") == ["notes.txt"]


def test_temporary_files_of_others_stay(tmp_path: Path, record: Record) -> None:
    run_dir = RunDir.open(tmp_path)
    run_dir.save(record())
    run_dir.close()
    for name in (".run.json.tmp", ".notes.tmp"):
        (tmp_path / name).touch()
    RunDir.open(tmp_path).close()
    assert names(tmp_path) == [".notes.tmp", "lock", "run.json"]


def test_a_journal_deleted_while_it_is_written_ends_the_run(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    (tmp_path / "run" / "journal" / "w0-000001.log").unlink()
    give_up_at = time.monotonic() + HANG_S
    with pytest.raises(StoreError, match="deleted while it was written"):
        while time.monotonic() < give_up_at:
            run_dir.store(answered(1))
            time.sleep(0.01)
    run_dir.close(seal=True)


def test_a_seal_that_fails_is_raised_once_and_loses_no_row(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    path = tmp_path / "run"
    run_dir = begin(path)
    run_dir.store(answered(0))
    (path / "responses").write_text("a file where a folder must be")
    with pytest.raises(StoreError, match="cannot write parts"):
        run_dir.close(seal=True)
    run_dir.close(seal=True)
    assert names(path / "journal") == ["w0-000001.log"]
    (path / "responses").unlink()
    RunDir.open(path).close(seal=True)
    assert read_totals(path).rows == 1


def test_an_earlier_seal_that_failed_is_raised_by_store(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    path = tmp_path / "run"
    run_dir = begin(path, part_rows=1)
    (path / "responses").write_text("a file where a folder must be")
    give_up_at = time.monotonic() + HANG_S
    kept = 0
    with pytest.raises(StoreError, match="cannot write parts"):
        while time.monotonic() < give_up_at:
            run_dir.store(answered(kept))
            kept += 1
            time.sleep(0.01)
    run_dir.close(seal=True)  # it was raised: not again
    (path / "responses").unlink()
    assert read_totals(path).rows == kept


def test_carried_values_are_stored(
    tmp_path: Path, begin: Begin, answered: Make, column: Callable[..., Column]
) -> None:
    import pyarrow as pa

    layout = Layout(None, (column("question", pa.string()), column("n", pa.int64())))
    run_dir = begin(tmp_path / "run", layout)
    run_dir.store(answered(0, ("why?", 42)))
    run_dir.close(seal=True)
    from batchrun.store.reading import find_row

    (row,) = find_row(tmp_path / "run", "id-0")
    assert (row["question"], row["n"]) == ("why?", 42)


def test_outcomes_that_come_together_fill_parts_exactly(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    run_dir = begin(tmp_path / "run", part_rows=3)
    outcomes = [answered(row) for row in range(8)]
    taken: list[int] = []
    while sum(taken) < len(outcomes):
        taken.append(run_dir.store_some(outcomes[sum(taken) :]))
    run_dir.close(seal=True)
    assert taken == [3, 3, 2]
    parts = sorted((tmp_path / "run" / "responses").glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [3, 3, 2]


def test_one_write_is_bounded(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run")
    outcomes = [answered(row, text="x" * 400_000) for row in range(5)]
    assert run_dir.store_some(outcomes) < 5
    run_dir.close()
