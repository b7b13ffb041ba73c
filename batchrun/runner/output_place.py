"""Where a run directory is, and whether it can be there, asked before anything is read."""

import os
import re
from pathlib import Path

from batchrun.errors import JobError
from batchrun.formats.json_text import as_utf8
from batchrun.job.job_file import refuse_silence
from batchrun.job.sections import Job
from batchrun.remote.run_link import read_link, scratch_of
from batchrun.remote.urls import is_store, store_url

_HINT = "give another place with -o (output.path)"
_SCRATCH_HINT = "give another folder for the journal with XDG_STATE_HOME, or scratch in [cluster]"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one letter is a drive


def refuse_scheme(text: str) -> None:
    """Raises `JobError` for a URL of no store: as a path it would make folders of these names."""
    if (found := _SCHEME.match(text)) and not is_store(text):
        raise JobError(
            f"{text}: a run directory is a local folder, or in a store (s3://, gs://, abfs://), "
            f"and {found[1]}: is neither; {_HINT}"
        )


def refuse_place(path: Path, url: str | None) -> None:
    """Raises `JobError` where no run directory can be at the path, as far as can be seen.

    `url`: of a run in a store, whose journal is at the path.
    """
    hint = _HINT if url is None else _SCRATCH_HINT
    try:
        nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
        is_folder = nearest.is_dir()
    except OSError as error:
        if isinstance(error, FileNotFoundError):  # what `absolute` asks for
            raise JobError(
                "the working directory no longer exists; change into one that exists (cd), or "
                "give -o and all other paths as absolute ones"
            ) from error
        raise JobError(f"{path}: cannot be used ({error.strerror}); {hint}") from error
    if not is_folder:
        raise JobError(f"{nearest} is a file, and a run directory is a folder; {hint}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        where = path if nearest == path else f"{path}: the folder {nearest}"
        raise JobError(f"{where} cannot be written by this user; {hint}, or change its rights")


def run_path(job: Job, *, simulate: bool = False) -> Path:
    """The run directory; of a run in a store its folder on this machine.

    Raises `JobError` where the source gives no name that serves.
    """
    path = job.output.path
    if path is not None and is_store(path):
        return scratch_of(store_url(path).full, job.cluster.scratch)
    if path is None:
        if not job.name:
            raise JobError(
                "no run directory: standard input, globs and run directories as a source have no "
                "name for it; give -o DIR"
            )
        path = f"runs/{job.name}-simulated" if simulate else f"runs/{job.name}"
    refuse_scheme(path)
    if as_utf8(path) != path:
        raise JobError(
            "the run directory's name is not UTF-8, which Parquet needs; give another one with -o"
        )
    if "\0" in path:
        raise JobError("output.path holds a NUL character, which no file name may; give -o DIR")
    return Path(path)


def store_run_url(job: Job, path: Path) -> str | None:
    """The URL of a run in a store, also where the job names only its folder on this machine.

    `path`: as `run_path` says. Raises `JobError` where the run cannot be in a store as the job is,
    `StoreError`.
    """
    given = job.output.path
    if given is not None and is_store(given):
        return store_url(given).full
    link = read_link(path)
    if link is None:
        return None
    refuse_silence(job.cluster, link.url, str(path))
    return link.url
