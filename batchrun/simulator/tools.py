"""`tools`, `tool_choice` and `text.format`: judged as the API does, and what may be called.

Functions are chosen among here; of the hosted tools web search alone is used (see `search`).
"""

import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from batchrun.simulator.api_errors import ApiError, missing, wrong_type, wrong_value
from batchrun.simulator.json_types import is_a

_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = ("none", "auto", "required")
_FORMATS = ("text", "json_schema", "json_object")
_SCHEMAS_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_SCHEMAS_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")
_KEYWORDS: dict[str, tuple[type, ...]] = {
    "type": (str, list),
    "enum": (list,),
    "required": (list,),
    "items": (dict, bool, list),  # a list in drafts before 2020-12
    "additionalProperties": (dict, bool),
    "not": (dict, bool),
    "pattern": (str,),
    "format": (str,),
    "$ref": (str,),
    "minimum": (int, float),
    "maximum": (int, float),
    "exclusiveMinimum": (int, float, bool),  # a flag in draft 4
    "exclusiveMaximum": (int, float, bool),
    "multipleOf": (int, float),
    "minLength": (int,),
    "maxLength": (int,),
    "minItems": (int,),
    "maxItems": (int,),
    "minProperties": (int,),
    "maxProperties": (int,),
    "uniqueItems": (bool,),
    **dict.fromkeys(_SCHEMAS_BY_NAME, (dict,)),
    **dict.fromkeys(_SCHEMAS_LISTED, (list,)),
}


class Choice(Struct, frozen=True):
    """What `tool_choice` comes to."""

    functions: tuple[dict[str, Any], ...]  # that may be called; empty: text
    must: bool  # one at least
    single: bool  # one at most


def check(fields: dict[str, Any]) -> None:
    """Raises `ApiError` for tools or a choice among them that the API would not take."""
    tools = fields.get("tools") or []
    for place, tool in enumerate(tools):
        _check_tool(tool, f"tools[{place}]")
    choice = fields.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in _MODES:
            raise wrong_value("tool_choice", choice, _MODES)
        if choice == "required" and not tools:
            raise ApiError(
                "Tool choice 'required' must be specified with 'tools' parameter.",
                param="tool_choice",
            )
        return
    if "type" not in choice:
        raise missing("tool_choice.type")
    if choice["type"] == "function":
        _check_named(choice, tools, "tool_choice")
    elif choice["type"] == "allowed_tools":
        if choice.get("mode") not in ("auto", "required"):
            raise wrong_value("tool_choice.mode", choice.get("mode"), ("auto", "required"))
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not allowed:
            raise missing("tool_choice.tools")
        for place, tool in enumerate(allowed):
            if not isinstance(tool, dict):
                raise wrong_type(f"tool_choice.tools[{place}]", "an object", tool)
            if tool.get("type") == "function":
                _check_named(tool, tools, f"tool_choice.tools[{place}]")


def choose(fields: dict[str, Any]) -> Choice:
    """Which functions may be called, must one be, and may several be."""
    functions = [tool for tool in fields.get("tools") or [] if tool["type"] == "function"]
    choice = fields.get("tool_choice") or "auto"
    single = fields.get("parallel_tool_calls") is False
    must = choice == "required"
    if choice == "none":
        functions = []
    elif isinstance(choice, dict):
        if choice["type"] == "function":
            names = [choice["name"]]
            must = single = True
        elif choice["type"] == "allowed_tools":
            names = [tool.get("name") for tool in choice["tools"]]
            must = choice["mode"] == "required"
        else:
            names = []
        functions = [tool for tool in functions if tool["name"] in names]
    return Choice(tuple(functions), must, single)


