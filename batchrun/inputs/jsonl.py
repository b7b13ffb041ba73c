"""JSON files to rows: JSON Lines, an array, or values over several lines, packed or not.

Files are read a buffer at a time, whatever their form, and rows may be of any size. In JSON Lines a
line ends with a newline; a carriage return before it is white space, as JSON has it. Blank lines
are no rows, but count as lines. What editors and tools leave (a byte order mark, ^Z at the end) is
passed over.
"""

import bz2
import io
import lzma
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
from msgspec import Struct, field

from batchrun.errors import InputError
from batchrun.formats.json_text import kind_in_words
from batchrun.formats.printable import listed
from batchrun.inputs.rows import (
    OFFSETS_EVERY,
    FileRows,
    RowOffsets,
    RowProblem,
    SourceFile,
    SourceRow,
    decode,
    encode_leniently,
)
from batchrun.remote import remote_files
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.remote_files import RemoteFile

# By the ending of the file's name.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_BUFFER = 256 * 1024  # bytes; more would not stay in a core's own cache
_LOOK = 256 * 1024  # bytes by which a file's form is told
_BOM = b"\xef\xbb\xbf"
_BRACE = ord("{")
_ODD = frozenset(b"\x1a\xef")  # first bytes of a line that are no JSON
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_WHITE = b" \t\r\n"
_BEGIN = (0, 1)  # byte and line

AnyFile = Path | RemoteFile
Lines = Iterator[tuple[int, bytes]]  # the number of the line where a value begins, and its bytes


class Wrapped(Struct):
    """Files that are one object around the list of their rows, such as `{"data": [...]}`."""

    row_columns: frozenset[str]  # an object with one of these is a row itself
    found: dict[str, str] = field(default_factory=dict)  # file to what was read of it, in words


def read_rows(
    file: SourceFile,
    first: int,
    complete: bytearray | None,
    wrapped: Wrapped | None = None,
    *,
    begin: tuple[int, int] = _BEGIN,
    noted: RowOffsets | None = None,
) -> FileRows:
    """The rows of the file, the first being `first`.

    Rows that `complete` marks are passed over undecoded; reading ends after the last other one.
    `wrapped`: None where an object is a row in any case. `begin`: the byte and line at which
    `first` is, as they were `noted`; these get nothing where a file can be read as a whole alone.
    Raises `InputError` where the file cannot be read.
    """
    number, name = first, file.name
    end = None if complete is None else complete.rfind(0) + 1
    lines = read_lines(file.path, begin=begin, noted=noted)
    for line, raw in lines if begin[0] else _with_tables(lines, file, wrapped):
        if number == end:
            break
        if complete is None or not complete[number]:
            try:
                data, problem = decode(raw), ""
            except RowProblem as error:
                data, problem = _decoded_again(raw, error.message)
            if not problem and type(data) is not dict:
                what = kind_in_words(data)
                data, problem = (
                    None,
                    f"not an object but {what}; a row is an object such as {_SUCH}",
                )
            yield SourceRow(number, name, line, data, raw, problem)
        number += 1
    return number


_SUCH = '{"prompt": "…"}'


def _decoded_again(raw: bytes, problem: str) -> tuple[Any, str]:
    """A line that is no JSON, without what old tools leave at its end, or said more plainly."""
    line = raw.rstrip(b"\x1a" + _WHITE)
    try:
        if raw.rstrip(_WHITE) != line:
            return decode(line), ""
        parts = [part for part in re.split(rb"\r(?!\n)", line) if part.strip()]
        if len(parts) > 1 and all(type(decode(part)) is dict for part in parts):
            return None, (
                f"it holds {len(parts)} rows with lone carriage returns between them; end each row "
                "with a newline"
            )
    except RowProblem:
        pass
    return None, problem


def _with_tables(lines: Lines, file: SourceFile, wrapped: Wrapped | None) -> Lines:
    """The lines; a file that is one object around rows gives these.

    It holds a list of rows, or is an object of columns, as pandas writes it.
    """
    is_json = ".json" in file.path.suffixes
    if not is_json and wrapped is None:
        yield from lines
        return
    start = list(islice(lines, 2))
    if len(start) == 1:
        line, raw = start[0]
        try:
            value = decode(raw)
        except RowProblem:
            value = None
        if is_json and (rows := _rows_of_columns(value)) is not None:
            yield from ((line, encode_leniently(row)) for row in rows)
            return
        if wrapped is not None and (path := _path_of_rows(value, wrapped.row_columns)):
            beside = listed(f"`{name}`" for name in value if name != path[0])
            wrapped.found[file.name] = (
                f"the rows are the objects in its list `{'.'.join(path)}`"
                + (f"; {beside} beside it: not read" if beside else "")
            )
            del value
            yield from _rows_at(path, line, raw)
            return
    yield from chain(start, lines)


