"""Tools and tool choices as rows have them, to those of the Responses API.

Known shapes: Responses and chat completions (the `openai` package's types), Anthropic
(`input_schema`), and tools without a type, as xLAM and the Berkeley leaderboard have them, whose
parameters are no schema or one with the types of Python. `older`: as hash rule 2 had it.
"""

import re
from typing import Any

from batchrun.formats.json_text import shown
from batchrun.inputs.rows import RowProblem, decode
from batchrun.records import JsonObject

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")  # in a function's name
_MOST_NAME = 64  # letters of it
# The types of Python and Java as parameters name them; what is not here may be anything.
_TYPES = {
    "str": "string",
    "char": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "long": "integer",
    "float": "number",
    "number": "number",
    "double": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "dict": "object",
    "object": "object",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "none": "null",
    "null": "null",
}
_JSON_TYPES = frozenset(_TYPES.values())
# What holds further schemas: by name, and as such or in a list.
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_WITHIN = ("items", "additionalProperties", "anyOf", "oneOf", "allOf")


def read_structure(value: Any, name: str, what: str = "JSON") -> Any:
    """The value, read as JSON where it is text."""
    if type(value) is not str:
        return value
    try:
        return decode(value)
    except RowProblem as problem:
        raise RowProblem(f"`{name}` is text that holds no {what}: {problem.message}") from None


def flat_tools(tools: Any, name: str = "tools", *, older: bool = False) -> list[Any]:
    """Tools in the Responses shape; those that have it already stay as they are."""
    tools = read_structure(tools, name)
    if type(tools) is not list:
        raise RowProblem(f"`{name}` is {shown(tools)}; it must be a list of tools")
    return [_flat_tool(tool, f"{name}[{at}]", name, older=older) for at, tool in enumerate(tools)]


def _flat_tool(tool: Any, where: str, name: str, *, older: bool) -> Any:
    if type(tool) is not dict:
        raise RowProblem(f"{where} must be an object")
    if not older and name != "functions" and (own := tool_shape(tool)) is not None:
        return _from_anthropic(tool, where) if own == ANTHROPIC else from_xlam(tool, where)
    kind = tool.get("type", "function")
    inner = tool.get(kind) if kind in ("function", "custom") else None
    if name == "functions":
        kind, inner = "function", tool
    if type(inner) is not dict:
        return tool
    flat = {"type": kind, **inner}
    if kind == "function" and name != "tool_choice.tools":
        # Chat completions leave schemas loose by default, Responses make them strict.
        flat.setdefault("strict", False)
        if "parameters" in flat:
            flat["parameters"] = read_structure(flat["parameters"], f"{where}.parameters")
    form = flat.get("format") if kind == "custom" else None
    if type(form) is dict and type(form.get("grammar")) is dict:
        flat["format"] = {"type": "grammar", **form["grammar"]}
    return flat


def flat_choice(choice: Any, name: str = "tool_choice") -> Any:
    """A tool choice in the Responses shape."""
    if type(choice) is str:
        if not choice.lstrip().startswith("{"):
            return choice
        choice = read_structure(choice, name)
    if type(choice) is not dict:
        raise RowProblem(f"`{name}` must be text or an object")
    kind = choice.get("type", "function")
    inner = choice.get(kind) if type(kind) is str else None
    if type(inner) is not dict:
        return {"type": "function", **choice} if "name" in choice else choice
    if kind == "allowed_tools":
        tools = flat_tools(inner.get("tools", []), f"{name}.tools", older=True)
        inner = {**inner, "tools": tools}
    return {"type": kind, **inner}


ANTHROPIC, XLAM = "Anthropic", "xLAM or BFCL"  # in messages


def has_other_tools(tools: list[Any]) -> bool:
    """Whether a list that a template gives holds tools that are none of Responses as they are."""
    return any(
        tool_shape(tool) is not None or type(tool.get("function")) is dict
        for tool in tools
        if type(tool) is dict
    )


