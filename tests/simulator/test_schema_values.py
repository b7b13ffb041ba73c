from random import Random
from typing import Any

import jsonschema  # type: ignore[import-untyped] # it ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.simulator.schema_values import make_invalid, make_text, make_value

_SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": {"type": "object", "properties": {}},
    "scalars": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "whole": {"type": "integer"},
            "number": {"type": "number"},
            "flag": {"type": "boolean"},
            "nothing": {"type": "null"},
            "anything": {},
            "whatever": True,
        },
        "required": ["text", "whole", "number", "flag", "nothing", "anything", "whatever"],
        "additionalProperties": False,
    },
    "choices": {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": ["metric", "imperial"]},
            "level": {"type": "integer", "enum": [1, 2, 3]},
            "maybe": {"type": ["string", "null"], "enum": ["yes", None]},
            "fixed": {"const": {"a": [1, 2]}},
            "mixed": {"enum": [1, "one", None, True]},
        },
        "required": ["unit", "level", "maybe", "fixed", "mixed"],
    },
    "nullable": {
        "type": "object",
        "properties": {
            "a": {"type": ["integer", "null"], "minimum": 3},
            "b": {"type": ["array", "null"], "items": {"type": ["string", "number"]}},
        },
        "required": ["a", "b"],
    },
    "bounds": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 5, "maximum": 5},
            "b": {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 7},
            "c": {"type": "number", "minimum": 0.001, "maximum": 0.002},
            "d": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
            "e": {"type": "integer", "multipleOf": 7, "minimum": 15},
            "f": {"type": "number", "multipleOf": 0.1, "minimum": -3, "maximum": 3},
            "g": {"type": "integer", "maximum": -1_000},
            "h": {"type": "number", "minimum": 10_000},
            "i": {"type": "integer", "minimum": 0.5, "maximum": 1.5},
        },
        "required": list("abcdefghi"),
    },
    "texts": {
        "type": "object",
        "properties": {
            "long": {"type": "string", "minLength": 200},
            "short": {"type": "string", "maxLength": 2},
            "empty": {"type": "string", "maxLength": 0},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "fitted": {"type": "string", "pattern": "^[a-z]+$", "minLength": 3, "maxLength": 4},
        },
        "required": ["long", "short", "empty", "code", "fitted"],
    },
    "formats": {
        "type": "object",
        "properties": {
            name: {"type": "string", "format": name}
            for name in ("date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "unknown")
        },
        "required": ["date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "unknown"],
    },
    "lists": {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 5},
            "b": {"type": "array", "items": {"enum": ["x", "y", "z"]}, "uniqueItems": True},
            "c": {"type": "array"},
            "d": {
                "type": "array",
                "prefixItems": [{"type": "string"}, {"type": "integer"}],
                "items": False,
                "minItems": 2,
            },
            "e": {"type": "array", "maxItems": 0},
            "f": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "array",
                    "minItems": 2,
                    "maxItems": 2,
                    "items": {"type": "number", "minimum": -90, "maximum": 90},
                },
            },
            "g": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 2},
        },
        "required": list("abcdefg"),
    },
    "nested": {
        "type": "object",
        "properties": {
            "place": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "at": {
                        "type": "object",
                        "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                        "required": ["lat", "lon"],
                        "additionalProperties": False,
                    },
                },
                "required": ["city", "at"],
                "additionalProperties": False,
            }
        },
        "required": ["place"],
        "additionalProperties": False,
    },
    "branches": {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
            "b": {"oneOf": [{"type": "integer"}, {"type": "array", "items": {"const": 1}}]},
            "c": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]},
            "d": {
                "type": "object",
                "properties": {"kind": {"type": "string"}, "x": {"type": "integer"}},
                "anyOf": [
                    {"properties": {"kind": {"const": "one"}}, "required": ["kind"]},
                    {"properties": {"kind": {"const": "two"}}, "required": ["kind", "x"]},
                ],
            },
        },
        "required": ["a", "b", "c", "d"],
    },
    "references": {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}, "next": {"$ref": "#/$defs/link"}},
        "required": ["tree", "next"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "children"],
                "additionalProperties": False,
            },
            "link": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"next": {"$ref": "#/$defs/link"}},
                        "required": ["next"],
                    },
                    {"type": "null"},
                ]
            },
        },
    },
    "maps": {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "minProperties": 3,
        "maxProperties": 4,
    },
    "a property called type": {
        "type": "object",
        "properties": {"type": {"type": "string"}, "items": {"type": "integer"}},
        "required": ["type", "items"],
    },
}
_SEEDS = range(40)


