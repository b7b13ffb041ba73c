"""Rows sent again: at every step of the seal a reader finds each row once."""

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.records import Column, Layout, Outcome, Resend, RunRecord
from batchrun.store.complete_rows import EarlierRows, Span, totals_at
from batchrun.store.files import FileId
from batchrun.store.reading import find_row, read_totals, responses, tool_calls
from batchrun.store.run_dir import RunDir
from batchrun.store.sealing import write_temporaries
from batchrun.store.snapshot import read_intent, snapshot, write_intent
from batchrun.store.verify import verify

Make = Callable[..., Outcome]
Record = Callable[..., RunRecord]
Begin = Callable[..., RunDir]
MakeColumn = Callable[..., Column]
Query = Callable[..., list[tuple[Any, ...]]]

ROWS = 12
FAILED = (0, 3, 6, 9, 10, 11)  # the last part holds nothing else that is not ok
REFUSED = 4  # with tool calls
AGAIN = (0, 3, REFUSED, 9, 10, 11)
SEGMENTS = ("w0-000003.log", "w0-000004.log")
STEPS = range(11)
COMMITTED = 6  # the first segment is deleted: see `seal_stopped_after`


def again(outcome: Outcome) -> Outcome:
    """An outcome of a row sent again, as the runner keeps it."""
    return replace(outcome, attempts=outcome.attempts * 2, replaces=True)


@pytest.fixture(scope="module")
def unsealed(
    tmp_path_factory: pytest.TempPathFactory, begin: Begin, answered: Make, failed: Make
) -> Path:
    """Twelve rows in two parts and their others; six of them once more in two segments."""
    path = tmp_path_factory.mktemp("resend") / "run"
    for first, last in ((0, 9), (9, ROWS)):
        run_dir = begin(path)
        for row in range(first, last):
            refusal = "no" if row == REFUSED else None
            run_dir.store(failed(row) if row in FAILED else answered(row, calls=2, refusal=refusal))
        run_dir.close(seal=True)
    for rows in (AGAIN[:3], AGAIN[3:]):
        run_dir = RunDir.open(path)
        run_dir.start(part_rows=1_000, part_bytes=1 << 26, replaces=True)
        for row in rows:
            run_dir.store(again(answered(row, calls=1, text="new")))
        run_dir.close(seal=False)
    assert names(path / "journal") == list(SEGMENTS)
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def seal_stopped_after(folder: Path, record: RunRecord) -> Iterator[None]:
    """The steps of a seal, one at a time."""
    intent = write_temporaries(folder, record, SEGMENTS)
    yield
    write_intent(folder, FileId(0, 4), intent)
    yield
    assert len(intent.renames) == 2
    for source, to in intent.renames:
        (folder / source).rename(folder / to)
        yield
    for name in SEGMENTS:
        yield
        (folder / "journal" / name).unlink()
    yield
    assert [new.to for new in intent.rewrites] == [
        "responses/w0-000001-not_ok.parquet",
        "responses/w0-000002-not_ok.parquet",
        "tool_calls/w0-000001.parquet",
    ]
    for new in intent.rewrites:
        (folder / new.source).rename(folder / new.to)
        yield
        if new.rows == 0:
            (folder / new.to).unlink()
    yield


def crashed(unsealed: Path, copy: Path, record: RunRecord, steps: int) -> Path:
    shutil.copytree(unsealed, copy)
    done = seal_stopped_after(copy, record)
    for _ in range(steps):
        next(done)
    return copy


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_each_row_once(path: Path, *, in_parquet: bool) -> None:
    totals = read_totals(path)
    assert (totals.rows, totals.ok) == (ROWS, ROWS - 1)
    assert totals.statuses == {"completed": ROWS - 1, "failed": 1}
    assert totals.attempts == ROWS + len(AGAIN)
    assert totals.tool_calls == 2 * 5 + len(AGAIN)
    for row in range(ROWS):
        (found,) = find_row(path, f"id-{row}")
        assert (found["output_text"] == "new") is (row in AGAIN)
        assert len(found["tool_calls"]) == (found["tool_call_count"] or 0)
    rows = responses(path).to_table(columns=["row", "output_text"]).to_pylist()
    assert sorted(one["row"] for one in rows) == list(range(ROWS))
    assert {one["row"] for one in rows if one["output_text"] == "new"} == (
        set(AGAIN) if in_parquet else set()
    )
    calls = Counter(tool_calls(path).to_table(columns=["row"])["row"].to_pylist())
    assert calls[REFUSED] == (1 if in_parquet else 2)


