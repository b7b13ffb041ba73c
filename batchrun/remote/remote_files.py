"""Files of a store or of the Hub: found by a URL, and read at any offset like a local file."""

import io
from collections.abc import Iterable
from contextvars import copy_context
from pathlib import PurePosixPath
from typing import Any

from msgspec import Struct

from batchrun.errors import InputError
from batchrun.remote import hub
from batchrun.remote.object_stores import RemoteError, RemoteObject, store_of
from batchrun.remote.urls import (
    HubUrl,
    fixed_folder,
    has_glob,
    hub_url,
    is_store,
    name_pattern,
    store_url,
)

BUFFER = 4 << 20  # bytes a request; with fewer, waiting for answers takes longer than reading
# Of a file that is read in parts, from the place of one on: it may be a tenth of the other.
PART_BUFFER = 512 << 10
_TRIED = 64 << 10  # bytes


class RemoteFile(Struct, frozen=True):
    """One file, with what identified its version when it was listed."""

    url: str  # for the Hub, with the commit
    size: int
    written_at: int  # nanoseconds since 1970; 0: it never changes

    def __str__(self) -> str:
        return self.url

    def below(self, base: str) -> str:
        """Its name in a folder; `base` ends with a slash."""
        url = str(store_url(self.url)) if is_store(self.url) else self.url
        return url.removeprefix(base)

    @property
    def name(self) -> str:
        return PurePosixPath(self._key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._key).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self._key).suffixes

    @property
    def _key(self) -> str:
        return store_of(self.url)[1] if is_store(self.url) else hub_url(self.url).path

    def open(self) -> io.RawIOBase:
        """Raises `RemoteError`."""
        if is_store(self.url):
            return ObjectReader(self.url, self.size)
        return hub.local_copy(hub_url(self.url), self.size).open("rb", buffering=0)

    def try_out(self) -> None:
        """Whether it can be read at all, said within 30 s. Raises `RemoteError`."""
        if not is_store(self.url):
            hub.try_out(hub_url(self.url))
        elif self.size:
            store, key = store_of(self.url, is_first=True)
            store.read_at(store.open(key), key, min(self.size, _TRIED), 0)

    def stamp(self) -> tuple[int, int]:
        """Its present version; differs if it was written again. Raises `RemoteError`."""
        if not is_store(self.url):
            return self.size, self.written_at
        store, key = store_of(self.url)
        found = store.find(key)
        return (-1, 0) if found is None else (found.size, found.stamp)


class ObjectReader(io.RawIOBase):
    """An object of a store as a readable file; for one thread at a time."""

    def __init__(self, url: str, size: int) -> None:
        self._store, self._key = store_of(url)
        self._file, self._size, self._at = self._store.open(self._key), size, 0
        self._context = copy_context()  # Parquet is read in threads of a library

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Raises `RemoteError`."""
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        read_at = self._store.read_at
        buffer[:size] = self._context.run(read_at, self._file, self._key, size, self._at)
        self._at += size
        return size


class Found(Struct, frozen=True):
    """What a URL names."""

    files: list[RemoteFile]
    base: str  # the URL of the folder with all of them; ends with a slash
    is_file: bool = False  # the URL is that of a single file
    commit: str | None = None  # for the Hub: the commit of the files


def find_files(url: str) -> Found:
    """The files that a URL names: one, those of a folder, or of a glob, in order of their names.

    Raises `JobError` for what is not a URL, `InputError` if it cannot be read.
    """
    try:
        return _in_store(url) if is_store(url) else _in_hub(hub_url(url))
    except RemoteError as error:
        raise InputError(str(error)) from error


def _in_store(text: str) -> Found:
    url = store_url(text)
    tail = url.full.removeprefix(str(url))

    def file(one: RemoteObject) -> RemoteFile:
        name = f"{str(url).removesuffix(f'/{url.key}' if url.key else '')}/{one.key}{tail}"
        return RemoteFile(name, one.size, one.stamp)

    folder = fixed_folder(url.key) if has_glob(url.key) else url.key
    root = str(url).removesuffix(f"/{url.key}" if url.key else "")
    first, _ = store_of(url.full, is_first=True)
    one = first.find(url.key)  # a glob may also be a name
    if one is not None:
        return Found([file(one)], _folder(root, one.key.rpartition("/")[0]), is_file=True)
    first.check_listing(folder)  # before one that may take its time
    store, _ = store_of(url.full)
    pattern = url.key if has_glob(url.key) else None
    below = None if pattern is None else pattern.removeprefix(folder).lstrip("/")
    found = store.listing(folder, deep=below is None or "/" in below or "**" in below)
    return Found([file(one) for one in _matching(found, pattern)], _folder(root, folder))


def _folder(root: str, name: str) -> str:
    return f"{root}/{name}".rstrip("/") + "/"


def _in_hub(asked: HubUrl) -> Found:
    url = hub.pinned(asked)
    root = str(HubUrl(url.dataset, url.revision, ""))
    pattern = url.path if has_glob(url.path) else None
    folder = url.path if pattern is None else fixed_folder(url.path)
    # A file is found in the listing of its folder.
    above = folder.rpartition("/")[0] if pattern is None else folder
    found = hub.list_files(url, above)
    one = [file for file in found if file.key == url.path]
    if not one and pattern is None:
        prefix = f"{folder}/" if folder else ""
        found = [file for file in found if file.key.startswith(prefix)]
    chosen = one or _matching(found, pattern)
    base = above if one else folder
    files = [RemoteFile(f"{root}/{file.key}", file.size, 0) for file in chosen]
    return Found(files, _folder(root, base), is_file=bool(one), commit=url.revision)


def _matching(objects: Iterable[RemoteObject], pattern: str | None) -> list[RemoteObject]:
    """The objects that match the pattern, or all; never hidden ones."""
    matches = None if pattern is None else name_pattern(pattern)
    return [one for one in objects if matches is None or matches.fullmatch(one.key)]
