"""Disks that fail under a run: what was in flight is kept if they recover, and the run resumes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from batchrun.store.journal import Frame, scan
from tests.processes import read_rest, read_until
from tests.waiting import HANG_S

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


def test_a_full_disk_stops_sending_and_what_was_in_flight_is_kept_when_space_returns(
    source: Path, begin: Begin, batchrun: Run, simulator: Any, stats: Any, totals: Any
) -> None:
    base_url = simulator("--latency", "0.02")
    command = ("run", source, *_ASK, "--base-url", base_url)
    run = begin(*command, preexec_fn=_limit_files)
    said = read_until(run, _WAITS)
    sent = stats(base_url)["requests"]
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    rest = read_rest(run)
    assert run.returncode == 1, said + rest
    assert "raise the limit on file size" in rest
    assert "all answers that had arrived are stored" in rest
    assert sent < _ROWS
    assert stats(base_url)["requests"] == sent
    again = batchrun(*command)
    assert again.returncode == 0, again.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(base_url)["completions"] == _ROWS  # nothing was paid for twice


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 kB; skips where none can be mounted."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=400k", "batchrun", path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["/bin/umount", "--lazy", path], check=True)


def test_a_small_disk_that_fills_up_is_said_and_more_space_lets_the_run_end(
    source: Path, small_disk: Path, begin: Begin, batchrun: Run, simulator: Any, stats: Any
) -> None:
    base_url = simulator("--latency", "0.02")
    run_dir = small_disk / "run"
    ask = [run_dir if word == "run" else word for word in _ASK]
    command = ("run", source, *ask, "--base-url", base_url)
    run = begin(*command)
    said = read_until(run, _WAITS)
    assert "free space on this disk" in said
    subprocess.run(["/bin/mount", "-o", "remount,size=60m", small_disk], check=True)
    rest = read_rest(run)
    assert run.returncode == 1, said + rest
    assert "all answers that had arrived are stored" in rest
    again = batchrun(*command)
    assert again.returncode == 0, again.stderr
    assert stats(base_url)["completions"] == _ROWS  # nothing was paid for twice
    proof = batchrun("verify", run_dir)
    assert proof.returncode == 0, proof.stdout


def test_a_slow_disk_slows_the_sending_and_memory_does_not_fill(
    source: Path, tmp_path: Path, begin: Begin, simulator: Any, stats: Any, totals: Any
) -> None:
    """Each write to the journal takes 20 ms; the server could answer ten times as fast."""
    base_url = simulator("--latency", "0.02")
    slow = (sys.executable, str(Path(__file__).parent / "slow_disk.py"), "0.02")
    run = begin("run", source, *_ASK, "--base-url", base_url, command=slow)
    most, binds = 0, set()
    while run.poll() is None:
        kept = _kept(tmp_path / "run")
        if kept is not None:
            most = max(most, stats(base_url)["completions"] - kept)
        with suppress(OSError, ValueError):
            binds.add(json.loads((tmp_path / "run" / "live.json").read_bytes()).get("binds"))
    assert run.returncode == 0, run.communicate()[1]
    assert totals() == (_ROWS, _ROWS, _ROWS)
    # What has arrived and is not stored keeps its place: nothing more is sent instead.
    assert 0 < most <= 2 * 8
    assert any(said and said.startswith("the disk (") for said in binds), binds


def _kept(run: Path) -> int | None:
    """Outcomes in the journal; null before it is there, and once it is sealed."""
    paths = list((run / "journal").glob("*.log"))
    if not paths:
        return None
    try:
        with paths[0].open("rb") as file:
            return sum(isinstance(found, Frame) for found in scan(file))
    except FileNotFoundError:  # sealed since it was found
        return None


def test_a_disk_that_stays_full_ends_the_run_with_words_and_it_resumes(
    source: Path, tmp_path: Path, begin: Begin, batchrun: Run, simulator: Any, totals: Any
) -> None:
    command = ("run", source, *_ASK, "--base-url", simulator("--latency", "0.02"))
    run = begin(*command, preexec_fn=_limit_files)
    said = read_until(run, _WAITS)
    run.send_signal(signal.SIGINT)  # nobody wants to wait for a minute here
    run.send_signal(signal.SIGTERM)
    rest = read_rest(run)
    assert run.returncode == 1, said + rest
    assert "could not be stored" in rest
    assert "Traceback" not in said + rest
    record = json.loads((tmp_path / "run" / "run.json").read_bytes())
    assert record["unknown_usd"] > 0  # they were paid for, and are in no table
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
    _, said = run.communicate(timeout=HANG_S)
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
        _, said = run.communicate(timeout=HANG_S)
    finally:
        (tmp_path / "run").chmod(0o700)
    assert run.returncode == 1, said
    assert "allow this user to read and write there" in said
