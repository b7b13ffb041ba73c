"""What a job will cost before it is sent: the plan with tokens and dollars.

Sends nothing and leaves nothing behind. Rows of a pilot that ran earlier are read and count.
"""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from batchrun.estimate.cost_lines import (
    Answers,
    Assumption,
    Estimate,
    Group,
    InputTokens,
    PilotResult,
    answers,
    assumptions,
    group,
    least_time,
    read_inputs,
)
from batchrun.estimate.estimate_text import notes, on_cap
from batchrun.estimate.pilot import as_estimated, extrapolate, keep_estimated, read_sampled
from batchrun.estimate.tokens import Kind, TokenCounts, is_installed
from batchrun.job.sections import Job
from batchrun.pricing.prices import Prices
from batchrun.records import NOTHING_SENT_AGAIN, Resend
from batchrun.runner.plan import Plan, dry_run, known_prices, run_path


def make_estimate(
    job: Job,
    *,
    simulate: bool = False,
    limit: int | None = None,
    resend: Resend = NOTHING_SENT_AGAIN,
    models: Sequence[str] = (),
    expect_output: int | None = None,
    by_bytes: bool | None = None,
    store: bool = False,
) -> Estimate:
    """What the rows that a run would send will cost; `models`: all rows with each of these.

    `expect_output`: tokens of an answer, in place of three assumptions. `by_bytes`: guess tokens at
    4 bytes each; null: where the extra `tokens` is not installed. Raises as `run_job`.
    """
    models = tuple(dict.fromkeys(models))
    if models and job.request.get("model") is None:
        job = replace(job, request={**job.request, "model": models[0]})
    counts = TokenCounts(models, by_bytes=not is_installed() if by_bytes is None else by_bytes)
    path = run_path(job, simulate=simulate)
    plan = dry_run(
        job,
        simulate=simulate,
        limit=limit,
        resend=resend,
        on_body=counts.add,
        is_new=bool(models),
    )
    made = _Making(job, plan, counts, limit, known_prices(job))
    lines = [made.lines(model, expect_output) for model in models or (None,)]
    pilot = None if models else made.pilot(path)
    if pilot is not None:
        measured = made.measured(pilot)
        lines = [(inputs, measured) for inputs, _ in lines]
    totals = plan.resumed.totals
    made_of = Estimate(
        run=str(path),
        simulated=simulate,
        rows=plan.rows,
        settled=0 if models else totals.rows - plan.resumed.resent.rows,
        spent_usd=_spent(plan),
        to_send=plan.to_send,
        bad_rows=plan.bad_rows,
        inputs=tuple(line for inputs, _ in lines for line in inputs),
        answers=tuple(line for _, of in lines for line in of),
        pilot=pilot,
        estimated=None if pilot is None else as_estimated(pilot, made.rows, made.at),
        notes=tuple(
            notes(
                plan.pilot if plan.pilot is not None and plan.pilot.of == made.wanted else None,
                plan.resumed.complete,
                pilot,
                made.counted(models[0] if models else None),
                models,
                made.prices,
                made.at,
                by_bytes=counts.by_bytes,
                has_time=any(line.least_s is not None for _, of in lines for line in of),
            )
        ),
        warnings=(
            *plan.warnings,
            *on_cap(
                job.limits.max_cost_usd,
                0.0 if models else _spent(plan) or 0.0,
                [line for _, of in lines for line in of],
                pilot,
            ),
        ),
    )
    if store and made_of.estimated is not None and made_of.to_send:
        keep_estimated(path, made_of.estimated)
    return made_of


def _spent(plan: Plan) -> float | None:
    """In the run directory so far, also on answers of rows without an outcome."""
    settled_usd, unfinished_usd = plan.resumed.totals.cost_usd, plan.unfinished_usd
    return (settled_usd or 0.0) + unfinished_usd if unfinished_usd else settled_usd


class _Making:
    """One estimate in the making: what its lines share."""

    def __init__(
        self, job: Job, plan: Plan, counts: TokenCounts, limit: int | None, prices: Prices
    ) -> None:
        self.plan, self.counts, self.prices, self.limits = plan, counts, prices, job.limits
        self.at = time.time_ns() // 1000
        self.wanted = plan.rows if limit is None else min(limit, plan.rows)
        self.rows = plan.rows_in_all
        self._of_model: dict[str | None, Counter[tuple[Kind, int]]] = {}

    def counted(self, model: str | None) -> Counter[tuple[Kind, int]]:
        """(kind, text tokens) to rows that are to be sent."""
        found = self._of_model.get(model)
        if found is None:
            vocabulary = self.counts.vocabulary(model) if model else ""
            settled = self.plan.resumed.complete
            found = self.counts.of_rows(settled, self.wanted, vocabulary)
            self._of_model[model] = found
        return found

    def groups(self, model: str | None) -> list[Group]:
        return group(self.counted(model), model, by_bytes=self.counts.by_bytes)

    def lines(
        self, model: str | None, expect_output: int | None
    ) -> tuple[list[InputTokens], list[Answers]]:
        """Of rows that go to a model, or each to its own; none where nothing is left to send."""
        groups = self.groups(model)
        if not groups:
            return [], []
        inputs = read_inputs(self.counted(model), model, by_bytes=self.counts.by_bytes)
        return inputs, [
            answers(groups, model, one, self.prices, self.limits, self.at)
            for one in assumptions(groups, expect_output)
        ]

    def pilot(self, path: Path) -> PilotResult | None:
        """What the rows picked for a pilot tell of those that are left, once all are settled."""
        picked, settled = self.plan.pilot, self.plan.resumed.complete
        groups = self.groups(None)
        if picked is None or picked.of != self.wanted or not groups:
            return None
        if not all(settled[row] for row in picked.rows):
            return None
        return extrapolate(
            read_sampled(path, picked.rows),
            self.counts,
            groups,
            self.plan.resumed.totals,
            self.prices,
            self.at,
            by_bytes=self.counts.by_bytes,
        )

    def measured(self, pilot: PilotResult) -> list[Answers]:
        """The rows that are left, if they are as those of the pilot were."""
        groups = self.groups(None)
        rows = sum(one.rows for one in groups)
        output, given = pilot.output_tokens, pilot.input_tokens
        each = (output.total - output.so_far) / rows
        counted = sum(one.input_tokens for one in groups)
        share = (given.total - given.so_far) / counted
        groups = [replace(one, input_tokens=round(one.input_tokens * share)) for one in groups]
        assumed = Assumption(f"as measured: {each:,.0f} each", each)
        line = answers(groups, None, assumed, self.prices, self.limits, self.at)
        tokens = line.output_tokens + sum(one.input_tokens for one in groups)
        return [replace(line, least_s=least_time(rows, tokens, self.limits, pilot.latency_s))]
