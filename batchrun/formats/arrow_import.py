"""Arrow as a process of batchrun's own imports it: to be called before pyarrow is imported."""

import os
import sys


def prepare_arrow_import() -> None:
    """Without what no command needs; a library's process is left as it is."""
    sys.meta_path.insert(0, _WithoutPandas)
    # Arrow's own pool clears memory by 2 MB for small arrays: on one core up to a tenth of a run's
    # CPU, and 35 MB at its peak.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


class _WithoutPandas:
    """pyarrow imports these where they are installed: 0.3 s of CPU and 65 MB."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name in ("numpy", "pandas"):
            raise ModuleNotFoundError(name, name=name)
