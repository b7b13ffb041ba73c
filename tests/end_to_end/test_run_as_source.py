"""A run directory is a source: a judge, or a second pass over answers."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_FIRST = ("run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "gpt-4.1")
_JUDGE = ("--prompt", "Right? {{ question }} {{ output_text }}", "--model", "gpt-4.1")


@pytest.fixture
def answered(batchrun: Run, write_rows: Callable[..., Path], questions: Callable[..., Any]) -> str:
    """A run that has ended, of ten rows."""
    rows = [{"custom_id": f"r{n}", **row} for n, row in enumerate(questions(10))]
    write_rows(rows)
    assert batchrun(*_FIRST, "--simulate", "-o", "first").returncode == 0
    return "first"


def _columns(query: Query, run: str) -> list[str]:
    return [name for name, *_ in query("DESCRIBE SELECT * FROM read_parquet(?)", run)]


def test_answers_are_rows_that_carry_little(answered: str, batchrun: Run, query: Query) -> None:
    done = batchrun("run", answered, *_JUDGE, "--simulate")
    assert done.returncode == 2
    assert "give -o DIR" in done.stderr
    done = batchrun("run", answered, *_JUDGE, "--simulate", "-o", "second")
    assert done.returncode == 0, done.stderr
    first = query(
        "SELECT custom_id, question, answer, level, output_text FROM read_parquet(?)", answered
    )
    second = query(
        "SELECT custom_id, question, answer, level, output_text_input FROM read_parquet(?)",
        "second",
    )
    assert sorted(second) == sorted(first)
    carried = [*_columns(query, answered)]
    assert set(_columns(query, "second")) - set(carried) == {"output_text_input"}
    sent = query("SELECT custom_id, request->>'input' FROM read_parquet(?)", "second")
    texts = {name: f"Right? {question} {text}" for name, question, _, _, text in first}
    assert dict(sent) == texts
    # The same command again knows its rows by their ids, and a third run may follow.
    done = batchrun("run", answered, *_JUDGE, "--simulate", "-o", "second")
    assert "10 complete, 0 to send" in done.stderr
    done = batchrun(
        *("run", "second", "--prompt", "{{ output_text_input }} {{ output_text }}"),
        *("--model", "gpt-4.1", "--simulate", "-o", "third", "--carry", "model"),
    )
    assert done.returncode == 0, done.stderr
    assert query("SELECT DISTINCT model_input FROM read_parquet(?)", "third") == [("gpt-4.1",)]


def test_without_a_template_only_what_the_first_run_carried_is_a_request(
    batchrun: Run, query: Query, write_rows: Callable[..., Path]
) -> None:
    write_rows([{"prompt": "hello", "custom_id": "a"}])
    words = ("--model", "gpt-4.1", "--simulate")
    assert batchrun("run", "prompts.jsonl", *words, "--carry", "prompt", "-o", "a").returncode == 0
    assert batchrun("run", "a", "--model", "gpt-4.1-mini", "--simulate", "-o", "b").returncode == 0
    (request,) = query("SELECT request FROM read_parquet(?)", "b")[0]
    assert json.loads(request) == {"input": "hello", "model": "gpt-4.1-mini"}


def test_rows_that_are_only_in_the_journal_are_rows_too(
    tmp_path: Path,
    simulator: Callable[..., str],
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Run,
    wait_until: Callable[..., None],
    write_rows: Callable[..., Path],
    questions: Callable[..., Any],
    query: Query,
) -> None:
    """A killed run has all its rows in the journal."""
    write_rows({"custom_id": f"r{n}", **row} for n, row in enumerate(questions(40)))
    url = simulator("--latency", "0.05")
    first = begin(*_FIRST, "--base-url", url, "--concurrency", 4, "-o", "first")
    journal = tmp_path / "first" / "journal"

    def some_rows() -> bool:
        return sum(log.stat().st_size for log in journal.glob("*.log")) > 20_000

    wait_until(some_rows, first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(HANG_S)
    done = batchrun("run", "first", *_JUDGE, "--simulate", "-o", "second")
    assert done.returncode == 0, done.stderr
    (count,) = query("SELECT count(*) FROM read_parquet(?)", "second")[0]
    assert 1 <= count <= 40
    sources = query("SELECT DISTINCT source FROM read_parquet(?)", "second")
    assert all(name.startswith("journal/") for (name,) in sources)
    assert not list(tmp_path.glob("first/responses/*.parquet"))  # nothing was changed there


def test_a_row_that_was_sent_again_and_is_not_sealed_is_one_row(
    tmp_path: Path,
    simulator: Callable[..., str],
    begin: Callable[..., "subprocess.Popen[str]"],
    batchrun: Run,
    wait_until: Callable[..., None],
    query: Query,
    write_rows: Callable[..., Path],
) -> None:
    """Its older outcome is in a part, its newer one in the journal of a killed command."""
    write_rows({"custom_id": f"r{n}", "prompt": f"p{n}"} for n in range(9))
    url = simulator("--latency", "0.3")
    words = ("run", "prompts.jsonl", "--model", "gpt-4.1", "--base-url", url, "-o", "first")
    assert batchrun(*words).returncode == 0
    write_rows({"custom_id": f"r{n}", "prompt": f"new{n}"} for n in range(9))
    again = begin(*words, "--rerun-changed", "--concurrency", 1)
    journal = tmp_path / "first" / "journal"

    def one_row() -> bool:
        return sum(log.stat().st_size for log in journal.glob("*.log")) > 1_000

    wait_until(one_row, again)
    os.kill(again.pid, signal.SIGKILL)
    again.wait(HANG_S)
    prompt = ("--prompt", "{{ request }}", "--model", "gpt-4.1", "--simulate")
    done = batchrun("run", "first", *prompt, "-o", "second")
    assert done.returncode == 0, done.stderr
    found = query("SELECT custom_id, request->>'input' FROM read_parquet(?)", "second")
    assert sorted(name for name, _ in found) == [f"r{n}" for n in range(9)]
    newer = [name for name, text in found if "new" in text]
    assert 1 <= len(newer) < 9


def test_a_run_directory_without_rows_is_refused(
    tmp_path: Path, answered: str, batchrun: Run
) -> None:
    for part in (tmp_path / answered / "responses").glob("*.parquet"):
        part.unlink()
    done = batchrun("run", answered, *_JUDGE, "--simulate", "-o", "second")
    assert done.returncode == 2
    assert "first: this run directory holds no rows yet" in done.stderr
