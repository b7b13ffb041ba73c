"""What a job will cost before it is sent: the plan with tokens and dollars.

Sends nothing. Rows of a pilot that ran earlier are read and count.
"""

import operator
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.estimate.cost_lines import (
    Answers,
    Estimate,
    Group,
    PilotResult,
    answer_line,
    assumptions,
    group,
    input_lines,
)
from batchrun.estimate.estimate_text import cap_warnings, notes
from batchrun.estimate.pilot import as_estimated, extrapolate, read_sampled, store_estimated
from batchrun.estimate.tokens import TokenCounts
from batchrun.formats.amounts import plural
from batchrun.job.sections import Job
from batchrun.pricing.prices import Prices, age_warning
from batchrun.records import Totals
from batchrun.runner.asked_rows import ALL_ROWS, RowSelection
from batchrun.runner.output_place import run_path, store_run_url
from batchrun.runner.plan import Plan, dry_run, known_prices


def make_estimate(
    job: Job,
    selection: RowSelection = ALL_ROWS,
    *,
    simulate: bool = False,
    models: Sequence[str] = (),
    expect_output: int | None = None,
    by_bytes: bool | None = None,
    store: bool = False,
    doing: Callable[[str], None] = lambda _what: None,
) -> Estimate:
    """What the rows that a run would send will cost; `models`: all rows with each of these.

    `expect_output`: tokens of an answer, instead of three assumptions. `by_bytes`: guess tokens at
    4 bytes each; null: where the extra `tokens` is not installed. `store`: in the run directory,
    where it is by a pilot. `doing`: see `make_plan`. Raises as `run_job`.
    """
    models = tuple(dict.fromkeys(models))
    if models and job.variants:
        raise JobError(
            "--models asks what all rows cost with other models, and the job has variants, each of "
            "which is estimated; leave --models out"
        )
    if models and job.request.get("model") is None:
        job = replace(job, request={**job.request, "model": models[0]})
    counts = TokenCounts(models, by_bytes=by_bytes)
    path = run_path(job, simulate=simulate)
    plan = dry_run(
        job,
        selection,
        simulate=simulate,
        on_body=counts.add,
        is_new=bool(models),
        doing=doing,
    )
    doing(f"pricing {plural(plan.rows, 'row')}")
    prices, at = known_prices(job), time.time_ns() // 1000
    expansion, complete = plan.expansion, plan.resumed.complete
    wanted = len(complete)  # of an input that is appended, its own rows alone
    wanted = wanted if plan.limit is None else min(plan.limit, wanted)
    asked = models or (None,)
    counted = [counts.rows(complete, wanted, model) for model in asked]
    groups = [group(rows) for rows in counted]
    of_variants = {
        name: counts.rows(_with_others(plan, name), wanted)
        for name in (expansion.variants if expansion.is_declared else ())
    }
    rest = {name: group(rows) for name, rows in of_variants.items()} or {None: groups[0]}
    drawn = plan.pilot if not models and plan.pilot else None
    drawn = drawn if drawn is not None and drawn.of * expansion.width == wanted else None
    unfinished = sum(
        not complete[expansion.first_sample(row, name)]
        for row in (drawn.rows if drawn else ())
        for name in expansion.variants
    )
    pilot, answers = None, list[Answers]()
    if drawn is not None and groups[0] and not unfinished:
        sampled, totals = read_sampled(path, drawn.rows), plan.resumed.totals
        pilot = extrapolate(sampled, counts, rest, totals, prices, at, expansion)
        for name in of_variants if pilot is not None else ():
            some = {name: rest[name]}
            one = extrapolate(sampled, counts, some, Totals(), prices, at, expansion)
            answers += [] if one is None else [_measured(rest[name], one, job, prices, at, name)]
    if pilot is not None:
        answers.append(_measured(groups[0], pilot, job, prices, at))
    else:
        lengths = assumptions(groups[0], expect_output)
        answers += [
            answer_line(rest[name], None, assumption, prices, job.limits, at, variant=name)
            for name in of_variants
            if rest[name]
            for assumption in lengths
        ]
        answers += [
            answer_line(some, model, assumption, prices, job.limits, at)
            for model, some in zip(asked, groups, strict=True)
            for assumption in (assumptions(some, expect_output) if some else ())
        ]
    complete_usd, unfinished_usd = plan.resumed.totals.cost_usd, plan.unfinished_usd
    estimate = Estimate(
        run=store_run_url(job, path) or str(path),
        simulated=simulate,
        rows=plan.rows,
        settled=0 if models else plan.resumed.totals.rows - plan.resumed.resent.rows,
        spent_usd=(complete_usd or 0.0) + unfinished_usd if unfinished_usd else complete_usd,
        to_send=plan.to_send,
        bad_rows=plan.bad_rows,
        inputs=tuple(
            line
            for name, rows in of_variants.items() or ((None, rows) for rows in counted)
            for line in input_lines(rows, counts, name)
        ),
        answers=tuple(answers),
        pilot=pilot,
        estimated=None if pilot is None else as_estimated(pilot, plan.rows_in_all, at),
        source_rows=plan.source_rows,
        unknown_attempts=0 if models else plan.resumed.totals.unknown_attempts,
    )
    if store and estimate.estimated is not None and estimate.to_send:
        store_estimated(path, estimate.estimated)
    drawn_rows = (len(drawn.rows), unfinished) if drawn else None
    cap_usd = job.limits.max_cost_usd
    old_prices = age_warning(prices, [line.model for line in estimate.inputs], at)
    if old_prices in plan.warnings:  # which a job with a cap has already
        old_prices = None
    return replace(
        estimate,
        notes=tuple(notes(estimate, counted[0], drawn_rows, prices, at)),
        warnings=(
            *plan.warnings,
            *filter(None, [old_prices]),
            *cap_warnings(estimate, cap_usd),
        ),
    )


def _with_others(plan: Plan, variant: str | None) -> bytearray:
    """Marks of what is complete or belongs to another variant."""
    expansion = plan.expansion
    others = expansion.others(plan.source_rows, [variant], expansion.samples)
    return bytearray(map(operator.or_, plan.resumed.complete, others))


def _measured(
    groups: Sequence[Group],
    pilot: PilotResult,
    job: Job,
    prices: Prices,
    at: int,
    variant: str | None = None,
) -> Answers:
    """The remaining rows, if they are as those of the pilot were."""
    rows = sum(one.rows for one in groups)
    output, given = pilot.output_tokens, pilot.input_tokens
    each = (output.total - output.so_far) / rows
    factor = (given.total - given.so_far) / sum(one.input_tokens for one in groups)
    groups = [replace(one, input_tokens=round(one.input_tokens * factor)) for one in groups]
    assumption = f"as measured: {each:,.0f} each", each
    limits, latency_s = job.limits, pilot.latency_s
    line = answer_line(groups, None, assumption, prices, limits, at, latency_s, variant)
    if pilot.cost_usd is None or not line.asked_usd:
        return line
    # What rows really cost holds retries and cached input too: the same share more in each tier.
    more = (pilot.cost_usd.total - pilot.cost_usd.so_far) / line.asked_usd
    in_tiers = {tier: None if usd is None else usd * more for tier, usd in line.usd.items()}
    return replace(line, usd=in_tiers, asked_usd=line.asked_usd * more)
