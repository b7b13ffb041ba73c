"""What is known of rows that have no outcome yet: `journal/wN.open`.

A response begun in background mode is there before it is waited for; an answer that is asked for
again is there before it is. The file is framed as the journal is, and outlives sealing: a record
is dropped when the row's outcome is in the journal.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.formats.json_text import valid_text
from batchrun.records import Answered, Begun, Request, Response, RowKey
from batchrun.store.columns import SCHEMA_VERSION
from batchrun.store.files import (
    JOURNAL,
    make_folders,
    open_files,
    open_name,
    replace_file,
    store_error,
    storing,
    sync_data,
    sync_folder,
    write_whole,
)
from batchrun.store.journal import HEAD_BYTES, Frame, Header, frame_of, scan
from batchrun.store.keys import KEY, Keys
from batchrun.store.snapshot import Snapshot, read_standing

_COMPACT_BYTES = 16 << 20  # below this the file is not written anew while a run goes on; ...
_DEAD_SHARE = 4  # ... nor while more than a fourth of it is still needed
_HEADER = Header(SCHEMA_VERSION, 0, ())


class _Started(Struct):
    """What schema 1 kept of background work, in `wN.started`."""

    row: int
    custom_id: str
    hash: str
    response_id: str


class _Place(Struct, frozen=True):
    """Where an `Answered` stands in a file."""

    path: Path
    offset: int  # of its payload
    bytes: int
    attempt: str | None  # the last one's client request id
    cost_usd: float


_decoder = msgspec.msgpack.Decoder(Header | Begun | Answered)
_decoder_1 = msgspec.msgpack.Decoder(_Started)


class UnfinishedRows:
    """The records of a run directory, in the hands of its owner. For any thread."""

    def __init__(self, folder: Path, writer: int) -> None:
        """Reads what earlier processes left. Raises `StoreError`."""
        self._folder = folder / JOURNAL
        self._path = self._folder / open_name(writer)
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._size = 0
        self._is_dirty = False  # written, not synced
        self._is_changed = False  # the files hold something else than what is open
        self._begun: dict[RowKey, Begun] = {}
        self._answered: dict[RowKey, _Place] = {}
        for record, place in _read_all(self._folder):
            if isinstance(record, Begun):
                self._begun[record.key] = record
            else:
                self._put(place, record.key)

    def __bool__(self) -> bool:
        return bool(self._begun or self._answered)

    @property
    def answers(self) -> int:
        """How many answers are to be asked for again."""
        return len(self._answered)

    @property
    def cost_usd(self) -> float:
        """What these answers and the attempts before them are known to have cost."""
        with self._lock:
            return sum(place.cost_usd for place in self._answered.values())

    def begin(self, request: Request, endpoint: str, response_id: str) -> None:
        """Background work has begun; durable when it returns. Raises `StoreError`."""
        key = _storable(request.key)
        record = Begun(key, request.hash, endpoint, valid_text(response_id))
        with self._lock:
            self._append(record)
            self._begun[key] = record
        self.sync(always=True)

    def record(self, answered: Answered) -> None:
        """An answer is about to be asked for again; it survives SIGKILL when this returns.

        Raises `StoreError`.
        """
        key = _storable(answered.key)
        with self._lock:
            self._put(self._append(answered), key)

    def begun(self, key: RowKey) -> Begun | None:
        """What was begun of a row."""
        return self._begun.get(_storable(key)) if self._begun else None

    def answered(self, key: RowKey) -> Answered | None:
        """The answer of a row that is to be asked for again. Raises `StoreError`."""
        if not self._answered:
            return None
        with self._lock:
            place = self._answered.get(_storable(key))
            if place is None:
                return None
            with storing(place.path, "read"), place.path.open("rb") as file:
                file.seek(place.offset)
                record = _decoder.decode(file.read(place.bytes))
        assert isinstance(record, Answered)  # noqa: S101 - the place is one of such a record
        return record

    def drop(self, key: RowKey) -> None:
        """The row's outcome is in the journal."""
        key = _storable(key)
        with self._lock:
            if key in self._begun or key in self._answered:
                self._begun.pop(key, None)
                self._answered.pop(key, None)
                self._is_changed = True

    def drop_known(self, now: Snapshot) -> None:
        """Drops what is part of an outcome: a kill came between the two. Raises `StoreError`."""
        ids: dict[RowKey, set[str | None]] = {
            key: {place.attempt} for key, place in self._answered.items()
        }
        for key, begun in self._begun.items():
            ids.setdefault(key, set()).add(begun.response_id)
        for key in _known(now, ids):
            self.drop(key)

    def sync(self, *, always: bool = False) -> None:
        """What was written so far is on disk when this returns. Raises `StoreError`.

        Unless `always`, another thread may be about to sync it.
        """
        with storing(self._path, "sync"):
            with self._lock:
                if self._handle is None or not (self._is_dirty or always):
                    return
                self._is_dirty = False
                handle = os.dup(self._handle)  # the file may be written anew meanwhile
            try:
                sync_data(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """The file holds what is open, or is gone. Raises `StoreError`."""
        with self._lock, storing(self._path, "write"):
            if self._is_changed:
                self._rewrite()
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def _put(self, place: _Place, key: RowKey) -> None:
        """An answer is on record: what was begun before it has come to this."""
        self._answered[key] = place
        self._begun.pop(key, None)

    def _append(self, record: Begun | Answered) -> _Place:
        """Raises `StoreError`; the file then is as it was before."""
        try:
            if self._handle is None or self._is_mostly_dead():
                self._rewrite_open()
            assert self._handle is not None  # noqa: S101 - it was opened just now
            frame = frame_of(record, self._size)
            try:
                write_whole(self._handle, frame)
            except OSError:
                os.close(self._handle)  # whatever was written is cut off before the next record
                self._handle = None
                raise
        except OSError as error:
            raise store_error(self._path, "write", error) from error
        place = _place(self._path, self._size, len(frame) - HEAD_BYTES, record)
        self._size += len(frame)
        self._is_dirty = self._is_changed = True
        return place

    def _is_mostly_dead(self) -> bool:
        if self._size <= _COMPACT_BYTES:
            return False
        live = sum(place.bytes for place in self._answered.values())
        return self._size > _COMPACT_BYTES + _DEAD_SHARE * live

    def _rewrite_open(self) -> None:
        """The file holds what is open, and is open to be written. Raises `OSError`."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        make_folders(self._folder)
        self._rewrite(keep=True)
        self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _rewrite(self, *, keep: bool = False) -> None:
        """One file holds what is open, the first time instead of those that others left.

        Without anything open there is none, unless it is to be kept. Raises `OSError`.
        """
        whole = bytearray(frame_of(_HEADER, 0))
        places: dict[RowKey, _Place] = {}
        for key, place in self._answered.items():
            with place.path.open("rb") as file:
                file.seek(place.offset)
                record = _decoder.decode(file.read(place.bytes))
            frame = frame_of(record, len(whole))
            places[key] = msgspec.structs.replace(
                place,
                path=self._path,
                offset=len(whole) + HEAD_BYTES,
                bytes=len(frame) - HEAD_BYTES,
            )
            whole += frame
        for begun in self._begun.values():  # last: each stands for an answer that is still to come
            whole += frame_of(begun, len(whole))
        if self or keep:
            replace_file(self._path, bytes(whole), durable=True)
        for name in open_files(self._folder):
            path = self._folder / name
            if path != self._path or not (self or keep):
                path.unlink()
        sync_folder(self._folder)
        self._answered, self._size, self._is_changed = places, len(whole), False


def known_in(now: Snapshot, answered: Mapping[RowKey, Answered]) -> set[RowKey]:
    """The rows whose outcome knows the answer on record: it is past. Raises `StoreError`."""
    return _known(now, {key: {_last_id(one)} for key, one in answered.items()})


def _known(now: Snapshot, ids: Mapping[RowKey, set[str | None]]) -> set[RowKey]:
    """The rows whose outcome knows all of these: ids of responses and of client requests."""
    wanted, known = Keys(), set()
    for key in ids:
        wanted.add(key)
    for batch in read_standing(now, (*KEY, "response_id", *_IDS)) if ids else ():
        found = wanted.found_in(batch)
        for row in batch.filter(found).to_pylist() if found is not None else ():
            tries = row["attempts"] or ()
            there = {row["response_id"], *(one[name] for one in tries for name in _OF_TRY)}
            key = (row["custom_id"], row["sample"], row["variant"])
            if ids[key] <= there:
                known.add(key)
    for outcome in now.outcomes() if ids else ():
        if (key := outcome.request.key) in wanted:
            result, tries = outcome.result, outcome.attempts
            there = {getattr(one, name) for one in tries for name in _OF_TRY}
            there.add(result.id if isinstance(result, Response) else None)
            if ids[key] <= there:
                known.add(key)
    return known


def _last_id(answered: Answered) -> str | None:
    attempts = answered.outcome.attempts
    return attempts[-1].client_request_id if attempts else None


_OF_TRY = ("response_id", "client_request_id")
_IDS = tuple(f"attempts.list.element.{name}" for name in _OF_TRY)


def read_open(folder: Path) -> Iterator[Begun | Answered]:
    """All records as they stand now, for readers: a row's last one counts. Raises `StoreError`."""
    for record, _ in _read_all(folder / JOURNAL):
        yield record


def _read_all(folder: Path) -> Iterator[tuple[Begun | Answered, _Place]]:
    """The last record of a row is the one that counts. Raises `StoreError`."""
    with storing(folder, "list"):
        names = open_files(folder)
    for name in names:
        path = folder / name
        with storing(path, "read"), suppress(FileNotFoundError), path.open("rb") as file:
            for piece in scan(file):
                if isinstance(piece, Frame):
                    record = _decoded(piece.payload)
                    if record is not None:
                        yield record, _place(path, piece.offset, len(piece.payload), record)


def _decoded(payload: bytes) -> Begun | Answered | None:
    with suppress(msgspec.MsgspecError):
        record = _decoder.decode(payload)
        return None if isinstance(record, Header) else record
    with suppress(msgspec.MsgspecError):
        old = _decoder_1.decode(payload)
        return Begun((old.custom_id, 0, None), old.hash, "", old.response_id)
    return None


def _place(path: Path, offset: int, size: int, record: Begun | Answered) -> _Place:
    if isinstance(record, Begun):
        return _Place(path, 0, 0, None, 0.0)
    cost_usd = record.outcome.cost_usd or 0.0
    return _Place(path, offset + HEAD_BYTES, size, _last_id(record), cost_usd)


def _storable(key: RowKey) -> RowKey:
    """As it is read again."""
    custom_id, sample, variant = key
    return valid_text(custom_id), sample, variant
