"""A place where no run directory can be is refused before the input is read."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Batchrun = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("run", "prompts.jsonl", "--model", "m", "--simulate")


@pytest.fixture(autouse=True)
def _rows_that_would_be_refused_when_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("no JSON\n")


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("ftp://bucket/out", "a run directory is a local folder, or in a store"),
        ("gs:/bucket/out", "and gs: is neither"),
        ("file:///tmp/out", "and file: is neither"),
        ("s3://bucket", "a run is a folder in a bucket"),
        ("prompts.jsonl", "prompts.jsonl is a file"),
        ("prompts.jsonl/deep/run", "prompts.jsonl is a file"),
    ],
)
def test_a_place_that_cannot_be_is_refused_with_a_hint(
    batchrun: Batchrun, tmp_path: Path, place: str, said: str, option: tuple[str, ...]
) -> None:
    done = batchrun(*RUN, "-o", place, *option)
    assert done.returncode == 2
    assert said in done.stderr
    assert "-o" in done.stderr
    assert "not JSON" not in done.stderr
    assert os.listdir(tmp_path) == ["prompts.jsonl"]  # noqa: PTH208 - names alone


def test_estimate_refuses_it_too(batchrun: Batchrun) -> None:
    done = batchrun("estimate", "prompts.jsonl", "--model", "m", "-o", "ftp://bucket/out")
    assert done.returncode == 2
    assert "a run directory is a local folder" in done.stderr


def test_a_job_file_s_place_is_refused_as_it_stands_there(
    batchrun: Batchrun, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    text = (
        "[input]\npath = '../prompts.jsonl'\n[request]\nmodel = 'm'\n[output]\npath = 'ftp://b/o'\n"
    )
    (tmp_path / "jobs" / "job.toml").write_text(text)
    done = batchrun("run", "jobs/job.toml", "--simulate")
    assert done.returncode == 2
    assert "ftp://b/o: a run directory is a local folder" in done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody may write to")
def test_a_folder_that_cannot_be_written_is_refused(batchrun: Batchrun, tmp_path: Path) -> None:
    done = batchrun(*RUN, "-o", "/proc/run")
    assert done.returncode == 2
    assert "-o" in done.stderr
    assert "not JSON" not in done.stderr
    if os.geteuid() != 0:  # root may write everywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        for option in ((), ("--dry-run",)):
            done = batchrun(*RUN, "-o", "closed/run", *option)
            assert done.returncode == 2
            assert "cannot be written by this user; give another place with -o" in done.stderr
