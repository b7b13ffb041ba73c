"""Carried columns may have any name: that of an alias, a table or a lambda of our queries too."""

import ast
import base64
import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchrun as package
from batchrun.evals.answers import whole_rows
from batchrun.records import Column, Layout, Outcome
from batchrun.store.columns import layout_of, name_columns
from batchrun.store.run_dir import RunDir
from tests.processes import ForkServer
from tests.runs import column, read_record, run_record

Run = Callable[..., subprocess.CompletedProcess[str]]
_SQL = re.compile(r"\b(SELECT|FROM|CASE|AS|OVER)\b|lambda ")
_WORD = re.compile(r"[A-Za-z_]\w*")
_NUMBERED = ("responses_0", "tool_calls_0", "answers_0", "batchrun_value_0", "part")
_ROWS = 60


def _words() -> Iterator[str]:
    """Each word in the texts of modules that ask DuckDB about runs: all that a query names."""
    for path in Path(package.__path__[0]).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "duckdb" in text and path.parts[-2] not in ("store", "runner"):
            for node in ast.walk(ast.parse(text)):
                said = node.value if isinstance(node, ast.Constant) else None
                if isinstance(said, str) and (_SQL.search(said) or _WORD.fullmatch(said)):
                    yield from map(str.lower, _WORD.findall(said))


def _carrying() -> Layout:
    """As a run of 0.2 is pinned: it has a column `tool_calls`."""
    words = [word for word in dict.fromkeys((*_words(), *_NUMBERED)) if word != "tool_calls"]
    names = [*name_columns(words), "tool_calls"]
    assert {"one", "position", "outcome", "rows", "picked", "scores", "r"} <= set(names)
    as_json = msgspec.structs.replace(column("tool_calls", pa.string()), type="json")
    return Layout(None, (*(column(name, pa.string()) for name in names[:-1]), as_json))


def _write(path: Path, layout: Layout, outcome: Callable[..., Outcome]) -> None:
    carried = (*["carried"] * (len(layout.columns) - 1), '["mine"]') if layout.columns else ()
    run_dir = RunDir.open(path)
    run_dir.save(run_record(layout, rows=_ROWS))
    for rows in (range(_ROWS - 10), range(_ROWS - 10, _ROWS)):  # in parts, and in the journal
        run_dir.start(part_rows=40, part_bytes=64 << 20)
        for row in rows:
            made = outcome(row)
            request = msgspec.structs.replace(made.request, carried=carried)
            run_dir.store(msgspec.structs.replace(made, request=request))
        if rows.start == 0:
            run_dir.finish()
    run_dir.close()


@pytest.fixture
def runs(
    tmp_path: Path,
    outcome: Callable[..., Outcome],
    fork_server: ForkServer,
    environment: dict[str, str],
) -> dict[str, Run]:
    """`batchrun ...` in two folders, whose runs differ only in what they carry."""
    commands: dict[str, Run] = {}
    for name, layout in (("plain", Layout(None, ())), ("carrying", _carrying())):
        folder = tmp_path / name
        folder.mkdir()
        _write(folder / "run", layout, outcome)
        (folder / "scorers.toml").write_text(
            '[[scorers]]\nkind = "exact"\ntarget = "{{ custom_id }}"\n', encoding="utf-8"
        )
        commands[name] = partial(fork_server.run, folder, environment)
    return commands


