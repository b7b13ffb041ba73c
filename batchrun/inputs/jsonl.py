"""JSON Lines to rows: plain, gzip or zstd, a buffer at a time, lines of any size.

A line ends with a newline; a carriage return before it is white space, as JSON has it.
Blank lines are no rows, but count as lines.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from batchrun.errors import InputError
from batchrun.inputs.rows import FileRows, RowProblem, SourceFile, SourceRow, decode

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # by the ending of the file's name
_BUFFER = 256 * 1024  # bytes; more would not stay in a core's own cache
_BOM = b"\xef\xbb\xbf"


def read_rows(file: SourceFile, first: int, complete: bytearray | None) -> FileRows:
    """The rows of the file, the first being `first`.

    Rows that `complete` marks are passed over undecoded; reading ends after the last other one.
    Raises `InputError` where the file cannot be read.
    """
    number, name = first, file.name
    end = None if complete is None else complete.rfind(0) + 1
    for line, raw in read_lines(file.path):
        if number == end:
            break
        if complete is None or not complete[number]:
            try:
                data, problem = decode(raw), ""
            except RowProblem as error:
                data, problem = None, error.message
            else:
                if type(data) is not dict:
                    data, problem = None, f"not an object but {_kind(data)}"
            yield SourceRow(number, name, line, data, raw, problem)
        number += 1
    return number


def read_lines(path: Path, buffer_bytes: int = _BUFFER) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1 and their ends, if they have one.

    Time is linear in the bytes. Raises `InputError` where the file cannot be read.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression is None:
            stream = path.open("rb", buffering=0)
        elif path.stat().st_size == 0:
            return  # some tools leave an empty file for no rows
        else:
            stream = pa.CompressedInputStream(pa.OSFile(os.fsencode(path)), compression)
        with io.BufferedReader(stream, buffer_bytes) as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if not text.isspace() and text:
                    yield number, text
    except OSError as error:
        reason = error.strerror or str(error)
        damaged = "" if error.strerror else f"; it is cut short, damaged or not {compression}"
        raise InputError(
            f"{path}: cannot be read ({reason}){damaged}; write the file again or check its rights"
        ) from error


def _kind(value: object) -> str:
    words = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return words.get(type(value), "a number") + '; a row is an object such as {"prompt": "…"}'
