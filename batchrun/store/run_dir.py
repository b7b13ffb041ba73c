"""A run directory in the hands of the one process that owns it: the door of this family.

An outcome is in the journal before `keep` returns, on disk within a second, and later in exactly
one part; whatever moment the process is killed at, the next `open` finds each of them once. No
asyncio here: `keep` and the small files are quick, the slow work has threads of its own.
"""

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from batchrun.errors import JobError, StoreError
from batchrun.records import Outcome, Request, Resend, RunRecord, Totals
from batchrun.store.disk import make_folders, storing, sync_folder, write_whole
from batchrun.store.events import EVENTS_FILE
from batchrun.store.gone import GONE_FILE, read_gone, write_gone
from batchrun.store.lock import NAME as LOCK
from batchrun.store.lock import Lock, take_lock
from batchrun.store.names import INPUT, JOURNAL, RESPONSES, TOOL_CALLS, number_of, numbered
from batchrun.store.orphans import drop_orphan_calls
from batchrun.store.part_files import count_rows
from batchrun.store.recover import Recovered, recover
from batchrun.store.run_record import (
    LIVE_FILE,
    RUN_FILE,
    read_run_record,
    write_live_file,
    write_run_record,
)
from batchrun.store.schema import SCHEMA_VERSION
from batchrun.store.seal import seal
from batchrun.store.settled import Settled, names_at, read_settled, sum_totals
from batchrun.store.snapshot import snapshot
from batchrun.store.started import Started, StartedLog, ids_with_responses
from batchrun.store.storable import encode_json
from batchrun.store.writer import Writer

__all__ = ["SCHEMA_VERSION", "RunDir", "Settled"]

_OURS = {RUN_FILE, LIVE_FILE, EVENTS_FILE, GONE_FILE, LOCK, JOURNAL, RESPONSES, TOOL_CALLS, INPUT}


