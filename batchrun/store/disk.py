"""Files made durable, and what the system says of them turned into `StoreError`."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchrun.errors import StoreError

_ADVICE = {
    errno.ENOSPC: "free space on this disk",
    errno.EDQUOT: "free space or raise your disk quota",
    errno.EFBIG: "raise the limit on file size (ulimit -f) or set a smaller output.part_bytes",
    errno.EROFS: "the file system is read-only: make it writable",
    errno.EACCES: "allow this user to read and write there",
    errno.EPERM: "allow this user to read and write there",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files: close some",
    errno.EIO: "the disk reports an error: check it, or move the run directory to another one",
    errno.ENOENT: "it was moved or deleted: put it back",
}


def store_error(path: Path | str, doing: str, error: OSError) -> StoreError:
    """What could not be done with `path`, why, and what to free or mend."""
    reason = error.strerror or str(error)
    # pyarrow raises its own OSErrors, with the number in the text alone
    number = error.errno or _number_in(str(error))
    advice = _ADVICE.get(number or 0, "check the disk and the rights on this folder")
    return StoreError(
        f"{path}: cannot {doing} ({reason}); {advice}, then run the same command again"
    )


@contextmanager
def storing(path: Path | str, doing: str) -> Iterator[None]:
    """Whatever the system refuses inside becomes a `StoreError` about `path`."""
    try:
        yield
    except OSError as error:
        raise store_error(path, doing, error) from error


# Where a system has no fdatasync (macOS), fsync does more than is needed, and all of it.
_sync = getattr(os, "fdatasync", os.fsync)


def sync_data(handle: int) -> None:
    """What was written to the file is on disk when this returns. Raises `OSError`."""
    _sync(handle)


def sync_file(path: Path) -> None:
    """The file's bytes are on disk when this returns. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """The folder's names are on disk when this returns. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(*paths: Path) -> None:
    """These folders of one folder are there, and their names on disk. Raises `OSError`.

    Synced also where they were there before: whoever made them may have been killed in between.
    """
    for path in paths:
        path.mkdir(mode=0o700, exist_ok=True)
    sync_folder(paths[0].parent)


def write_whole(handle: int, data: bytes | bytearray | memoryview) -> None:
    """All of `data`, though the system may take it in pieces. Raises `OSError`."""
    written = os.write(handle, data)
    while written < len(data):
        written += os.write(handle, memoryview(data)[written:])


def replace_file(path: Path, data: bytes, *, durable: bool) -> None:
    """`path` holds all of `data` or what it held before; on disk when `durable`. `OSError`."""
    temporary = path.with_name(f".{path.name}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_whole(handle, data)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)  # noqa: PTH105 - as the other calls here
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def _number_in(text: str) -> int | None:
    _, found, rest = text.partition("[errno ")
    digits = rest.partition("]")[0]
    return int(digits) if found and digits.isdigit() else None
