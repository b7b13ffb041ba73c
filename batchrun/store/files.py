"""The files of a run directory: their names, durable writes, and the locks.

`lock` is held by the command that has the directory. Each worker of a run holds its own,
`journal/wN.lock`: a worker whose lock can be taken is dead.

If the file system cannot lock, the lock file only names the owner: a process of this host that is
still alive counts as the owner. The next command warns that a process of another host could write
at the same time.
"""

import errno
import fcntl
import fnmatch
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from batchrun.errors import JobError, StoreError
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.run_link import LINK_FILE, OF_WORKERS, SMALL_FILES

JOURNAL = "journal"
RESPONSES = "responses"
TOOL_CALLS = "tool_calls"
TABLES = (RESPONSES, TOOL_CALLS)
SCORES = "scores"  # a folder for each scorer
SCORES_FILE = "scores.parquet"
INPUT = "input"
STDIN_COPY, APPENDED_COPY = "stdin.jsonl", "appended.jsonl"  # standard input, in `INPUT`
LOCK = "lock"
WRITER = 0  # the command that has the run; its workers are 1, 2, ...

_NUMBERED = re.compile(r"w(\d+)-(\d{6,})(\.log|\.intent|(-not_ok|-other)?\.parquet)")
_OPEN = re.compile(r"w(\d+)\.(open|started)")
_WORKER_LOCK = re.compile(r"w(\d+)\.lock")
_OF_WRITER = re.compile(r"\.?(?:damaged-)?w(\d+)[-.]")


class FileId(NamedTuple):
    """The name that a segment, its intent and its parts share; ordered by time."""

    writer: int
    number: int

    def __str__(self) -> str:
        return f"w{self.writer}-{self.number:06}"

    @property
    def segment(self) -> str:
        return f"{self}.log"

    @property
    def intent(self) -> str:
        return f"{self}.intent"

    def part(self, table: str, *, not_ok: bool = False) -> str:
        """`not_ok`: of rows that are not ok, so that sending them again rewrites little."""
        return f"{table}/{self}{'-not_ok' if not_ok else ''}.parquet"


def is_numbered(name: str) -> bool:
    """Whether it is a name that writers give; for parts, with or without their folder."""
    return _NUMBERED.fullmatch(name.rpartition("/")[2]) is not None


def id_of(name: str) -> FileId:
    """The id in the name. Raises `ValueError` for a name that no writer gives."""
    if found := _NUMBERED.fullmatch(name.rpartition("/")[2]):
        return FileId(int(found[1]), int(found[2]))
    raise ValueError(name)


def numbered(folder: Path, ending: str) -> tuple[str, ...]:
    """The names in `folder` that writers give, with this ending, in order. Raises `OSError`."""
    names = (name for name in _entries(folder) if name.endswith(ending) and is_numbered(name))
    return tuple(sorted(names, key=lambda name: (id_of(name), name)))


def part_names(run: Path, *tables: str) -> list[str]:
    """The names of all parts, with their folder: `responses/w0-000001.parquet`. `OSError`."""
    return [f"{one}/{name}" for one in tables for name in numbered(run / one, ".parquet")]


def next_id(run: Path, writer: int) -> FileId:
    """The first free id for a segment of the writer, after all that it has. `OSError`."""
    names = [*numbered(run / JOURNAL, ".log"), *part_names(run, *TABLES)]
    mine = [of.number for of in map(id_of, names) if of.writer == writer]
    return FileId(writer, max(mine, default=0) + 1)


def current_name(part: str) -> str:
    """The name of a part in schema 2."""
    return part.replace("-other.parquet", "-not_ok.parquet")


def open_name(writer: int) -> str:
    """The file with what is known about rows without an outcome."""
    return f"w{writer}.open"


def open_files(folder: Path) -> tuple[str, ...]:
    """The names in `folder` of files of unfinished rows, of all writers. Raises `OSError`.

    The last record of a row counts. Files of schema 1 come first: a kill may have left them beside
    the file that replaces them. A worker's file comes after the command's, since it knows more
    about its rows; no two workers have the same rows.
    """
    names = (name for name in _entries(folder) if _OPEN.fullmatch(name))
    return tuple(sorted(names, key=lambda name: (name.endswith(".open"), writer_of(name), name)))


