"""Rows of a journal that are also in parts: which outcome counts, and what both have cost.

A machine may die with rows in its journal, and another one continue the run in its store. When the
first one comes back, the outcome in the store counts: it is the later one, and others have seen it.
But an answer that is ok is never given up for an outcome of the same request that is not. The
attempts of both are paid for, so the outcome that counts has them all, with their cost.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind
from batchrun.pricing.price import sum_costs
from batchrun.records import Attempt, Failure, Outcome, Request, RowKey
from batchrun.store.columns import KEY, response_batch
from batchrun.store.complete_rows import attempts_of
from batchrun.store.files import RESPONSES, part_names
from batchrun.store.parts import count_keys, found_in, keys_of, read_part

_FACTS = (*KEY, "ok", "request_hash", "attempts")
_CHANGED = ("attempts", "cost_usd", "started_at", "finished_at")  # columns, by further attempts
_EMPTY = Outcome(
    Request(0, "", "", b"", "", None, None, ()), Failure(ErrorKind.UNREADABLE, ""), (), "", ""
)


class StoredRow(Struct, frozen=True):
    """What a part says of a row."""

    ok: bool
    hash: str | None  # of its request; null for imported answers
    attempts: tuple[Attempt, ...]


class Overlap:
    """Rows that are both in a journal and in parts. `replaced` and `longer` fill meanwhile."""

    def __init__(self, folder: Path, keys: Collection[RowKey]) -> None:
        """`keys`: of the journal. Raises `OSError`, `StoreError`."""
        self.replaced = set[RowKey]()  # the journal's outcome counts
        # The part's outcome counts, and has all these attempts.
        self.longer = dict[RowKey, tuple[Attempt, ...]]()
        self._stored = _find(folder, keys)

    def counting(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Those of the journal's outcomes that count, with all attempts."""
        for outcome in outcomes:
            key = outcome.request.key
            stored = self._stored.get(key)
            if stored is None:
                yield outcome
            elif counts(outcome, stored):
                self.replaced.add(key)
                yield _with_all(outcome, stored.attempts)
            elif _lacks(stored.attempts, outcome.attempts):
                known = self.longer.get(key, stored.attempts)
                self.longer[key] = joined(known, outcome.attempts)

    def lengthen(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of `responses`, those of `longer` with all attempts."""
        at = {place: key for place, key in enumerate(keys_of(rows)) if key in self.longer}
        if not at:
            return rows
        attempts = [self.longer[key] for key in at.values()]
        outcomes = [replace(_EMPTY, attempts=some, cost_usd=_cost(some)) for some in attempts]
        new = response_batch(outcomes, names=_CHANGED)
        places = list(range(rows.num_rows))
        for number, place in enumerate(at):
            places[place] = rows.num_rows + number
        for name in _CHANGED:
            both = pa.concat_arrays([rows[name], new[name]])
            column = rows.schema.get_field_index(name)
            rows = rows.set_column(column, rows.schema.field(column), both.take(pa.array(places)))
        return rows


def counts(outcome: Outcome, stored: StoredRow) -> bool:
    """Whether the journal's outcome counts, and not the stored one."""
    if outcome.replaces and not _lacks(outcome.attempts, stored.attempts):
        return True  # nobody has touched the row since it was sent again
    return outcome.ok and not stored.ok and outcome.request.hash == stored.hash


def joined(some: Sequence[Attempt], others: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """All attempts in the order of time; those that both have once."""
    every = (*some, *_lacks(some, others))
    return tuple(sorted(every, key=lambda attempt: attempt.started_at))


def _lacks(some: Sequence[Attempt], others: Sequence[Attempt]) -> list[Attempt]:
    """The others that are not among them."""
    known = set(map(_mark, some))
    return [attempt for attempt in others if _mark(attempt) not in known]


def _mark(attempt: Attempt) -> tuple[int, float, str | None]:
    """What no two attempts have in common."""
    return attempt.started_at, attempt.latency_s, attempt.client_request_id


def _with_all(outcome: Outcome, others: Sequence[Attempt]) -> Outcome:
    if not _lacks(outcome.attempts, others):
        return outcome
    attempts = joined(outcome.attempts, others)
    counted = attempts.index(outcome.attempts[outcome.counted]) if outcome.attempts else -1
    return replace(outcome, attempts=attempts, counted=counted, cost_usd=_cost(attempts))


def _cost(attempts: Sequence[Attempt]) -> float | None:
    return sum_costs([attempt.cost_usd for attempt in attempts])


def _find(folder: Path, keys: Collection[RowKey]) -> dict[RowKey, StoredRow]:
    """Those of the rows that are in parts."""
    found: dict[RowKey, StoredRow] = {}
    for part in part_names(folder, RESPONSES):
        if not count_keys(folder / part, keys):
            continue
        for batch in read_part(folder / part, _FACTS):
            rows = batch.filter(found_in(batch, keys))
            facts = zip(rows["ok"].to_pylist(), rows["request_hash"].to_pylist(), strict=True)
            attempts = attempts_of(rows["attempts"])
            for key, fact, some in zip(keys_of(rows), facts, attempts, strict=True):
                found[key] = StoredRow(*fact, some)
    return found
