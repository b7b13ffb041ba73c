"""The columns of the tables: names, order and types, the same whatever the rows held."""

import base64
from functools import cache

import pyarrow as pa

from batchrun.records import Column, Layout

SCHEMA_VERSION = 1
METADATA = {b"batchrun.schema_version": str(SCHEMA_VERSION).encode()}

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
    }
)

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

TOOL_CALLS = pa.schema(
    {
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
    },
    metadata=METADATA,
)

# Columns whose values repeat; a dictionary for the others is built only to be thrown away.
REPEATING = (
    *("variant", "source", "status", "error_kind", "error_code", "incomplete_reason", "model"),
    *("model_requested", "service_tier", "endpoint", "via", "priced_as", "type", "name"),
    *("attempts.list.element.kind", "attempts.list.element.error_kind"),
    *("citations.list.element.type",),
)


@cache
def carried_types(column: Column) -> tuple[pa.DataType, pa.DataType]:
    """The column's type in Parquet, and the type of the plain values it is cast from."""
    pinned = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(column.arrow)))
    return pinned.field("type").type, pinned.field("stored").type


@cache
def response_schema(layout: Layout) -> pa.Schema:
    """The schema of `responses`: the carried columns stand after `source`."""
    carried = {column.name: carried_types(column)[0] for column in layout.columns}
    return pa.schema({**IDENTITY, **carried, **ANSWER}, metadata=METADATA)
