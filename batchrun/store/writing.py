"""Writes the journal, with the threads and the process that sync and seal it.

`JournalWriter.append` is called on the event loop and waits for none of them. An error in a thread
is raised by the next `append` or by `close`.

The run and its seal process talk over the child's standard streams, in lines of JSON: first the
record of the run, then for each seal the names of the segments; the answer is null or an error. The
child also holds the directory's lock, and ends with the run, also if the run is killed.
"""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import msgspec

from batchrun.errors import StoreError
from batchrun.formats.json_text import encode_json
from batchrun.records import Outcome, RunRecord
from batchrun.remote.run_link import read_link
from batchrun.store.columns import SCHEMA_VERSION
from batchrun.store.files import JOURNAL, FileId, make_folders, store_error, storing, sync_path
from batchrun.store.journal import Header, Segment
from batchrun.store.sealing import finish_or_seal, seal

_SYNC_EVERY_S = 0.5  # the sync takes time too: in all, within a second of the write
# Journal bytes of a part in a store, and of a segment, whose part is smaller: see `seal`.
_STORE_PART_BYTES = 32 << 20
STORE_SEGMENT_BYTES = 8 << 20
_STORE_PART_SECONDS = 300.0  # so much of the run is on this machine alone


class JournalWriter:
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
        part_seconds: float | None,
        replaces: bool,
        lock: int | None,
        sync_also: Callable[[], None],
        sealing: threading.Lock,
        seals: bool = True,
    ) -> None:
        """`first`: the first free id.

        `leftover`: older segments, sealed with the first new one. `part_bytes`: less in a store.
        `lock`: that of the folder, for a process that seals; None: a thread seals.
        `sync_also`: called whenever the journal is synced. `sealing`: held while this process
        seals. `seals`: false if another process seals. Raises `StoreError`.
        """
        self._sealing_lock, self._is_sealed_here = sealing, seals
        self._folder, self._record, self._next = folder, record, first
        is_in_store = read_link(folder) is not None
        self._part_rows = part_rows
        self._part_seconds = part_seconds or (_STORE_PART_SECONDS if is_in_store else None)
        self._part_bytes = min(part_bytes, _STORE_PART_BYTES) if is_in_store else part_bytes
        self._segment_bytes = min(part_bytes, STORE_SEGMENT_BYTES) if is_in_store else part_bytes
        self._began_s = time.monotonic()  # what is not sealed: with its first row, or left over
        self._lock, self._sync_also = lock, sync_also
        self._waiting = list(leftover)  # segments for the next seal, before the current one; ...
        self._waiting_rows = self._waiting_bytes = 0  # ... their rows and bytes, without `leftover`
        columns = tuple(column.name for column in record.layout.columns)
        self._header = Header(SCHEMA_VERSION, record.hash_rule, columns, replaces)
        self._process: SealProcess | None = None
        self._failure: StoreError | None = None
        self._is_raised = False
        self._full: SimpleQueue[Segment] = SimpleQueue()  # full, but not yet synced and closed
        self._seals: SimpleQueue[list[str] | None] = SimpleQueue()
        self._stop = threading.Event()
        with storing(folder / JOURNAL, "make the journal"):
            make_folders(folder / JOURNAL)
        self._segment = self._new_segment()
        self._syncing = threading.Thread(target=self._sync_until_stopped, daemon=True)
        self._sealing = threading.Thread(target=self._seal_until_stopped, daemon=True)
        self._syncing.start()
        self._sealing.start()

    def append(self, outcomes: Sequence[Outcome], *, anyway: bool = False) -> int:
        """Writes as many, from the first on, as fit into one write, at least one; how many.

        They then survive SIGKILL, and after a second a loss of power.

        Raises `StoreError`; unless `anyway`, also for an earlier error in a thread.
        """
        if self._failure is not None and not anyway:
            self._is_raised = True
            raise self._failure
        segment, part_rows = self._segment, self._part_rows - self._waiting_rows
        if not segment.rows and not self._waiting:
            self._began_s = time.monotonic()
        taken = segment.append(outcomes[: max(1, part_rows - segment.rows)])
        is_full = segment.rows >= part_rows or segment.bytes >= self._segment_bytes
        if is_full:
            self._begin_segment(is_part=segment.rows >= part_rows)
        return taken

    def seal_old(self) -> None:
        """Seals what has been in the journal for long enough; call it regularly."""
        has_rows = self._segment.rows or self._waiting
        age_s = time.monotonic() - self._began_s
        if self._part_seconds is not None and has_rows and age_s >= self._part_seconds:
            self._begin_segment(is_part=True)

    def _begin_segment(self, *, is_part: bool) -> None:
        """Begins one for the next rows; `is_part`: seals the rows before, however few."""
        if self._failure is None:
            try:
                if self._segment.rows:
                    self._rotate()
                if is_part or self._waiting_bytes >= self._part_bytes:
                    if self._is_sealed_here:
                        self._seals.put(self._waiting)
                    self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
            except StoreError as error:  # for the next call: the rows of this one are stored
                self._fail(error)

    def close(self, *, seal_rest: bool) -> None:
        """Ends the threads, syncs everything, and with `seal_rest` seals everything.

        Raises `StoreError` for an error that no `append` has raised yet.
        """
        self._stop.set()
        self._syncing.join()
        self._sync()
        if seal_rest and self._is_sealed_here and self._failure is None:
            rest = [self._segment.path.name] if self._segment.rows else []
            if names := [*self._waiting, *rest]:
                self._seals.put(names)
        self._seals.put(None)
        self._sealing.join()
        self._segment.close()
        if not self._segment.rows:
            with suppress(OSError):  # an empty segment does no harm
                self._segment.path.unlink(missing_ok=True)
        if self._failure is not None and not self._is_raised:
            self._is_raised = True
            raise self._failure

    def _new_segment(self) -> Segment:
        segment = Segment(self._folder / JOURNAL / self._next.segment, self._header)
        self._name_is_new = True
        return segment

    def _rotate(self) -> None:
        full = self._segment
        self._next = self._next._replace(number=self._next.number + 1)
        self._segment = self._new_segment()
        self._full.put(full)
        self._waiting.append(full.path.name)
        self._waiting_rows += full.rows
        self._waiting_bytes += full.bytes

    def _sync_until_stopped(self) -> None:
        while not self._stop.wait(_SYNC_EVERY_S):
            self._sync()
            if self._segment.is_deleted:
                self._fail(
                    StoreError(
                        f"{self._segment.path}: deleted while it was written; "
                        "its rows are lost; run the same command again, which sends them again"
                    )
                )

    def _sync(self) -> None:
        try:
            while not self._full.empty():
                full = self._full.get()
                full.sync()
                full.close()
            current = self._segment  # read after the others, which only this thread closes
            current.sync()
            if self._name_is_new:
                self._name_is_new = False
                sync_path(self._folder / JOURNAL)
            self._sync_also()
        except OSError as error:
            self._fail(store_error(self._folder / JOURNAL, "sync the journal", error))
        except StoreError as error:
            self._fail(error)

    def _seal_until_stopped(self) -> None:
        while (names := self._seals.get()) is not None:
            if self._failure is not None:
                continue
            try:
                with self._sealing_lock:
                    self._seal(names)
            except StoreError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - a thread's bug must end the run, not hide
                failure = StoreError(_bug_in_words(error, self._folder, names))
                failure.__cause__ = error
                self._fail(failure)
        if self._process is not None:
            self._process.close()

    def _seal(self, names: Sequence[str]) -> None:
        """Seals in the process while rows are sent; here if there is no process."""
        # Starting it is not worth it for the rest, when everything was sent.
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
        except _ProcessEnded:  # killed, or out of memory
            self._process = self._lock = None
            finish_or_seal(self._folder, self._record, names)

    def _fail(self, failure: StoreError) -> None:
        self._failure = self._failure or failure


