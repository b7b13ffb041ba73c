"""Images and documents of a row as data URLs: the template filters `data_url` and `file_data`.

They take bytes, `{"bytes": …, "path": …}` as `datasets` writes images, base64 text (JSON has no
bytes), or the path of a file beside the row's own file. The type is told by the content.
"""

import binascii
import io
import os
import stat
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from batchrun.errors import InputError
from batchrun.formats.amounts import size_in_words
from batchrun.formats.printable import cut
from batchrun.inputs.rows import RowProblem, SourceFile, Unsendable
from batchrun.remote.remote_files import RemoteFile

MOST_BYTES = 50 * 1024 * 1024  # of one image or document: what APIs take, at most
_SNIFFED = 1024  # bytes that tell a type
_BASE64_HEAD = 64  # characters of base64 that are looked at first
_SHOWN = 200  # characters of a value in a message
_ZIP = b"PK\3\4"
_TEXT, _UNKNOWN = "text/plain", "application/octet-stream"
_STARTS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"{\\rtf": "application/rtf",
}
_BRANDS = {
    b"avif": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
}
_OFFICE = "application/vnd.openxmlformats-officedocument."
_IN_ZIP = {
    "word/": f"{_OFFICE}wordprocessingml.document",
    "xl/": f"{_OFFICE}spreadsheetml.sheet",
    "ppt/": f"{_OFFICE}presentationml.presentation",
}

Charge = Callable[[int], None]  # takes the letters that are about to be made


