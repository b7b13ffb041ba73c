import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import ErrorKind, JobError, StoreError
from batchrun.records import Column, Failure, Layout, Outcome, RunRecord, Totals
from batchrun.store.columns import SCHEMA_VERSION, response_schema, tool_call_schema
from batchrun.store.files import is_locked
from batchrun.store.reading import (
    find_row,
    read_live,
    read_record,
    read_totals,
    responses,
    tool_calls,
)
from batchrun.store.run_dir import RunDir

Make = Callable[..., Outcome]
Begin = Callable[..., RunDir]
MakeColumn = Callable[..., Column]
Record = Callable[..., RunRecord]
Query = Callable[..., list[tuple[Any, ...]]]


def duck_schema(path: Path, table: str) -> list[tuple[Any, ...]]:
    glob = f"{path}/{table}/*.parquet"
    return duckdb.execute("describe select * from read_parquet(?)", [glob]).fetchall()


def polars_schema(path: Path, table: str) -> pl.Schema:
    return pl.scan_parquet(f"{path}/{table}/*.parquet").collect_schema()


def pandas_types(path: Path, table: str) -> dict[str, str]:
    frame = pd.read_parquet(path / table, dtype_backend="pyarrow")
    return {name: str(kind) for name, kind in frame.dtypes.items()}


WEIRD = {
    "text": (pa.string(), pa.string(), "a"),
    "number": (pa.int64(), pa.int64(), 7),
    "at": (pa.timestamp("ns"), pa.int64(), 1_700_000_000_000_000_001),
    "price": (pa.decimal128(12, 3), pa.string(), "9.125"),
    "tags": (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.int64()), [("k", 1)]),
    "nested": (
        pa.list_(pa.struct({"x": pa.float64(), "y": pa.list_(pa.string())})),
        pa.list_(pa.struct({"x": pa.float64(), "y": pa.list_(pa.string())})),
        [{"x": 0.5, "y": ["a", None]}],
    ),
}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    begin: Begin,
    answered: Make,
    failed: Make,
    column: MakeColumn,
) -> dict[str, Path]:
    """Run directories of one layout, whose rows could not differ more."""
    layout = Layout(None, tuple(column(n, kind, s) for n, (kind, s, _) in WEIRD.items()))
    values = tuple(value for _, _, value in WEIRD.values())
    nulls = (None,) * len(WEIRD)
    rows: dict[str, list[list[Outcome]]] = {
        "none failed": [[answered(row, values, calls=row % 3) for row in range(6)]],
        "all failed": [[failed(row, nulls) for row in range(6)]],
        "never sent": [[failed(row, (), status="invalid") for row in range(6)]],
        "appended": [
            [failed(0, nulls), failed(1, ())],
            [answered(2, nulls)],
            [answered(3, values, calls=2), failed(4, values)],
        ],
    }
    paths = {}
    for name, commands in rows.items():
        paths[name] = path = tmp_path_factory.mktemp("tables") / "run"
        for outcomes in commands:
            run_dir = begin(path, layout)
            for outcome in outcomes:
                run_dir.store(outcome)
            run_dir.close(seal=True)
    return paths


@pytest.mark.parametrize("table", ["responses", "tool_calls"])
@pytest.mark.parametrize("tool", [duck_schema, polars_schema, pandas_types])
def test_every_tool_reads_one_schema_whatever_the_rows_held(
    runs: dict[str, Path], tool: Callable[[Path, str], object], table: str
) -> None:
    first, *others = [tool(path, table) for path in runs.values()]
    assert all(other == first for other in others)


def test_the_datasets_have_the_documented_schema(runs: dict[str, Path]) -> None:
    for path in runs.values():
        schema = response_schema(read_record(path).layout)
        assert responses(path).schema == schema
        assert tool_calls(path).schema == tool_call_schema()
        assert responses(path).to_table().schema == schema
        for part in path.glob("responses/*.parquet"):
            assert pq.read_schema(part).equals(schema)


def test_parts_name_the_version_of_the_schema(runs: dict[str, Path]) -> None:
    for path in runs.values():
        for part in path.glob("*/*.parquet"):
            metadata = pq.read_metadata(part).metadata
            assert metadata[b"batchrun.schema_version"] == str(SCHEMA_VERSION).encode()


