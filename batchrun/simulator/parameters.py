"""The parameters of a request: which there are, and what each may hold.

`check` raises `ApiError` in the API's own words for what it would not take.
"""

from typing import Any

from batchrun.simulator.api_errors import ApiError, missing, unsupported, wrong_type, wrong_value
from batchrun.simulator.json_types import is_a

_OBJECT = ("an object", dict)
_TEXT = ("a string", str)
_LIST = ("an array", list)
_FLAG = ("a boolean", bool)
_WHOLE = ("an integer", int)
_NUMBER = ("a decimal", int, float)
_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "access_programs": _OBJECT,
    "background": _FLAG,
    "background_options": _OBJECT,
    "context_management": _LIST,
    "conversation": ("one of a string or object", str, dict),
    "image": _OBJECT,
    "include": _LIST,
    "input": ("one of a string or array of objects", str, list),
    "instructions": ("one of a string or array of objects", str, list),
    "max_output_tokens": _WHOLE,
    "max_tool_calls": _WHOLE,
    "metadata": _OBJECT,
    "model": _TEXT,
    "moderation": _OBJECT,
    "parallel_tool_calls": _FLAG,
    "previous_response_id": _TEXT,
    "prompt": _OBJECT,
    "prompt_cache_key": _TEXT,
    "prompt_cache_options": _OBJECT,
    "prompt_cache_retention": _TEXT,
    "reasoning": _OBJECT,
    "safety_identifier": _TEXT,
    "service_tier": _TEXT,
    "store": _FLAG,
    "stream": _FLAG,
    "stream_options": _OBJECT,
    "temperature": _NUMBER,
    "text": _OBJECT,
    "tool_choice": ("one of a string or object", str, dict),
    "tools": _LIST,
    "top_logprobs": _WHOLE,
    "top_p": _NUMBER,
    "truncation": _TEXT,
    "user": _TEXT,
}
_COUNTED = {
    "personality": _TEXT,
    **{
        name: _PARAMETERS[name]
        for name in (
            "conversation",
            "input",
            "instructions",
            "model",
            "parallel_tool_calls",
            "previous_response_id",
            "reasoning",
            "text",
            "tool_choice",
            "tools",
            "truncation",
        )
    },
}
_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_RANGES: dict[str, tuple[float, float | None]] = {
    "max_output_tokens": (16, None),
    "max_tool_calls": (1, None),
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


def check(fields: dict[str, Any]) -> None:
    """Raises `ApiError`."""
    value: Any
    for name, value in fields.items():
        kind = _PARAMETERS.get(name)
        if kind is None:
            raise _unknown_parameter(name)
        if value is None:
            continue
        expected, *types = kind
        if not is_a(value, tuple(types)):
            raise wrong_type(name, expected, value)
        bounds = _RANGES.get(name)
        if bounds is not None:
            _check_range(name, value, *bounds)
    if not fields.get("model"):
        raise missing("model")
    # `prompt` and stored context bring an input of their own
    if fields.get("input") is None and not any(
        fields.get(name) for name in ("prompt", "previous_response_id", "conversation")
    ):
        raise missing("input")
    if fields.get("previous_response_id") and fields.get("conversation"):
        raise ApiError(
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'.",
            code="mutually_exclusive_parameters",
        )
    _check_words(fields)
    if fields.get("background"):
        _check_background(fields)


def check_count(fields: dict[str, Any]) -> None:
    """Raises `ApiError` for what a request to count input tokens would not take."""
    for name, value in fields.items():
        kind = _COUNTED.get(name)
        if kind is None:
            raise _unknown_parameter(name)
        expected, *types = kind
        if value is not None and not is_a(value, tuple(types)):
            raise wrong_type(name, expected, value)


def _check_background(fields: dict[str, Any]) -> None:
    if fields.get("store") is False:
        raise unsupported(
            "store", "Background mode requires 'store' to be true.", "unsupported_value"
        )
    if fields.get("stream"):
        raise unsupported(
            "stream",
            "Unsupported value: this simulator does not stream what it does in background.",
            "unsupported_value",
        )


def _unknown_parameter(name: str) -> ApiError:
    if name in _MOVED:
        return unsupported(
            name,
            f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved to "
            f"'{_MOVED[name]}'.",
        )
    return unsupported(name, f"Unknown parameter: '{name}'.", "unknown_parameter")


def _check_range(name: str, value: float, least: float, most: float | None) -> None:
    what = "integer" if isinstance(value, int) else "decimal"
    if value < least:
        word, bound, sign = "below minimum", least, ">="
    elif most is not None and value > most:
        word, bound, sign = "above maximum", most, "<="
    else:
        return
    raise ApiError(
        f"Invalid '{name}': {what} {word} value. Expected a value {sign} {bound}, but got {value} "
        "instead.",
        param=name,
        code=f"{what}_{word.split()[0]}_{'min' if sign == '>=' else 'max'}_value",
    )


def _check_words(fields: dict[str, Any]) -> None:
    for path, known in _WORDS.items():
        name, _, inner = path.partition(".")
        value = fields.get(name)
        if inner and value is not None:
            value = value.get(inner)
        if value is None:
            continue
        if not isinstance(value, str):
            raise wrong_type(path, "a string", value)
        if value not in known:
            raise wrong_value(path, value, known)
