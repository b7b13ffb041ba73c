"""What a run will do: the input read and checked once, before anything is sent.

A problem in row 734,212 is a message after seconds, not after six hours.
"""

import contextlib
import operator
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import InputError, JobError
from batchrun.formats.amounts import plural, usd
from batchrun.inputs.prompt_set import MAX_MODELS, OnBody, PromptSet, Source, Survey, find_source
from batchrun.inputs.requests import HASH_RULE
from batchrun.inputs.sources import store_stdin
from batchrun.job.expansion import Expansion
from batchrun.job.job_file import with_user_prices
from batchrun.job.sections import STDIN, Job
from batchrun.pricing.prices import Prices, age_warning, check_prices
from batchrun.records import JsonObject, Layout, Pilot, Request, RunRecord
from batchrun.remote.run_link import is_in_store
from batchrun.runner.asked_rows import ALL_ROWS, AskedRows, RowSelection, refuse_unknown
from batchrun.runner.changes import request_changes, setting_changes
from batchrun.runner.ending import rows_judged
from batchrun.runner.output_place import refuse_place, run_path, store_run_url
from batchrun.runner.resume import Resumed, match_rows
from batchrun.runner.run_source import (
    about_source,
    appends,
    fixed_bad_rows,
    full_source,
    pinned_source,
    refuse_other_use,
    source_name,
    stored_input,
)
from batchrun.store.columns import layout_of
from batchrun.store.complete_rows import rows_at
from batchrun.store.parts import count_rows
from batchrun.store.reading import may_have_lost, read_unknown_usd
from batchrun.store.run_dir import SCHEMA_VERSION, RunDir
from batchrun.version import VERSION

if TYPE_CHECKING:
    from batchrun.runner.row_filter import RowFilter


_PILOT_SEED = 7_411
_LARGE_BODY_BYTES = 64 * 1024  # bodies above this on average are not stored unless asked for
_ANSWER_BYTES = 4 * 1024  # a guess at what an answer takes up, before any is known


class Plan(Struct, frozen=True):
    """What a run will do."""

    prompts: PromptSet
    layout: Layout
    rows: int  # of the table: those of the source, times samples and variants
    resumed: Resumed  # what is complete, and what of it is sent again
    pilot: Pilot | None  # random rows, drawn now or earlier to estimate what all will cost
    to_complete: int  # rows that have no outcome or are sent again, within `--limit`
    limited_to: str  # the rows that this command asks for, in words; empty: all
    source_rows: int  # of the source
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
    limit: int | None = None  # requests after which none is asked for; null: all are
    sampled: Pilot | None = None  # random rows of `--sample-rows`, drawn now or earlier
    forms: dict[str, int] = msgspec.field(default_factory=dict)  # what rows are taken for: how many
    commit: str | None = None  # of a data set of the Hub
    left_out: int = 0  # of `rows`, those without an outcome that `--where` leaves out
    beyond_pilot: int = 0  # rows asked for that a pilot leaves to the command after it

    @property
    def expansion(self) -> Expansion:
        return self.prompts.expansion

    @property
    def rows_in_all(self) -> int:
        """Complete once this is carried out."""
        return self.resumed.totals.rows - self.resumed.resent.rows + self.to_complete

    @property
    def asked(self) -> int:
        """The same without rows whose outcome is that of another request."""
        return self.rows_in_all - self.resumed.postponed


