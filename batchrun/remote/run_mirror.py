"""Brings a run in a store into a folder: copies small files, and writes stubs for parts.

With the claim, it first finishes what a command on another machine left half done. A reader sees it
as if it were done, and changes nothing.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from batchrun.remote.object_stores import ObjectStore, RemoteError, RemoteObject
from batchrun.remote.part_stubs import Stub, read_stub, write_stub
from batchrun.remote.run_link import (
    COPIED_INPUT,
    GONE_FILE,
    NO_WRITER,
    OF_WORKERS,
    SMALL_FILES,
    Link,
    place_of,
    read_link,
    write_durably,
    write_link,
)
from batchrun.remote.run_upload import StoreIntent, finish_intent
from batchrun.remote.urls import store_url

_TABLES = ("responses", "tool_calls")
_JOURNAL = "journal"
_LISTINGS = 10  # while parts are being replaced
_SMALL_BYTES = 1 << 20
_SCORES = "scores"
_SCORE_FILE = re.compile(rf"{_SCORES}/[^/]+/scores\.parquet")


def pull(
    folder: Path, link: Link, *, hold: Callable[[], None] | None = None, is_last: bool = False
) -> Link:
    """Brings the content of the store into the folder; returns the new link.

    What is only in the folder stays. `hold`: with the claim; called before anything in the store is
    changed, it raises `RemoteError` once another command may have the run. `is_last`: no other
    machine has had the claim since, so the folder's files are newer than the store's. Calls that
    carry little fail soon if nothing answers. Raises `RemoteError`, `OSError`.
    """
    quick, prefix = place_of(link, is_first=True)
    names, intents = _names_and_intents(quick, prefix)
    store, _ = place_of(link)
    if hold is not None and (intents or _unfinished(names)):
        for name, intent in intents.items():
            hold()
            if intent is None:
                store.delete(prefix + name)
            else:
                finish_intent(store, prefix, prefix + name, intent)
        names = _names(store, prefix)
        for name in _unfinished(names):  # written without an intent
            hold()
            store.delete(prefix + name)
        intents = {}
    parts = _parts(names, filter(None, intents.values()))
    _place_stubs(folder, link, parts, is_durable=hold is not None)
    _place_scores(folder, link, names)
    seen = _copy_small_files(folder, link, quick, names, is_last=is_last)
    link = replace(link, seen=seen)
    write_link(folder, link)
    return link


def _names_and_intents(
    store: ObjectStore, prefix: str
) -> tuple[dict[str, RemoteObject], dict[str, StoreIntent | None]]:
    """All of the run, and the intents among them; null: half of one, of which nothing was begun.

    An intent that was listed and cannot be read was finished meanwhile: the listing shows parts as
    they were before, and only a new one shows those that it put in their place. Each replacement of
    parts takes its writer several uploads, so few of them can end between a listing and a read.
    Raises `RemoteError`, also where that goes on: half a state is never shown as a whole one.
    """
    for _ in range(_LISTINGS):
        names = _names(store, prefix)
        read = {
            name: store.read(prefix + name)
            for name in names
            if name.startswith(f"{_JOURNAL}/") and name.endswith(".intent")
        }
        if None not in read.values():
            return names, {name: _as_intent(data or b"") for name, data in read.items()}
    raise RemoteError(
        f"{store.name(prefix)}: its parts change faster than they can be read; try again"
    )


def _as_intent(data: bytes) -> StoreIntent | None:
    try:
        return msgspec.json.decode(data, type=StoreIntent)
    except msgspec.MsgspecError:
        return None


def _names(store: ObjectStore, prefix: str, below: str = "") -> dict[str, RemoteObject]:
    found = store.listing(f"{prefix}{below}".rstrip("/"))
    return {one.key.removeprefix(prefix): one for one in found}


def _is_temporary(name: str) -> bool:
    return name.endswith(".tmp") and name.startswith(tuple(f"{table}/." for table in _TABLES))


def _is_named_part(name: str) -> bool:
    is_named = name.startswith(tuple(f"{table}/" for table in _TABLES))
    return is_named and name.endswith(".parquet") and not _is_temporary(name)


def _unfinished(names: Mapping[str, RemoteObject]) -> list[str]:
    """Objects of the tables that are no parts.

    Azure shows an empty one from the moment that it is begun, also after a kill.
    """
    return [
        name
        for name, one in names.items()
        if _is_temporary(name) or (_is_named_part(name) and not one.size)
    ]


def _parts(
    names: dict[str, RemoteObject], intents: Iterable[StoreIntent]
) -> dict[str, tuple[str, RemoteObject]]:
    """The parts that count, with the object that each is read from."""
    found = {name: (name, one) for name, one in names.items() if _is_named_part(name) and one.size}
    for intent in intents:
        if all(temporary in names for temporary in intent.puts.values()):
            found |= {part: (name, names[name]) for part, name in intent.puts.items()}
            for part in intent.deletes:
                found.pop(part, None)
    return found


def _place_stubs(
    folder: Path, link: Link, parts: dict[str, tuple[str, RemoteObject]], *, is_durable: bool
) -> None:
    """Writes stubs. A part that is here as a file is not uploaded yet, and stays."""
    url = store_url(link.url)
    for table in _TABLES:
        (folder / table).mkdir(mode=0o700, exist_ok=True)
        for path in (folder / table).glob("*.parquet"):
            if f"{table}/{path.name}" not in parts and read_stub(path) is not None:
                path.unlink()
    for part, (name, one) in parts.items():
        path, stub = folder / part, Stub(url.below(name), one.size, one.stamp)
        if not path.exists() or read_stub(path) not in (None, stub):
            write_stub(path, stub, is_durable=is_durable)


def pull_scores(folder: Path) -> None:
    """Brings the scores of the store into the folder.

    Does nothing for a run that is not in a store. Raises `RemoteError`, `OSError`, `StoreError`.
    """
    link = read_link(folder)
    if link is not None:
        store, prefix = place_of(link, is_first=True)
        _place_scores(folder, link, _names(store, prefix, _SCORES))


def _place_scores(folder: Path, link: Link, names: Mapping[str, RemoteObject]) -> None:
    url = store_url(link.url)
    found = {n: one for n, one in names.items() if _SCORE_FILE.fullmatch(n) and one.size}
    for path in (folder / _SCORES).glob("*/scores.parquet"):
        if str(path.relative_to(folder)) not in found:
            path.unlink()
    for name, one in found.items():
        path, stub = folder / name, Stub(url.below(name), one.size, one.stamp)
        if not path.exists() or read_stub(path) != stub:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_stub(path, stub)


def _copy_small_files(
    folder: Path,
    link: Link,
    store: ObjectStore,
    names: dict[str, RemoteObject],
    *,
    is_last: bool,
) -> dict[str, tuple[int, int]]:
    """Copies those that another machine has written since; versions of all of them.

    `is_last`: none has. Those that are missing here are copied even so.
    """
    seen = dict(link.seen)
    for name in (*SMALL_FILES, *fnmatch.filter(names, OF_WORKERS), COPIED_INPUT):
        one, is_here = names.get(name), _is_here(folder / name)
        if one is None or (is_last and (name == GONE_FILE or is_here)):
            continue
        # Another machine may have written it in the same second, which is all that stamps tell: of
        # the record, whose numbers for writers must be known, that matters.
        is_seen = seen.get(name) == (one.size, one.stamp)
        if is_here and is_seen and name != SMALL_FILES[0]:
            continue
        # What may take longer to read than until a store that is silent is reported.
        is_large = one.size > _SMALL_BYTES
        data = (place_of(link)[0] if is_large else store).read(one.key)
        if data is not None:
            (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(folder / name, data)
            seen[name] = (one.size, one.stamp)
    return seen


def _is_here(path: Path) -> bool:
    """Whether there is such a file; a record that cannot be read counts as missing."""
    try:
        if path.name == SMALL_FILES[0]:
            msgspec.json.decode(path.read_bytes(), type=_Writers)
        return path.exists()
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return False


def writers_of(names: Iterable[str]) -> set[int]:
    """The writers in the names of these files."""
    found = set()
    for name in names:
        mark = name.rpartition("/")[2].partition("-")[0].partition(".")[0]
        if mark[:1] == "w" and mark[1:].isdecimal():
            found.add(int(mark[1:]))
    return found


class _Writers(msgspec.Struct):
    """What `run.json` says of the numbers of writers, also of workers that never wrote."""

    writers: int = 1


def new_link(url: str, store: ObjectStore) -> Link:
    """A link for a folder without one, with a writer of its own. Raises `RemoteError`.

    Only with the claim; otherwise two folders could get the same writer.
    """
    prefix = f"{store_url(url).key}/"
    writers = writers_of(_names(store, prefix))
    link = Link(url, max(_given(store, prefix), max(writers, default=-1) + 1))
    store.write(f"{prefix}{_JOURNAL}/w{link.writer}.started", b"")
    return link


def _given(store: ObjectStore, prefix: str) -> int:
    """How many numbers the run has given so far. Raises `RemoteError`."""
    key = prefix + SMALL_FILES[0]
    record = store.read(key)
    try:
        return 0 if record is None else msgspec.json.decode(record, type=_Writers).writers
    except msgspec.MsgspecError as error:
        raise RemoteError(f"{store.name(key)}: damaged ({error}); restore it") from error


def is_current(folder: Path, url: str) -> bool:
    """Whether the run was last written from the folder. Raises `RemoteError`, `StoreError`."""
    link = read_link(folder)
    if link is None or link.url != url or link.writer == NO_WRITER:
        return False
    store, prefix = place_of(link, is_first=True)
    if link.claim is not None:
        return store.find(link.claim) is not None
    name = SMALL_FILES[0]
    found = store.find(prefix + name)
    if found is None:
        return True
    if link.seen.get(name) != (found.size, found.stamp):
        return False
    # Stores give times in seconds: another machine may have written it in the same second.
    return store.read(prefix + name) == (folder / name).read_bytes()


def is_doubtful(folder: Path, link: Link) -> bool:
    """Whether another machine, which has written parts, may have completed rows of the journal."""
    parts = [path.name for table in _TABLES for path in (folder / table).glob("*.parquet")]
    has_rows = any((folder / _JOURNAL).glob("w*.log"))
    return has_rows and bool(writers_of(parts) - {link.writer})
