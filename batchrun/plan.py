"""The input read and checked once, before anything is sent; what is settled is told from the rest.

A problem in row 734,212 is a message after seconds, not after six hours.
"""

import contextlib
import operator
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.errors import InputError, JobError
from batchrun.inputs.read import PromptSet, Source, find_source
from batchrun.inputs.requests import HASH_RULE
from batchrun.inputs.standard_input import check_input, keep_input
from batchrun.inputs.survey import Survey
from batchrun.job import STDIN, Job
from batchrun.records import Layout, Request, RunRecord, Totals
from batchrun.store.run_dir import SCHEMA_VERSION, RunDir, Settled
from batchrun.version import VERSION

_LARGE_BODY_BYTES = 64 * 1024  # bodies above this on average are not stored unless asked for
_ANSWER_BYTES = 4 * 1024  # a guess at what an answer takes up, before any is known
_SHOWN = 10
_SETTINGS = ("model", "temperature", "top_p", "max_output_tokens", "reasoning")


class Plan(Struct, frozen=True):
    """What a run will do."""

    prompts: PromptSet
    layout: Layout
    rows: int  # in the source
    settled: bytearray  # 1 for each row of the source that is settled
    totals: Totals  # of what is settled
    to_settle: int  # rows not settled, `--limit` regarded
    to_send: int  # of them, those that are not bad
    bad_rows: int  # of the source; they become rows of status `invalid`
    sent: tuple[str, ...]  # source columns
    carried: tuple[str, ...]
    first: Request | None
    warnings: tuple[str, ...]
    store_request: bool
    disk_bytes: int  # expected for what is still to be settled
    free_bytes: int


def kept_input(job: Job, run_dir: RunDir) -> tuple[Source, str | None]:
    """Standard input, kept in the run directory, and its hash."""
    copy = run_dir.input_dir / "stdin.jsonl"
    if run_dir.record is None:
        return find_source(job.input, copy), keep_input(sys.stdin.buffer, copy)
    if not sys.stdin.isatty():
        check_input(sys.stdin.buffer, copy, run_dir.record.input_sha256)
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


