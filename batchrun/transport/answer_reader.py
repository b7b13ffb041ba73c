"""Reads the answers that come over one kept connection, one after the other.

aiohttp's pool makes the connections and needs its own kind of protocol for them; its parser is
left to what the pool itself asks of a proxy. It begins anew for each answer, with a stream and a
queue, which took 15 µs of an exchange's 29 at 64 in flight and 35 of 50 at 256; httptools' goes on
from answer to answer and takes some 4.
"""

import asyncio
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser


class ResponseHeaders(Mapping[str, str]):
    """By name in lower case; the first of a name counts.

    Of some twenty headers a handful is looked at: all of them in a multidict took 4.3 µs of a row,
    this 0.7 and 0.1 for each one looked at.
    """

    __slots__ = ("_at", "_values")

    def __init__(self, lines: Mapping[bytes, bytes]) -> None:
        self._at = _places(tuple(lines))
        self._values = tuple(lines.values())

    def __getitem__(self, name: str) -> str:
        return self._values[self._at[name]].decode("utf-8", "surrogateescape")

    def get(self, name: str, /, default: Any = None) -> Any:  # Mapping's raises and catches
        at = self._at.get(name)
        return default if at is None else self._values[at].decode("utf-8", "surrogateescape")

    def pair(self, one: str, other: str) -> tuple[bytes | None, bytes | None]:
        """Two values as they came."""
        at, other_at = self._at.get(one), self._at.get(other)
        values = self._values
        return None if at is None else values[at], None if other_at is None else values[other_at]

    def tells_any(self, names: frozenset[str]) -> bool:
        """Whether one of these is there."""
        return not self._at.keys().isdisjoint(names)

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


@lru_cache(maxsize=64)
def _places(names: tuple[bytes, ...]) -> dict[str, int]:
    """Where each name stands. A server's answers have the same few sets of names."""
    places: dict[str, int] = {}
    for at, name in enumerate(names):
        places.setdefault(name.decode("latin-1").lower(), at)
    return places


ACCEPTED = "gzip, deflate"
_GZIP = ("gzip", "x-gzip")
_PIECE_BYTES = 256 * 1024  # unfolded at once, at most
_GZIP_WINDOW, _ZLIB_WINDOW, _BARE_WINDOW = 31, 15, -15  # what zlib calls wbits
_METHOD, _DEFLATE = 0x0F, 8  # in the first byte where zlib's own head comes first


class Decompressor:
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


_MOST_HELD = 128 * 1024  # bytes of a body not read yet, before the server is held back
_MOST_BESIDE = 256 * 1024  # bytes at a stretch that bring no body: some gateways' heads are long
_ANSWERS = 200  # what has a lower status is said before the answer; ...
_SWITCHES = 101  # ... but this is the last word of a server that speaks no HTTP from there on


