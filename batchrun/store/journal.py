"""The journal's format: frames with checksums, records complete in themselves.

A segment is a row of frames, the first of them a `Header`. A frame is
magic (4 bytes), payload length (4), CRC-32 of the payload (4), CRC-32 of these twelve bytes
seeded with the frame's offset (4), payload; integers are little-endian, the payload is a
MessagePack array: names of fields would be a fifth of it, and half of the time to write it.
The offset in the seed is what keeps bytes that merely look like a frame, inside a payload,
from being taken for one.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.records import Outcome
from batchrun.store.schema import SCHEMA_VERSION
from batchrun.store.storable import storable

MAGIC = b"\xf6BR\xff"  # no UTF-8 text holds it
HEAD_BYTES = 16
_LOOK_BYTES = 1 << 20  # how much is searched at a time after a damaged frame
_U32 = 0xFFFFFFFF

_pack_head = struct.Struct("<4sII").pack
_unpack_head = struct.Struct("<4sIII").unpack
_pack_sum = struct.Struct("<I").pack


class Header(Struct, frozen=True, array_like=True, tag="header"):
    """The first record of a segment."""

    schema_version: int
    hash_rule: int
    columns: tuple[str, ...]  # names of the carried columns
    replaces: bool = False  # whether rows of it may stand in a part too, as they were before


class Frame(Struct, frozen=True):
    """A payload whose checksum is right."""

    offset: int
    payload: bytes


class Damage(Struct, frozen=True):
    """Bytes that are no frame though frames follow, or a whole frame with a wrong checksum."""

    offset: int
    size: int


class Torn(Struct, frozen=True):
    """The end of a segment whose last frame was not written whole."""

    offset: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header | Outcome)


def frame_of(record: Struct, offset: int) -> bytes:
    """The record's frame, to be written at `offset` of its file."""
    try:
        payload = _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError):
        plain = msgspec.to_builtins(record, builtin_types=(bytes,))
        payload = _encoder.encode(storable(plain))
    head = _pack_head(MAGIC, len(payload), zlib.crc32(payload))
    return head + _pack_sum(zlib.crc32(head, offset & _U32)) + payload


def scan(file: BinaryIO) -> Iterator[Frame | Damage | Torn]:
    """All that a segment holds, in order, one frame in memory at a time. Raises `OSError`.

    After damage it goes on at the next frame. `Torn` comes last if it comes at all.
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


def read_outcomes(file: BinaryIO) -> Iterator[Outcome | Damage | Torn]:
    """What a segment holds, understood. Raises `OSError`, or `StoreError` for another version's."""
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
    """Whether rows of this segment may stand in a part too. Raises `OSError`."""
    first = next(scan(file), None)
    if not isinstance(first, Frame):
        return isinstance(first, Damage)
    try:
        record = _decoder.decode(first.payload)
    except msgspec.MsgspecError:
        return True  # another version's: whoever reads its outcomes says so
    return not isinstance(record, Header) or record.replaces


def _other_version(file: BinaryIO, offset: int, what: str) -> StoreError:
    return StoreError(
        f"{file.name}, byte {offset}: a record that this version of batchrun cannot read ({what}); "
        "go on with the version that wrote it"
    )


def _payload_length(head: bytes, offset: int) -> int | None:
    """What a frame's head says of its payload; null where it is no head for this offset."""
    magic, length, _, check = _unpack_head(head)
    if magic != MAGIC or zlib.crc32(head[:12], offset & _U32) != check:
        return None
    return int(length)


def _next_frame(file: BinaryIO, start: int) -> int | None:
    """The offset of the first head at or after `start`."""
    file.seek(start)
    window = b""
    while chunk := file.read(_LOOK_BYTES):
        window += chunk
        at = window.find(MAGIC)
        while at >= 0 and at + HEAD_BYTES <= len(window):
            if _payload_length(window[at : at + HEAD_BYTES], start + at) is not None:
                return start + at
            at = window.find(MAGIC, at + 1)
        keep = HEAD_BYTES - 1  # a head may lie across two pieces
        start += max(0, len(window) - keep)
        window = window[-keep:]
    return None


def _is_zeros(file: BinaryIO, offset: int) -> bool:
    """Whether only zeros follow: a loss of power can leave a file longer than what it holds."""
    file.seek(offset)
    while chunk := file.read(_LOOK_BYTES):
        if chunk.strip(b"\0"):
            return False
    return True
