"""What complete rows are and add up to, read from parts and journal with flat memory.

It is what the user has agreed to leave out, and what other tools can leave out by.
"""

import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StoreError
from batchrun.records import (
    ANSWERED,
    FAILED,
    Attempt,
    Earlier,
    Outcome,
    Resend,
    Response,
    RowKey,
    Totals,
)
from batchrun.store.columns import ATTEMPT
from batchrun.store.files import name_now, replace_file, storing
from batchrun.store.keys import KEY, as_mask, hash_key, hash_keys
from batchrun.store.snapshot import Snapshot, read_part, read_standing, read_standing_part, snapshot
from batchrun.store.totals import COUNTED, TotalsBuilder, row_totals

REMOVED_FILE = "gone.parquet"
_COLUMNS = ("row", *KEY)
_TYPES = (pa.int64(), pa.string(), pa.int32(), pa.string())
_SCHEMA = pa.schema(list(zip(_COLUMNS, _TYPES, strict=True)))


def write_removed_rows(folder: Path, marks: bytearray) -> None:
    """The file names the rows that `marks` marks, in the order of `read_complete_rows`.

    Without any, `marks` may be empty, and there is no file. Raises `StoreError`.
    """
    path = folder / REMOVED_FILE
    if 1 not in marks:  # nearly always: no part is opened for it
        with storing(path, "write"):
            path.unlink(missing_ok=True)
        return
    with snapshot(folder) as now, storing(path, "write"):
        buffer, at = pa.BufferOutputStream(), 0
        with pq.ParquetWriter(buffer, _SCHEMA, compression="zstd") as file:
            for batch in read_standing(now, _COLUMNS):
                removed = batch.filter(as_mask(marks[at : at + batch.num_rows]))
                at += batch.num_rows
                if removed.num_rows:
                    file.write_batch(removed.select(_COLUMNS).cast(_SCHEMA))
            kept = [o.request for o, mark in zip(now.outcomes(), marks[at:], strict=True) if mark]
            rows = [(request.row, *request.key) for request in kept]
            if rows:
                columns = map(pa.array, zip(*rows, strict=True), _SCHEMA.types)
                file.write_batch(pa.record_batch(list(columns), _SCHEMA))
        replace_file(path, buffer.getvalue().to_pybytes(), durable=True)


def read_removed_rows(folder: Path) -> "array[int]":
    """This process's hash of each key in the file, in order; none where it is damaged.

    Then the rows are asked about anew. Raises `StoreError` where it cannot be read.
    """
    hashes: list[int] = []
    path = folder / REMOVED_FILE
    if path.exists():
        try:
            for batch in read_part(path, None):
                hashes += hash_keys(batch)
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
                raise
            return array("q")
    return array("q", sorted(hashes))


_OUTCOMES_AT_ONCE = 1_024
_ASKED = ("status", "error_kind", "refusal", "truncated")  # what `Resend` goes by


class CompleteRows(Struct, frozen=True):
    """The rows that have an outcome: 24 bytes for each, in three arrays of the same order."""

    rows: "array[int]"  # "q": place in the input
    ids: "array[int]"  # "q": this process's hash of the key, see `hash_key`
    hashes: "array[int]"  # "Q": the request's hash
    totals: Totals
    again: bytearray  # 1 for each row that failed as asked; empty where nothing is asked
    parts: tuple[tuple[Path, int], ...]  # each, and how many rows there are up to its end


def read_complete_rows(now: Snapshot, resend: Resend | None = None) -> CompleteRows:
    """All settled rows, first those in parts. Raises `StoreError`."""
    rows, ids, hashes = array("q"), array("q"), array("Q")
    again = bytearray()
    marks_again = resend is not None and resend.failed
    columns = ("row", *KEY, "request_hash", *(_ASKED if marks_again else ()))
    parts = []
    for path in now.responses:
        for batch in read_standing_part(now, path, columns):
            rows.extend(batch["row"].to_pylist())
            ids.extend(hash_keys(batch))
            hashes.extend(_as_numbers(batch["request_hash"].to_pylist()))
            if resend is not None and marks_again:
                again += bytes(_sent_again(batch, resend).cast(pa.uint8()).to_pylist())
        parts.append((path, len(rows)))
    for outcome in now.outcomes():
        rows.append(outcome.request.row)
        ids.append(hash_key(outcome.request.key))
        hashes.append(int(outcome.request.hash, 16))
        if resend is not None and marks_again:
            again.append(_is_sent_again(outcome, resend))
    return CompleteRows(rows, ids, hashes, sum_totals(now), again, tuple(parts))