def writer_of(name: str) -> int | None:
    """The writer of a file, also of a temporary one; None for a name that no writer gives."""
    found = _OF_WRITER.match(name.rpartition("/")[2])
    return None if found is None else int(found[1])


def highest_writer(run: Path) -> int:
    """The highest writer with a file; 0 if there is none. Raises `OSError`."""
    names = [name for folder in (JOURNAL, *TABLES) for name in _entries(run / folder)]
    return max((one for one in map(writer_of, names) if one is not None), default=WRITER)


def lock_name(writer: int) -> str:
    """The lock of a worker, as a path in the run directory."""
    return f"{JOURNAL}/w{writer}.lock"


def drained_name(writer: int) -> str:
    """The file that says that a worker has ended or must not begin; a path in the run."""
    return f"{JOURNAL}/w{writer}.drained"


def workers_of(run: Path) -> list[int]:
    """The workers that have a lock, dead or alive, in order. Raises `OSError`."""
    found = map(_WORKER_LOCK.fullmatch, _entries(run / JOURNAL))
    return sorted(int(one[1]) for one in found if one is not None)


def see_all(run: Path) -> None:
    """Makes new files of other hosts in the run directory visible here.

    NFS may list old names for up to a minute, except in a folder that was changed from here.
    Raises `OSError`.
    """
    for folder in (JOURNAL, *TABLES):
        with suppress(FileNotFoundError):
            name = run / folder / temporary_name(f"seen-{os.getpid()}")
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            name.unlink()


def temporary_name(name: str) -> str:
    """A name that `*.parquet`, `*.log` and `*.intent` never match."""
    folder, slash, name = name.rpartition("/")
    return f"{folder}{slash}.{name}.tmp"


def final_name(temporary: str) -> str:
    return temporary.removesuffix(".tmp").replace("/.", "/")


def temporaries(run: Path, *folders: str) -> list[str]:
    """The files that unfinished writes left in folders of a run directory. `OSError`.

    Beside its own files, users may have others of such names in the run directory itself (`""`).
    """
    return [
        str(Path(folder, name))
        for folder in folders
        for name in sorted(_entries(run / folder))
        if name[0] == "." and name[-4:] == ".tmp" and (folder or _is_of_run(name[1:-4]))
    ]


def _is_of_run(name: str) -> bool:
    return name in (*SMALL_FILES, LINK_FILE) or fnmatch.fnmatch(name, OF_WORKERS)


def unfinished_name(name: str) -> str:
    """The name of a copy of standard input that has not come to its end."""
    return f".{name}.unfinished"


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def first_foreign(folder: Path) -> str | None:
    """A name in a folder without `run.json` that no command has left there. Raises `OSError`.

    A command that was killed before it saved that leaves its lock, standard input as far as it was
    copied and, of a run in a store, what it had brought. `FileNotFoundError`: there is no folder.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    there = [name for name in (JOURNAL, *TABLES, INPUT) if (folder / name).is_dir()]
    inside = {name: _entries(folder / name) for name in there}
    rows = [one for name, some in inside.items() if name != INPUT for one in some]
    if any(is_numbered(one) or _OPEN.fullmatch(one) for one in rows):
        return None  # a run whose `run.json` is missing, which is another mistake
    ours = {*there, *temporaries(folder, ""), *(SMALL_FILES if LINK_FILE in names else ())}
    ours |= {LINK_FILE, LOCK} if _may_be_lock(folder / LOCK) else {LINK_FILE}
    copies = {STDIN_COPY, unfinished_name(STDIN_COPY)} if (folder / LOCK).exists() else set()
    foreign = [name for name in names if name not in ours]
    for name, some in inside.items():
        if name == INPUT:
            foreign += [f"{name}/{one}" for one in some if one not in copies]
        else:
            foreign += [f"{name}/{one}" for one in some if writer_of(one) is None]
    return next(iter(foreign), None)


_ADVICE = {
    errno.ENOSPC: "free space on this disk",
    errno.EDQUOT: "free space or raise your disk quota",
    errno.EFBIG: "raise the limit on file size (ulimit -f) or set a smaller output.part_bytes",
    errno.EROFS: "the file system is read-only: make it writable",
    errno.EACCES: "allow this user to read and write there",
    errno.EPERM: "allow this user to read and write there",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files: close some",
    errno.EIO: "the disk reports an error: check it, or move the run directory to another one",
    errno.ENOENT: "it was moved or deleted: restore it",
}


def store_error(path: Path | str, doing: str, error: OSError) -> StoreError:
    """An error that says what could not be done with `path`, why, and what to fix."""
    if isinstance(error, RemoteError):
        return StoreError(f"{error}; then run the same command again")
    reason = error.strerror or str(error)
    number = error.errno
    if number is None and (found := re.search(r"\[errno ([0-9]+)\]", str(error))):
        number = int(found[1])  # pyarrow's own OSErrors have the number only in the text
    advice = _ADVICE.get(number or 0, "check the disk and the rights on this folder")
    return StoreError(
        f"{path}: cannot {doing} ({reason}); {advice}, then run the same command again"
    )


@contextmanager
def storing(path: Path | str, doing: str) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StoreError` about `path`."""
    try:
        yield
    except OSError as error:
        raise store_error(path, doing, error) from error


