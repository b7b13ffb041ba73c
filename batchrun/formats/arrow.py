"""Arrow types, however deep they nest, and the plain values that stand for those of a column.

A carried column has two types: its own, and a stored one whose values are numbers, text, bytes,
lists and objects, which msgpack and JSON can hold. `plain_values` casts to such values, and
`pa.array(values, stored).cast(type)` makes the column again, exactly.
"""

import base64
from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_DOUBLE_DIGITS = 15  # that a double holds exactly
_is = pa.types


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any kind, but for list views."""
    return bool(_is.is_list(kind) or _is.is_large_list(kind) or _is.is_fixed_size_list(kind))


def is_number(kind: pa.DataType) -> bool:
    return bool(_is.is_integer(kind) or _is.is_floating(kind) or _is.is_decimal(kind))


def with_parts(kind: pa.DataType, made: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A nested type with its parts as `made` gives them; any other type as it is."""

    def field(one: pa.Field) -> pa.Field:
        return one.with_type(made(one.type))

    if _is.is_struct(kind):
        return pa.struct([field(one) for one in kind.fields])
    if _is.is_map(kind):
        return pa.map_(field(kind.key_field), field(kind.item_field))
    if _is.is_fixed_size_list(kind):
        return pa.list_(field(kind.value_field), kind.list_size)
    if _is.is_large_list(kind) or _is.is_large_list_view(kind):
        return pa.large_list(field(kind.value_field))
    if _is.is_list(kind) or _is.is_list_view(kind):
        return pa.list_(field(kind.value_field))
    return kind


def has_map(kind: pa.DataType) -> bool:
    """Whether it is a map or holds one."""
    parts = [kind.field(at).type for at in range(kind.num_fields)]
    return bool(_is.is_map(kind)) or any(map(has_map, parts))


def map_plain(value: Any, kind: pa.DataType, flat: Callable[[Any, pa.DataType], Any]) -> Any:
    """A plain value of a type, each flat value in it as `flat` gives it.

    Pairs of maps, which may be lists or objects, become the tuples that Arrow asks for.
    """
    if value is None:
        return None
    if _is.is_map(kind):
        pairs = (pair.values() if isinstance(pair, dict) else pair for pair in value)
        types = (kind.key_type, kind.item_type)
        return [tuple(map(map_plain, pair, types, (flat, flat))) for pair in pairs]
    if is_list(kind):
        return [map_plain(one, kind.value_type, flat) for one in value]
    if _is.is_struct(kind):
        names = [field.name for field in kind.fields]
        values = map(value.get, names) if isinstance(value, dict) else value
        parts = [
            map_plain(one, field.type, flat) for one, field in zip(values, kind.fields, strict=True)
        ]
        return dict(zip(names, parts, strict=True)) if isinstance(value, dict) else tuple(parts)
    return flat(value, kind)


def own_type(kind: pa.DataType, *, in_struct: bool = False) -> pa.DataType:
    """The type that a column is carried with: without dictionaries, run lengths and views.

    Decimals of more than 15 digits inside of structs become text: see `stored_type`.
    """
    if _is.is_dictionary(kind) or _is.is_run_end_encoded(kind):
        return own_type(kind.value_type, in_struct=in_struct)
    if _is.is_string_view(kind):
        return pa.string()
    if _is.is_binary_view(kind):
        return pa.binary()
    if in_struct and _is.is_decimal(kind) and kind.precision > _DOUBLE_DIGITS:
        return pa.string()
    inside = in_struct or _is.is_struct(kind)
    return with_parts(kind, lambda part: own_type(part, in_struct=inside))


def carried_type(kind: pa.DataType) -> pa.DataType:
    """The type with text where nothing but nulls was seen: Arrow's casts break lists of nulls."""
    return pa.string() if _is.is_null(kind) else with_parts(kind, carried_type)


