"""Values made fit for files: text that is valid UTF-8, integers of 64 bits."""

from typing import Any

import msgspec


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
