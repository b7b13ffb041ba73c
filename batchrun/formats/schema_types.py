"""JSON Schema as types of columns, and JSON text as their values: each is exact, or null.

Strings, whole numbers (int64), numbers (double), booleans, arrays and objects with named
properties have types of their own. What none of these holds is JSON text: a choice between kinds,
an object whose properties have no names, and the place where a schema contains itself.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from msgspec import Struct

from batchrun.formats.json_text import is_bool

_MAX_DIGITS = 300  # of a whole number that is read as one
_MAX_NODES = 10_000  # of a schema with all that it refers to: what is beyond is JSON text
_FLAT = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "json": pa.string(),
    "null": pa.string(),  # nothing but null: as JSON text
}


class SchemaType(Struct, frozen=True):
    """What a value is stored as."""

    kind: str  # of `_FLAT`, array or object
    item: "SchemaType | None" = None  # of an array
    fields: "tuple[tuple[str, SchemaType], ...]" = ()  # of an object, at least one

    @property
    def arrow(self) -> pa.DataType:
        if self.item is not None:
            return pa.list_(self.item.arrow)
        if self.fields:
            return pa.struct([(name, one.arrow) for name, one in self.fields])
        return _FLAT[self.kind]


JSON = SchemaType("json")
_NULL, _INTEGER, _NUMBER = SchemaType("null"), SchemaType("integer"), SchemaType("number")


def root_type(schema: Any) -> SchemaType:
    """The type of a whole answer; of an object it has the named properties alone."""
    try:
        found = _Reading(schema).type_of(schema, frozenset("#"), is_root=True)
    except RecursionError:
        return JSON
    return JSON if found is None or found == _NULL else found


class _Reading:
    """Reads one schema; null stands for one that says nothing about the kind of its values."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._nodes = 0

    def type_of(
        self, schema: Any, inside: frozenset[str], *, is_root: bool = False
    ) -> SchemaType | None:
        """`inside`: the references that led here."""
        self._nodes += 1
        if not isinstance(schema, dict):
            return None
        if self._nodes > _MAX_NODES:
            return JSON
        found = self._own(schema, inside, is_root=is_root)
        if "$ref" in schema or "$dynamicRef" in schema:
            referred = self._referred(schema.get("$ref"), inside, is_root=is_root)
            found = _both(found, referred)
        for one in _listed(schema.get("allOf")):
            found = _both(found, self.type_of(one, inside, is_root=is_root))
        for word in ("anyOf", "oneOf"):
            if _listed(schema.get(word)):
                options = [self.type_of(one, inside) for one in schema[word]]
                found = _both(found, _any_of(options))
        return found

    def _referred(
        self, reference: Any, inside: frozenset[str], *, is_root: bool
    ) -> SchemaType | None:
        if not isinstance(reference, str) or reference in inside:
            return JSON
        target = self._root
        for word in reference.split("/")[1:] if reference.startswith("#/") else [reference]:
            name = unquote(word).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
                target = target[int(name)]
            else:
                return JSON  # another document, or nowhere
        return self.type_of(target, inside | {reference}, is_root=is_root)

    def _own(
        self, schema: Mapping[str, Any], inside: frozenset[str], *, is_root: bool
    ) -> SchemaType | None:
        """As its own words say, without those that refer to other schemas."""
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]
        if not kinds and "properties" in schema:
            kinds = ["object"]
        if not kinds and ("items" in schema or "prefixItems" in schema):
            kinds = ["array"]
        found: list[SchemaType | None] = []
        for kind in kinds:
            if kind == "object":
                found.append(self._object(schema, inside, is_root=is_root))
            elif kind == "array":
                found.append(SchemaType("array", self._item(schema, inside)))
            else:
                found.append(SchemaType(kind) if kind in _FLAT else JSON)
        by_kind = _any_of(found)
        values = [schema["const"]] if "const" in schema else _listed(schema.get("enum"))
        if values and by_kind in (None, JSON):
            return _any_of(map(_type_of_value, values))
        return by_kind

    def _object(
        self, schema: Mapping[str, Any], inside: frozenset[str], *, is_root: bool
    ) -> SchemaType:
        named = schema.get("properties")
        others = schema.get("additionalProperties") or schema.get("patternProperties")
        if not isinstance(named, dict) or not named or (others and not is_root):
            return JSON
        # DuckDB takes names that differ in case alone for the same.
        usable = all(map(_is_name, named)) and len({name.lower() for name in named}) == len(named)
        if not usable and not is_root:
            return JSON
        fields = [
            (name, self.type_of(one, inside) or JSON)
            for name, one in named.items()
            if _is_text(name)
        ]
        return SchemaType("object", fields=tuple(fields)) if fields else JSON

    def _item(self, schema: Mapping[str, Any], inside: frozenset[str]) -> SchemaType:
        items = schema.get("items")
        first = [*_listed(schema.get("prefixItems")), *_listed(items)]
        others = [items] if isinstance(items, dict) else []
        return _any_of([self.type_of(one, inside) for one in (*first, *others)]) or JSON


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_name(name: str) -> bool:
    """Whether a field of a struct may have it: DuckDB knows none that is empty."""
    return _is_text(name) and bool(name) and "\0" not in name