@pytest.mark.parametrize("name", _SCHEMAS)
def test_a_made_value_fits(name: str) -> None:
    schema = _SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for seed in _SEEDS:
        validator.validate(make_value(schema, Random(seed)))


@pytest.mark.parametrize("name", _SCHEMAS)
def test_an_invalid_value_never_fits(name: str) -> None:
    schema = _SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(schema)
    for seed in _SEEDS:
        rng = Random(seed)
        wrong = make_invalid(schema, make_value(schema, rng), rng)
        assert wrong is not None
        assert not validator.is_valid(wrong)


def test_no_value_is_invalid_for_a_schema_that_takes_anything() -> None:
    assert make_invalid({}, {"a": 1}, Random(1)) is None


def test_optional_properties_come_and_go() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert {len(make_value(schema, Random(seed))) for seed in _SEEDS} == {0, 1}


def test_a_schema_that_must_recur_has_an_end() -> None:
    schema = {
        "type": "object",
        "properties": {"again": {"$ref": "#"}, "loop": {"$ref": "#/properties/loop"}},
        "required": ["again"],
    }
    assert isinstance(make_value(schema, Random(1)), dict)


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "array", "minItems": 10**9},
        {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}},
        {"type": "object", "minProperties": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "integer", "minimum": 3, "maximum": 2, "multipleOf": 5},
        {"type": "number", "multipleOf": 1e-300},
        {"type": "number", "multipleOf": 0},
        {"type": "string", "pattern": "[a-"},
    ],
)
def test_absurd_wishes_have_an_end(inner: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    assert set(make_value(schema, Random(1))) == {"a"}


def test_draft_4_bounds_and_lists_are_understood() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 2},
            "b": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
        },
        "required": ["a", "b"],
    }
    for seed in _SEEDS:
        value = make_value(schema, Random(seed))
        assert value["a"] == 2
        jsonschema.Draft4Validator(schema).validate(value)


def test_a_default_helps_where_a_pattern_is_beyond_us() -> None:
    schema = {"type": "string", "pattern": "^(?=b)b$", "default": "b"}
    assert make_text(schema, Random(1)) == "b"


def test_a_pattern_that_is_none_does_no_harm() -> None:
    assert make_text({"pattern": "[a-", "default": "b"}, Random(1))


_LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 4, "maxLength": 9},
        {"type": "integer", "minimum": -2, "maximum": 7},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "boolean"},
        {"type": ["integer", "null"]},
        {"enum": ["a", 1, None]},
        {"const": 0},
        {},
    ]
)


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.sampled_from("abcde"), inner, max_size=4).flatmap(
        lambda properties: st.builds(
            lambda required, closed: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                **({"additionalProperties": False} if closed else {}),
            },
            st.sets(st.sampled_from(sorted(properties))) if properties else st.just(set()),
            st.booleans(),
        )
    )
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least},
        inner,
        st.integers(0, 3),
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(_any_of))


def _any_of(branches: list[Any]) -> dict[str, Any]:
    return {"anyOf": branches}


@settings(max_examples=200)
@given(st.recursive(_LEAVES, _grown, max_leaves=8), st.integers(0, 1_000))
def test_a_value_fits_whatever_the_schema(schema: dict[str, Any], seed: int) -> None:
    jsonschema.Draft202012Validator(schema).validate(make_value(schema, Random(seed)))
