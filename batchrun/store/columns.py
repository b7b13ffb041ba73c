"""Outcomes as rows of the tables, and rows as Arrow: the one place where the two meet."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from batchrun.records import Attempt, Failure, Layout, Outcome, Request, Response, Usage
from batchrun.store.schema import (
    SCHEMA_VERSION,
    attempt_type,
    carried_types,
    response_schema,
    tool_call_schema,
)

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
