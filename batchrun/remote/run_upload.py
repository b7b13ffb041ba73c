"""Writes a run into its store: parts, whole and checked, and small files.

A part counts when an object with its name has its size. If parts are replaced (rows were sent
again), all new versions are first written under temporary names. Then an intent names them: from
then on they count, whether or not they have their final names yet. The next command that has the
run finishes the intent (`run_mirror`).

A command that has lost its claim may have an upload under way, which arrives when another one has
the run. So the temporary names of each intent are its own, and an intent counts only while all of
its temporary objects are there: the command that takes the run deletes those that no intent names.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.remote.claims import Claim, ClaimLost, ClaimRenewal
from batchrun.remote.object_stores import (
    ObjectStore,
    RemoteError,
    RemoteObject,
    spare_key,
    store_of,
)
from batchrun.remote.part_stubs import Stub, read_stub, write_stub
from batchrun.remote.run_link import CLAIMS, SMALL_FILES, Link, place_of, read_link, run_name
from batchrun.remote.urls import store_url

_PATIENCE_S = 300.0  # for one part, beyond the library's retries; the journal has its rows
_PAUSE_S = 5.0


class StoreIntent(Struct, frozen=True):
    """Parts that are replaced together: names in the run."""

    puts: dict[str, str]  # the parts, with their temporary names
    deletes: tuple[str, ...]


def put_parts(folder: Path, parts: Sequence[str], *, are_new: bool = False) -> None:
    """Uploads these parts of the folder one by one, and replaces them by stubs.

    Does nothing for a run that is not in a store. `are_new`: none of them stays there if the claim
    is lost meanwhile, since another command sends their rows again; no other one gives their names.
    Raises `RemoteError`, `OSError`, `StoreError`.
    """
    link = read_link(folder)
    if link is None:
        return
    target = _Target(link, partial(_find_claim, folder))
    try:
        for part in parts:
            path = folder / part
            if not path.exists():
                target.hold()
                target.store.delete(target.prefix + part)
            elif read_stub(path) is None:
                write_stub(path, target.upload(part, path))
    except ClaimLost:
        for part in parts if are_new else ():
            with suppress(RemoteError):  # the next command from here tries it again
                target.store.delete(target.prefix + part)
        raise


def put_file(folder: Path, name: str, path: Path) -> None:
    """Uploads the file under this name in the run, and replaces `path` by a stub.

    As `put_parts`; another command may have the claim.
    """
    link = read_link(folder)
    if link is not None:
        target = _Target(link, lambda: None)
        write_stub(path, target.upload(name, path))


@contextmanager
def publishing(url: str, folder: Path) -> Iterator[Callable[[], None]]:
    """The place at the URL is this process's during the block; yields what fills it.

    That uploads the run directory `folder`, which only this process has; `run.json` last: until
    then it is not a run. It raises `RemoteError` and `OSError`.
    Raises `JobError` if something is at the URL, or if the store cannot be used.
    """
    refuse_taken(url)
    where = store_url(url)
    first, key = store_of(where.full, is_first=True)
    store_of(where.full)  # S3's library opens no store while a call goes on
    claim = Claim(first, f"{key}/", folder)

    def is_untouched() -> bool:
        return claim.is_alone() and first.find(f"{key}/{SMALL_FILES[0]}") is None

    try:
        claim.take(str(where))
    except RemoteError as error:
        raise JobError(str(error)) from error
    renewal = ClaimRenewal(claim)
    renewal.is_untouched = is_untouched
    try:
        refuse_taken(url)  # it was not this process's before
        yield partial(_publish, folder, _Target(Link(where.full), renewal.wait))
    finally:
        renewal.end()
        claim.give_up()


def _publish(folder: Path, target: "_Target") -> None:
    for table in ("tool_calls", "responses"):
        for path in sorted((folder / table).glob("*.parquet")):
            target.upload(f"{table}/{path.name}", path)
    for name in reversed(SMALL_FILES):
        if (folder / name).exists():
            target.upload(name, folder / name)


def refuse_taken(url: str) -> None:
    """Raises `JobError` if objects are at the URL, or if the store cannot be used."""
    store, key = store_of(store_url(url).full, is_first=True)
    try:
        found = store.listing(key)
    except RemoteError as error:
        raise JobError(str(error)) from error
    there = next((one.key for one in found if not one.key.startswith(f"{key}/{CLAIMS}/")), None)
    if there is not None:
        raise JobError(
            f"{url} exists already ({store.name(there)}); give another place with -o, or delete "
            "it: an import that was killed leaves such objects"
        )


def replace_together(
    folder: Path, intent_name: str, puts: Sequence[tuple[str, str]], deletes: Sequence[str]
) -> None:
    """Several parts change at once. As `put_parts`.

    `puts`: names in the folder, and of the parts that they become.
    """
    link = read_link(folder)
    if link is None:
        return
    target = _Target(link, partial(_find_claim, folder))
    target.hold()
    paths = [folder / source for source, _ in puts]
    stubs = [read_stub(path) for path in paths]
    if not any(stubs):  # else all are in the store: a stop came between two stubs
        named = {part: spare_key(f"{part}.{intent_name}") for _, part in puts}
        for path, temporary in zip(paths, named.values(), strict=True):
            target.upload(temporary, path)
        intent = StoreIntent(named, tuple(deletes))
        key, data = f"{target.prefix}journal/{intent_name}", msgspec.json.encode(intent)
        target.hold()
        target.store.write(key, data)
        _checked(target.store, key, len(data))
        finish_intent(target.store, target.prefix, key, intent)
    for path, (_, part) in zip(paths, puts, strict=True):
        if read_stub(path) is None:
            write_stub(path, target.stub(part))


def finish_intent(store: ObjectStore, prefix: str, key: str, intent: StoreIntent) -> None:
    """Gives the parts of an intent their final names, and deletes it. Raises `RemoteError`."""
    temporaries = [store.find(prefix + temporary) for temporary in intent.puts.values()]
    if None not in temporaries:
        for part, temporary in zip(intent.puts, filter(None, temporaries), strict=True):
            store.copy(temporary.key, prefix + part)
            _checked(store, prefix + part, temporary.size)
        for part in intent.deletes:
            store.delete(prefix + part)
    for name in intent.puts.values():
        store.delete(prefix + name)
    store.delete(key)


class _Target:
    """The place that parts are uploaded to, while this process has the claim."""

    def __init__(self, link: Link, hold: Callable[[], None]) -> None:
        """`hold`: raises `ClaimLost` if this process may not write."""
        self.store, self.prefix = place_of(link)
        self._url, self.hold = link.url, hold

    def upload(self, name: str, path: Path) -> Stub:
        """Uploads a file, with retries; returns its stub."""
        key, size = self.prefix + name, path.stat().st_size
        end_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.hold()
                self.store.upload(key, path)
                found = _checked(self.store, key, size)
                self.hold()  # it may have been lost meanwhile
                return Stub(store_url(self._url).below(name), found.size, found.stamp)
            except RemoteError as error:
                if isinstance(error, ClaimLost) or time.monotonic() > end_s:
                    raise
            time.sleep(_PAUSE_S)

    def stub(self, name: str) -> Stub:
        found = self.store.find(self.prefix + name)
        if found is None:
            raise RemoteError(
                f"{self.store.name(self.prefix + name)}: the object is missing; restore it"
            )
        return Stub(store_url(self._url).below(name), found.size, found.stamp)


def _find_claim(folder: Path) -> None:
    """Raises `ClaimLost` if the command that has the folder has lost its claim; `RemoteError`."""
    link = read_link(folder)
    if link is None or link.claim is None or place_of(link)[0].find(link.claim) is None:
        raise ClaimLost(
            f"{run_name(folder)}: another command has taken this run over, since this one could "
            "not renew its claim; wait until that one has ended"
        )


def _checked(store: ObjectStore, key: str, size: int) -> RemoteObject:
    """The object in the store. Raises `RemoteError` if it does not have this size."""
    found = store.find(key)
    if found is None or found.size != size:
        there = "nothing is" if found is None else f"{found.size} bytes are"
        raise RemoteError(
            f"{store.name(key)}: {there} there, but {size} bytes were written; check the store"
        )
    return found
