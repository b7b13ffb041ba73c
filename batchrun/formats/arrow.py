"""Arrow columns and types, however deep they nest."""

from collections.abc import Callable

import pyarrow as pa


def with_flat(kind: pa.DataType, flat: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type, each flat type in it as `flat` gives it."""

    def field(one: pa.Field) -> pa.Field:
        return one.with_type(with_flat(one.type, flat))

    if pa.types.is_map(kind):
        return pa.map_(with_flat(kind.key_type, flat), with_flat(kind.item_type, flat))
    if pa.types.is_large_list(kind):
        return pa.large_list(field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(field(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([field(one) for one in kind.fields])
    return flat(kind)