def check_format(format_: object) -> None:
    """Raises `ApiError` for a `text.format` that the API would not take."""
    where = "text.format"
    if not isinstance(format_, dict):
        raise wrong_type(where, "an object", format_)
    if "type" not in format_:
        raise missing(f"{where}.type")
    if format_["type"] not in _FORMATS:
        raise wrong_value(f"{where}.type", format_["type"], _FORMATS)
    if format_["type"] == "json_schema":
        _check_name(format_.get("name"), f"{where}.name")
        if format_.get("schema") is None:
            raise missing(f"{where}.schema")
        _check_schema(format_["schema"], f"response_format '{format_['name']}'", f"{where}.schema")


def _check_tool(tool: object, where: str) -> None:
    if not isinstance(tool, dict):
        raise wrong_type(where, "an object", tool)
    if "type" not in tool:
        raise missing(f"{where}.type")
    if not isinstance(tool["type"], str):
        raise wrong_type(f"{where}.type", "a string", tool["type"])
    if tool["type"] != "function":
        return
    _check_name(tool.get("name"), f"{where}.name")
    for name, expected, kind in (
        ("description", "a string", str),
        ("strict", "a boolean", bool),
    ):
        if tool.get(name) is not None and not isinstance(tool[name], kind):
            raise wrong_type(f"{where}.{name}", expected, tool[name])
    if tool.get("parameters") is not None:
        _check_schema(tool["parameters"], f"function '{tool['name']}'", f"{where}.parameters")


def _check_name(name: object, where: str) -> None:
    if name is None:
        raise missing(where)
    if not isinstance(name, str):
        raise wrong_type(where, "a string", name)
    if not _NAME.fullmatch(name):
        raise ApiError(
            f"Invalid '{where}': string does not match pattern. Expected a string that matches "
            "the pattern '^[a-zA-Z0-9_-]+$', of 64 characters at most.",
            param=where,
            code="invalid_value",
        )


def _check_named(choice: dict[str, Any], tools: list[dict[str, Any]], where: str) -> None:
    name = choice.get("name")
    if name is None:
        raise missing(f"{where}.name")
    if not any(tool["type"] == "function" and tool["name"] == name for tool in tools):
        raise ApiError(
            f"Tool choice 'function' with name '{name}' not found in 'tools' parameter.",
            param=where,
        )


def _check_schema(schema: object, whose: str, where: str) -> None:
    """The root must be an object, and every keyword hold what JSON Schema lets it hold."""
    if not isinstance(schema, dict):
        raise wrong_type(where, "an object", schema)
    wrong: str | None
    if schema.get("type") != "object" and "$ref" not in schema:
        wrong = (
            f"schema must be a JSON Schema of 'type: \"object\"', got 'type: "
            f'"{schema.get("type")}"\'.'
        )
    else:
        wrong = next(_flaws(schema), None)
    if wrong:
        code = "invalid_function_parameters" if whose[0] == "f" else "invalid_json_schema"
        raise ApiError(f"Invalid schema for {whose}: {wrong}", param=where, code=code)


def _flaws(schema: object) -> Iterator[str]:
    """What is wrong in a schema; `properties` may be called as keywords are, hence this walk."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield f"{schema!r} is no schema."
        return
    keyword: str
    value: Any
    for keyword, value in schema.items():
        kinds = _KEYWORDS.get(keyword)
        if kinds is None:
            continue
        if not is_a(value, kinds):
            yield f"{value!r} is not valid for '{keyword}'."
        elif keyword == "type":
            names: list[Any] = value if isinstance(value, list) else [value]
            for name in names:
                if name not in _TYPES:
                    yield f"{name!r} is not valid under any of the given schemas."
        elif keyword == "required":
            if not all(isinstance(name, str) for name in value):
                yield f"{value!r} is not valid for 'required'."
        else:
            for part in _inner(keyword, value):
                yield from _flaws(part)


def _inner(keyword: str, value: Any) -> Iterator[Any]:
    """The schemas that a keyword holds."""
    if keyword in _SCHEMAS_BY_NAME:
        yield from value.values()
    elif keyword in _SCHEMAS_LISTED:
        yield from value
    elif keyword in _SCHEMAS:
        yield from value if isinstance(value, list) else (value,)