def _as_numbers(marks: Sequence[str]) -> "array[int]":
    """Hashes of 16 hexadecimal digits each, at once: a quarter of the time of one by one."""
    numbers = array("Q", bytes.fromhex("".join(marks)))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def sum_totals(now: Snapshot, marks: bytearray | None = None) -> Totals:
    """What settled rows add up to, as SQL over the tables would. Raises `StoreError`.

    All of them, or those that `marks` marks in the order of `read_complete_rows`.
    """
    sums = TotalsBuilder()
    at = 0
    for batch in read_standing(now, COUNTED):
        wanted = batch
        if marks is not None:
            wanted = batch.filter(as_mask(marks[at : at + batch.num_rows]))
            at += batch.num_rows
        if wanted.num_rows:
            sums.add_batch(wanted)
    outcomes = (one for at, one in enumerate(now.outcomes(), at) if marks is None or marks[at])
    while some := list(islice(outcomes, _OUTCOMES_AT_ONCE)):
        sums.add(some)
    return sums.totals()


def totals_at(folder: Path, marks: bytearray) -> Totals:
    """What the rows add up to that `marks` marks, in the order of `read_complete_rows`.

    Raises `StoreError`.
    """
    with snapshot(folder) as now:
        return sum_totals(now, marks)


def names_at(folder: Path, places: Iterable[int]) -> dict[int, str]:
    """The custom_ids of rows by their places in `CompleteRows`. Raises `StoreError`."""
    wanted, found = set(places), dict[int, str]()
    with snapshot(folder) as now:
        for at, name in enumerate(_names(now)):
            if at in wanted:
                found[at] = name
                if len(found) == len(wanted):
                    break
    return found


def _names(now: Snapshot) -> Iterator[str]:
    for batch in read_standing(now, ("custom_id",)):
        yield from batch["custom_id"].to_pylist()
    for outcome in now.outcomes():
        yield outcome.request.custom_id


def _sent_again(batch: pa.RecordBatch, resend: Resend) -> pa.BooleanArray:
    """The rows that failed as `resend` asks; never one that was not sent."""
    status, kinds = batch["status"], resend.kinds
    failed = pc.is_in(status, value_set=pa.array(FAILED))
    if not kinds:
        return failed
    error_kinds = pa.array(sorted(kinds.difference(ANSWERED)), pa.string())
    failed = pc.and_(failed, pc.is_in(batch["error_kind"], value_set=error_kinds))
    if "refusal" in kinds:
        failed = pc.or_(failed, pc.is_valid(batch["refusal"]))
    if "truncated" in kinds:
        failed = pc.or_(failed, batch["truncated"])
    if "incomplete" in kinds:
        failed = pc.or_(failed, pc.equal(status, "incomplete"))
    return failed


def _is_sent_again(outcome: Outcome, resend: Resend) -> bool:
    """The same of a row in the journal."""
    result, kinds = outcome.result, resend.kinds
    has_failed = result.status in FAILED
    if not kinds:
        return has_failed
    failure = outcome.failure
    if has_failed and failure is not None and failure.kind in kinds:
        return True
    return isinstance(result, Response) and (
        ("refusal" in kinds and result.refusal is not None)
        or ("truncated" in kinds and result.truncated)
        or ("incomplete" in kinds and result.status == "incomplete")
    )


