"""JSON as servers really send it and as files take it: invalid text and numbers are replaced."""

import json
import math
from typing import Any

import msgspec

_BEGINNING = 300  # characters of a body that a message shows
_MOST_DIGITS = 300  # of a number that is read; Python itself refuses some thousands
_decoder = msgspec.json.Decoder()


def decode(body: bytes) -> Any:
    """Any JSON value. Raises `ValueError` (msgspec's `DecodeError` is one) where it is none."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoder.decode(mended(body))


def mended(body: bytes) -> bytes:
    """The body as JSON that any reader takes. Raises `ValueError` where it is none.

    Lone surrogates become U+FFFD; NaN, infinities and numbers of many pages null.
    """
    try:
        value = json.loads(body.decode("utf-8-sig", errors="replace"), parse_int=_whole)
        return json.dumps(_clean(value), ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    return value


def beginning(body: bytes) -> str:
    said = body[: 4 * _BEGINNING].decode(errors="replace").strip() or "(nothing)"
    return said if len(said) <= _BEGINNING else said[:_BEGINNING] + "…"


def compact(value: object) -> str:
    said = msgspec.json.encode(value).decode()
    return said if len(said) <= _BEGINNING else said[:_BEGINNING] + "…"


def text(value: object, name: str | None = None) -> str | None:
    """`value`, or its field `name`, where it is text."""
    if name is not None:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def count(value: object) -> int | None:
    """`value` where it is a whole number that a table can hold."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or is_bool(value):
        return None
    return value if -(2**63) <= value < 2**63 else None


def is_bool(value: object) -> bool:
    return isinstance(value, bool)


def storable_text(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable(value: Any) -> Any:
    """The value, of plain types, with such text throughout and null for larger integers."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable(key): storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(inner) for inner in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return None
    return value


def encode_json(value: object) -> bytes:
    """The value as JSON, with text made valid where it is not."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a path or argument that is no UTF-8
        return msgspec.json.encode(storable(msgspec.to_builtins(value)))
