"""What a run will do: the input read and checked once, before anything is sent.

A problem in row 734,212 is a message after seconds, not after six hours.
"""

import contextlib
import operator
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import InputError, JobError
from batchrun.formats.amounts import plural, usd
from batchrun.formats.json_text import as_utf8
from batchrun.inputs.prompt_set import MAX_MODELS, OnBody, PromptSet, Source, Survey, find_source
from batchrun.inputs.requests import HASH_RULE, OLDER_HASH_RULE
from batchrun.inputs.sources import check_stdin, store_stdin
from batchrun.job.job_file import with_user_prices
from batchrun.job.sections import STDIN, Job
from batchrun.pricing.prices import Prices, check_prices
from batchrun.records import NOTHING_SENT_AGAIN, Layout, Pilot, Request, Resend, RunRecord
from batchrun.runner.output_place import refuse_place, refuse_scheme
from batchrun.runner.resume import Resumed, match_rows
from batchrun.store.columns import layout_of
from batchrun.store.parts import count_rows
from batchrun.store.reading import read_unknown_usd
from batchrun.store.run_dir import SCHEMA_VERSION, RunDir
from batchrun.version import VERSION

if TYPE_CHECKING:
    from batchrun.runner.row_filter import RowFilter


def stored_input(
    job: Job, run_dir: RunDir, check: Callable[[], None] = lambda: None
) -> tuple[Source, str | None]:
    """Standard input, stored in the run directory, and its hash. Raises what `check` raises."""
    copy = run_dir.input_dir / "stdin.jsonl"
    if run_dir.record is None:
        return find_source(job.input, copy), store_stdin(sys.stdin.buffer, copy, check)
    if not sys.stdin.isatty():
        check_stdin(sys.stdin.buffer, copy, run_dir.record.input_sha256, check)
    return find_source(job.input, copy), run_dir.record.input_sha256


