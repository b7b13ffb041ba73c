"""The user's own SQL: over runs as they are now, printed sensibly, and never writing."""

import csv
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from batchrun.errors import JobError, StoreError
from batchrun.records import Layout, Outcome
from batchrun.reports.query import query_runs
from batchrun.store.run_dir import RunDir
from tests.runs import column, run_record
from tests.waiting import HANG_S

Make = Callable[..., Outcome]


def _text(paths: Path | list[Path], query: str, form: str = "csv", width: int = 80) -> str:
    pieces: list[str] = []
    query_runs(paths if isinstance(paths, list) else [paths], query, form, width, pieces.append)
    return "".join(pieces)


def _rows(paths: Path | list[Path], query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(_text(paths, query, "json"))
    return rows


@pytest.mark.parametrize("name", ["run", "a [b] 'c' *?", "ü$(x)"])
def test_a_run_may_be_called_anything_and_be_given_by_a_relative_path(
    name: str,
    tmp_path: Path,
    begin: Callable[..., RunDir],
    answered: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = begin(Path(name))
    run_dir.store(answered(0))
    run_dir.close(seal=True)
    assert _rows(Path(name), "SELECT run, row FROM responses") == [{"run": name, "row": 0}]


def test_each_table_holds_parts_and_journal(run: Path) -> None:
    counts = "(SELECT count(*) FROM {0}) AS {0}"
    names = ("responses", "tool_calls", "attempts", "turns", "scores")
    sql = "SELECT " + ", ".join(counts.format(name) for name in names)
    (found,) = _rows(run, sql)
    held = "SELECT sum(tool_call_count) AS calls, sum(len(attempts)) AS attempts FROM responses"
    (sums,) = _rows(run, held)
    assert found == {
        "responses": 240,
        "tool_calls": sums["calls"],
        "attempts": sums["attempts"],
        "turns": 0,
        "scores": 0,
    }
    first, second = _rows(run, "FROM attempts WHERE row = 2 ORDER BY attempt")
    assert (first["attempt"], first["kind"], first["error_kind"]) == (1, "first", "rate_limit")
    assert (second["attempt"], second["kind"], second["custom_id"]) == (2, "retry", "q2")
    assert {first["run"]} == {str(run)}


def test_tables_to_come_have_their_columns(run: Path) -> None:
    described = _rows(run, "SELECT column_name, column_type FROM (DESCRIBE scores)")
    assert [each["column_name"] for each in described][:8] == [
        *("run", "row", "custom_id", "sample", "variant", "scorer", "scorer_version", "metric")
    ]
    assert {"column_name": "value", "column_type": "DOUBLE"} in described
    described = _rows(run, "SELECT column_name FROM (DESCRIBE turns)")
    assert {"turn", "output_text", "input_tokens", "attempts"} <= {
        each["column_name"] for each in described
    }


def test_several_runs_are_told_apart_and_columns_that_disagree_are_text(
    tmp_path: Path, answered: Make
) -> None:
    kinds = {
        "a": {"level": pa.int64(), "tag": pa.string(), "run": pa.string()},
        "b": {"level": pa.float64(), "tag": pa.list_(pa.int64()), "more": pa.bool_()},
    }
    values = {"a": (2**53 - 1, "x", "mine"), "b": (0.5, [1, 2], True)}
    for name, types in kinds.items():
        run_dir = RunDir.open(tmp_path / name)
        layout = Layout(None, tuple(column(each, kind) for each, kind in types.items()))
        run_dir.save(run_record(layout))
        run_dir.start(part_rows=100, part_bytes=1 << 20)
        outcome = answered(0)
        request = msgspec.structs.replace(outcome.request, carried=values[name])
        run_dir.store(msgspec.structs.replace(outcome, request=request))
        run_dir.close(seal=name == "a")
    found = _rows(
        [tmp_path / "a", tmp_path / "b"],
        "SELECT run, level, tag, run_input, more, ok FROM responses ORDER BY run",
    )
    a, b = (str(tmp_path / name) for name in "ab")
    assert found == [
        {"run": a, "level": 2**53 - 1, "tag": "x", "run_input": "mine", "more": None, "ok": True},
        {"run": b, "level": 0.5, "tag": "[1, 2]", "run_input": None, "more": True, "ok": True},
    ]
    counted = "SELECT run, count(*) AS n FROM attempts GROUP BY ALL ORDER BY ALL"
    assert [each["n"] for each in _rows([tmp_path / "a", tmp_path / "b"], counted)] == [1, 1]
    with pytest.raises(JobError, match="more than once"):
        _rows([tmp_path / "a", tmp_path / "a"], counted)


def test_200_runs_at_once(tmp_path: Path, begin: Callable[..., RunDir], answered: Make) -> None:
    paths = [tmp_path / f"run{number}" for number in range(200)]
    for path in paths:
        run_dir = begin(path)
        run_dir.store(answered(0))
        run_dir.close()
    assert _rows(paths, "SELECT count(DISTINCT run) AS n, count(*) AS m FROM responses") == [
        {"n": 200, "m": 200}
    ]


def test_a_run_is_asked_while_it_is_sealed(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    """Each answer holds each row once, whatever step a seal has reached."""
    run_dir = begin(tmp_path / "run", part_rows=5)
    done = threading.Event()

    def fill() -> None:
        for row in range(60):
            run_dir.store(answered(row))
        done.set()

    filling = threading.Thread(target=fill)
    filling.start()
    last = 0
    sql = "SELECT count(*) AS n, count(DISTINCT custom_id) AS ids, max(row) AS m FROM responses"
    while not done.is_set() or last < 60:
        (found,) = _rows(tmp_path / "run", sql)
        assert found["n"] == found["ids"] >= last
        assert found["n"] == 0 or found["m"] == found["n"] - 1
        last = found["n"]
    filling.join(HANG_S)
    run_dir.close()
    assert last == 60


VALUES = {
    "9007199254740993": 9007199254740993,
    "sum(9223372036854775807)": 9223372036854775807,
    "170141183460469231731687303715884105727": 170141183460469231731687303715884105727,
    "1.50::DECIMAL(10, 2)": 1.5,
    "0.1 + 0.2::DOUBLE": 0.1 + 0.2,
    "'nan'::DOUBLE": None,
    "TIMESTAMPTZ '2026-11-30 01:02:03.5+01'": "2026-11-30T00:02:03.500000Z",
    "TIMESTAMPTZ '2026-11-30 01:02:03+00'": "2026-11-30T01:02:03Z",
    "TIMESTAMP '2026-11-30 01:02:03'": "2026-11-30T01:02:03",
    "DATE '2026-11-30'": "2026-11-30",
    "INTERVAL 90 MINUTE": "01:30:00",
    "[1, NULL, 3]": [1, None, 3],
    "{'a': 1, 'b': ['x']}": {"a": 1, "b": ["x"]},
    "MAP {'k': 1, 'l': 2}": {"k": 1, "l": 2},
    "[MAP {'k': 1}]": [{"k": 1}],
    "TRUE": True,
    "NULL": None,
    "'a'::ENUM ('a', 'b')": "a",
    "union_value(n := 1)": "1",
    "'a b \"c\"'": 'a b "c"',
}


@pytest.mark.parametrize(("sql", "value"), VALUES.items())
def test_values_print_as_what_they_are(sql: str, value: Any, run: Path) -> None:
    query = f"SELECT {sql} AS v"
    text = _text(run, query, "json")
    assert json.loads(text) == [{"v": value}]
    if isinstance(value, int):
        assert str(value).lower() in text
    head, row = csv.reader(io.StringIO(_text(run, query)))
    assert head == ["v"]
    cell = row[0] if row else ""
    if value is None:
        assert cell in ("", "nan")
    elif isinstance(value, str):
        assert cell == value
    else:
        assert json.loads(cell) == value
    shown = "null" if value is None else cell
    for form in ("table", "markdown"):
        table = _text(run, query, form).splitlines()
        assert len(table) == (2 if form == "table" else 3)
        if not isinstance(value, float) and value is not None:
            assert shown in table[-1].replace("\\[", "[").replace("\\", "")


def test_a_table_fits_its_width_and_the_other_formats_hold_everything(
    run: Path, hostile: str
) -> None:
    long = "SELECT custom_id, repeat('long text ', 50) AS a, 123456789012 AS n, output_text AS b"
    long += " FROM responses WHERE row IN (1, 11) ORDER BY row"
    for width in (60, 80, 200):
        lines = _text(run, long, "table", width).splitlines()
        assert len(lines) == 3
        assert max(map(len, lines)) <= width
        assert all("123456789012" in line for line in lines[1:])
    everything = _text(run, "FROM responses ORDER BY row LIMIT 2", "table", 80)
    assert everything.startswith("row 1\nrun ")
    assert "\n\nrow 2\nrun " in everything
    assert max(map(len, everything.splitlines())) <= 80
    assert "\x1b" not in _text(run, long, "table") + _text(run, long, "json")
    assert _rows(run, long)[1]["custom_id"] == hostile
    assert list(csv.reader(io.StringIO(_text(run, long))))[2][0] == hostile
    marked = _text(run, long, "markdown").splitlines()
    assert len(marked) == 4
    assert "&lt;script>" in marked[3]
    assert _text(run, "FROM responses WHERE false", "json") == "[]\n"
    assert _text(run, "SELECT 1 AS a WHERE false", "table") == "a\n(no rows)\n"


WRITING = [
    "COPY responses TO 'OUT'",
    "WITH x AS (COPY responses TO 'OUT') SELECT 1",
    "SELECT * FROM (WITH x AS (COPY responses TO 'OUT') SELECT 1)",
    "EXPLAIN ANALYZE COPY responses TO 'OUT'",
    "EXPORT DATABASE 'OUT'",
    "ATTACH 'OUT'",
    "CREATE TABLE x AS SELECT 1",
    "SELECT * FROM query('COPY responses TO ''OUT''')",
    "SELECT * FROM \"query\" /* x */ ('SELECT ' || '1')",
    "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = 'OUT')",
    "CALL enable_logging('QueryLog', storage = 'file', storage_path = 'OUT')",
    "SET memory_limit = '1GB'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SELECT 1) ; COPY responses TO 'OUT'; SELECT (1",
    "SELECT 1; COPY responses TO 'OUT'",
    "PRAGMA enable_profiling",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "SELECT * FROM 'https://127.0.0.1:9/x.parquet'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
]


@pytest.mark.parametrize("sql", WRITING)
def test_a_query_writes_nothing_and_reaches_no_network(sql: str, run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(JobError, match=r"only reads|cannot be answered|statements"):
        _text(run, sql.replace("OUT", f"{tmp_path}/out"))
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    with pytest.raises(JobError):
        _text(run, sql.replace("OUT", str(next((run / "responses").iterdir()))))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT outputtext FROM responses", "did you mean `output_text`?"),
        ("SELECT r.kost_usd FROM responses r", "did you mean `cost_usd`?"),
        ("SELECT levle FROM responses", "did you mean `level`?"),
        ("FROM respones", "did you mean `responses`?"),
        ('SELECT 1 FROM responses WHERE status = "failed"', "in single quotes: 'failed'"),
        ("SELECT lenght(status) FROM responses", 'Did you mean "length"?'),
        ("SELECT 'x'::INT", "Conversion Error"),
        ("FROM 'nowhere.parquet'", "nowhere.parquet"),
        ("SELEC 1", "\n  SELEC 1\n  ^"),
        ("SELECT 1 +\nFROM\n", "syntax error"),
        ("SELECT 1 -- no end", None),
        ("SELECT 1;", None),
        ("-- nothing", "statements"),
    ],
)
def test_a_mistake_is_said_with_a_hint(sql: str, says: str | None, run: Path) -> None:
    if says is None:
        assert _text(run, sql) == '"1"\n1\n'
        return
    with pytest.raises(JobError) as raised:
        _text(run, sql)
    assert says in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_files_of_the_user_can_be_joined(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.csv").write_text("id,label\nq1,one\nq3,three\n")
    monkeypatch.chdir(tmp_path)
    sql = "SELECT label, ok FROM responses JOIN 'mine.csv' ON id = custom_id ORDER BY row"
    assert [row["label"] for row in _rows(run, sql)] == ["one", "three"]


def test_a_damaged_part_and_no_run_are_said(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    with pytest.raises(JobError, match="is not a run directory"):
        _text(tmp_path, "SELECT 1")
    run_dir = begin(tmp_path / "run")
    for row in range(50):
        run_dir.store(answered(row))
    run_dir.close(seal=True)
    (part,) = (tmp_path / "run" / "responses").glob("*.parquet")
    data = part.read_bytes()
    for damaged in (
        b"PAR1" + bytes(100),
        data[:200] + bytes(len(data) // 2) + data[200 + len(data) // 2 :],
    ):
        part.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"cannot be read .* batchrun verify"):
            _text(tmp_path / "run", "SELECT * FROM responses")