def test_weird_values_come_back(runs: dict[str, Path]) -> None:
    row = responses(runs["none failed"]).to_table().slice(0, 1)
    assert row["at"].cast(pa.int64()).to_pylist() == [1_700_000_000_000_000_001]
    (found,) = find_row(runs["none failed"], "id-0")
    assert found["at"] == "2023-11-14 22:13:20.000000001"
    assert str(found["price"]) == "9.125"
    assert found["tags"] == [("k", 1)]
    assert found["nested"] == [{"x": 0.5, "y": ["a", None]}]


def test_totals_are_those_that_sql_gives(
    tmp_path: Path, begin: Begin, answered: Make, failed: Make, query: Query
) -> None:
    cut = {"status": "incomplete", "truncated": True, "incomplete_reason": "max_output_tokens"}
    filtered = Failure(ErrorKind.CONTENT_POLICY, "no")
    outcomes = [
        *(answered(row, calls=row) for row in range(3)),
        answered(3, refusal="no"),
        answered(4, **cut),
        answered(5, status="failed", failure=filtered),
        failed(6),
        failed(7, status="invalid"),
        failed(8, status="no_answer"),
    ]
    run_dir = begin(tmp_path / "run")
    for outcome in outcomes:
        run_dir.store(outcome)
    from_journal = read_totals(tmp_path / "run")
    run_dir.close(seal=True)
    totals = read_totals(tmp_path / "run")
    assert totals == from_journal
    assert query(
        """select count(*), count(*) filter (ok), count(*) filter (truncated), count(refusal),
        sum(tool_call_count)::int, sum(len(attempts))::int, sum(input_tokens)::int,
        sum(output_tokens)::int, sum(total_tokens)::int from read_parquet(?)""",
        tmp_path / "run",
    ) == [
        (
            *(totals.rows, totals.ok, totals.truncated, totals.refused, totals.tool_calls),
            *(totals.attempts, totals.input_tokens, totals.output_tokens, totals.total_tokens),
        )
    ]
    found = query("select status, count(*) from read_parquet(?) group by 1", tmp_path / "run")
    assert dict(found) == totals.statuses
    found = query(
        "select error_kind, count(*) from read_parquet(?) where error_kind is not null group by 1",
        tmp_path / "run",
    )
    assert dict(found) == totals.error_kinds


HOSTILE = ["../../etc", "a'; drop table x; --", "nul\0in it", "line\nbreak", "x" * 10_000, "*", ""]


@pytest.mark.parametrize("sealed", [False, True])
def test_any_id_is_found_and_only_that(
    tmp_path: Path, begin: Begin, answered: Make, *, sealed: bool
) -> None:
    path = tmp_path / "run"
    run_dir = begin(path)
    for row, custom_id in enumerate(HOSTILE):
        run_dir.store(answered(row, custom_id=custom_id, calls=2))
    run_dir.close(seal=sealed)
    for row, custom_id in enumerate(HOSTILE):
        (found,) = find_row(path, custom_id)
        assert found["row"] == row
        assert found["custom_id"] == custom_id
        assert [call["position"] for call in found["tool_calls"]] == [0, 1]
    assert find_row(path, "' or 1=1 --") == []
    assert find_row(path, "\ud800") == []


def test_a_row_is_the_same_in_journal_and_part(
    tmp_path: Path, begin: Begin, answered: Make, column: MakeColumn
) -> None:
    layout = Layout(None, tuple(column(n, kind, s) for n, (kind, s, _) in WEIRD.items()))
    run_dir = begin(tmp_path / "run", layout)
    run_dir.store(answered(0, tuple(value for _, _, value in WEIRD.values()), calls=1))
    before = find_row(tmp_path / "run", "id-0")
    run_dir.close(seal=True)
    assert find_row(tmp_path / "run", "id-0") == before
    assert set(before[0]) == {*response_schema(layout).names, "tool_calls"}


def test_a_run_without_rows_has_empty_tables(tmp_path: Path, record: Record) -> None:
    run_dir = RunDir.open(tmp_path)
    run_dir.save(record())
    assert is_locked(tmp_path)
    run_dir.close(seal=True)
    assert not is_locked(tmp_path)
    assert responses(tmp_path).to_table().num_rows == 0
    assert tool_calls(tmp_path).to_table().schema == tool_call_schema()
    assert read_totals(tmp_path) == Totals()
    assert find_row(tmp_path, "id-0") == []
    assert read_live(tmp_path) is None


def test_what_is_no_run_directory_is_said_to_be_none(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "has no run.json"), (tmp_path / "x", "no such directory")):
        for read in (read_record, responses, tool_calls):
            with pytest.raises(JobError, match=why):
                read(path)
    assert list(tmp_path.iterdir()) == []


