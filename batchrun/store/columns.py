"""The columns of the tables: names, order, types, and how outcomes become Arrow.

Parts of schema 1 are read as they are; schema 2 has further columns, and carries columns whose
names are its own under others.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from batchrun.formats.arrow import unpack
from batchrun.records import Attempt, Column, Failure, Layout, Outcome, Request, Response, Usage

OWN = (
    *("row", "custom_id", "sample", "variant", "source"),
    *("ok", "status", "truncated", "http_status", "error_kind", "error_code", "error_message"),
    *("incomplete_reason", "response_id", "request_id", "model", "model_requested"),
    *("service_tier", "endpoint", "via", "output_text", "refusal", "reasoning_summary"),
    *("reasoning_text", "api", "endpoint_name", "embedding", "turn_count", "output"),
    *("output_parsed_ok", "citations", "tool_call_count", "input_tokens", "cached_tokens"),
    *("cache_write_tokens", "output_tokens", "reasoning_tokens", "total_tokens", "usage"),
    *("cost_usd", "priced_as", "reported_cost_usd", "attempts", "started_at", "finished_at"),
    *("latency_s", "first_token_s", "request", "request_hash"),
)
_NEW_IN_2 = ("reasoning_text", "api", "endpoint_name", "embedding", "turn_count")


def own_columns(schema_version: int) -> tuple[str, ...]:
    """Those that batchrun itself has in a schema; a carried column never has such a name."""
    return OWN if schema_version > 1 else tuple(name for name in OWN if name not in _NEW_IN_2)


def name_columns(columns: Sequence[str], own: Collection[str] = OWN) -> list[str]:
    """The names in `responses` of carried columns, no two alike without regard to case.

    A name that is one of `own` gets the suffix `_input`.
    """
    taken = set(own)
    names = []
    for column in columns:
        base = f"{column}_input" if column.lower() in own else column or "unnamed"
        name, count = base, 1
        while name.lower() in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name.lower())
        names.append(name)
    return names


SCHEMA_VERSION = 2
_VERSION_KEY = b"batchrun.schema_version"

_TIME = pa.timestamp("us", "UTC")

CITATION = pa.struct(
    {
        "type": pa.string(),
        "url": pa.string(),
        "title": pa.string(),
        "file_id": pa.string(),
        "start_index": pa.int64(),
        "end_index": pa.int64(),
    }
)

ATTEMPT = pa.struct(
    {
        "started_at": _TIME,
        "latency_s": pa.float64(),
        "kind": pa.string(),
        "http_status": pa.int16(),
        "error_kind": pa.string(),
        "error_message": pa.string(),
        "request_id": pa.string(),
        "client_request_id": pa.string(),
        "response_id": pa.string(),
        "input_tokens": pa.int64(),
        "cached_tokens": pa.int64(),
        "output_tokens": pa.int64(),
        "cost_usd": pa.float64(),
        "endpoint": pa.string(),
    }
)
_ATTEMPT_1 = pa.struct([field for field in ATTEMPT if field.name != "endpoint"])

IDENTITY = {
    "row": pa.int64(),
    "custom_id": pa.string(),
    "sample": pa.int32(),
    "variant": pa.string(),
    "source": pa.string(),
}

ANSWER = {
    "ok": pa.bool_(),
    "status": pa.string(),
    "truncated": pa.bool_(),
    "http_status": pa.int16(),
    "error_kind": pa.string(),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "incomplete_reason": pa.string(),
    "response_id": pa.string(),
    "request_id": pa.string(),
    "model": pa.string(),
    "model_requested": pa.string(),
    "service_tier": pa.string(),
    "endpoint": pa.string(),
    "via": pa.string(),
    "output_text": pa.string(),
    "refusal": pa.string(),
    "reasoning_summary": pa.string(),
    "reasoning_text": pa.string(),
    "api": pa.string(),
    "endpoint_name": pa.string(),
    "embedding": pa.list_(pa.float32()),
    "turn_count": pa.int32(),
    "output": pa.string(),
    "output_parsed_ok": pa.bool_(),
    "citations": pa.list_(CITATION),
    "tool_call_count": pa.int32(),
    "input_tokens": pa.int64(),
    "cached_tokens": pa.int64(),
    "cache_write_tokens": pa.int64(),
    "output_tokens": pa.int64(),
    "reasoning_tokens": pa.int64(),
    "total_tokens": pa.int64(),
    "usage": pa.string(),
    "cost_usd": pa.float64(),
    "priced_as": pa.string(),
    "reported_cost_usd": pa.float64(),
    "attempts": pa.list_(ATTEMPT),
    "started_at": _TIME,
    "finished_at": _TIME,
    "latency_s": pa.float64(),
    "first_token_s": pa.float64(),
    "request": pa.string(),
    "request_hash": pa.string(),
}

_CALL = {
    "row": pa.int64(),
    "custom_id": pa.string(),
    "sample": pa.int32(),
    "variant": pa.string(),
    "response_id": pa.string(),
    "position": pa.int32(),
    "type": pa.string(),
    "call_id": pa.string(),
    "name": pa.string(),
    "arguments": pa.string(),
    "arguments_valid": pa.bool_(),
    "status": pa.string(),
    "item": pa.string(),
    "turn": pa.int32(),
    "result": pa.string(),
    "result_error": pa.string(),
    "result_latency_s": pa.float64(),
}
_NEW_OF_CALLS = ("turn", "result", "result_error", "result_latency_s")

# Columns whose values repeat; a dictionary for the others is built only to be thrown away.
REPEATING = (
    *("variant", "source", "status", "error_kind", "error_code", "incomplete_reason", "model"),
    *("model_requested", "service_tier", "endpoint", "via", "priced_as", "type", "name"),
    *("attempts.list.element.kind", "attempts.list.element.error_kind"),
    *("citations.list.element.type",),
)


def _metadata(version: int) -> dict[bytes, bytes]:
    return {_VERSION_KEY: str(version).encode()}


@cache
def carried_types(column: Column) -> tuple[pa.DataType, pa.DataType]:
    """The column's type in Parquet, and the type of the plain values it is cast from."""
    return unpack(column.arrow)