# A system without fdatasync (macOS) has fsync, which does more than is needed.
_sync = getattr(os, "fdatasync", os.fsync)


def sync_data(handle: int) -> None:
    """Writes the file's data to disk. Raises `OSError`."""
    _sync(handle)


def sync_path(path: Path) -> None:
    """Writes the bytes of a file, or the names in a folder, to disk. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(*paths: Path) -> None:
    """Makes these folders of one folder, with their names on disk. Raises `OSError`.

    Existing ones are synced too: whoever made them may have been killed before the sync.
    """
    for path in paths:
        path.mkdir(mode=0o700, exist_ok=True)
    sync_path(paths[0].parent)


def write_whole(handle: int, data: bytes | bytearray | memoryview) -> None:
    """Writes all of `data`, even if the system takes it in pieces. Raises `OSError`."""
    written = os.write(handle, data)
    while written < len(data):
        written += os.write(handle, memoryview(data)[written:])


def replace_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Replaces the file by `data`, wholly or not at all; on disk if `durable`.

    Raises `OSError`; it may have been replaced even so.
    """
    replace_content(path, data, durable=durable)
    if durable:
        sync_path(path.parent)


def replace_content(path: Path, data: bytes, *, durable: bool) -> None:
    """As `replace_file`, and as it was if it raises; durable only with its folder synced."""
    temporary = path.with_name(temporary_name(path.name))
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_whole(handle, data)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)  # noqa: PTH105 - as the other calls here
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


_ATTEMPTS = 5  # `is_locked` holds the lock for a moment, which must not look like an owner; ...
_MORE_ATTEMPTS = 500  # ... after a kill, the process that seals ends a moment later than the run
_PAUSE_S = 0.02  # between two attempts
# Errors of file systems without locks: NFS without its lock daemon, Lustre without `flock`, ...
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

Flock = Callable[[int, int], None]


class Lock(Struct, frozen=True):
    """A lock that is held until the handle is closed."""

    handle: int
    warning: str | None = None  # the file system cannot lock


