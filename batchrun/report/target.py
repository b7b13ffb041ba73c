"""Whether a file may be written that a user named. Nothing in a run directory ever is."""

from pathlib import Path

from batchrun.errors import JobError
from batchrun.store.tables import read_record


def check_target(path: Path, target: Path) -> None:
    """Raises `JobError` where `path` is no run directory, or `target` no file outside of it."""
    read_record(path)
    if target.exists() and not target.is_file():
        raise JobError(f"{target} is no regular file; give the name of a file to write")
    if not target.parent.is_dir():
        raise JobError(f"{target.parent} is no folder; make it first, or give another file")
    if target.resolve().is_relative_to(path.resolve()):
        raise JobError(f"{target} lies in the run directory itself; give a file outside of {path}")
