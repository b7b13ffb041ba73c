"""The page about a cost review: each of its commands is run, and prints what the page shows."""

import csv
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from tests.doc_examples import ROOT, page, settled, typed_and_shown
from tests.waiting import HANG_S

_NAME = "cost-review"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(_NAME), re.DOTALL | re.MULTILINE)


def commands(text: str, folder: Path) -> list[list[str]]:
    """The words of each `batchrun` that a shell calls there, with loops and globs expanded."""
    done = subprocess.run(
        [
            "/bin/sh",
            "-ec",
            "batchrun() { printf '%s\\037' \"$@\" >&2; printf '\\036' >&2; }\n" + text,
        ],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG_S,
        check=True,
    )
    calls = done.stderr.removesuffix("\036").split("\036")
    return [call.removesuffix("\037").split("\037") for call in calls]


def test_each_command_of_the_page_prints_what_it_shows_and_the_bills_add_up(
    tmp_path: Path, batchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    job, prices = blocks("toml")
    nights, bills = blocks("sh")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "review.toml").write_text(job, encoding="utf-8")
    (tmp_path / ".config" / "batchrun").mkdir(parents=True)
    (tmp_path / ".config" / "batchrun" / "prices.toml").write_text(prices, encoding="utf-8")
    environment = {
        "COLUMNS": "80",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
    }

    def run(text: str) -> str:
        said = ""
        for words in commands(text, tmp_path):
            done = batchrun(*words, env=environment)
            assert done.returncode == 0, done.stderr
            said += done.stdout
        return said

    run(nights)
    assert len(list(tmp_path.glob("runs/*/run.json"))) == 8
    for title in re.findall(r"^## (.*)$", page(_NAME), re.MULTILINE):
        for command, shown in typed_and_shown(_NAME, title):
            assert settled(run(command)) == settled(shown), command

    rows_of_all = duckdb.read_parquet(f"{tmp_path}/runs/*/responses/*.parquet")
    (paid,) = rows_of_all.aggregate("sum(cost_usd), count(*)").fetchall()
    counts = {"bill.csv": 3, "runs.csv": 8}
    for line in bills.splitlines():
        command, _, name = line.partition(" > ")
        (tmp_path / name).write_text(run(command), encoding="utf-8")
        with (tmp_path / name).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == counts.pop(name)
        assert sum(float(row["cost_usd"]) for row in rows) == pytest.approx(paid[0], rel=1e-12)
        assert sum(int(row["rows"]) for row in rows) == paid[1] == 48
        read = duckdb.read_csv(str(tmp_path / name)).aggregate("sum(cost_usd), count(*)").fetchall()
        assert read == [(pytest.approx(paid[0], rel=1e-12), len(rows))]
    assert counts == {}
