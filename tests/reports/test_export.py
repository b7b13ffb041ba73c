"""All rows in one file: in the order of the input, whole or not at all, harmless in sheets."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from batchrun.errors import JobError
from batchrun.formats.csv_text import csv_line
from batchrun.reports.export import FORMATS, as_json, export_run, format_of


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
    with pytest.raises(JobError, match="is no run directory"):
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