def _bug_in_words(bug: Exception, folder: Path, segments: Sequence[str]) -> str:
    return (
        f"{folder}: sealing {segments[-1]} failed ({type(bug).__name__}: {bug});"
        " the journal still holds its rows, so nothing is lost. Please report this"
    )


class _ProcessEnded(Exception):  # noqa: N818 - the caller knows what to do then
    """The process has ended; its last seal may be done, half done or not begun."""


_MAIN = (
    "from batchrun.formats.arrow_import import prepare_arrow_import; prepare_arrow_import(); "
    "from batchrun.store.writing import serve; serve()"
)
# If both share a core, the event loop's longest stall is 12 ms with this, and 18 with 0.
_NICE = 5
_YOUNG = 50_000  # objects made before the garbage collector looks at them: a tenth of a seal's CPU


class SealProcess:
    """The process that seals, for the run's own process; for one thread."""

    def __init__(self, folder: Path, record: RunRecord, lock: int) -> None:
        """Starts it. Raises `OSError`."""
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and this code
            [sys.executable, "-P", "-c", _MAIN, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            pass_fds=(lock,),
            process_group=0,  # signals of the terminal are for the run's process
        )
        assert self._process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self._process.stdout is not None  # noqa: S101 - the same
        self._to, self._from = self._process.stdin, self._process.stdout
        with suppress(BrokenPipeError):  # the first seal will notice
            self._send(record)

    def seal(self, segments: Sequence[str]) -> None:
        """Seals in the process. Raises `StoreError` and `_ProcessEnded`."""
        try:
            self._send(segments)
            answer = self._from.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            raise _ProcessEnded
        message = msgspec.json.decode(answer, type=str | None)
        if message is not None:
            raise StoreError(message)

    def close(self) -> None:
        """Ends the process and waits for it."""
        with suppress(BrokenPipeError):
            self._to.close()
        self._from.close()
        self._process.wait()

    def _send(self, value: object) -> None:
        self._to.write(encode_json(value) + b"\n")
        self._to.flush()


def serve() -> None:
    """Runs in the process: seals what it is told to, and never returns."""
    os.nice(_NICE)
    gc.freeze()
    gc.set_threshold(_YOUNG)
    folder = Path(sys.argv[1])
    record = msgspec.json.decode(sys.stdin.buffer.readline(), type=RunRecord)
    asked: SimpleQueue[list[str]] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        segments, message = asked.get(), None
        try:
            seal(folder, record, segments)
        except StoreError as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - a bug must end the run, not hide
            message = _bug_in_words(error, folder, segments)
        try:
            sys.stdout.buffer.write(encode_json(message) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the run was killed: nobody reads the answer
            os._exit(0)


def _listen(asked: "SimpleQueue[list[str]]") -> None:
    for line in sys.stdin.buffer:
        asked.put(msgspec.json.decode(line, type=list[str]))
    os._exit(0)  # the next command finishes what is half done
