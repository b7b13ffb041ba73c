"""Carried columns: their names in `responses`, their types, and how `[input] types` says them."""

import textwrap

import pyarrow as pa

from batchrun.errors import JobError
from batchrun.inputs.rows import nearest
from batchrun.inputs.stored import carried_type, own_type, pack
from batchrun.job import InputJob
from batchrun.records import Column

JSON = "json"  # a string column, each value of which is JSON text
NAMED_TYPES = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    JSON: pa.string(),
}
_NAMES = {kind: name for name, kind in NAMED_TYPES.items() if name != JSON}


def check_types(input_job: InputJob) -> None:
    """Raises `JobError` where `[input] types` names a type that there is not."""
    for column, name in input_job.types.items():
        if name not in NAMED_TYPES:
            raise JobError(
                f"[input] types: {column} = {name!r}; a type is one of {', '.join(NAMED_TYPES)}"
            )


def make_column(name: str, column: str, kind: pa.DataType | str) -> Column:
    """The column to pin; `kind` is an Arrow type or one of the names in `[input] types`."""
    if isinstance(kind, str):
        return Column(name=name, column=column, type=kind, arrow=pack(NAMED_TYPES[kind]))
    kind = carried_type(kind)
    shown = _NAMES.get(kind) or textwrap.shorten(str(kind), 120, placeholder=" …")
    return Column(name=name, column=column, type=shown, arrow=pack(kind))


def unite(kinds: list[pa.DataType | str]) -> pa.DataType | str | None:
    """One type for what the files of a source hold in a column; null where there is none."""
    plain = {kind if isinstance(kind, str) else own_type(kind) for kind in kinds}
    if JSON in plain:
        return JSON
    types = [NAMED_TYPES[kind] if isinstance(kind, str) else kind for kind in plain]
    if len(types) == 1:
        return types[0]
    try:
        schemas = [pa.schema([("x", kind)]) for kind in sorted(types, key=str)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None


def unknown_column(option: str, name: str, columns: list[str]) -> str:
    """The message for a column that an option names and no row has."""
    return f"{option} names the column `{name}`, which no row has; {nearest(name, columns)}"