def test_every_word_of_our_queries_may_be_the_name_of_a_carried_column(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    carrying, folder = runs["carrying"], tmp_path / "carrying"
    for name, run in runs.items():
        assert run("score", "run", "scorers.toml").returncode == 0
        shutil.copytree(tmp_path / name / "run", tmp_path / name / "again")
    for words in (
        ("report", "run"),
        ("cost", "run", "--by", "model", "--format", "json"),
        ("metrics", "run"),
        ("compare", "run", "again"),
        ("sql", "run", "SELECT count(*), sum(cost_usd) FROM attempts"),
        ("verify", "run"),
    ):
        plain, other = (run(*words) for run in runs.values())
        assert plain.returncode == other.returncode == 0, other.stdout + other.stderr
        assert other.stdout == plain.stdout
    for more in (
        ("report", "run", "--html", "page.html"),
        ("export", "run", "rows.jsonl"),
        ("export", "run", "rows.csv"),
        ("export", "run", "rows.parquet"),
        ("export", "run", "batch.jsonl", "--format", "batch"),
    ):
        done = carrying(*more)
        assert done.returncode == 0, done.stderr
    by = carrying("cost", "run", "--by", "one", "--by", "batchrun_value_0 || outcome")
    assert re.search(r"carried +carriedcarried ", by.stdout), by.stdout + by.stderr

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == _ROWS
    for row in rows:
        assert (row["tool_calls_input"], row["scores"], row["one"]) == (["mine"], *["carried"] * 2)
        assert len(row["tool_calls"]) == (row["tool_call_count"] or 0)
    with (folder / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
        assert {row["tool_calls"] for row in csv.DictReader(file)} == {'["mine"]'}
    assert set(pq.read_table(folder / "rows.parquet")["tool_calls"].to_pylist()) == {'["mine"]'}

    shown = carrying("show", "run", "q1").stdout.splitlines()
    assert "    scores: carried" in shown
    assert '    tool_calls_input: ["mine"]' in shown
    assert shown[shown.index("scores:") + 1].startswith("  exact 0: not passed")
    row = json.loads(carrying("show", "run", "q1", "--json").stdout)
    assert (row["scores_input"], row["tool_calls_input"]) == ("carried", '["mine"]')
    assert (row["scores"][0]["scorer"], len(row["tool_calls"])) == ("exact", 1)


def test_a_run_keeps_the_names_that_it_began_with(tmp_path: Path, batchrun: Run) -> None:
    rows = [{"id": f"r{at}", "q": f"{at}?", "tool_calls": [at], "scores": at} for at in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    asked = ("run", "rows.jsonl", "--prompt", "{{ q }}", "--model", "gpt-6-luna", "--simulate")
    assert batchrun(*asked, "--limit", 1, "-o", "old").returncode == 0
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    _as_in_0_2(tmp_path / "old")
    for run, name in (("new", "tool_calls_input"), ("old", "tool_calls")):
        assert batchrun(*asked, "-o", run).returncode == 0
        assert batchrun("verify", run).returncode == 0
        table = pq.read_table(tmp_path / run / "responses")
        assert sorted(table[name].to_pylist()) == ["[0]", "[1]", "[2]"]
        assert sorted(table["scores"].to_pylist()) == [0, 1, 2]
        columns = "id,tool_calls,tool_calls_input,scores"
        done = batchrun("export", run, "out.jsonl", "--columns", columns)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [
            {"id": f"r{at}", "tool_calls": [], "tool_calls_input": [at], "scores": at}
            for at in range(3)
        ]


def _as_in_0_2(run: Path) -> None:
    """What a release left that did not keep the name `tool_calls`."""
    record = read_record(run)
    for one in record["layout"]["columns"]:
        if one["name"] == "tool_calls_input":
            one["name"] = "tool_calls"
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    for part in (run / "responses").glob("*.parquet"):
        table = pq.ParquetFile(part).read()
        names = [name.replace("tool_calls_input", "tool_calls") for name in table.column_names]
        renamed = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
        pq.write_table(renamed, part)


def test_the_names_of_a_layout_stay() -> None:
    """Whether `tool_calls` was kept from the start or not, and whatever comes later."""
    kinds = base64.b64encode(pa.schema({"type": pa.int64(), "stored": pa.int64()}).serialize())
    for pinned in (["tool_calls", "Tool_Calls_2"], ["tool_calls_input", "tool_calls_input_2"]):
        columns = ("tool_calls", "Tool_Calls")
        layout = Layout(
            None,
            tuple(
                Column(name, of, "int64", kinds.decode())
                for name, of in zip(pinned, columns, strict=True)
            ),
        )
        assert [one.name.lower() for one in layout_of(layout, 2).columns] == [
            name.lower() for name in pinned
        ]
        later = name_columns([*columns, "TOOL_CALLS"], pinned=layout.columns)[-1]
        assert later.lower() not in ("tool_calls", *map(str.lower, pinned))


def test_a_scorer_gets_the_calls_and_what_is_carried_under_their_name() -> None:
    output = '[{"type": "function_call", "name": "f", "arguments": "{}"}]'
    batch = pa.RecordBatch.from_pylist([{"output": output, "tool_calls": "mine"}])
    (row,) = whole_rows(batch)
    assert row["tool_calls_input"] == "mine"
    assert [call["name"] for call in row["tool_calls"]] == ["f"]
