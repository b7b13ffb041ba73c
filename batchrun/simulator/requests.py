"""A request body read and judged as the API judges it.

`read_body` and then `judge` raise `ApiError` for what the API would not take. The key of a body
tells equal requests: the SHA-256 of the body as JSON in UTF-8 without spaces, keys sorted at every
level, `stream` and `background` left out.
"""

import json
import re
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.simulator import parameters, tools
from batchrun.simulator.api_errors import (
    ApiError,
    missing,
    unknown_model,
    unsupported,
    wrong_type,
    wrong_value,
)

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode
_TRANSPORT = ("stream", "background")
_REASONING_MODEL = re.compile(r"(^|/)(o\d|gpt-5)")
_BYTES_A_TOKEN = 4
_ROLES = ("assistant", "system", "developer", "user")


class Body(Struct, frozen=True):
    """The JSON object of a request, not yet judged."""

    fields: dict[str, Any]
    canonical: bytes
    key: bytes  # 32 bytes; as hex in `/stats`


class Asked(Struct, frozen=True):
    """A request that will be answered."""

    key: bytes
    fields: dict[str, Any]
    model: str
    input_tokens: int
    reasons: bool  # the model thinks before it answers


def read_body(data: bytes) -> Body:
    """The JSON object in a request. Raises `ApiError`."""
    try:
        fields = _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        fields = _decode_leniently(data)
    if not isinstance(fields, dict):
        raise _unreadable("it is no JSON object")
    try:
        canonical = _canonical(fields)
    except (OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise _unreadable(str(error)) from error
    return Body(fields, canonical, sha256(canonical).digest())


def judge(body: Body, models: tuple[str, ...] = ()) -> Asked:
    """What is asked for. Raises `ApiError`."""
    fields = body.fields
    parameters.check(fields)
    model = fields["model"]
    if models and model not in models:
        raise unknown_model(model)
    _check_input(fields.get("input"))
    _check_metadata(fields.get("metadata"))
    try:
        tools.check(fields)
        _check_text(fields)
    except RecursionError as error:
        raise ApiError("Invalid schema: it is nested too deeply.") from error
    effort = (fields.get("reasoning") or {}).get("effort")
    looks_so = _REASONING_MODEL.search(model) is not None
    if looks_so and effort != "none":
        _refuse_sampling(fields)
    return Asked(
        key=body.key,
        fields=fields,
        model=model,
        input_tokens=_input_tokens(body),
        reasons=(looks_so or fields.get("reasoning") is not None) and effort != "none",
    )


def count_tokens(body: Body) -> int:
    """What `POST /v1/responses/input_tokens` answers. Raises `ApiError`."""
    parameters.check_count(body.fields)
    _check_input(body.fields.get("input"))
    return _input_tokens(body)


def _input_tokens(body: Body) -> int:
    return len(body.canonical) // _BYTES_A_TOKEN + 3


def _canonical(fields: dict[str, Any]) -> bytes:
    if any(name in fields for name in _TRANSPORT):
        fields = {name: value for name, value in fields.items() if name not in _TRANSPORT}
    return _encode(fields)


def _decode_leniently(data: bytes) -> Any:
    """What msgspec will not take and the API does: lone surrogates, which become `?`."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        return _decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise _unreadable("what was sent is not valid JSON") from error


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _unreadable(why: str) -> ApiError:
    return ApiError(f"We could not parse the JSON body of your request: {why}.")


def _check_input(value: str | list[Any] | None) -> None:
    if not isinstance(value, list):
        return
    for place, item in enumerate(value):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise wrong_type(where, "an object", item)
        if item.get("type", "message") != "message":
            continue
        if "role" not in item:
            raise missing(f"{where}.role")
        if item["role"] not in _ROLES:
            raise wrong_value(f"{where}.role", item["role"], _ROLES)
        content = item.get("content")
        if content is None:
            raise missing(f"{where}.content")
        if not isinstance(content, (str, list)):
            raise wrong_type(f"{where}.content", "one of a string or array of objects", content)


def _check_metadata(metadata: dict[str, Any] | None) -> None:
    if not metadata:
        return
    if len(metadata) > 16:
        raise ApiError(
            f"Invalid 'metadata': too many properties. Expected at most 16, but got "
            f"{len(metadata)} instead.",
            param="metadata",
            code="object_above_max_properties",
        )
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise wrong_type(f"metadata.{name}", "a string", value)


def _check_text(fields: dict[str, Any]) -> None:
    format_ = (fields.get("text") or {}).get("format")
    if format_ is None:
        return
    tools.check_format(format_)
    if format_["type"] == "json_object":
        words = _encode([fields.get("input"), fields.get("instructions")])
        if b"json" not in words.lower():
            raise ApiError(
                "Response input messages must contain the word 'json' in some form to use "
                "'text.format' of type 'json_object'.",
                param="input",
            )


def _refuse_sampling(fields: dict[str, Any]) -> None:
    for name in ("temperature", "top_p"):
        if fields.get(name) is not None:
            raise unsupported(
                name, f"Unsupported parameter: '{name}' is not supported with this model."
            )
