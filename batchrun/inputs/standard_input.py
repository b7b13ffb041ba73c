"""What comes from standard input is kept in the run directory, since it cannot be read again."""

import hashlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from batchrun.errors import InputError, StoreError

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