def test_a_live_file_that_is_damaged_is_none(tmp_path: Path) -> None:
    (tmp_path / "live.json").write_bytes(b"")
    assert read_live(tmp_path) is None
    (tmp_path / "live.json").write_text('{"done": 3}')
    assert read_live(tmp_path) == {"done": 3}


def test_a_damaged_part_is_named(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    run_dir.close(seal=True)
    part = tmp_path / "run" / "responses" / "w0-000001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    for read in (read_totals, lambda path: find_row(path, "id-0")):
        with pytest.raises(StoreError, match=r"responses.*damaged"):
            read(tmp_path / "run")


WRITE = """
import sys
from pathlib import Path
from batchrun.records import *
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
run_dir.start(part_rows=40, part_bytes=1 << 20)
for row in range(900):
    request = Request(row, f"id-{row}", "s", b"{}", f"{row:016x}", "m", None, ())
    result = Response(None, "completed", "m", None, "[]", "t", None, None, (), (), Usage(), None,
                      False, None)
    if row % 7 == 0:
        result = Failure("bad_request", "no")
    run_dir.store(Outcome(request, result, (), "e", "plain"))
    print(row, flush=True)
run_dir.close(seal=True)
"""


def test_readers_beside_a_writer_that_seals_lose_and_double_no_row(
    tmp_path: Path, record: Record
) -> None:
    run_dir = RunDir.open(tmp_path)
    run_dir.save(record())
    run_dir.close(seal=False)
    reads = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            row = int(line)
            if row % 30 == 0:
                totals = read_totals(tmp_path)
                assert row + 1 <= totals.rows <= 900
                assert totals.ok == sum(r % 7 != 0 for r in range(totals.rows))  # none twice
                (found,) = find_row(tmp_path, f"id-{row}")
                assert found["row"] == row
                assert responses(tmp_path).count_rows() <= 900
                reads += 1
    assert writer.returncode == 0
    assert reads == 30
    assert read_totals(tmp_path).rows == 900


def test_a_reader_never_waits_for_the_writer(tmp_path: Path, begin: Begin, answered: Make) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    with (tmp_path / "run" / "journal" / "w0-000001.log").open("ab") as file:
        file.write(b"\xf6BR")  # a frame being written
    assert read_totals(tmp_path / "run").rows == 1
    assert is_locked(tmp_path / "run")
    run_dir.close(seal=False)


def test_what_rows_have_cost_is_summed_over_parts_and_journal(
    tmp_path: Path, begin: Begin, answered: Make, failed: Make, query: Query
) -> None:
    def priced(outcome: Outcome, cost_usd: float | None, priced_as: str | None) -> Outcome:
        return msgspec.structs.replace(outcome, cost_usd=cost_usd, priced_as=priced_as)

    outcomes = [
        priced(answered(0), 0.25, "m"),
        priced(failed(1), 0.0, None),
        priced(failed(2, status="no_answer"), None, None),  # nobody knows what its tries cost
        failed(3, status="invalid"),  # never sent
        priced(answered(4), None, "m"),  # without a count of tokens
        priced(answered(5), 0.5, "m"),
    ]
    run_dir = begin(tmp_path / "run", part_rows=4)
    for outcome in outcomes:
        run_dir.store(outcome)
    begun = read_totals(tmp_path / "run")
    assert (begun.cost_usd, begun.unpriced, begun.unpriced_models) == (0.75, 2, ())
    run_dir.store(answered(6))  # no price
    for _ in range(2):
        totals = read_totals(tmp_path / "run")
        assert (totals.cost_usd, totals.unpriced, totals.unpriced_model) == (0.75, 3, "m")
        assert totals.unpriced_models == ("m",)
        run_dir.close(seal=True)
    sums = """select sum(cost_usd), count(*) filter (cost_usd is null and len(attempts) > 0)
        from read_parquet(?)"""
    assert query(sums, tmp_path / "run") == [(0.75, 3)]


def test_where_no_cost_is_known_there_is_no_sum(
    tmp_path: Path, begin: Begin, answered: Make
) -> None:
    run_dir = begin(tmp_path / "run")
    run_dir.store(answered(0))
    assert read_totals(tmp_path / "run").cost_usd is None
    run_dir.close(seal=True)
    assert read_totals(tmp_path / "run").cost_usd is None
