"""Totals of a run whose rows were sent again are those of its tables, also without prices."""

import math
from itertools import product

import msgspec

from batchrun.errors import ErrorKind
from batchrun.pricing.price import sum_costs
from batchrun.progress.summary import RunCounters
from batchrun.records import (
    Attempt,
    Earlier,
    Failure,
    Outcome,
    Request,
    Response,
    Totals,
)
from batchrun.runner.resume import with_earlier
from batchrun.store.columns import response_batch
from batchrun.store.complete_rows import COUNTED, TotalsBuilder, row_totals
from tests.runs import response

_ANSWER = response()
_BAD = Failure(ErrorKind.BAD_REQUEST, "because")
# A result, and what its attempts cost: answered without, with and for no price; refused for
# nothing; lost at an unknown cost; never sent, since the row is no request any more.
_ENDS: tuple[tuple[Response | Failure, tuple[float | None, ...]], ...] = (
    (_ANSWER, (None,)),
    (_ANSWER, (0.5,)),
    (_ANSWER, (0.0,)),
    (_BAD, (0.0,)),
    (_BAD, (None,)),
    (_BAD, (0.0, None)),
    (Failure(ErrorKind.INVALID_ROW, "no model", status="invalid"), ()),
)


def _outcome(row: int, end: tuple[Response | Failure, tuple[float | None, ...]]) -> Outcome:
    result, costs = end
    attempts = tuple(Attempt(at, 0.1, "first", cost_usd=cost) for at, cost in enumerate(costs))
    request = Request(row, str(row), "f", b"{}", "0" * 16, "m", None, ())
    cost_usd = sum_costs(costs) if costs else None
    return Outcome(request, result, attempts, "u", "plain", cost_usd=cost_usd)


def _in_tables(outcome: Outcome) -> Totals:
    """What the older outcome adds up to, read from its part."""
    names = [name for name in COUNTED if not name.startswith("attempts")]
    (row,) = response_batch([outcome], names=names).to_pylist()
    return row_totals(row, outcome.attempts)


def test_totals_after_rows_were_sent_again_are_those_of_the_tables() -> None:
    for ends in product(_ENDS, repeat=4):
        outcomes = [_outcome(row, end) for row, end in enumerate(ends[:2])]
        counters = RunCounters(Totals(), 0.0)
        counters.count(outcomes)
        for row, end in enumerate(ends[2:]):
            older = outcomes[row]
            earlier = Earlier(older.attempts, older.cost_usd, _in_tables(older))
            outcomes[row] = with_earlier(_outcome(row, end), earlier)
            counters.take_out(earlier.totals)
            counters.count([outcomes[row]])
            whole = TotalsBuilder()
            whole.add(outcomes)
            told, found = counters.totals(), whole.totals()
            # As `verify` compares them: no cost and a cost of 0 are the same.
            assert math.isclose(told.cost_usd or 0.0, found.cost_usd or 0.0, abs_tol=1e-9), ends
            facts = {"cost_usd": None, "unpriced_model": None}
            assert msgspec.structs.replace(told, **facts) == (
                msgspec.structs.replace(found, **facts)
            ), ends
