"""A request body, read and checked as the API checks it.

`read_body` and then `check_request` raise `ApiError` in the API's own words for what it would not
take. The key of a body tells which requests are equal: the SHA-256 of the body as JSON in UTF-8
without spaces, keys sorted at every level, `stream` and `background` left out.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.simulator import tools
from batchrun.simulator.errors import ApiError, check_type, missing, unknown_model, wrong_value

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode
_TRANSPORT = ("stream", "background")
_REASONING_MODEL = re.compile(r"(^|/)(o\d|gpt-5)")
_BYTES_A_TOKEN = 4
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
    "a decimal": "temperature top_p",
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
_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_RANGES: dict[str, tuple[float, float]] = {
    "max_output_tokens": (16, inf),
    "max_tool_calls": (1, inf),
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


class RequestBody(Struct, frozen=True):
    """The JSON object of a request, not yet checked."""

    fields: dict[str, Any]
    key: bytes  # 32 bytes; as hex in `/stats`
    input_tokens: int


class CheckedRequest(Struct, frozen=True):
    """A request that will be answered."""

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
        raise _unreadable("it is no JSON object")
    meant = fields
    if any(name in fields for name in _TRANSPORT):
        meant = {name: value for name, value in fields.items() if name not in _TRANSPORT}
    try:
        canonical = _encode(meant)
    except (OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise _unreadable(str(error)) from error
    input_tokens = len(canonical) // _BYTES_A_TOKEN + 3
    return RequestBody(fields, sha256(canonical).digest(), input_tokens)


def check_request(body: RequestBody, models: tuple[str, ...] = ()) -> CheckedRequest:
    """The request, if the API would take it. Raises `ApiError`."""
    _check_types(body.fields, _PARAMETERS)
    fields = {name: value for name, value in body.fields.items() if value is not None}
    _check_required(fields)
    _check_words(fields)
    _check_background(fields)
    model = fields["model"]
    if models and model not in models:
        raise unknown_model(model)
    _check_input(fields.get("input"))
    _check_metadata(fields.get("metadata", {}))
    try:
        tools.check_tools(fields)
        _check_text(fields)
    except RecursionError as error:
        raise ApiError("Invalid schema: it is nested too deeply.") from error
    effort = fields.get("reasoning", {}).get("effort")
    is_reasoning_model = _REASONING_MODEL.search(model) is not None
    if is_reasoning_model and effort != "none":
        _refuse_sampling(fields)
    return CheckedRequest(
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


def _check_required(fields: dict[str, Any]) -> None:
    if not fields.get("model"):
        raise missing("model")
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
    if not fields.get("background"):
        return
    if fields.get("store") is False:
        message = "Background mode requires 'store' to be true."
        raise ApiError(message, "store", "unsupported_value")
    if fields.get("stream"):
        message = "Unsupported value: this simulator does not stream what it does in background."
        raise ApiError(message, "stream", "unsupported_value")


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


def _check_metadata(metadata: dict[str, Any]) -> None:
    if len(metadata) > 16:
        message = (
            "Invalid 'metadata': too many properties. Expected at most 16, but got "
            f"{len(metadata)} instead."
        )
        raise ApiError(message, "metadata", "object_above_max_properties")
    for name, value in metadata.items():
        check_type(f"metadata.{name}", value, "a string", str)


def _check_text(fields: dict[str, Any]) -> None:
    format_ = fields.get("text", {}).get("format")
    if format_ is None:
        return
    tools.check_format(format_)
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
