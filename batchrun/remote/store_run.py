"""A run in a store while a command has it: renews its claim, uploads its small files."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from batchrun.errors import JobError, StoreError
from batchrun.remote.claims import RENEW_S, STALE_S, Claim
from batchrun.remote.object_stores import RemoteError, store_of, within
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

T = TypeVar("T")

_SPARE_S = 5.0  # before a claim is too old
_AGAIN_S = 1.0  # before it is tried again to renew it
_UPLOAD_EVERY_S = 30.0
_PATIENCE_S, _PAUSE_S = 60.0, 5.0  # with small files, beyond what the library tries
_AT_END = ("unreadable.jsonl",)  # may be large


class StoreRun:
    """This process has the run until `close`."""

    def __init__(self, folder: Path, claim: Claim, link: Link) -> None:
        """`open` makes it."""
        self.url, self.writer, self.is_doubtful = link.url, link.writer, link.is_doubtful
        self.failure: StoreError | None = None  # the claim is lost; nothing more may be written
        self._folder, self._claim = folder, claim
        self._store, self._prefix = place_of(link)
        self._seen = dict(link.seen)
        self._is_gone = False  # that was in vain
        self._stamps: dict[str, tuple[int, int]] = {}  # of local files, at their last upload
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._uploading: threading.Thread | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, url: str) -> "StoreRun":
        """Takes the run at the URL for a locked folder, and brings its content into it.

        Raises `JobError`, within 30 s, if another command has it, or if the store cannot be reached
        or written.
        """
        where = store_url(url)
        first, _ = store_of(where.full, is_first=True)  # until the run is here: soon told
        link = read_link(folder) or Link(where.full, NO_WRITER)
        try:
            own = [key for key in (link.claim, link.begun) if key is not None]
            claim = Claim(first, f"{where.key}/", folder, own)
            is_last = link.claim is not None and first.find(link.claim) is not None
            link = replace(link, begun=claim.key)
            write_link(folder, link)
            claim.take(str(where))
            try:
                if link.writer == NO_WRITER:
                    link = replace(new_link(where.full, first), begun=claim.key)
                link = pull(folder, link, owns=True, is_last=is_last, is_first=True)
                doubtful = link.is_doubtful or (not is_last and is_doubtful(folder, link))
                link = change_link(folder, claim=claim.key, begun=None, is_doubtful=doubtful)
            except BaseException:
                claim.give_up()
                raise
        except BaseException as error:
            if link.writer == NO_WRITER:  # the run has never been here
                (folder / LINK_FILE).unlink(missing_ok=True)
            if isinstance(error, RemoteError):
                raise JobError(str(error)) from error
            raise
        return cls(folder, claim.renewed_by(store_of(where.full)[0]), link)

    def check(self) -> None:
        """Raises `StoreError` if another command may have the run by now."""
        if self.failure is not None:
            raise self.failure

    def upload(self, names: Sequence[str] = SMALL_FILES) -> None:
        """Of these files those that have changed are in the store when this returns.

        Tried at least twice, and for a minute: a run whose rows are all there is not to fail for
        one call. Not where that was in vain before. Raises `RemoteError`, and as `check`.
        """
        end_s, attempts = time.monotonic() + _PATIENCE_S, 0
        while True:
            try:
                self._upload(names)
            except RemoteError:
                attempts += 1
                if self._is_gone or (attempts > 1 and time.monotonic() > end_s):
                    self._is_gone = True
                    raise
            else:
                self._is_gone = False
                return
            time.sleep(_PAUSE_S)

    def close(self, *, is_void: bool = False, is_broken: bool = False) -> None:
        """Uploads the rest, and releases the run; `is_void`: removes its marks instead.

        `is_broken`: uploads nothing, since what is here could not be opened. Raises `RemoteError`.
        """
        self._end.set()
        self._thread.join()
        if self._uploading is not None:
            self._uploading.join()
        try:
            if is_void:
                self._store.delete(f"{self._prefix}journal/w{self.writer}.started")
                (self._folder / LINK_FILE).unlink(missing_ok=True)
            elif self.failure is None:
                of_workers = [path.name for path in self._folder.glob(OF_WORKERS)]
                if not is_broken:
                    self.upload((*SMALL_FILES, *of_workers, COPIED_INPUT))
                change_link(self._folder, claim=None)
        finally:
            with suppress(RemoteError):  # it ends by itself, too
                self._claim.release()

    def _upload(self, names: Iterable[str]) -> None:
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
        self._store.write(key, data)
        found = self._store.find(key)
        if found is None or found.size != len(data):
            raise RemoteError(f"{self._store.name(key)}: was not written whole; check the store")
        self._stamps[name], self._seen[name] = stamp, (found.size, found.stamp)
        return True

    def _watch(self) -> None:
        """Renews the claim and uploads; retries what fails, until the claim is too old."""
        renewed_s = uploaded_s = time.monotonic()
        pause_s = RENEW_S
        while not self._end.wait(pause_s):
            began_s, end_s = time.monotonic(), renewed_s + STALE_S - _SPARE_S
            if began_s >= end_s:  # this process stood still; perhaps nobody wanted the run
                end_s = began_s + _SPARE_S
            try:
                if not self._renew(end_s):
                    self._lose("another command has taken it over")
                    return
            except RemoteError as error:
                if time.monotonic() + _AGAIN_S >= end_s:
                    self._lose(f"the store could not be reached: {error}")
                    return
                pause_s = _AGAIN_S
                continue
            renewed_s, pause_s = began_s, RENEW_S
            is_due = time.monotonic() - uploaded_s >= _UPLOAD_EVERY_S
            if is_due and not (self._uploading and self._uploading.is_alive()):
                uploaded_s = time.monotonic()
                # Not here: a call that nobody answers would keep the claim from being renewed.
                self._uploading = threading.Thread(target=self._upload_now, daemon=True)
                self._uploading.start()

    def _renew(self, end_s: float) -> bool:
        """Renews the claim; false if another command may have had the run.

        Between a look and a renewal this process or a call may stand still. Another command may
        then delete the claim, and the renewal puts it back: only its age tells. Raises
        `RemoteError`.
        """
        claim = self._claim
        if self._soon(end_s, claim.written_at) is None:
            return False
        self._soon(end_s, claim.renew)
        at = self._soon(end_s, claim.written_at)
        if at is None:
            return False
        if at - claim.renewed_at > STALE_S * 1e9 and not self._soon(end_s, self._is_untouched):
            return False
        claim.renewed_at = at
        return True

    def _is_untouched(self) -> bool:
        """Whether no other command has the run, nor has written since this one did."""
        with self._lock:
            name = SMALL_FILES[0]
            found = self._store.find(self._prefix + name)
            seen = None if found is None else (found.size, found.stamp)
            return self._claim.is_alone() and seen == self._seen.get(name)

    def _upload_now(self) -> None:
        with suppress(RemoteError, OSError, StoreError):  # next time, or at the end
            self._upload(SMALL_FILES)

    def _soon(self, end_s: float, call: Callable[[], T]) -> T:
        """By then, and in time for another attempt: a library may wait for minutes."""
        left_s = end_s - time.monotonic()
        return within(max(min(left_s, RENEW_S), 0.0), self._store.name(self._claim.key), call)

    def _lose(self, why: str) -> None:
        self.failure = StoreError(
            f"{self.url}: its claim could not be renewed, so another machine may continue this "
            f"run ({why}); the answers so far are in {self._folder}: run the same command again"
        )
        self._claim.give_up()
        # Parts must not arrive any more, even if a late renewal puts the claim back.
        with self._lock, suppress(OSError, StoreError):
            change_link(self._folder, claim=None)
