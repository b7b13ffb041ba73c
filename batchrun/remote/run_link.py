"""A run in a store: the folder on this machine that it is written from, or read through.

The folder is a run directory like any other, with journal, lock and `run.json`. `store.json` in it
says that it belongs to a store; for parts in the store it has stubs (`part_stubs`).
"""

import os
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError, StoreError
from batchrun.remote.object_stores import ObjectStore, RemoteError, store_of
from batchrun.remote.urls import store_url

LINK_FILE = "store.json"
CLAIMS = "claims"
GONE_FILE = "gone.parquet"  # the only one of the next that a command deletes
# The files of a run beside its tables; they are also in the store.
SMALL_FILES = ("run.json", "live.json", "events.jsonl", GONE_FILE, "unreadable.jsonl")
OF_WORKERS = "unreadable-w*.jsonl"  # as the last of these
COPIED_INPUT = "input/stdin.jsonl"


NO_WRITER = -1  # the folder has not got one yet


class Link(Struct, frozen=True):
    """The content of `store.json`."""

    url: str  # of the run, as batchrun writes it; without credentials
    writer: int = 0  # the writer of the parts from here; each folder has another one
    claim: str | None = (
        None  # the key of the object that keeps other machines out, while it is ours
    )
    # The same while it is being taken or released: a kill leaves none that is unknown.
    begun: str | None = None
    is_doubtful: bool = False  # another machine may have completed rows of the journal since
    # For small files: size and time of the object that was last written or read here.
    seen: dict[str, tuple[int, int]] = {}


def read_link(folder: Path) -> Link | None:
    """Reads `store.json`; None for a run that is not in a store. `StoreError` if damaged."""
    path = folder / LINK_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Link)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}); this file says which store the run is in. Restore "
            "it; or, if nothing in the journal beside it is needed, delete the folder. Then run "
            "the same command again"
        ) from error


def write_link(folder: Path, link: Link) -> None:
    """Writes it and syncs it. Raises `OSError`."""
    write_durably(folder / LINK_FILE, msgspec.json.format(msgspec.json.encode(link)) + b"\n")


def change_link(folder: Path, **changes: object) -> Link:
    """Changes these fields. Raises `OSError`, `StoreError`."""
    link = read_link(folder)
    if link is None:
        raise StoreError(f"{folder / LINK_FILE}: deleted during the run; restore it")
    link = replace(link, **changes)
    write_link(folder, link)
    return link


def run_name(folder: Path) -> str:
    """The name of the run for users: its URL or its path."""
    link = read_link(folder)
    return str(folder) if link is None else link.url


def scratch_of(url: str, scratch: str | None = None) -> Path:
    """The folder on this machine for the run at the URL; it is not made here.

    `scratch`: the folder that it is in; by default one that holds the state of programs, never a
    temporary one, since the journal holds answers that were paid for. Raises `JobError`.
    """
    where = store_url(url)
    if not where.key:
        raise JobError(f"{url}: a run is a folder in a bucket; write -o {url}/NAME")
    if scratch:
        base = Path(scratch).expanduser().absolute()
    else:
        try:
            state = os.environ.get("XDG_STATE_HOME", "")
            base = Path(state) if Path(state).is_absolute() else Path.home() / ".local/state"
        except RuntimeError as error:
            raise JobError(
                "there is no home directory for the journal of a run in a store; set "
                "XDG_STATE_HOME, or scratch in [cluster]"
            ) from error
        base /= "batchrun"
    mark = sha256(str(where).encode()).hexdigest()[:16]
    return base / f"{where.key.rpartition('/')[2]}-{mark}"


def is_in_store(url: str) -> bool:
    """Whether there is a run at the URL. Raises `JobError` if the store cannot be used."""
    store, key = store_of(url, is_first=True)
    try:
        return store.find(f"{key}/{SMALL_FILES[0]}") is not None
    except RemoteError as error:
        raise JobError(str(error)) from error


def place_of(link: Link, *, is_first: bool = False) -> tuple[ObjectStore, str]:
    """The store and the prefix of the run's objects; the prefix ends with a slash."""
    store, key = store_of(link.url, is_first=is_first)
    return store, f"{key}/"


def write_durably(path: Path, data: bytes) -> None:
    """Replaces the file by `data`, wholly or not at all, and syncs it. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