@pytest.mark.parametrize("steps", STEPS)
def test_readers_see_each_row_once_after_a_crash_at_any_step(
    unsealed: Path, tmp_path: Path, record: Record, steps: int
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), steps)
    before = tree(path)
    assert_each_row_once(path, in_parquet=steps > COMMITTED - 1)
    proof = verify(path)
    assert proof.problems == []
    assert proof.rows_in_parts + proof.rows_in_journal == ROWS
    assert tree(path) == before


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_next_owner_finishes_or_rolls_back(
    unsealed: Path, tmp_path: Path, record: Record, query: Query, steps: int, is_damaged: bool
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), steps)
    if is_damaged and steps >= 2:
        intent = path / "journal" / "w0-000004.intent"
        intent.write_bytes(b"?" * 40)
        assert len(read_intent(path, intent.name).rewrites) <= 3
    run_dir = RunDir.open(path)
    assert sorted(run_dir.complete_rows().rows) == list(range(ROWS))
    assert names(path / "journal") == ([] if steps >= 2 else list(SEGMENTS))
    run_dir.close(seal=True)
    assert_each_row_once(path, in_parquet=True)
    assert names(path / "journal") == []
    assert not [p for p in path.rglob("*") if p.name.startswith(".")]
    rows = query("select row from read_parquet(?) order by row", path)
    assert rows == [(row,) for row in range(ROWS)]
    assert run_dir.warnings == ()
    assert verify(path).problems == []


def test_a_part_without_rows_is_deleted(unsealed: Path, tmp_path: Path, record: Record) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), 2)
    RunDir.open(path).close(seal=True)
    assert names(path / "responses") == [
        "w0-000001-not_ok.parquet",  # row 6
        "w0-000001.parquet",
        "w0-000004.parquet",
    ]


def test_a_new_version_that_vanished_before_the_commit_is_made_again(
    unsealed: Path, tmp_path: Path, record: Record
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), 3)
    (path / "responses" / ".w0-000001-not_ok.parquet.tmp").unlink()
    RunDir.open(path).close(seal=True)
    assert_each_row_once(path, in_parquet=True)


def test_a_new_version_that_vanished_after_the_commit_is_named(
    unsealed: Path, tmp_path: Path, record: Record
) -> None:
    path = crashed(unsealed, tmp_path / "run", record(), COMMITTED)
    (path / "responses" / ".w0-000001-not_ok.parquet.tmp").unlink()
    with pytest.raises(StoreError, match=r"w0-000001-not_ok\.parquet: this part is missing"):
        RunDir.open(path)


def test_a_disk_that_fails_while_parts_are_rewritten_changes_nothing(
    unsealed: Path, tmp_path: Path, record: Record
) -> None:
    path = tmp_path / "run"
    shutil.copytree(unsealed, path)
    part = path / "responses" / "w0-000002-not_ok.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])  # which cannot be read
    with pytest.raises((StoreError, OSError, pa.ArrowException)):
        write_temporaries(path, record(), SEGMENTS)
    assert not list(path.rglob("*.tmp"))
    part.write_bytes(whole)
    RunDir.open(path).close(seal=True)
    assert_each_row_once(path, in_parquet=True)


