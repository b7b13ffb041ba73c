"""Reads the complete rows and their totals from parts and journal, with constant memory.

Also the rows that the user has agreed to leave out of the totals, in a file that other tools can
read, and the older outcomes of rows that are sent again.
"""

import os
import sys
import time
from array import array
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StoreError
from batchrun.job.expansion import PLAIN, Expansion
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
from batchrun.remote.part_stubs import is_replaced
from batchrun.store.columns import KEY, NO_COLUMNS, as_schema, response_schema
from batchrun.store.files import current_name, replace_file, storing
from batchrun.store.parts import as_mask, keys_of, read_part
from batchrun.store.snapshot import Snapshot, snapshot

_ATTEMPTS, _PAUSE_S = 100, 0.1  # to read a part whose new version a store has already
_BAD = "invalid"  # the status of a row that was never sent
_MOST_NARROW = 1 << 30  # requests; their numbers, and what follows the last of them, fit in "i"
_ASKED = ("status", "error_kind", "refusal", "truncated")  # what `Resend` selects by


class Requests(Protocol):
    """The requests of a source, by their numbers."""

    @property
    def expansion(self) -> Expansion: ...
    @property
    def ids(self) -> "array[int] | None":
        """This process's hash of each row's id; None: rows are known by their places."""

    @property
    def hashes(self) -> "array[int]":
        """The hash of each request."""


class CompleteRows(Struct, frozen=True):
    """The rows with an outcome: 4 bytes for each that agrees with the source, 28 for others.

    An index is a place in `rows`.
    """

    # The request's number, from the row's place in the input when it was sent; for a sample or
    # variant that is no longer part of the job, -1 minus that place. "i", or "q" if there are too
    # many requests for "i".
    rows: "array[int]"
    others: "array[int]"  # "q": the indexes of rows that do not agree with the source
    ids: "array[int]"  # "q": this process's hash of their ids; without a number, of their keys
    hashes: "array[int]"  # "Q": the hashes of their requests
    totals: Totals
    again: bytearray  # 1 for each row to be sent again; empty if none is asked for
    parts: tuple[tuple[Path, int], ...]  # each with the number of rows up to its end
    bad: bytearray = bytearray()  # 1 for each row of status `invalid`; empty if there is none
    # If variants are declared, 1 for each row without one, numbered as of the first variant; empty
    # if there is none. They are all among `others`.
    unnamed: bytearray = bytearray()
    source: Requests | None = None  # the source whose numbers these are

    @property
    def expansion(self) -> Expansion:
        return PLAIN if self.source is None else self.source.expansion

    def id_hash(self, index: int) -> int:
        """The hash of a row's id; without a number, of its key."""
        at = bisect_left(self.others, index)
        if at < len(self.others) and self.others[at] == index:
            return self.ids[at]
        row = self.row(index)
        known = None if self.source is None else self.source.ids
        return hash(str(row)) if known is None else known[row]

    def key_hash(self, index: int) -> int:
        """The hash of a row's key; see `hash_keys`."""
        number, known = self.rows[index], self.id_hash(index)
        if number < 0:
            return known
        is_unnamed = self.unnamed and self.unnamed[index]
        sample, variant = self.expansion.sample_and_variant(number)
        return hash_key(known, sample, None if is_unnamed else variant)

    def leave_out(self, indexes: Iterable[int]) -> None:
        """Marks these of `others` as rows that are no longer asked for."""
        for index in indexes:
            known, row = self.key_hash(index), self.row(index)
            self.ids[bisect_left(self.others, index)] = known
            self.rows[index] = -1 - row

    def row(self, index: int) -> int:
        """The row's place in the input when it was sent."""
        number = self.rows[index]
        return -1 - number if number < 0 else number // self.expansion.width


