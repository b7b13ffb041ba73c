"""What complete rows are and add up to, read from parts and journal with flat memory.

Also the rows that the user has agreed to leave out of the totals, in a file that other tools can
read, and the older outcomes of rows that are sent again.
"""

import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StoreError
from batchrun.records import ANSWERED, FAILED, Attempt, Earlier, Resend, RowKey, Totals
from batchrun.store.columns import KEY, NO_COLUMNS, as_schema, response_schema
from batchrun.store.files import current_name, replace_file, storing
from batchrun.store.parts import as_mask, keys_of, read_part
from batchrun.store.snapshot import Snapshot, snapshot
from batchrun.store.totals import COUNTED, TotalsBuilder, row_totals

_ASKED = ("status", "error_kind", "refusal", "truncated")  # what `Resend` selects by


class CompleteRows(Struct, frozen=True):
    """The rows that have an outcome: 24 bytes for each, in three arrays of the same order."""

    rows: "array[int]"  # "q": place in the input
    ids: "array[int]"  # "q": this process's hash of the key, see `hash_keys`
    hashes: "array[int]"  # "Q": the request's hash
    totals: Totals
    again: bytearray  # 1 for each row that failed as asked; empty where nothing is asked
    parts: tuple[tuple[Path, int], ...]  # each, and how many rows there are up to its end


