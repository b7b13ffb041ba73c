"""A run in a store while a command has it: keeps its claim, uploads its small files."""

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from batchrun.errors import JobError, StoreError
from batchrun.remote.claims import Claim, ClaimLost, ClaimRenewal
from batchrun.remote.object_stores import RemoteError, store_of
from batchrun.remote.run_link import (
    COPIED_INPUT,
    GONE_FILE,
    LINK_FILE,
    NO_WRITER,
    OF_WORKERS,
    SMALL_FILES,
    Link,
    change_link,
    place_of,
    read_link,
    write_link,
)
from batchrun.remote.run_mirror import is_doubtful, new_link, pull
from batchrun.remote.urls import store_url

_UPLOAD_EVERY_S = 30.0
_PATIENCE_S, _PAUSE_S = 60.0, 5.0  # with small files, beyond what the library tries
_AT_END = ("unreadable.jsonl",)  # may be large
_QUICK_BYTES = 1 << 20  # less is written in no time


class StoreRun:
    """This process has the run until `close`."""

    def __init__(self, folder: Path, claim: Claim, renewal: ClaimRenewal, link: Link) -> None:
        """`open` makes it."""
        self.url, self.writer, self.is_doubtful = link.url, link.writer, link.is_doubtful
        self._folder, self._claim, self._renewal = folder, claim, renewal
        self._store, self._prefix = place_of(link)
        self._first, _ = place_of(link, is_first=True)
        self._seen = dict(link.seen)
        self._has_begun = False  # `run.json` is there, as this command has written it
        self._is_gone = False  # it was in vain to upload
        self._stamps: dict[str, tuple[int, int]] = {}  # of local files, at their last upload
        self._lock = threading.Lock()
        self._end = threading.Event()
        renewal.is_untouched, renewal.on_lost = self._is_untouched, self._forget_claim
        self._thread = threading.Thread(target=self._upload_often, daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, url: str) -> "StoreRun":
        """Takes the run at the URL for a locked folder, and brings its content into it.

        Raises `JobError`, within 30 s, if another command has it, or if the store cannot be reached
        or written.
        """
        where = store_url(url)
        first, _ = store_of(where.full, is_first=True)  # until the run is here: soon told
        store_of(where.full)  # S3's library opens no store while a call goes on
        link = read_link(folder) or Link(where.full, NO_WRITER)
        try:
            own = [key for key in (link.claim, link.begun) if key is not None]
            claim = Claim(first, f"{where.key}/", folder, own)
            is_last = link.claim is not None and first.find(link.claim) is not None
            link = replace(link, begun=claim.key)
            write_link(folder, link)
            claim.take(str(where))
            renewal = ClaimRenewal(claim)  # what follows may take minutes
            try:
                if link.writer == NO_WRITER:
                    link = replace(new_link(where.full, first), begun=claim.key)
                link = pull(folder, link, hold=renewal.wait, is_last=is_last)
                doubtful = link.is_doubtful or (not is_last and is_doubtful(folder, link))
                renewal.wait()
                link = change_link(folder, claim=claim.key, begun=None, is_doubtful=doubtful)
            except BaseException:
                renewal.end()
                claim.give_up()
                raise
        except BaseException as error:
            if link.writer == NO_WRITER:  # the run has never been here
                (folder / LINK_FILE).unlink(missing_ok=True)
            if isinstance(error, RemoteError):
                raise JobError(str(error)) from error
            raise
        return cls(folder, claim, renewal, link)

    @property
    def is_certain(self) -> bool:
        """Whether no other command may have the run now."""
        return self._renewal.is_certain

    def check(self) -> None:
        """Raises `StoreError` if another command may have the run by now."""
        if (why := self._renewal.lost) is not None:
            raise StoreError(
                f"{self.url}: its claim could not be renewed, so another machine may continue this "
                f"run ({why}); the answers so far are in {self._folder}: run the same command again"
            )

    def upload(self, names: Sequence[str] = SMALL_FILES) -> None:
        """Of these files those that have changed are in the store when this returns.

        Tried at least twice, and for a minute: a run whose rows are all there is not to fail for
        one call. Not the first time, when nothing was sent, nor where that was in vain before.
        Raises `RemoteError`, and as `check`.
        """
        end_s, attempts = time.monotonic() + _PATIENCE_S, 0
        while True:
            try:
                self._upload(names)
            except RemoteError:
                attempts += 1
                is_over = attempts > 1 and time.monotonic() > end_s
                if is_over or self._is_gone or not self._has_begun:
                    self._is_gone = True
                    raise
            else:
                self._is_gone, self._has_begun = False, True
                return
            time.sleep(_PAUSE_S)

    def save(self, names: Sequence[str]) -> None:
        """As `upload`; the first time it fails within 30 s, and raises `JobError`."""
        try:
            self.upload(names)
        except RemoteError as error:
            if self._has_begun:
                raise
            raise JobError(str(error)) from error

    def close(self, *, is_void: bool = False, is_broken: bool = False) -> None:
        """Uploads the rest, and releases the run; `is_void`: removes its marks instead.

        `is_broken`: uploads nothing, since what is here could not be opened. Raises `RemoteError`.
        """
        self._end.set()
        self._thread.join()
        try:
            if is_void:
                self._first.delete(f"{self._prefix}journal/w{self.writer}.started")
                (self._folder / LINK_FILE).unlink(missing_ok=True)
            elif self._renewal.lost is None and (self._has_begun or not self._is_gone):
                of_workers = [path.name for path in self._folder.glob(OF_WORKERS)]
                if not is_broken:
                    self.upload((*SMALL_FILES, *of_workers, COPIED_INPUT))
                change_link(self._folder, claim=None, begun=self._claim.key)
        finally:
            self._renewal.end()  # not before: the uploads may take minutes
            if self._is_gone:
                self._claim.give_up()
            else:
                with suppress(RemoteError):  # it ends by itself, too
                    self._claim.release()

    def _upload(self, names: Iterable[str]) -> None:
        with suppress(ClaimLost):
            self._renewal.wait()
        with self._lock:
            self.check()  # else they would replace those of the command that has it now
            self._upload_changed(names)

    def _upload_changed(self, names: Iterable[str]) -> None:
        changed = False
        for name in names:
            if name in _AT_END and not self._end.is_set():
                continue
            changed |= self._upload_file(name)
        if changed:
            change_link(self._folder, seen=self._seen)

    def _upload_file(self, name: str) -> bool:
        """Uploads a file if it has changed; whether it did."""
        path, key = self._folder / name, self._prefix + name
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns)
            if self._stamps.get(name) == stamp:
                return False
            data = path.read_bytes()
        except FileNotFoundError:
            if name != GONE_FILE or self._seen.pop(name, None) is None:
                return False  # missing by a mistake, which the store does not repeat
            self._store.delete(key)
            return True
        is_quick = not self._has_begun and len(data) < _QUICK_BYTES
        store = self._first if is_quick else self._store
        store.write(key, data)
        found = store.find(key)
        if found is None or found.size != len(data):
            raise RemoteError(f"{store.name(key)}: was not written whole; check the store")
        self._stamps[name], self._seen[name] = stamp, (found.size, found.stamp)
        return True

    def _upload_often(self) -> None:
        while not self._end.wait(_UPLOAD_EVERY_S):
            with suppress(RemoteError, OSError, StoreError):  # next time, or at the end
                self._upload(SMALL_FILES)

    def _is_untouched(self) -> bool:
        """Whether no other command has the run, nor has written since this one did."""
        with self._lock:
            name = SMALL_FILES[0]
            found = self._first.find(self._prefix + name)
            seen = None if found is None else (found.size, found.stamp)
            return self._claim.is_alone() and seen == self._seen.get(name)

    def _forget_claim(self) -> None:
        """Parts must not arrive any more, even if a late renewal puts the claim back."""
        with self._lock, suppress(OSError, StoreError):
            change_link(self._folder, claim=None, begun=self._claim.key)
