"""`report`, `export` and `show` from the command line, on a run that was made by it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

Run = Callable[..., CompletedProcess[str]]


def test_a_run_is_reported_exported_and_shown(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(60))
    ask = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run", "--simulate")
    assert batchrun("run", source, *ask, "--limit", "50").returncode == 0

    told = batchrun("report", "run")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[:2][0] == "run"
    assert "50 rows, 50 ok, 10 remaining" in told.stdout
    assert "simulated, so nothing is paid" in " ".join(told.stdout.split())

    listed = batchrun("report", "run", "--top", "2").stdout.partition("Slowest rows")[2]
    slowest, _, expensive = listed.partition("Most expensive rows")
    for part in (slowest, expensive):
        _, head, *worst = part.strip().splitlines()
        assert head.split() == ["id", "time", "input", "output", "reasoning", "cost", "outcome"]
        assert len(worst) == 2
    assert batchrun("report", "run", "--top", "0").returncode == 2

    done = batchrun("export", "run", "rows.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rows.csv: 50 rows, ")
    assert "10 of the source have no outcome yet" in done.stdout
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(50))
    assert batchrun("export", "run", "rows.batch", "--format", "batch").returncode == 0
    lines = (tmp_path / "rows.batch").read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [str(row) for row in range(50)]

    shown = batchrun("show", "run", "7", "--json")
    assert json.loads(shown.stdout)["row"] == 7


def test_what_cannot_be_reported_or_exported_is_said(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(3))
    ask = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run", "--simulate")
    assert batchrun("run", source, *ask).returncode == 0
    before = sorted((tmp_path / "run").rglob("*"))
    for words, said in (
        (("report", "nowhere"), "is not a run directory"),
        (("report", "run", "--html", "run/page.html"), "lies in the run directory itself"),
        (("export", "run", "rows.xlsx"), "--format"),
        (("export", "run", "nowhere/rows.csv"), "is not a folder"),
        (("export", "nowhere", "rows.csv"), "is not a run directory"),
    ):
        done = batchrun(*words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert sorted((tmp_path / "run").rglob("*")) == before
