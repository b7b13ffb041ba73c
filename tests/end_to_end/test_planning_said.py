"""Commands speak while they plan; a column that no row of a file has is told before it is read."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.processes import read_until
from tests.waiting import HANG_S

Begin = Callable[..., subprocess.Popen[str]]
Batchrun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run"), ("estimate",)])
def test_it_speaks_while_standard_input_is_awaited(begin: Begin, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as rows:
        command, *options = words
        process = begin(
            command, "-", "--model", "m", "-o", "run", "--simulate", *options, stdin=reading
        )
        os.close(reading)
        said = read_until(process, "planning: copying standard input (")
        assert "plan:" not in said.replace("planning:", "")
        rows.write('{"prompt": "a"}\n')
    process.communicate(timeout=HANG_S)
    assert process.returncode == 0


def test_it_says_that_it_waits_for_the_command_of_the_key(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    process = begin(
        *("run", "prompts.jsonl", "--model", "m", "--base-url", "http://127.0.0.1:9/v1"),
        *("--api-key-command", "sleep 3"),
    )
    read_until(process, "planning: waiting for the command of --api-key-command (")
    process.communicate(timeout=HANG_S)
    assert process.returncode == 2


def test_quiet_says_nothing(begin: Begin) -> None:
    reading, writing = os.pipe()
    process = begin("run", "-", "--model", "m", "-o", "run", "--quiet", "--simulate", stdin=reading)
    os.close(reading)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    with os.fdopen(writing, "w") as rows:
        rows.write('{"prompt": "a"}\n')
    assert "planning" not in process.communicate(timeout=HANG_S)[1]


@pytest.fixture
def shards(tmp_path: Path) -> None:
    """Two files, of which the second cannot be read beyond its schema, and lacks a column."""
    folder = tmp_path / "shards"
    folder.mkdir()
    pq.write_table(pa.table({"question": ["a"] * 3, "n": [1, 2, 3]}), folder / "1.parquet")
    pq.write_table(pa.table({"quest": ["a"] * 9, "n": [1] * 9}), folder / "2.parquet")
    with (folder / "1.parquet").open("r+b") as file:  # whoever reads its rows meets this
        file.seek(4)
        file.write(b"\xff" * 12)


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize("words", [("run", "--simulate"), ("run", "--dry-run"), ("estimate",)])
def test_a_column_that_a_parquet_file_lacks_is_told_from_its_schema(
    batchrun: Batchrun, words: tuple[str, ...]
) -> None:
    command, *options = words
    done = batchrun(
        command, "shards", "--prompt", "{{ question }}", "--model", "m", "-o", "run", *options
    )
    assert done.returncode == 2
    assert "2.parquet: the template's column `question` is missing; " in done.stderr
    assert "did you mean" in done.stderr or "nearest" in done.stderr or "quest" in done.stderr


@pytest.mark.parametrize(
    "prompt", ["{{ question | default(quest) }}", "{% if n > 5 %}{{ q }}{% endif %}{{ n }}"]
)
def test_a_column_that_may_be_missing_is_no_problem(
    batchrun: Batchrun, tmp_path: Path, prompt: str
) -> None:
    pq.write_table(pa.table({"quest": ["a", "b"], "n": [1, 2]}), tmp_path / "two.parquet")
    done = batchrun("run", "two.parquet", "--prompt", prompt, "--model", "m", "--simulate")
    assert done.returncode == 0, done.stderr


def test_rows_that_lack_a_column_may_be_passed_over(batchrun: Batchrun, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    pq.write_table(pa.table({"question": ["a", "b"]}), folder / "1.parquet")
    pq.write_table(pa.table({"quest": ["a"]}), folder / "2.parquet")
    done = batchrun(
        *("run", "both", "--prompt", "{{ question }}", "--model", "m", "--simulate"),
        "--skip-bad-rows",
    )
    assert done.returncode == 4
    assert "2 ok" in done.stderr
