"""One row as it was read, its JSON as real files hold it, and why a row can be no request.

msgspec does the work; where it refuses, the standard library decides whether the text is JSON.
"""

import json
import math
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from batchrun.formats.json_text import with_valid_text
from batchrun.records import JsonObject

NOTHING: frozenset[str] = frozenset()


class RowProblem(Exception):  # noqa: N818 - a value in the making: it ends as a BadRow
    """Why no request can be made of a row; the survey counts it, the run goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.consumed = NOTHING  # columns that the row's form would have sent


class NoColumn(RowProblem):
    """A template asks for a column that the row has not, or has as null."""

    def __init__(self, column: str, _message: str = "") -> None:
        super().__init__(f"the template's column `{column}` is missing")
        self.column = column


class Row(Struct):
    """One row of a source, decoded. Where `data` is null, `problem` says why."""

    row: int  # place in the whole source, from 0
    source: str
    line: int | None  # from 1; null in Parquet
    data: JsonObject | None  # Parquet: what may be sent or fill a template, nulls left out
    raw: bytes = b""  # the line, where there are lines
    problem: str = ""
    columns: tuple[str, ...] = ()  # Parquet: all columns of the file
    carried: tuple[Any, ...] = ()  # Parquet: the pinned columns, in their stored types

    @property
    def names(self) -> tuple[str, ...]:
        return self.columns or tuple(self.data or ())

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"{self.source}:{self.line}" if self.line else f"{self.source}, row {self.row}"


_decode = msgspec.json.Decoder().decode


class Unsendable:
    """Stands for a value that JSON has no word for; a problem once it would be sent.

    No struct or dataclass: those msgspec would encode.
    """

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __str__(self) -> str:
        raise RowProblem(f"a value would be sent that is {self.what}; JSON has no word for it")


def _refuse(value: Any) -> str:
    if isinstance(value, Unsendable):
        return str(value)
    raise RowProblem(f"a value would be sent that is a {type(value).__name__}; JSON has none")


# Keys in the row's order, for the wire.
encode = msgspec.json.Encoder(decimal_format="number", enc_hook=_refuse).encode
# Keys sorted, for the hash.
encode_sorted = msgspec.json.Encoder(
    decimal_format="number", enc_hook=_refuse, order="deterministic"
).encode
# Never refuses, null for what JSON has no word for: for what is carried, not sent.
encode_anyhow = msgspec.json.Encoder(decimal_format="number", enc_hook=lambda _: None).encode


def decode(data: bytes | str) -> Any:
    """The value that the JSON stands for. Raises `RowProblem` with the reason."""
    try:
        return _decode(data)
    except RecursionError:
        raise RowProblem("nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError):
        return _decode_slowly(data)


def sent_text(value: Any) -> str:
    """The value as compact JSON. Raises `RowProblem` for what JSON has no word for."""
    return encode(value).decode()


def json_text(value: Any) -> str:
    """The value as compact JSON, null for what JSON has no word for. Raises `RowProblem`."""
    try:
        return encode_anyhow(value).decode()
    except RecursionError:
        raise RowProblem("nested too deeply") from None


def _decode_slowly(data: bytes | str) -> Any:
    try:
        text = (data if isinstance(data, str) else data.decode()).rstrip()  # as places are told
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
        )
        return with_valid_text(value)
    except UnicodeDecodeError as error:
        raise RowProblem(f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        array = "; one object a line is wanted, not an array over many lines"
        hint = array if data.strip() in (b"[", b"]") else ""
        raise RowProblem(f"not JSON: {error.msg} (column {error.pos + 1}){hint}") from None
    except RecursionError:
        raise RowProblem("nested too deeply") from None


def _no_constant(word: str) -> NoReturn:
    raise RowProblem(f"not JSON: it holds {word}, which JSON does not know; write null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowProblem(f"not JSON that can be kept: the number {text[:40]} is out of range")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's limit on digits
        raise RowProblem(f"not JSON that can be kept: an integer of {len(text):,} digits") from None
