"""Carried columns: their names and types, and the values of each row that fit them.

A value that does not fit ends the run before it starts: a column has one type in every part.
"""

import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from batchrun.errors import InputError, JobError
from batchrun.formats.arrow import carried_type, own_type, pack, unpack
from batchrun.formats.printable import cut
from batchrun.inputs.rows import NO_COLUMNS, RowProblem, SourceRow, to_json_text
from batchrun.job.sections import InputJob
from batchrun.records import Column, Layout

JSON = "json"  # a string column, each value of which is JSON text
NAMED_TYPES = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    JSON: pa.string(),
}
_NAMES = {kind: name for name, kind in NAMED_TYPES.items() if name != JSON}
_is = pa.types

Fit = Callable[[Any], Any]


class Misfit(Exception):  # noqa: N818 - becomes an error where the row is known
    """A value that does not fit; what it is stands in the message."""


class Carrier:
    """Takes from a row what it carries, in the order of the layout."""

    def __init__(self, layout: Layout, input_job: InputJob) -> None:
        self.explicit = frozenset(input_job.types)
        self._always = input_job.carry is not None  # also what is sent
        self._columns = tuple(
            (column.column, json_fit(column, explicit=column.column in self.explicit), column)
            for column in layout.columns
        )
        self._names = frozenset(name for name, _, _ in self._columns)

    def values(self, row: SourceRow, consumed: frozenset[str]) -> tuple[Any, ...]:
        """Null where the row lacks a column or sends it. Raises `InputError` for a misfit."""
        if self._always or consumed.isdisjoint(self._names):
            consumed = NO_COLUMNS
        if row.columns:
            if not consumed:
                return row.carried
            return tuple(
                None if name in consumed else value
                for (name, _, _), value in zip(self._columns, row.carried, strict=True)
            )
        data = row.data or {}
        values: list[Any] = []
        for name, fit, column in self._columns:
            value = data.get(name)
            if value is None or name in consumed:
                values.append(None)
                continue
            try:
                values.append(fit(value))
            except Misfit as what:
                raise misfit(row.where, column, what) from None
        return tuple(values)


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


def misfit(where: str, column: Column, what: object) -> InputError:
    """The error for a value that does not fit."""
    return InputError(
        f"{where}: column `{column.column}` holds {what}, but it is carried as {column.type}. Fix "
        f"the value; or say [input] types = {{ {column.column} = 'json' }} (or 'string') and start "
        "a new run directory with -o; or leave the column out with [input] carry"
    )


def json_fit(column: Column, *, explicit: bool) -> Fit:
    """From a JSON value, not null, to the stored one; the fit raises `Misfit`.

    `explicit`: `[input] types` asks for this type, so that text takes any value, as JSON.
    """
    kind = unpack(column.arrow)[0]
    if column.type == JSON:
        return as_json
    if _is.is_string(kind) or _is.is_large_string(kind):
        return as_any_text if explicit else partial(_exactly, str)
    if _is.is_integer(kind):
        sign_bits = int(_is.is_signed_integer(kind))
        most = (1 << (kind.bit_width - sign_bits)) - 1
        return partial(_as_integer, -(most + 1) * sign_bits, most)
    if _is.is_floating(kind):
        return _as_float
    return partial(_exactly, bool if _is.is_boolean(kind) else None)


def as_json(value: Any) -> str:
    """The value as JSON text. Raises `Misfit`."""
    try:
        return to_json_text(value, leniently=True)
    except RowProblem as problem:
        raise Misfit(f"a value {problem.message}") from None


def as_any_text(value: Any) -> str:
    """Text as it is, any other value as JSON. Raises `Misfit`."""
    return value if type(value) is str else as_json(value)


def _exactly(kind: type | None, value: Any) -> Any:
    """A value of one type of JSON; null: of none."""
    if type(value) is kind:
        return value
    raise _misfit_of(value)


def _as_integer(least: int, most: int, value: Any) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and least <= value <= most:
        return value
    raise _misfit_of(value)


def _as_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int and abs(value) <= 1 << 53:
        return float(value)
    raise _misfit_of(value)


def _misfit_of(value: Any) -> Misfit:
    return Misfit(cut(as_json(value), 60))
