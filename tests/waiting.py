"""How long tests wait: as long as only a hang lasts, on any machine and beside any other work."""

import subprocess
import time
from collections.abc import Callable

# For one process to end, or one state to come about. It says that something hangs, never that
# something is slow. `timeout` in pyproject.toml is the same for a whole test.
HANG_S = 300.0
_LOOK_EVERY_S = 0.005


def wait_until(holds: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for a state to come about, while a process runs where one is named."""
    end_s = time.monotonic() + HANG_S
    while not holds():
        assert process is None or process.poll() is None, "the process ended before"
        assert time.monotonic() < end_s, "it never came about"
        time.sleep(_LOOK_EVERY_S)
