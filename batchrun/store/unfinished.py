"""What is known about rows that have no outcome yet: `journal/wN.open`.

A background response is recorded before it is waited for, and an answer that is requested again
before the new request. The file has frames like the journal, and is not sealed: a record is dropped
when the row's outcome is in the journal.
"""

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from batchrun.formats.json_text import valid_text
from batchrun.records import Answered, Begun, Request, RowKey
from batchrun.store.columns import KEY, SCHEMA_VERSION
from batchrun.store.files import (
    JOURNAL,
    WRITER,
    make_folders,
    open_files,
    open_name,
    replace_content,
    store_error,
    storing,
    sync_data,
    sync_path,
    write_whole,
)
from batchrun.store.journal import HEAD_BYTES, Frame, Header, frame_of, scan
from batchrun.store.parts import found_in
from batchrun.store.snapshot import Snapshot, read_snapshot

_COMPACT_BYTES = 16 << 20  # a smaller file is not rewritten during a run, ...
_DEAD_SHARE = 4  # ... nor one of which more than a fourth is still needed
_ATTEMPTS = 100  # to read a file that another process rewrites meanwhile
_HEADER = Header(SCHEMA_VERSION, 0, ())


class _Location(Struct, frozen=True):
    """Where an `Answered` is in a file."""

    path: Path
    offset: int  # where its payload begins
    bytes: int
    attempt: str | None  # the client request id of the last attempt
    cost_usd: float

    def read(self) -> Answered:
        """Raises `OSError`."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return msgspec.msgpack.decode(file.read(self.bytes), type=Answered)


class UnfinishedRows:
    """The records of a run directory, as its owner sees them. For any thread."""

    def __init__(self, folder: Path, writer: int, *, is_worker: bool = False) -> None:
        """Reads what earlier processes left. Raises `StoreError`.

        `is_worker`: records of the command are read, and stay in the command's file.
        """
        self._folder = folder / JOURNAL
        self._path = self._folder / open_name(writer)
        self._is_worker = is_worker
        # For a worker: all records are its own, except these, which are in the command's file.
        self._given: set[RowKey] = set()
        self._given_stamp: tuple[int, int, int] | None = None  # of the command's file
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._size = 0
        self._is_dirty = False  # written and not synced
        self._is_changed = False  # the files differ from what is open
        self._begun: dict[RowKey, Begun] = {}
        self._answered: dict[RowKey, _Location] = {}
        self._others: set[str] = set()  # files of dead writers, whose records are taken over here
        if is_worker:
            self.refresh()
            return
        with storing(self._folder, "list"):
            names = open_files(self._folder)
        self._others = {*names} - {self._path.name}
        for record, path, offset, size in _read_all(self._folder, names):
            self._take(record, path, offset, size)

    def __bool__(self) -> bool:
        return bool(self._begun or self._answered)

    @property
    def answers(self) -> int:
        """How many answers are to be requested again."""
        return len(self._answered)

    @property
    def cost_usd(self) -> float:
        """The known cost of these answers and of the attempts before them."""
        with self._lock:
            return sum(location.cost_usd for location in self._answered.values())

    def begin(self, request: Request, endpoint: str, response_id: str) -> None:
        """Records that a background response has begun, and syncs it. Raises `StoreError`."""
        key = _valid(request.key)
        with self._lock:
            self._append(Begun(key, request.hash, endpoint, valid_text(response_id)))
        self.sync(always=True)

    def record(self, answered: Answered) -> None:
        """Stores an answer to be requested again, as durably as an outcome. `StoreError`."""
        with self._lock:
            self._append(answered)

    def begun(self, key: RowKey) -> Begun | None:
        """The background response that was begun for a row."""
        return self._begun.get(_valid(key)) if self._begun else None

    def answered(self, key: RowKey) -> Answered | None:
        """The answer of a row, if it is to be requested again. Raises `StoreError`."""
        if not self._answered:
            return None
        with self._lock:
            location = self._answered.get(_valid(key))
            if location is None:
                return None
            with storing(location.path, "read"):
                return location.read() if self._is_own(location) else self._read_given(_valid(key))

    def drop(self, key: RowKey) -> None:
        """Drops the records of a row, whose outcome is in the journal."""
        key = _valid(key)
        with self._lock:
            if key in self._begun or key in self._answered:
                self._begun.pop(key, None)
                self._given.discard(key)
                self._answered.pop(key, None)
                self._is_changed = True

    def refresh(self) -> None:
        """For a worker: reads the command's records again. Raises `StoreError`.

        Call it for each lease, which may have rows that another worker had before.
        """
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        path = self._folder / open_name(WRITER)
        with storing(path, "read"):
            try:
                with path.open("rb") as file:
                    stat = os.fstat(file.fileno())
                    stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                    if stamp == self._given_stamp:
                        return
                    records = list(_read(file, path))
            except FileNotFoundError:
                records, stamp = [], None
        # Newer knowledge here wins. The new dicts replace the old at once: others read them.
        begun = {key: one for key, one in self._begun.items() if key not in self._given}
        answered = {key: one for key, one in self._answered.items() if self._is_own(one)}
        given_begun, given_answered = dict[RowKey, Begun](), dict[RowKey, _Location]()
        for record, where, offset, size in records:
            key = _valid(record.key)
            if key in answered:
                continue
            if isinstance(record, Answered):
                given_answered[key] = _location(record, where, offset, size)
                given_begun.pop(key, None)  # what was begun before has ended in this answer
            elif key not in begun:
                given_begun[key] = record
        self._begun, self._answered = begun | given_begun, answered | given_answered
        self._given, self._given_stamp = set(given_begun), stamp

    def _is_own(self, location: _Location) -> bool:
        """Whether it is in the own file; else in the command's."""
        return location.path == self._path or not self._is_worker

    def _read_given(self, key: RowKey) -> Answered | None:
        """A record of the command's file, which may be rewritten at any moment. `OSError`."""
        for _ in range(_ATTEMPTS):
            location = self._answered.get(key)
            if location is None:
                return None
            with suppress(FileNotFoundError, msgspec.MsgspecError):
                found = location.read()
                if _valid(found.key) == key:
                    return found
            self._given_stamp = None
            self._refresh()
        raise OSError(errno.EIO, "it changes faster than it can be read")

    def take_over(self, writer: int, now: Snapshot) -> None:
        """Takes over the records of a dead worker, except those in its outcomes. `StoreError`.

        `now`: the worker's outcomes.
        """
        name = open_name(writer)
        with self._lock:
            for record, path, offset, size in _read_all(self._folder, (name,)):
                self._take(record, path, offset, size)
        self.drop_known(now)
        with self._lock, storing(self._path, "write"):
            if (self._folder / name).exists():
                self._others.add(name)
                self._close_file()
                self._rewrite(is_needed=bool(self))

    def unnamed(self) -> Iterator[tuple[RowKey, str]]:
        """Rows without a variant, with the hashes of their requests. Raises `StoreError`."""
        for key, begun in self._begun.items():
            if key[2] is None:
                yield key, begun.hash
        for key in list(self._answered):
            if key[2] is None and (one := self.answered(key)) is not None:
                yield key, one.outcome.request.hash

    def name_variant(self, name: str) -> None:
        """Gives all rows without a variant this one. Raises `StoreError`."""
        with self._lock, storing(self._path, "write"):
            if all(key[2] is not None for key in (*self._begun, *self._answered)):
                return
            self._begun = {
                (new := _named(key, name)): msgspec.structs.replace(one, key=new)
                for key, one in self._begun.items()
            }
            self._answered = {_named(key, name): one for key, one in self._answered.items()}
            self._close_file()
            self._rewrite(is_needed=True)

    def drop_known(self, now: Snapshot) -> None:
        """Drops records that are part of an outcome, after a kill in between. `StoreError`."""
        ids = {key: {location.attempt} for key, location in self._answered.items()}
        for key, begun in self._begun.items():
            ids.setdefault(key, set()).add(begun.response_id)
        for key in _rows_that_know(now, ids):
            self.drop(key)

    def sync(self, *, always: bool = False) -> None:
        """Syncs what was written; unless `always`, another thread may be about to do it.

        Raises `StoreError`.
        """
        with storing(self._path, "sync"):
            with self._lock:
                if self._handle is None or not (self._is_dirty or always):
                    return
                self._is_dirty = False
                handle = os.dup(self._handle)  # the file may be rewritten meanwhile
            try:
                sync_data(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Leaves a file with the open records, or none. Raises `StoreError`."""
        with self._lock, storing(self._path, "write"):
            if self._is_changed:
                self._rewrite(is_needed=bool(self._begun.keys() - self._given or self._own()))
            self._close_file()

    def _take(self, record: Begun | Answered, path: Path, offset: int, size: int) -> None:
        """Adds a record; the last one of a row counts."""
        key = _valid(record.key)
        self._given.discard(key)
        if isinstance(record, Begun):
            self._begun[key] = record
            return
        self._answered[key] = _location(record, path, offset, size)
        self._begun.pop(key, None)  # what was begun before has ended in this answer

    def _append(self, record: Begun | Answered) -> None:
        """Raises `StoreError`; the file then is as it was before."""
        try:
            if self._handle is None or self._is_mostly_dead():
                self._close_file()
                make_folders(self._folder)
                self._rewrite(is_needed=True)
                self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            frame = frame_of(record, self._size)
            try:
                write_whole(self._handle, frame)
            except OSError:
                self._close_file()  # what was written is cut off before the next record
                raise
        except OSError as error:
            raise store_error(self._path, "write", error) from error
        self._take(record, self._path, self._size + HEAD_BYTES, len(frame) - HEAD_BYTES)
        self._size += len(frame)
        self._is_dirty = self._is_changed = True

    def _is_mostly_dead(self) -> bool:
        dead = self._size - _COMPACT_BYTES
        return dead > 0 and dead > _DEAD_SHARE * sum(one.bytes for one in self._own())

    def _own(self) -> list[_Location]:
        return [one for one in self._answered.values() if self._is_own(one)]

    def _close_file(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _rewrite(self, *, is_needed: bool) -> None:
        """Rewrites the file with the open records; the first time, also those that others left.

        There is no file unless `is_needed`. Raises `OSError`.
        """
        whole = bytearray(frame_of(_HEADER, 0))
        answered: dict[RowKey, _Location] = {}
        for key, location in self._answered.items():
            if not self._is_own(location):
                answered[key] = location
                continue
            record = location.read()
            if record.key[2] != key[2]:
                record = _of_variant(record, key[2])
            frame = frame_of(record, len(whole))
            offset, size = len(whole) + HEAD_BYTES, len(frame) - HEAD_BYTES
            answered[key] = msgspec.structs.replace(
                location, path=self._path, offset=offset, bytes=size
            )
            whole += frame
        for key, begun in self._begun.items():  # last: an answer drops what was begun before
            if key not in self._given:
                whole += frame_of(begun, len(whole))
        if is_needed:
            replace_content(self._path, bytes(whole), durable=True)
        # Now, whatever fails below: the records are no longer where they were.
        self._answered, self._size, self._is_changed = answered, len(whole), True
        if is_needed:
            sync_path(self._folder)  # before the records of others are deleted
        for name in (*self._others, *(() if is_needed else (self._path.name,))):
            (self._folder / name).unlink(missing_ok=True)
        self._others.clear()
        sync_path(self._folder)
        self._is_changed = False


def read_open(folder: Path) -> Iterator[Begun | Answered]:
    """All records at this moment, for readers; the last of a row counts. Raises `StoreError`."""
    with storing(folder / JOURNAL, "list"):
        names = open_files(folder / JOURNAL)
    for record, *_ in _read_all(folder / JOURNAL, names):
        yield record


def read_answered(folder: Path) -> list[Answered]:
    """The answers of rows without an outcome, which are requested again. `StoreError`."""
    last = {one.key: one for one in read_open(folder) if isinstance(one, Answered)}
    if not last:
        return []
    ids = {key: {_last_attempt(one)} for key, one in last.items()}
    done = read_snapshot(folder, lambda now: _rows_that_know(now, ids))
    return [one for key, one in last.items() if key not in done]


_IDS = tuple(f"attempts.list.element.{name}" for name in ("response_id", "client_request_id"))


def _rows_that_know(now: Snapshot, ids: Mapping[RowKey, set[str | None]]) -> set[RowKey]:
    """The rows whose outcome has all of these ids, of responses and of client requests."""
    known = set()
    for batch in now.batches((*KEY, "response_id", *_IDS)) if ids else ():
        for row in batch.filter(found_in(batch, ids)).to_pylist():
            there = {row["response_id"]}
            for attempt in row["attempts"] or ():
                there |= {attempt["response_id"], attempt["client_request_id"]}
            key = (row["custom_id"], row["sample"], row["variant"])
            if ids[key] <= there:
                known.add(key)
    return known


def _location(record: Answered, path: Path, offset: int, size: int) -> _Location:
    """`offset` and `size` are those of its payload."""
    cost_usd = record.outcome.cost_usd or 0.0
    return _Location(path, offset, size, _last_attempt(record), cost_usd)


def _last_attempt(answered: Answered) -> str | None:
    """The client request id of the last attempt."""
    attempts = answered.outcome.attempts
    return attempts[-1].client_request_id if attempts else None


class _Started(Struct):
    """What schema 1 stored about background responses, in `wN.started`."""

    row: int
    custom_id: str
    hash: str
    response_id: str


_decoder = msgspec.msgpack.Decoder(Header | Begun | Answered)
_decoder_of_schema_1 = msgspec.msgpack.Decoder(_Started)


_Found = tuple[Begun | Answered, Path, int, int]  # its file, offset and size of the payload


def _read_all(folder: Path, names: Iterable[str]) -> Iterator[_Found]:
    """Each record of these files, if they exist. Raises `StoreError`."""
    for name in names:
        path = folder / name
        with storing(path, "read"), suppress(FileNotFoundError), path.open("rb") as file:
            yield from _read(file, path)


def _read(file: BinaryIO, path: Path) -> Iterator[_Found]:
    for piece in scan(file):
        if isinstance(piece, Frame) and (record := _decoded(piece.payload)):
            yield record, path, piece.offset + HEAD_BYTES, len(piece.payload)


def _decoded(payload: bytes) -> Begun | Answered | None:
    with suppress(msgspec.MsgspecError):
        record = _decoder.decode(payload)
        return None if isinstance(record, Header) else record
    with suppress(msgspec.MsgspecError):
        old = _decoder_of_schema_1.decode(payload)
        return Begun((old.custom_id, 0, None), old.hash, "", old.response_id)
    return None


def _named(key: RowKey, name: str) -> RowKey:
    return (*key[:2], name) if key[2] is None else key


def _of_variant(answered: Answered, name: str | None) -> Answered:
    outcome = answered.outcome
    request = msgspec.structs.replace(outcome.request, variant=name)
    return msgspec.structs.replace(
        answered,
        key=request.key,
        outcome=msgspec.structs.replace(outcome, request=request),
    )


def _valid(key: RowKey) -> RowKey:
    """The record as it would be read again."""
    custom_id, sample, variant = key
    return valid_text(custom_id), sample, variant
