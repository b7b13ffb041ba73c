"""Arrow types and the plain values that stand for them on a row's way.

Each carried column has two types: its own, and a stored one whose values are numbers, text,
bytes, lists and objects, which msgpack and JSON can hold. `readable` casts to the values, and
`pa.array(values, stored).cast(type)` makes the column again, exactly.
"""

import base64
import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.inputs.json_text import Unsendable

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
