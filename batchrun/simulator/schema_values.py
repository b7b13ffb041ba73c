"""Values that fit a JSON Schema, and values that surely do not.

`make_value` obeys types, const, enum, object, array, number and text keywords, formats, patterns,
`$ref` within the schema, anyOf, oneOf and allOf. It does not read `not`, `if`, `contains` and
`dependent*`: for a schema that relies on those a value may not fit.
"""

import math
from random import Random
from typing import Any

from batchrun.simulator import random_values
from batchrun.simulator.errors import is_of_type

Schema = dict[str, Any]
_OPTIONAL_LEVELS = 6  # below these only what is required is made
_MOST_LEVELS = 24  # below these a schema that must recur is given up
_MOST_VALUES = 10_000  # within a value, whatever a schema asks for
_LONGEST_TEXT = 100_000  # letters, whatever a schema asks for
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
_TYPES_OF_KEYWORDS = {  # for schemas without a type; the first that applies
    "object": {"properties", "required", "additionalProperties", "minProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "number": {"minimum", "maximum", "multipleOf", "exclusiveMinimum"},
    "string": {"minLength", "maxLength", "pattern", "format"},
}
_WRONG = {
    "string": 12345,
    "integer": "many",
    "number": "much",
    "boolean": "perhaps",
    "array": "none of them",
    "object": "none of them",
}
_DAY = r"20[0-3]\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"  # that every year has
_FORMATS = {
    "date-time": _DAY + r"T1\d:[0-5]\d:[0-5]\dZ",
    "date": _DAY,
    "time": r"1\d:[0-5]\d:[0-5]\dZ",
    "duration": r"P[1-9]DT[1-9]H",
    "email": r"[a-z]{4,9}@example\.(com|org)",
    "hostname": r"[a-z]{4,9}\.example\.com",
    "ipv4": r"10\.[1-9]\d\.1\d\d\.[1-9]",
    "ipv6": r"fd00:[1-9a-f]{4}::[1-9a-f]",
    "uri": r"https://example\.com/[a-z]{3,8}",
    "uri-reference": r"/[a-z]{3,8}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}


def make_value(schema: Schema, rng: Random) -> Any:
    """A value that the schema accepts."""
    return _ValueMaker(schema, rng).value(schema, 0)


def make_invalid(schema: Schema, value: Any, rng: Random) -> Any:
    """The value changed so that the schema surely refuses it; None where it accepts everything."""
    wrong: list[Any] = []
    if isinstance(value, dict):
        wrong += [_without(value, name) for name in schema.get("required", ()) if name in value]
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name)
            type_ = inner.get("type") if isinstance(inner, dict) else None
            if not isinstance(type_, str) or type_ not in _WRONG:
                continue
            if part is not None or type_ in ("array", "object"):
                wrong.append({**value, name: _WRONG[type_]})
        if schema.get("additionalProperties") is False and "patternProperties" not in schema:
            wrong.append({**value, "unasked_for": True})
    if not wrong and schema.get("type") == "object":
        wrong.append([value])
    return rng.choice(wrong) if wrong else None


def make_text(schema: Schema, rng: Random) -> str:
    """A string that fits pattern, format and lengths."""
    least, most = min(schema.get("minLength", 0), _LONGEST_TEXT), schema.get("maxLength")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        for _ in range(50):
            made = random_values.text_for_pattern(pattern, rng)
            if made is None:
                break
            if len(made) >= least and (most is None or len(made) <= most):
                return made
        default = schema.get("default")
        if isinstance(default, str) and random_values.is_match(pattern, default):
            return default
    if schema.get("format") in _FORMATS:
        made = random_values.text_for_pattern(_FORMATS[schema["format"]], rng)
        if made is not None:
            return made
    made = random_values.words(rng)
    if len(made) < least:
        made = ((made + " ") * (least // len(made) + 1))[:least]
    return made if most is None else made[:most]


class _ValueMaker:
    """Makes one value; the levels below the root count from 0."""

    def __init__(self, root: Schema, rng: Random) -> None:
        self._root = root
        self._rng = rng
        self._left = _MOST_VALUES

    def value(self, schema: Any, level: int) -> Any:
        self._left -= 1
        if not isinstance(schema, dict) or not schema:
            return random_values.words(self._rng)
        if level > _MOST_LEVELS or self._left < 0:
            return None
        schema = self._flat(schema, level)
        if "const" in schema:
            return schema["const"]
        types = _types(schema)
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            fitting = [value for value in schema["enum"] if _is_of(value, types)]
            return self._rng.choice(fitting or schema["enum"])
        match self._type(types, level):
            case "object":
                return self._object(schema, level)
            case "array":
                return self._array(schema, level)
            case "integer":
                return _integer(schema, self._rng)
            case "number":
                return _number(schema, self._rng)
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
            case _:
                return make_text(schema, self._rng)

    def _flat(self, schema: Schema, level: int) -> Schema:
        """References followed, allOf merged, and one branch of each choice taken."""
        for _ in range(_MOST_LEVELS):
            keys = (key for key in ("$ref", "allOf", "anyOf", "oneOf") if schema.get(key, []) != [])
            key = next(keys, None)
            if key is None:
                break
            held, rest = schema[key], _without(schema, key)
            if key == "$ref":
                schema = _merged(self._referenced(held), rest)
            elif key == "allOf":
                schema = rest
                for part in held:
                    schema = _merged(schema, part)
            else:
                schema = _merged(rest, self._branch(held, level))
        return schema

    def _referenced(self, reference: str) -> Schema:
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def _branch(self, branches: list[Any], level: int) -> Any:
        if level > _OPTIONAL_LEVELS:  # one that cannot recur, if there is one
            return next((branch for branch in branches if _is_scalar(branch)), branches[0])
        return self._rng.choice(branches)

    def _type(self, types: list[str], level: int) -> str:
        if "null" in types and (
            level > _OPTIONAL_LEVELS or types == ["null"] or self._rng.random() < 0.2
        ):
            return "null"
        others = [name for name in types if name != "null"]
        return self._rng.choice(others) if others else "string"

    def _object(self, schema: Schema, level: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        rest = schema.get("additionalProperties", True)
        is_shallow = level <= _OPTIONAL_LEVELS
        made: dict[str, Any] = {}
        for name, inner in properties.items():
            if name in required or (is_shallow and self._rng.random() < 0.6 and inner is not False):
                made[name] = self.value(inner, level + 1)
        for name in required:
            if name not in made:
                made[name] = self.value(rest, level + 1)
        least = schema.get("minProperties", 0)
        if isinstance(rest, dict) and rest and not properties and is_shallow:
            least = max(least, min(self._rng.randint(1, 2), schema.get("maxProperties", 2)))
        for name, inner in properties.items():
            if len(made) < least and name not in made:
                made[name] = self.value(inner, level + 1)
        while len(made) < least and rest is not False and self._left > 0:
            made[f"{random_values.word(self._rng)}_{len(made)}"] = self.value(rest, level + 1)
        most = schema.get("maxProperties", len(made))
        for name in [name for name in made if name not in required][: max(len(made) - most, 0)]:
            del made[name]
        return made

    def _array(self, schema: Schema, level: int) -> list[Any]:
        items = schema.get("items", True)
        leading = schema.get("prefixItems", [])
        if isinstance(items, list):  # as drafts before 2020-12 wrote it
            leading, items = items, schema.get("additionalItems", True)
        is_shallow = level <= _OPTIONAL_LEVELS
        least = max(min(schema.get("minItems", 0), _MOST_VALUES), 0)
        most = schema.get("maxItems", max(least + 3, 3))
        wanted = least
        if is_shallow:
            wanted = min(self._rng.randint(max(least, 1), max(least, 1) + 2), most)
        made = [self.value(inner, level + 1) for inner in leading[: max(wanted, least)]]
        if is_shallow and not least and len(leading) <= most:
            made += [self.value(inner, level + 1) for inner in leading[len(made) :]]
        if items is False:
            return made
        for _ in range(wanted + 50):  # there may be too few different values
            if len(made) >= wanted or self._left <= 0:
                break
            value = self.value(items, level + 1)
            if not schema.get("uniqueItems") or value not in made:
                made.append(value)
        return made


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _is_scalar(schema: Any) -> bool:
    return isinstance(schema, dict) and (
        schema.get("type") in ("string", "integer", "number", "boolean", "null")
        or "const" in schema
        or "enum" in schema
    )


def _merged(first: Schema, second: Any) -> Schema:
    """A schema that asks for what both ask for, as far as one can say it."""
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
            both[key] = [name for name in _as_list(one) if name in _as_list(other)] or other
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
    return [type_ for type_, keys in _TYPES_OF_KEYWORDS.items() if keys & schema.keys()][:1]


def _is_of(value: Any, types: list[str]) -> bool:
    return not types or any(is_of_type(value, _TYPES.get(name, (object,))) for name in types)


def _integer(schema: Schema, rng: Random) -> int:
    """A whole number within the bounds, of the step asked for."""
    low, high, without_low, without_high = _bounds(schema)
    least, most = math.ceil(low), math.floor(high)
    least += without_low and least == low
    most -= without_high and most == high
    step = schema.get("multipleOf", 1)
    if not isinstance(step, int) or step <= 1:
        return rng.randint(least, max(least, most))
    first, last = -(-least // step), most // step
    return step * rng.randint(first, max(first, last))


def _number(schema: Schema, rng: Random) -> float:
    """A number within the bounds, of the step asked for."""
    low, high, without_low, without_high = _bounds(schema)
    step = schema.get("multipleOf")
    if step:
        return _multiple(step, low, high, rng)
    value = round(rng.uniform(low, high), 2)
    if low <= value <= high and not (
        (without_low and value == low) or (without_high and value == high)
    ):
        return value
    return (low + high) / 2


def _multiple(step: float, low: float, high: float, rng: Random) -> float:
    """Only what divides without a rest in floating point, as validators divide."""
    first, last = math.ceil(low / step), math.floor(high / step)
    for _ in range(100):
        value = round(step * rng.randint(first, max(first, last)), 12)
        if low <= value <= high and (value / step).is_integer():
            return value
    return step * first


def _bounds(schema: Schema) -> tuple[float, float, bool, bool]:
    """Least and most, and whether each is itself left out."""
    low, without_low = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, without_high = _bound(schema, "maximum", "exclusiveMaximum", min)
    if low is None:
        low = 0 if high is None else high - 100
    return low, low + 100 if high is None else high, without_low, without_high


def _bound(schema: Schema, name: str, exclusive_name: str, stricter: Any) -> tuple[Any, bool]:
    """The bound, None without one, and whether it is itself left out."""
    bound, exclusive = schema.get(name), schema.get(exclusive_name)
    if isinstance(exclusive, bool) or exclusive is None:  # a flag in draft 4, a number since
        return bound, exclusive is True and bound is not None
    if bound is None or stricter(bound, exclusive) == exclusive:
        return exclusive, True
    return bound, False
