"""batchrun on a disk that fails: `failing_disk.py NAME SECONDS run ...`.

What is written to a file whose path holds NAME is refused from the second write on, for so long.
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

from batchrun.cli.main import main

_write = os.write
_name, _seconds = sys.argv.pop(1), float(sys.argv.pop(1))
_written: list[float] = []


def _failing_write(handle: int, data: Any) -> int:
    if _name in str(Path(f"/proc/self/fd/{handle}").readlink()):
        _written.append(time.monotonic())
        if len(_written) > 1 and time.monotonic() - _written[1] < _seconds:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    return _write(handle, data)


os.write = _failing_write
main()
