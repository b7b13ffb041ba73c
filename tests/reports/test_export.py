"""All rows in one file: in the order of the input, whole or not at all, harmless in sheets."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from batchrun.errors import JobError, StoreError
from batchrun.formats.csv_text import csv_line
from batchrun.reports.export import (
    FORMATS,
    Wanted,
    as_json,
    export_run,
    format_of,
    replacing,
)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for form in FORMATS:
        found[form] = folder / f"rows.{form}"
        done = export_run(run, found[form], form)
        assert (done.rows, done.left) == (240, 10)
        assert done.bytes == found[form].stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"rows.{f}" for f in FORMATS)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_json_lines_hold_each_row_once_in_order_with_structures_for_json(
    exported: dict[str, Path], hostile: str
) -> None:
    rows = _lines(exported["jsonl"])
    assert [row["row"] for row in rows] == list(range(240))
    eleven = rows[11]
    assert eleven["custom_id"] == hostile
    assert eleven["output"][0]["content"][0]["text"] == hostile
    assert eleven["tags"] == ["a", "b"]
    assert eleven["=formula"] == "=1+11"
    assert eleven["usage"]["input_tokens"] == 111
    assert [call["position"] for call in eleven["tool_calls"]] == [1, 2]
    assert eleven["started_at"] == eleven["attempts"][0]["started_at"]
    assert len({tuple(row) for row in rows}) == 1  # the same columns in each line


def test_duckdb_reads_the_same_from_the_file_as_from_the_parts(whole: Path, tmp_path: Path) -> None:
    sql = (
        "SELECT count(*), sum(output_tokens), round(sum(cost_usd), 6), count(*) FILTER (ok), "
        'min("=formula"), max(level) FROM '
    )
    parts = duckdb.execute(sql + "read_parquet(?)", [f"{whole}/responses/*.parquet"]).fetchall()
    export_run(whole, tmp_path / "rows.jsonl", "jsonl")
    export_run(whole, tmp_path / "rows.csv", "csv")
    lines = duckdb.execute(sql + "read_json(?)", [str(tmp_path / "rows.jsonl")]).fetchall()
    assert lines == parts
    guarded = sql.replace('"=formula"', """ltrim("'=formula", '''')""")
    cells = duckdb.execute(guarded + "read_csv(?)", [str(tmp_path / "rows.csv")]).fetchall()
    assert cells == parts


def test_no_cell_of_the_csv_is_a_formula_and_figures_are_figures(exported: dict[str, Path]) -> None:
    assert exported["csv"].read_bytes().startswith(b"\xef\xbb\xbf")
    with exported["csv"].open(newline="", encoding="utf-8-sig") as file:
        head, *rows = csv.reader(file)
    assert "'=formula" in head
    assert len(rows) == 240
    assert all(len(row) == len(head) for row in rows)
    formulas = ("=", "+", "@", "\t", "\r")
    assert not [cell for row in [head, *rows] for cell in row if cell.startswith(formulas)]
    dashed = {name for row in rows for name, cell in zip(head, row, strict=True) if cell[:1] == "-"}
    assert dashed == {"level"}  # a column of numbers
    assert rows[11][head.index("level")] == "-11"
    assert rows[11][head.index("'=formula")] == "'=1+11"


@given(text=st.text())
def test_any_text_comes_back_from_csv_or_with_an_apostrophe_before_it(text: str) -> None:
    line = csv_line([text, None, 1], for_sheets=True)
    ((cell, nothing, one),) = csv.reader(io.StringIO(line, newline=""), strict=True)
    assert (nothing, one) == ("", "1")
    assert cell in (text, f"'{text}")
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert line.endswith("\n")
    ((raw, *_),) = csv.reader(io.StringIO(csv_line([text], for_sheets=False), newline=""))
    assert raw == text


def test_batch_lines_are_what_the_openai_package_reads(exported: dict[str, Path]) -> None:
    lines = _lines(exported["batch"])
    assert [line["custom_id"] for line in lines[:3]] == ["q0", "q1", "q2"]
    assert len({line["id"] for line in lines}) == 240
    for row, line in enumerate(lines):
        assert set(line) == {"id", "custom_id", "response", "error"}
        if row % 11 == 5:
            error = {"message": "no such thing", "type": None, "param": None, "code": "bad"}
            assert line["response"]["status_code"] == 400
            assert line["response"]["body"] == {"error": error}
        elif row % 17 == 6:
            assert line["response"] is None
            assert line["error"] == {"code": "connection", "message": "refused"}
        else:
            assert (line["error"], line["response"]["status_code"]) == (None, 200)
            assert line["response"]["request_id"] == f"req_{row}"
            body = line["response"]["body"]
            assert body.pop("tool_usage") == {"web_search": 1}
            usage = {
                **body["usage"],
                "output_tokens": 1,
                "total_tokens": 2,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
            read = Response.model_validate({**body, "usage": usage})
            assert read.id == f"resp_{row}"
            assert read.instructions == "Be brief."


def test_what_a_file_held_is_replaced_and_what_is_no_file_is_refused(
    run: Path, tmp_path: Path
) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_text("old")
    export_run(run, target, "jsonl")
    first = target.read_bytes()
    export_run(run, target, "jsonl")
    assert target.read_bytes() == first
    held = sorted(run.rglob("*"))
    for wrong in (tmp_path, tmp_path / "nowhere" / "rows.csv", run / "run.json", Path("/dev/null")):
        with pytest.raises(JobError):
            export_run(run, wrong, "csv")
    assert sorted(run.rglob("*")) == held
    with pytest.raises(JobError, match="is not a run directory"):
        export_run(tmp_path, target, "csv")
    assert target.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_name_says_the_format() -> None:
    assert format_of(Path("a/B.CSV")) == "csv"
    assert format_of(Path("x.ndjson")) == "jsonl"
    assert format_of(Path("x.parquet")) == "parquet"
    with pytest.raises(JobError, match="--format"):
        format_of(Path("x.txt"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n "a": 12345678901234567890123456789012345678901234}', None),
        ('["\\ud83d"]', '["\ufffd"]'),
        ('{"a": NaN}', '{"a":null}'),
        ("no JSON", '"no JSON"'),
        ("", '""'),
    ],
)
def test_text_that_holds_json_becomes_one_line_of_json(text: str, line: str | None) -> None:
    encoded = msgspec.json.encode(as_json(text)).decode()
    assert "\n" not in encoded
    if line is None:
        assert json.loads(encoded) == json.loads(text)
    else:
        assert json.loads(encoded) == json.loads(line)


def test_an_empty_run_is_exported_too(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "run", [])
    for form in FORMATS:
        done = export_run(path, tmp_path / form, form)
        assert (done.rows, done.left) == (0, 250)
    assert (tmp_path / "csv").read_text().count("\n") == 1
    assert (tmp_path / "jsonl").read_bytes() == b""


def test_parquet_holds_the_rows_in_order_with_the_columns_of_the_tables(
    whole: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    rows = pq.read_table(exported["parquet"])
    assert rows["row"].to_pylist() == list(range(240))
    parts = pq.read_table(whole / "responses", partitioning=None)
    assert rows.schema.remove_metadata().equals(parts.schema.remove_metadata())
    assert rows.equals(parts.sort_by("row"))
    assert export_run(whole, tmp_path / "rows.parquet", "parquet").rows == 240
    assert len(pd.read_parquet(tmp_path / "rows.parquet")) == 240
    assert pl.read_parquet(tmp_path / "rows.parquet").height == 240


def test_chosen_columns_stand_in_the_order_given(run: Path, tmp_path: Path) -> None:
    wanted = Wanted(columns=("ok,custom_id", "=formula", "ok"))
    names = ["ok", "custom_id", "=formula"]
    for form in ("jsonl", "csv", "parquet"):
        assert export_run(run, tmp_path / f"rows.{form}", form, wanted).rows == 240
    assert list(_lines(tmp_path / "rows.jsonl")[3]) == names
    assert _lines(tmp_path / "rows.jsonl")[3] == {"ok": True, "custom_id": "q3", "=formula": "=1+3"}
    assert pq.read_schema(tmp_path / "rows.parquet").names == names
    lines = (tmp_path / "rows.csv").read_text("utf-8-sig").splitlines()
    assert (lines[0], lines[4]) == ('"ok","custom_id","\'=formula"', 'true,"q3","\'=1+3"')
    export_run(run, tmp_path / "raw.csv", "csv", Wanted(columns=wanted.columns, raw=True))
    lines = (tmp_path / "raw.csv").read_text("utf-8-sig").splitlines()
    assert (lines[0], lines[4]) == ('"ok","custom_id","=formula"', 'true,"q3","=1+3"')
    only_calls = Wanted(columns=("custom_id", "tool_calls"))
    export_run(run, tmp_path / "calls.jsonl", "jsonl", only_calls)
    assert len(_lines(tmp_path / "calls.jsonl")[2]["tool_calls"]) == 2
    held = sorted(tmp_path.iterdir())
    with pytest.raises(JobError, match="did you mean `custom_id`"):
        export_run(run, tmp_path / "x.csv", "csv", Wanted(columns=("costum_id",)))
    for form, wrong in {
        "batch": Wanted(columns=("ok",)),
        "jsonl": Wanted(raw=True),
        "csv": Wanted(partition_by="ok"),
    }.items():
        with pytest.raises(JobError, match="does not go with the format"):
            export_run(run, tmp_path / "x", form, wrong)
    assert sorted(tmp_path.iterdir()) == held


@pytest.mark.parametrize("by", ["status", "ok", "level", "tags", "custom_id", "error_kind"])
def test_a_folder_has_a_file_for_each_value_and_every_tool_reads_the_column_from_its_names(
    by: str, run: Path, tmp_path: Path
) -> None:
    target = tmp_path / "by"
    done = export_run(run, target, "parquet", Wanted(columns=("row", by), partition_by=by))
    assert done.rows == 240
    export_run(run, tmp_path / "all.jsonl", "jsonl", Wanted(columns=("row", by)))
    texts = [row[by] for row in _lines(tmp_path / "all.jsonl")]
    if by == "tags":
        texts = ['["a",\n"b"]'] * 240
    files = sorted(target.rglob("*.parquet"))
    assert len(files) == len(set(texts))
    assert done.bytes == sum(file.stat().st_size for file in files)
    for file in files:
        assert pq.read_schema(file).names == ["row"]
        numbers = pq.read_table(file, partitioning=None)["row"].to_pylist()
        assert numbers == sorted(numbers)
        assert len({texts[number] for number in numbers}) == 1
    pattern = f"{target}/*/*.parquet"
    named = duckdb.read_parquet(pattern, hive_partitioning=True)
    said = {
        "DuckDB": dict(named.select("row", by).fetchall()),
        "Polars": dict(
            pl.read_parquet(pattern, hive_partitioning=True, try_parse_hive_dates=False)
            .select("row", by)
            .rows()
        ),
    }
    if by != "error_kind":  # pandas takes no folder with nulls
        frame = pd.read_parquet(target)
        said["pandas"] = dict(zip(frame["row"], frame[by], strict=True))
    nothing = (None, "__HIVE_DEFAULT_PARTITION__")  # the latter: DuckDB before 1.5
    expected = [value if value is None else str(value).lower() for value in texts]
    for tool, values in said.items():
        found = [values[row] for row in range(240)]
        found = [None if value in nothing else str(value).lower() for value in found]
        assert found == expected, tool
    # Again, after which nothing of the first is left; and never over what is something else.
    export_run(run, target, "parquet", Wanted(columns=("row",), partition_by="via"))
    assert [path.name for path in target.iterdir()] == ["via=plain"]
    (target / "notes.txt").write_text("mine")
    with pytest.raises(JobError, match=r"holds notes\.txt"):
        export_run(run, target, "parquet", Wanted(partition_by="ok"))
    assert (target / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", "by"]


def test_a_folder_whose_place_nothing_can_take_stays(tmp_path: Path) -> None:
    (tmp_path / "by").mkdir()
    (tmp_path / "by" / "rows").write_text("earlier")
    with pytest.raises(StoreError, match="cannot write"), replacing(tmp_path / "by"):
        pass  # nothing is written that could take it
    assert (tmp_path / "by" / "rows").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["by"]


def test_columns_that_make_no_folders_are_refused(run: Path, tmp_path: Path) -> None:
    for by, says in {
        "attempts": "of type",
        "cost_usd": "of type",
        "nothing": "no column",
        "=formula": "its name",
    }.items():
        with pytest.raises(JobError, match=says):
            export_run(run, tmp_path / "by", "parquet", Wanted(partition_by=by))
    with pytest.raises(JobError, match="no column is left beside ok"):
        export_run(run, tmp_path / "by", "parquet", Wanted(("ok",), partition_by="ok"))
    assert not list(tmp_path.iterdir())


def test_the_source_and_other_runs_are_never_written_over(
    run: Path, whole: Path, tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Any]
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "a.jsonl").write_text("{}\n")

    def of(name: str, given: Path | str) -> Path:
        made = write(tmp_path / name, [outcome(0)])
        record = json.loads((made / "run.json").read_bytes())
        record |= {"source": f"../{Path(given).name}", "source_path": str(given)}
        (made / "run.json").write_text(json.dumps(record))
        return made

    targets = [
        (of("one", source), source),
        (of("two", source), tmp_path / "link.jsonl"),
        (of("three", tmp_path / "moved" / "prompts.jsonl"), source),
        (of("four", tmp_path / "folder"), tmp_path / "folder" / "a.jsonl"),
        (of("five", tmp_path / "folder"), tmp_path / "folder" / "deep" / "new.parquet"),
        (of("six", f"{tmp_path}/folder/*.jsonl"), tmp_path / "folder" / "a.jsonl"),
        (of("seven", f"{tmp_path}/folder/*.jsonl"), tmp_path / "folder" / "new.jsonl"),
        (run, whole / "responses" / "new.parquet"),
        (run, whole / "run.json"),
        (run, whole / "answers.csv"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path, target in targets:
        with pytest.raises(JobError, match=r"source of the run|another run directory"):
            export_run(path, target, "jsonl")
    with pytest.raises(JobError, match="another run directory"):
        export_run(run, whole / "by", "parquet", Wanted(partition_by="ok"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    export_run(tmp_path / "four", tmp_path / "folder" / "answers.csv", "csv")
