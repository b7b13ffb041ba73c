"""A run directory in the hands of the one process that owns it: the entry point of this package.

An outcome is in the journal before `store` returns, on disk within a second, and later in exactly
one part; whatever moment the process is killed at, the next `open` finds each of them once. No
asyncio here: `store` and the small files are quick, the slow work has threads of its own.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from batchrun.errors import JobError, StoreError
from batchrun.formats.json_text import encode_json, shown
from batchrun.records import Outcome, Resend, RowKey, RunRecord, Totals
from batchrun.remote.run_link import LINK_FILE, SMALL_FILES, change_link, read_link
from batchrun.remote.store_run import StoreRun
from batchrun.store.columns import SCHEMA_VERSION
from batchrun.store.complete_rows import REMOVED_FILE, CompleteRows, Requests, read_complete_rows
from batchrun.store.files import (
    INPUT,
    JOURNAL,
    LOCK,
    TABLES,
    WRITER,
    Flock,
    Lock,
    highest_writer,
    make_folders,
    next_id,
    open_files,
    replace_file,
    storing,
    sync_path,
    take_lock,
    workers_of,
    write_whole,
)
from batchrun.store.reading import EVENTS_FILE, LIVE_FILE, RUN_FILE, read_run_record
from batchrun.store.sealing import (
    drop_rows,
    name_variant,
    recover,
    rewrite_parts,
    seal,
    undo_seals,
    upgraded,
)
from batchrun.store.snapshot import snapshot
from batchrun.store.unfinished import UnfinishedRows
from batchrun.store.unreadable import UNREADABLE_FILE, UnreadableBodies
from batchrun.store.workers.adoption import (
    Adopted,
    adopt,
    drop_doubles,
    forget,
    seal_full_segments,
    wait_for_workers,
)
from batchrun.store.writing import JournalWriter

__all__ = ["SCHEMA_VERSION", "RunDir"]

_ATTEMPTS = 5  # to have a directory that others make and delete
_FILES = (RUN_FILE, LIVE_FILE, EVENTS_FILE, REMOVED_FILE, UNREADABLE_FILE, LOCK, LINK_FILE)
_OURS = {*_FILES, JOURNAL, *TABLES, INPUT}


class RunDir:
    """Open until `close`; not to be shared between threads, but for what says so."""

    def __init__(
        self,
        path: Path,
        lock: Lock,
        made: tuple[Path, ...],
        store_run: StoreRun | None = None,
        flock: Flock = fcntl.flock,
    ) -> None:
        """Recovers a directory that is locked: `open` does both. Raises as it does.

        `made`: the folders that were not there before, the innermost first. `store_run`: of a run
        whose tables are in a store.
        """
        self.path = path
        self.name = str(path) if store_run is None else store_run.url
        self._store_run = store_run
        self._writer_id = WRITER if store_run is None else store_run.writer
        self.record = read_run_record(path)  # as found or saved; null for a new directory
        found = recover(path)
        has_outcomes = found.segments or found.has_parts or open_files(path / JOURNAL)
        if self.record is None and has_outcomes:
            raise StoreError(
                f"{path}: {RUN_FILE} is missing, but there are stored rows; restore it, or "
                "give another directory with --output"
            )
        # What was damaged and set aside, and that the directory cannot be locked.
        self.warnings = (*found.warnings, *([lock.warning] if lock.warning else ()))
        self.unfinished = UnfinishedRows(path, self._writer_id)
        self.unreadable = UnreadableBodies(path)
        self._lock: int | None = lock.handle
        self._flock = flock
        self._sealing = threading.Lock()  # held by the thread that seals
        self._saving = threading.RLock()  # held by the one that writes `run.json`
        self._silent = set[int]()  # workers taken for dead by their silence: they may live
        self._made = made
        self._leftover = found.segments
        self._events: int | None = None
        self._writer: JournalWriter | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        url: str | None = None,
        waiting: Callable[[str], None] = lambda _what: None,
        flock: Flock = fcntl.flock,
    ) -> "RunDir":
        """The directory, made if absent, locked, and recovered whatever happened to it.

        `url`: where the tables of the run are, if in a store; `path` is its folder on this machine.
        `waiting`: called while workers of an earlier command land what they have in flight, with
        who they are; what it raises ends the waiting. Raises `JobError` where another process has
        it, or where it is some other folder, or where the store cannot be used; `StoreError`.
        """
        made, lock = _made_and_locked(path, flock)
        store_run = None
        try:
            workers = wait_for_workers(path, waiting, flock)
            link = read_link(path)
            url = link.url if link is not None else url
            store_run = None if url is None else StoreRun.open(path, url)
            is_doubtful = store_run is not None and store_run.is_doubtful
            if is_doubtful:
                undo_seals(path)
            opened = cls(path, lock, made, store_run, flock)
            forget(path, workers)
            opened._drop_doubles(is_due=lock.warning is not None)
            if is_doubtful:  # a row that another machine has completed too stands once
                opened.finish()
                change_link(path, is_doubtful=False)
        except BaseException:
            if store_run is not None:
                with suppress(OSError, StoreError):
                    store_run.close()
            os.close(lock.handle)
            raise
        return opened

    @property
    def input_dir(self) -> Path:
        """Where standard input is stored; made on demand. Raises `StoreError`."""
        folder = self.path / INPUT
        with storing(folder, "make this folder"):
            make_folders(folder)
        return folder

    @property
    def has_no_variants(self) -> bool:
        """Whether the job of the last command declared none, so that rows may lack one."""
        return self.record is not None and not self.record.job.get("variants")

    def save(self, record: RunRecord) -> None:
        """`run.json` says this, on disk, when it returns. Raises `StoreError`."""
        self._save(record, SMALL_FILES)

    def _save(self, record: RunRecord, uploaded: Sequence[str]) -> None:
        """`uploaded`: files that a run in a store has there too when this returns."""
        with self._saving, storing(self.path / RUN_FILE, "write"):
            before = 0 if self.record is None else self.record.writers
            writers = max(record.writers, before, self._writer_id + 1)
            record = replace(record, writers=writers)
            text = msgspec.json.format(encode_json(record), indent=2) + b"\n"
            replace_file(self.path / RUN_FILE, text, durable=True)
            self.record = record
            if self._store_run is not None:
                self._store_run.upload(uploaded)

    def write_live(self, summary: object) -> None:
        """`live.json` says this: never seen half written, and not synced. Raises `StoreError`."""
        if self._store_run is not None:
            self._store_run.check()
        with storing(self.path / LIVE_FILE, "write"):
            replace_file(self.path / LIVE_FILE, encode_json(summary) + b"\n", durable=False)

    def log_event(self, name: str, **facts: object) -> None:
        """One more line in `events.jsonl`. Raises `StoreError`."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = encode_json({"at": at, "event": name, **facts}) + b"\n"
        path, flags = self.path / EVENTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with storing(path, "write"):
            if self._events is None:
                self._events = os.open(path, flags, 0o600)
            write_whole(self._events, line)

    def complete_rows(
        self, resend: Resend | None = None, source: Requests | None = None
    ) -> CompleteRows:
        """What parts and journal hold, and what of it failed as asked. Raises `StoreError`."""
        with snapshot(self.path) as now:
            rows = read_complete_rows(now, resend, source)
            self.unfinished.drop_known(now)
        return rows

    def start(
        self,
        *,
        part_rows: int,
        part_bytes: int,
        part_seconds: float | None = None,
        replaces: bool = False,
        seal_in_process: bool = False,
    ) -> None:
        """Opens the journal; a part is sealed at so many rows or bytes. Raises `StoreError`.

        `part_bytes`: of the journal; in a store 32 MB at most. `part_seconds`: or when its first
        row is so old; null: 300 s in a store, else at any age.
        `replaces`: outcomes will come of rows that parts hold already; `finish` has sealed what
        the journal held before. `seal_in_process`: a process of its own seals, not a thread.
        """
        if self.record is None or self._writer is not None:
            raise RuntimeError("start() needs a saved record, and comes once")
        self.upgrade()
        with storing(self.path / JOURNAL, "list"):
            first = next_id(self.path, self._writer_id)
        self._writer = JournalWriter(
            self.path,
            self.record,
            first,
            self._leftover,
            part_rows=part_rows,
            part_bytes=part_bytes,
            part_seconds=part_seconds,
            replaces=replaces,
            lock=self._lock if seal_in_process else None,
            sync_also=self.unfinished.sync,
            sealing=self._sealing,
        )

    def store(self, outcome: Outcome, *, anyway: bool = False) -> None:
        """The outcome survives SIGKILL when this returns, power loss within a second.

        Raises `StoreError` if it does not or, unless `anyway`, if an earlier sync or seal failed.
        """
        self.store_some((outcome,), anyway=anyway)

    def store_some(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int:
        """`store` for as many, from the first on, as go into one write: at least one; how many."""
        if self._writer is None:
            raise RuntimeError("store() comes between start() and close()")
        taken = self._writer.append(outcomes, anyway=anyway)
        if self.unfinished:
            for outcome in outcomes[:taken]:
                self.unfinished.drop(outcome.request.key)
        return taken

    def seal_old(self) -> None:
        """To be called now and then while outcomes are stored; see `part_seconds` of `start`."""
        if self._writer is not None:
            self._writer.seal_old()

    def new_writer(self) -> int:
        """The number of a worker that is about to be started: never given again. For any thread.

        A store has it too when this returns: commands on other machines give others. Raises
        `StoreError`.
        """
        with self._saving:
            if self.record is None or self._lock is None:
                raise RuntimeError("new_writer() comes between the first save() and close()")
            self.upgrade()  # an older batchrun would take what workers write for a run of its own
            with storing(self.path, "list"):
                highest = max(highest_writer(self.path), self._writer_id)
            writer = max(self.record.writers, highest + 1)
            self._save(replace(self.record, writers=writer + 1), (RUN_FILE,))
        return writer

    def adopt(
        self, worker: int, rows: Collection[int] = (), *, is_silent: bool = False
    ) -> Adopted | None:
        """Puts in order what a worker left, if it is dead; null where it lives, or may.

        `rows`: those that it had, as the tables number them. `is_silent`: where its lock says
        nothing, the caller knows that it has stopped by itself. For any thread. Raises
        `StoreError`.
        """
        if self.record is None:
            raise RuntimeError("adopt() needs a saved record")
        with self._sealing:
            adopted = adopt(
                self.path,
                self.record,
                self.unfinished,
                worker,
                rows,
                is_silent=is_silent,
                flock=self._flock,
            )
        if adopted is not None and not adopted.is_certain:
            self._silent.add(worker)
        return adopted

    def seal_full_segments(self) -> None:
        """To be called now and then where rows are sent again by workers. For any thread.

        Workers leave these to this process: it alone replaces rows. Raises `StoreError`.
        """
        if self.record is not None:
            with self._sealing:
                seal_full_segments(self.path, self.record)

    def finish(self) -> None:
        """All outcomes are in parts, and the journal has unfinished rows alone. `StoreError`.

        But for those of workers that live.
        """
        if self.record is not None:
            with storing(self.path / JOURNAL, "list"):
                workers = workers_of(self.path)
            for worker in workers:
                self.adopt(worker)
            for worker in sorted(self._silent):  # what they have written since
                self.adopt(worker, is_silent=True)
            forget(self.path)
        self._finish()
        self._drop_doubles(is_due=bool(self._silent))

    def _drop_doubles(self, *, is_due: bool) -> None:
        """Where workers were taken for dead by their silence, two may have completed a row."""
        if is_due and self.record is not None and self.record.writers > 1:
            self._finish()
            self.upgrade()
            drop_doubles(self.path, self.record.layout)

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._leftover = ()
            writer.close(seal_rest=True)
        elif self._leftover and self.record is not None:
            self.upgrade()
            leftover, self._leftover = self._leftover, ()
            seal(self.path, self.record, leftover)
        self.unfinished.close()

    def name_variant(self, name: str) -> None:
        """All rows without a variant are of this one; `finish` came before. Raises `StoreError`."""
        self.unfinished.name_variant(name)
        if self.record is not None:
            self.upgrade()
            with storing(self.path / JOURNAL, "list"):
                of = next_id(self.path, self._writer_id)
            name_variant(self.path, of, self.record.layout, name)

    def close(self, *, seal: bool = False) -> None:
        """Everything is on disk, with `seal` in parts and the journal empty; the lock is free.

        Raises `StoreError` for what failed and was not raised yet; the lock is free even so.
        """
        with ExitStack() as rest:
            rest.callback(self._release)
            if self._store_run is not None:
                rest.callback(self._close_store_run)
            if self._lock is not None:
                rest.callback(self.unfinished.close)
            rest.callback(self.unreadable.close)
            if seal and self._lock is not None:
                self.finish()
            elif self._writer is not None:
                writer, self._writer = self._writer, None
                writer.close(seal_rest=False)

    @property
    def writes_schema(self) -> int:
        """The schema version that `run.json` must name once this command has written."""
        is_older = self.record is not None and self.record.schema_version < SCHEMA_VERSION
        if self.record is not None and is_older and not self._leftover:
            return self.record.schema_version
        return SCHEMA_VERSION

    def upgrade(self) -> None:
        """All parts are of this schema; `run.json` says so before the first is. `StoreError`."""
        if self.record is not None and self.record.schema_version < SCHEMA_VERSION:
            self.save(upgraded(self.record))
        if self.record is not None and self.record.older_schema is not None:
            rewrite_parts(self.path, self.record.layout)
            self.save(replace(self.record, older_schema=None))

    def drop_rows(self, keys: Collection[RowKey], totals: Totals, gone: Totals) -> None:
        """Takes rows out of the tables that hold no answer. Raises `StoreError`.

        `totals` and `gone`: of the rows that stay, for `run.json`.
        """
        self.finish()
        self.upgrade()
        if self.record is not None:  # first, so that a kill in between does not look like a loss
            self.save(replace(self.record, totals=totals, gone=gone, parts={}))
            drop_rows(self.path, keys, self.record.layout)

    def _close_store_run(self) -> None:
        store_run, self._store_run = self._store_run, None
        if store_run is not None:
            with storing(self.path, "end the run in its store"):
                store_run.close(is_void=self.record is None)

    def _release(self) -> None:
        """Deletes what was made for a command that saved nothing: the plan found a problem."""
        if self.record is None and self._lock is not None:
            with suppress(OSError):  # it may hold what somebody else has put there
                if (self.path / INPUT).is_dir():
                    for file in (self.path / INPUT).iterdir():
                        file.unlink()
                    (self.path / INPUT).rmdir()
                (self.path / LOCK).unlink()
                for table in (*TABLES, JOURNAL):  # a run in a store has them from the start
                    with suppress(FileNotFoundError):
                        (self.path / table).rmdir()
                for made in self._made:
                    made.rmdir()
        with self._saving:  # a worker may be given its number meanwhile
            handles = (self._events, self._lock)
            self._events = self._lock = None
        for handle in handles:
            if handle is not None:
                os.close(handle)


def _made_and_locked(path: Path, flock: Flock) -> tuple[tuple[Path, ...], Lock]:
    """The folders that were made, and the lock. Raises as `RunDir.open`."""
    for _ in range(_ATTEMPTS):
        made = _check_or_make(path)
        try:
            return made, take_lock(path, flock)
        except StoreError as error:  # another command made it, found a problem, and deleted it
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return _check_or_make(path), take_lock(path, flock)


def _check_or_make(path: Path) -> tuple[Path, ...]:
    """The folders that were made, the innermost first. Raises `JobError` for another folder."""
    with storing(path, "make this directory"):
        try:
            names = {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            missing = [path, *(above for above in path.parents if not above.exists())]
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(mode=0o700, exist_ok=True)  # another command may make it, too
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                raise JobError(
                    f"{path}: this directory cannot be made ({error.strerror}); give another place "
                    "with -o (output.path)"
                ) from error
            sync_path(path.parent)
            return tuple(missing)
        except NotADirectoryError:
            file = next(one for one in (path, *path.parents) if one.exists())
            raise JobError(
                f"{file} is a file; give a directory for the results with --output"
            ) from None
    foreign = sorted(name for name in names - _OURS if not name.endswith(".tmp"))
    if RUN_FILE not in names and foreign:
        raise JobError(
            f"{path} is not a run directory and not empty (it holds {shown(foreign[0])}); "
            "give an empty or new one with --output"
        )
    return ()
