"""Names the kind of machine that figures were measured on, and nothing that tells which one."""

import os
import platform
import re
from pathlib import Path


def machine() -> str:
    """`2 cores, CPU model, Python 3.11.2, Linux 6.1`."""
    cores = os.cpu_count() or 1  # not those that this process may use: it is pinned
    kernel = re.match(r"\d+\.\d+", platform.release())
    said = [
        f"{cores} cores" if cores > 1 else "1 core",
        _cpu_model(),
        f"Python {platform.python_version()}",
        f"{platform.system()} {kernel[0] if kernel else ''}".strip(),
    ]
    return ", ".join(one for one in said if one)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
