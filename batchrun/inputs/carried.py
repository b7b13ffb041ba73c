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
from batchrun.inputs.rows import NO_COLUMNS, RowProblem, SourceFile, SourceRow, to_json_text
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
_MISFIT = object()
_as_json = partial(to_json_text, leniently=True)
_is = pa.types


class Carrier:
    """Takes from a row what it carries, in the order of the layout."""

    def __init__(self, layout: Layout, input_job: InputJob) -> None:
        self._always = input_job.carry is not None  # also what is sent
        self.columns = pinned_columns(layout.columns, input_job)

    def values(self, row: SourceRow, consumed: frozenset[str]) -> tuple[Any, ...]:
        """Null where the row lacks a column or sends it. Raises `InputError` for a misfit."""
        if self._always or consumed.isdisjoint(self.columns):
            consumed = NO_COLUMNS
        data = row.data or {}
        if row.columns:
            if not consumed:
                return row.carried
            data = dict(zip(self.columns, row.carried, strict=True))
        values = []
        for name, column in self.columns.items():
            value = None if name in consumed else data.get(name)
            values.append(value if value is None or row.columns else column.fit(value, row))
        return tuple(values)


class PinnedColumn:
    """A carried column of a known type, and its values in their stored form."""

    def __init__(self, column: Column, *, explicit: bool) -> None:
        """`explicit`: `[input] types` asks for the type, so that text takes any value, as JSON."""
        self.explicit = explicit
        self.type = column.type
        self.arrow = kind = unpack(column.arrow)[0]
        self._name = column.column
        self._same: type | None = None  # values of it are stored as they are
        self._stored: Callable[[Any], Any] = lambda _: _MISFIT  # what is stored of others
        if self.type == JSON:
            self._stored = _as_json
        elif _is.is_string(kind) or _is.is_large_string(kind):
            self._same, self._stored = str, _as_json if explicit else self._stored
        elif _is.is_integer(kind):
            sign_bits = int(_is.is_signed_integer(kind))
            most = (1 << (kind.bit_width - sign_bits)) - 1
            self._stored = partial(_as_integer, -(most + 1) * sign_bits, most)
        elif _is.is_floating(kind):
            self._same, self._stored = float, _as_float
        elif _is.is_boolean(kind):
            self._same = bool

    def fit(self, value: Any, source: SourceRow | SourceFile) -> Any:
        """From a JSON value, not null, to the stored one. Raises `InputError`."""
        if type(value) is self._same:
            return value
        try:
            stored = self._stored(value)
            if stored is not _MISFIT:
                return stored
            what = cut(_as_json(value), 60)
        except RowProblem as problem:
            what = f"a value {problem.message}"
        raise self.misfit(source, what)

    def misfit(self, source: SourceRow | SourceFile, what: object) -> InputError:
        """The error for a value that does not fit."""
        return InputError(
            f"{source}: column `{self._name}` holds {what}, but it is carried as "
            f"{self.type}. Fix the value; or say [input] types = {{ {self._name} = 'json' }} (or "
            "'string') and start a new run directory with -o; or leave the column out with [input] "
            "carry"
        )


def pinned_columns(columns: tuple[Column, ...], input_job: InputJob) -> dict[str, PinnedColumn]:
    """The columns by their names in the source, in order. Raises `InputError`."""
    types = input_job.types
    for column in columns:
        asked = types.get(column.column, column.type)
        if asked != column.type:
            raise InputError(
                f"[input] types says {asked} for `{column.column}`, but this run has carried it as "
                f"{column.type} since it began; take that out, or start a new run directory with -o"
            )
    return {one.column: PinnedColumn(one, explicit=one.column in types) for one in columns}


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
    """One type for what the files of a source hold in a column; None where there is none."""
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


def _as_integer(least: int, most: int, value: Any) -> Any:
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else _MISFIT


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int and abs(value) <= 1 << 53 else _MISFIT
