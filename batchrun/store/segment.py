"""A journal segment being written: one `write` for all outcomes that come at once."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from batchrun.records import Outcome
from batchrun.store.disk import store_error, sync_data, write_whole
from batchrun.store.journal import Header, frame_of

_WRITE_BYTES = 1 << 20  # what is in memory twice while it is written


class Segment:
    """The file outcomes are appended to. `append` may race with `sync`, never with itself."""

    def __init__(self, path: Path, header: Header) -> None:
        """Makes the file. Raises `StoreError`."""
        self.path = path
        self.rows = 0
        self.bytes = 0
        self._dirty = False
        self._is_torn = False  # half a write stands behind its end
        try:
            self._handle = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise store_error(path, "make this journal segment", error) from error
        try:
            self._write(frame_of(header, 0))
        except BaseException:
            os.close(self._handle)
            with suppress(OSError):
                path.unlink()
            raise

    def append(self, outcomes: Sequence[Outcome]) -> int:
        """Takes as many as go into one write, at least one, and returns how many these are.

        The system has them when this returns: they survive SIGKILL. Raises `StoreError`; the
        segment then is as it was before, if the system lets itself be asked.
        """
        frames: list[bytes] = []
        end = self.bytes
        for outcome in outcomes:
            frames.append(frame_of(outcome, end))
            end += len(frames[-1])
            if end - self.bytes > _WRITE_BYTES:
                break
        self._write(b"".join(frames))
        self.rows += len(frames)
        return len(frames)

    def sync(self) -> None:
        """What was appended so far is on disk when this returns. Raises `OSError`."""
        if self._dirty:
            self._dirty = False  # before the call: what is appended meanwhile counts as not synced
            sync_data(self._handle)

    @property
    def deleted(self) -> bool:
        """Whether somebody took the file away while it is written."""
        return os.fstat(self._handle).st_nlink == 0

    def close(self) -> None:
        os.close(self._handle)

    def _write(self, frames: bytes) -> None:
        try:
            if self._is_torn:  # a frame is known by its place: none may stand behind half a write
                os.ftruncate(self._handle, self.bytes)
            self._is_torn = True
            write_whole(self._handle, frames)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._handle, self.bytes)
                self._is_torn = False
            raise store_error(self.path, "write to the journal", error) from error
        self._is_torn = False
        self.bytes += len(frames)
        self._dirty = True