_DEEPEST = 3  # objects around a list of rows


def _path_of_rows(value: Any, row_columns: frozenset[str]) -> tuple[str, ...]:
    """The names that lead to the one list of rows; empty where the value is a row itself.

    Lists of objects count, those nearest to the top; of several the one with columns that the job
    knows.
    """
    if type(value) is not dict or not row_columns.isdisjoint(value):
        return ()
    level: list[tuple[tuple[str, ...], Any]] = [((name,), inner) for name, inner in value.items()]
    for _ in range(_DEEPEST):
        lists = [(path, inner) for path, inner in level if _are_objects(inner)]
        known = [one for one in lists if not row_columns.isdisjoint(one[1][0])]
        if lists:
            one = lists if len(lists) == 1 else known
            return one[0][0] if len(one) == 1 else ()
        level = [
            ((*path, name), inner)
            for path, outer in level
            if type(outer) is dict
            for name, inner in outer.items()
        ]
    return ()


def _are_objects(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(one) is dict for one in value)


def _rows_at(path: tuple[str, ...], line: int, raw: bytes) -> Lines:
    """The objects of the list at the path, as they stand there, with their lines."""
    try:
        rows = _list_at(path, raw)
    except (msgspec.DecodeError, UnicodeError):  # NaN and the like: without places
        rows = _list_at(path, encode_leniently(decode(raw)))
        yield from ((line, bytes(row)) for row in rows)
        return
    counted = 0
    for row in rows:
        text = bytes(row)
        place = raw.find(text, counted)
        line += raw.count(b"\n", counted, place)
        yield line, text
        line += text.count(b"\n")
        counted = place + len(text)


def _list_at(path: tuple[str, ...], raw: bytes) -> list[msgspec.Raw]:
    part = msgspec.Raw(raw.lstrip(_BOM))
    for name in path:
        part = msgspec.json.decode(part, type=dict[str, msgspec.Raw])[name]
    return msgspec.json.decode(part, type=list[msgspec.Raw])


def _rows_of_columns(value: Any) -> list[dict[str, Any]] | None:
    """The rows of `{"column": {"0": ..., "1": ...}, ...}`; None where it is no such table."""
    if type(value) is not dict or not value:
        return None
    columns = list(value.values())
    keys = columns[0].keys() if type(columns[0]) is dict else ()
    if not keys or not all(key.isdecimal() for key in keys):
        return None
    if any(type(column) is not dict or column.keys() != keys for column in columns):
        return None
    return [{name: column[key] for name, column in value.items()} for key in keys]