def read_complete_rows(now: Snapshot, resend: Resend | None = None) -> CompleteRows:
    """All complete rows, first those in parts. Raises `StoreError`."""
    rows, ids, hashes, again = array("q"), array("q"), array("Q"), bytearray()
    asked = resend if resend is not None and resend.failed else None
    columns = ("row", *KEY, "request_hash", *(_ASKED if asked else ()))

    def take(batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            rows.extend(batch["row"].to_pylist())
            ids.extend(hash_keys(batch))
            hashes.extend(_as_numbers(batch["request_hash"].to_pylist()))
            if asked:
                again.extend(_is_sent_again(batch, asked).cast(pa.uint8()).to_pylist())

    parts = []
    for path in now.responses:
        take(now.part_batches(path, columns))
        parts.append((path, len(rows)))
    take(now.journal_batches(columns))
    return CompleteRows(rows, ids, hashes, sum_totals(now), again, tuple(parts))


def hash_keys(batch: pa.RecordBatch) -> list[int]:
    """This process's hash of each row's key; of one without sample and variant that of its id."""
    has_samples = pc.any(pc.not_equal(batch["sample"], 0)).as_py()
    if has_samples or batch["variant"].null_count < batch.num_rows:
        keys = keys_of(batch)
        return [hash(key) if key[1] or key[2] is not None else hash(key[0]) for key in keys]
    return [hash(custom_id) for custom_id in batch["custom_id"].to_pylist()]


def _as_numbers(marks: Sequence[str]) -> "array[int]":
    """Hashes of 16 hexadecimal digits each, at once: a quarter of the time of one by one."""
    numbers = array("Q", bytes.fromhex("".join(marks)))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _is_sent_again(batch: pa.RecordBatch, resend: Resend) -> pa.BooleanArray:
    """The rows that failed as `resend` asks; never one that was not sent."""
    status, kinds = batch["status"], resend.kinds
    failed = pc.is_in(status, value_set=pa.array(FAILED))
    if not kinds:
        return failed
    error_kinds = pa.array(sorted(kinds.difference(ANSWERED)), pa.string())
    failed = pc.and_(failed, pc.is_in(batch["error_kind"], value_set=error_kinds))
    for kind, is_so in (
        ("refusal", pc.is_valid(batch["refusal"])),
        ("truncated", batch["truncated"]),
        ("incomplete", pc.equal(status, "incomplete")),
    ):
        failed = pc.or_(failed, is_so) if kind in kinds else failed
    return failed


def names_at(folder: Path, positions: Iterable[int]) -> dict[int, str]:
    """The custom_ids of rows by their positions in `CompleteRows`. Raises `StoreError`."""
    wanted, found, first = sorted(positions), dict[int, str](), 0
    with snapshot(folder) as now:
        for batch in now.batches(("custom_id",)):
            near = [at for at in wanted if first <= at < first + batch.num_rows]
            found.update((at, batch["custom_id"][at - first].as_py()) for at in near)
            first += batch.num_rows
            if not wanted or first > wanted[-1]:
                break
    return found


REMOVED_FILE = "gone.parquet"
_REMOVED_SCHEMA = pa.schema([response_schema(NO_COLUMNS).field(name) for name in ("row", *KEY)])


def write_removed_rows(folder: Path, marks: bytearray) -> None:
    """The file names the rows that `marks` marks, in the order of `CompleteRows`.

    Without any, `marks` may be empty, and there is no file. Raises `StoreError`.
    """
    path = folder / REMOVED_FILE
    if 1 not in marks:  # nearly always: no part is opened for it
        with storing(path, "write"):
            path.unlink(missing_ok=True)
        return
    with snapshot(folder) as now, storing(path, "write"):
        buffer = pa.BufferOutputStream()
        with pq.ParquetWriter(buffer, _REMOVED_SCHEMA, compression="zstd") as file:
            for batch in _marked(now, _REMOVED_SCHEMA.names, marks):
                if batch.num_rows:
                    file.write_batch(batch.select(_REMOVED_SCHEMA.names).cast(_REMOVED_SCHEMA))
        replace_file(path, buffer.getvalue().to_pybytes(), durable=True)


def read_removed_rows(folder: Path) -> "array[int]":
    """This process's hash of each key in the file, in order; none where it is damaged.

    Then the rows are asked about again. Raises `StoreError` where it cannot be read.
    """
    hashes: list[int] = []
    path = folder / REMOVED_FILE
    if path.exists():
        try:
            for batch in read_part(path, None):  # in schema 1 without `variant`
                hashes += hash_keys(as_schema(batch, _REMOVED_SCHEMA, NO_COLUMNS))
        except (StoreError, pa.ArrowException) as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
                raise
            return array("q")
    return array("q", sorted(hashes))


def _marked(
    now: Snapshot, columns: Sequence[str], marks: bytearray | None
) -> Iterator[pa.RecordBatch]:
    """Columns of the rows that `marks` marks, in the order of `CompleteRows`; null: of all."""
    at = 0
    for batch in now.batches(columns):
        yield batch if marks is None else batch.filter(as_mask(marks[at : at + batch.num_rows]))
        at += batch.num_rows


def totals_at(folder: Path, marks: bytearray) -> Totals:
    """What the rows add up to that `marks` marks, in the order of `CompleteRows`. `StoreError`."""
    with snapshot(folder) as now:
        return sum_totals(now, marks)


def sum_totals(now: Snapshot, marks: bytearray | None = None) -> Totals:
    """What complete rows add up to, as SQL over the tables would. Raises `StoreError`.

    All of them, or those that `marks` marks in the order of `CompleteRows`.
    """
    sums = TotalsBuilder()
    for batch in _marked(now, COUNTED, marks):
        if batch.num_rows:
            sums.add_batch(batch)
    return sums.totals()


_CACHE_BYTES = 32 << 20  # of parts that were read lately; one stays in any case
_EARLIER = (*KEY, "attempts", *(name for name in COUNTED if not name.startswith("attempts")))
_TIME = Attempt.__struct_fields__.index("started_at")
_ERROR_KIND = Attempt.__struct_fields__.index("error_kind")
_ERROR_KINDS = {kind.value: kind for kind in ErrorKind}


class Span(Struct, frozen=True):
    """A part with rows that are sent again, and their first and last place in the input."""

    path: Path
    first: int
    last: int


class EarlierRows:
    """Finds older outcomes, also while seals replace the parts that hold them.

    Rows are asked for in the order of the input, which is about that of the parts: so it reads
    each part about once.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        # A run of schema 1 was rewritten since its parts were listed.
        self._spans = [replace(s, path=s.path.with_name(current_name(s.path.name))) for s in spans]
        self._parts: OrderedDict[Path, tuple[pa.Table, dict[RowKey, int]]] = OrderedDict()

    def find(self, wanted: Mapping[RowKey, int]) -> dict[int, Earlier]:
        """By place in the input, as `wanted` says. Raises `StoreError` where one is not there."""
        remaining = dict(wanted)
        found: dict[int, Earlier] = {}
        first, last = min(wanted.values(), default=0), max(wanted.values(), default=0)
        for span in self._spans:
            if remaining and span.first <= last and first <= span.last:
                found.update(self._found_in(span.path, remaining))
        if remaining:
            (custom_id, *_), row = next(iter(remaining.items()))
            raise StoreError(
                f"row {row} ({custom_id}): its older outcome is in no part any more; leave the "
                "run directory alone while it runs, then run the same command again"
            )
        return found

    def _found_in(self, path: Path, remaining: dict[RowKey, int]) -> dict[int, Earlier]:
        table, positions = self._part(path)
        keys = [key for key in remaining if key in positions]
        if not keys:
            return {}
        (batch,) = table.take([positions[key] for key in keys]).combine_chunks().to_batches()
        rows = batch.drop_columns("attempts").to_pylist()
        return {
            remaining.pop(key): Earlier(attempts, row["cost_usd"], row_totals(row, attempts))
            for key, row, attempts in zip(keys, rows, _attempts(batch["attempts"]), strict=True)
        }

    def _part(self, path: Path) -> tuple[pa.Table, dict[RowKey, int]]:
        """What is needed of a part, and where its rows are."""
        if path not in self._parts:
            while self._parts and self._bytes() > _CACHE_BYTES:
                self._parts.popitem(last=False)
            table = _read(path)
            self._parts[path] = table, {key: at for at, key in enumerate(keys_of(table))}
        self._parts.move_to_end(path)
        return self._parts[path]

    def _bytes(self) -> int:
        return sum(table.nbytes for table, _ in self._parts.values())


def _read(path: Path) -> pa.Table:
    """In one piece; without rows where a seal has deleted the part with its last row."""
    schema = response_schema(NO_COLUMNS)
    empty = pa.schema([schema.field(name) for name in _EARLIER]).empty_table()
    try:
        batches = list(read_part(path, _EARLIER))
    except StoreError:
        if path.exists():
            raise
        return empty
    # In one piece: `take` on many would join them each time.
    return pa.Table.from_batches(batches).combine_chunks() if batches else empty


def _attempts(lists: pa.ListArray) -> list[tuple[Attempt, ...]]:
    """Column by column, which takes half the time of row by row."""
    columns = lists.flatten().flatten()
    columns[_TIME] = columns[_TIME].cast(pa.int64())
    fields = [column.to_pylist() for column in columns]
    fields[_ERROR_KIND] = [_ERROR_KINDS.get(kind) for kind in fields[_ERROR_KIND]]
    every = [Attempt(*values) for values in zip(*fields, strict=True)]
    ends = list(accumulate(lists.value_lengths().to_pylist()))
    return [tuple(every[first:end]) for first, end in pairwise([0, *ends])]
