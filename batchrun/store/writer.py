"""The journal being written, with one thread that syncs it and one that has it sealed.

`keep` is called on the event loop and waits for neither. What goes wrong in a thread is raised
by the next `keep` or by `close`.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from batchrun.errors import StoreError
from batchrun.records import Outcome, RunRecord
from batchrun.store.disk import make_folders, store_error, storing, sync_folder
from batchrun.store.journal import Header
from batchrun.store.names import JOURNAL, FileId, segment_name
from batchrun.store.schema import SCHEMA_VERSION
from batchrun.store.seal import finish_or_seal, seal
from batchrun.store.seal_process import ProcessEnded, SealProcess, in_words
from batchrun.store.segment import Segment

_SYNC_EVERY_S = 0.5  # and the sync itself takes its time: within a second of the write


class Writer:
    """Appends outcomes to the current segment; begins a new one when it is full."""

    def __init__(
        self,
        folder: Path,
        record: RunRecord,
        first: FileId,
        leftover: Sequence[str],
        *,
        part_rows: int,
        part_bytes: int,
        replaces: bool = False,
        lock: int | None = None,
        sync_also: Callable[[], None] = lambda: None,
    ) -> None:
        """`first` is the first name that is free.

        `leftover` are older segments, sealed with the first new one.
        `lock`: the folder's, for a process that seals; without it a thread of this one does.
        `sync_also`: what is synced as often as the journal is. Raises `StoreError`.

        Raises `StoreError`.
        """
        self._folder = folder
        self._record = record
        self._next = first
        self._sync_also = sync_also
        self._waiting = list(leftover)  # segments for the next seal, besides the current one
        self._part_rows = part_rows
        self._part_bytes = part_bytes
        self._lock = lock
        self._process: SealProcess | None = None
        self._header = Header(
            SCHEMA_VERSION,
            record.hash_rule,
            tuple(c.name for c in record.layout.columns),
            replaces,
        )
        self._failure: StoreError | None = None
        self._raised = False
        self._full: SimpleQueue[Segment] = SimpleQueue()  # written, not yet synced and closed
        self._seals: SimpleQueue[list[str] | None] = SimpleQueue()
        self._stop = threading.Event()
        with storing(folder / JOURNAL, "make the journal"):
            make_folders(folder / JOURNAL)
        self._segment = self._new_segment()
        self._syncing = threading.Thread(target=self._sync_until_stopped, daemon=True)
        self._sealing = threading.Thread(target=self._seal_until_told, daemon=True)
        self._syncing.start()
        self._sealing.start()

    def keep(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int:
        """How many were taken, from the first on: at least one, as many as go into one write.

        They survive SIGKILL when this returns, power loss within a second.

        Raises `StoreError`; unless `anyway`, also for an earlier failure of a thread.
        """
        if self._failure is not None and not anyway:
            self._raised = True
            raise self._failure
        segment = self._segment
        taken = segment.append(outcomes[: max(1, self._part_rows - segment.rows)])
        is_full = segment.rows >= self._part_rows or segment.bytes >= self._part_bytes
        if is_full and self._failure is None:
            try:
                self._rotate()
            except StoreError as error:  # for the next call: what came with this one is stored
                self._fail(error)
        return taken

    def close(self, *, seal_rest: bool) -> None:
        """Ends the threads; everything is synced, and with `seal_rest` in parts.

        Raises `StoreError` if something failed that no `keep` has raised yet.
        """
        self._stop.set()
        self._syncing.join()
        self._sync()
        if seal_rest and self._failure is None:
            rest = [self._segment.path.name] if self._segment.rows else []
            if names := [*self._waiting, *rest]:
                self._seals.put(names)
        self._seals.put(None)
        self._sealing.join()
        self._segment.close()
        if not self._segment.rows:
            with suppress(OSError):  # an empty segment does no harm
                self._segment.path.unlink(missing_ok=True)
        if self._failure is not None and not self._raised:
            self._raised = True
            raise self._failure

    def _new_segment(self) -> Segment:
        segment = Segment(self._folder / JOURNAL / segment_name(self._next), self._header)
        self._name_is_new = True
        return segment

    def _rotate(self) -> None:
        full = self._segment
        self._next = self._next._replace(number=self._next.number + 1)
        self._segment = self._new_segment()
        self._full.put(full)
        self._seals.put([*self._waiting, full.path.name])
        self._waiting = []

    def _sync_until_stopped(self) -> None:
        while not self._stop.wait(_SYNC_EVERY_S):
            self._sync()
            if self._segment.deleted:
                self._fail(
                    StoreError(
                        f"{self._segment.path}: deleted while it was written; "
                        "what it held is lost, run the same command again"
                    )
                )

    def _sync(self) -> None:
        try:
            while not self._full.empty():
                full = self._full.get()
                full.sync()
                full.close()
            current = self._segment  # read after the others: only this thread closes, in turn
            current.sync()
            if self._name_is_new:
                self._name_is_new = False
                sync_folder(self._folder / JOURNAL)
            self._sync_also()
        except OSError as error:
            self._fail(store_error(self._folder / JOURNAL, "sync the journal", error))
        except StoreError as error:
            self._fail(error)

    def _seal_until_told(self) -> None:
        while (names := self._seals.get()) is not None:
            if self._failure is not None:
                continue
            try:
                self._seal(names)
            except StoreError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - a thread's bug must end the run, not hide
                failure = StoreError(in_words(error, self._folder, names))
                failure.__cause__ = error
                self._fail(failure)
        if self._process is not None:
            self._process.close()

    def _seal(self, names: Sequence[str]) -> None:
        """By the process while rows are sent; here where there is none, or none any more."""
        # Not worth its start for what is left when all was sent.
        if self._process is None and self._lock is not None and not self._stop.is_set():
            try:
                self._process = SealProcess(self._folder, self._record, self._lock)
            except OSError:
                self._lock = None
        if self._process is None:
            seal(self._folder, self._record, names)
            return
        try:
            self._process.seal(names)
        except ProcessEnded:  # killed, or out of memory
            self._process = self._lock = None
            finish_or_seal(self._folder, self._record, names)

    def _fail(self, failure: StoreError) -> None:
        self._failure = self._failure or failure
