"""Disks that fail under a run: what was in flight is kept if they recover, and the run resumes."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]

_ROWS = 300
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run", "--concurrency", "8")
_LIMIT = 100_000  # bytes in a file: some fifty rows of the journal
_WAITS = "waiting for the disk"


@pytest.fixture
def source(write_rows: Any, questions: Any) -> Path:
    path: Path = write_rows(questions(_ROWS))
    return path


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, resource.RLIM_INFINITY))


def _said_until(run: "Popen[str]", words: str) -> str:
    """What it says on standard error until these words come."""
    said = ""
    assert run.stderr is not None
    for line in run.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def test_a_full_disk_stops_sending_and_what_was_in_flight_is_kept_when_space_returns(
    source: Path, begin: Begin, batchrun: Run, simulator: Any, stats: Any, totals: Any
) -> None:
    base_url = simulator("--latency", "0.02")
    command = ("run", source, *_ASK, "--base-url", base_url)
    run = begin(*command, preexec_fn=_limit_files)
    said = _said_until(run, _WAITS)
    sent = stats(base_url)["requests"]
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    _, rest = run.communicate(timeout=60)
    assert run.returncode == 1, said + rest
    assert "raise the limit on file size" in rest
    assert "all answers that had arrived are kept" in rest
    assert sent < _ROWS
    assert stats(base_url)["requests"] == sent
    again = batchrun(*command)
    assert again.returncode == 0, again.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(base_url)["completions"] == _ROWS  # nothing was paid for twice


def test_a_disk_that_stays_full_ends_the_run_with_words_and_it_resumes(
    source: Path, begin: Begin, batchrun: Run, simulator: Any, totals: Any
) -> None:
    command = ("run", source, *_ASK, "--base-url", simulator("--latency", "0.02"))
    run = begin(*command, preexec_fn=_limit_files)
    said = _said_until(run, _WAITS)
    run.send_signal(signal.SIGINT)  # nobody wants to wait for a minute here
    run.send_signal(signal.SIGTERM)
    _, rest = run.communicate(timeout=60)
    assert run.returncode == 1, said + rest
    assert "could not be kept" in rest
    assert "Traceback" not in said + rest
    again = batchrun(*command)
    assert again.returncode == 0, again.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)


def test_a_run_directory_deleted_under_the_run_ends_it_soon(
    source: Path, tmp_path: Path, begin: Begin, simulator: Any, wait_until: Any, stats: Any
) -> None:
    base_url = simulator("--latency", "0.2")
    run = begin("run", source, *_ASK, "--base-url", base_url)
    wait_until((tmp_path / "run" / "live.json").exists, run)
    shutil.rmtree(tmp_path / "run")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1, said
    assert "deleted" in said
    assert stats(base_url)["requests"] < _ROWS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_gone_read_only_stops_the_run(
    source: Path, tmp_path: Path, begin: Begin, simulator: Any, wait_until: Any
) -> None:
    run = begin("run", source, *_ASK, "--base-url", simulator("--latency", "0.2"))
    wait_until((tmp_path / "run" / "live.json").exists, run)
    (tmp_path / "run").chmod(0o500)
    try:
        _, said = run.communicate(timeout=60)
    finally:
        (tmp_path / "run").chmod(0o700)
    assert run.returncode == 1, said
    assert "allow this user to read and write there" in said