class AnswerReader(ResponseHandler):
    """One connection. `ask` and wait, then `piece` until it says that there is no more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.connection: Connection | None = None  # the pool's, which it is given back by
        self.idle_since_s = 0.0  # on the loop's clock
        self._http: HttpResponseParser | None = None  # null: nothing was asked yet
        self._lines: dict[bytes, bytes] = {}  # of the head that comes
        self.status = 0  # until the head is there
        self.headers = ResponseHeaders({})
        self._pieces: list[bytes] = []  # of the body, not read yet
        self._held = 0  # their bytes
        self._beside = 0  # bytes since the last that belonged to a body
        self._is_whole = True
        self._is_held_back = False
        self._coding = ""  # of the body; empty where it is as meant
        self._unfolding: Decompressor | None = None
        self._broken: Exception | None = None
        self._turn: asyncio.Future[None] | None = None  # of who waits for more
        # What httptools calls for each header; the first of a name counts.
        self.on_header = self._lines.setdefault

    def ask(self, head: bytes, body: bytes | None = None) -> asyncio.Future[None]:
        """Sends a request, whose head may hold its body; from now on its answer is read.

        What comes back is done when `status` and `headers` are there. It raises
        `aiohttp.ClientError`, `HttpProcessingError` and `OSError`.
        """
        assert self.transport is not None  # noqa: S101 - the pool gives what is connected
        if self._http is None:
            self._http = HttpResponseParser(self)
            # As aiohttp's: what servers are known to get wrong, and which misleads nobody here.
            self._http.set_dangerous_leniencies(
                lenient_headers=True,
                lenient_optional_cr_before_lf=True,
                lenient_spaces_after_chunk_size=True,
            )
        self.status = self._beside = 0
        self._is_whole = False
        self._coding, self._unfolding = "", None
        answered = self._more()
        if body is None:
            self.transport.write(head)
        else:
            self.transport.writelines((head, body))
        if self._tail:  # said before anything was asked, as by a server that sends all away
            self._drain_tail()
        return answered

    async def piece(self) -> bytes:
        """What has come of the body, waited for; empty at its end. Raises as `ask` does."""
        if self._coding and self._unfolding is None:
            self._unfolding = Decompressor(self._coding)
        while True:
            if self._unfolding is not None and (unfolded := self._unfolding.take()):
                return unfolded
            if self._pieces:
                came = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                self._held = 0
                if self._is_held_back and self.transport is not None:
                    self._is_held_back = False
                    self.transport.resume_reading()
                if self._unfolding is None:
                    return came
                self._unfolding.add(came)
            elif self._is_whole:
                if self._unfolding is not None:
                    self._unfolding.end()
                return b""
            elif self._broken is not None:
                raise self._broken
            else:
                await self._more()

    def rest(self) -> bytes:
        """What is left of the body, where all of it has come and is as meant; else nothing."""
        if not self._is_whole or self._coding or self._is_held_back:
            return b""
        pieces = self._pieces
        rest = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._held = 0
        return rest

    @property
    def is_read(self) -> bool:
        """Whether the body is known to be at its end."""
        return self._is_whole and not self._pieces and not self._coding

    @property
    def should_close(self) -> bool:
        """Asked by the pool before it keeps the connection for the next request."""
        if self._http is None:
            return super().should_close
        is_fit = self._is_whole and not self._held and not self._should_close
        if not is_fit or self.transport is None:
            return True
        return self.transport.get_write_buffer_size() > 0  # answered before all was sent

    def data_received(self, data: bytes) -> None:
        parser = self._http
        if parser is None:
            super().data_received(data)
            return
        if self._is_whole or self._broken is not None:
            self._should_close = True
            self.abort()  # nobody asked, and it must not pass for the next request's answer
            return
        held = self._held
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            self._should_close = True
        except HttpParserError as error:
            if not self._is_whole:  # else the answer is there, and more than that
                self._break(str(error))
            self._should_close = True
        if self._held > held:
            self._beside = 0
            if self._held > _MOST_HELD and not self._is_held_back and self.transport is not None:
                self._is_held_back = True
                self.transport.pause_reading()
        elif not self._is_whole:
            self._beside += len(data)
            if self._beside > _MOST_BESIDE:
                self._break("its headers have no end")
        self._wake()

    def on_message_begin(self) -> None:
        """Called by httptools."""
        if self._is_whole:
            self._should_close = True  # a second answer to one request, or the start of one

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        parser = self._http
        assert parser is not None  # noqa: S101 - it calls
        status = parser.get_status_code()
        if not self._is_whole and (status >= _ANSWERS or status == _SWITCHES):
            self.status = status
            self.headers = ResponseHeaders(self._lines)
            if "content-encoding" in self.headers:
                coding = self.headers["content-encoding"].strip().lower()
                self._coding = "" if coding == "identity" else coding
        self._lines.clear()

    def on_body(self, piece: bytes) -> None:
        """Called by httptools."""
        if self.status and not self._is_whole:
            self._pieces.append(piece)
            self._held += len(piece)

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._lines.clear()  # of what came behind a body
        if self.status:  # else it was said before the answer
            assert self._http is not None  # noqa: S101 - it calls
            self._is_whole = True
            self._should_close = self._should_close or not self._http.should_keep_alive()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._http is None or self._is_whole or self._broken is not None:
            return
        if not self.status:
            self._broken = (
                aiohttp.ClientOSError(*exc.args)
                if isinstance(exc, OSError)
                else aiohttp.ServerDisconnectedError()
            )
        elif exc is None and self._ends_with_connection():
            self._is_whole = True
        else:
            self._break("the connection was closed" if exc is None else str(exc))
        self._wake()

    def _ends_with_connection(self) -> bool:
        transfer = self.headers.get("transfer-encoding", "identity")
        return "content-length" not in self.headers and transfer.strip().lower() == "identity"

    def _break(self, why: str) -> None:
        """Before the head is there it is no HTTP, afterwards an answer that is not whole."""
        if self._broken is None:
            self._broken = (
                aiohttp.ClientPayloadError(why) if self.status else HttpProcessingError(message=why)
            )
        self._should_close = True

    def _more(self) -> asyncio.Future[None]:
        self._turn = turn = self._loop.create_future()
        return turn

    def _wake(self) -> None:
        """Whoever waits goes on, where the head is there or never will be."""
        turn = self._turn
        if turn is None or turn.done():  # nobody waits any more
            return
        if self.status:
            self._turn = None
            turn.set_result(None)
        elif self._broken is not None:
            self._turn = None
            turn.set_exception(self._broken)
