"""The columns of the tables: names, order and types, the same whatever the rows held.

Parts of schema 1 are read as they are; schema 2 has further columns, and carries columns whose
names are its own under others.
"""

import base64
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

import pyarrow as pa
from msgspec.structs import replace

from batchrun.column_names import name_columns, own_columns
from batchrun.records import Column, Layout

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
    pinned = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(column.arrow)))
    return pinned.field("type").type, pinned.field("stored").type


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