def refuse_other_use(job: Job, run_dir: RunDir, *, simulate: bool) -> None:
    """A run directory belongs to one source and one kind of endpoint. Raises `JobError`."""
    record = run_dir.record
    if record is None:
        return
    if record.imported:
        raise JobError(
            f"{run_dir.path}: this run directory holds imported answers, to which nothing is sent; "
            "choose another with -o"
        )
    if record.simulated != simulate:
        was, now = ("simulated", "real") if record.simulated else ("real", "simulated")
        raise JobError(
            f"{run_dir.path}: this run directory holds {was} answers, and the run asked for is "
            f"{now}; choose another with -o"
        )
    path = _full_source(job)  # the same source, where both were moved together or the run alone
    is_same = record.source == source_name(job, run_dir.path) or path == record.source_path != ""
    if not is_same:
        raise JobError(
            f"{run_dir.path}: this run directory belongs to another source, {record.source} (as "
            "seen from the directory); choose another with -o"
        )
    if record.hash_rule not in (HASH_RULE, OLDER_HASH_RULE):
        raise JobError(
            f"{run_dir.path}: its requests were hashed by rule {record.hash_rule} of batchrun "
            f"{record.batchrun}, and this version has rule {HASH_RULE}; go on with that one, or "
            "choose another directory with -o"
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


def _full_source(job: Job) -> str:
    """Empty for standard input."""
    return "" if job.input.path == STDIN else as_utf8(str(Path(job.input.path).resolve()))


def run_path(job: Job, *, simulate: bool = False) -> Path:
    """The run directory. Raises `JobError` where the source gives no name that serves."""
    path = job.output.path
    if path is None:
        if not job.name:
            raise JobError(
                "no run directory: standard input, globs and run directories as a source have no "
                "name for it; give -o DIR"
            )
        path = f"runs/{job.name}-simulated" if simulate else f"runs/{job.name}"
    refuse_scheme(path)
    if as_utf8(path) != path:
        raise JobError("the run directory's name is not UTF-8, which Parquet needs; give -o DIR")
    if "\0" in path:
        raise JobError("output.path holds a NUL character, which no file name may; give -o DIR")
    return Path(path)


_PILOT_SEED = 7_411
_LARGE_BODY_BYTES = 64 * 1024  # bodies above this on average are not stored unless asked for
_ANSWER_BYTES = 4 * 1024  # a guess at what an answer takes up, before any is known


class Plan(Struct, frozen=True):
    """What a run will do."""

    prompts: PromptSet
    layout: Layout
    rows: int  # in the source
    resumed: Resumed  # what is complete, and what of it is sent again
    pilot: Pilot | None  # random rows, drawn now or earlier to estimate what all will cost
    to_complete: int  # rows that have no outcome or are sent again, within `--limit`
    limited_to: str  # the rows that this command asks for, in words; empty: all
    to_send: int  # of them, those that are not bad
    bad_rows: int  # of the source; they become rows of status `invalid`
    sent: tuple[str, ...]  # source columns
    carried: tuple[str, ...]
    first: Request | None  # that can be sent; of a dry run: that would be
    warnings: tuple[str, ...]
    store_request: bool
    disk_bytes: int  # expected for what is still to be completed
    free_bytes: int
    unfinished_usd: float = 0.0  # spent on answers of rows that have no outcome yet
    limit: int | None = None  # rows of the source after which none is asked for; null: all are
    sampled: Pilot | None = None  # random rows of `--sample-rows`, drawn now or earlier
    forms: dict[str, int] = msgspec.field(default_factory=dict)  # what rows are taken for: how many

    @property
    def rows_in_all(self) -> int:
        """Complete once this is carried out."""
        return self.resumed.totals.rows - self.resumed.resent.rows + self.to_complete


def dry_run(
    job: Job,
    *,
    simulate: bool = False,
    limit: int | None = None,
    sample_rows: int = 0,
    resend: Resend = NOTHING_SENT_AGAIN,
    on_body: OnBody | None = None,
    is_new: bool = False,
    doing: Callable[[str], None] = lambda _what: None,
) -> Plan:
    """What a run would do; sends nothing and leaves nothing behind. Raises as `run_job`.

    `is_new`: as if there were no run directory. `on_body`: see `PromptSet.survey`. `doing`: see
    `make_plan`.
    """
    path = run_path(job, simulate=simulate).resolve()
    refuse_place(path)
    with contextlib.ExitStack() as stack:
        run_dir = None
        if not is_new and (path / "run.json").exists():
            run_dir = stack.enter_context(contextlib.closing(RunDir.open(path)))
            refuse_other_use(job, run_dir, simulate=simulate)
        if job.input.path != STDIN:
            source = find_source(job.input)
        elif run_dir is not None:
            source, _ = stored_input(job, run_dir)
        else:
            doing("copying standard input")
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "stdin.jsonl"
            store_stdin(sys.stdin.buffer, copy)
            source = find_source(job.input, copy)
        plan = make_plan(
            job,
            source,
            run_dir,
            path,
            limit=limit,
            sample_rows=sample_rows,
            resend=resend,
            doing=doing,
            on_body=on_body,
        )
        if not plan.to_send:
            return replace(plan, first=None)
        rows = plan.prompts.requests(plan.layout, plan.resumed.complete, plan.limit)
        return replace(plan, first=next((row for row in rows if isinstance(row, Request)), None))


def make_plan(
    job: Job,
    source: Source,
    run_dir: RunDir | None,
    path: Path,
    *,
    limit: int | None = None,
    sample_rows: int = 0,
    pilot: int = 0,
    resend: Resend = NOTHING_SENT_AGAIN,
    check: Callable[[], None] = lambda: None,
    doing: Callable[[str], None] = lambda _what: None,
    on_body: OnBody | None = None,
    prices: Prices | None = None,
) -> Plan:
    """Reads everything once; `path` is where the run directory is or will be.

    `pilot` and `sample_rows`: so many random rows alone are sent; the record remembers them. Rows
    of a pilot are drawn of those that have no outcome.
    `prices` (null: made here where a cap asks for them) know all models of the source afterwards.
    `doing` is told in words what is done, and `check` is asked now and then whether to go on.
    Raises `JobError`, `InputError`, and what `check` raises.
    """

    def on_rows(rows: int) -> None:
        check()
        doing(f"reading {source.spec}, {plural(rows, 'row')} so far")

    doing(f"reading {source.spec}")
    where = None
    if job.input.where is not None:
        from batchrun.runner.row_filter import RowFilter  # noqa: PLC0415 - DuckDB: 13 MB

        where = RowFilter(job.input.where)
    record = run_dir.record if run_dir else None
    hash_rule = record.hash_rule if record else HASH_RULE
    prompts = PromptSet(source, job.input, job.request, hash_rule)
    cap_usd = job.limits.max_cost_usd
    survey = prompts.survey(
        record.layout if record else None,
        on_rows,
        mark_unbounded=cap_usd is not None,
        on_body=on_body,
    )
    survey, excluded = _fitting(where, prompts, survey, doing)
    if survey.bad_rows and not job.input.skip_bad_rows:
        raise InputError(_problems(survey))
    if survey.refusal and record is None:  # a run that was begun so may go on
        raise InputError(f"{source.spec}: {survey.refusal}")
    sampled = record.sampled if record else None
    if sample_rows:
        sampled = draw_sample(sampled, sample_rows, excluded, survey.is_bad)
        excluded = _all_but(sampled.rows[:sample_rows], survey.rows)
    if excluded is not None and limit is not None:
        limit = _row_of_limit(excluded, limit)
    if run_dir is not None and record is not None:
        doing(f"comparing {plural(survey.rows, 'row')} with what {path} holds")
        resumed = match_rows(survey, run_dir, resend, limit, excluded)
    else:
        resumed = Resumed(bytearray(survey.rows), bytearray(survey.rows))
    complete = resumed.complete
    if excluded is not None:
        complete = bytearray(map(operator.or_, complete, excluded))
    if cap_usd is not None:
        _check_models(prices or known_prices(job), survey)
    elif prices is not None:  # a look-up loads the list: better here than between two answers
        for model in survey.models:
            prices.find(model, None, time.time_ns() // 1000)
    wanted = survey.rows if limit is None else min(limit, survey.rows)
    drawn = record.pilot if record else None
    if pilot:
        drawn = draw_pilot(drawn, pilot, complete[:wanted], survey.is_bad[:wanted])
        others = _all_but(drawn.rows, survey.rows)  # nothing but these rows is sent
        complete = bytearray(map(operator.or_, complete, others))
    resumed = replace(resumed, complete=complete)
    to_complete = complete[:wanted].count(0)
    bad = sum(map(operator.gt, survey.is_bad[:wanted], complete)) if survey.bad_rows else 0
    bounds = survey.is_unbounded
    unbounded = sum(map(operator.gt, bounds[:wanted], complete)) if bounds else 0
    store_request = _stores_request(job, record, survey)
    row_bytes = survey.carried_bytes + (survey.body_bytes if store_request else 0)
    return Plan(
        prompts=prompts,
        layout=survey.layout,
        rows=survey.rows,
        resumed=resumed,
        pilot=drawn,
        to_complete=to_complete,
        limited_to=_limited_to(job, limit, pilot, sample_rows, survey.rows, excluded),
        to_send=to_complete - bad,
        bad_rows=survey.bad_rows,
        sent=survey.sent,
        carried=survey.carried,
        first=survey.first,
        warnings=(
            *(run_dir.warnings if run_dir else ()),
            *survey.warnings,
            *filter(None, [survey.refusal]),
            *resumed.warnings,
            *_past_the_cap(cap_usd, unbounded, to_complete - bad, resumed, record, path),
        ),
        store_request=store_request,
        disk_bytes=to_complete * (row_bytes // survey.rows + _ANSWER_BYTES),
        free_bytes=_free_bytes(path),
        unfinished_usd=run_dir.unfinished.cost_usd if run_dir is not None else 0.0,
        forms=survey.forms,
        limit=limit,
        sampled=sampled,
    )


def _fitting(
    where: "RowFilter | None", prompts: PromptSet, survey: Survey, doing: Callable[[str], None]
) -> tuple[Survey, bytearray | None]:
    """The survey without the problems of rows that `where` leaves out, and marks of these rows.

    Raises `InputError` where none is left.
    """
    if where is None:
        return survey, None
    doing("asking which rows fit --where")
    excluded = where.excluded(prompts.spans(), prompts.json_rows())
    if 0 not in excluded:
        raise InputError(
            f"--where (where in [input]) fits none of {plural(survey.rows, 'row')}; change it"
        )
    if not survey.bad_rows:
        return survey, excluded
    problems = tuple(bad for bad in survey.problems if not excluded[bad.row])
    is_bad = bytearray(map(operator.gt, survey.is_bad, excluded))
    return replace(survey, is_bad=is_bad, problems=problems), excluded


def draw_sample(
    before: Pilot | None, rows: int, excluded: bytearray | None, is_bad: bytearray
) -> Pilot:
    """Random rows of those that are asked for and not bad, the first of which are meant.

    Those of an earlier sample come first, in the same order, so that a larger one holds them.
    """
    excluded = excluded or bytearray(len(is_bad))
    if before is not None:
        of = len(is_bad)
        same = [row for row in before.rows if row < of and not excluded[row] and not is_bad[row]]
        before = Pilot(tuple(same), of)
    return draw_pilot(before, rows, excluded, is_bad)


def _all_but(rows: Iterable[int], of: int) -> bytearray:
    """Marks of all but these rows."""
    marks = bytearray(b"\1") * of
    for row in rows:
        marks[row] = 0
    return marks


def _stores_request(job: Job, record: RunRecord | None, survey: Survey) -> bool:
    if job.output.store_request is not None:
        return job.output.store_request
    fits = survey.body_bytes <= _LARGE_BODY_BYTES * survey.rows
    return record.store_request if record else fits


def _row_of_limit(excluded: bytearray, limit: int) -> int:
    """The row before which so many are asked for."""
    row = -1
    for _ in range(limit):
        row = excluded.find(0, row + 1)
        if row < 0:
            return len(excluded)
    return row + 1


def draw_pilot(
    before: Pilot | None, rows: int, complete: Sequence[int], is_bad: Sequence[int]
) -> Pilot:
    """So many random rows of those that can be sent and are not complete, or all of these.

    `complete` and `is_bad` hold a mark for each row of the source, as far as it is asked for.
    Rows that an earlier pilot over as many rows drew stay; more are drawn besides.
    """
    of = len(complete)
    drawn = before.rows if before is not None and before.of == of else ()
    missing = rows - len(drawn)
    if missing <= 0:
        return Pilot(drawn, of)
    known = set(drawn)
    marks = enumerate(zip(complete, is_bad, strict=True))
    free = [row for row, (done, bad) in marks if not done and not bad and row not in known]
    draw = random.Random(_PILOT_SEED + len(drawn))  # noqa: S311 - a sample, no secret
    return Pilot((*drawn, *draw.sample(free, min(missing, len(free)))), of)


def _limited_to(
    job: Job,
    limit: int | None,
    pilot: int,
    sample_rows: int,
    rows: int,
    excluded: bytearray | None,
) -> str:
    if not pilot and excluded is not None:
        wanted = excluded[:limit].count(0)
        given = {"where": job.input.where, "sample": sample_rows, "limit": (limit or rows) < rows}
        said = [name for name, is_given in given.items() if is_given]
        return f"{' and '.join(said)}: {wanted:,} of {plural(rows, 'row')}" if wanted < rows else ""
    if pilot:
        return f"pilot: {min(pilot, rows):,} of {plural(rows, 'row')}, drawn at random,"
    if limit is not None and limit < rows:
        return f"limit: first {limit:,} of {plural(rows, 'row')}"
    return ""


def known_prices(job: Job) -> Prices:
    """The job's own prices, the user's and the price list. Raises `JobError`."""
    return Prices(*with_user_prices(job.pricing, job.aliases))


def _check_models(prices: Prices, survey: Survey) -> None:
    """Raises `JobError` where a cap on dollars cannot be kept."""
    if len(survey.models) == MAX_MODELS:
        raise JobError(
            f"the rows ask for {MAX_MODELS:,} models or more, too many to keep a cap on dollars; "
            "take limits.max_cost_usd (--max-cost) out, or split the source"
        )
    check_prices(prices, survey.models, time.time_ns() // 1000)


def _past_the_cap(
    cap_usd: float | None,
    unbounded: int,
    to_send: int,
    resumed: Resumed,
    record: RunRecord | None,
    path: Path,
) -> list[str]:
    """Why the dollars spent may exceed the cap."""
    if cap_usd is None:
        return []
    warnings = []
    reserved = read_unknown_usd(path, record) if record is not None else 0.0
    cap, counts = f"the cap of {usd(cap_usd)}", f"counts {usd(reserved)}" if reserved else ""
    if unbounded:
        warnings.append(
            f"{plural(unbounded, 'row')} of {to_send:,} to send may cost more than is reserved for "
            "them (no max_output_tokens, an input beyond text, hosted tools or stored context): "
            f"{cap} may be exceeded by at most one answer for each request in flight"
        )
    if resumed.totals.unknown_attempts:
        attempts = plural(resumed.totals.unknown_attempts, "attempt")
        warnings.append(
            f"the cost of {attempts} of complete rows is not known; {cap} "
            + (f"{counts} for them" if counts else "does not count it")
        )
    if resumed.lost:
        rows = plural(resumed.lost, "row")
        warnings.append(f"{cap} does not count what {rows} cost that are not on disk any more")
    if record is not None and record.state == "running":
        warnings.append(
            "the last command was killed; what was in flight then may have been billed, and "
            f"{cap} {counts or 'does not count it'}"
            + (" for it, as reserved within the last second before" if counts else "")
        )
    return warnings


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _problems(survey: Survey) -> str:
    is_all = survey.bad_rows == survey.rows  # then it is rarely the rows' fault
    lines = []
    for _, alike in groupby(survey.problems, lambda bad: bad.message if is_all else bad.row):
        row, *others = alike
        where = f"{row.source}:{row.line}" if row.line else f"{row.source}, row {row.row}"
        lines.append(
            f"  {where}{f' (and {len(others)} after it)' if others else ''}: {row.message}"
        )
    more = survey.bad_rows - len(survey.problems)
    if more > 0:
        lines.append(f"  and {more:,} more")
    if is_all:
        fix = "Fix the input or the options"
    else:
        fix = "Fix the input, or give --skip-bad-rows to store them as rows of status invalid"
    summary = f"{plural(survey.bad_rows, 'row')} of {survey.rows:,} cannot be sent:"
    return "\n".join([summary, *lines, fix])


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
    schema_version = SCHEMA_VERSION if plan.to_complete else run_dir.writes_schema
    before = run_dir.record
    older = before.older_schema if before else None  # that parts may still have
    if before and before.schema_version != schema_version:
        older = before.schema_version
    return RunRecord(
        schema_version=schema_version,
        hash_rule=before.hash_rule if before else HASH_RULE,
        batchrun=VERSION,
        python=platform.python_version(),
        state="running",
        command=command,
        simulated=simulate,
        source=source_name(job, run_dir.path),
        source_path=_full_source(job),
        job=sections,
        layout=layout_of(plan.layout, schema_version),
        store_request=plan.store_request,
        rows=plan.rows,
        started_at=before.started_at if before else now_at,
        updated_at=now_at,
        input_sha256=sha256,
        totals=plan.resumed.totals,
        pilot=plan.pilot,
        sampled=plan.sampled,
        estimated=before.estimated if before else None,
        gone=plan.resumed.removed,
        parts=count_rows(run_dir.path),
        unknown_usd=read_unknown_usd(run_dir.path, before) if before else 0.0,
        met_error=before.met_error if before else None,
        older_schema=older,
    )
