"""A row as a line of CSV that a spreadsheet takes for data and never for a formula.

Text is quoted, null is nothing at all, lists are JSON. Text whose first letter would make a
spreadsheet compute gets an apostrophe before it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from batchrun.records import JsonObject

# As OWASP names them; with the forms of full width, which some programs read alike.
_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_encode = msgspec.json.Encoder().encode


def csv_head(columns: Sequence[str]) -> bytes:
    """The line of names, with its end."""
    return ",".join(_quoted(name) for name in columns).encode() + b"\n"


def csv_line(row: JsonObject, columns: Sequence[str]) -> bytes:
    return ",".join([_cell(row[name]) for name in columns]).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted(value)
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, bytes):
        return _quoted(value.hex())
    return _quoted(_encode(value).decode())


def _quoted(text: str) -> str:
    if text.lstrip(" ").startswith(_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'
