"""JSON as servers really send it and as files take it: invalid text and numbers are replaced."""

import json
import math
from datetime import date, time
from typing import Any, TypeVar

import msgspec

from batchrun.formats.printable import cut, one_line

Decoded = TypeVar("Decoded")

_SHOWN = 300  # characters of a body that a message shows
_MAX_DIGITS = 300  # of a number that is read; Python itself refuses some thousands
_decoder = msgspec.json.Decoder()


def decode(body: bytes) -> Any:
    """Any JSON value. Raises `ValueError` (msgspec's `DecodeError` is one) where it is none."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoder.decode(repaired(body))


def is_object(body: bytes) -> bool:
    """Whether it is one whole JSON object."""
    if body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
        return False
    try:
        return isinstance(decode(body), dict)
    except (ValueError, RecursionError):
        return False


def value_of(text: str | None) -> Any:
    """What JSON text means; the text itself where it is none."""
    try:
        return None if text is None else decode(text.encode())
    except (ValueError, RecursionError):
        return text


def repaired(body: bytes) -> bytes:
    """The body as JSON that any reader takes. Raises `ValueError` where it is none.

    Lone surrogates become U+FFFD; NaN, infinities and numbers of many pages null.
    """
    try:
        value = json.loads(
            body.decode("utf-8-sig", errors="replace"),
            parse_int=lambda digits: int(digits) if len(digits) <= _MAX_DIGITS else None,
            parse_float=_finite,
            parse_constant=lambda _: None,
        )
        return json.dumps(with_valid_text(value), ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode_as(body: bytes, decoder: "msgspec.json.Decoder[Decoded]") -> Decoded | None:
    """None where it is no JSON of that shape, even once it is repaired."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return decoder.decode(repaired(body))
    except (ValueError, RecursionError):
        return None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def beginning(body: bytes) -> str:
    return cut(body[: 4 * _SHOWN].decode(errors="replace").strip() or "(nothing)", _SHOWN)


def compact(value: object) -> str:
    return cut(msgspec.json.encode(value).decode(), _SHOWN)


def text(value: object, name: str | None = None) -> str | None:
    """`value`, or its field `name`, where it is text."""
    if name is not None:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def says_something(value: object) -> bool:
    """Whether it holds anything but null, 0, false and blank text, at any depth."""
    if isinstance(value, dict):
        return any(map(says_something, value.values()))
    if isinstance(value, list):
        return any(map(says_something, value))
    return bool(value.strip() if isinstance(value, str) else value)


def count(value: object) -> int | None:
    """`value` where it is a whole number that a table can hold."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or is_bool(value):
        return None
    return value if -(2**63) <= value < 2**63 else None


def is_bool(value: object) -> bool:
    return isinstance(value, bool)


def valid_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_utf8(text: str) -> str:
    """The text with `?` for what is no UTF-8, such as the bytes of a file's name may be."""
    return text.encode("utf-8", "replace").decode()


def with_valid_text(value: Any, max_int: float = math.inf) -> Any:
    """The value, of plain types, with such text throughout; integers above `max_int` are None."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {
            with_valid_text(key, max_int): with_valid_text(inner, max_int)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [with_valid_text(inner, max_int) for inner in value]
    too_large = isinstance(value, int) and not -max_int - 1 <= value <= max_int
    return None if too_large else value


def encode_json(value: object) -> bytes:
    """The value as JSON, with text made valid where it is not."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a path or argument that is no UTF-8
        return msgspec.json.encode(with_valid_text(msgspec.to_builtins(value)))


_VALUE = 200  # characters of a value that a message shows


def shown(value: object, most: int = _VALUE) -> str:
    """A value as a message shows it: JSON in one line, cut."""
    try:
        written = json.dumps(value, ensure_ascii=False)
    except TypeError:
        is_whole = not isinstance(value, dict | list)
        written = _word(value) if is_whole else json.dumps(value, ensure_ascii=False, default=_word)
    except (ValueError, RecursionError):
        written = kind_in_words(value)
    return cut(one_line(written), most)


def _word(value: object) -> str:
    """What JSON has no word for: a date of TOML as text; our own stand-ins say what they are."""
    if isinstance(value, date | time):
        return value.isoformat()
    return repr(value)


def kind_in_words(value: object) -> str:
    """What a value of JSON is: `an object`, `a list`, ..."""
    words = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return "a truth value" if is_bool(value) else words.get(type(value), "a number")
