"""Carried columns: their names and types, and the values of each row that fit them.

Each carried column has two types: its own, and a stored one whose values are numbers, text,
bytes, lists and objects, which msgpack and JSON can hold. `readable` casts to the values, and
`pa.array(values, stored).cast(type)` makes the column again, exactly.

A value that does not fit ends the run before it starts: a column has one type in every part.
"""

import base64
import datetime as dt
import math
import textwrap
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.errors import InputError, JobError
from batchrun.inputs.rows import NOTHING, Row, RowProblem, Unsendable, json_text
from batchrun.job.sections import InputJob
from batchrun.records import Column, Layout

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_DOUBLE_DIGITS = 15  # that a double holds exactly
_is = pa.types


def own_type(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    """The type that a column is carried with: without dictionaries, run lengths and views.

    Decimals of more than 15 digits inside of structs become text: see `_flat`.
    """
    if _is.is_dictionary(kind) or _is.is_run_end_encoded(kind):
        return own_type(kind.value_type, in_struct=in_struct)
    if _is.is_string_view(kind):
        return pa.string()
    if _is.is_binary_view(kind):
        return pa.binary()
    if in_struct and _is.is_decimal(kind) and kind.precision > _DOUBLE_DIGITS:
        return pa.string()
    return _rebuilt(kind, own_type, in_struct=in_struct) or kind


def carried_type(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    """The type with text where nothing but nulls was seen: Arrow's casts break lists of nulls."""
    if _is.is_null(kind):
        return pa.string()
    return _rebuilt(kind, carried_type, in_struct=in_struct) or kind


def stored_type(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    """The type of the plain values."""
    rebuilt = _rebuilt(kind, stored_type, in_struct=in_struct)
    return rebuilt or _flat(kind, in_struct=in_struct)


def readable_type(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    """The type to cast to for plain values: the stored one, with maps as lists of pairs."""
    if _is.is_map(kind):
        key = readable_type(kind.key_type, in_struct=in_struct)
        item = readable_type(kind.item_type, in_struct=in_struct)
        pair = [pa.field("key", key, nullable=False), pa.field("value", item)]
        return pa.list_(pa.struct(pair))
    rebuilt = _rebuilt(kind, readable_type, in_struct=in_struct)
    return rebuilt or _flat(kind, in_struct=in_struct)


def plain_values(array: pa.Array, kind: pa.DataType | None = None) -> list[Any]:
    """The stored values of the array, cast to the carried type `kind` first.

    Raises `pa.ArrowException` where a value does not fit.
    """
    if _is.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    own = own_type(array.type)
    if "list_view" in str(array.type):  # Arrow 26 casts these to lists with too few offsets
        array = pa.array(array.to_pylist(), own)
    elif not array.type.equals(own):
        try:
            array = array.cast(own)
        except pa.ArrowIndexError:  # an empty dictionary below a null
            array = pa.array(array.to_pylist(), own)
    kind = carried_type(own) if kind is None else kind
    if not own.equals(kind):
        array = array.cast(kind)
    readable = readable_type(array.type)
    if not array.type.equals(readable):
        array = array.cast(readable)
    values: list[Any] = array.to_pylist()
    return values


def pack(kind: pa.DataType) -> str:
    """The type and its stored form as text, for `Column.arrow`."""
    schema = pa.schema([("type", kind), ("stored", stored_type(kind))])
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def unpack(text: str) -> pa.DataType:
    """The type that `pack` was given."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    return schema.field("type").type


def sendable(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """From a stored value, not null, to one for JSON; null where they are the same.

    Nulls in objects are left out, NaN is null, maps become objects, times ISO text, and decimals
    numbers.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return sendable(kind.storage_type)
    if _is.is_floating(kind):
        return _number_or_null
    if _is.is_decimal(kind):
        return lambda value: Decimal(value) if type(value) is str else value
    if _is.is_binary(kind) or _is.is_large_binary(kind) or _is.is_fixed_size_binary(kind):
        return lambda _: Unsendable("binary")
    if _is.is_temporal(kind):
        return _as_iso(kind)
    if _is.is_struct(kind):
        return _object(kind)
    if _is.is_map(kind):
        item = sendable(kind.item_type) or _same
        return lambda pairs: {
            str(pair["key"]): item(pair["value"]) for pair in pairs if pair["value"] is not None
        }
    if _is_list(kind):
        each = sendable(kind.value_type)
        return each and (lambda items: [None if item is None else each(item) for item in items])
    return None


def _rebuilt(
    kind: pa.DataType, made: Callable[..., pa.DataType], *, in_struct: bool
) -> pa.DataType | None:
    """The nested type with its parts made anew; null for a flat one."""

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(made(field.type, in_struct=in_struct or _is.is_struct(kind)))

    if _is.is_struct(kind):
        return pa.struct([inner(field) for field in kind.fields])
    if _is.is_map(kind):
        return pa.map_(inner(kind.key_field), inner(kind.item_field))
    if _is.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if _is.is_large_list(kind) or _is.is_large_list_view(kind):
        return pa.large_list(inner(kind.value_field))
    if _is_list(kind):
        return pa.list_(inner(kind.value_field))
    if isinstance(kind, pa.BaseExtensionType) and made not in (own_type, carried_type):
        return made(kind.storage_type, in_struct=in_struct)
    return None


def _flat(kind: pa.DataType, *, in_struct: bool) -> pa.DataType:
    """The stored form of a flat type.

    Arrow puts empty text below a struct that is null, which it then cannot cast to a decimal. So
    decimals in structs travel as doubles, which hold 15 digits exactly.
    """
    if _is.is_date32(kind) or _is.is_time32(kind):
        return pa.int32()
    if _is.is_temporal(kind):
        return pa.int64()
    if _is.is_decimal(kind):
        return pa.float64() if in_struct else pa.string()
    return pa.float64() if _is.is_float16(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        _is.is_list(kind)
        or _is.is_large_list(kind)
        or _is.is_fixed_size_list(kind)
        or _is.is_list_view(kind)
        or _is.is_large_list_view(kind)
    )


def _same(value: Any) -> Any:
    return value


def _number_or_null(value: float) -> Any:
    """NaN is how many tools write that there is no value; infinity is a value JSON cannot say."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else Unsendable(str(value))


def _object(kind: pa.DataType) -> Callable[[Any], Any]:
    makers = {field.name: made for field in kind.fields if (made := sendable(field.type))}

    def make(value: dict[str, Any]) -> dict[str, Any]:
        made = {
            name: makers[name](inner) if name in makers and inner is not None else inner
            for name, inner in value.items()
        }
        return {name: inner for name, inner in made.items() if inner is not None}

    return make


def _as_iso(kind: pa.DataType) -> Callable[[Any], Any]:
    """Text without trailing zeros; times with a zone are told in UTC."""
    if _is.is_date32(kind):
        return lambda days: _iso_time(days * 86_400, "", "")[:-9]
    if _is.is_date64(kind):
        return lambda ms: _iso_time(ms // 1_000, "", "")[:-9]
    per_second = _PER_SECOND[kind.unit]
    digits = len(str(per_second)) - 1

    def fraction(count: int) -> str:
        parts = count % per_second
        return f".{parts:0{digits}d}".rstrip("0") if parts else ""

    if _is.is_timestamp(kind):
        zone = "" if kind.tz is None else "+00:00"
        return lambda count: _iso_time(count // per_second, fraction(count), zone)
    if _is.is_duration(kind):
        return lambda count: (
            f"{'-' if count < 0 else ''}PT{abs(count) // per_second}{fraction(abs(count))}S"
        )
    return lambda count: _iso_time(count // per_second, fraction(count), "")[11:]


def _iso_time(seconds: int, fraction: str, zone: str) -> str:
    try:
        moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001 - the zone is written by hand
    except OverflowError:
        return f"{seconds}{fraction} s since 1970"  # beyond the calendar
    return moment.isoformat() + fraction + zone


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
        return _as_json
    kind = unpack(column.arrow)
    if pa.types.is_boolean(kind):
        return _as_bool
    if pa.types.is_integer(kind):
        return _integers(kind)
    if pa.types.is_floating(kind):
        return _as_float
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _as_any_text if explicit else _as_text
    return _refuse


def arrow_fit(column: Column, kind: pa.DataType, *, explicit: bool) -> Callable[[pa.Array], Any]:
    """From an array of the file's type `kind` to the list of stored values.

    Raises `Misfit` where the type cannot be put into the pinned one; so may the fit.
    """
    own = carried_type(own_type(kind))
    if column.type == JSON or (explicit and column.type == "string" and not _is_text(own)):
        make = sendable(own)
        text = _as_json if column.type == JSON else _as_any_text
        return lambda array: [
            None if value is None else text(make(value) if make else value)
            for value in plain_values(array)
        ]
    pinned = unpack(column.arrow)
    united = unite([kind, pinned])
    if not explicit and (isinstance(united, str) or united is None or not united.equals(pinned)):
        raise Misfit(str(own))

    def fit(array: pa.Array) -> list[Any]:
        try:
            return plain_values(array, pinned)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Misfit(f"{own} ({error})") from error

    return fit


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


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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


def _as_text(value: Any) -> str:
    if type(value) is str:
        return value
    raise Misfit(_shown(value))


def _as_json(value: Any) -> str:
    try:
        return json_text(value)
    except RowProblem as problem:
        raise Misfit(f"a value {problem.message}") from None


def _as_any_text(value: Any) -> str:
    return value if type(value) is str else _as_json(value)


def _refuse(value: Any) -> Any:
    raise Misfit(_shown(value))


def _shown(value: Any) -> str:
    text = _as_json(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


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
