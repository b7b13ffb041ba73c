"""One owner for a run directory: a lock that ends with the process that holds it.

Where the file system cannot lock, the name in the file is all there is: a process of this host that
still lives counts as the owner, and whoever comes in is told that nothing keeps another host out.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from batchrun.errors import JobError
from batchrun.store.disk import store_error

NAME = "lock"
_TRIES = 5  # `is_locked` holds the lock for an instant, which must not look like an owner; ...
_MORE_TRIES = 500  # ... and the process that seals ends a moment after a run that was killed
_BETWEEN_TRIES_S = 0.02
# What file systems say that have no locks: NFS without its lock daemon, Lustre without `flock`, ...
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

Flock = Callable[[int, int], None]


class Lock(Struct, frozen=True):
    """A directory that is ours until the handle is closed."""

    handle: int
    warning: str | None = None  # the file system cannot lock


def take_lock(folder: Path, flock: Flock = fcntl.flock) -> Lock:
    """The lock, held until its handle is closed.

    Raises `JobError`, naming the holder, where another process has it; `StoreError`.
    """
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise store_error(path, "open the lock", error) from error
    try:
        warning = _locked(folder, handle, flock)
        if not _is_at(path, handle):  # whoever had it took the directory away
            os.close(handle)
            return take_lock(folder, flock)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = _in_words(_holder(handle))
        os.close(handle)
        raise JobError(
            f"{folder} is in use by {holder}; wait for it, stop it, or give another directory "
            f"with --output (batchrun status {folder} shows what it does)"
        ) from None
    except OSError as error:
        os.close(handle)
        raise store_error(path, "lock", error) from error
    return Lock(handle, warning)


def _is_at(path: Path, handle: int) -> bool:
    """Whether this is the file of that name. Raises `OSError`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def is_locked(folder: Path, flock: Flock = fcntl.flock) -> bool:
    """Whether a process holds the lock. Raises `StoreError`."""
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(path, "open the lock", error) from error
    try:
        flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return bool(_lives(_holder(handle)))
        raise store_error(path, "lock", error) from error
    finally:
        os.close(handle)
    return False


def _locked(folder: Path, handle: int, flock: Flock) -> str | None:
    """What to warn of once the lock is ours. Raises `BlockingIOError` where another has it."""
    tries = 0
    while True:
        try:
            flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tries += 1
            if tries >= (_MORE_TRIES if _lives(_holder(handle)) is False else _TRIES):
                raise
            time.sleep(_BETWEEN_TRIES_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            before = _holder(handle)
            if _lives(before):
                raise BlockingIOError from error
            last = "" if before is None else f" (the last was {_in_words(before)})"
            return (
                f"{folder} is on a file system that cannot lock ({error.strerror}): nothing keeps "
                f"a process on another host out, so see that there is none{last}, or give a "
                "directory on a local disk with --output"
            )
        else:
            return None


def _holder(handle: int) -> tuple[str, int] | None:
    """Host and process id of who wrote its name last; null where it cannot be read."""
    text = os.pread(handle, 400, 0).decode("utf-8", "replace")
    host, _, process = text.strip().rpartition(" ")
    if not host or not (process.isascii() and process.isdigit()):
        return None
    return host, int(process)


def _in_words(holder: tuple[str, int] | None) -> str:
    return "another process" if holder is None else f"process {holder[1]} on {holder[0]}"


def _lives(holder: tuple[str, int] | None) -> bool | None:
    """Whether the process is still there; null for this one, one of another host, or none."""
    if holder is None or holder[0] != socket.gethostname() or holder[1] == os.getpid():
        return None
    try:
        os.kill(holder[1], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True