@cache
def response_schema(layout: Layout, version: int = SCHEMA_VERSION) -> pa.Schema:
    """The schema of `responses`: the carried columns stand after `source`.

    `layout` names them as schema `version` does, but for parts of schema 1 of a run that has been
    rewritten since: see `layout_of`.
    """
    carried = {column.name: carried_types(column)[0] for column in layout.columns}
    own = own_columns(version)
    answer = {name: kind for name, kind in ANSWER.items() if name in own}
    answer["attempts"] = pa.list_(attempt_type(version))
    return pa.schema({**IDENTITY, **carried, **answer}, metadata=_metadata(version))


def attempt_type(version: int) -> pa.StructType:
    return ATTEMPT if version > 1 else _ATTEMPT_1


@cache
def tool_call_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """The schema of `tool_calls`."""
    columns = {n: kind for n, kind in _CALL.items() if version > 1 or n not in _NEW_OF_CALLS}
    return pa.schema(columns, metadata=_metadata(version))


TOOL_CALLS = tool_call_schema()


def layout_of(layout: Layout, version: int) -> Layout:
    """The layout with its columns under the names that they have in a schema."""
    names = name_columns([column.column for column in layout.columns], own_columns(version))
    return replace(
        layout,
        columns=tuple(replace(c, name=n) for c, n in zip(layout.columns, names, strict=True)),
    )


def version_of(schema: pa.Schema) -> int | None:
    """Which schema a part says that it has; null where it does not say."""
    said = (schema.metadata or {}).get(_VERSION_KEY, b"")
    return int(said) if said.isdigit() else None


def new_names(layout: Layout, version: int) -> Mapping[str, str]:
    """Carried columns of a part that have another name in `layout`: theirs to the other one."""
    if version >= SCHEMA_VERSION:
        return {}
    before = layout_of(layout, version)
    pairs = zip(before.columns, layout.columns, strict=True)
    return {old.name: new.name for old, new in pairs if old.name != new.name}


