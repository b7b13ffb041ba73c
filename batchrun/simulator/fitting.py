"""Values that fit a JSON Schema, and values that surely do not.

`fit` obeys types, const, enum, object, array, number and text keywords, formats, patterns, `$ref`
within the schema, anyOf, oneOf and allOf. It does not read `not`, `if`, `contains` and
`dependent*`: a schema that leans on those may get a value that does not fit.
"""

from random import Random
from typing import Any

from batchrun.simulator import numbers, texts
from batchrun.simulator.json_types import is_a

Schema = dict[str, Any]
_DEEP = 6  # levels below which only what must be there is made
_BOTTOM = 24  # levels below which a schema that must recur is given up
_MOST = 10_000  # values within a value, whatever a schema asks for
_SCALARS = ("string", "integer", "number", "boolean")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
_WRONG = {"string": 12345, "integer": "many", "number": "much", "boolean": "perhaps"}


def fit(schema: Schema, rng: Random) -> Any:
    """A value that the schema accepts."""
    return _value(schema, _Making(rng, schema), 0)


def spoil(schema: Schema, value: Any, rng: Random) -> Any:
    """The value changed so that the schema surely refuses it; null where none is refused."""
    spoilt: list[Any] = []
    if isinstance(value, dict):
        spoilt += [
            {key: part for key, part in value.items() if key != name}
            for name in schema.get("required", ())
            if name in value
        ]
        properties = schema.get("properties", {})
        for name, part in value.items():
            inner = properties.get(name)
            type_ = inner.get("type") if isinstance(inner, dict) else None
            if isinstance(type_, str) and type_ in _WRONG and part is not None:
                spoilt.append({**value, name: _WRONG[type_]})
            elif type_ in ("array", "object"):
                spoilt.append({**value, name: "none of them"})
        if schema.get("additionalProperties") is False and "patternProperties" not in schema:
            spoilt.append({**value, "unasked_for": True})
    if not spoilt and schema.get("type") == "object":
        spoilt.append([value])
    return rng.choice(spoilt) if spoilt else None


class _Making:
    """What the making of one value needs all the way down."""

    __slots__ = ("left", "rng", "root")

    def __init__(self, rng: Random, root: Schema) -> None:
        self.rng = rng
        self.root = root
        self.left = _MOST  # values that may still be made


def _value(schema: Any, making: _Making, depth: int) -> Any:
    making.left -= 1
    if not isinstance(schema, dict) or not schema:
        return texts.words(making.rng)
    if depth > _BOTTOM or making.left < 0:
        return None
    schema = _flat(schema, making, depth)
    if "const" in schema:
        return schema["const"]
    types = _types(schema)
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        fitting = [value for value in schema["enum"] if _is_of(value, types)]
        return making.rng.choice(fitting or schema["enum"])
    match _type(types, making.rng, depth):
        case "object":
            return _object(schema, making, depth)
        case "array":
            return _array(schema, making, depth)
        case "integer":
            return numbers.integer(schema, making.rng)
        case "number":
            return numbers.number(schema, making.rng)
        case "boolean":
            return making.rng.random() < 0.5
        case "null":
            return None
        case _:
            return texts.text(schema, making.rng)


def _flat(schema: Schema, making: _Making, depth: int) -> Schema:
    """The schema with references followed, allOf merged and a branch of each choice taken."""
    for _ in range(_BOTTOM):
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = _merged(_target(schema["$ref"], making.root), rest)
        elif "allOf" in schema:
            parts = schema["allOf"]
            schema = {key: value for key, value in schema.items() if key != "allOf"}
            for part in parts:
                schema = _merged(schema, part)
        elif choice := next((key for key in ("anyOf", "oneOf") if schema.get(key)), None):
            branches = schema[choice]
            rest = {key: value for key, value in schema.items() if key != choice}
            schema = _merged(rest, _branch(branches, making.rng, depth))
        else:
            break
    return schema


def _branch(branches: list[Any], rng: Random, depth: int) -> Any:
    if depth > _DEEP:  # what can recur is left for what cannot
        plain = [branch for branch in branches if _is_scalar(branch)]
        return plain[0] if plain else branches[0]
    return rng.choice(branches)


def _is_scalar(schema: Any) -> bool:
    return isinstance(schema, dict) and (
        schema.get("type") in (*_SCALARS, "null") or "const" in schema or "enum" in schema
    )