def tool_shape(tool: Any) -> str | None:
    """Whose shape a tool has, where it is neither that of Responses nor that of chat requests."""
    if type(tool) is not dict or type(tool.get("name")) is not str:
        return None
    if type(tool.get("input_schema")) in (dict, str) and "parameters" not in tool:
        return ANTHROPIC
    if tool.get("type") is None and type(tool.get("parameters")) in (dict, str):
        return XLAM
    return None


def _from_anthropic(tool: JsonObject, where: str) -> JsonObject:
    flat: JsonObject = {"type": "function", "name": tool["name"]}
    if tool.get("description") is not None:
        flat["description"] = tool["description"]
    schema = read_structure(tool["input_schema"], f"{where}.input_schema")
    return {**flat, "parameters": schema, "strict": tool.get("strict") is True}


def from_xlam(tool: JsonObject, where: str) -> JsonObject:
    """A tool with a name that the API takes; its parameters, if they are no schema, become one."""
    flat: JsonObject = {"type": "function", "name": fit_name(tool["name"])}
    if tool.get("description") is not None:
        flat["description"] = tool["description"]
    given = read_structure(tool["parameters"], f"{where}.parameters")
    return {**flat, "parameters": _schema(given), "strict": False}


def fit_name(name: str) -> str:
    """The name with `_` for what no function's name may hold."""
    return _UNFIT.sub("_", name)[:_MOST_NAME] or "_"


def _schema(given: Any) -> Any:
    """A JSON Schema of `{"a": {"type": "str, optional", "description": ..., "default": ...}}`."""
    if type(given) is not dict or not given:
        return given
    if type(given.get("properties")) is dict:
        return _with_json_types(given)
    if type(given.get("type")) is str and all(type(one) is not dict for one in given.values()):
        return given
    if not all(type(one) is dict for one in given.values()):
        return given
    properties = {name: _property(one) for name, one in given.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, one in given.items() if _is_required(one)],
    }


def _with_json_types(schema: Any) -> Any:
    """The schema with the names that JSON Schema has for types, at every depth."""
    if type(schema) is not dict:
        return schema
    made: JsonObject = {}
    for key, value in schema.items():
        if key == "type" and type(value) is str:
            made |= {key: value} if value in _JSON_TYPES else _type_schema(value)
        elif key in _NAMED and type(value) is dict:
            made[key] = {name: _with_json_types(inner) for name, inner in value.items()}
        elif key in _WITHIN:
            is_list = type(value) is list
            made[key] = [*map(_with_json_types, value)] if is_list else _with_json_types(value)
        else:
            made[key] = value
    return made


def _is_required(one: JsonObject) -> bool:
    said = str(one.get("type", "")).lower()
    is_optional = "optional" in said or one.get("required") is False
    return not is_optional and one.get("default") is None


def _property(one: JsonObject) -> JsonObject:
    kept = {name: value for name, value in one.items() if name not in ("type", "required")}
    kind = one.get("type")
    return {**_type_schema(kind), **kept} if type(kind) is str else {**one, **kept}


def _type_schema(text: str) -> JsonObject:
    """`str, optional`, `List[int]`, `Optional[Dict[str, float]]`, ... as a JSON Schema."""
    text = re.sub(r",\s*optional\s*$", "", text.strip(), flags=re.IGNORECASE).strip()
    outer, _, inner = text.partition("[")
    outer, inner = outer.strip().lower(), inner.removesuffix("]").strip()
    if outer == "optional" and inner:
        return _type_schema(inner)
    if outer == "union" or "|" in outer:
        parts = _split(inner) if outer == "union" else text.split("|")
        kinds = [_type_schema(part) for part in parts]
        known = [kind["type"] for kind in kinds if kind.keys() == {"type"}]
        return {"type": list(dict.fromkeys(known))} if len(known) == len(kinds) else {}
    kind = _TYPES.get(outer)
    if kind is None:
        return {}
    items = _type_schema(_split(inner)[0]) if kind == "array" and inner else {}
    return {"type": kind, **({"items": items} if items else {})}


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
