"""The page about a cost review: each of its commands is run, and prints what the page shows."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.doc_examples import ROOT, check_console, page
from tests.processes import clean_environment
from tests.waiting import HANG_S

_NAME = "cost-review"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(_NAME), re.DOTALL | re.MULTILINE)


def sh(text: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["/bin/sh", "-ec", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with the eight runs, and an environment to run in."""
    folder = tmp_path_factory.mktemp("review")
    (folder / "examples").symlink_to(ROOT / "examples")
    job, prices = blocks("toml")
    (folder / "review.toml").write_text(job, encoding="utf-8")
    (folder / ".config" / "batchrun").mkdir(parents=True)
    (folder / ".config" / "batchrun" / "prices.toml").write_text(prices, encoding="utf-8")
    commands = folder / "bin"
    commands.mkdir()
    script = commands / "batchrun"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m batchrun "$@"\n')
    script.chmod(0o700)
    environment = {
        **clean_environment(),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "80",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / ".config"),
    }
    nights, _ = blocks("sh")
    sh(nights, folder, environment)
    return folder, environment


@pytest.mark.parametrize("title", re.findall(r"^## (.*)$", page(_NAME), re.MULTILINE))
def test_each_command_prints_what_the_page_shows(
    title: str, reviewed: tuple[Path, dict[str, str]]
) -> None:
    check_console(_NAME, title, *reviewed)


def test_what_finance_gets_adds_up_to_what_the_tables_hold(
    reviewed: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = reviewed
    _, bills = blocks("sh")
    sh(bills, folder, environment)
    rows_of_all = duckdb.read_parquet(f"{folder}/runs/*/responses/*.parquet")
    (paid,) = rows_of_all.aggregate("sum(cost_usd), count(*)").fetchall()
    for name, count in (("bill.csv", 3), ("runs.csv", 8)):
        with (folder / name).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        assert sum(float(row["cost_usd"]) for row in rows) == pytest.approx(paid[0], rel=1e-12)
        assert sum(int(row["rows"]) for row in rows) == paid[1] == 48
        read = duckdb.read_csv(str(folder / name)).aggregate("sum(cost_usd), count(*)").fetchall()
        assert read == [(pytest.approx(paid[0], rel=1e-12), count)]