def stored_type(
    kind: pa.DataType, *, in_struct: bool = False, with_pairs: bool = False
) -> pa.DataType:
    """The type of the plain values; `with_pairs`: maps are lists of objects, as they are read.

    Arrow puts empty text below a struct that is null, which it then cannot cast to a decimal. So
    decimals in structs are stored as doubles, which hold 15 digits exactly.
    """

    def part(one: pa.DataType) -> pa.DataType:
        inside = in_struct or _is.is_struct(kind)
        return stored_type(one, in_struct=inside, with_pairs=with_pairs)

    if isinstance(kind, pa.BaseExtensionType):
        return part(kind.storage_type)
    if with_pairs and _is.is_map(kind):
        key = pa.field("key", part(kind.key_type), nullable=False)
        return pa.list_(pa.struct([key, pa.field("value", part(kind.item_type))]))
    if _is.is_date32(kind) or _is.is_time32(kind):
        return pa.int32()
    if _is.is_temporal(kind):
        return pa.int64()
    if _is.is_decimal(kind):
        return pa.float64() if in_struct else pa.string()
    return pa.float64() if _is.is_float16(kind) else with_parts(kind, part)


def plain_values(array: pa.Array, kind: pa.DataType | None = None) -> list[Any]:
    """The stored values of the array, cast to the carried type `kind` first.

    Raises `pa.ArrowException` where a value does not fit, `ValueError` where text is not UTF-8.
    """
    values: list[Any] = _stored(array, kind).to_pylist()
    return values


def check_values(array: pa.Array, kind: pa.DataType) -> None:
    """Raises as `plain_values` would, without making the values."""
    if has_text(array.type):
        array.validate(full=True)
    if _has_twins(kind):
        raise pa.ArrowInvalid("two fields of one name")
    _stored(array, kind)


def as_own_type(array: pa.Array) -> pa.Array:
    """The array without dictionaries, run lengths and views. Raises `pa.ArrowException`."""
    if _is.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    own = own_type(array.type)
    if "list_view" in str(array.type):  # Arrow 26 casts these to lists with too few offsets
        array = pa.array(array.to_pylist(), own)
    try:
        return _cast(array, own)
    except pa.ArrowIndexError:  # an empty dictionary below a null
        return pa.array(array.to_pylist(), own)


@cache
def has_text(kind: pa.DataType) -> bool:
    """Whether it is text or holds text."""
    if _is.is_dictionary(kind) or _is.is_run_end_encoded(kind):
        return has_text(kind.value_type)
    parts = [kind.field(at).type for at in range(kind.num_fields)]
    is_text = _is.is_string(kind) or _is.is_large_string(kind) or _is.is_string_view(kind)
    return bool(is_text) or any(map(has_text, parts))


@cache
def _has_twins(kind: pa.DataType) -> bool:
    """Whether a struct has two fields of one name, which no object can hold."""
    parts = [kind.field(at) for at in range(kind.num_fields)]
    is_twin = _is.is_struct(kind) and len({part.name for part in parts}) < len(parts)
    return bool(is_twin) or any(_has_twins(part.type) for part in parts)


def _stored(array: pa.Array, kind: pa.DataType | None) -> pa.Array:
    array = as_own_type(array)
    kind = carried_type(array.type) if kind is None else kind
    if _is.is_integer(kind) and _is.is_floating(array.type):  # NaN is no value to an integer
        array = pc.if_else(pc.is_nan(_cast(array, pa.float64())), None, array)
    array = _cast(array, kind)
    return _cast(array, stored_type(array.type, with_pairs=True))


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type.equals(kind) else array.cast(kind)


def pack(kind: pa.DataType) -> str:
    """The type and its stored form as text, for `Column.arrow`."""
    schema = pa.schema([("type", kind), ("stored", stored_type(kind))])
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


@cache
def unpack(text: str) -> tuple[pa.DataType, pa.DataType]:
    """The type that `pack` was given, and its stored form."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    return schema.field("type").type, schema.field("stored").type


def json_values(column: pa.ChunkedArray, *, decimals: bool = False) -> list[Any]:
    """Values that JSON and CSV can hold: times, dates and decimals are text, times as ISO 8601.

    `decimals`: these stay what they are.
    """
    kind = column.type
    plain = _json_type(kind, decimals)
    if not plain.equals(kind):
        column = column.cast(plain)
    if _is.is_timestamp(kind):
        column = pc.replace_substring(column, " ", "T", max_replacements=1)
    values: list[Any] = column.to_pylist()
    return values


def _json_type(kind: pa.DataType, decimals: bool) -> pa.DataType:
    if _is.is_duration(kind):
        return pa.int64()  # in its own unit
    if _is.is_temporal(kind) or (_is.is_decimal(kind) and not decimals):
        return pa.string()
    return with_parts(kind, lambda part: _json_type(part, decimals))
