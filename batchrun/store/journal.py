"""The journal's format, a segment being written, and damaged bytes set aside.

A segment is a sequence of frames; the first is a `Header`. A frame is
magic (4 bytes), payload length (4), CRC-32 of the payload (4), CRC-32 of these twelve bytes
seeded with the frame's offset (4), payload. Integers are little-endian. The payload is a
MessagePack array, since names of fields would be a fifth of it, and half of the time to write it.
Because of the offset in the seed, bytes inside a payload that look like a frame are not taken for
one.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.formats.json_text import with_valid_text
from batchrun.records import Outcome
from batchrun.store.columns import SCHEMA_VERSION
from batchrun.store.files import replace_file, store_error, storing, sync_data, write_whole

MAGIC = b"\xf6BR\xff"  # not in any UTF-8 text
HEAD_BYTES = 16
READ_BYTES = 1 << 20  # buffer for reading a segment
_SEARCH_BYTES = 1 << 20  # how much is searched at a time after a damaged frame
_WRITE_BYTES = 1 << 20  # most in one write, during which it is in memory twice
_U32 = 0xFFFFFFFF
_MAX_INT = 2**63 - 1

_pack_head = struct.Struct("<4sII").pack
_unpack_head = struct.Struct("<4sIII").unpack
_pack_sum = struct.Struct("<I").pack


class Header(Struct, frozen=True, array_like=True, tag="header"):
    """The first record of a segment."""

    schema_version: int
    hash_rule: int
    columns: tuple[str, ...]  # names of the carried columns
    replaces: bool = False  # whether a part may hold older outcomes of its rows


class Frame(Struct, frozen=True):
    """A payload whose checksum is right."""

    offset: int
    payload: bytes


class Damage(Struct, frozen=True):
    """Bytes before a frame that are not a frame, or a whole frame with a wrong checksum."""

    offset: int
    size: int


class Torn(Struct, frozen=True):
    """The end of a segment whose last frame is incomplete."""

    offset: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header | Outcome)


def frame_of(record: Struct, offset: int) -> bytes:
    """The frame of the record, for this offset in its file."""
    try:
        payload = _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError):
        plain = msgspec.to_builtins(record, builtin_types=(bytes,))
        payload = _encoder.encode(with_valid_text(plain, _MAX_INT))
    head = _pack_head(MAGIC, len(payload), zlib.crc32(payload))
    return head + _pack_sum(zlib.crc32(head, offset & _U32)) + payload


class Segment:
    """A file that outcomes are appended to. `append` may run during `sync`."""

    def __init__(self, path: Path, header: Header) -> None:
        """Makes the file. Raises `StoreError`."""
        self.path = path
        self.rows = 0
        self.bytes = 0
        self._is_dirty = False  # written, not synced
        self._is_torn = False  # half a write follows what counts
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        with storing(path, "make this journal segment"):
            self._handle = os.open(path, flags, 0o600)
        try:
            self._write(frame_of(header, 0))
        except BaseException:
            os.close(self._handle)
            with suppress(OSError):
                path.unlink()
            raise

    def append(self, outcomes: Sequence[Outcome]) -> int:
        """Writes as many as fit into one write, at least one; returns how many.

        Then the system has them, and they survive SIGKILL. Raises `StoreError`; the segment then
        is as it was before, if the system can still cut it.
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
        """Writes to disk what was appended so far. Raises `OSError`."""
        if self._is_dirty:
            self._is_dirty = False  # before the call: it does not sync what is appended meanwhile
            sync_data(self._handle)

    @property
    def is_deleted(self) -> bool:
        """Whether the file was deleted while it is being written."""
        return os.fstat(self._handle).st_nlink == 0

    def close(self) -> None:
        os.close(self._handle)

    def _write(self, frames: bytes) -> None:
        try:
            if self._is_torn:  # a frame belongs to its offset: none may follow half a write
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
        self._is_dirty = True