class MediaReader:
    """The filters, and the folders that the paths of the current row are looked up in."""

    def __init__(self, charge: Charge) -> None:
        self.has_path = False  # whether the current row names a file
        self._charge = charge
        self._files: dict[str, SourceFile] = {}
        self._row = ""  # the file of the current row, as column `source` shows it

    def look_beside(self, files: Iterable[SourceFile]) -> None:
        """Paths in the rows of these files are looked up beside them."""
        self._files = {file.name: file for file in files}

    def start_row(self, source: str) -> None:
        """A row of this file is the current one from now on."""
        self._row, self.has_path = source, False

    def data_url(self, value: Any) -> str:
        """An image as a data URL, for `image_url`. Raises `RowProblem`."""
        if is_data_url(value):
            return str.__str__(value)
        content = self._content(value, "data_url")
        kind = content_type(content)
        if not kind.startswith("image/"):
            held = "nothing known" if kind == _UNKNOWN else kind
            raise RowProblem(
                f"data_url: {_named(value)} is not an image, by its content ({held}); repair it, "
                "or use the filter file_data for documents"
            )
        return self._encoded(content, kind)

    def file_data(self, value: Any) -> str:
        """A document as a data URL, for `file_data`. Raises `RowProblem`."""
        if is_data_url(value):
            return str.__str__(value)
        content = self._content(value, "file_data")
        return self._encoded(content, content_type(content))

    def _encoded(self, content: bytes, kind: str) -> str:
        self._charge(len(content) * 4 // 3)
        return f"data:{kind};base64,{b64encode(content).decode()}"

    def _content(self, value: Any, name: str) -> bytes:
        content = self._bytes_of(value, name)
        _check_size(len(content), value, name)
        return content

    def _bytes_of(self, value: Any, name: str) -> bytes:
        match value:
            case bytes():
                return value
            case Unsendable(value=bytes(content)):
                return content
            case {"bytes": bytes() | Unsendable() as inner}:
                return self._bytes_of(inner, name)
            case {"bytes": str(text)}:  # bytes that are UTF-8, or JSON
                return base64_content(text) or text.encode()
            case {"path": str(path)}:
                return self._read(path, name)
            case str():
                text = str.__str__(value)
                return base64_content(text) or self._read(text, name)
        raise RowProblem(
            f"{name}: {cut(str(value), _SHOWN)} is neither an image nor a document; give bytes, an "
            "object with `bytes` or `path`, or the path of a file"
        )

    def _read(self, path: str, name: str) -> bytes:
        if "://" in path[:12]:
            raise RowProblem(
                f"{name}: {_named(path)} is a URL, which a template sends as it is, without {name}"
            )
        try:
            self.has_path = True
            found = self._find(path, name)
            size = found.stat()
            if not stat.S_ISREG(size.st_mode):  # a pipe would be waited for
                raise RowProblem(f"{name}: {_named(path)} is not a file")
            _check_size(size.st_size, path, name)
            return found.read_bytes()
        except OSError as error:
            raise RowProblem(f"{name}: {_named(path)} cannot be read ({error.strerror})") from None

    def _find(self, path: str, name: str) -> Path:
        """The file, which is never above the source, also not by a link. Raises `OSError`."""
        file = self._files.get(self._row)
        if file is None or file.name == "-":
            raise RowProblem(
                f"{name}: {_named(path)} is a path, and standard input has no folder; save the "
                "prompt set beside the files"
            )
        if isinstance(file.path, RemoteFile):
            raise RowProblem(
                f"{name}: {_named(path)} is a path, and files beside a source that is not on this "
                "machine are not read; copy the source with its files here, or put the bytes into "
                "the rows"
            )
        folder = file.path.parent
        depth = len(PurePosixPath(file.name).parts) - 1
        top = file.path.parents[depth]  # by name: `..` of a link leads elsewhere
        roots = [Path(os.path.realpath(one)) for one in dict.fromkeys((folder, top))]
        for base in roots:
            try:
                found = Path(os.path.realpath(base / path))
            except ValueError:  # a NUL
                break
            below = next((found.relative_to(r) for r in roots if found.is_relative_to(r)), None)
            if below is None or any(part.startswith(".") for part in below.parts):
                raise RowProblem(
                    f"{name}: {_named(path)} is hidden, or outside the source's folder "
                    f"{roots[-1]}; only files in that folder are read: move the file there"
                )
            if found.exists():
                return found
        raise RowProblem(f"{name}: no file {_named(path)} in {folder}")


def changed_file(row: object) -> InputError:
    """The error for a row whose request is not the one that was planned."""
    return InputError(
        f"{row}: an image or document of it has changed since the plan; leave the files as they "
        "are during a run, then give the same command again"
    )


def is_data_url(value: Any) -> bool:
    return isinstance(value, str) and value[:5] == "data:"


def base64_content(text: str) -> bytes | None:
    """The bytes of base64 text, known by what they begin with; None where it is none."""
    try:
        head = b64decode(text[:_BASE64_HEAD], validate=True)
        if head[:4] != _ZIP and content_type(head) in (_TEXT, _UNKNOWN):
            return None
        return b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def content_type(content: bytes) -> str:
    """The media type, told by the content alone."""
    head = content[:_SNIFFED]
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "image/bmp"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], _UNKNOWN)
    if b"%PDF-" in head:
        return "application/pdf"
    if head[:4] == _ZIP:
        return _type_of_zip(content)
    try:
        return _UNKNOWN if b"\0" in content or not content.decode() else _TEXT
    except UnicodeDecodeError:
        return _UNKNOWN


def _type_of_zip(content: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return _UNKNOWN
    kinds = (kind for start, kind in _IN_ZIP.items() if any(n.startswith(start) for n in names))
    return next(kinds, "application/zip")


def _check_size(size: int, value: Any, name: str) -> None:
    if size == 0:
        raise RowProblem(f"{name}: {_named(value)} is empty")
    if size > MOST_BYTES:
        raise RowProblem(
            f"{name}: {_named(value)} has {size_in_words(size)}; APIs take at most "
            f"{size_in_words(MOST_BYTES)}, so make it smaller"
        )


def _named(value: Any) -> str:
    """How a message calls it: by its path, if it has one."""
    match value:
        case {"path": str(path)} | str(path):
            return f"`{cut(path, _SHOWN)}`"
    return "the value"
