"""What the settled rows are and add up to, read from parts and journal with flat memory."""

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Outcome, Response, Totals
from batchrun.store.disk import storing
from batchrun.store.snapshot import Snapshot

_BATCH_ROWS = 16_384
_SUMS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
_COUNTED = (
    *("ok", "truncated", "refusal", "status", "error_kind", "tool_call_count"),
    *("attempts.list.element.kind", *_SUMS),
)


class Settled(Struct, frozen=True):
    """The rows that have an outcome: 24 bytes for each, in three arrays of the same order."""

    rows: "array[int]"  # "q": place in the input
    ids: "array[int]"  # "q": this process's hash of the custom_id
    hashes: "array[int]"  # "Q": the request's hash
    totals: Totals


def read_settled(now: Snapshot) -> Settled:
    """All settled rows. Raises `StoreError`."""
    rows, ids, hashes = array("q"), array("q"), array("Q")
    for path in now.responses:
        for batch in read_part(path, ("row", "custom_id", "request_hash")):
            places, names, marks = batch.columns
            rows.extend(places.to_pylist())
            ids.extend([hash(name) for name in names.to_pylist()])
            hashes.extend([int(mark, 16) for mark in marks.to_pylist()])
    for outcome in now.outcomes():
        rows.append(outcome.request.row)
        ids.append(hash(outcome.request.custom_id))
        hashes.append(int(outcome.request.hash, 16))
    return Settled(rows, ids, hashes, sum_totals(now))


def sum_totals(now: Snapshot) -> Totals:
    """What all settled rows add up to, as SQL over the tables would. Raises `StoreError`."""
    count = _Count()
    for path in now.responses:
        for batch in read_part(path, _COUNTED):
            count.add_batch(batch)
    for outcome in now.outcomes():
        count.add_outcome(outcome)
    return count.totals()


def read_part(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """A part's rows, these columns alone, a batch in memory at a time. Raises `StoreError`."""
    with storing(path, "read"):
        try:
            with pq.ParquetFile(path) as part:
                yield from part.iter_batches(_BATCH_ROWS, columns=list(columns))
        except pa.ArrowException as error:
            raise StoreError(
                f"{path}: damaged ({error}); put back a copy of it, or start a new run directory"
            ) from error


class _Count:
    """Sums that grow, batch by batch and row by row."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._error_kinds: Counter[str] = Counter()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        sums = self._sums
        sums["rows"] += batch.num_rows
        sums["ok"] += _sum(batch["ok"])
        sums["truncated"] += _sum(batch["truncated"])
        sums["refused"] += batch.num_rows - batch["refusal"].null_count
        sums["tool_calls"] += _sum(batch["tool_call_count"])
        sums["attempts"] += _sum(pc.list_value_length(batch["attempts"]))
        for name in _SUMS:
            sums[name] += _sum(batch[name])
        self._statuses.update(_tally(batch["status"]))
        self._error_kinds.update(_tally(batch["error_kind"]))

    def add_outcome(self, outcome: Outcome) -> None:
        sums, result = self._sums, outcome.result
        sums["rows"] += 1
        sums["ok"] += outcome.ok
        sums["attempts"] += len(outcome.attempts)
        self._statuses[result.status] += 1
        failure = result.failure if isinstance(result, Response) else result
        if failure is not None:
            self._error_kinds[str(failure.kind)] += 1
        if isinstance(result, Response):
            sums["truncated"] += result.truncated
            sums["refused"] += result.refusal is not None
            sums["tool_calls"] += len(result.tool_calls)
            for name in _SUMS:
                sums[name] += getattr(result.usage, name) or 0

    def totals(self) -> Totals:
        return Totals(
            statuses=dict(sorted(self._statuses.items())),
            error_kinds=dict(sorted(self._error_kinds.items())),
            **self._sums,
        )


def _sum(values: pa.Array) -> int:
    return pc.sum(values).as_py() or 0


def _tally(values: pa.Array) -> dict[str, int]:
    return {
        pair["values"]: pair["counts"]
        for pair in pc.value_counts(values).to_pylist()
        if pair["values"] is not None
    }
