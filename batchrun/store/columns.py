"""The columns of the tables: each is declared once; schemas, names and batches follow from that.

Parts of schema 1 are read as they are. Schema 2 has more columns of its own; carried columns with
the same names are renamed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from msgspec.structs import replace

from batchrun.formats.arrow import has_map, map_plain, unpack
from batchrun.records import (
    Attempt,
    Column,
    Failure,
    JsonObject,
    Layout,
    Outcome,
    Response,
    Usage,
)

SCHEMA_VERSION = 2
KEY = ("custom_id", "sample", "variant")  # the columns of a `RowKey`
CALLS = "tool_calls"  # what rows that have their calls with them call these
_VERSION_KEY = b"batchrun.schema_version"
_TIME = pa.timestamp("us", "UTC")

# The structs that a `source` names, by kind: one for each outcome, or for each tool call.
_Structs = Mapping[str, Sequence[Any]]
# Placeholders for outcomes without an answer, a failure or an attempt.
_NO_ANSWER = Response(*[None] * len(Response.__struct_fields__))  # type: ignore[arg-type]
_NO_ANSWER = replace(_NO_ANSWER, truncated=False, usage=Usage())
_NO_FAILURE = Failure(*[None] * len(Failure.__struct_fields__))  # type: ignore[arg-type]
_NO_ATTEMPT = Attempt(*[None] * len(Attempt.__struct_fields__))  # type: ignore[arg-type]


def _is_ok(structs: _Structs) -> list[bool]:
    """As `Outcome.ok`, without asking a second time what it lacks."""
    return [
        failure is _NO_FAILURE and result.status == "completed"
        for failure, result in zip(structs["failure"], structs["result"], strict=True)
    ]


def _finished_at(structs: _Structs) -> list[int | None]:
    return [
        None if one is _NO_ATTEMPT else one.started_at + round(one.latency_s * 1e6)
        for one in structs["last_attempt"]
    ]


def _tool_call_count(structs: _Structs) -> list[int | None]:
    return [None if one is _NO_ANSWER else len(one.tool_calls) for one in structs["answer"]]


def _or_null(structs: _Structs, struct: str, field: str) -> list[Any]:
    """Null for what is empty: imported answers have no request."""
    return [value or None for value in map(attrgetter(field), structs[struct])]


class OwnColumn(NamedTuple):
    """A column that batchrun itself fills, or a field of the structs in one."""

    name: str
    type: "pa.DataType | tuple[OwnColumn, ...]"  # a tuple: a list of structs with these fields
    source: str | Callable[[_Structs], Sequence[Any]] = ""  # `struct.field`; empty: always null
    since: int = 1  # schema version
    repeats: bool = False  # few different values, so that a dictionary in Parquet pays


# Fields of `Citation` and of `Attempt`.
_CITATION = (
    OwnColumn("type", pa.string(), repeats=True),
    OwnColumn("url", pa.string()),
    OwnColumn("title", pa.string()),
    OwnColumn("file_id", pa.string()),
    OwnColumn("start_index", pa.int64()),
    OwnColumn("end_index", pa.int64()),
)
_ATTEMPT = (
    OwnColumn("started_at", _TIME),
    OwnColumn("latency_s", pa.float64()),
    OwnColumn("kind", pa.string(), repeats=True),
    OwnColumn("http_status", pa.int16()),
    OwnColumn("error_kind", pa.string(), repeats=True),
    OwnColumn("error_message", pa.string()),
    OwnColumn("request_id", pa.string()),
    OwnColumn("client_request_id", pa.string()),
    OwnColumn("response_id", pa.string()),
    OwnColumn("input_tokens", pa.int64()),
    OwnColumn("cached_tokens", pa.int64()),
    OwnColumn("output_tokens", pa.int64()),
    OwnColumn("cost_usd", pa.float64()),
    OwnColumn("endpoint", pa.string(), since=2),
)
_ROW = (
    OwnColumn("row", pa.int64(), "request.row"),
    OwnColumn("custom_id", pa.string(), "request.custom_id"),
    OwnColumn("sample", pa.int32(), "request.sample"),
    OwnColumn("variant", pa.string(), "request.variant", repeats=True),
)
_BEFORE_CARRIED = (*_ROW, OwnColumn("source", pa.string(), "request.source", repeats=True))
_AFTER_CARRIED = (
    OwnColumn("ok", pa.bool_(), _is_ok),
    OwnColumn("status", pa.string(), "result.status", repeats=True),
    OwnColumn("truncated", pa.bool_(), "answer.truncated"),
    OwnColumn("http_status", pa.int16(), "attempt.http_status"),
    OwnColumn("error_kind", pa.string(), "failure.kind", repeats=True),
    OwnColumn("error_code", pa.string(), "failure.code", repeats=True),
    OwnColumn("error_message", pa.string(), "failure.message"),
    OwnColumn("incomplete_reason", pa.string(), "answer.incomplete_reason", repeats=True),
    OwnColumn("response_id", pa.string(), "answer.id"),
    OwnColumn("request_id", pa.string(), "attempt.request_id"),
    OwnColumn("model", pa.string(), "answer.model", repeats=True),
    OwnColumn("model_requested", pa.string(), "request.model", repeats=True),
    OwnColumn("service_tier", pa.string(), "answer.service_tier", repeats=True),
    OwnColumn(
        "endpoint",
        pa.string(),
        lambda structs: _or_null(structs, "outcome", "endpoint"),
        repeats=True,
    ),
    OwnColumn(
        "via", pa.string(), lambda structs: _or_null(structs, "outcome", "via"), repeats=True
    ),
    OwnColumn("output_text", pa.string(), "answer.output_text"),
    OwnColumn("refusal", pa.string(), "answer.refusal"),
    OwnColumn("reasoning_summary", pa.string(), "answer.reasoning_summary"),
    OwnColumn("reasoning_text", pa.string(), "answer.reasoning_text", since=2),
    OwnColumn("api", pa.string(), since=2),
    OwnColumn("endpoint_name", pa.string(), since=2),
    OwnColumn("embedding", pa.list_(pa.float32()), since=2),
    OwnColumn("turn_count", pa.int32(), since=2),
    OwnColumn("output", pa.string(), "answer.output"),
    OwnColumn("output_parsed_ok", pa.bool_(), "answer.output_parsed_ok"),
    OwnColumn("citations", _CITATION, "answer.citations"),
    OwnColumn("tool_call_count", pa.int32(), _tool_call_count),
    *(OwnColumn(name, pa.int64(), f"usage.{name}") for name in Usage.__struct_fields__),
    OwnColumn("usage", pa.string(), "answer.usage_json"),
    OwnColumn("cost_usd", pa.float64(), "outcome.cost_usd"),
    OwnColumn("priced_as", pa.string(), "outcome.priced_as", repeats=True),
    OwnColumn("reported_cost_usd", pa.float64(), "answer.reported_cost_usd"),
    OwnColumn("attempts", _ATTEMPT, "outcome.attempts"),
    OwnColumn("started_at", _TIME, "first_attempt.started_at"),
    OwnColumn("finished_at", _TIME, _finished_at),
    OwnColumn("latency_s", pa.float64(), "attempt.latency_s"),
    OwnColumn("first_token_s", pa.float64(), "outcome.first_token_s"),
    OwnColumn("request", pa.string(), lambda structs: _or_null(structs, "request", "body")),
    OwnColumn("request_hash", pa.string(), lambda structs: _or_null(structs, "request", "hash")),
)
_TOOL_CALL = (
    *_ROW,
    OwnColumn("response_id", pa.string(), "answer.id"),
    OwnColumn("position", pa.int32(), "call.position"),
    OwnColumn("type", pa.string(), "call.type", repeats=True),
    OwnColumn("call_id", pa.string(), "call.call_id"),
    OwnColumn("name", pa.string(), "call.name", repeats=True),
    OwnColumn("arguments", pa.string(), "call.arguments"),
    OwnColumn("arguments_valid", pa.bool_(), "call.arguments_valid"),
    OwnColumn("status", pa.string(), "call.status", repeats=True),
    OwnColumn("item", pa.string(), "call.item"),
    OwnColumn("turn", pa.int32(), since=2),
    OwnColumn("result", pa.string(), since=2),
    OwnColumn("result_error", pa.string(), since=2),
    OwnColumn("result_latency_s", pa.float64(), since=2),
)
# A row for each stored row and metric. The columns of a judge are null until there are judges.
_SCORE = (
    *_ROW,
    OwnColumn("scorer", pa.string(), repeats=True),
    OwnColumn("scorer_version", pa.string(), repeats=True),
    OwnColumn("metric", pa.string(), repeats=True),
    OwnColumn("value", pa.float64()),
    OwnColumn("passed", pa.bool_()),
    OwnColumn("answer", pa.string()),
    OwnColumn("target", pa.string()),
    OwnColumn("reason", pa.string(), repeats=True),
    OwnColumn("explanation", pa.string()),
    OwnColumn("metadata", pa.string()),
    OwnColumn("input_hash", pa.string()),
    OwnColumn("response_id", pa.string()),
    OwnColumn("judge_response_id", pa.string()),
    OwnColumn("judge_cost_usd", pa.float64()),
    OwnColumn("scored_at", _TIME),
)
_OF_RESPONSES = {own.name: own for own in (*_BEFORE_CARRIED, *_AFTER_CARRIED)}
_OF_TOOL_CALLS = {own.name: own for own in _TOOL_CALL}
_ALL = (*_OF_RESPONSES.values(), *_OF_TOOL_CALLS.values())


def own_columns(version: int = SCHEMA_VERSION) -> tuple[str, ...]:
    """The own columns of `responses` in a schema; no carried column has such a name."""
    return tuple(own.name for own in _OF_RESPONSES.values() if own.since <= version)


def repeating_columns(schema: pa.Schema) -> list[str]:
    """Paths of columns whose values repeat; for others, making a dictionary is wasted."""
    found = []
    for own in _ALL:
        if own.name in schema.names and isinstance(own.type, tuple):
            found += [f"{own.name}.list.element.{one.name}" for one in own.type if one.repeats]
        elif own.name in schema.names and own.repeats:
            found.append(own.name)
    return found


def name_columns(
    columns: Sequence[str], version: int = SCHEMA_VERSION, pinned: Sequence[Column] = ()
) -> list[str]:
    """The names of carried columns in `responses`; no two differ only in case.

    A name that batchrun itself has in the schema gets the suffix `_input`, and so has `tool_calls`.
    `pinned`: the columns of a run that has begun. If one of them is called `tool_calls`, the run is
    of a release that did not keep this name, and nothing is renamed.
    """
    own = own_columns(version)
    if not any(column.name.lower() == CALLS for column in pinned):
        own = (*own, CALLS)
    return distinct_names(
        [f"{one}_input" if one.lower() in own else one or "unnamed" for one in columns], own
    )


def distinct_names(bases: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The names, with numbers if they differ only in case or are `taken` (in lower case)."""
    used, names = set(taken), []
    for base in bases:
        name, count = base, 1
        while name.lower() in used:
            count += 1
            name = f"{base}_{count}"
        used.add(name.lower())
        names.append(name)
    return names


