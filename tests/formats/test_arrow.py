from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.formats.arrow import (
    carried_type,
    own_type,
    pack,
    plain_values,
    stored_type,
    unpack,
)

INTEGERS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}
UNITS = st.sampled_from(["s", "ms", "us", "ns"])

Typed = tuple[pa.DataType, st.SearchStrategy[Any]]


def longs(bits: int = 62) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits), (1 << bits) - 1)


def flat_types() -> st.SearchStrategy[Typed]:
    """A type, and values that `pa.array(values, storage).cast(type)` takes."""
    whole = st.sampled_from([(kind, longs(bits)) for kind, bits in INTEGERS.items()])
    others: list[Typed] = [
        (pa.bool_(), st.booleans()),
        (pa.uint64(), st.integers(0, (1 << 64) - 1)),
        (pa.float32(), st.floats(width=32, allow_nan=False)),
        (pa.float16(), st.floats(width=16, allow_nan=False)),
        (pa.float64(), st.floats(allow_nan=False)),
        (pa.string(), st.text()),
        (pa.large_string(), st.text()),
        (pa.string_view(), st.text()),
        (pa.binary(), st.binary()),
        (pa.binary(3), st.binary(min_size=3, max_size=3)),
        (pa.null(), st.none()),
        (pa.date32(), st.dates()),
        (pa.date64(), st.dates()),
        (pa.time32("ms"), st.times().map(lambda time: time.replace(microsecond=0))),
        (pa.time64("ns"), st.times()),
        (pa.decimal128(10, 3), st.decimals(-9999, 9999, places=3)),
        (pa.decimal128(15, 7), st.decimals(-(10**7), 10**7, places=7)),
        (pa.decimal128(15, 15), st.decimals("-0.9", "0.9", places=15)),
        (pa.decimal128(38, 0), st.decimals(-9999, 9999, places=0)),
        (pa.decimal256(50, 20), st.decimals(-9999, 9999, places=20)),
        (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
    ]
    zones = st.sampled_from([None, "UTC", "Asia/Tokyo"])
    stamps = st.builds(pa.timestamp, UNITS, zones).map(lambda kind: (kind, longs()))
    spans = UNITS.map(pa.duration).map(lambda kind: (kind, longs()))
    return st.one_of(whole, st.sampled_from(others), stamps, spans)


def nested(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def listed(typed: Typed) -> Typed:
        return pa.list_(typed[0]), st.lists(st.none() | typed[1], max_size=3)

    def large(typed: Typed) -> Typed:
        return pa.large_list(typed[0]), st.lists(st.none() | typed[1], max_size=3)

    def sized(typed: Typed) -> Typed:
        return pa.list_(typed[0], 2), st.lists(st.none() | typed[1], min_size=2, max_size=2)

    def mapped(typed: Typed) -> Typed:
        pairs = st.lists(st.tuples(st.text(), st.none() | typed[1]), max_size=3)
        return pa.map_(pa.string(), typed[0]), pairs

    def formed(parts: list[Typed]) -> Typed:
        fields = [(f"f{at}", kind) for at, (kind, _) in enumerate(parts)]
        values = {f"f{at}": st.none() | values for at, (_, values) in enumerate(parts)}
        return pa.struct(fields), st.fixed_dictionaries(values)

    return st.one_of(
        inner.map(listed),
        inner.map(large),
        inner.map(sized),
        inner.map(mapped),
        st.lists(inner, min_size=1, max_size=3).map(formed),
    )


@settings(deadline=None)
@given(st.data())
def test_stored_values_make_the_column_again(data: st.DataObject) -> None:
    kind, values = data.draw(st.recursive(flat_types(), nested, max_leaves=5))
    drawn = data.draw(st.lists(st.none() | values, max_size=6))
    array = pa.array(drawn, kind)
    own = carried_type(own_type(kind))
    plain = plain_values(array)
    journaled = msgspec.msgpack.decode(msgspec.msgpack.encode(plain))
    back = pa.array(journaled, stored_type(own)).cast(own)
    back.validate(full=True)
    try:
        expected = array.cast(own)
    except pa.ArrowIndexError:  # Arrow's own trouble with an empty dictionary below a null
        expected = pa.array(drawn, own)
    assert back.equals(expected)
    assert back.null_count == array.null_count
    assert unpack(pack(own)) == (own, stored_type(own))


def test_structs_that_are_null_may_hold_decimals() -> None:
    for digits in (9, 15, 18, 38):
        kind = pa.struct([("price", pa.decimal128(digits, 2))])
        own = own_type(kind)
        array = pa.array([None, {"price": None}, {"price": Decimal("12345.67")}], kind)
        back = pa.array(plain_values(array), stored_type(own)).cast(own)
        assert back.equals(array.cast(own))
        assert own == (kind if digits <= 15 else pa.struct([("price", pa.string())]))


def test_nanoseconds_are_exact() -> None:
    array = pa.array([1, -1, None, (1 << 62) + 1], pa.int64()).cast(pa.timestamp("ns", "UTC"))
    assert plain_values(array) == [1, -1, None, (1 << 62) + 1]


def test_lists_by_view_are_read_whatever_their_length() -> None:
    for values in ([[1]], [[1], None, [2, 3]], []):
        assert plain_values(pa.array(values, pa.list_view(pa.int64()))) == values


def test_run_lengths_and_extensions_are_read_as_what_they_hold() -> None:
    runs = pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"])
    assert plain_values(runs) == ["a", "a", "b"]
    assert own_type(runs.type) == pa.string()
    text = pa.array(["{}", None], pa.json_())
    assert plain_values(text) == ["{}", None]
    assert pa.array(["{}", None], stored_type(text.type)).cast(text.type).equals(text)
