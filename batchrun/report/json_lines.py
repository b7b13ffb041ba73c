"""A row as a line of JSON: columns by name, and what they hold as JSON text as JSON."""

from collections.abc import Collection
from typing import Any

import msgspec

from batchrun.parse.json_text import decode
from batchrun.records import JsonObject

OF_JSON = ("output", "usage", "request")
_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(msgspec.Raw).decode


def json_line(row: JsonObject, of_json: Collection[str] = ()) -> bytes:
    """`of_json` are the carried columns that hold JSON as text."""
    for name in (*OF_JSON, *of_json):
        text = row[name]
        if text is not None:
            row[name] = as_json(text)
    for call in row["tool_calls"]:
        if call["item"] is not None:
            call["item"] = as_json(call["item"])
    for attempt in row["attempts"] or ():
        attempt["started_at"] = attempt["started_at"].replace(" ", "T", 1)
    return _encode(row)


def as_json(text: str) -> Any:
    """What the text means, to be encoded on one line; the text itself where it is no JSON."""
    data = text.encode()
    try:
        if "\\u" in text:  # may be half of a pair, which not every reader takes
            return decode(data)
        # Between values a line break is a space. Nothing else is changed: a number of forty digits
        # keeps them.
        raw = bytes(_check(data))
        return msgspec.Raw(raw.replace(b"\n", b" ").replace(b"\r", b" "))
    except (ValueError, RecursionError):
        pass
    try:
        return decode(data)
    except (ValueError, RecursionError):
        return text