def names_with_calls(names: Sequence[str]) -> list[str]:
    """The columns of rows that have their calls with them, which are the last one."""
    return [*(_beside(CALLS, names) if name == CALLS else name for name in names), CALLS]


def put_beside(row: JsonObject, name: str, value: Any) -> None:
    """Adds to a row what is no column of `responses`; a carried column of this name is renamed."""
    if name in row:
        row[_beside(name, row)] = row.pop(name)
    row[name] = value


def _beside(name: str, names: Iterable[str]) -> str:
    """What a carried column of this name is called beside what else has it."""
    return distinct_names([f"{name}_input"], map(str.lower, names))[0]


@cache
def response_schema(layout: Layout, version: int = SCHEMA_VERSION) -> pa.Schema:
    """The schema of `responses`: the carried columns are after `source`.

    `layout` has their names in schema `version`, except for parts of schema 1 of a run that has
    been rewritten since: see `layout_of`.
    """
    carried = [(column.name, unpack(column.arrow)[0]) for column in layout.columns]
    fields = (*_fields(_BEFORE_CARRIED, version), *carried, *_fields(_AFTER_CARRIED, version))
    return pa.schema(fields, metadata={_VERSION_KEY: str(version)})


@cache
def tool_call_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """The schema of `tool_calls`."""
    return pa.schema(_fields(_TOOL_CALL, version), metadata={_VERSION_KEY: str(version)})


