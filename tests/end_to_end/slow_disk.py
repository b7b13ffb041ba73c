"""batchrun on a slow disk: `slow_disk.py SECONDS run ...`, for each write to the journal."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from batchrun.cli.main import main

_write = os.write
_seconds = float(sys.argv.pop(1))


def _slow_write(handle: int, data: Any) -> int:
    if "/journal/" in str(Path(f"/proc/self/fd/{handle}").readlink()):
        time.sleep(_seconds)
    return _write(handle, data)


os.write = _slow_write
main()
