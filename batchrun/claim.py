"""The run directory of a job: where it is, and whether the job may have it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from batchrun.errors import JobError
from batchrun.inputs.read import Source, find_source
from batchrun.inputs.requests import HASH_RULE
from batchrun.inputs.standard_input import check_input, keep_input
from batchrun.job import STDIN, Job
from batchrun.records import RunRecord
from batchrun.store.run_dir import RunDir


def kept_input(
    job: Job, run_dir: RunDir, check: Callable[[], None] | None = None
) -> tuple[Source, str | None]:
    """Standard input, kept in the run directory, and its hash. Raises what `check` raises."""
    copy = run_dir.input_dir / "stdin.jsonl"
    if run_dir.record is None:
        return find_source(job.input, copy), keep_input(sys.stdin.buffer, copy, check)
    if not sys.stdin.isatty():
        check_input(sys.stdin.buffer, copy, run_dir.record.input_sha256, check)
    return find_source(job.input, copy), run_dir.record.input_sha256


def refuse_other_use(job: Job, run_dir: RunDir, *, simulate: bool) -> None:
    """A run directory belongs to one source and one kind of endpoint. Raises `JobError`."""
    record = run_dir.record
    if record is None:
        return
    if record.simulated != simulate:
        was, now = ("simulated", "real") if record.simulated else ("real", "simulated")
        raise JobError(
            f"{run_dir.path}: this run directory holds {was} answers, and the run asked for is "
            f"{now}; choose another with -o"
        )
    if not _is_same_source(job, record, run_dir.path):
        raise JobError(
            f"{run_dir.path}: this run directory belongs to another source, {record.source} (as "
            "seen from the directory); choose another with -o"
        )
    if record.hash_rule != HASH_RULE:
        raise JobError(
            f"{run_dir.path}: its requests were told apart by rule {record.hash_rule} of batchrun "
            f"{record.batchrun}, and this version has rule {HASH_RULE}; go on with that one, or "
            "choose another directory with -o"
        )


def _is_same_source(job: Job, record: RunRecord, run_path: Path) -> bool:
    """Whether both were moved together, or the run directory alone."""
    if record.source == source_name(job, run_path):
        return True
    return job.input.path != STDIN and record.source_path == as_utf8(
        str(Path(job.input.path).resolve())
    )


def source_name(job: Job, run_path: Path) -> str:
    """The source as seen from the run directory, so that both can be moved together."""
    if job.input.path == STDIN:
        return STDIN
    try:
        name = os.path.relpath(Path(job.input.path).resolve(), run_path.resolve())
    except ValueError:  # another drive
        name = str(Path(job.input.path).resolve())
    return as_utf8(name)


def as_utf8(path: str) -> str:
    """A path may hold bytes that are no UTF-8, which no JSON can."""
    return path.encode("utf-8", "replace").decode()


def run_path(job: Job, *, simulate: bool = False) -> Path:
    """The run directory. Raises `JobError` where the source gives no name that serves."""
    path = job.output.path
    if path is None:
        if not job.name:
            raise JobError("no run directory: standard input and globs have no name; give -o DIR")
        path = f"runs/{job.name}-simulated" if simulate else f"runs/{job.name}"
    if as_utf8(path) != path:
        raise JobError("the run directory's name is not UTF-8, which Parquet needs; give -o DIR")
    if "\0" in path:
        raise JobError("output.path holds a NUL character, which no file name may; give -o DIR")
    return Path(path)