def test_rewritten_parts_hold_the_same_values_and_types(
    tmp_path: Path, record: Record, answered: Make, failed: Make, column: MakeColumn
) -> None:
    kinds: dict[str, tuple[pa.DataType, pa.DataType, Any]] = {
        "at": (pa.timestamp("ns"), pa.int64(), 1_700_000_000_000_000_001),
        "price": (pa.decimal128(12, 3), pa.string(), "9.125"),
        "tags": (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.int64()), [("k", 1)]),
        "nested": (
            pa.list_(pa.struct({"x": pa.float64(), "y": pa.list_(pa.string())})),
            pa.list_(pa.struct({"x": pa.float64(), "y": pa.list_(pa.string())})),
            [{"x": 0.5, "y": ["a", None]}],
        ),
    }
    layout = Layout(None, tuple(column(name, *kind[:2]) for name, kind in kinds.items()))
    values = tuple(value for _, _, value in kinds.values())
    run_dir = RunDir.open(tmp_path / "run")
    run_dir.save(record(layout))
    run_dir.start(part_rows=100, part_bytes=1 << 20)
    for row in range(6):
        run_dir.store(failed(row, values))
    run_dir.finish()
    part = tmp_path / "run" / "responses" / "w0-000001-not_ok.parquet"
    before = pq.read_table(part)
    run_dir.start(part_rows=100, part_bytes=1 << 20, replaces=True)
    run_dir.store(again(answered(2, values)))
    run_dir.close(seal=True)
    after = pq.read_table(part)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.equals(pa.concat_tables([before.slice(0, 2), before.slice(3)]))


def test_older_outcomes_are_read_while_seals_replace_their_parts(
    tmp_path: Path, begin: Begin, answered: Make, failed: Make
) -> None:
    path = tmp_path / "run"
    run_dir = begin(path, part_rows=10)
    for row in range(40):
        run_dir.store(failed(row))
    run_dir.finish()
    settled = run_dir.complete_rows(Resend(failed=True))
    assert settled.again == bytearray(b"\1" * 40)
    spans = [Span(part, end - 10, end - 1) for part, end in settled.parts]
    rows = EarlierRows(spans)
    run_dir.start(part_rows=10, part_bytes=1 << 20, replaces=True)
    for first in range(0, 40, 4):
        found = rows.find({(f"id-{row}", 0, None): row for row in range(first, first + 4)})
        assert sorted(found) == sorted((f"id-{row}", 0, None) for row in range(first, first + 4))
        for key, earlier in found.items():
            row = int(key[0][3:])
            assert earlier.attempts == failed(row).attempts
            assert earlier.totals.statuses == {"failed": 1}
            assert earlier.totals.error_kinds == {"bad_request": 1}
            run_dir.store(again(answered(row)))
        time.sleep(0.02)
    run_dir.close(seal=True)
    assert read_totals(path).ok == 40
    with pytest.raises(
        StoreError, match=r"row 3 \(id-3\): its older outcome is missing from the tables"
    ):
        EarlierRows(spans[1:]).find({("id-3", 0, None): 3})


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [
        (set(), {0, 1, 2}),
        ({"bad_request"}, {0, 1, 2}),
        ({"timeout"}, set()),
        ({"refusal"}, {4}),
        ({"truncated"}, {5, 6}),
        ({"incomplete"}, {6}),
        ({"bad_request", "refusal"}, {0, 1, 2, 4}),
    ],
)
@pytest.mark.parametrize("seal", [True, False])
def test_the_rows_that_failed_are_selected_by_kind(
    tmp_path: Path,
    begin: Begin,
    answered: Make,
    failed: Make,
    kinds: set[str],
    rows: set[int],
    seal: bool,
) -> None:
    run_dir = begin(tmp_path / "run")
    for row, status in enumerate(("failed", "no_answer", "cancelled", "invalid")):
        run_dir.store(failed(row, status=status))
    run_dir.store(answered(4, refusal="no"))
    run_dir.store(answered(5, truncated=True))
    run_dir.store(answered(6, status="incomplete", truncated=True))
    run_dir.store(answered(7))
    if seal:
        run_dir.finish()
    settled = run_dir.complete_rows(Resend(failed=True, kinds=frozenset(kinds)))
    marked = zip(settled.rows, settled.again, strict=True)
    assert {row for row, is_again in marked if is_again} == rows
    marks = bytearray(row in rows for row in settled.rows)
    assert totals_at(run_dir.path, marks).rows == len(rows)
    run_dir.close()


