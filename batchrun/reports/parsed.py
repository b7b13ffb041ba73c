"""Structured output as typed columns: `export --parsed`.

The types are those of the JSON schemas that the rows asked for. Where rows have several, a column
holds what all that have it allow: whole numbers and others are doubles, else JSON text. An answer
that is no JSON has nulls; a value that does not fit its type is null.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from batchrun.dialects.output_items import asked_schema
from batchrun.errors import JobError
from batchrun.formats.json_text import encode_json, value_of
from batchrun.formats.schema_types import JSON, SchemaType, fitted, read_json, root_type
from batchrun.records import JsonObject
from batchrun.reports.sql import Files
from batchrun.store.columns import distinct_names, names_with_calls
from batchrun.store.parts import read_part

_NEEDED = ("output_text", "output", "request")
_WHOLE = "parsed"  # the column of answers that are no objects


class _Part(Struct):
    type: Any = None
    text: Any = None


class _Item(Struct):
    content: list[_Part] | str | None = None


_read_items = msgspec.json.Decoder(list[_Item]).decode


class ParsedColumns:
    """The typed columns of a run, and what they hold of each row."""

    def __init__(self, run: Path, files: Files) -> None:
        """Reads all requests. Raises `JobError` where none asks for a JSON schema, `StoreError`."""
        self.misfits = 0  # answers that are no JSON, or not all of whose values fit
        self._of_job = asked_schema(encode_json(files.record.job.get("request")))
        roots: dict[bytes, SchemaType] = {}  # by their schema
        types: dict[str, SchemaType] = {}
        for schema in _schemas(files, self._of_job):
            if schema not in roots:
                root = roots[schema] = root_type(value_of(schema.decode()))
                for name, kind in _columns_of(root):
                    types[name] = _joined(types.get(name, kind), kind)
        if not roots:
            stored = "" if files.record.store_request else " (its requests are not stored)"
            raise JobError(
                f"{run}: no row asked for a JSON schema{stored}, so there is nothing to parse; "
                "leave out --parsed"
            )
        own = {name.lower() for name in names_with_calls(files.responses.schema.names)}
        bases = [name.replace("\0", "") or "unnamed" for name in types]
        names = distinct_names(
            [f"{base}_parsed" if base.lower() in own else base for base in bases], own
        )
        self.types = dict(zip(names, types.values(), strict=True))  # by names `responses` lacks
        self._roots = roots
        new = dict(zip(types, names, strict=True))
        self._used = {
            schema: [(new[column], column, types[column]) for column, _ in _columns_of(root)]
            for schema, root in roots.items()
        }

    def values(self, row: Mapping[str, Any]) -> JsonObject:
        """What the columns hold of a row of `responses`."""
        found: JsonObject = dict.fromkeys(self.types)
        text, asked = row["output_text"], row["request"]
        schema = self._of_job if asked is None else asked_schema(asked.encode())
        if text is None or schema is None:
            return found
        value, is_json = _answer(text, row["output"])
        is_object = bool(self._roots[schema].fields)
        misfits = [] if is_json and (isinstance(value, dict) or not is_object) else [None]
        if not misfits:
            for name, column, kind in self._used[schema]:
                one = value.get(column) if is_object else value
                found[name] = fitted(one, kind, lambda: misfits.append(None))
        self.misfits += bool(misfits)
        return found

    def added(self, rows: pa.Table) -> pa.Table:
        """The rows of `responses` with these columns after their own."""
        needed = rows.select(_NEEDED).to_pylist()
        values = [self.values(row) for row in needed]
        for name, kind in self.types.items():
            rows = rows.append_column(name, pa.array([row[name] for row in values], kind.arrow))
        return rows


def _schemas(files: Files, of_job: bytes | None) -> Iterator[bytes]:
    """The schema of each row that has one."""
    for path in (*files.responses.parts, *files.responses.journal):
        for batch in read_part(path, ["request"]):
            for asked in batch["request"].to_pylist():
                schema = of_job if asked is None else asked_schema(asked.encode())
                if schema is not None:
                    yield schema


def _columns_of(root: SchemaType) -> Sequence[tuple[str, SchemaType]]:
    return root.fields or ((_WHOLE, root),)


def _joined(one: SchemaType, other: SchemaType) -> SchemaType:
    numbers = {SchemaType("integer"), SchemaType("number")}
    if one == other:
        return one
    return SchemaType("number") if {one, other} == numbers else JSON


def _answer(text: str, output: str | None) -> tuple[Any, bool]:
    """The answer, and whether it is JSON: all its text, or else the last piece of it."""
    try:
        return read_json(text), True
    except ValueError:
        pass
    try:
        items = _read_items(output or "[]")
        parts = [part for one in items if isinstance(one.content, list) for part in one.content]
        texts = [part.text for part in parts if part.type == "output_text"]
        return (read_json(texts[-1]), True) if len(texts) > 1 else (None, False)
    except (ValueError, TypeError):
        return None, False
