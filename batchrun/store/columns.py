"""Outcomes as rows of the tables, and rows as Arrow: the one place where the two meet."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from batchrun.records import Layout, Outcome, Response, Usage
from batchrun.store.schema import (
    ANSWER,
    IDENTITY,
    TOOL_CALLS,
    carried_types,
    response_schema,
)

_NO_USAGE = Usage()
_as_tuple = msgspec.structs.astuple


def response_row(outcome: Outcome, carried: int, *, store_request: bool) -> tuple[Any, ...]:
    """The outcome's row of `responses`, in the order of the columns.

    `carried` is how many columns are carried; a row that carries nothing has nulls there.
    """
    request, result, attempts = outcome.request, outcome.result, outcome.attempts
    answer = result if isinstance(result, Response) else None
    failure = result.failure if isinstance(result, Response) else result
    usage = answer.usage if answer else _NO_USAGE
    counted = attempts[outcome.counted] if attempts else None
    last = attempts[-1] if attempts else None
    body = request.body if store_request else b""
    return (
        request.row,
        request.custom_id,
        request.sample,
        request.variant,
        request.source,
        *(request.carried or (None,) * carried),
        outcome.ok,
        result.status,
        answer.truncated if answer else False,
        counted.http_status if counted else None,
        failure.kind if failure else None,
        failure.code if failure else None,
        failure.message if failure else None,
        answer.incomplete_reason if answer else None,
        answer.id if answer else None,
        counted.request_id if counted else None,
        answer.model if answer else None,
        request.model,
        answer.service_tier if answer else None,
        outcome.endpoint,
        outcome.via,
        answer.output_text if answer else None,
        answer.refusal if answer else None,
        answer.reasoning_summary if answer else None,
        answer.output if answer else None,
        answer.output_parsed_ok if answer else None,
        [_as_tuple(citation) for citation in answer.citations] if answer else None,
        len(answer.tool_calls) if answer else None,
        usage.input_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.total_tokens,
        answer.usage_json if answer else None,
        outcome.cost_usd,
        outcome.priced_as,
        answer.reported_cost_usd if answer else None,
        [_as_tuple(attempt) for attempt in attempts],
        attempts[0].started_at if attempts else None,
        last.started_at + round(last.latency_s * 1e6) if last else None,
        counted.latency_s if counted else None,
        outcome.first_token_s,
        body or None,
        request.hash,
    )


def tool_call_rows(outcome: Outcome) -> list[tuple[Any, ...]]:
    """The outcome's rows of `tool_calls`, in the order of the columns."""
    result = outcome.result
    if not isinstance(result, Response):
        return []
    request = outcome.request
    key = (request.row, request.custom_id, request.sample, request.variant, result.id)
    return [(*key, *_as_tuple(call)) for call in result.tool_calls]


def response_batch(
    outcomes: Sequence[Outcome], layout: Layout, *, store_request: bool
) -> pa.RecordBatch:
    """The outcomes' rows of `responses`, always with all columns."""
    carried = len(layout.columns)
    rows = [response_row(outcome, carried, store_request=store_request) for outcome in outcomes]
    columns: list[Sequence[Any]] = (
        list(zip(*rows, strict=True)) if rows else [()] * (len(IDENTITY) + carried + len(ANSWER))
    )
    first = len(IDENTITY)
    schema = response_schema(layout)
    types = schema.types  # asked for once: Arrow makes a new list each time
    arrays = [_array(columns[at], types[at]) for at in range(first)]
    for at, column in enumerate(layout.columns, first):
        arrays.append(_carried_array(columns[at], *carried_types(column)))
    arrays += [_array(columns[at], types[at]) for at in range(first + carried, len(columns))]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def tool_call_batch(outcomes: Sequence[Outcome]) -> pa.RecordBatch:
    """The outcomes' rows of `tool_calls`, always with all columns."""
    rows = [row for outcome in outcomes for row in tool_call_rows(outcome)]
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(TOOL_CALLS)
    arrays = [_array(values, kind) for values, kind in zip(columns, TOOL_CALLS.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=TOOL_CALLS)


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
