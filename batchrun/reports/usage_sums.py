"""What the attempts of a run used, in sums by what their price depends on; memory stays flat.

Rows in the journal count too. The answer that counted is known by its id, or by its tokens; what
only rows say (cache-write tokens, searches) is its.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from batchrun.dialects.output_items import SEARCHING, count_searches
from batchrun.errors import JobError
from batchrun.records import Outcome, RowKey, RunRecord
from batchrun.store.columns import response_batch, response_schema, tool_call_batch
from batchrun.store.files import final_name, id_of
from batchrun.store.keys import KEY
from batchrun.store.snapshot import Snapshot, read_part, read_snapshot, read_standing_part

MOST_VALUES = 10_000  # of the column that sums are told apart by
_DAY = 86_400_000_000  # µs
_MOST_SUMS = 50_000  # kept before they are added up again
_MOST_TOKENS = 2**40  # of one answer; what a server says beyond it is a slip
_JOURNAL_ROWS = 1_024  # made into columns at a time

_OF_ROW = ("model_requested", "model", "service_tier", "via", "status")
_ANSWER_TOKENS = ("cache_write_tokens", "reasoning_tokens")  # of the answer that counted alone
_ATTEMPT = ("kind", "started_at", "response_id", *(_TOKENS := ("input_tokens", "cached_tokens")))
_COLUMNS = (
    *_OF_ROW,
    *("response_id", *_TOKENS, "output_tokens", *_ANSWER_TOKENS, "cost_usd", "reported_cost_usd"),
    *(f"attempts.list.element.{name}" for name in (*_ATTEMPT, "output_tokens", "cost_usd")),
)
_WITH_CALLS = ("usage", *KEY)
_CALL = (*KEY, "type", "status", "item")

_KEYS = (*_OF_ROW, "kind", "above", "at", "value")
_SUMS = (
    *("rows", "attempts", "counted", "unknown", *_TOKENS, "output_tokens", *_ANSWER_TOKENS),
    *("web", "file", "recorded_usd", "reported_usd"),
)

Calls = Mapping[RowKey, list[tuple[str, str | None, str]]]


class UsageSum(Struct, frozen=True):
    """Rows or attempts that are alike in all that comes first, and what they add up to.

    Either `rows` (then `kind` is null) or `attempts` is not 0.
    """

    model_requested: str | None
    model: str | None
    service_tier: str | None
    via: str
    status: str
    kind: str | None  # first, retry, reask, hedge
    above: int  # the last of the steps that each input is longer than
    at: int  # the last of the changes of the day at or before the start, µs since 1970
    value: str | None  # of the column asked for, as text
    rows: int
    attempts: int
    counted: int  # attempts whose tokens are known; the sums below are theirs
    unknown: int  # attempts that may be billed, whose tokens nobody told
    input_tokens: int  # at least cached and cache-write tokens together, in each attempt
    cached_tokens: int
    output_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    web: int  # searches
    file: int
    recorded_usd: float | None  # `cost_usd` of the rows; null where none has any
    reported_usd: float | None  # the same of `reported_cost_usd`


class Edges(Struct, frozen=True):
    """Where prices may change, ascending."""

    steps: Sequence[int]  # lengths of input, in tokens, above which they do; from -1
    of_day: Sequence[int]  # µs, from 0


def sum_usage(path: Path, record: RunRecord, edges: Edges, by: str | None = None) -> list[UsageSum]:
    """All that is settled, told apart at `edges` and by the values of the column `by`.

    Raises `JobError` where there is no such column or it has too many values; `StoreError`.
    """
    if by is not None:
        _check_column(path, record, by)
    return read_snapshot(path, lambda now: _read(now, record, edges, by))


def _check_column(path: Path, record: RunRecord, by: str) -> None:
    schema = response_schema(record.layout, record.schema_version)
    if by not in schema.names:
        carried = ", ".join(column.name for column in record.layout.columns) or "none"
        raise JobError(f"{path}: there is no column {by}; carried columns are: {carried}")
    if pa.types.is_nested(schema.field(by).type):
        raise JobError(f"{path}: {by} holds {schema.field(by).type}; name a column of plain values")


def _read(now: Snapshot, record: RunRecord, edges: Edges, by: str | None) -> list[UsageSum]:
    columns = _COLUMNS if by is None else tuple(dict.fromkeys((*_COLUMNS, by)))
    sums: list[pa.Table] = []
    for batch, calls in _batches(now, record, columns):
        value = _values(batch, by)
        sums += [_of_rows(batch, value), _of_attempts(batch, value, calls, edges)]
        if sum(table.num_rows for table in sums) > _MOST_SUMS:
            sums = [_added_up(sums, by)]
    return [UsageSum(**row) for row in _added_up(sums, by).to_pylist()] if sums else []


def _batches(
    now: Snapshot, record: RunRecord, columns: tuple[str, ...]
) -> Iterator[tuple[pa.RecordBatch, Calls]]:
    of_part = {id_of(final_name(path.name)): path for path in now.tool_calls}
    for part in now.responses:
        path = of_part.get(id_of(final_name(part.name)))
        calls = {} if path is None else _calls(read_part(path, ("type",)), path)
        wanted = tuple(dict.fromkeys((*columns, *_WITH_CALLS))) if calls else columns
        for batch in read_standing_part(now, part, wanted):
            yield batch, calls
    outcomes = now.outcomes()
    while chunk := list(islice(outcomes, _JOURNAL_ROWS)):
        yield _journal(chunk, record)


def _journal(chunk: list[Outcome], record: RunRecord) -> tuple[pa.RecordBatch, Calls]:
    version = record.schema_version
    batch = response_batch(chunk, record.layout, store_request=False, version=version)
    return batch, _by_key([tool_call_batch(chunk, version)])


def _calls(types: Iterable[pa.RecordBatch], path: Path) -> Calls:
    """The calls of a part that may be billed by the piece; most parts have none."""
    searching = pa.array(SEARCHING)
    if not any(pc.any(pc.is_in(batch["type"], value_set=searching)).as_py() for batch in types):
        return {}
    return _by_key(read_part(path, _CALL))


def _by_key(batches: Iterable[pa.RecordBatch]) -> Calls:
    found: dict[RowKey, list[tuple[str, str | None, str]]] = {}
    searching = pa.array(SEARCHING)
    for batch in batches:
        billed = batch.filter(pc.is_in(batch["type"], value_set=searching))
        for custom_id, sample, variant, *call in zip(
            *(billed[name].to_pylist() for name in _CALL), strict=True
        ):
            kind, status, item = call
            found.setdefault((custom_id, sample, variant), []).append((kind, status, item))
    return found


def _values(batch: pa.RecordBatch, by: str | None) -> pa.Array:
    """Of the column, as text. Raises `JobError`."""
    if by is None:
        return pa.nulls(batch.num_rows, pa.string())
    try:
        return batch[by].cast(pa.string())
    except pa.ArrowException as error:
        kind = batch.schema.field(by).type
        raise JobError(f"{by} holds {kind}, which is no text; name another column") from error


def _of_rows(batch: pa.RecordBatch, value: pa.Array) -> pa.Table:
    """How many rows there are, and what they are said to have cost."""
    ones = _full(1, batch.num_rows)
    return _summed(
        {
            **{name: batch[name] for name in _OF_ROW},
            "value": value,
            "rows": ones,
            "recorded_usd": batch["cost_usd"],
            "reported_usd": batch["reported_cost_usd"],
        }
    )


def _of_attempts(batch: pa.RecordBatch, value: pa.Array, calls: Calls, edges: Edges) -> pa.Table:
    attempts = batch["attempts"]
    parents = pc.list_parent_indices(attempts)
    tries = pc.list_flatten(attempts)
    tried = {field.name: pc.struct_field(tries, field.name) for field in tries.type}
    row = {name: batch[name].take(parents) for name in (*_OF_ROW, *_ANSWER_TOKENS)}
    is_answer = _counted(batch, tried, parents)
    is_known = pc.and_(pc.is_valid(tried["input_tokens"]), pc.is_valid(tried["output_tokens"]))
    is_free = pc.fill_null(pc.equal(tried["cost_usd"], 0.0), fill_value=False)
    cached = _count_of(tried["cached_tokens"], is_known)
    written = _count_of(row["cache_write_tokens"], pc.and_(is_known, is_answer))
    said = _count_of(tried["input_tokens"], is_known)
    columns = {name: row[name] for name in _OF_ROW}
    columns |= {
        "kind": tried["kind"],
        "value": value.take(parents),
        "above": _last_below(said, edges.steps, pc.greater),
        "at": _last_change(tried["started_at"], edges.of_day),
        "attempts": _full(1, len(tries)),
        "counted": is_known.cast(pa.int64()),
        "unknown": pc.and_not(pc.invert(is_known), is_free).cast(pa.int64()),
        "input_tokens": pc.max_element_wise(said, pc.add(cached, written)),
        "cached_tokens": cached,
        "cache_write_tokens": written,
        "output_tokens": _count_of(tried["output_tokens"], is_known),
        "reasoning_tokens": _count_of(row["reasoning_tokens"], pc.and_(is_known, is_answer)),
    }
    if calls:
        for name, counts in _searches(batch, calls).items():
            columns[name] = _count_of(counts.take(parents), pc.and_(is_known, is_answer))
    return _summed(columns)


def _counted(
    batch: pa.RecordBatch, tried: Mapping[str, pa.Array], parents: pa.Array
) -> pa.BooleanArray:
    """True for the attempt of each row that brought its answer: the last that may be it."""
    same = {
        name: pc.fill_null(pc.equal(tried[name], batch[name].take(parents)), fill_value=False)
        for name in ("response_id", "input_tokens", "output_tokens")
    }
    places = pa.array(range(len(parents)), pa.int64())
    none = _full(-1, len(parents))
    by_tokens = pc.if_else(pc.and_(same["input_tokens"], same["output_tokens"]), places, none)
    by_id = pc.add(places, len(parents))
    rank = pc.if_else(same["response_id"], by_id, by_tokens)
    best = pa.table({"row": parents, "rank": rank}).group_by("row").aggregate([("rank", "max")])
    is_best = pc.is_in(rank, value_set=best["rank_max"].combine_chunks())
    return pc.and_(is_best, pc.greater_equal(rank, 0))


def _searches(batch: pa.RecordBatch, calls: Calls) -> dict[str, pa.Array]:
    web, file = [0] * batch.num_rows, [0] * batch.num_rows
    keys = zip(*(batch[name].to_pylist() for name in KEY), strict=True)
    for at, key in enumerate(keys):
        if key in calls:
            found = count_searches(batch["usage"][at].as_py(), calls[key])
            web[at], file[at] = found.web, found.file
    return {"web": pa.array(web, pa.int64()), "file": pa.array(file, pa.int64())}


def _full(value: int, length: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int64()), length)


def _count_of(tokens: pa.Array, where: pa.BooleanArray) -> pa.Array:
    """What is null, negative or not wanted is 0; a count that cannot be must not spoil the sum."""
    at_least_0 = pc.max_element_wise(pc.fill_null(tokens, 0), 0)
    return pc.if_else(where, pc.min_element_wise(at_least_0, _MOST_TOKENS), 0)


def _last_below(values: pa.Array, edges: Sequence[int], passes: Callable[..., Any]) -> pa.Array:
    """The last of the edges that each value passes, the first where it passes none."""
    last = _full(edges[0], len(values))
    for edge in edges[1:]:
        last = pc.if_else(passes(values, edge), edge, last)
    return last


def _last_change(started_at: pa.Array, of_day: Sequence[int]) -> pa.Array:
    at = pc.fill_null(started_at.cast(pa.int64()), 0)
    day = pc.multiply(pc.divide(at, _DAY), _DAY)
    return pc.add(day, _last_below(pc.subtract(at, day), of_day, pc.greater_equal))


def _summed(columns: Mapping[str, pa.Array]) -> pa.Table:
    """The columns added up by the keys; those that are left out are null, or 0."""
    length = len(columns["value"])
    whole: dict[str, Any] = {}
    for name in (*_KEYS, *_SUMS):
        if name in columns:
            whole[name] = columns[name]
        elif name in ("above", "at"):
            whole[name] = _full(-1, length)
        elif name.endswith("_usd"):
            whole[name] = pa.nulls(length, pa.float64())
        else:
            whole[name] = pa.nulls(length, pa.string()) if name == "kind" else _full(0, length)
    return _grouped(pa.table(whole))


def _grouped(table: pa.Table) -> pa.Table:
    sums = table.group_by(list(_KEYS)).aggregate([(name, "sum") for name in _SUMS])
    return sums.rename_columns([name.removesuffix("_sum") for name in sums.column_names])


def _added_up(sums: Sequence[pa.Table], by: str | None) -> pa.Table:
    """Raises `JobError` where the column has too many values."""
    whole = _grouped(pa.concat_tables(sums))
    if len(pc.unique(whole["value"])) > MOST_VALUES:
        raise JobError(
            f"the column {by} has more than {MOST_VALUES:,} different values; name one with fewer"
        )
    return whole