def read_lines(
    path: AnyFile,
    buffer_bytes: int = _BUFFER,
    *,
    begin: tuple[int, int] = _BEGIN,
    noted: RowOffsets | None = None,
) -> Lines:
    """The values of the file, with the numbers of their first lines, from 1.

    Of JSON Lines they are the lines that are not blank, with their ends if they have one. Time is
    linear in the bytes. `begin` and `noted`: see `read_rows`.
    Raises `InputError` where the file cannot be read.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    offset, first_line = begin
    try:
        if compression is not None and _size(path) == 0:
            return  # some tools leave an empty file for no rows
        layout = _Layout()
        if not offset:
            with _opened(path, compression, _BUFFER) as stream:
                layout = _layout(_start(stream), path)
        with _opened(path, compression, buffer_bytes, is_part=offset > 0) as stream:
            if layout.spans_lines:
                yield from _Values(stream, path, layout).read()
                return
            if offset:
                stream.seek(offset)
            if noted is not None and compression is None and not layout.has_cr:
                yield from _noting_lines(stream, noted)
                return
            lines = _cr_lines(stream) if layout.has_cr else stream
            for number, line in enumerate(lines, first_line):
                if line[0] == _BRACE:  # nearly all
                    yield number, line
                    continue
                text = _without_marks(line) if line[0] in _ODD else line
                if text and not text.isspace():
                    yield number, text
    except RemoteError as error:
        raise InputError(str(error)) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        is_of_system = getattr(error, "strerror", None) is not None
        damaged = "" if is_of_system else f"; it is cut short, damaged or not {compression}"
        raise InputError(
            f"{path}: cannot be read ({reason}){damaged}; write the file again or check its rights"
        ) from error


def _noting_lines(stream: IO[bytes], noted: RowOffsets) -> Lines:
    """The lines of `read_lines`, while it is noted where they begin."""
    rows = offset = 0
    for number, line in enumerate(stream, 1):
        text = _without_marks(line) if line[0] in _ODD else line
        if text and not text.isspace():
            if rows % OFFSETS_EVERY == 0:
                noted.add(offset, number)
            rows += 1
            yield number, text
        offset += len(line)


@contextmanager
def _opened(
    path: AnyFile, compression: str | None, buffer_bytes: int, *, is_part: bool = False
) -> Iterator[IO[bytes]]:
    raw: Any
    packed: Any = path
    if isinstance(path, RemoteFile):
        size = remote_files.PART_BUFFER if is_part else remote_files.BUFFER
        packed = io.BufferedReader(path.open(), size)
    if compression is None:
        raw = path.open("rb", buffering=0) if isinstance(path, Path) else packed
    elif compression == "bzip2":
        raw = bz2.BZ2File(packed)
    elif compression == "xz":
        raw = lzma.LZMAFile(packed)  # noqa: SIM115 - closed with the reader over it
    else:
        file = pa.OSFile(os.fsencode(path)) if isinstance(path, Path) else packed
        raw = pa.CompressedInputStream(file, compression)
    with io.BufferedReader(raw, buffer_bytes) as stream:
        yield stream


def _size(path: AnyFile) -> int:
    return path.stat().st_size if isinstance(path, Path) else path.size


def _start(stream: IO[bytes]) -> bytes:
    """As much of the file as its form is told by. A reader of packed data may give less at once."""
    pieces, size = [], 0
    while size < _LOOK and (piece := stream.read(_LOOK - size)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _without_marks(line: bytes) -> bytes:
    """The line without byte order marks before it; nothing, where it is ^Z alone."""
    while line.startswith(_BOM):
        line = line[len(_BOM) :]
    return line if line.strip(b"\x1a" + _WHITE) else b""


def _cr_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines that end with a lone carriage return, as old Macs wrote them."""
    rest = b""
    while chunk := stream.read(max(_BUFFER, len(rest))):
        *lines, rest = re.split(rb"\r\n|[\r\n]", rest + chunk)
        yield from (line + b"\r" for line in lines)
    if rest:
        yield rest


class _Layout(Struct, frozen=True):
    """How the values of a file stand in it."""

    spans_lines: bool = False  # else: one on each line
    is_array: bool = False
    has_cr: bool = False  # lines end with a lone carriage return


def _layout(start: bytes, path: AnyFile) -> _Layout:
    """By the beginning of the file. Raises `InputError`."""
    if start.startswith(_UTF_16):
        raise InputError(f"{path}: the file is UTF-16, not UTF-8; save it as UTF-8")
    text = _without_marks(start.lstrip(_WHITE)).strip(b"\x1a" + _WHITE)
    has_cr = _has_cr(text)
    lines = [line for line in re.split(b"\r" if has_cr else b"\n", text) if line.strip()]
    if not lines:
        return _Layout()
    if text[:1] not in (b"[", b"{") or (text[:1] == b"{" and len(lines) == 1):
        return _Layout(has_cr=has_cr)
    kind = _kind(lines[0])
    if kind is not None and (kind is not list or len(lines) > 1):
        return _Layout(has_cr=has_cr)  # whole on its line
    goes_on = len(lines) > 2 and lines[2].lstrip()[:1] in (b"]", b",")
    if kind is None and len(lines) > 1 and _kind(lines[1]) is dict and not goes_on:
        return _Layout(has_cr=has_cr)  # the first line alone is broken
    is_array = text[:1] == b"["
    if is_array or (_is_open(lines[0]) and _follows(lines[0], lines[1])):
        return _Layout(spans_lines=True, is_array=is_array, has_cr=has_cr)
    return _Layout(has_cr=has_cr)


def _has_cr(text: bytes) -> bool:
    """Whether lines end with a lone carriage return: what stands before the first is whole."""
    first = text.partition(b"\n")[0].rstrip(b"\r")
    if b"\r" not in first:
        return False
    before = first.partition(b"\r")[0].strip()
    return b"\n" not in text or _kind(before) is not None


