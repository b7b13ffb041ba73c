"""A file and its rows as they were read, JSON as real files hold it, and what is wrong with a row.

msgspec does the work; where it refuses, the standard library decides whether the text is JSON.
"""

import base64
import json
import math
from array import array
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from msgspec import Struct, field

from batchrun.formats.json_text import with_valid_text
from batchrun.records import JsonObject
from batchrun.remote.remote_files import RemoteFile

# The rows of a file; it returns the number after the last.
FileRows = Generator["SourceRow", None, int]
NO_COLUMNS: frozenset[str] = frozenset()
_decode = msgspec.json.Decoder().decode


class SourceFile(Struct, frozen=True):
    """One file of a source."""

    path: Path | RemoteFile
    name: str  # as column `source` shows it: the file's name, or its path within the folder
    kind: str  # jsonl or parquet
    # Columns that the folders of a hive layout give to all rows of the file, with their values.
    partitions: tuple[tuple[str, int | str | None], ...] = ()
    is_keyed: bool = False  # of a run whose rows are known by more than their ids

    def __str__(self) -> str:
        return self.name


OFFSETS_EVERY = 1_000  # rows


class RowOffsets(Struct, frozen=True):
    """Where every 1,000th row of a file of JSON Lines begins, and on which line."""

    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lines: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, offset: int, line: int) -> None:
        """Of the next 1,000th row. Before the first one stands nothing that is passed over."""
        self.offsets.append(offset if self.offsets else 0)
        self.lines.append(line if self.lines else 1)

    def are_whole(self, rows: int) -> bool:
        """Whether reading may begin at each of them, in a file of so many rows."""
        return 0 < len(self.offsets) == -(-rows // OFFSETS_EVERY)


class FileSpan(Struct, frozen=True):
    """The rows of one file of a source, and how it is read in parts."""

    file: int  # its place among the files
    first: int  # the first row's number in the whole source
    rows: int
    least: int  # rows that a part has, so that no more time goes into what is passed over
    offsets: RowOffsets | None = None  # null: a part is reached from the start of the file alone

    def part(self, first: int, rows: int) -> "FilePart":
        """These rows; `first` is a number in the whole source."""
        before = first - self.first
        if self.offsets is None:
            return FilePart(self.file, first, rows, skipped=before)
        at, skipped = divmod(before, OFFSETS_EVERY)
        offset, line = self.offsets.offsets[at], self.offsets.lines[at]
        return FilePart(self.file, first, rows, offset, line, skipped)


class FilePart(Struct, frozen=True):
    """Some rows of one file of a source, and where its reader finds them."""

    file: int  # its place among the files
    first: int  # the first row's number in the whole source
    rows: int
    offset: int = 0  # bytes of JSON Lines that are passed over, ...
    line: int = 1  # ... the number of the line there, ...
    skipped: int = 0  # ... and rows of the file from there to the first


class SourceRow(Struct):
    """One row of a source, decoded. Where `data` is None, `problem` says why."""

    row: int  # its number in the whole source, from 0
    source: str
    line: int | None  # from 1; None in Parquet
    data: JsonObject | None  # Parquet: what may be sent or fill a template, without nulls
    raw: bytes = b""  # the line, where there are lines
    problem: str = ""
    columns: tuple[str, ...] = ()  # Parquet: all columns of the file
    carried: tuple[Any, ...] = ()  # Parquet: the pinned columns, in their stored types
    # Parquet: pinned columns whose value cannot be stored, with what is wrong
    misfits: dict[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.columns or tuple(self.data or ())

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else f"{self.source}, row {self.row}"


class RowProblem(Exception):  # noqa: N818 - a value in the making: it ends as a BadRow
    """Why no request can be made of a row; the survey counts it, the run goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MissingColumn(RowProblem):
    """A template asks for a column that the row does not have, or has as null."""

    def __init__(self, column: str, _message: str = "") -> None:
        super().__init__(f"the template's column `{column}` is missing")
        self.column = column


class Unsendable:
    """Stands for a value that JSON has no word for; a problem once it would be sent.

    No struct or dataclass: those msgspec would encode.
    """

    __slots__ = ("column", "value", "what")

    def __init__(self, what: str, value: float | bytes | None = None, column: str = "") -> None:
        self.what = what
        self.value = value  # infinity or bytes; None: NaN, which is no value
        self.column = column  # that holds it, where it is known

    def __str__(self) -> str:
        return _refuse(self)

    def __repr__(self) -> str:
        return self.what

    @property
    def text(self) -> str | None:
        """What stands for it in JSON text that is carried: nothing is lost, if it is no JSON."""
        if isinstance(self.value, bytes):
            return base64.b64encode(self.value).decode()
        return None if self.value is None else ("-Infinity" if self.value < 0 else "Infinity")


def _refuse(value: Any) -> NoReturn:
    what, where = f"a {type(value).__name__}", ""
    if isinstance(value, Unsendable):
        what, where = value.what, f" of column `{value.column}`" if value.column else ""
    raise RowProblem(
        f"a value{where} would be sent that is {what}; JSON cannot express it{_how_sent(value)}"
    )


def _how_sent(value: Any) -> str:
    """What makes a part of a request of bytes; empty for what is none."""
    if not isinstance(value, Unsendable) or not isinstance(value.value, bytes):
        return ""
    name = value.column if value.column.isidentifier() else f"row['{value.column}']"
    return (
        f'. An image is sent as image_url = "{{{{ {name} | data_url }}}}" of an input_image, a '
        f'document as file_data = "{{{{ {name} | file_data }}}}" of an input_file '
        "(examples/captions.toml)"
    )


def _instead(value: Any) -> str | None:
    return value.text if isinstance(value, Unsendable) else None


# Keys in the row's order, for the wire.
encode = msgspec.json.Encoder(decimal_format="number", enc_hook=_refuse).encode
# Keys sorted, for the hash.
encode_sorted = msgspec.json.Encoder(
    decimal_format="number", enc_hook=_refuse, order="deterministic"
).encode
# Never refuses, text or null for what JSON has no word for: for what is carried, not sent.
encode_leniently = msgspec.json.Encoder(decimal_format="number", enc_hook=_instead).encode


def decode(data: bytes | str) -> Any:
    """The value of the JSON text. Raises `RowProblem` with the reason."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass  # the standard library takes more, and says more clearly what is wrong
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(
            text.rstrip(), parse_constant=_constant, parse_float=_finite, parse_int=_integer
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


def _constant(word: str) -> Unsendable:
    """What Python and others write: harmless in a column that is not sent."""
    return Unsendable(word, None if word == "NaN" else float(word))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowProblem(f"not JSON that can be stored: the number {text[:40]} is out of range")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's limit on digits
        raise RowProblem(
            f"not JSON that can be stored: an integer of {len(text):,} digits"
        ) from None


def to_json_text(value: Any, *, leniently: bool = False) -> str:
    """The value as compact JSON. Raises `RowProblem` for what JSON has no word for."""
    try:
        return (encode_leniently if leniently else encode)(value).decode()
    except RecursionError:
        raise RowProblem("nested too deeply") from None
