"""Carried columns: their names and types, and the values of each row that fit them.

A column has one type in every part. A value that does not fit makes its row a bad one, found while
the source is surveyed.
"""

import shlex
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from batchrun.errors import InputError, JobError
from batchrun.formats.arrow import carried_type, own_type, pack, unpack
from batchrun.formats.json_text import shown
from batchrun.formats.printable import cut
from batchrun.inputs.rows import RowProblem, SourceFile, SourceRow, Unsendable, to_json_text
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
_SHOWN = 200  # characters of a value in a message
_MOST_OPTIONS = 12  # that a message spells out
_as_json = partial(to_json_text, leniently=True)
_is = pa.types


class Carrier:
    """Takes from a row what it carries, in the order of the layout."""

    def __init__(self, layout: Layout, input_job: InputJob, *, begun: bool) -> None:
        carry = input_job.carry
        self._always = carry is not None  # also what is sent
        # Columns that the run has carried so far, and that the job does not list any more.
        self.left_out = frozenset(
            one.column for one in layout.columns if carry is not None and one.column not in carry
        )
        self.columns = pinned_columns(layout.columns, input_job, begun=begun)

    def values(self, row: SourceRow, consumed: frozenset[str]) -> tuple[tuple[Any, ...], str]:
        """Null where the row lacks a column, sends it, or holds what cannot be stored.

        The text says what cannot be stored, and why; it is empty where all can.
        """
        if self._always or consumed.isdisjoint(self.columns):
            consumed = self.left_out
        data = row.data or {}
        if row.columns:
            problem = problem_of(row, consumed) if row.misfits else ""
            if not consumed:
                return row.carried, problem
            data = dict(zip(self.columns, row.carried, strict=True))
            return tuple([None if n in consumed else data[n] for n in self.columns]), problem
        values, problem = [], ""
        for name, column in self.columns.items():
            value = None if name in consumed else data.get(name)
            if value is not None:
                try:
                    value = column.stored(value)
                except RowProblem as error:
                    value, problem = None, problem or column.misfit(error.message)
            values.append(value)
        return tuple(values), problem


def problem_of(row: SourceRow, consumed: frozenset[str]) -> str:
    """What of the row cannot be stored, of the columns that it does not send; empty: nothing."""
    misfits = row.misfits or {}
    return next((said for name, said in misfits.items() if name not in consumed), "")


class PinnedColumn:
    """A carried column of a known type, and its values in their stored form."""

    def __init__(
        self,
        column: Column,
        *,
        explicit: bool = False,
        begun: bool = False,
        others: Sequence[str] = (),
    ) -> None:
        """`explicit`: the job asks for the type, so that text takes any value, as JSON.

        `begun`: the run has begun with it. `others`: columns that are carried besides.
        """
        self.explicit = explicit
        self.type = column.type
        self.arrow = kind = unpack(column.arrow)[0]
        self.name = column.column
        self._begun = begun
        self._others = others
        self._same: type | None = None  # values of it are stored as they are
        self._make: Callable[[Any], Any] = lambda _: _MISFIT  # what is stored of others
        if self.type == JSON:
            self._make = _as_json
        elif _is.is_string(kind) or _is.is_large_string(kind):
            self._same, self._make = str, _as_json if explicit else _as_number_text
        elif _is.is_integer(kind):
            sign_bits = int(_is.is_signed_integer(kind))
            most = (1 << (kind.bit_width - sign_bits)) - 1
            self._make = partial(_as_integer, -(most + 1) * sign_bits, most)
        elif _is.is_floating(kind):
            self._same, self._make = float, _as_float
        elif _is.is_boolean(kind):
            self._same = bool

    def stored(self, value: Any) -> Any:
        """From a JSON value, not null, to the stored one.

        Raises `RowProblem` where it cannot be stored; its message says what it is.
        """
        if type(value) is self._same:
            return value
        if type(value) is Unsendable:
            if self._same is float and type(value.value) is float:
                return value.value
            if value.value is None or self._same is str:
                return value.text
        stored = self._make(value)
        if stored is _MISFIT:
            raise RowProblem(cut(_as_json(value), _SHOWN))
        return stored

    def misfit(self, what: str, *, is_readable: bool = True) -> str:
        """What is wrong with a value that cannot be stored, and what to do."""
        cure = self._cure(is_readable)
        return f"column `{self.name}` holds {what}, but it is carried as {self.type}; {cure}"

    def misfit_of_file(self, file: SourceFile, what: object) -> InputError:
        """The error for a file whose column is of another kind."""
        return InputError(f"{file.path}: {self.misfit(str(what))}")

    def _cure(self, is_readable: bool) -> str:
        leave_out = f"leave the column out with {carry_options(self._others)}"
        is_text = self.type in (JSON, "string", "large_string")
        if not is_readable or (is_text and (self.explicit or self.type == JSON)):
            return leave_out
        ask = shlex.join(["--type", f"{self.name}=string"])
        if self._begun and not is_text:
            return f"{leave_out}, or start a new run directory with -o and {ask}"
        return f"say {ask}, or {leave_out}"