@cache
def score_schema() -> pa.Schema:
    """The schema of `scores`."""
    return pa.schema(_fields(_SCORE, SCHEMA_VERSION), metadata={_VERSION_KEY: str(SCHEMA_VERSION)})


def _fields(columns: Sequence[OwnColumn], version: int) -> list[tuple[str, pa.DataType]]:
    return [
        (
            own.name,
            pa.list_(pa.struct(_fields(own.type, version)))
            if isinstance(own.type, tuple)
            else own.type,
        )
        for own in columns
        if own.since <= version
    ]


def version_of(schema: pa.Schema) -> int | None:
    """The schema version that a part names; None if it names none."""
    said = (schema.metadata or {}).get(_VERSION_KEY, b"")
    return int(said) if said.isdigit() else None


def layout_of(layout: Layout, version: int) -> Layout:
    """The layout, with the names that its columns have in a schema."""
    names = name_columns([column.column for column in layout.columns], version, layout.columns)
    columns = zip(layout.columns, names, strict=True)
    return replace(layout, columns=tuple(replace(one, name=name) for one, name in columns))


def new_names(part: pa.Schema, layout: Layout) -> dict[str, str]:
    """The carried columns of a part with another name in `layout`: from the part's to that one."""
    version = version_of(part) or 1
    if version >= SCHEMA_VERSION:
        return {}
    pairs = zip(layout_of(layout, version).columns, layout.columns, strict=True)
    return {old.name: new.name for old, new in pairs if old.name != new.name}


_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


