"""What comes from standard input is kept in the run directory, since it cannot be read again."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from batchrun.errors import InputError, StoreError

_CHUNK = 1024 * 1024


def keep_input(stream: BinaryIO, copy: Path) -> str:
    """Copies the stream to `copy`, durable when it returns; the SHA-256 of its bytes, in hex."""
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    digest = hashlib.sha256()
    try:
        with unfinished.open("wb") as file:
            while chunk := stream.read(_CHUNK):
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


def check_input(stream: BinaryIO, copy: Path, sha256: str | None) -> None:
    """Nothing, or what was kept, must come from the stream again. Raises `InputError`."""
    digest = hashlib.sha256()
    size = 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if not copy.exists():
        raise InputError(f"{copy}: the kept standard input is gone; start a new run directory")
    if size and digest.hexdigest() != sha256:
        raise InputError(
            f"standard input differs from what this run directory was begun with ({copy}); "
            "give the same input, or none, or start a new run directory with -o"
        )
