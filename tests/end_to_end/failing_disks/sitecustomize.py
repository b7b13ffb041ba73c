"""In every Python process that finds it: the disks of some workers of a run fail.

A file `failing_disks` beside the run directory says of which, and for how long: `w1 w2 60`. From
the second write on, what such a worker writes to its journal is refused for so many seconds.
"""

import errno
import os
import time
from pathlib import Path
from typing import Any

_write = os.write
_written: list[float] = []


def _failing_write(handle: int, data: Any) -> int:
    path = Path(f"/proc/self/fd/{handle}").readlink()
    if path.suffix == ".log" and path.parent.name == "journal":
        said = path.parents[2] / "failing_disks"
        *writers, seconds = said.read_text().split() if said.exists() else ["0"]
        if path.name.partition("-")[0] in writers:
            _written.append(time.monotonic())
            if len(_written) > 1 and time.monotonic() - _written[1] < float(seconds):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
    return _write(handle, data)


os.write = _failing_write