def _is_same_source(job: Job, record: RunRecord, run_path: Path) -> bool:
    """Whether both were moved together, or the run directory alone."""
    if record.source == source_name(job, run_path):
        return True
    return job.input.path != STDIN and record.source_path == _as_utf8(
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
    return _as_utf8(name)


def _as_utf8(path: str) -> str:
    """A path may hold bytes that are no UTF-8, which no JSON can."""
    return path.encode("utf-8", "replace").decode()


def run_path(job: Job, *, simulate: bool = False) -> Path:
    """The run directory. Raises `JobError` where the source gives no name that serves."""
    path = job.output.path
    if path is None:
        if not job.name:
            raise JobError("no run directory: standard input and globs have no name; give -o DIR")
        path = f"runs/{job.name}-simulated" if simulate else f"runs/{job.name}"
    if _as_utf8(path) != path:
        raise JobError("the run directory's name is not UTF-8, which Parquet needs; give -o DIR")
    return Path(path)


def dry_run(job: Job, *, simulate: bool = False, limit: int | None = None) -> Plan:
    """What a run would do; sends nothing and leaves nothing behind. Raises as `run_job`."""
    path = run_path(job, simulate=simulate).resolve()
    with contextlib.ExitStack() as stack:
        run_dir = None
        if (path / "run.json").exists():
            run_dir = stack.enter_context(contextlib.closing(RunDir.open(path)))
            refuse_other_use(job, run_dir, simulate=simulate)
        if job.input.path != STDIN:
            source = find_source(job.input)
        elif run_dir is not None:
            source, _ = kept_input(job, run_dir)
        else:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "stdin.jsonl"
            keep_input(sys.stdin.buffer, copy)
            source = find_source(job.input, copy)
        return make_plan(job, source, run_dir, path, limit=limit)


def make_plan(
    job: Job,
    source: Source,
    run_dir: RunDir | None,
    path: Path,
    *,
    limit: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Plan:
    """Reads everything once; `path` is where the run directory is or will be.

    Raises `JobError`, `InputError`, and what `on_rows` raises.
    """
    prompts = PromptSet(source, job.input, job.request)
    record = run_dir.record if run_dir else None
    survey = prompts.survey(record.layout if record else None, on_rows)
    if survey.bad_rows and not job.input.skip_bad_rows:
        raise InputError(_problems(survey))
    settled = bytearray(survey.rows)
    totals = Totals()
    if run_dir is not None and record is not None:
        before = run_dir.settled()
        totals = before.totals
        _mark(settled, survey, before, run_dir)
    wanted = survey.rows if limit is None else min(limit, survey.rows)
    to_settle = settled[:wanted].count(0)
    bad = sum(map(operator.gt, survey.is_bad[:wanted], settled)) if survey.bad_rows else 0
    store_request = _stores_request(job, survey, record.store_request if record else None)
    row_bytes = survey.carried_bytes + (survey.body_bytes if store_request else 0)
    return Plan(
        prompts=prompts,
        layout=survey.layout,
        rows=survey.rows,
        settled=settled,
        totals=totals,
        to_settle=to_settle,
        to_send=to_settle - bad,
        bad_rows=survey.bad_rows,
        sent=survey.sent,
        carried=survey.carried,
        first=survey.first,
        warnings=(
            *(run_dir.warnings if run_dir else ()),
            *survey.warnings,
            *_unsent(survey),
        ),
        store_request=store_request,
        disk_bytes=to_settle * (row_bytes // survey.rows + _ANSWER_BYTES),
        free_bytes=_free_bytes(path),
    )


def _unsent(survey: Survey) -> list[str]:
    """Columns that look like settings of the request and are not sent."""
    names = [name for name in survey.carried if name in _SETTINGS and name not in survey.sent]
    if not names:
        return []
    said = ", ".join(names)
    return [f"{said}: carried, not sent; rows that set it themselves need it in [input] send"]


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _problems(survey: Survey) -> str:
    lines = []
    for row in survey.problems:
        where = f"{row.source}:{row.line}" if row.line else f"{row.source}, row {row.row}"
        lines.append(f"  {where}: {row.message}")
    more = survey.bad_rows - len(survey.problems)
    if more > 0:
        lines.append(f"  and {more:,} more")
    count = "1 row" if survey.bad_rows == 1 else f"{survey.bad_rows:,} rows"
    return (
        f"{count} of {survey.rows:,} cannot be sent:\n"
        + "\n".join(lines)
        + "\nMend the input, or give --skip-bad-rows to keep them as rows of status invalid"
    )


def _stores_request(job: Job, survey: Survey, pinned: bool | None) -> bool:
    if job.output.store_request is not None:
        return job.output.store_request
    if pinned is not None:
        return pinned
    return survey.body_bytes <= _LARGE_BODY_BYTES * survey.rows


def _mark(settled: bytearray, survey: Survey, before: Settled, run_dir: RunDir) -> None:
    """Marks what is settled. Raises `InputError` where a settled row changed or is gone."""
    changed: list[int] = []
    elsewhere: dict[int, int] = {}  # id to index in `before`, of rows that moved or left
    rows, ids = survey.rows, survey.ids
    for index, row in enumerate(before.rows):
        if row < rows and (ids is None or ids[row] == before.ids[index]):
            if survey.hashes[row] == before.hashes[index]:
                settled[row] = 1
            else:
                changed.append(row)
        else:
            elsewhere[before.ids[index]] = index
    if elsewhere and ids is not None:
        for row, key in enumerate(ids):
            index = elsewhere.pop(key, -1)
            if index < 0:
                continue
            if survey.hashes[row] == before.hashes[index]:
                settled[row] = 1
            else:
                changed.append(before.rows[index])
    if changed or elsewhere:
        gone = [before.rows[index] for index in elsewhere.values()]
        raise InputError(_differences(sorted(changed), sorted(gone), run_dir))


def _differences(changed: list[int], gone: list[int], run_dir: RunDir) -> str:
    lines = []
    for rows, said in ((changed, "its request is another one now"), (gone, "no longer there")):
        names = run_dir.ids_of(rows[:_SHOWN])
        lines += [f"  {names.get(row, row)} (row {row}): {said}" for row in rows[:_SHOWN]]
    count = len(changed) + len(gone)
    return (
        f"{run_dir.path}: {count:,} settled rows do not agree with the input any more:\n"
        + "\n".join(lines[:_SHOWN])
        + "\nGive back the input, model and settings that the run was begun with, or start a new "
        "run directory with -o"
    )


def make_record(
    job: Job,
    plan: Plan,
    run_dir: RunDir,
    simulate: bool,
    command: str | None,
    sha256: str | None,
) -> RunRecord:
    """What `run.json` says while the plan is carried out; never a secret."""
    sections = msgspec.to_builtins(job)
    sections["endpoint"]["headers"] = sorted(job.endpoint.headers)
    now_at = time.time_ns() // 1000
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        hash_rule=HASH_RULE,
        batchrun=VERSION,
        python=platform.python_version(),
        state="running",
        command=command,
        simulated=simulate,
        source=source_name(job, run_dir.path),
        source_path=(
            "" if job.input.path == STDIN else _as_utf8(str(Path(job.input.path).resolve()))
        ),
        job=sections,
        layout=plan.layout,
        store_request=plan.store_request,
        rows=plan.rows,
        started_at=run_dir.record.started_at if run_dir.record else now_at,
        updated_at=now_at,
        input_sha256=sha256,
        totals=plan.totals,
    )
