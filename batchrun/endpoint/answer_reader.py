"""Reads the answers that come over one kept connection, one after the other.

aiohttp's pool makes the connections and needs its own kind of protocol for them; its parser is
left to what the pool itself asks of a proxy. It begins anew for each answer, with a stream and a
queue, which took 15 µs of an exchange's 29 at 64 in flight and 35 of 50 at 256; httptools' goes on
from answer to answer and takes some 4.
"""

import asyncio

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from batchrun.endpoint.content_coding import Unfolding
from batchrun.endpoint.head import Headers

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
        self.headers = Headers({})
        self._pieces: list[bytes] = []  # of the body, not read yet
        self._held = 0  # their bytes
        self._beside = 0  # bytes since the last that belonged to a body
        self._is_whole = True
        self._is_held_back = False
        self._coding = ""  # of the body; empty where it is as meant
        self._unfolding: Unfolding | None = None
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
            self._unfolding = Unfolding(self._coding)
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
            self.headers = Headers(self._lines)
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
