"""One owner for a run directory: a lock that ends with the process that holds it."""

import fcntl
import os
import socket
import time
from pathlib import Path

from batchrun.errors import JobError
from batchrun.store.disk import store_error

NAME = "lock"
_TRIES = 5  # `is_locked` holds the lock for an instant, which must not look like an owner
_BETWEEN_TRIES_S = 0.02


def take_lock(folder: Path) -> int:
    """The handle that holds the lock until it is closed.

    Raises `JobError`, naming the holder, where another process has it; `StoreError`.
    """
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise store_error(path, "open the lock", error) from error
    try:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(_BETWEEN_TRIES_S)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = _holder(handle)
        os.close(handle)
        raise JobError(
            f"{folder} is in use by {holder}; wait for it, stop it, or give another directory "
            f"with --output (batchrun status {folder} shows what it does)"
        ) from None
    except OSError as error:
        os.close(handle)
        raise store_error(path, "lock", error) from error
    return handle


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock. Raises `StoreError`."""
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(path, "open the lock", error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise store_error(path, "lock", error) from error
    finally:
        os.close(handle)
    return False


def _holder(handle: int) -> str:
    text = os.pread(handle, 400, 0).decode("utf-8", "replace")
    host, _, process = text.strip().rpartition(" ")
    if not host or not process.isdigit():
        return "another process"
    return f"process {process} on {host}"