def _target(reference: str, root: Schema) -> Schema:
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _merged(first: Schema, second: Any) -> Schema:
    """A schema that asks for what both ask for, as far as one can say it in one."""
    if not isinstance(second, dict):
        return first
    both = {**first, **second}
    for key in first.keys() & second.keys():
        one, other = first[key], second[key]
        if key == "properties":
            shared = {name: _merged(one[name], other[name]) for name in one.keys() & other.keys()}
            both[key] = {**one, **other, **shared}
        elif key == "required":
            both[key] = [*one, *(name for name in other if name not in one)]
        elif key == "enum":
            both[key] = [value for value in one if value in other]
        elif key == "type":
            mine, theirs = _as_list(one), _as_list(other)
            both[key] = [name for name in mine if name in theirs] or other
        elif key.startswith(("min", "exclusiveMin")):
            both[key] = max(one, other)
        elif key.startswith(("max", "exclusiveMax")):
            both[key] = min(one, other)
        elif key in ("anyOf", "oneOf", "allOf"):
            both[key] = one
            both["allOf"] = [*both.get("allOf", []), {key: other}]
    return both


def _as_list(types: Any) -> list[Any]:
    return types if isinstance(types, list) else [types]


def _types(schema: Schema) -> list[str]:
    if "type" in schema:
        return _as_list(schema["type"])
    if {"properties", "required", "additionalProperties", "minProperties"} & schema.keys():
        return ["object"]
    if {"items", "prefixItems", "minItems", "maxItems"} & schema.keys():
        return ["array"]
    if {"minimum", "maximum", "multipleOf", "exclusiveMinimum"} & schema.keys():
        return ["number"]
    if {"minLength", "maxLength", "pattern", "format"} & schema.keys():
        return ["string"]
    return []


def _type(types: list[str], rng: Random, depth: int) -> str:
    if "null" in types and (depth > _DEEP or types == ["null"] or rng.random() < 0.2):
        return "null"
    others = [name for name in types if name != "null"]
    return rng.choice(others) if others else "string"


def _is_of(value: Any, types: list[str]) -> bool:
    return not types or any(is_a(value, _TYPES.get(name, (object,))) for name in types)


def _object(schema: Schema, making: _Making, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    made: dict[str, Any] = {}
    for name, inner in properties.items():
        if name in required or (
            depth <= _DEEP and making.rng.random() < 0.6 and inner is not False
        ):
            made[name] = _value(inner, making, depth + 1)
    rest = schema.get("additionalProperties", True)
    for name in required:
        if name not in made:
            made[name] = _value(rest, making, depth + 1)
    least = schema.get("minProperties", 0)
    if isinstance(rest, dict) and rest and not properties and depth <= _DEEP:
        least = max(least, min(making.rng.randint(1, 2), schema.get("maxProperties", 2)))
    for name, inner in properties.items():
        if len(made) < least and name not in made:
            made[name] = _value(inner, making, depth + 1)
    while len(made) < least and rest is not False and making.left > 0:
        made[f"{texts.word(making.rng)}_{len(made)}"] = _value(rest, making, depth + 1)
    most = schema.get("maxProperties", len(made))
    for name in [name for name in made if name not in required][: max(len(made) - most, 0)]:
        del made[name]
    return made


def _array(schema: Schema, making: _Making, depth: int) -> list[Any]:
    items = schema.get("items", True)
    leading = schema.get("prefixItems", [])
    if isinstance(items, list):  # as drafts before 2020-12 wrote it
        leading, items = items, schema.get("additionalItems", True)
    least = max(min(schema.get("minItems", 0), _MOST), 0)
    most = schema.get("maxItems", max(least + 3, 3))
    wanted = (
        least if depth > _DEEP else min(making.rng.randint(max(least, 1), max(least, 1) + 2), most)
    )
    made = [_value(inner, making, depth + 1) for inner in leading[: max(wanted, least)]]
    if depth <= _DEEP and not least and len(leading) <= most:
        made += [_value(inner, making, depth + 1) for inner in leading[len(made) :]]
    if items is False:
        return made
    for _ in range(wanted + 50):  # what must differ may be used up before
        if len(made) >= wanted or making.left <= 0:
            break
        value = _value(items, making, depth + 1)
        if not schema.get("uniqueItems") or value not in made:
            made.append(value)
    return made
