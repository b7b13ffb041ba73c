"""Carried columns: their names and types, and the values of each row that fit them.

A value that does not fit ends the run before it starts: a column has one type in every part.
"""

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from batchrun.errors import InputError, JobError
from batchrun.formats.arrow import carried_type, own_type, pack, unpack
from batchrun.formats.printable import cut
from batchrun.inputs.rows import NOTHING, Row, RowProblem, json_text
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


Fit = Callable[[Any], Any]


class Misfit(Exception):  # noqa: N818 - told where the row is known
    """A value that does not fit; what it is stands in the message."""


def json_fit(column: Column, *, explicit: bool) -> Fit:
    """From a JSON value, not null, to the stored one; the fit raises `Misfit`.

    `explicit`: `[input] types` asks for this type, so that text takes any value, as JSON.
    """
    if column.type == JSON:
        return as_json
    kind = unpack(column.arrow)[0]
    if pa.types.is_boolean(kind):
        return _as_bool
    if pa.types.is_integer(kind):
        return _integers(kind)
    if pa.types.is_floating(kind):
        return _as_float
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return as_text if explicit else _only_text
    return _refuse


def misfit(place: str, column: Column, what: object) -> InputError:
    """The error for a value at `place` that does not fit."""
    return InputError(
        f"{place}: column `{column.column}` holds {what}, but it is carried as {column.type}. Mend "
        f"the value; or say [input] types = {{ {column.column} = 'json' }} (or 'string') and start "
        "a new run directory with -o; or leave the column out with [input] carry"
    )


def not_pinned(place: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a column that came up after the run had begun."""
    there = ", ".join(known) or "none"
    return InputError(
        f"{place}: column `{name}` is new; this run carries {there} since it began, and its "
        "columns are fixed. List the columns to keep in [input] carry, or start a new run "
        "directory with -o"
    )


def _as_bool(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise Misfit(_shown(value))


def _integers(kind: pa.DataType) -> Fit:
    signed = pa.types.is_signed_integer(kind)
    least = -(1 << (kind.bit_width - 1)) if signed else 0
    most = (1 << (kind.bit_width - signed)) - 1

    def fit(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and least <= value <= most:
            return value
        raise Misfit(_shown(value))

    return fit


def _as_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int and abs(value) <= 1 << 53:
        return float(value)
    raise Misfit(_shown(value))


def _only_text(value: Any) -> str:
    if type(value) is str:
        return value
    raise Misfit(_shown(value))


def as_json(value: Any) -> str:
    try:
        return json_text(value)
    except RowProblem as problem:
        raise Misfit(f"a value {problem.message}") from None


def as_text(value: Any) -> str:
    return value if type(value) is str else as_json(value)


def _refuse(value: Any) -> Any:
    raise Misfit(_shown(value))


def _shown(value: Any) -> str:
    return cut(as_json(value), 60)


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

    def values(self, row: Row, consumed: frozenset[str]) -> tuple[Any, ...]:
        """Null where the row lacks a column or sends it. Raises `InputError` for a misfit."""
        if self._always or consumed.isdisjoint(self._names):
            consumed = NOTHING
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
                raise misfit(row.place, column, what) from None
        return tuple(values)