def _is_text(text: str) -> bool:
    """Whether it is UTF-8: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_of_value(value: Any) -> SchemaType:
    kinds: Sequence[tuple[type, str]] = ((str, "string"), (bool, "boolean"), (int, "integer"))
    for python, kind in (*kinds, (float, "number")):
        if isinstance(value, python):
            return SchemaType(kind)
    return _NULL if value is None else JSON


def _any_of(options: Iterable[SchemaType | None]) -> SchemaType | None:
    """What holds each of them; null where all say nothing, or there are none."""
    options = set(options)
    found = options - {_NULL}
    if found == {_INTEGER, _NUMBER}:
        return _NUMBER
    if len(found) > 1:
        return JSON
    return next(iter(found), _NULL if options else None)


def _both(one: SchemaType | None, other: SchemaType | None) -> SchemaType | None:
    """What holds values that are both."""
    if one is None or other is None:
        return one or other
    if JSON in (one, other):
        return other if one == JSON else one
    if {one, other} == {_INTEGER, _NUMBER}:
        return _INTEGER
    if one.fields and other.fields:
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = _both(fields.get(name), kind) or JSON
        if len({name.lower() for name in fields}) == len(fields):
            return SchemaType("object", fields=tuple(fields.items()))
    if one.item and other.item:
        return SchemaType("array", _both(one.item, other.item))
    return one if one == other else JSON


class _Number(Struct, frozen=True):
    """A number as it is written, where a Python number would not say that."""

    text: str


class _NoJson(Struct, frozen=True):
    """NaN and Infinity, which Python's reader takes."""


def read_json(text: str) -> Any:
    """The value, with numbers as written, for `fitted`. Raises `ValueError` where it is no JSON."""
    try:
        return json.loads(
            text,
            parse_int=lambda word: int(word) if len(word) <= _MAX_DIGITS else _Number(word),
            parse_float=_Number,
            parse_constant=lambda _: _NoJson(),
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def fitted(value: Any, kind: SchemaType, misfit: Callable[[], object]) -> Any:
    """The value as its type holds it; null where it does not, and `misfit` is called."""
    if value is None:
        return None
    if kind.item is not None and isinstance(value, list):
        return [fitted(one, kind.item, misfit) for one in value]
    if kind.fields and isinstance(value, dict):
        return {name: fitted(value.get(name), one, misfit) for name, one in kind.fields}
    found = _FITTED[kind.kind](value) if kind.kind in _FITTED else None
    if found is None:
        misfit()
    return found


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and _is_text(value) else None


def _boolean(value: Any) -> bool | None:
    return value if is_bool(value) else None


def _integer(value: Any) -> int | None:
    if isinstance(value, _Number) and abs(float(value.text)) <= 2**63:
        exact = _decimal(value.text)
        value = int(exact) if exact is not None and exact == exact.to_integral_value() else None
    if not isinstance(value, int) or is_bool(value):
        return None
    return value if -(2**63) <= value < 2**63 else None


def _double(value: Any) -> float | None:
    if isinstance(value, int) and not is_bool(value):
        try:
            return float(value) if int(float(value)) == value else None
        except OverflowError:
            return None
    if not isinstance(value, _Number):
        return None
    number = float(value.text)
    is_lost = number == 0 and any(
        digit in "123456789" for digit in value.text.lower().split("e")[0]
    )
    return number if math.isfinite(number) and not is_lost else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        return None


def _json(value: Any) -> str | None:
    try:
        return _written(value)
    except (ValueError, RecursionError):
        return None


def _written(value: Any) -> str:
    """As JSON on one line, numbers as they were. Raises `ValueError` where it is none."""
    if isinstance(value, dict):
        pairs = (f"{_written(name)}: {_written(one)}" for name, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, _Number):
        return value.text
    if isinstance(value, _NoJson):
        raise ValueError("no JSON")  # noqa: TRY004 - the caller asks for a value
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not _is_text(value))


_FITTED: Mapping[str, Callable[[Any], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _double,
    "boolean": _boolean,
    "json": _json,
    "null": _json,
}
