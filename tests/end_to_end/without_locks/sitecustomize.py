"""In every Python process that finds it: files below a folder `without_locks` cannot be locked.

As on a file system that has none, which no test can mount.
"""

import errno
import fcntl
from pathlib import Path
from typing import Any

_flock = fcntl.flock


def _lock(handle: Any, how: int) -> None:
    number = handle if isinstance(handle, int) else handle.fileno()
    if "/without_locks/" in str(Path(f"/proc/self/fd/{number}").readlink()):
        raise OSError(errno.ENOLCK, "no locks here")
    _flock(handle, how)


fcntl.flock = _lock
