"""JSON schemas as types, and values that are exact or null."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.formats.schema_types import fitted, read_json, root_type

TEXT, INT, DOUBLE, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
}
TYPES = [
    ({"type": "string"}, TEXT),
    ({"type": ["integer", "null"]}, INT),
    ({"type": ["null", "number"]}, DOUBLE),
    ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, BOOL),
    ({"type": ["integer", "number"]}, DOUBLE),
    ({"type": ["string", "integer"]}, TEXT),
    ({"enum": ["a", "b", None]}, TEXT),
    ({"enum": [1, 2]}, INT),
    ({"enum": [1, 2.5]}, DOUBLE),
    ({"enum": ["a", 1]}, TEXT),
    ({"type": "number", "enum": [1, 2]}, DOUBLE),
    ({"const": True}, BOOL),
    ({"type": "null"}, TEXT),
    ({}, TEXT),
    (True, TEXT),
    ({"type": "decimal"}, TEXT),
    ({"type": "array"}, pa.list_(TEXT)),
    ({"type": "array", "items": {"type": "integer"}}, pa.list_(INT)),
    ({"prefixItems": [{"type": "integer"}, {"type": "number"}]}, pa.list_(DOUBLE)),
    ({"prefixItems": [{"type": "integer"}, {"type": "string"}]}, pa.list_(TEXT)),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, pa.struct({"a": TEXT})),
    ({"properties": {"a": {"type": "string"}}}, pa.struct({"a": TEXT})),
    ({"type": "object"}, TEXT),
    ({"type": "object", "additionalProperties": {"type": "string"}}, TEXT),
    ({"properties": {"a": {}}, "additionalProperties": True}, TEXT),
    ({"properties": {"a": {"type": "string"}, "A": {"type": "string"}}}, TEXT),
    ({"properties": {"": {"type": "string"}}}, TEXT),
    ({"properties": {}}, TEXT),
    ({"allOf": [{"$ref": "#/$defs/word"}, {"minLength": 3}]}, TEXT),
    ({"$ref": "#/$defs/count", "description": "how many"}, INT),
    ({"$ref": "#/$defs/a~1b%20c"}, BOOL),
    ({"$ref": "https://x.test/other.json"}, TEXT),
    ({"$ref": "#/$defs/nowhere"}, TEXT),
    (
        {"allOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"const": 1}}}]},
        pa.struct({"a": TEXT, "b": INT}),
    ),
    (
        {"properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}, {"minItems": 1}]},
        pa.struct({"a": TEXT}),
    ),
    (
        {"oneOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {}}}]},
        TEXT,
    ),
    ({"$ref": "#/$defs/node"}, pa.struct({"value": INT, "next": TEXT, "parts": pa.list_(TEXT)})),
]


@pytest.mark.parametrize(("schema", "kind"), TYPES, ids=[json.dumps(one) for one, _ in TYPES])
def test_each_kind_of_schema_has_its_type(schema: Any, kind: pa.DataType) -> None:
    others = {"word": {"type": "string"}, "count": {"type": "integer"}, "node": NODE}
    root = {
        "type": "object",
        "properties": {"it": schema, "again": {"$ref": "#"}},
        "additionalProperties": True,
        "$defs": {**others, "a/b c": {"type": "boolean"}},
    }
    assert root_type(root).arrow == pa.struct({"it": kind, "again": TEXT})


def test_an_answer_need_not_be_an_object() -> None:
    assert root_type({"type": "array", "items": {"type": "integer"}}).arrow == pa.list_(INT)
    assert root_type({"type": "string"}).arrow == TEXT


def test_schemas_without_end_are_read_in_the_end() -> None:
    defs = {
        f"d{at}": {"properties": {name: {"$ref": f"#/$defs/d{at + 1}"} for name in "abcd"}}
        for at in range(60)
    }
    root_type({"$ref": "#/$defs/d0", "$defs": defs})
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"items": deep}
    assert root_type(deep).arrow == TEXT


VALUES = [
    ("integer", "9223372036854775807", 2**63 - 1),
    ("integer", "-9223372036854775808", -(2**63)),
    ("integer", "9223372036854775808", None),
    ("integer", "9007199254740993.0", 2**53 + 1),
    ("integer", "1e18", 10**18),
    ("integer", "1.5", None),
    ("integer", "1e999999999999999999999", None),
    ("integer", "1" * 5_000, None),
    ("integer", "true", None),
    ("integer", '"1"', None),
    ("number", "3", 3.0),
    ("number", "0.1", 0.1),
    ("number", "9007199254740993", None),
    ("number", "1e400", None),
    ("number", "1e-400", None),
    ("number", "0.0e-400", 0.0),
    ("number", "1" * 5_000, None),
    ("number", "NaN", None),
    ("number", "false", None),
    ("boolean", "1", None),
    ("boolean", "false", False),
    ("string", '"\\ud83d\\ude00"', "\U0001f600"),
    ("string", '"\\ud83d"', None),
    ("string", '"a\\u0000b"', "a\0b"),
    ("string", "1", None),
    ("string", "{}", None),
]


@pytest.mark.parametrize(("kind", "text", "value"), VALUES)
def test_a_value_is_exact_or_null(kind: str, text: str, value: Any) -> None:
    misfits: list[None] = []
    found = fitted(read_json(text), root_type({"type": kind}), lambda: misfits.append(None))
    assert (found, type(found)) == (value, type(value))
    assert len(misfits) == (value is None)


def test_what_does_not_fit_is_null_where_it_stands_and_the_rest_is_there() -> None:
    schema = {
        "properties": {
            "list": {"items": {"type": "integer"}},
            "inner": {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        }
    }
    misfits: list[None] = []
    text = '{"list": [1, "2", null, 3], "inner": {"a": 1, "b": "x"}, "other": 1}'
    found = fitted(read_json(text), root_type(schema), lambda: misfits.append(None))
    assert found == {"list": [1, None, None, 3], "inner": {"a": None, "b": "x"}}
    assert len(misfits) == 2


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON_VALUES)
def test_json_text_means_what_the_answer_said(value: Any) -> None:
    found = fitted(read_json(json.dumps(value)), root_type({}), lambda: None)
    assert (found is None) == (value is None)
    assert found is None or json.loads(found) == value
    assert found is None or found.isprintable() or "\n" not in found


def test_json_text_has_numbers_as_they_were_written() -> None:
    text = '{"a": [1.10, 1e400, 12345678901234567890123], "b": "\\ud800"}'
    assert fitted(read_json(text), root_type({}), lambda: None) == text


@pytest.mark.parametrize("text", ["", "{", "[1,]", "Sure! {}", "[" * 100_000])
def test_what_is_no_json_is_said_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)
