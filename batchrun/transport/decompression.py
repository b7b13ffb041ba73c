"""Compressed bodies, unpacked in pieces of bounded size, so that a bomb does not fill memory."""

import zlib

import aiohttp

ACCEPTED = "gzip, deflate"
_GZIP = ("gzip", "x-gzip")
_PIECE_BYTES = 256 * 1024  # unpacked at once, at most
_GZIP_WINDOW, _ZLIB_WINDOW, _RAW_WINDOW = 31, 15, -15  # what zlib calls wbits
_METHOD, _DEFLATE = 0x0F, 8  # in the first byte of a zlib header


class Decompressor:
    """Unpacks one body as it arrives."""

    def __init__(self, encoding: str) -> None:
        """Raises `aiohttp.ClientPayloadError` for an encoding that was not asked for."""
        if encoding not in (*_GZIP, "deflate"):
            raise aiohttp.ClientPayloadError(
                f"its Content-Encoding {encoding!r} is not one of those accepted ({ACCEPTED})"
            )
        self._is_gzip = encoding in _GZIP
        self._codec: zlib._Decompress | None = None  # None: nothing has arrived yet
        self._packed = b""

    def add(self, packed: bytes) -> None:
        self._packed += packed

    def take(self) -> bytes:
        """The next piece; empty where more has to arrive. Raises `ClientPayloadError`."""
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
                raise aiohttp.ClientPayloadError(f"it cannot be unpacked: {error}") from error
            self._packed = codec.unused_data if codec.eof else codec.unconsumed_tail
            if piece:
                return piece
        return b""

    def _window(self, first: int) -> int:
        if self._is_gzip:
            return _GZIP_WINDOW
        # "deflate" is sent with a zlib header or without.
        return _ZLIB_WINDOW if first & _METHOD == _DEFLATE else _RAW_WINDOW

    def end(self) -> None:
        """Raises `ClientPayloadError` where the body ended before its compressed data did."""
        if self._codec is not None and not self._codec.eof:
            raise aiohttp.ClientPayloadError("its compressed body is cut off")
