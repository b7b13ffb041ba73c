"""A run directory as the process that owns it sees it: the entry point of this package.

An outcome is in the journal before `store` returns, on disk within a second, and later in exactly
one part. Whenever the process is killed, the next `open` finds each outcome once. There is no
asyncio here: `store` and the small files are quick, and slow work has its own threads.
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
from batchrun.remote.run_link import SMALL_FILES, change_link, read_link
from batchrun.remote.store_run import StoreRun
from batchrun.store.columns import SCHEMA_VERSION
from batchrun.store.complete_rows import CompleteRows, Requests, read_complete_rows
from batchrun.store.files import (
    INPUT,
    JOURNAL,
    LOCK,
    STDIN_COPY,
    TABLES,
    WRITER,
    Flock,
    Lock,
    first_foreign,
    highest_writer,
    make_folders,
    next_id,
    open_files,
    replace_file,
    storing,
    sync_path,
    take_lock,
    unfinished_name,
    workers_of,
    write_whole,
)
from batchrun.store.parts import count_rows
from batchrun.store.reading import (
    EVENTS_FILE,
    LIVE_FILE,
    RUN_FILE,
    read_live,
    read_run_record,
    read_settled_live,
    read_totals,
    read_unknown_usd,
)
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
from batchrun.store.unreadable import UnreadableBodies
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

_ATTEMPTS = 5  # to get a directory that others make and delete
_RESERVED = "reserved_usd"  # of `live.json`


class RunDir:
    """Open until `close`; for one thread, except the methods that say otherwise."""

    def __init__(
        self,
        path: Path,
        lock: Lock,
        made: tuple[Path, ...],
        store_run: StoreRun | None = None,
        flock: Flock = fcntl.flock,
    ) -> None:
        """Recovers a locked directory; `open` locks it first. Raises as `open`.

        `made`: the folders that were just made, innermost first. `store_run`: for a run whose
        tables are in a store.
        """
        self.path = path
        self.name = str(path) if store_run is None else store_run.url
        self._store_run = store_run
        self._writer_id = WRITER if store_run is None else store_run.writer
        self.record = read_run_record(path)  # as found or saved; None for a new directory
        found = recover(path)
        has_outcomes = found.segments or found.has_parts or open_files(path / JOURNAL)
        if self.record is None and has_outcomes:
            raise StoreError(
                f"{path}: {RUN_FILE} is missing, but there are stored rows; restore it, or "
                "give another directory with --output"
            )
        # About damaged bytes that were moved, and about a directory that cannot be locked.
        self.warnings = (*found.warnings, *([lock.warning] if lock.warning else ()))
        self.unfinished = UnfinishedRows(path, self._writer_id)
        self.unreadable = UnreadableBodies(path)
        self._lock: int | None = lock.handle
        self._flock = flock
        self._sealing = threading.Lock()  # held by the thread that seals
        self._saving = threading.RLock()  # held by the one that writes `run.json`
        self._silent = set[int]()  # workers adopted only because they were silent; may be alive
        self._made, self._has_made_input = made, False
        self._is_scratch = store_run is not None
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
        """Opens the directory: makes it if absent, locks it, and recovers it after any crash.

        `url`: where the tables are, if in a store; `path` is then the folder on this machine.
        `waiting`: called with their names while workers of an earlier command finish; what it
        raises ends the wait. Raises `JobError` if another process has the directory, if it is
        another kind of folder, or if the store cannot be used; `StoreError`.
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
            opened._settle()
            forget(path, workers)
            opened._drop_doubles(is_due=lock.warning is not None)
            if is_doubtful:
                opened._bring_together()
                change_link(path, is_doubtful=False)
        except BaseException:
            if store_run is not None:
                with suppress(OSError, StoreError):
                    store_run.close(is_broken=True)
            os.close(lock.handle)
            raise
        return opened

    def _bring_together(self) -> None:
        """Seals rows that another machine may also have completed, so that each is there once.

        `run.json` then has the totals of both. Raises `StoreError`.
        """
        if self.record is not None:  # first, so that a kill before the rest looks like no loss
            self.save(replace(self.record, parts={}))
        self.finish()
        if self.record is not None:
            totals, parts = read_totals(self.path), count_rows(self.path)
            self.save(replace(self.record, totals=totals, parts=parts))

    def _settle(self) -> None:
        """Keeps in `live.json` what the marks of workers say, before these are deleted.

        What is reserved there counts as spent from now on, once.
        """
        live, path = read_settled_live(self.path), self.path / LIVE_FILE
        has_news = bool(live.get(_RESERVED)) or live != (read_live(self.path) or {})
        if self.record is None or not has_news:
            return
        usd = read_unknown_usd(self.path, self.record)
        with storing(path, "write"):
            # Its time says that it is of an earlier command.
            times = (path.stat().st_atime_ns, path.stat().st_mtime_ns) if path.exists() else (0, 0)
            text = encode_json({**live, "unknown_usd": usd, _RESERVED: 0.0}) + b"\n"
            replace_file(path, text, durable=True)
            os.utime(path, ns=times)

    @property
    def input_dir(self) -> Path:
        """The folder for standard input; made if absent. Raises `StoreError`."""
        folder = self.path / INPUT
        with storing(folder, "make this folder"):
            self._has_made_input |= not folder.exists()
            make_folders(folder)
        return folder

    @property
    def may_be_taken(self) -> Callable[[], bool] | None:
        """For a run in a store: tells whether another machine may have it by now."""
        store_run = self._store_run
        return None if store_run is None else lambda: not store_run.is_certain

    @property
    def has_no_variants(self) -> bool:
        """Whether the last command's job had no variants, so that rows may have none."""
        return self.record is not None and not self.record.job.get("variants")

    def save(self, record: RunRecord) -> None:
        """Writes `run.json` and syncs it. Raises `StoreError`.

        The first time, before anything was sent, `JobError` if a store cannot be written.
        """
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
                self._store_run.save(uploaded)

    def write_live(self, summary: object) -> None:
        """Replaces `live.json` as a whole, without a sync. Raises `StoreError`."""
        if self._store_run is not None:
            self._store_run.check()
        with storing(self.path / LIVE_FILE, "write"):
            replace_file(self.path / LIVE_FILE, encode_json(summary) + b"\n", durable=False)

    def log_event(self, name: str, **facts: object) -> None:
        """Adds a line to `events.jsonl`. Raises `StoreError`."""
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
        """The rows in parts and journal; marks those to be sent again. Raises `StoreError`."""
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

        `part_bytes`: bytes of the journal; in a store 32 MB at most. `part_seconds`: a part is also
        sealed when its first row is so old; None: 300 s in a store, else no limit.
        `replaces`: outcomes will replace rows in parts; `finish` must have sealed the journal
        before. `seal_in_process`: a separate process seals, not a thread.
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
        """Stores an outcome: it then survives SIGKILL, and after a second a loss of power.

        Raises `StoreError` if that fails or, unless `anyway`, if an earlier sync or seal failed.
        """
        self.store_some((outcome,), anyway=anyway)

    def store_some(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int:
        """Stores as many, from the first on, as fit into one write, at least one; how many."""
        if self._writer is None:
            raise RuntimeError("store() comes between start() and close()")
        taken = self._writer.append(outcomes, anyway=anyway)
        if self.unfinished:
            for outcome in outcomes[:taken]:
                self.unfinished.drop(outcome.request.key)
        return taken

    def seal_old(self) -> None:
        """Seals what is old enough (`part_seconds`); call it regularly while storing."""
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
            self.upgrade()  # an older batchrun would misread what workers write
            with storing(self.path, "list"):
                highest = max(highest_writer(self.path), self._writer_id)
            writer = max(self.record.writers, highest + 1)
            self._save(replace(self.record, writers=writer + 1), (RUN_FILE,))
        return writer

    def adopt(
        self, worker: int, rows: Collection[int] = (), *, is_silent: bool = False
    ) -> Adopted | None:
        """Takes over the files of a dead worker; None if it is alive, or may be.

        `rows`: the rows that it had, by their numbers in the tables. `is_silent`: if its lock
        proves nothing, the caller knows that it has stopped by itself. For any thread. Raises
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
            if adopted is not None:
                self.warnings += adopted.warnings
        if adopted is not None and not adopted.is_certain:
            self._silent.add(worker)
        return adopted

    def seal_full_segments(self) -> None:
        """Seals journals of workers that send rows again; call it regularly. For any thread.

        Workers leave this to the command, which alone replaces rows. Raises `StoreError`.
        """
        if self.record is not None:
            with self._sealing:
                seal_full_segments(self.path, self.record)

    def finish(self) -> None:
        """Seals all outcomes; only unfinished rows stay in the journal. Raises `StoreError`.

        Outcomes of workers that are alive stay where they are.
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
        """Removes double rows, which silent workers that were adopted too early may leave."""
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
        """Gives all rows without a variant this one; call `finish` before. Raises `StoreError`."""
        self.unfinished.name_variant(name)
        if self.record is not None:
            self.upgrade()
            with storing(self.path / JOURNAL, "list"):
                of = next_id(self.path, self._writer_id)
            name_variant(self.path, of, self.record.layout, name)

    def close(self, *, seal: bool = False) -> None:
        """Writes everything to disk, with `seal` to parts, and frees the lock.

        Raises `StoreError` for a failure that was not raised yet; the lock is free anyway.
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
        """The schema version for `run.json` when this command has written."""
        is_older = self.record is not None and self.record.schema_version < SCHEMA_VERSION
        if self.record is not None and is_older and not self._leftover:
            return self.record.schema_version
        return SCHEMA_VERSION

    def upgrade(self) -> None:
        """Converts all parts to this schema; `run.json` says so first. Raises `StoreError`."""
        if self.record is not None and self.record.schema_version < SCHEMA_VERSION:
            self.save(upgraded(self.record))
        if self.record is not None and self.record.older_schema is not None:
            rewrite_parts(self.path, self.record.layout)
            self.save(replace(self.record, older_schema=None))

    def drop_rows(self, keys: Collection[RowKey], totals: Totals, gone: Totals) -> None:
        """Removes rows without an answer from the tables. Raises `StoreError`.

        `totals` and `gone`: of the remaining rows, for `run.json`.
        """
        self.finish()
        self.upgrade()
        if self.record is not None:  # first, so that a kill before the rest looks like no loss
            self.save(replace(self.record, totals=totals, gone=gone, parts={}))
            drop_rows(self.path, keys, self.record.layout)

    def _close_store_run(self) -> None:
        store_run, self._store_run = self._store_run, None
        if store_run is not None:
            with storing(self.path, "end the run in its store"):
                store_run.close(is_void=self.record is None)

    def _release(self) -> None:
        """Deletes what was made for a command that saved nothing because its plan failed."""
        if self.record is None and self._lock is not None:
            with suppress(OSError):  # somebody else may have put something there
                self._delete_made()
        with self._saving:  # a worker may be given its number meanwhile
            handles = (self._events, self._lock)
            self._events = self._lock = None
        for handle in handles:
            if handle is not None:
                os.close(handle)

    def _delete_made(self) -> None:
        """Deletes what this command has made, and nothing that it found. Raises `OSError`."""
        folder = self.path / INPUT
        if self._has_made_input:
            for name in (STDIN_COPY, unfinished_name(STDIN_COPY)):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        elif folder.is_dir():  # of a command that was killed: the lock says that it was one
            return
        (self.path / LOCK).unlink()
        if self._is_scratch:  # it has them from the start
            for table in (*TABLES, JOURNAL):
                with suppress(FileNotFoundError):
                    (self.path / table).rmdir()
        for made in self._made:
            made.rmdir()


def _made_and_locked(path: Path, flock: Flock) -> tuple[tuple[Path, ...], Lock]:
    """Makes and locks it; the folders that were made, and the lock. Raises as `RunDir.open`."""
    for _ in range(_ATTEMPTS):
        made = _check_or_make(path)
        try:
            return made, take_lock(path, flock)
        except StoreError as error:  # another command made it, found a problem, and deleted it
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return _check_or_make(path), take_lock(path, flock)


def _check_or_make(path: Path) -> tuple[Path, ...]:
    """Makes the folders if absent; those made, innermost first. `JobError` for another folder."""
    foreign = None
    with storing(path, "make this directory"):
        try:
            if not (path / RUN_FILE).exists():
                foreign = first_foreign(path)
        except FileNotFoundError:
            missing = [path, *(above for above in path.parents if not above.exists())]
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(mode=0o700, exist_ok=True)  # another command may make it too
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
    if foreign is not None and not (path / RUN_FILE).exists():  # a command may save it meanwhile
        raise JobError(
            f"{path} is not a run directory and not empty (it holds {shown(foreign)}); "
            "give an empty or new one with --output"
        )
    return ()
