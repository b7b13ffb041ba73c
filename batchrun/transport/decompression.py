"""Bodies that arrive packed: how one is packed, and unpacking it as it arrives. No I/O.

What a body begins with counts before what its `Content-Encoding` says: gateways unpack a body and
leave the header, or pack it without one.
"""

import re
import zlib

import aiohttp

from batchrun.errors import EndpointError, ErrorKind

ACCEPTED = "gzip, deflate"
SNIFFED_BYTES = 2  # of a body, that tell how it is packed
_GZIP = ("gzip", "x-gzip")
_DEFLATE = "deflate"
_GZIP_MAGIC = b"\x1f\x8b"
# What begins as JSON, a page or a stream is not packed: deflated text hardly ever begins so.
_PLAIN = re.compile(
    rb"[ \t\r\n]{2}|[ \t\r\n][{\[]|\xef\xbb"  # blanks, or the mark of UTF-8
    rb'|\{(?:["} \t\r\n]|$)|\[[\[{"\] \t\r\n]'
    rb"|<[!?A-Za-z]"
    rb"|da|ev|id|re|: "
)
_PIECE_BYTES = 256 * 1024  # unpacked at once, at most
_GZIP_WINDOW, _ZLIB_WINDOW, _RAW_WINDOW = 31, 15, -15  # what zlib calls wbits
_METHOD, _DEFLATED = 0x0F, 8  # in the first byte of a zlib header


def is_accepted(coding: str) -> bool:
    return coding in (*_GZIP, _DEFLATE)


def coding_of(start: bytes, encoding: str) -> str:
    """How a body is packed that begins so; empty: not at all.

    `encoding` is what its header says, in lower case. A coding that was not asked for comes back
    as the header names it.
    """
    if start[:2] == _GZIP_MAGIC:
        return "gzip"
    if not encoding or not start or _PLAIN.match(start):
        return ""
    # A body that is packed with gzip always has its magic.
    return "" if encoding in _GZIP else encoding


class Decompressor:
    """Unpacks one body as it arrives."""

    def __init__(self, coding: str) -> None:
        """`coding`: one of `ACCEPTED`, as `coding_of` found it."""
        self._is_gzip = coding in _GZIP
        self._codec: zlib._Decompress | None = None  # None: nothing has arrived yet
        self._packed = b""

    def add(self, packed: bytes) -> None:
        self._packed += packed

    def take(self) -> bytes:
        """The next piece; empty where more has to arrive. Raises `EndpointError`."""
        while self._packed:
            codec = self._codec
            if codec is not None and codec.eof and not self._is_gzip:
                self._packed = b""  # what follows the end does not belong to the body
                break
            if codec is None or codec.eof:  # gzip may have several members
                codec = self._codec = zlib.decompressobj(self._window(self._packed[0]))
            try:
                piece = codec.decompress(self._packed, _PIECE_BYTES)
            except zlib.error as error:
                text = f"the answer cannot be unpacked: {error}"
                raise EndpointError(ErrorKind.UNREADABLE, text, body=self._packed) from error
            self._packed = codec.unused_data if codec.eof else codec.unconsumed_tail
            if piece:
                return piece
        return b""

    def _window(self, first: int) -> int:
        if self._is_gzip:
            return _GZIP_WINDOW
        # "deflate" is sent with a zlib header or without.
        return _ZLIB_WINDOW if first & _METHOD == _DEFLATED else _RAW_WINDOW

    def end(self) -> None:
        """Raises `ClientPayloadError` where the body ended before its compressed data did."""
        if self._codec is not None and not self._codec.eof:
            raise aiohttp.ClientPayloadError("its compressed body is cut off")