class RunDir:
    """Open until `close`; not to be shared between threads."""

    def __init__(self, path: Path, lock: Lock, record: RunRecord | None, found: Recovered) -> None:
        """Of a directory that is locked and recovered; `open` does both."""
        self.path = path
        self.record = record  # `run.json` as found or saved; null for a new directory
        # What was damaged and set aside, or stands in the way of safety.
        self.warnings = (*found.warnings, *([lock.warning] if lock.warning else ()))
        self._lock: int | None = lock.handle
        self._leftover = found.segments
        self._events: int | None = None
        self._writer: Writer | None = None
        self._started = StartedLog(path)

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """The directory, made if absent, locked, and put right after whatever befell it.

        Raises `JobError` where another process has it, or where it is some other folder;
        `StoreError`.
        """
        _check_or_make(path)
        lock = take_lock(path)
        try:
            record = read_run_record(path)
            found = recover(path)
            _check_complete(path, record, found)
        except BaseException:
            os.close(lock.handle)
            raise
        return cls(path, lock, record, found)

    @property
    def input_dir(self) -> Path:
        """Where standard input is kept; made on demand. Raises `StoreError`."""
        folder = self.path / INPUT
        with storing(folder, "make this folder"):
            make_folders(folder)
        return folder

    def save(self, record: RunRecord) -> None:
        """`run.json` says this, on disk, when it returns. Raises `StoreError`."""
        write_run_record(self.path, record)
        self.record = record

    def settled(self, resend: Resend | None = None) -> Settled:
        """What parts and journal hold, and what of it failed as asked. Raises `StoreError`."""
        with snapshot(self.path) as now:
            settled = read_settled(now, resend)
            begun = {hash(custom_id): custom_id for custom_id in self._started.open}
            done = {begun[key] for key in settled.ids if key in begun} if begun else set()
            if resend is not None:  # what was begun to replace an outcome is no part of it
                done = ids_with_responses(now, done, self._started.open)
        for custom_id in done:
            self._started.settle(custom_id)
        return settled

    @property
    def started(self) -> Mapping[str, Started]:
        """Background responses begun and not settled, by custom_id; right after `settled`."""
        return self._started.open

    def begin(self, request: Request, response_id: str) -> None:
        """A background response's id, durable when it returns. From any thread. `StoreError`."""
        self._started.begin(request, response_id)

    def names_at(self, places: Iterable[int]) -> dict[int, str]:
        """The custom_ids of rows by their places in `settled`, for messages: it reads all parts.

        Raises `StoreError`.
        """
        with snapshot(self.path) as now:
            return names_at(now, set(places))

    def totals_at(self, marks: bytearray) -> Totals:
        """What the rows add up to that are marked, in the order of `settled`. `StoreError`."""
        with snapshot(self.path) as now:
            return sum_totals(now, marks)

    def gone(self) -> "array[int]":
        """This process's hash of each row's custom_id that is known to have left the input.

        In order. Raises `StoreError`.
        """
        return read_gone(self.path)

    def write_gone(self, marks: bytearray) -> None:
        """`gone.parquet` names the rows marked, in the order of `settled`. Raises `StoreError`."""
        write_gone(self.path, marks)

    def drop_orphan_calls(self) -> None:
        """No tool call is without its row, though parts were deleted. Raises `StoreError`."""
        drop_orphan_calls(self.path)

    def parts(self) -> dict[str, int]:
        """The parts of both tables and how many rows each holds. Raises `StoreError`."""
        return count_rows(self.path)

    def start(
        self, *, part_rows: int, part_bytes: int, replaces: bool = False, apart: bool = False
    ) -> None:
        """Opens the journal; a part is sealed at so many rows or bytes. Raises `StoreError`.

        `replaces`: outcomes will come of rows that stand in parts already; `finish` has sealed
        what the journal held before. `apart`: a process of its own seals, not a thread.
        """
        if self.record is None or self._writer is not None:
            raise RuntimeError("start() needs a saved record, and comes once")
        with storing(self.path / JOURNAL, "list"):
            number = self._next_number()
        self._writer = Writer(
            self.path,
            self.record,
            number,
            self._leftover,
            part_rows=part_rows,
            part_bytes=part_bytes,
            replaces=replaces,
            lock=self._lock if apart else None,
        )

    def keep(self, outcome: Outcome, *, anyway: bool = False) -> None:
        """The outcome survives SIGKILL when this returns, power loss within a second.

        Raises `StoreError` if it does not or, unless `anyway`, if an earlier sync or seal failed.
        """
        self.keep_some((outcome,), anyway=anyway)

    def keep_some(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int:
        """`keep` for as many, from the first on, as go into one write: at least one; how many."""
        if self._writer is None:
            raise RuntimeError("keep() comes between start() and close()")
        taken = self._writer.keep(outcomes, anyway=anyway)
        if self._started.open:
            for outcome in outcomes[:taken]:
                self._started.settle(outcome.request.custom_id)
        return taken

    def write_live(self, summary: object) -> None:
        """`live.json` says this. Raises `StoreError`."""
        write_live_file(self.path, summary)

    def log_event(self, name: str, **facts: object) -> None:
        """One more line in `events.jsonl`. Raises `StoreError`."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = encode_json({"at": at, "event": name, **facts}) + b"\n"
        path = self.path / EVENTS_FILE
        with storing(path, "write"):
            if self._events is None:
                self._events = os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
                )
            write_whole(self._events, line)

    def finish(self) -> None:
        """Everything kept is in parts and the journal is empty. Raises `StoreError`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._leftover = ()
            writer.close(seal_rest=True)
        elif self._leftover and self.record is not None:
            leftover, self._leftover = self._leftover, ()
            seal(self.path, self.record, leftover)

    def close(self, *, seal: bool = False) -> None:
        """Everything is on disk, with `seal` in parts and the journal empty; the lock is free.

        Raises `StoreError` for what failed and was not raised yet; the lock is free even so.
        """
        with ExitStack() as rest:
            rest.callback(self._release)
            if self._lock is not None:
                rest.callback(self._started.close)
            if seal and self._lock is not None:
                self.finish()
            elif self._writer is not None:
                writer, self._writer = self._writer, None
                writer.close(seal_rest=False)

    def _next_number(self) -> int:
        names = (
            *numbered(self.path / JOURNAL, ".log"),
            *numbered(self.path / RESPONSES, ".parquet"),
            *numbered(self.path / TOOL_CALLS, ".parquet"),
        )
        return max((number_of(name) or 0 for name in names), default=0) + 1

    def _release(self) -> None:
        handles = (self._events, self._lock)
        self._events = self._lock = None
        for handle in handles:
            if handle is not None:
                os.close(handle)


def _check_complete(path: Path, record: RunRecord | None, found: Recovered) -> None:
    if record is None and (found.segments or found.parts):
        raise StoreError(
            f"{path}: {RUN_FILE} is missing though there are outcomes; put it back, or "
            "give another directory with --output"
        )


def _check_or_make(path: Path) -> None:
    """Raises `JobError` where this is not a run directory and cannot become one."""
    with storing(path, "make this directory"):
        try:
            names = {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            sync_folder(path.parent)
            return
        except NotADirectoryError:
            raise JobError(
                f"{path} is a file; give a directory for the results with --output"
            ) from None
    foreign = sorted(name for name in names - _OURS if not name.endswith(".tmp"))
    if RUN_FILE not in names and foreign:
        raise JobError(
            f"{path} is no run directory and not empty (it holds {foreign[0]!r}); "
            "give an empty or new one with --output"
        )
