"""A run that another process has, shown until it ends."""

import time
from pathlib import Path
from typing import TextIO

from batchrun.progress.display import Progress
from batchrun.progress.planning import Planning
from batchrun.progress.status import read_status
from batchrun.store import reading
from batchrun.store.files import is_locked

_LOOK_EVERY_S = 0.5


def watch_run(path: Path, stream: TextIO) -> None:
    """Shows what `run` itself shows, until no process has the directory or nobody reads it.

    Raises `JobError` where it is not a run directory, `StoreError`.
    """
    progress = Progress(stream)
    try:
        while is_locked(path) and not progress.is_closed:
            if reading.is_planning(path):
                progress.close()
                _wait_for_plan(path, stream)
            else:
                progress.show(read_status(path))
                time.sleep(_LOOK_EVERY_S)
    finally:
        progress.close()


def _wait_for_plan(path: Path, stream: TextIO) -> None:
    with Planning(stream) as said:
        said.doing("the input is read, nothing is sent yet")
        while is_locked(path) and reading.is_planning(path):
            time.sleep(_LOOK_EVERY_S)