_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


def as_schema(rows: _Rows, schema: pa.Schema, names: Mapping[str, str]) -> _Rows:
    """The rows with the columns of `schema`: what they lack is null.

    `names`: columns of theirs that are called otherwise there.
    """
    if rows.schema.equals(schema):
        return rows
    there = {names.get(name, name): at for at, name in enumerate(rows.schema.names)}
    arrays = [
        rows.column(there[field.name]).cast(field.type)
        if field.name in there
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return type(rows).from_arrays(arrays, schema=schema)


_as_tuple = msgspec.structs.astuple


def _empty(kind: Any, **known: Any) -> Any:
    """One of a kind of which nothing is there."""
    return kind(**{**dict.fromkeys(kind.__struct_fields__), **known})


# Columns of schema 2 that nothing fills yet.
_LATER = ("api", "endpoint_name", "embedding", "turn_count")
_LATER_OF_CALLS = (None,) * 4  # turn, result, result_error, result_latency_s

_NO_ANSWER = _empty(Response, truncated=False, usage=Usage())
_NO_FAILURE = _empty(Failure)
_NO_ATTEMPT = _empty(Attempt)


def _columns(structs: Iterable[Any], kind: Any) -> dict[str, Sequence[Any]]:
    """The fields of structs of one kind, at least one, by name."""
    columns = zip(*map(_as_tuple, structs), strict=True)
    return dict(zip(kind.__struct_fields__, columns, strict=True))


def _response_columns(
    outcomes: Sequence[Outcome], *, store_request: bool
) -> dict[str, Sequence[Any]]:
    """All columns of `responses` but `attempts` and the carried ones."""
    results = [outcome.result for outcome in outcomes]
    ends = _columns(outcomes, Outcome)
    requests = _columns(ends["request"], Request)
    answers = _columns(
        [result if isinstance(result, Response) else _NO_ANSWER for result in results], Response
    )
    failures = _columns([outcome.failure or _NO_FAILURE for outcome in outcomes], Failure)
    counted = _columns(
        [one.attempts[one.counted] if one.attempts else _NO_ATTEMPT for one in outcomes], Attempt
    )
    bodies = requests["body"] if store_request else [b""] * len(outcomes)
    return {
        "row": requests["row"],
        "custom_id": requests["custom_id"],
        "sample": requests["sample"],
        "variant": requests["variant"],
        "source": requests["source"],
        "ok": [outcome.ok for outcome in outcomes],
        "status": [result.status for result in results],
        "truncated": answers["truncated"],
        "http_status": counted["http_status"],
        "error_kind": failures["kind"],
        "error_code": failures["code"],
        "error_message": failures["message"],
        "incomplete_reason": answers["incomplete_reason"],
        "response_id": answers["id"],
        "request_id": counted["request_id"],
        "model": answers["model"],
        "model_requested": requests["model"],
        "service_tier": answers["service_tier"],
        "endpoint": ends["endpoint"],
        "via": ends["via"],
        "output_text": answers["output_text"],
        "refusal": answers["refusal"],
        "reasoning_summary": answers["reasoning_summary"],
        "reasoning_text": answers["reasoning_text"],
        **dict.fromkeys(_LATER, [None] * len(outcomes)),
        "output": answers["output"],
        "output_parsed_ok": answers["output_parsed_ok"],
        "citations": [notes and list(map(_as_tuple, notes)) for notes in answers["citations"]],
        "tool_call_count": [None if some is None else len(some) for some in answers["tool_calls"]],
        **_columns(answers["usage"], Usage),
        "usage": answers["usage_json"],
        "cost_usd": ends["cost_usd"],
        "priced_as": ends["priced_as"],
        "reported_cost_usd": answers["reported_cost_usd"],
        "started_at": [some[0].started_at if some else None for some in ends["attempts"]],
        "finished_at": [_ended_at(some[-1]) if some else None for some in ends["attempts"]],
        "latency_s": counted["latency_s"],
        "first_token_s": ends["first_token_s"],
        "request": [body or None for body in bodies],
        "request_hash": requests["hash"],
    }


def _attempts(outcomes: Sequence[Outcome], fields: int) -> list[list[tuple[Any, ...]]]:
    """Of each, so many of its fields: the last ones are new."""
    return [[_as_tuple(attempt)[:fields] for attempt in one.attempts] for one in outcomes]


def _ended_at(attempt: Attempt) -> int:
    return attempt.started_at + round(attempt.latency_s * 1e6)


def tool_call_rows(outcome: Outcome) -> list[tuple[Any, ...]]:
    """The outcome's rows of `tool_calls`, in the order of the columns."""
    result = outcome.result
    if not isinstance(result, Response):
        return []
    request = outcome.request
    key = (request.row, request.custom_id, request.sample, request.variant, result.id)
    return [(*key, *_as_tuple(call), *_LATER_OF_CALLS) for call in result.tool_calls]


def response_batch(
    outcomes: Sequence[Outcome],
    layout: Layout,
    *,
    store_request: bool,
    version: int = SCHEMA_VERSION,
) -> pa.RecordBatch:
    """The outcomes' rows of `responses`, always with all columns of the schema."""
    schema = response_schema(layout, version)
    if not outcomes:
        return pa.RecordBatch.from_arrays(
            [pa.array([], kind) for kind in schema.types], schema=schema
        )
    columns = _response_columns(outcomes, store_request=store_request)
    columns["attempts"] = _attempts(outcomes, len(attempt_type(version)))
    # A row that carries nothing has nulls there.
    nothing = (None,) * len(layout.columns)
    carried = zip(*(outcome.request.carried or nothing for outcome in outcomes), strict=True)
    of_carried = {
        column.name: _carried_array(values, *carried_types(column))
        for column, values in zip(layout.columns, carried, strict=True)
    }
    arrays = [
        of_carried[name] if name in of_carried else _array(columns[name], kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def tool_call_batch(outcomes: Sequence[Outcome], version: int = SCHEMA_VERSION) -> pa.RecordBatch:
    """The outcomes' rows of `tool_calls`, always with all columns of the schema."""
    schema = tool_call_schema(version)
    rows = [row for outcome in outcomes for row in tool_call_rows(outcome)]
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [_array(values, kind) for values, kind in zip(columns, schema.types, strict=False)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([_fitting(value, kind) for value in values], kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value, or null: a number a server made up must not stop a paid run."""
    if isinstance(value, bytes):  # a request, of which something is no UTF-8
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_fitting(item, kind.value_type) for item in value]
    if isinstance(value, tuple):
        return tuple(
            _fitting(item, field.type) for item, field in zip(value, kind.fields, strict=True)
        )
    try:
        pa.scalar(value, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
    return value


def _carried_array(values: Sequence[Any], kind: pa.DataType, stored: pa.DataType) -> pa.Array:
    with_pairs = _pairs_in(stored)
    if with_pairs is not None:
        values = [with_pairs(value) for value in values]
    array = pa.array(values, stored)
    return array if kind.equals(stored) else array.cast(kind)


def _pairs_in(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What makes the journal's lists the pairs that Arrow wants in maps; null where none is."""
    if pa.types.is_map(kind):
        of_key, of_item = _pairs_in(kind.key_type) or _same, _pairs_in(kind.item_type) or _same
        return lambda value: (
            value
            and [
                (of_key(key), of_item(item))
                for key, item in (p.values() if isinstance(p, dict) else p for p in value)
            ]
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _pairs_in(kind.value_type)
        return inner and (lambda value: value and [inner(item) for item in value])
    if pa.types.is_struct(kind):
        named = {field.name: of for field in kind.fields if (of := _pairs_in(field.type))}
        if named:
            return lambda value: (
                value and {name: named.get(name, _same)(item) for name, item in value.items()}
            )
    return None


def _same(value: Any) -> Any:
    return value
