"""A run directory as one worker of a run sees it: what the worker writes there.

A worker has a number of its own, and files that nobody else writes while it is alive: its journal,
its parts, and the records of its unfinished rows. It adds rows and replaces none. If rows are sent
again, its segments stay in the journal until the command that has the run seals them, since only
that may rewrite parts of others.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from batchrun.errors import JobError, StoreError
from batchrun.formats.json_text import encode_json
from batchrun.records import Outcome, RunRecord
from batchrun.store.files import (
    JOURNAL,
    FileId,
    Flock,
    Lock,
    drained_name,
    lock_name,
    make_folders,
    replace_file,
    storing,
    take_lock,
)
from batchrun.store.reading import RUN_FILE, read_run_record
from batchrun.store.unfinished import UnfinishedRows
from batchrun.store.unreadable import UnreadableBodies
from batchrun.store.writing import JournalWriter

_LATE = 1.05  # how much longer than its time-out an attempt may take
_LOOK_S = 0.2  # until a worker notices that its command is silent


def last_write_s(silence_s: float, timeouts_s: Iterable[float]) -> float:
    """How long after the last message of its command a worker may still store an answer.

    `silence_s`: after so much of it the worker begins no attempt. `timeouts_s`: of attempts.
    """
    return silence_s + max(timeouts_s) * _LATE + _LOOK_S


class WorkerDir:
    """Open until `close`; for one thread."""

    def __init__(self, path: Path, writer: int, record: RunRecord, lock: Lock) -> None:
        """`open` makes it."""
        self.path, self.writer, self.record = path, writer, record
        # Whether the lock proves that it is alive; if not, it must stop by itself: `write_until`.
        self.can_lock = lock.warning is None
        self.unfinished = UnfinishedRows(path, writer, is_worker=True)
        self.unreadable = UnreadableBodies(path, writer)
        self._lock: int | None = lock.handle
        self._until_s: float | None = None
        self._writer: JournalWriter | None = None
        self._rows = 0

    @classmethod
    def open(
        cls, path: Path, writer: int, record: RunRecord, flock: Flock = fcntl.flock
    ) -> "WorkerDir":
        """`writer`: from `RunDir.new_writer`; `record`: that of the command that has the run.

        Raises `JobError` if this host does not see the run directory, or if another process is this
        writer; `StoreError`.
        """
        found = read_run_record(path)
        if found is None or found.started_at != record.started_at or found.writers <= writer:
            raise JobError(
                f"{path}: a worker on {os.uname().nodename} does not see this run directory "
                f"({RUN_FILE} is {'missing' if found is None else 'another one'}); give one on a "
                "file system that all machines share: with --output, or, for a run in a store, "
                "with scratch in [cluster]"
            )
        with storing(path / JOURNAL, "make this folder"):
            make_folders(path / JOURNAL)
        lock = take_lock(path, flock, lock_name(writer))
        try:
            _refuse_late(path, writer)
            return cls(path, writer, record, lock)
        except BaseException:
            os.close(lock.handle)
            raise

    def start(
        self,
        *,
        part_rows: int,
        part_bytes: int,
        part_seconds: float | None = None,
        replaces: bool = False,
        seal_in_process: bool = False,
    ) -> None:
        """As `RunDir.start`. Raises `StoreError`."""
        if self._writer is not None:
            raise RuntimeError("start() comes once")
        self._writer = JournalWriter(
            self.path,
            self.record,
            FileId(self.writer, 1),
            (),
            part_rows=part_rows,
            part_bytes=part_bytes,
            part_seconds=part_seconds,
            replaces=replaces,
            lock=self._lock if seal_in_process else None,
            sync_also=self._sync_also,
            sealing=threading.Lock(),
            seals=not replaces,
        )

    def write_until(self, moment_s: float | None) -> None:
        """Stores nothing after this moment of `time.monotonic`; None: no such moment.

        For file systems that cannot lock, where others adopt a worker that has been silent for
        long enough.
        """
        self._until_s = moment_s

    def store(self, outcome: Outcome, *, anyway: bool = False) -> None:
        """As `RunDir.store`."""
        self.store_some((outcome,), anyway=anyway)

    def store_some(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int:
        """As `RunDir.store_some`."""
        if self._writer is None:
            raise RuntimeError("store() comes between start() and close()")
        if self._until_s is not None and time.monotonic() > self._until_s:
            raise StoreError(
                f"{self.path}: worker {self.writer} was silent for too long; others may have its "
                "rows by now, so it stores nothing more"
            )
        taken = self._writer.append(outcomes, anyway=anyway)
        self._rows += taken
        if self.unfinished:
            for outcome in outcomes[:taken]:
                self.unfinished.drop(outcome.request.key)
        return taken

    def seal_old(self) -> None:
        """As `RunDir.seal_old`."""
        if self._writer is not None:
            self._writer.seal_old()

    def close(self, *, has_drained: bool = False, unknown_usd: float | None = None) -> None:
        """Writes everything to disk, and frees the lock.

        `has_drained`: nothing is in flight, and nothing will be: seals what it may, and writes
        `wN.drained`, with `unknown_usd`: what it may have spent that is in no table. Raises
        `StoreError` for an error that was not raised yet; the lock is free anyway.
        """
        try:
            with ExitStack() as rest:
                rest.callback(self.unfinished.close)
                rest.callback(self.unreadable.close)
                writer, self._writer = self._writer, None
                if writer is not None:
                    writer.close(seal_rest=has_drained)
            if has_drained:
                path = self.path / drained_name(self.writer)
                with storing(path, "write"):
                    facts = {"rows": self._rows}
                    said = facts if unknown_usd is None else {**facts, "unknown_usd": unknown_usd}
                    replace_file(path, encode_json(said) + b"\n", durable=True)
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                os.close(lock)

    def _sync_also(self) -> None:
        self.unfinished.sync()
        if not self.can_lock and self._lock is not None:  # its time shows that the worker is alive
            with storing(self.path / lock_name(self.writer), "write"):
                os.utime(self._lock)


def _refuse_late(path: Path, writer: int) -> None:
    """Raises `JobError` if the worker was adopted before it began."""
    if (path / drained_name(writer)).exists():
        raise JobError(
            f"{path}: worker {writer} began too late: its rows were given to others; start another "
            "one"
        )