def as_schema(rows: _Rows, schema: pa.Schema, layout: Layout) -> _Rows:
    """The rows of a part with the columns of `schema`; columns that it lacks are null.

    `layout`: the carried columns with their names in `schema`.
    """
    if rows.schema.equals(schema):
        return rows
    names = new_names(rows.schema, layout)
    positions = {names.get(name, name): at for at, name in enumerate(rows.schema.names)}
    arrays = [
        rows.column(positions[field.name]).cast(field.type)
        if field.name in positions
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return type(rows).from_arrays(arrays, schema=schema)


NO_COLUMNS = Layout(None, ())  # for rows that carry nothing


def response_batch(
    outcomes: Sequence[Outcome],
    layout: Layout = NO_COLUMNS,
    version: int = SCHEMA_VERSION,
    *,
    store_request: bool = False,
    names: Collection[str] | None = None,
) -> pa.RecordBatch:
    """The rows of `responses` for outcomes: all columns of the schema, or those named."""
    schema = response_schema(layout, version)
    if names is not None:
        schema = pa.schema([schema.field(name) for name in names])
    answers = [one.result if isinstance(one.result, Response) else _NO_ANSWER for one in outcomes]
    structs = {
        "outcome": outcomes,
        "request": [one.request for one in outcomes],
        "result": [one.result for one in outcomes],
        "answer": answers,
        "usage": [one.usage for one in answers],
        "failure": [one.failure or _NO_FAILURE for one in outcomes],
        "attempt": [one.attempts[one.counted] if one.attempts else _NO_ATTEMPT for one in outcomes],
        "first_attempt": [one.attempts[0] if one.attempts else _NO_ATTEMPT for one in outcomes],
        "last_attempt": [one.attempts[-1] if one.attempts else _NO_ATTEMPT for one in outcomes],
    }
    carried = {column.name: at for at, column in enumerate(layout.columns)}
    arrays = []
    for field in schema:
        if field.name in carried:
            at = carried[field.name]
            # Null for rows that carry nothing, and for rows stored before the column was new.
            rows = [one.request.carried for one in outcomes]
            values = [row[at] if at < len(row) else None for row in rows]
            arrays.append(_carried_array(values, layout.columns[at]))
        elif field.name == "request" and not store_request:
            arrays.append(pa.nulls(len(outcomes), field.type))
        else:
            arrays.append(_array(_OF_RESPONSES[field.name], structs, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def tool_call_batch(outcomes: Sequence[Outcome], version: int = SCHEMA_VERSION) -> pa.RecordBatch:
    """The rows of `tool_calls` for outcomes, always with all columns of the schema."""
    answered = [
        (one.request, one.result, call)
        for one in outcomes
        if isinstance(one.result, Response)
        for call in one.result.tool_calls
    ]
    kinds = ("request", "answer", "call")
    structs = {name: [one[at] for one in answered] for at, name in enumerate(kinds)}
    schema = tool_call_schema(version)
    arrays = [_array(_OF_TOOL_CALLS[field.name], structs, field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)


def _array(own: OwnColumn, structs: _Structs, kind: pa.DataType) -> pa.Array:
    """The column, with null for values that do not fit."""
    if callable(own.source):
        values = own.source(structs)
    elif own.source:
        struct, _, field = own.source.partition(".")
        values = list(map(attrgetter(field), structs[struct]))
    else:
        return pa.nulls(len(structs["request"]), kind)
    return _lists(values, kind) if isinstance(own.type, tuple) else _flat_array(values, kind)


def _lists(values: Sequence[Sequence[Any] | None], kind: pa.DataType) -> pa.Array:
    """Lists of structs, made field by field, which takes a third of the time of row by row."""
    inner = list(chain.from_iterable(filter(None, values)))
    fields = list(kind.value_type)
    columns = [_flat_array(list(map(attrgetter(one.name), inner)), one.type) for one in fields]
    ends = list(accumulate((len(some or ()) for some in values), initial=0))
    starts = [None if some is None else end for some, end in zip(values, ends, strict=False)]
    offsets = pa.array([*starts, ends[-1]], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields))


def _flat_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except _MISFITS:
        return pa.array([map_plain(value, kind, _fitting) for value in values], kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value, or null if it does not fit: a server's odd number must not stop a paid run."""
    if isinstance(value, bytes):  # a request that is not all UTF-8
        return value.decode("utf-8", "replace")
    try:
        pa.scalar(value, kind)
    except _MISFITS:
        return None
    return value


def _carried_array(values: list[Any], column: Column) -> pa.Array:
    kind, stored = unpack(column.arrow)
    if has_map(stored):  # the journal has pairs as lists, and Arrow wants tuples
        values = [map_plain(value, stored, lambda flat, _: flat) for value in values]
    array = pa.array(values, stored)
    return array if kind.equals(stored) else array.cast(kind)
