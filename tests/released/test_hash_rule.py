"""A run that was begun with hash rule 2, before settings were converted, goes on with it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from tests.processes import ForkServer
from tests.runs import read_record
from tests.torture.server import Server

BEGUN = Path(__file__).parent / "rule_2"
LEFT = ["chat left", "alpaca left", "invalid", "merged left"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the run: four of its eight rows are complete."""
    shutil.copytree(BEGUN, tmp_path / "begun")
    record = tmp_path / "begun/run/run.json"
    record.write_text(record.read_text().replace('"simulated": true', '"simulated": false'))
    return tmp_path / "begun"


@pytest.fixture
def batchrun(fork_server: ForkServer, environment: dict[str, str], folder: Path) -> Run:
    """`batchrun ...` in the folder, to its end."""
    return lambda *words: fork_server.run(folder, environment, *words)


def test_complete_rows_are_not_sent_again_and_others_as_this_version_makes_them(
    folder: Path, batchrun: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    server = Server(tmp_path, environment, "--latency", "0")
    try:
        done = batchrun("run", "job.toml", "--base-url", server.base_url)
        assert done.returncode == 4, done.stderr  # a row that failed before
        assert server.counts().requests == len(LEFT)
        assert "all 8 rows would be sent in another way" in done.stderr
        again = batchrun("run", "job.toml", "--base-url", server.base_url)
        assert again.returncode == 4
        assert server.counts().requests == len(LEFT)
    finally:
        server.close()
    record = read_record(folder / "run")
    assert (record["hash_rule"], record["state"]) == (2, "finished")
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT custom_id, request FROM read_parquet(?)",
            [f"{folder}/run/responses/*.parquet"],
        ).fetchall()
    requests = {name: json.loads(text) for name, text in rows}
    assert len(rows) == len(requests) == 8
    assert requests["alpaca"]["input"] == "hello"
    assert requests["alpaca left"]["input"] == "Translate\n\ngoodbye"
    assert requests["chat left"]["reasoning"] == {"effort": "low", "summary": "auto"}
    assert requests["merged left"]["metadata"] == {"a": "2", "project": "p"}
    assert requests["invalid"]["input"] == [{"role": "user", "content": "Seven?"}]
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout


def test_a_row_that_changed_is_still_noticed(folder: Path, batchrun: Run) -> None:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("Two?", "Three?"))
    done = batchrun("run", "job.toml", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert "merged (row 1): its request has changed" in done.stderr