def _kind(line: bytes) -> type | None:
    """The type of the value that is the whole line; None where it is none."""
    try:
        return type(decode(line))
    except RowProblem:
        return None


# Text, brackets and commas, and what stands between them; last, a text that is cut at the end.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],]|[^\s"{}\[\],]++|"', re.DOTALL)


def _is_open(line: bytes) -> bool:
    """Whether a value begins on the line that goes on after it, not within a text."""
    tokens = [found[0] for found in _TOKEN.finditer(line)]
    depth = sum((token in (b"{", b"[")) - (token in (b"}", b"]")) for token in tokens)
    return depth > 0 and b'"' not in tokens


def _follows(line: bytes, following: bytes) -> bool:
    """Whether the next line may go on with what the line has begun: in an object, by a name."""
    return line.rstrip()[-1:] != b"{" or following.lstrip()[:1] in (b'"', b"}")


class _Values:
    """The values of an array, or one after another, over any number of lines."""

    def __init__(self, stream: IO[bytes], path: AnyFile, layout: _Layout) -> None:
        self._stream, self._path = stream, path
        self._is_array = layout.is_array
        self._end_of_line = b"\r" if layout.has_cr else b"\n"
        self._buffer, self._line, self._counted = b"", 1, 0

    def read(self) -> Lines:
        """Raises `InputError` where the file is no such text."""
        base, depth, begin = int(self._is_array), 0, -1
        wants_value, has_ended, after_comma, at = True, False, False, 0
        while True:
            is_last = self._load(begin if begin >= 0 else at)
            at = 0 if begin < 0 else at - begin
            begin = min(begin, 0)
            for found in _TOKEN.finditer(self._buffer, at):
                token, at = found[0], found.start()
                if not is_last and (found.end() == len(self._buffer) or token == b'"'):
                    break  # it may go on
                at = found.end()
                if token in (b"{", b"["):
                    if depth == base:
                        if has_ended or not wants_value:
                            raise self._error(found.start(), "a comma is missing before it")
                        begin = found.start()
                    elif depth < base and has_ended:
                        raise self._error(found.start(), "text after the end of the array")
                    depth += 1
                elif token in (b"}", b"]"):
                    depth -= 1
                    if depth == base and begin >= 0:
                        yield self._line_at(begin), self._buffer[begin:at]
                        begin, wants_value, after_comma = -1, not self._is_array, False
                    elif depth < base or begin < 0:
                        if depth < 0 or after_comma or token == b"}":
                            what = "a comma before it" if after_comma else "nothing to close"
                            raise self._error(found.start(), what)
                        has_ended = True
                elif depth == base and not has_ended and begin < 0:
                    if token == b",":
                        if wants_value or not self._is_array:
                            what = "a comma where a value belongs" if self._is_array else _COMMAS
                            raise self._error(found.start(), what)
                        wants_value = after_comma = True
                    elif token.strip(_BOM + b"\x1a"):
                        if not wants_value:
                            raise self._error(found.start(), "a comma is missing before it")
                        yield self._line_at(found.start()), token
                        wants_value, after_comma = not self._is_array, False
                elif depth < base and token.strip(_BOM + b"\x1a"):
                    raise self._error(found.start(), "text after the end of the array")
            else:
                at = len(self._buffer)
            if is_last:
                break
        if depth > 0:
            place = begin if begin >= 0 else len(self._buffer)
            raise self._error(place, "the file ends before this value does: it was cut off")

    def _load(self, keep: int) -> bool:
        """Reads on, keeping the buffer from `keep` on; whether the file ends with it."""
        self._line_at(keep)
        chunk = self._stream.read(max(_BUFFER, 2 * (len(self._buffer) - keep)))
        self._buffer, self._counted = self._buffer[keep:] + chunk, 0
        return not chunk

    def _line_at(self, place: int) -> int:
        """The number of the line of that place; places come in order."""
        self._line += self._buffer.count(self._end_of_line, self._counted, place)
        self._counted = place
        return self._line

    def _error(self, place: int, what: str) -> InputError:
        return InputError(
            f"{self._path}:{self._line_at(place)}: not JSON: {what}; repair the file, or write one "
            "object on each line"
        )


_COMMAS = "values with commas between them, and no [ before them"