def read_complete_rows(
    now: Snapshot, resend: Resend | None = None, source: Requests | None = None
) -> CompleteRows:
    """All complete rows, first those in parts. Raises `StoreError`."""
    expansion = PLAIN if source is None else source.expansion
    again, bad, unnamed = bytearray(), bytearray(), bytearray()
    others, ids, hashes = array("q"), array("q"), array("Q")
    asked = resend if resend is not None and resend.failed else None
    totals = sum_totals(now)
    most = max(totals.rows, 0 if source is None else len(source.hashes))
    rows = array("i" if most < _MOST_NARROW else "q")
    has_bad = _BAD in totals.statuses
    columns = ["row", *KEY, "request_hash", *(["status"] if has_bad else [])]
    columns += [name for name in _ASKED if asked and name not in columns]

    def take(batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            first, no_variants = len(rows), bytearray()
            if expansion.is_plain and not _has_keys(batch):
                rows.extend(batch["row"].to_pylist())
                known = hash_keys(batch)
            else:
                known, no_variants = _number(batch, expansion, rows)
            if expansion.is_declared:
                unnamed.extend(no_variants)
            marks = _as_numbers(batch["request_hash"].to_pylist())
            for at, key, mark in _differing(rows[first:], known, marks, source, no_variants):
                others.append(first + at)
                ids.append(key)
                hashes.append(mark)
            if asked:
                again.extend(_is_sent_again(batch, asked).cast(pa.uint8()).to_pylist())
            if has_bad:
                bad.extend(pc.equal(batch["status"], _BAD).cast(pa.uint8()).to_pylist())

    parts = []
    for path in now.responses:
        take(now.part_batches(path, columns))
        parts.append((path, len(rows)))
    take(now.journal_batches(columns))
    unnamed = unnamed if 1 in unnamed else bytearray()
    return CompleteRows(
        rows, others, ids, hashes, totals, again, tuple(parts), bad, unnamed, source
    )


def _differing(
    numbers: "array[int]",
    ids: Sequence[int],
    hashes: "array[int]",
    source: Requests | None,
    unnamed: bytearray,
) -> Iterator[tuple[int, int, int]]:
    """Place, id and hash of the rows that do not agree with the source at their numbers."""
    if source is None:
        places: Iterable[int] = range(len(numbers))
    else:
        kind = pa.int32() if numbers.typecode == "i" else pa.int64()
        given, wanted = _as_array(numbers, kind), _as_array(source.hashes, pa.uint64())
        inside = pc.and_(pc.greater_equal(given, 0), pc.less(given, len(wanted)))
        given = pc.if_else(inside, given, 0)
        same = pc.and_(inside, pc.equal(wanted.take(given), _as_array(hashes, pa.uint64())))
        if source.ids is not None:
            in_source = _as_array(source.ids, pa.int64())
            at_places = in_source.take(pc.divide(given, source.expansion.width))
            same = pc.and_(same, pc.equal(at_places, pa.array(ids, pa.int64())))
        if source.expansion.is_declared:
            same = pc.and_(same, pc.invert(as_mask(unnamed)))
        places = pc.indices_nonzero(pc.invert(same)).to_pylist()
    for at in places:
        yield at, ids[at], hashes[at]


def _as_array(values: "array[int]", kind: pa.DataType) -> pa.Array:
    """The same memory."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _number(
    batch: pa.RecordBatch, expansion: Expansion, rows: "array[int]"
) -> tuple[list[int], bytearray]:
    """Appends the numbers; returns hashes of ids, and marks of the rows without a variant."""
    samples, width = expansion.samples, expansion.width
    first = {name: at * samples for at, name in enumerate(expansion.variants)}
    if expansion.is_declared:
        first[None] = 0
    ids = []
    for row, (custom_id, sample, variant) in zip(
        batch["row"].to_pylist(), keys_of(batch), strict=True
    ):
        known = hash(custom_id)
        if variant in first and sample < samples:
            rows.append(row * width + first[variant] + sample)
            ids.append(known)
        else:
            rows.append(-1 - row)
            ids.append(hash_key(known, sample, variant))
    return ids, bytearray(pc.is_null(batch["variant"]).cast(pa.uint8()).to_pylist())


def _has_keys(batch: pa.RecordBatch) -> bool:
    """Whether any row has a sample or variant in its key."""
    has_samples = bool(pc.any(pc.not_equal(batch["sample"], 0)).as_py())
    return has_samples or batch["variant"].null_count < batch.num_rows


def hash_keys(batch: pa.RecordBatch) -> list[int]:
    """This process's hash of each row's key."""
    if _has_keys(batch):
        return [hash_key(hash(key[0]), *key[1:]) for key in keys_of(batch)]
    return [hash(custom_id) for custom_id in batch["custom_id"].to_pylist()]


def hash_key(id_hash: int, sample: int, variant: str | None) -> int:
    """The hash of a key; for a key without sample and variant, the hash of its id."""
    return hash((id_hash, sample, variant)) if sample or variant is not None else id_hash


def _as_numbers(marks: Sequence[str]) -> "array[int]":
    """Converts hashes of 16 hexadecimal digits at once, in a quarter of the time of one by one."""
    numbers = array("Q", bytes.fromhex("".join(marks)))
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _is_sent_again(batch: pa.RecordBatch, resend: Resend) -> pa.BooleanArray:
    """Marks the rows that `resend` asks for; never one that was not sent."""
    status, kinds = batch["status"], resend.kinds
    failed = pc.is_in(status, value_set=pa.array(FAILED))
    if not kinds:
        return failed

    def ended_with(*kinds: str) -> pa.BooleanArray:
        return pc.is_in(batch["error_kind"], value_set=pa.array(kinds, pa.string()))

    failed = pc.and_(failed, ended_with(*kinds.difference(ANSWERED)))
    # Up to 0.2 refused and cut answers have no `error_kind`.
    for kind, is_so in (
        ("refusal", pc.is_valid(batch["refusal"])),
        ("truncated", batch["truncated"]),
        ("empty_output", ended_with("empty_output")),
        ("invalid_output", ended_with("invalid_output")),
        ("incomplete", pc.equal(status, "incomplete")),
    ):
        failed = pc.or_(failed, is_so) if kind in kinds else failed
    return failed


def rows_at(
    folder: Path, positions: Iterable[int], columns: Sequence[str] = ("custom_id",)
) -> dict[int, dict[str, Any]]:
    """Columns of a few rows, by their indexes in `CompleteRows`. Raises `StoreError`."""
    wanted, found, first = sorted(positions), dict[int, dict[str, Any]](), 0
    with snapshot(folder) as now:
        for batch in now.batches(columns):
            near = [at for at in wanted if first <= at < first + batch.num_rows]
            for at in near:
                found[at] = {name: batch[name][at - first].as_py() for name in columns}
            first += batch.num_rows
            if not wanted or first > wanted[-1]:
                break
    return found


def keys_at(folder: Path, marks: bytearray) -> set[RowKey]:
    """The keys of the marked rows, in the order of `CompleteRows`. Raises `StoreError`."""
    with snapshot(folder) as now:
        return {key for batch in _marked(now, KEY, marks) for key in keys_of(batch)}


REMOVED_FILE = "gone.parquet"
_REMOVED_SCHEMA = pa.schema([response_schema(NO_COLUMNS).field(name) for name in ("row", *KEY)])


def write_removed_rows(folder: Path, marks: bytearray) -> None:
    """Writes the file that names the marked rows, in the order of `CompleteRows`.

    If no row is marked, `marks` may be empty, and there is no file. Raises `StoreError`.
    """
    path = folder / REMOVED_FILE
    if 1 not in marks:  # nearly always; no part is opened
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
    """This process's hash of each key in the file, in order; empty if the file is damaged.

    The user is then asked about the rows again. Raises `StoreError` if it cannot be read.
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
    """Columns of the marked rows, in the order of `CompleteRows`; None: of all rows."""
    at = 0
    for batch in now.batches(columns):
        yield batch if marks is None else batch.filter(as_mask(marks[at : at + batch.num_rows]))
        at += batch.num_rows


def totals_at(folder: Path, marks: bytearray) -> Totals:
    """The totals of the marked rows, in the order of `CompleteRows`. Raises `StoreError`."""
    with snapshot(folder) as now:
        return sum_totals(now, marks)


def sum_totals(now: Snapshot, marks: bytearray | None = None) -> Totals:
    """The totals of complete rows, as SQL over the tables would give them. Raises `StoreError`.

    Of all rows, or of the marked ones, in the order of `CompleteRows`.
    """
    sums = TotalsBuilder()
    for batch in _marked(now, COUNTED, marks):
        if batch.num_rows:
            sums.add_batch(batch)
    return sums.totals()


_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
COUNTED = (  # the columns that are added up
    *("ok", "status", "truncated", "refusal", "error_kind", "tool_call_count", "cost_usd"),
    *("attempts.list.element.kind", "attempts.list.element.cost_usd", *_TOKENS),
    *("priced_as", "model_requested"),
)
_MAPS = ("statuses", "error_kinds", "attempt_kinds")
_NOT_ADDED = (*_MAPS, "cost_usd", "unpriced_model", "unpriced_models")
_MOST_UNPRICED = 1_000  # models without a price whose names are kept
_SUMS = [name for name in Totals.__struct_fields__ if name not in _NOT_ADDED]


class TotalsBuilder:
    """Totals that grow by outcomes and by batches of rows."""

    def __init__(self, start: Totals | None = None) -> None:
        self.error_examples: dict[str, str] = {}  # by `error_kind`, the first message
        self.set_to(start or Totals())

    def set_to(self, start: Totals) -> None:
        """Continues from these totals."""
        self.sums: dict[str, int] = {name: getattr(start, name) for name in _SUMS}
        self._statuses = Counter(start.statuses)
        self._error_kinds = Counter(start.error_kinds)
        self._attempt_kinds = Counter(start.attempt_kinds)
        self._cost_usd = start.cost_usd
        names = (start.unpriced_model, *start.unpriced_models)  # older versions have the first
        self._unpriced = dict.fromkeys(filter(None, names))

    def totals(self) -> Totals:
        return Totals(
            statuses=dict(sorted(self._statuses.items())),
            error_kinds=dict(sorted(self._error_kinds.items())),
            attempt_kinds=dict(sorted(self._attempt_kinds.items())),
            cost_usd=self._cost_usd,
            unpriced_model=next(iter(self._unpriced), None),
            unpriced_models=tuple(sorted(self._unpriced)),
            **self.sums,
        )

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Adds many at once, which halves the time for each."""
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
            self._name_unpriced(outcome.unpriced_model for outcome in unpriced)
        results = [outcome.result for outcome in outcomes]
        self._statuses.update([result.status for result in results])
        answers = [result for result in results if isinstance(result, Response)]
        usages = [answer.usage for answer in answers]
        sums["truncated"] += sum([answer.truncated for answer in answers])
        sums["refused"] += sum([answer.refusal is not None for answer in answers])
        sums["tool_calls"] += sum([len(answer.tool_calls) for answer in answers])
        sums["input_tokens"] += sum([usage.input_tokens or 0 for usage in usages])
        sums["cached_tokens"] += sum([usage.cached_tokens or 0 for usage in usages])
        sums["output_tokens"] += sum([usage.output_tokens or 0 for usage in usages])
        sums["reasoning_tokens"] += sum([usage.reasoning_tokens or 0 for usage in usages])
        sums["total_tokens"] += sum([usage.total_tokens or 0 for usage in usages])
        for outcome in outcomes:
            failure = outcome.failure
            if failure is None:  # the same as `Response.ok`, without a second look
                sums["ok"] += outcome.result.status == "completed"
            else:
                self._error_kinds[failure.kind.value] += 1
                self.error_examples.setdefault(failure.kind.value, failure.message)

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Adds rows of `responses`, at least one, with the columns `COUNTED`."""
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
            used = (pc.is_valid(batch[f"{kind}_tokens"]) for kind in ("input", "output"))
            no_price = pc.and_(pc.and_(unknown, pc.or_(*used)), pc.is_null(batch["priced_as"]))
            self._name_unpriced(batch["model_requested"].filter(no_price).unique().to_pylist())

    def _name_unpriced(self, models: Iterable[str | None]) -> None:
        for model in models:
            if model is not None and len(self._unpriced) < _MOST_UNPRICED:
                self._unpriced[model] = None


def row_totals(row: Mapping[str, Any], attempts: Sequence[Attempt]) -> Totals:
    """The totals of one row with these attempts, read with the columns `COUNTED`."""
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
        unpriced_models=(),
        **{name: int(row[name] or 0) for name in _TOKENS},
    )


