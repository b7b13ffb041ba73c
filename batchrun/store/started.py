"""Responses begun in background mode: on disk before they are waited for, until they are settled.

A file of its own beside the segments, since these records outlive sealing.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.records import Request, Response
from batchrun.store.disk import (
    make_folders,
    replace_file,
    store_error,
    storing,
    sync_data,
    sync_folder,
    write_whole,
)
from batchrun.store.journal import Frame, frame_of, scan
from batchrun.store.names import JOURNAL, WRITER
from batchrun.store.part_files import read_standing
from batchrun.store.snapshot import Snapshot
from batchrun.store.storable import storable_text

STARTED = f"{WRITER}.started"


class Started(Struct, frozen=True):
    """One response begun, and the request that began it."""

    row: int
    custom_id: str
    hash: str
    response_id: str


def ids_with_responses(now: Snapshot, ids: Iterable[str], begun: Mapping[str, Started]) -> set[str]:
    """Which of these rows' outcomes know the response that was begun. Raises `StoreError`."""
    wanted = {custom_id: begun[custom_id].response_id for custom_id in ids}
    if not wanted:
        return set()
    found = set()
    for batch in read_standing(now, ("custom_id", "response_id", "attempts")):
        for row in batch.to_pylist():
            known = (row["response_id"], *(a["response_id"] for a in row["attempts"]))
            if wanted.get(row["custom_id"]) in known:
                found.add(row["custom_id"])
    for outcome in now.outcomes():
        result = outcome.result
        known = (
            result.id if isinstance(result, Response) else None,
            *(attempt.response_id for attempt in outcome.attempts),
        )
        if wanted.get(outcome.request.custom_id, "") in known:
            found.add(outcome.request.custom_id)
    return found


_decoder = msgspec.msgpack.Decoder(Started)


class StartedLog:
    """What has begun and is not settled. `begin` may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """Reads what earlier processes left. Raises `StoreError`."""
        self._path = folder / JOURNAL / STARTED
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._size = 0
        self.open: dict[str, Started] = {}  # by custom_id
        with (
            storing(self._path, "read"),
            suppress(FileNotFoundError),
            self._path.open("rb") as file,
        ):
            for piece in scan(file):
                if isinstance(piece, Frame):
                    with suppress(msgspec.MsgspecError):
                        record = _decoder.decode(piece.payload)
                        self.open[record.custom_id] = record

    def begin(self, request: Request, response_id: str) -> None:
        """Durable when it returns. Raises `StoreError`."""
        record = Started(
            request.row,
            storable_text(request.custom_id),
            request.hash,
            storable_text(response_id),
        )
        try:
            with self._lock:
                if self._handle is None:
                    self._rewrite()
                    self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                self.open[record.custom_id] = record
                frame = frame_of(record, self._size)
                write_whole(self._handle, frame)
                self._size += len(frame)
                sync_data(self._handle)
        except OSError as error:
            raise store_error(self._path, "write to the journal", error) from error

    def settle(self, custom_id: str) -> None:
        self.open.pop(custom_id, None)

    def close(self) -> None:
        """The file holds what is still open, or is gone. Raises `StoreError`."""
        with storing(self._path, "write to the journal"), self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
            if self.open:
                self._rewrite()
            elif self._path.exists():
                self._path.unlink()
                sync_folder(self._path.parent)

    def _rewrite(self) -> None:
        """The file without what is settled, and without what a crash tore."""
        make_folders(self._path.parent)
        whole = bytearray()
        for record in self.open.values():
            whole += frame_of(record, len(whole))
        replace_file(self._path, bytes(whole), durable=True)
        self._size = len(whole)