def take_lock(folder: Path, flock: Flock = fcntl.flock, name: str = LOCK) -> Lock:
    """Takes the lock. Raises `JobError` if another process has it; `StoreError`."""
    path = folder / name
    with storing(path, "open the lock"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        warning = _lock_or_warn(folder, handle, flock)
        if not _is_at(path, handle):  # its last owner has removed the directory
            os.close(handle)
            return take_lock(folder, flock, name)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = _in_words(_owner(handle))
        os.close(handle)
        raise JobError(
            f"{folder} is in use by {owner}; wait until it has ended, stop it, or give another "
            f"directory with --output (batchrun status {folder} shows what it is doing)"
        ) from None
    except OSError as error:
        os.close(handle)
        raise store_error(path, "lock", error) from error
    return Lock(handle, warning)


def _is_at(path: Path, handle: int) -> bool:
    """Whether the handle is of the file with that name. Raises `OSError`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _may_be_lock(path: Path) -> bool:
    """Whether it is one line, as `take_lock` writes it, or nothing. Raises `OSError`.

    A loss of power may leave anything of that.
    """
    try:
        with path.open("rb") as file:
            return len(file.read(4096).splitlines()) <= 1
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False


def try_lock(path: Path, flock: Flock = fcntl.flock) -> Lock | None:
    """Takes the lock of a dead worker; None if the worker is alive, or may be. `StoreError`.

    It has a warning if only the caller can know whether the worker is dead.
    """
    with storing(path, "open the lock"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        is_alive = isinstance(error, BlockingIOError)
        if not is_alive and error.errno not in _NO_LOCKS:
            os.close(handle)
            raise store_error(path, "lock", error) from error
        owner = None if is_alive else _owner(handle)
        if is_alive or (is_known := _is_alive(owner)):
            os.close(handle)
            return None
        return Lock(handle, None if is_known is False else f"{path}: {error.strerror}")
    return Lock(handle)


def owner_in_words(path: Path) -> str:
    """`process 17 on host`: who took the lock last. Raises `StoreError`."""
    with storing(path, "read"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return _in_words(None)
        try:
            return _in_words(_owner(handle))
        finally:
            os.close(handle)


def is_locked(folder: Path, flock: Flock = fcntl.flock) -> bool:
    """Whether a process writes to the directory: a command or a worker. Raises `StoreError`."""
    return is_driven(folder, flock) or bool(live_workers(folder, flock))


def is_driven(folder: Path, flock: Flock = fcntl.flock) -> bool:
    """Whether a command has the directory. Raises `StoreError`."""
    return _is_held(folder / LOCK, flock)


def live_workers(folder: Path, flock: Flock = fcntl.flock) -> list[int]:
    """The workers that write to the directory. Raises `StoreError`."""
    with storing(folder / JOURNAL, "list"):
        workers = workers_of(folder)
    return [one for one in workers if _is_held(folder / lock_name(one), flock)]


def _is_held(path: Path, flock: Flock) -> bool:
    with storing(path, "open the lock"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
    try:
        flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return bool(_is_alive(_owner(handle)))
        raise store_error(path, "lock", error) from error
    finally:
        os.close(handle)
    return False


def _lock_or_warn(folder: Path, handle: int, flock: Flock) -> str | None:
    """Takes the lock; returns a warning or None. Raises `BlockingIOError` if another has it."""
    attempts = 0
    while True:
        try:
            flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            attempts += 1
            is_orphaned = _is_alive(_owner(handle)) is False
            if attempts >= (_MORE_ATTEMPTS if is_orphaned else _ATTEMPTS):
                raise
            time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            before = _owner(handle)
            if _is_alive(before):
                raise BlockingIOError from error
            last = "" if before is None else f" (the last was {_in_words(before)})"
            return (
                f"{folder} is on a file system that cannot lock ({error.strerror}), so a process "
                f"on another machine could write to it too; make sure that there is none{last}, or "
                "give a directory on a local disk with --output"
            )
        else:
            return None


def _owner(handle: int) -> tuple[str, int] | None:
    """The host and the process id in the lock file; None if it cannot be read."""
    text = os.pread(handle, 400, 0).decode("utf-8", "replace")
    found = re.fullmatch(r"(.+) ([0-9]+)", text.strip())
    return (found[1], int(found[2])) if found else None


def _in_words(owner: tuple[str, int] | None) -> str:
    return "another process" if owner is None else f"process {owner[1]} on {owner[0]}"


def _is_alive(owner: tuple[str, int] | None) -> bool | None:
    """Whether the process still runs; None for this one, for one of another host, or none."""
    if owner is None or owner[0] != socket.gethostname() or owner[1] == os.getpid():
        return None
    try:
        os.kill(owner[1], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return not _has_died(owner[1])


def _has_died(pid: int) -> bool:
    """Whether nothing is left of it but its exit code, as far as this system tells."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
        return state in (b"Z", b"X")
    return False