def _sum(values: pa.Array) -> int:
    return pc.sum(values).as_py() or 0


def _counts(values: pa.Array) -> dict[str, int]:
    pairs = pc.value_counts(values.drop_null()).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


_CACHE_BYTES = 32 << 20  # of parts that were read last; one part is always kept
_EARLIER = ("row", *KEY, "attempts", *(name for name in COUNTED if not name.startswith("attempts")))
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

    Rows are asked for in the order of the input, which is about the order of the parts, so each
    part is read about once.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        # A run of schema 1 was rewritten since its parts were listed.
        self._spans = [replace(s, path=s.path.with_name(current_name(s.path.name))) for s in spans]
        self._parts: OrderedDict[Path, tuple[pa.Table, dict[RowKey, int]]] = OrderedDict()

    def find(self, wanted: Mapping[RowKey, int]) -> dict[RowKey, Earlier]:
        """The outcomes of the wanted rows, by place in the input. `StoreError`: one is missing."""
        remaining = dict(wanted)
        found: dict[RowKey, Earlier] = {}
        first, last = min(wanted.values(), default=0), max(wanted.values(), default=0)
        for span in self._spans:
            if remaining and span.first <= last and first <= span.last:
                found.update(self._found_in(span.path, remaining))
        if remaining:
            (custom_id, *_), row = next(iter(remaining.items()))
            raise StoreError(
                f"row {row} ({custom_id}): its older outcome is missing from the tables; do not "
                "change the run directory during a run, and run the same command again"
            )
        return found

    def _found_in(self, path: Path, remaining: dict[RowKey, int]) -> dict[RowKey, Earlier]:
        """Removes from `remaining` what it finds."""
        table, positions = self._part(path)
        keys = [key for key in remaining if key in positions]
        if not keys:
            return {}
        (batch,) = table.take([positions[key] for key in keys]).combine_chunks().to_batches()
        rows = batch.drop_columns("attempts").to_pylist()
        for key in keys:
            del remaining[key]
        return {
            key: Earlier(attempts, row["cost_usd"], row_totals(row, attempts))
            for key, row, attempts in zip(keys, rows, attempts_of(batch["attempts"]), strict=True)
        }

    def _part(self, path: Path) -> tuple[pa.Table, dict[RowKey, int]]:
        """The needed columns of a part, and where its rows are."""
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
    """In one piece; without rows if a seal has deleted the part with its last row."""
    schema = response_schema(NO_COLUMNS)
    empty = pa.schema([schema.field(name) for name in _EARLIER]).empty_table()
    outdated = 0
    while True:
        try:
            before = path.stat()
            batches = list(read_part(path, _EARLIER))
            break
        except FileNotFoundError:
            return empty
        except StoreError:
            # Some file systems do not keep what another host has replaced while it is read.
            if path.exists() and os.path.samestat(path.stat(), before):
                outdated += 1
                if outdated > _ATTEMPTS or not is_replaced(path):
                    raise
                time.sleep(_PAUSE_S)
    # In one piece: `take` on many would join them each time.
    return pa.Table.from_batches(batches).combine_chunks() if batches else empty


def attempts_of(lists: pa.ListArray) -> list[tuple[Attempt, ...]]:
    """The attempts of each row, read column by column: in half the time of row by row."""
    columns = lists.flatten().flatten()
    columns[_TIME] = columns[_TIME].cast(pa.int64())
    fields = [column.to_pylist() for column in columns]
    fields[_ERROR_KIND] = [_ERROR_KINDS.get(kind) for kind in fields[_ERROR_KIND]]
    every = [Attempt(*values) for values in zip(*fields, strict=True)]
    ends = list(accumulate(lists.value_lengths().to_pylist()))
    return [tuple(every[first:end]) for first, end in pairwise([0, *ends])]
