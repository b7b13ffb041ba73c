"""In every Python process that finds it: files below a folder `without_locks` cannot be locked.

As on a file system that has none, which no test can mount. With HOST_EACH in the environment, each
process has a host's name of its own: whether one of this host lives can be known without a lock.
"""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Any

_flock, _name = fcntl.flock, socket.gethostname


def _lock(handle: Any, how: int) -> None:
    number = handle if isinstance(handle, int) else handle.fileno()
    if "/without_locks/" in str(Path(f"/proc/self/fd/{number}").readlink()):
        raise OSError(errno.ENOLCK, "no locks here")
    _flock(handle, how)


fcntl.flock = _lock
if "HOST_EACH" in os.environ:
    socket.gethostname = lambda: f"{_name()}-{os.getpid()}"
