"""Lines of CSV: text in quotes, null as an empty field, lists and objects as JSON.

Where a file is for spreadsheets, text that these would take for a formula gets an apostrophe
before it.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

# As OWASP names them; with the forms of full width, which some programs read alike.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
BOM = "\ufeff"  # without it Excel reads UTF-8 as Latin-1
_encode = msgspec.json.Encoder(decimal_format="number").encode


def csv_line(values: Iterable[Any], *, for_sheets: bool) -> str:
    """A row or the row of names, with its end."""
    return ",".join([_cell(value, for_sheets) for value in values]) + "\n"


def _cell(value: Any, for_sheets: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted(value, for_sheets)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    return _quoted(value.hex() if isinstance(value, bytes) else as_json(value), for_sheets)


def as_json(value: Any) -> str:
    return _encode(value).decode()


def _quoted(text: str, for_sheets: bool) -> str:
    if for_sheets and text.lstrip(" ").startswith(_FORMULA_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'