def dry_run(
    job: Job,
    selection: RowSelection = ALL_ROWS,
    *,
    simulate: bool = False,
    on_body: OnBody | None = None,
    is_new: bool = False,
    doing: Callable[[str], None] = lambda _what: None,
) -> Plan:
    """What a run would do; sends nothing and leaves nothing behind. Raises as `run_job`.

    `is_new`: as if there were no run directory. `on_body`: see `PromptSet.survey`. `doing`: see
    `make_plan`.
    """
    path = run_path(job, simulate=simulate).resolve()
    url = store_run_url(job, path)
    refuse_place(path, url)
    with contextlib.ExitStack() as stack:
        run_dir = None
        exists = (path / "run.json").exists() or (url is not None and is_in_store(url))
        if not is_new and exists:
            run_dir = stack.enter_context(contextlib.closing(RunDir.open(path, url, doing)))
            refuse_other_use(run_dir, simulate=simulate)
        if job.input.path != STDIN:
            record = run_dir.record if run_dir is not None else None
            source = pinned_source(job, find_source(job.input), record)
        elif run_dir is not None and not appends(job, run_dir.record):
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
            selection,
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
    selection: RowSelection = ALL_ROWS,
    *,
    check: Callable[[], None] = lambda: None,
    doing: Callable[[str], None] = lambda _what: None,
    on_body: OnBody | None = None,
    prices: Prices | None = None,
    in_parts: bool = False,
) -> Plan:
    """Reads everything once; `path` is where the run directory is or will be.

    `in_parts`: so that other processes can read parts of the source.
    `prices` (null: made here where a cap asks for them) know all models of the source afterwards.
    `doing` is told in words what is done, and `check` is asked now and then whether to go on.
    Raises `JobError`, `InputError`, and what `check` raises.
    """

    def on_rows(rows: int) -> None:
        check()
        doing(f"reading {source.spec}, {plural(rows, 'row')} so far")

    expansion = job.expansion
    refuse_unknown(selection.variants, job)
    doing(f"reading {source.spec}")
    where = _row_filter(job)
    record = run_dir.record if run_dir else None
    hash_rule = record.hash_rule if record else HASH_RULE
    is_appended = appends(job, record)
    prompts = PromptSet(
        source,
        job.input,
        job.request,
        hash_rule,
        samples=expansion.samples,
        variants=job.variants,
        is_appended=is_appended,
    )
    caps_usd = (job.limits.max_cost_usd, job.limits.max_cost_per_command_usd)
    has_cap = any(cap is not None for cap in caps_usd)
    survey = prompts.survey(
        record.layout if record else None,
        on_rows,
        mark_unbounded=has_cap,
        on_body=on_body,
        in_parts=in_parts,
    )
    survey, excluded = _fitting(where, prompts, survey, doing)
    not_fitting = bytearray() if excluded is None else expansion.of_rows(excluded)
    if survey.bad_rows and not job.input.skip_bad_rows:
        raise InputError(_problems(survey))
    if survey.refusal and record is None:  # a run that was begun so may go on
        raise InputError(f"{source.spec}: {survey.refusal}")
    sampled = record.sampled if record else None
    if sample_rows := selection.sample_rows:
        sampled = draw_sample(sampled, sample_rows, excluded, expansion.all_of_row(survey.is_bad))
        excluded = _all_but(sampled.rows[:sample_rows], survey.source_rows)
    asked = AskedRows(selection, job, survey.source_rows, excluded)
    limit, excluded = asked.requests()
    if run_dir is not None and record is not None:
        doing(f"comparing {plural(survey.rows, 'row')} with what {path} holds")
        resumed = match_rows(
            survey,
            run_dir,
            selection.resend,
            limit,
            excluded,
            appends=is_appended,
            explain=partial(_explain, job, record, path, prompts, survey),
            find_fixed=partial(fixed_bad_rows, prompts, survey),
        )
    else:
        resumed = Resumed(bytearray(survey.rows), bytearray(survey.rows))
    complete = resumed.complete
    left_out = sum(map(operator.gt, not_fitting, complete))
    if excluded is not None:
        complete = bytearray(map(operator.or_, complete, excluded))
    old_prices = _check_models(prices or known_prices(job), survey) if has_cap else None
    if prices is not None and not has_cap:  # loads the list: better here than between answers
        for model in survey.models:
            prices.find(model, None, time.time_ns() // 1000)
    wanted = survey.rows if limit is None else min(limit, survey.rows)
    drawn = _pilot_before(record, selection.pilot, is_appended=is_appended)
    without_pilot = complete[:wanted].count(0)
    drawn, complete = _with_pilot(drawn, selection.pilot, complete, survey, wanted)
    resumed = replace(resumed, complete=complete)
    to_complete = complete[:wanted].count(0)
    bad = sum(map(operator.gt, survey.is_bad[:wanted], complete)) if survey.bad_rows else 0
    unbounded = sum(map(operator.gt, survey.is_unbounded[:wanted], complete))
    store_request = _stores_request(job, record, survey)
    row_bytes = survey.carried_bytes * expansion.width + (survey.body_bytes if store_request else 0)
    new_rows = resumed.complete.count(0) - resumed.again.count(1)
    return Plan(
        prompts=prompts,
        layout=survey.layout,
        rows=survey.rows + resumed.others,
        resumed=resumed,
        pilot=drawn,
        to_complete=to_complete,
        limited_to=asked.in_words(),
        source_rows=survey.source_rows,
        to_send=to_complete - bad,
        bad_rows=survey.bad_rows,
        sent=survey.sent,
        carried=survey.carried,
        first=survey.first,
        warnings=(
            *(run_dir.warnings if run_dir else ()),
            *(about_source(job, run_dir, survey, new_rows) if run_dir else ()),
            *survey.warnings,
            *filter(None, [survey.refusal, old_prices]),
            *resumed.warnings,
            *_past_the_cap(caps_usd, unbounded, to_complete - bad, resumed, record, path),
        ),
        store_request=store_request,
        disk_bytes=to_complete * (row_bytes // survey.rows + _ANSWER_BYTES),
        free_bytes=_free_bytes(path),
        unfinished_usd=run_dir.unfinished.cost_usd if run_dir is not None else 0.0,
        forms=survey.forms,
        limit=limit,
        sampled=sampled,
        commit=source.commit,
        left_out=left_out,
        beyond_pilot=without_pilot - to_complete,
    )


def _explain(
    job: Job,
    record: RunRecord,
    path: Path,
    prompts: PromptSet,
    survey: Survey,
    changed: Mapping[int, int],
) -> dict[int, list[str]]:
    """What has changed in complete rows: see `match_rows`. Raises `InputError`, `StoreError`."""
    stored = rows_at(path, changed, ("request",))
    others = _all_but(changed.values(), survey.rows)
    requests = prompts.requests(survey.layout, others)
    now = {prompts.expansion.number(one): one for one in requests}
    settings = setting_changes(record.job, msgspec.to_builtins(job))
    unknown = "something in the row, as no setting has changed (requests are not stored)"
    return {
        index: request_changes(before, now[changed[index]])
        if (before := stored[index]["request"]) is not None
        else settings or [unknown]
        for index in changed
    }


def _row_filter(job: Job) -> "RowFilter | None":
    """Raises `JobError` where the expression is wrong."""
    if job.input.where is None:
        return None
    from batchrun.runner.row_filter import RowFilter  # noqa: PLC0415 - DuckDB: 13 MB

    return RowFilter(job.input.where)


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
            f"--where (where in [input]) fits none of {plural(survey.source_rows, 'row')}; change "
            "it"
        )
    if not survey.bad_rows:
        return survey, excluded
    problems = tuple(bad for bad in survey.problems if not excluded[bad.row])
    is_bad = bytearray(map(operator.gt, survey.is_bad, survey.expansion.of_rows(excluded)))
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


def _pilot_before(record: RunRecord | None, pilot: int, *, is_appended: bool) -> Pilot | None:
    """The rows that an earlier pilot drew. Raises `JobError` where none can be made."""
    if record is None or not is_appended:
        return record.pilot if record else None
    if pilot:
        raise JobError(
            "--pilot does not work with --append: the numbers of the input's rows are not those of "
            "the tables; estimate without --pilot, or give another -o"
        )
    return None


def _with_pilot(
    before: Pilot | None, rows: int, complete: bytearray, survey: Survey, wanted: int
) -> tuple[Pilot | None, bytearray]:
    """A pilot of so many rows, and marks of all requests but the first samples of its rows.

    Without rows: the earlier one, and the marks as they are.
    """
    if not rows:
        return before, complete
    expansion = survey.expansion
    done, is_bad = (expansion.any_of_row(one[:wanted]) for one in (complete, survey.is_bad))
    drawn = draw_pilot(before, rows, done, is_bad)
    for others in (
        expansion.of_rows(_all_but(drawn.rows, survey.source_rows)),
        expansion.others(survey.source_rows, expansion.variants, 1),
    ):
        complete = bytearray(map(operator.or_, complete, others))
    return drawn, complete


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


def known_prices(job: Job) -> Prices:
    """The job's own prices, the user's and the price list. Raises `JobError`."""
    return Prices(*with_user_prices(job.pricing, job.aliases))


def _check_models(prices: Prices, survey: Survey) -> str | None:
    """What to say of an old price list. Raises `JobError` where a cap cannot be kept."""
    if len(survey.models) == MAX_MODELS:
        raise JobError(
            f"the rows ask for {MAX_MODELS:,} models or more, too many to keep a cap on dollars; "
            "take limits.max_cost_usd (--max-cost) out, or split the source"
        )
    at = time.time_ns() // 1000
    check_prices(prices, survey.models, at)
    return age_warning(prices, survey.models, at)


def _past_the_cap(
    caps_usd: tuple[float | None, float | None],
    unbounded: int,
    to_send: int,
    resumed: Resumed,
    record: RunRecord | None,
    path: Path,
) -> list[str]:
    """Why the dollars spent may exceed a cap: that of the run directory, or of the command."""
    given = [cap for cap in caps_usd if cap is not None]
    if not given:
        return []
    warnings = []
    if unbounded:
        warnings.append(
            f"{plural(unbounded, 'row')} of {to_send:,} to send may cost more than is reserved for "
            "them (no max_output_tokens, an input beyond text, hosted tools or stored context): "
            f"the cap of {usd(min(given))} may be exceeded by at most one answer for each request "
            "in flight"
        )
    cap_usd, _ = caps_usd
    if cap_usd is None:
        return warnings
    reserved = read_unknown_usd(path, record) if record is not None else 0.0
    cap, counts = f"the cap of {usd(cap_usd)}", f"counts {usd(reserved)}" if reserved else ""
    if resumed.totals.unknown_attempts:
        attempts = plural(resumed.totals.unknown_attempts, "attempt")
        warnings.append(
            f"the cost of {attempts} of complete rows is not known; {cap} "
            + (f"{counts} for them" if counts else "does not count it")
        )
    if resumed.lost:
        rows = plural(resumed.lost, "row")
        warnings.append(f"{cap} does not count the cost of {rows} not on disk any more")
    if record is not None and record.state == "running" and may_have_lost(path):
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
    what = "row" if survey.expansion.width == 1 else "request"
    summary = f"{plural(survey.bad_rows, what)} of {survey.rows:,} cannot be sent:"
    return "\n".join([summary, *lines, fix])


def _without_headers(job: Job) -> JsonObject:
    """The job's sections, of headers the names; without samples and variants as ever.

    Who is told of a run is no part of it.
    """
    sections: JsonObject = msgspec.to_builtins(job)
    del sections["notify"]
    for one in (sections, *sections["variants"]):
        if one["endpoint"] is not None:
            one["endpoint"]["headers"] = sorted(one["endpoint"]["headers"])
    if job.expansion.is_plain:
        del sections["expand"], sections["variants"]
    return sections


def make_record(
    job: Job,
    plan: Plan,
    run_dir: RunDir,
    simulate: bool,
    command: str | None,
    sha256: str | None,
) -> RunRecord:
    """What `run.json` says while the plan is carried out; never a secret."""
    sections = _without_headers(job)
    now_at = time.time_ns() // 1000
    schema_version = SCHEMA_VERSION if plan.to_complete else run_dir.writes_schema
    before = run_dir.record
    older = before.older_schema if before else None  # that parts may still have
    has_more_columns = before and len(before.layout.columns) < len(plan.layout.columns)
    layout = plan.layout
    if before and has_more_columns and not plan.to_complete:
        layout = before.layout  # no part gets them
    elif before and (has_more_columns or before.schema_version != schema_version):
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
        source_path=full_source(job),
        job=sections,
        layout=layout_of(layout, schema_version),
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
        appends=appends(job, before),
        judged=rows_judged(
            before,
            plan.resumed.totals.without(plan.resumed.resent),
            sends=plan.to_complete > 0,
        ),
        source_commit=plan.commit,
        store=store_run_url(job, run_dir.path),
        executor=job.cluster.executor,
        workers=(job.cluster.workers or 0) if job.cluster.executor == "ray" else 0,
        left_out=plan.left_out,
        asked=plan.asked,
        beyond_pilot=plan.beyond_pilot,
    )
