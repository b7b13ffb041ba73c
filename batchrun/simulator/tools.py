"""`tools`, `tool_choice` and `text.format`: checked as the API does, and what may be called.

Functions are chosen among here; of the hosted tools only web search is used (see `replies`).
"""

import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from batchrun.simulator.errors import ApiError, check_type, is_of_type, missing, wrong_value

_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = ("none", "auto", "required")
_FORMATS = ("text", "json_schema", "json_object")
_SCHEMAS_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_SCHEMAS_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")
_LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
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
    "uniqueItems": (bool,),
    **dict.fromkeys(_LENGTHS, (int,)),
    **dict.fromkeys(_SCHEMAS_BY_NAME, (dict,)),
    **dict.fromkeys(_SCHEMAS_LISTED, (list,)),
}


class ToolChoice(Struct, frozen=True):
    """What `tool_choice` allows and requires."""

    functions: tuple[dict[str, Any], ...]  # that may be called; empty: text
    must: bool  # one at least
    single: bool  # one at most


def check_tools(fields: dict[str, Any]) -> None:
    """Raises `ApiError` for tools or a choice among them that the API would not take."""
    tools = fields.get("tools", [])
    for index, tool in enumerate(tools):
        _check_tool(tool, f"tools[{index}]")
    choice = fields.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in _MODES:
            raise wrong_value("tool_choice", choice, _MODES)
        if choice == "required" and not tools:
            message = "Tool choice 'required' must be specified with 'tools' parameter."
            raise ApiError(message, "tool_choice")
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
        for index, tool in enumerate(allowed):
            where = f"tool_choice.tools[{index}]"
            check_type(where, tool, "an object", dict)
            if tool.get("type") == "function":
                _check_named(tool, tools, where)


def choose_functions(fields: dict[str, Any]) -> ToolChoice:
    """Which functions may be called, whether one must be, and whether several may be."""
    functions = [tool for tool in fields.get("tools", []) if tool["type"] == "function"]
    choice = fields.get("tool_choice", "auto")
    single = fields.get("parallel_tool_calls") is False
    must = choice == "required"
    if choice == "none":
        functions = []
    elif isinstance(choice, dict):
        names = []
        if choice["type"] == "function":
            names = [choice["name"]]
            must = single = True
        elif choice["type"] == "allowed_tools":
            names = [tool.get("name") for tool in choice["tools"]]
            must = choice["mode"] == "required"
        functions = [tool for tool in functions if tool["name"] in names]
    return ToolChoice(tuple(functions), must, single)


def check_format(format_: Any) -> None:
    """Raises `ApiError` for a `text.format` that the API would not take."""
    where = "text.format"
    check_type(where, format_, "an object", dict)
    if "type" not in format_:
        raise missing(f"{where}.type")
    if format_["type"] not in _FORMATS:
        raise wrong_value(f"{where}.type", format_["type"], _FORMATS)
    if format_["type"] == "json_schema":
        _check_name(format_.get("name"), f"{where}.name")
        if format_.get("schema") is None:
            raise missing(f"{where}.schema")
        _check_schema(format_["schema"], f"response_format '{format_['name']}'", f"{where}.schema")


def _check_tool(tool: Any, where: str) -> None:
    check_type(where, tool, "an object", dict)
    if "type" not in tool:
        raise missing(f"{where}.type")
    check_type(f"{where}.type", tool["type"], "a string", str)
    if tool["type"] != "function":
        return
    _check_name(tool.get("name"), f"{where}.name")
    for name, expected, type_ in (("description", "a string", str), ("strict", "a boolean", bool)):
        if tool.get(name) is not None:
            check_type(f"{where}.{name}", tool[name], expected, type_)
    if tool.get("parameters") is not None:
        _check_schema(tool["parameters"], f"function '{tool['name']}'", f"{where}.parameters")


def _check_name(name: Any, where: str) -> None:
    if name is None:
        raise missing(where)
    check_type(where, name, "a string", str)
    if not _NAME.fullmatch(name):
        message = (
            f"Invalid '{where}': string does not match pattern. Expected a string that matches "
            "the pattern '^[a-zA-Z0-9_-]+$', of 64 characters at most."
        )
        raise ApiError(message, where, "invalid_value")


def _check_named(choice: dict[str, Any], tools: list[dict[str, Any]], where: str) -> None:
    name = choice.get("name")
    if name is None:
        raise missing(f"{where}.name")
    if not any(tool["type"] == "function" and tool["name"] == name for tool in tools):
        message = f"Tool choice 'function' with name '{name}' not found in 'tools' parameter."
        raise ApiError(message, where)


def _check_schema(schema: Any, whose: str, where: str) -> None:
    """The root must be an object, and every keyword hold what JSON Schema lets it hold."""
    check_type(where, schema, "an object", dict)
    wrong: str | None
    if schema.get("type") != "object" and "$ref" not in schema:
        wrong = (
            f"schema must be a JSON Schema of 'type: \"object\"', got 'type: "
            f'"{schema.get("type")}"\'.'
        )
    else:
        wrong = next(_schema_errors(schema), None)
    if wrong:
        code = "invalid_function_parameters" if whose[0] == "f" else "invalid_json_schema"
        raise ApiError(f"Invalid schema for {whose}: {wrong}", where, code)


def _schema_errors(schema: Any) -> Iterator[str]:
    """What is wrong in a schema; a property may have a keyword's name, hence this walk."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield f"{schema!r} is no schema."
        return
    for keyword, value in schema.items():
        if keyword not in _KEYWORDS:
            continue
        if not is_of_type(value, _KEYWORDS[keyword]):
            yield f"{value!r} is not valid for '{keyword}'."
        elif keyword == "type":
            for name in value if isinstance(value, list) else [value]:
                if name not in _TYPES:
                    yield f"{name!r} is not valid under any of the given schemas."
        elif keyword == "required":
            if not all(isinstance(name, str) for name in value):
                yield f"{value!r} is not valid for 'required'."
        else:
            for part in _inner_schemas(keyword, value):
                yield from _schema_errors(part)


def _inner_schemas(keyword: str, value: Any) -> Iterator[Any]:
    """The schemas that a keyword holds."""
    if keyword in _SCHEMAS_BY_NAME:
        yield from value.values()
    elif keyword in _SCHEMAS_LISTED:
        yield from value
    elif keyword in _SCHEMAS:
        yield from value if isinstance(value, list) else (value,)
