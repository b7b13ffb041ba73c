"""`sql` on real runs, live, killed and finished; typed answers joined to the user's table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import duckdb
import pytest

from tests.doc_examples import ROOT, block, check_console
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
TITLE = "Structured answers, and your own table"


def _counted(batchrun: Run, *runs: str) -> list[dict[str, Any]]:
    sql = "SELECT run, count(*) AS n, count(DISTINCT custom_id) AS ids FROM responses GROUP BY ALL"
    done = batchrun("sql", *runs, sql + " ORDER BY run", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_live_a_killed_and_a_finished_run_are_asked_together(
    begin: Callable[..., subprocess.Popen[str]],
    simulator: Callable[..., str],
    write_rows: Any,
    questions: Any,
    batchrun: Run,
    tmp_path: Path,
) -> None:
    url = simulator("--latency", "0.05")
    source = write_rows(questions(400))
    ask = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "--base-url", url)
    assert batchrun("run", source, *ask, "-o", "a", "--limit", "30").returncode == 0
    live = begin("run", source, *ask, "-o", "b", "--concurrency", "4")
    end = time.monotonic() + HANG_S
    seen: list[int] = []
    while len(set(seen)) < 3:
        assert time.monotonic() < end
        if (tmp_path / "b" / "run.json").exists():
            counts = _counted(batchrun, "a", "b")
            assert all(each["n"] == each["ids"] for each in counts)
            seen += [each["n"] for each in counts if each["run"] == "b"]
    live.send_signal(signal.SIGKILL)
    live.wait(HANG_S)
    first, killed = _counted(batchrun, "a", "b")
    assert (first["run"], first["n"]) == ("a", 30)
    assert max(seen) <= killed["n"] < 400
    assert killed["n"] == killed["ids"]
    assert batchrun("run", source, *ask, "-o", "b").returncode == 0
    assert _counted(batchrun, "b") == [{"run": "b", "n": 400, "ids": 400}]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "SELECT outputtext FROM responses"), "did you mean `output_text`?"),
        (("run", "COPY responses TO 'x.csv'"), "only reads"),
        (("run",), "Missing argument"),
        (("run", "run"), "QUERY is missing"),
        (("nowhere", "SELECT 1"), "is not a run directory"),
    ],
)
def test_what_cannot_be_answered_is_said(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    batchrun: Run,
) -> None:
    ask = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run", "--simulate")
    assert batchrun("run", write_rows(questions(3)), *ask).returncode == 0
    before = sorted(tmp_path.rglob("*"))
    done = batchrun("sql", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_the_answers_of_the_docs_join_the_users_table_in_every_tool(tmp_path: Path) -> None:
    """The job, the commands and the code that docs/results.md shows are what is run."""
    folder = tmp_path
    rows = (
        "SELECT range AS id, 'Shoe no. ' || range AS text, range % 2 = 0 AS checked FROM range(40)"
    )
    duckdb.sql(f"COPY ({rows}) TO '{folder}/products.parquet'")
    (folder / "products.toml").write_text(block("results", TITLE, "toml"))
    script = folder / "bin" / "batchrun"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m batchrun "$@"\n')
    script.chmod(0o700)
    environment = {
        **os.environ,
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
    }
    check_console("results", TITLE, folder, environment)
    code = block("results", TITLE, "python")
    code += """
from_duckdb = sorted(in_duckdb.fetchall())
names = in_duckdb.columns
columns = [in_pandas[name].tolist() for name in names]
from_pandas = sorted(zip(*columns, strict=True), key=lambda row: row[0])
from_polars = sorted(in_polars.select(names).rows(), key=lambda row: row[0])
assert len(from_duckdb) == 40 and all(row[3] for row in from_duckdb)
for one, other, third in zip(from_duckdb, from_pandas, from_polars, strict=True):
    assert list(map(str, one)) == list(map(str, third))
    other = [value.tolist() if hasattr(value, "tolist") else value for value in other]
    other = [None if value is pd.NA else value for value in other]
    assert list(map(str, one)) == list(map(str, other)), (one, other)
"""
    joined = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert joined.returncode == 0, joined.stderr
    sql = block("results", TITLE, "sql")
    asked = subprocess.run(
        [script, "sql", "runs/products", sql, "--format", "json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert len(found) == 40
    assert list(found[0]) == ["id", "text", "checked", "ok", "brand", "price", "sizes", "maker"]