def carry_options(columns: Sequence[str]) -> str:
    """The options that carry these columns alone."""
    if len(columns) > _MOST_OPTIONS:
        return "--carry (once for each column to carry; or carry in [input])"
    return shlex.join([word for name in columns or ("",) for word in ("--carry", name)])


def pinned_columns(
    columns: tuple[Column, ...], input_job: InputJob, *, begun: bool
) -> dict[str, PinnedColumn]:
    """The columns by their names in the source, in order. Raises `InputError`."""
    types, names = input_job.types, [one.column for one in columns]
    for column in columns:
        asked = types.get(column.column, column.type)
        if asked != column.type:
            raise InputError(
                f"--type (types in [input]) says {asked} for `{column.column}`, but this run has "
                f"carried it as {column.type} since it began; take that out, or start a new run "
                "directory with -o"
            )
    return {
        one.column: PinnedColumn(
            one,
            explicit=one.column in types,
            begun=begun,
            others=[name for name in names if name != one.column],
        )
        for one in columns
    }


def check_types(input_job: InputJob) -> None:
    """Raises `JobError` where `[input] types` names a type that there is not."""
    for column, name in input_job.types.items():
        if name not in NAMED_TYPES:
            raise JobError(
                f"[input] types: `{column}` is {shown(name)} (--type); a type is one of "
                f"{', '.join(NAMED_TYPES)}"
            )


def make_column(name: str, column: str, kind: pa.DataType | str) -> Column:
    """The column to pin; `kind` is an Arrow type or one of the names in `[input] types`."""
    if isinstance(kind, str):
        return Column(name=name, column=column, type=kind, arrow=pack(NAMED_TYPES[kind]))
    kind = carried_type(kind)
    shown = _NAMES.get(kind) or textwrap.shorten(str(kind), 120, placeholder=" …")
    return Column(name=name, column=column, type=shown, arrow=pack(kind))


def unite(kinds: Sequence[pa.DataType | str]) -> pa.DataType | str | None:
    """One type for what the files of a source hold in a column; None where there is none."""
    plain = {kind if isinstance(kind, str) else own_type(kind) for kind in kinds}
    if JSON in plain:
        return JSON
    types = [NAMED_TYPES[kind] if isinstance(kind, str) else kind for kind in plain]
    if len(types) == 1:
        return types[0]
    try:
        schemas = [pa.schema([("x", kind)]) for kind in sorted(types, key=str)]
        united = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None
    return united if all(_is_kept(kind, united) for kind in types) else None


def _is_kept(kind: pa.DataType, united: pa.DataType) -> bool:
    """Whether the cast from one to the other loses nothing without a word."""
    if _is.is_decimal(kind):
        return bool(_is.is_decimal(united))  # not a float, which has other digits
    if kind.num_fields == 0 or _is.is_null(united):
        return True
    if _is.is_struct(kind):
        return all(_is_kept(one.type, united.field(one.name).type) for one in kind.fields)
    parts = range(min(kind.num_fields, united.num_fields))
    return all(_is_kept(kind.field(at).type, united.field(at).type) for at in parts)


def _as_number_text(value: Any) -> Any:
    return _as_json(value) if type(value) in (int, float) else _MISFIT


def _as_integer(least: int, most: int, value: Any) -> Any:
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else _MISFIT


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int and abs(value) <= 1 << 53 else _MISFIT