def read_outcomes(file: BinaryIO) -> Iterator[Outcome | Damage | Torn]:
    """The decoded content of a segment. Raises `OSError`; `StoreError` for another version's."""
    for piece in scan(file):
        if not isinstance(piece, Frame):
            yield piece
            continue
        try:
            record = _decoder.decode(piece.payload)
        except msgspec.MsgspecError as error:
            raise _other_version(file, piece.offset, str(error)) from error
        if isinstance(record, Outcome):
            yield record
        elif record.schema_version > SCHEMA_VERSION:
            raise _other_version(file, piece.offset, f"schema {record.schema_version}")


def may_replace(file: BinaryIO) -> bool:
    """Whether a part may hold older outcomes of its rows. Raises `OSError`."""
    first = next(scan(file), None)
    if not isinstance(first, Frame):
        return isinstance(first, Damage)
    try:
        record = _decoder.decode(first.payload)
    except msgspec.MsgspecError:
        return True  # of another version, which reading its outcomes reports
    return not isinstance(record, Header) or record.replaces


def _other_version(file: BinaryIO, offset: int, what: str) -> StoreError:
    return StoreError(
        f"{file.name}, byte {offset}: a record that this version of batchrun cannot read ({what}); "
        "continue with the version that wrote it"
    )


def scan(file: BinaryIO) -> Iterator[Frame | Damage | Torn]:
    """The content of a segment in order, with one frame in memory at a time. Raises `OSError`.

    After damage it continues at the next frame. `Torn` can only be last.
    """
    offset = file.seek(0)
    while head := file.read(HEAD_BYTES):
        if len(head) < HEAD_BYTES:
            yield Torn(offset)
            return
        length = _payload_length(head, offset)
        if length is None:
            found = _next_frame(file, offset + 1)
            if found is None:
                end = file.seek(0, 2)
                yield Torn(offset) if _is_zeros(file, offset) else Damage(offset, end - offset)
                return
            yield Damage(offset, found - offset)
            offset = file.seek(found)
            continue
        payload = file.read(length)
        if len(payload) < length:
            yield Torn(offset)
            return
        if zlib.crc32(payload) == int.from_bytes(head[8:12], "little"):
            yield Frame(offset, payload)
        else:
            yield Damage(offset, HEAD_BYTES + length)
        offset += HEAD_BYTES + length


def _payload_length(head: bytes, offset: int) -> int | None:
    """The payload length in a frame's head; None if it is not a head for this offset."""
    magic, length, _, check = _unpack_head(head)
    if magic != MAGIC or zlib.crc32(head[:12], offset & _U32) != check:
        return None
    return int(length)


def _next_frame(file: BinaryIO, start: int) -> int | None:
    """The offset of the first head at or after `start`."""
    file.seek(start)
    window = b""
    while chunk := file.read(_SEARCH_BYTES):
        window += chunk
        at = window.find(MAGIC)
        while at >= 0 and at + HEAD_BYTES <= len(window):
            if _payload_length(window[at : at + HEAD_BYTES], start + at) is not None:
                return start + at
            at = window.find(MAGIC, at + 1)
        kept = HEAD_BYTES - 1  # a head may be split between two pieces
        start += max(0, len(window) - kept)
        window = window[-kept:]
    return None


def _is_zeros(file: BinaryIO, offset: int) -> bool:
    """Whether only zeros follow: after a loss of power, a file can be longer than its content."""
    file.seek(offset)
    while chunk := file.read(_SEARCH_BYTES):
        if chunk.strip(b"\0"):
            return False
    return True


def damaged_path(segment: Path, damage: Damage) -> Path:
    """Where damaged bytes of a segment are moved; later commands do not warn of them again."""
    return segment.with_name(f"damaged-{segment.name}-{damage.offset}")


def set_aside(segment: Path, damage: Damage) -> str | None:
    """Copies the damaged bytes there; a warning, or None if it was done before. `OSError`."""
    aside = damaged_path(segment, damage)
    with segment.open("rb") as file:
        file.seek(damage.offset)
        damaged = file.read(damage.size)
    if aside.exists() and aside.read_bytes() == damaged:
        return None
    replace_file(aside, damaged, durable=True)
    return (
        f"{segment}: {damage.size} damaged bytes at offset {damage.offset}, set aside in "
        f"{aside.name}; the rows in them are sent again. Check the disk"
    )
