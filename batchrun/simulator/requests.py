"""A request body, read and checked as the API checks it: fields, input, tools and schemas.

`read_body` and then `check_request` raise `ApiError` in the API's own words for what it would not
take. The key of a body tells which requests are equal: the SHA-256 of the body as JSON in UTF-8
without spaces, keys sorted at every level, `stream` and `background` left out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.simulator.counting.input_tokens import input_tokens
from batchrun.simulator.errors import (
    ApiError,
    check_type,
    is_of_type,
    missing,
    unknown_model,
    wrong_value,
)

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode
_LOGPROBS = "message.output_text.logprobs"
_TRANSPORT = ("stream", "background")
# o1, gpt-5.1, gpt-6.1-terra and their like, of any vendor prefix; the chat variants do not reason
_REASONING_MODEL = re.compile(r"(^|/)(o\d|gpt-([5-9]|1\d)(?!\d|.*chat))")
_ROLES = ("assistant", "system", "developer", "user")
_TYPES: dict[str, tuple[type, ...]] = {
    "an object": (dict,),
    "a string": (str,),
    "an array": (list,),
    "a boolean": (bool,),
    "an integer": (int,),
    "a decimal": (int, float),
    "one of a string or object": (str, dict),
    "one of a string or array of objects": (str, list),
}
_NAMES = {
    "an object": "access_programs background_options image metadata moderation prompt "
    "prompt_cache_options reasoning stream_options text",
    "a string": "model previous_response_id prompt_cache_key prompt_cache_retention "
    "safety_identifier service_tier truncation user",
    "an array": "context_management include tools",
    "a boolean": "background parallel_tool_calls store stream",
    "an integer": "max_output_tokens max_tool_calls top_logprobs",
    "a decimal": "frequency_penalty presence_penalty temperature top_p",
    "one of a string or object": "conversation tool_choice",
    "one of a string or array of objects": "input instructions",
}
_PARAMETERS = {name: expected for expected, names in _NAMES.items() for name in names.split()}
_COUNTED_NAMES = (
    "conversation input instructions model parallel_tool_calls previous_response_id reasoning text "
    "tool_choice tools truncation"
)
_COUNTED = {
    "personality": "a string",
    **{name: _PARAMETERS[name] for name in _COUNTED_NAMES.split()},
}
_COMPACTED_NAMES = (
    "image input instructions model previous_response_id prompt_cache_key prompt_cache_options "
    "prompt_cache_retention service_tier"
)
_COMPACTED = {name: _PARAMETERS[name] for name in _COMPACTED_NAMES.split()}
_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_RANGES: dict[str, tuple[float, float]] = {
    "frequency_penalty": (-2, 2),
    "max_output_tokens": (16, inf),
    "max_tool_calls": (1, inf),
    "presence_penalty": (-2, 2),
    "temperature": (0, 2),
    "top_logprobs": (0, 20),
    "top_p": (0, 1),
}
_WORDS: dict[str, tuple[str, ...]] = {
    "service_tier": ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"),
    "truncation": ("auto", "disabled"),
    "prompt_cache_retention": ("in_memory", "24h"),
    "reasoning.effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "reasoning.summary": ("auto", "concise", "detailed"),
    "text.verbosity": ("low", "medium", "high"),
}

_SCHEMA_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
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


class RequestBody(Struct, frozen=True):
    """The JSON object of a request, not yet checked."""

    data: bytes  # as it came
    fields: dict[str, Any]
    key: bytes  # 32 bytes; as hex in `/stats`
    input_tokens: int


class CheckedRequest(Struct, frozen=True):
    """A request that will be answered."""

    data: bytes  # as it came
    key: bytes
    fields: dict[str, Any]  # without nulls
    model: str
    input_tokens: int
    reasons: bool  # the model thinks before it answers


def read_body(data: bytes) -> RequestBody:
    """The JSON object in a request. Raises `ApiError`."""
    try:
        fields = _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        fields = _decode_leniently(data)
    if not isinstance(fields, dict):
        raise _unreadable("it is not a JSON object")
    meant = fields
    if any(name in fields for name in _TRANSPORT):
        meant = {name: value for name, value in fields.items() if name not in _TRANSPORT}
    try:
        canonical = _encode(meant)
    except (OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise _unreadable(str(error)) from error
    tokens = input_tokens(meant, canonical)
    return RequestBody(data, fields, sha256(canonical).digest(), tokens)


def check_request(body: RequestBody, models: tuple[str, ...] = ()) -> CheckedRequest:
    """The request, if the API would take it. Raises `ApiError`."""
    _check_types(body.fields, _PARAMETERS)
    fields = {name: value for name, value in body.fields.items() if value is not None}
    model = _check_model(fields, models)
    _check_required(fields)
    _check_words(fields)
    _check_background(fields)
    _check_input(fields.get("input"))
    _check_metadata(fields.get("metadata", {}))
    try:
        _check_tools(fields)
        _check_text(fields)
    except RecursionError as error:
        raise ApiError("Invalid schema: it is nested too deeply.") from error
    effort = fields.get("reasoning", {}).get("effort")
    is_reasoning_model = _REASONING_MODEL.search(model) is not None
    if is_reasoning_model and effort != "none":
        _refuse_sampling(fields)
    return CheckedRequest(
        data=body.data,
        key=body.key,
        fields=fields,
        model=model,
        input_tokens=body.input_tokens,
        reasons=(is_reasoning_model or "reasoning" in fields) and effort != "none",
    )


def count_tokens(body: RequestBody) -> int:
    """The count that `POST /v1/responses/input_tokens` answers. Raises `ApiError`."""
    _check_types(body.fields, _COUNTED)
    _check_input(body.fields.get("input"))
    return body.input_tokens


def check_compaction(body: RequestBody, models: tuple[str, ...] = ()) -> None:
    """Raises `ApiError` for what `POST /v1/responses/compact` would not take."""
    _check_types(body.fields, _COMPACTED)
    _check_model(body.fields, models)
    _check_input(body.fields.get("input"))


def logprobs_asked(fields: dict[str, Any]) -> int | None:
    """How many alternatives to give for each token of a text; None: no logprobs at all."""
    top: int = fields.get("top_logprobs", 0)
    return top if top or _LOGPROBS in fields.get("include", ()) else None


def _decode_leniently(data: bytes) -> Any:
    """What msgspec refuses and the API takes: lone surrogates, which become `?`."""
    try:
        value = json.loads(data.decode())
        return _decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise _unreadable("what was sent is not valid JSON") from error


def _unreadable(why: str) -> ApiError:
    return ApiError(f"We could not parse the JSON body of your request: {why}.")


def _check_types(fields: dict[str, Any], known: Mapping[str, str]) -> None:
    for name, value in fields.items():
        expected = known.get(name)
        if expected is None and name in _MOVED:
            message = (
                f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved "
                f"to '{_MOVED[name]}'."
            )
            raise ApiError(message, name, "unsupported_parameter")
        if expected is None:
            raise ApiError(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        if value is not None:
            check_type(name, value, expected, *_TYPES[expected])
            if name in _RANGES:
                _check_range(name, value, *_RANGES[name])


def _check_range(name: str, value: float, least: float, most: float) -> None:
    what = "integer" if isinstance(value, int) else "decimal"
    if value < least:
        word, end, bound, sign = "below minimum", "below_min", least, ">="
    elif value > most:
        word, end, bound, sign = "above maximum", "above_max", most, "<="
    else:
        return
    message = (
        f"Invalid '{name}': {what} {word} value. Expected a value {sign} {bound}, but got {value} "
        "instead."
    )
    raise ApiError(message, name, f"{what}_{end}_value")


def _check_model(fields: dict[str, Any], models: tuple[str, ...]) -> str:
    """The model, which must be one of `models` where these are given."""
    model: str | None = fields.get("model")
    if not model:
        raise missing("model")
    if models and model not in models:
        raise unknown_model(model)
    return model


def _check_required(fields: dict[str, Any]) -> None:
    # `prompt` and stored context bring an input of their own
    if "input" not in fields and not any(
        fields.get(name) for name in ("prompt", "previous_response_id", "conversation")
    ):
        raise missing("input")
    if fields.get("previous_response_id") and fields.get("conversation"):
        message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'."
        raise ApiError(message, code="mutually_exclusive_parameters")


def _check_words(fields: dict[str, Any]) -> None:
    for path, known in _WORDS.items():
        name, _, inner = path.partition(".")
        value = fields.get(name, {}).get(inner) if inner else fields.get(name)
        if value is not None:
            check_type(path, value, "a string", str)
            if value not in known:
                raise wrong_value(path, value, known)


def _check_background(fields: dict[str, Any]) -> None:
    if fields.get("background") and fields.get("store") is False:
        message = "Background mode requires 'store' to be true."
        raise ApiError(message, "store", "unsupported_value")


def _check_input(value: Any) -> None:
    if not isinstance(value, list):
        return
    for index, item in enumerate(value):
        where = f"input[{index}]"
        check_type(where, item, "an object", dict)
        if item.get("type", "message") != "message":
            continue
        if "role" not in item:
            raise missing(f"{where}.role")
        if item["role"] not in _ROLES:
            raise wrong_value(f"{where}.role", item["role"], _ROLES)
        content = item.get("content")
        if content is None:
            raise missing(f"{where}.content")
        check_type(f"{where}.content", content, "one of a string or array of objects", str, list)


_LONGEST_METADATA = 512  # characters of a value


def _check_metadata(metadata: dict[str, Any]) -> None:
    if len(metadata) > 16:
        message = (
            "Invalid 'metadata': too many properties. Expected at most 16, but got "
            f"{len(metadata)} instead."
        )
        raise ApiError(message, "metadata", "object_above_max_properties")
    for name, value in metadata.items():
        check_type(f"metadata.{name}", value, "a string", str)
        if len(value) > _LONGEST_METADATA:
            message = (
                f"Invalid 'metadata.{name}': string too long. Expected a string with maximum "
                f"length {_LONGEST_METADATA}, but got a string with length {len(value)} instead."
            )
            raise ApiError(message, f"metadata.{name}", "string_above_max_length")


def _check_text(fields: dict[str, Any]) -> None:
    format_ = fields.get("text", {}).get("format")
    if format_ is None:
        return
    _check_format(format_)
    if format_["type"] == "json_object":
        words = _encode([fields.get("input"), fields.get("instructions")])
        if b"json" not in words.lower():
            message = (
                "Response input messages must contain the word 'json' in some form to use "
                "'text.format' of type 'json_object'."
            )
            raise ApiError(message, "input")


def _refuse_sampling(fields: dict[str, Any]) -> None:
    for name in ("temperature", "top_p"):
        if name in fields:
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise ApiError(message, name, "unsupported_parameter")
    if logprobs_asked(fields) is not None:
        message = "logprobs are not supported with reasoning models."
        name = "include" if _LOGPROBS in fields.get("include", ()) else "top_logprobs"
        raise ApiError(message, name, "unsupported_parameter")


def _check_tools(fields: dict[str, Any]) -> None:
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


def _check_format(format_: Any) -> None:
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
    if not _FUNCTION_NAME.fullmatch(name):
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
        yield f"{schema!r} is not a schema."
        return
    for keyword, value in schema.items():
        if keyword not in _KEYWORDS:
            continue
        if not is_of_type(value, _KEYWORDS[keyword]):
            yield f"{value!r} is not valid for '{keyword}'."
        elif keyword == "type":
            for name in value if isinstance(value, list) else [value]:
                if name not in _SCHEMA_TYPES:
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
