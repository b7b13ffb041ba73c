"""What complete rows add up to: `Totals` of outcomes, and of the rows of parts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.records import Attempt, Outcome, Response, Totals

_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
COUNTED = (  # the columns that are added up
    *("ok", "status", "truncated", "refusal", "error_kind", "tool_call_count", "cost_usd"),
    *("attempts.list.element.kind", "attempts.list.element.cost_usd", *_TOKENS),
    *("priced_as", "model_requested"),
)
_MAPS = ("statuses", "error_kinds", "attempt_kinds")
_NOT_ADDED = (*_MAPS, "cost_usd", "unpriced_model")
_SUMS = [name for name in Totals.__struct_fields__ if name not in _NOT_ADDED]


class TotalsBuilder:
    """Sums that grow by outcomes and by batches of rows."""

    def __init__(self, start: Totals | None = None) -> None:
        self.error_examples: dict[str, str] = {}  # `error_kind` to the first message of an outcome
        self.set_to(start or Totals())

    def set_to(self, start: Totals) -> None:
        """Goes on from these."""
        self.sums: dict[str, int] = {name: getattr(start, name) for name in _SUMS}
        self._statuses = Counter(start.statuses)
        self._error_kinds = Counter(start.error_kinds)
        self._attempt_kinds = Counter(start.attempt_kinds)
        self._cost_usd = start.cost_usd
        self._unpriced_model = start.unpriced_model

    def totals(self) -> Totals:
        return Totals(
            statuses=dict(sorted(self._statuses.items())),
            error_kinds=dict(sorted(self._error_kinds.items())),
            attempt_kinds=dict(sorted(self._attempt_kinds.items())),
            cost_usd=self._cost_usd,
            unpriced_model=self._unpriced_model,
            **self.sums,
        )

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Takes many at once, which halves the time for each."""
        sums = self.sums
        sums["rows"] += len(outcomes)
        attempts = [attempt for outcome in outcomes for attempt in outcome.attempts]
        sums["attempts"] += len(attempts)
        sums["unknown_attempts"] += sum([attempt.cost_usd is None for attempt in attempts])
        self._attempt_kinds.update([attempt.kind for attempt in attempts])
        costs = [outcome.cost_usd for outcome in outcomes if outcome.cost_usd is not None]
        if costs:
            self._cost_usd = (self._cost_usd or 0.0) + sum(costs)
        if len(costs) < len(outcomes):
            unpriced = [outcome for outcome in outcomes if outcome.is_unpriced]
            sums["unpriced"] += len(unpriced)
            models = [outcome.unpriced_model for outcome in unpriced]
            self._unpriced_model = self._unpriced_model or next(filter(None, models), None)
        results = [outcome.result for outcome in outcomes]
        self._statuses.update([result.status for result in results])
        answers = [result for result in results if isinstance(result, Response)]
        usages = [answer.usage for answer in answers]
        sums["ok"] += sum([answer.ok for answer in answers])
        sums["truncated"] += sum([answer.truncated for answer in answers])
        sums["refused"] += sum([answer.refusal is not None for answer in answers])
        sums["tool_calls"] += sum([len(answer.tool_calls) for answer in answers])
        for name in _TOKENS:
            sums[name] += sum([count for count in map(attrgetter(name), usages) if count])
        for outcome in outcomes:
            failure = outcome.failure
            if failure is not None:
                self._error_kinds[failure.kind.value] += 1
                self.error_examples.setdefault(failure.kind.value, failure.message)

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Rows of `responses`, at least one, with the columns `COUNTED`."""
        sums = self.sums
        sums["rows"] += batch.num_rows
        for name in ("ok", "truncated", *_TOKENS):
            sums[name] += _sum(batch[name])
        sums["refused"] += batch.num_rows - batch["refusal"].null_count
        sums["tool_calls"] += _sum(batch["tool_call_count"])
        attempts, costs = pc.list_flatten(batch["attempts"]), batch["cost_usd"]
        sums["attempts"] += len(attempts)
        sums["unknown_attempts"] += pc.struct_field(attempts, "cost_usd").null_count
        self._attempt_kinds.update(_counts(pc.struct_field(attempts, "kind")))
        self._statuses.update(_counts(batch["status"]))
        self._error_kinds.update(_counts(batch["error_kind"]))
        if costs.null_count < batch.num_rows:
            self._cost_usd = (self._cost_usd or 0.0) + pc.sum(costs).as_py()
        if costs.null_count:
            was_sent = pc.greater(pc.list_value_length(batch["attempts"]), 0)
            unknown = pc.and_(pc.is_null(costs), was_sent)
            sums["unpriced"] += _sum(unknown)
            if self._unpriced_model is None:
                is_answer = pc.is_valid(batch["tool_call_count"])
                no_price = pc.and_(pc.and_(unknown, is_answer), pc.is_null(batch["priced_as"]))
                models = batch["model_requested"].filter(no_price).drop_null()
                self._unpriced_model = models[0].as_py() if len(models) else None


def row_totals(row: Mapping[str, Any], attempts: Sequence[Attempt]) -> Totals:
    """What one row with these attempts adds up to, read with the columns `COUNTED`."""
    return Totals(
        rows=1,
        ok=int(row["ok"]),
        truncated=int(row["truncated"]),
        refused=int(row["refusal"] is not None),
        statuses={row["status"]: 1},
        error_kinds={row["error_kind"]: 1} if row["error_kind"] else {},
        tool_calls=row["tool_call_count"] or 0,
        attempts=len(attempts),
        attempt_kinds=Counter(attempt.kind for attempt in attempts),
        unknown_attempts=sum(attempt.cost_usd is None for attempt in attempts),
        cost_usd=row["cost_usd"],
        unpriced=int(row["cost_usd"] is None and bool(attempts)),
        unpriced_model=None,
        **{name: int(row[name] or 0) for name in _TOKENS},
    )


def _sum(values: pa.Array) -> int:
    return pc.sum(values).as_py() or 0


def _counts(values: pa.Array) -> dict[str, int]:
    pairs = pc.value_counts(values.drop_null()).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}