_KEPT_BYTES = 32 << 20  # of parts that were read lately; one is kept in any case
_EARLIER_COLUMNS = (
    *KEY,
    "attempts",
    *(name for name in COUNTED if not name.startswith("attempts")),
)
_ATTEMPTS = pa.list_(
    pa.struct(
        [
            pa.field(field.name, pa.int64() if pa.types.is_timestamp(field.type) else field.type)
            for field in ATTEMPT
        ]
    )
)
_FIELDS = Attempt.__struct_fields__
_KINDS = {kind.value: kind for kind in ErrorKind}


class Span(Struct, frozen=True):
    """A part with rows that are sent again, and the places in the input where they stand."""

    path: Path
    first: int
    last: int


class _Part(Struct, frozen=True):
    table: pa.Table
    places: dict[RowKey, int]


class EarlierRows:
    """Finds older outcomes, also while seals replace the parts they stand in.

    Rows are asked for in the order of the input, which is about that of the parts: so it reads
    each part about once.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        # A run of schema 1 was rewritten since its parts were listed.
        self._spans = [replace(s, path=s.path.with_name(name_now(s.path.name))) for s in spans]
        self._parts: OrderedDict[Path, _Part] = OrderedDict()

    def find(self, wanted: Mapping[RowKey, int]) -> dict[int, Earlier]:
        """By place in the input, as `wanted` says. Raises `StoreError` where one is not there."""
        left = dict(wanted)
        found: dict[int, Earlier] = {}
        first, last = min(left.values(), default=0), max(left.values(), default=0)
        for span in self._spans:
            if left and span.first <= last and first <= span.last:
                found.update(self._found_in(span.path, left))
        if left:
            (custom_id, *_), row = next(iter(left.items()))
            raise StoreError(
                f"row {row} ({custom_id}): its older outcome is in no part any more; leave the "
                "run directory alone while it runs, then run the same command again"
            )
        return found

    def _found_in(self, path: Path, left: dict[RowKey, int]) -> dict[int, Earlier]:
        part = self._part(path)
        keys = [key for key in left if key in part.places]
        if not keys:
            return {}
        batch = part.table.take([part.places[key] for key in keys]).combine_chunks().to_batches()[0]
        at = batch.schema.get_field_index("attempts")
        attempts = _attempts(batch.column(at))
        rows = batch.remove_column(at).to_pylist()
        return {
            left.pop(key): Earlier(tries, row["cost_usd"], row_totals(row, tries))
            for key, row, tries in zip(keys, rows, attempts, strict=True)
        }

    def _part(self, path: Path) -> _Part:
        part = self._parts.get(path)
        if part is None:
            while self._parts and self._bytes() > _KEPT_BYTES:
                self._parts.popitem(last=False)
            part = self._parts[path] = _read(path)
        self._parts.move_to_end(path)
        return part

    def _bytes(self) -> int:
        return sum(part.table.nbytes for part in self._parts.values())


def _read(path: Path) -> _Part:
    """What is needed of a part; nothing where a seal has taken its last row away."""
    try:
        batches = [_with_plain_times(batch) for batch in read_part(path, _EARLIER_COLUMNS)]
    except StoreError:
        if path.exists():
            raise
        batches = []
    if not batches:
        return _Part(pa.table({}), {})
    # In one piece: `take` on many would join them each time.
    table = pa.Table.from_batches(batches).combine_chunks()
    keys = zip(*(table[name].to_pylist() for name in KEY), strict=True)
    return _Part(table, {key: at for at, key in enumerate(keys)})


def _with_plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    at = batch.schema.get_field_index("attempts")
    return batch.set_column(at, "attempts", batch.column(at).cast(_ATTEMPTS))


def _attempts(lists: pa.ListArray) -> list[tuple[Attempt, ...]]:
    """Column by column, which takes half the time of row by row."""
    fields = [child.to_pylist() for child in lists.flatten().flatten()]
    kinds = _FIELDS.index("error_kind")
    fields[kinds] = [_KINDS.get(kind) for kind in fields[kinds]]
    every = [Attempt(*values) for values in zip(*fields, strict=True)]
    ends = list(accumulate(lists.value_lengths().to_pylist()))
    return [tuple(every[first:end]) for first, end in pairwise([0, *ends])]