# Sends again what failed, row by row, in an order of its own; half of it fails once more.
RESEND = """
import random, sys
from pathlib import Path
from msgspec.structs import replace
from batchrun.records import *
from batchrun.store.complete_rows import EarlierRows, Span
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
dice = random.Random(sys.argv[2])
assert run_dir.warnings == ()
run_dir.finish()
settled = run_dir.complete_rows(Resend(failed=True))
assert sorted(settled.rows) == list(range(int(sys.argv[3]))), "lost or doubled"
rows = [row for row, again in zip(settled.rows, settled.again) if again]
dice.shuffle(rows)
earlier = EarlierRows([Span(part, 0, 1 << 40) for part, _ in settled.parts])
run_dir.start(part_rows=25, part_bytes=1 << 20, replaces=True)
print("from", len(rows), flush=True)
for row in rows:
    (before,) = earlier.find({(f"id-{row}", 0, None): row}).values()
    attempts = (*before.attempts, Attempt(0, 1.0, "first"))
    call = ToolCall(0, "function_call", "c", "n", "{}", True, None, "{}")
    request = Request(row, f"id-{row}", "s", b"{}", f"{row:016x}", "m", None, ())
    result = Failure("bad_request", "no")
    if dice.random() < 0.5:
        result = Response(None, "completed", "m", None, "[]", "t" * 300, None, None, (),
                          (call,), Usage(), None, False, None)
    run_dir.store(Outcome(request, result, attempts, "e", "plain", replaces=True))
    print(row, len(attempts), flush=True)
run_dir.finish()
run_dir.save(replace(run_dir.record, state="running"))
run_dir.close()
"""


def assert_whole(path: Path, rows: int, attempts: dict[int, int]) -> None:
    """Each row once, with all its attempts, whatever the moment."""
    found: dict[int, int] = {}
    with snapshot(path) as now:
        for part in now.responses:
            table = duckdb.read_parquet(str(part)).project("row, custom_id, len(attempts)")
            for row, custom_id, count in table.fetchall():
                if (custom_id, 0, None) not in now.replaced:
                    assert row not in found
                    found[row] = count
        for outcome in now.outcomes():
            assert outcome.request.row not in found
            found[outcome.request.row] = len(outcome.attempts)
    assert sorted(found) == list(range(rows))
    assert all(found[row] >= count for row, count in attempts.items())


def test_kills_while_rows_are_sent_again_lose_and_double_nothing(
    tmp_path: Path, begin: Begin, failed: Make, query: Query
) -> None:
    path, rows, attempts = tmp_path / "run", 300, dict[int, int]()
    run_dir = begin(path, part_rows=60)
    for row in range(rows):
        run_dir.store(failed(row))
    run_dir.close(seal=True)
    dice = random.Random(4)
    for _ in range(8):
        script = (sys.executable, "-c", RESEND, str(path), str(dice.random()), str(rows))
        with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline().startswith("from")
            lines = [child.stdout.readline() for _ in range(dice.randrange(5, 150))]
            time.sleep(dice.random() * 0.02)
            child.kill()
            lines += child.stdout
        assert child.returncode in (0, -9)
        for line in lines:
            if line.endswith("\n"):
                row, count = map(int, line.split())
                attempts[row] = count
        assert_whole(path, rows, attempts)
        assert verify(path).problems == []
    RunDir.open(path).close(seal=True)
    assert_whole(path, rows, attempts)
    assert 100 < read_totals(path).ok < rows
    whole = [(rows, rows)]
    assert query("select count(*), count(distinct row) from read_parquet(?)", path) == whole
    counted = query("select row, coalesce(tool_call_count, 0) from read_parquet(?)", path)
    calls = query("select row from read_parquet(?) order by row", path, "tool_calls")
    assert sorted(row for row, count in counted if count) == [row for (row,) in calls]
    assert not [p for p in path.rglob("*") if p.name.startswith(".")]
