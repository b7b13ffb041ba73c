"""The files that a source names: one file, a folder, a glob, or what standard input left.

Decided from names alone; nothing is opened. Files come sorted by name, so rows keep their numbers.
"""

import glob
import hashlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from msgspec import Struct

from batchrun.errors import InputError, StoreError
from batchrun.job.sections import STDIN, InputJob

_JSONL = (".jsonl", ".ndjson")
_COMPRESSED = (".gz", ".zst")
_KNOWN = ".jsonl, .ndjson (also with .gz or .zst) and .parquet"
_RUN_RECORD = "run.json"  # marks a run directory, whose tables are no prompt sets


class SourceFile(Struct, frozen=True):
    """One file of a source."""

    path: Path
    name: str  # as column `source` shows it: the file's name, or its path within the folder
    kind: str  # jsonl or parquet


class Source(Struct, frozen=True):
    """The files of a prompt set, in the order of their rows."""

    spec: str  # as asked for
    files: tuple[SourceFile, ...]


def find_source(input_job: InputJob, stdin_copy: Path | None = None) -> Source:
    """The files that `input.path` names; `stdin_copy` is what was kept of standard input.

    Raises `InputError` where there are none.
    """
    spec = input_job.path
    if spec == STDIN:
        if stdin_copy is None:
            raise InputError("standard input was not kept; give a file, or - with -o DIR")
        kind = input_job.format or "jsonl"
        return Source(spec=spec, files=(SourceFile(path=stdin_copy, name=STDIN, kind=kind),))
    path = Path(spec)
    try:
        if path.is_dir():
            return Source(spec=spec, files=tuple(_in_folder(path, input_job.format)))
        if path.exists():
            return Source(spec=spec, files=(_one_file(path, input_job.format),))
        if glob.has_magic(spec):
            return Source(spec=spec, files=tuple(_in_glob(spec, input_job.format)))
    except OSError as error:
        raise InputError(f"{spec}: cannot be read ({error.strerror}); check the path") from error
    raise InputError(f"{spec}: no such file; check the path")


def compression_of(path: Path) -> str | None:
    """What the file's name says about its compression: gzip, zstd or nothing."""
    return {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())


def _shown(path: PurePath) -> str:
    """The path as text that any file can hold: a name may be bytes that are no UTF-8."""
    return path.as_posix().encode("utf-8", "replace").decode()


def _kind_of(path: PurePath) -> str | None:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return "jsonl" if name.endswith(_JSONL) else None


def _one_file(path: Path, kind: str | None) -> SourceFile:
    if not path.is_file():
        raise InputError(
            f"{path}: not a regular file; a prompt set is read more than once, so save it, or "
            "give - to read standard input"
        )
    found = kind or _kind_of(path)
    if found is None:
        raise InputError(
            f"{path}: the ending tells nothing about the format; known are {_KNOWN}. Say it with "
            "format = 'jsonl' or 'parquet' in [input]"
        )
    return SourceFile(path=path, name=_shown(Path(path.name)), kind=found)


def _in_folder(folder: Path, kind: str | None) -> Iterator[SourceFile]:
    found = []
    for path in _walk(folder):
        known = _kind_of(path)
        if known is not None and kind in (None, known) and path.is_file():
            name = _shown(path.relative_to(folder))
            found.append(SourceFile(path=path, name=name, kind=known))
    if not found:
        raise InputError(
            f"{folder}: no prompt set in this folder; it would be a file ending in {_KNOWN}"
        )
    yield from sorted(found, key=lambda file: file.name)


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


def _in_glob(pattern: str, kind: str | None) -> Iterator[SourceFile]:
    fixed = _fixed_part(pattern)
    found = []
    for match in glob.glob(pattern, recursive=True):  # noqa: PTH207 - Path.glob takes no absolute pattern
        path = Path(match)
        known = kind or _kind_of(path)
        if known is not None and path.is_file():
            name = _shown(path.relative_to(fixed))
            found.append(SourceFile(path=path, name=name, kind=known))
    if not found:
        raise InputError(
            f"{pattern}: no file matches; check the pattern. Files must end in {_KNOWN}, or give "
            "format = 'jsonl' or 'parquet' in [input]"
        )
    yield from sorted(found, key=lambda file: file.name)


def _fixed_part(pattern: str) -> Path:
    fixed = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


_CHUNK = 1024 * 1024
_CHECK_EVERY_S = 0.1


def keep_input(stream: BinaryIO, copy: Path, check: Callable[[], None] | None = None) -> str:
    """Copies the stream to `copy`, durable when it returns; the SHA-256 of its bytes, in hex.

    `check` is called now and then, also while nothing comes; what it raises ends the wait.
    """
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    digest = hashlib.sha256()
    try:
        with unfinished.open("wb") as file:
            for chunk in _chunks(stream, check):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(copy)
    except OSError as error:
        raise StoreError(
            f"{copy}: standard input cannot be kept ({error.strerror}); free space or choose "
            "another --output"
        ) from error
    return digest.hexdigest()


def check_input(
    stream: BinaryIO, copy: Path, sha256: str | None, check: Callable[[], None] | None = None
) -> None:
    """Nothing, or what was kept, must come from the stream again. Raises `InputError`."""
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(stream, check):
        digest.update(chunk)
        size += len(chunk)
    if not copy.exists():
        raise InputError(f"{copy}: the kept standard input is gone; start a new run directory")
    if size and digest.hexdigest() != sha256:
        raise InputError(
            f"standard input differs from what this run directory was begun with ({copy}); "
            "give the same input, or none, or start a new run directory with -o"
        )


def _chunks(stream: BinaryIO, check: Callable[[], None] | None) -> Iterator[bytes]:
    if check is None:
        while chunk := stream.read(_CHUNK):
            yield chunk
        return
    handle = stream.fileno()  # read from here alone: nothing of it stands in a buffer
    while True:
        check()
        if select.select([handle], [], [], _CHECK_EVERY_S)[0]:
            if not (chunk := os.read(handle, _CHUNK)):
                return
            yield chunk
