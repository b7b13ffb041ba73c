"""The files that a source names, found by their names alone, and their rows in order.

A source is a file, a folder, a glob, or the copy of standard input. Files are sorted by name, so
rows keep their numbers. A file that changes between two passes, or during one, is an error.
"""

import glob
import hashlib
import os
import select
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path, PurePath
from typing import BinaryIO

from msgspec import Struct

from batchrun.errors import InputError, StoreError
from batchrun.formats.json_text import as_utf8
from batchrun.inputs import jsonl, parquet
from batchrun.inputs.rows import SourceFile, SourceRow
from batchrun.job.sections import STDIN, InputJob

_JSONL = (".jsonl", ".ndjson")
_KNOWN = ".jsonl, .ndjson (also with .gz or .zst) and .parquet"
_RUN_RECORD = "run.json"  # marks a run directory, whose tables are no prompt sets
_CHUNK = 1024 * 1024
_CHECK_EVERY_S = 0.1

Check = Callable[[], None]  # called while standard input is awaited; what it raises ends the wait


class Source(Struct, frozen=True):
    """The files of a prompt set, in the order of their rows."""

    spec: str  # as asked for
    files: tuple[SourceFile, ...]


class SourceReader:
    """Reads a source's rows. Remembers each file's size, time and number of rows."""

    def __init__(self, source: Source) -> None:
        self.files = source.files
        self._stamps: dict[int, tuple[int, int]] = {}
        self._counts: dict[int, int] = {}  # rows of a file that was read to its end

    def rows(
        self, use: parquet.ColumnUse, complete: bytearray | None = None
    ) -> Iterator[SourceRow]:
        """All rows, or those that `complete` does not mark, in order. Raises `InputError`."""
        row = 0
        last = None if complete is None else complete.rfind(0)
        for index, file in enumerate(self.files):
            if last is not None and row > last:
                return
            end = row + self._counts.get(index, 0)
            if row < end and complete is not None and complete.find(0, row, end) < 0:
                row = end
                continue
            try:
                handle = file.path.open("rb")
            except OSError as error:
                raise InputError(
                    f"{file.path}: cannot be read ({error.strerror}); check the path and its rights"
                ) from error
            with handle:
                self._check_unchanged(index, handle)
                first = row
                if file.kind == "parquet":
                    row = yield from parquet.read_rows(file, row, complete, use)
                else:
                    row = yield from jsonl.read_rows(file, row, complete)
                self._check_unchanged(index, handle)
                if last is None or row <= last:
                    self._counts[index] = row - first

    def _check_unchanged(self, index: int, handle: BinaryIO) -> None:
        stat = os.fstat(handle.fileno())
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._stamps.setdefault(index, stamp) != stamp:
            raise InputError(
                f"{self.files[index].path}: changed while it was being read; leave the input as it "
                "is during a run, then give the same command again"
            )


def find_source(input_job: InputJob, stdin_copy: Path | None = None) -> Source:
    """The files that `input.path` names; `stdin_copy` is the copy of standard input.

    Raises `InputError` where there are none.
    """
    spec, kind = input_job.path, input_job.format
    if spec == STDIN:
        if stdin_copy is None:
            raise InputError("standard input was not stored; give a file, or - with -o DIR")
        copy = SourceFile(path=stdin_copy, name=STDIN, kind=kind or "jsonl")
        return Source(spec=spec, files=(copy,))
    path = Path(spec)
    try:
        if path.is_dir():
            known = [one for one in _walk(path) if kind in (None, _kind_of(one))]
            files = _sorted_files(known, path, None)
            missing = f"no prompt set in this folder; it would be a file ending in {_KNOWN}"
        elif path.exists():
            if not path.is_file():
                raise InputError(
                    f"{spec}: not a regular file; a prompt set is read more than once, so save it, "
                    "or give - to read standard input"
                )
            files = _sorted_files([path], path.parent, kind)
            missing = (
                f"the ending says nothing about the format; known are {_KNOWN}. Give format = "
                "'jsonl' or 'parquet' in [input]"
            )
        elif glob.has_magic(spec):
            matches = map(Path, glob.glob(spec, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            fixed = takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
            files = _sorted_files(matches, Path(*fixed), kind)
            missing = (
                f"no file matches; check the pattern. Files must end in {_KNOWN}, or give format = "
                "'jsonl' or 'parquet' in [input]"
            )
        else:
            files, missing = (), "no such file; check the path"
    except OSError as error:
        raise InputError(f"{spec}: cannot be read ({error.strerror}); check the path") from error
    if not files:
        raise InputError(f"{spec}: {missing}")
    return Source(spec=spec, files=files)


def _kind_of(path: PurePath) -> str | None:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    for ending in jsonl.COMPRESSIONS:
        name = name.removesuffix(ending)
    return "jsonl" if name.endswith(_JSONL) else None


def _sorted_files(paths: Iterable[Path], base: Path, kind: str | None) -> tuple[SourceFile, ...]:
    """Those of the paths that are files of this format, or of a known one; names from `base` on."""
    files = [
        SourceFile(path=path, name=as_utf8(path.relative_to(base).as_posix()), kind=known)
        for path in paths
        if (known := kind or _kind_of(path)) is not None and path.is_file()
    ]
    return tuple(sorted(files, key=lambda file: file.name))


def _walk(folder: Path) -> Iterator[Path]:
    """Files below the folder; hidden ones and whole run directories are left out."""

    def complain(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=complain):
        below = Path(parent)
        if _RUN_RECORD in files and below != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (below / name for name in files if not name.startswith("."))


def store_stdin(stream: BinaryIO, copy: Path, check: Check = lambda: None) -> str:
    """Copies the stream to `copy`, durable when it returns; the SHA-256 of its bytes, in hex."""
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            sha256, _ = _read_all(stream, check, file.write)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(copy)
    except OSError as error:
        raise StoreError(
            f"{copy}: standard input cannot be stored ({error.strerror}); free space or choose "
            "another --output"
        ) from error
    return sha256


def check_stdin(stream: BinaryIO, copy: Path, sha256: str | None, check: Check) -> None:
    """Nothing, or what was stored, must come from the stream again. Raises `InputError`."""
    found, size = _read_all(stream, check, len)
    if not copy.exists():
        raise InputError(f"{copy}: standard input's copy is missing; start a new run directory")
    if size and found != sha256:
        raise InputError(
            f"standard input differs from what this run directory was begun with ({copy}); "
            "give the same input, or none, or start a new run directory with -o"
        )


def _read_all(stream: BinaryIO, check: Check, write: Callable[[bytes], object]) -> tuple[str, int]:
    """Writes what comes until the end; the SHA-256 in hex, and the number of bytes."""
    handle = stream.fileno()  # read from here alone: nothing of it is in a buffer
    digest, size = hashlib.sha256(), 0
    while True:
        check()
        if not select.select([handle], [], [], _CHECK_EVERY_S)[0]:
            continue
        chunk = os.read(handle, _CHUNK)
        if not chunk:
            return digest.hexdigest(), size
        digest.update(chunk)
        write(chunk)
        size += len(chunk)
