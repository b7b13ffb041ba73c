"""Compressed bodies, taken apart piece by piece: a small one may unfold to gigabytes."""

import zlib

import aiohttp

ACCEPTED = "gzip, deflate"
_GZIP = ("gzip", "x-gzip")
_PIECE_BYTES = 256 * 1024  # unfolded at once, at most
_GZIP_WINDOW, _ZLIB_WINDOW, _BARE_WINDOW = 31, 15, -15  # what zlib calls wbits
_METHOD, _DEFLATE = 0x0F, 8  # in the first byte where zlib's own head comes first


class Unfolding:
    """One body's way from what came over the wire to what was meant."""

    def __init__(self, coding: str) -> None:
        """Raises `aiohttp.ClientPayloadError` for a coding that was not asked for."""
        if coding not in (*_GZIP, "deflate"):
            raise aiohttp.ClientPayloadError(
                f"its Content-Encoding {coding!r} is not one of those accepted ({ACCEPTED})"
            )
        self._is_gzip = coding in _GZIP
        self._codec: zlib._Decompress | None = None  # null: nothing has come yet
        self._folded = b""

    def add(self, folded: bytes) -> None:
        self._folded += folded

    def take(self) -> bytes:
        """The next piece; empty where more has to come first. Raises `ClientPayloadError`."""
        while self._folded:
            codec = self._codec
            if codec is not None and codec.eof and not self._is_gzip:
                self._folded = b""  # what follows the end is not the body's
                break
            if codec is None or codec.eof:  # gzip may have several members
                codec = self._codec = zlib.decompressobj(self._window(self._folded[0]))
            try:
                piece = codec.decompress(self._folded, _PIECE_BYTES)
            except zlib.error as error:
                raise aiohttp.ClientPayloadError(f"it cannot be unpacked: {error}") from error
            self._folded = codec.unused_data if codec.eof else codec.unconsumed_tail
            if piece:
                return piece
        return b""

    def _window(self, first: int) -> int:
        if self._is_gzip:
            return _GZIP_WINDOW
        # "deflate" is sent with zlib's head or without.
        return _ZLIB_WINDOW if first & _METHOD == _DEFLATE else _BARE_WINDOW

    def end(self) -> None:
        """Nothing follows. Raises `ClientPayloadError` where the body is not whole."""
        if self._codec is not None and not self._codec.eof:
            raise aiohttp.ClientPayloadError("its compressed body is cut off")
