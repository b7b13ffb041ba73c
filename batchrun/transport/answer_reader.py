"""The fast transport's protocol: reads the answers of one kept connection, one after the other.

aiohttp's pool makes the connections and needs its own kind of protocol for them; aiohttp's parser
only reads what a proxy answers to CONNECT. It starts anew for each answer, with a stream and a
queue, which took 15 µs of an exchange's 29 at 64 in flight and 35 of 50 at 256; httptools' parser
goes on from answer to answer and takes some 4.
"""

import asyncio

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from batchrun.transport.headers import ResponseHeaders

_HIGH_WATER = 128 * 1024  # bytes of a body not yet read, before reading is paused
_MAX_OVERHEAD = 256 * 1024  # bytes in a row that belong to no body: some gateways' heads are long
_FIRST_FINAL = 200  # a lower status comes before the answer; ...
_SWITCHING_PROTOCOLS = 101  # ... but after this one the server no longer speaks HTTP


class AnswerReader(ResponseHandler):
    """One connection. Await `send`, then `read_piece` until that returns nothing."""

    # None of these may be a name of aiohttp's: `fallback` looks.
    __slots__ = (
        *("_awaited", "_buffered", "_error", "_header_lines", "_http", "_is_complete"),
        *("_is_paused", "_is_surplus_wanted", "_overhead", "_pieces", "_surplus"),
        *("connection", "headers", "idle_since_s", "on_header", "status"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.connection: Connection | None = None  # of the pool, for closing
        self.idle_since_s = 0.0  # on the loop's clock
        self._http: HttpResponseParser | None = None  # None: no request was sent yet
        self._header_lines: dict[bytes, bytes] = {}  # of the head that is being read
        self.status = 0  # until the head is there
        self.headers = ResponseHeaders({})
        self._pieces: list[bytes] = []  # of the body, not yet read
        self._buffered = 0  # their bytes
        self._overhead = 0  # bytes since the last that belonged to a body
        self._is_complete = True
        self._is_paused = False
        self._surplus = b""  # what followed a body that is as long as its head says
        self._is_surplus_wanted = False
        self._error: aiohttp.ClientError | None = None
        self._awaited: asyncio.Future[None] | None = None  # of whoever waits for more
        # What httptools calls for each header; the first of a name counts.
        self.on_header = self._header_lines.setdefault

    def send(self, head: bytes, body: bytes | None = None) -> asyncio.Future[None]:
        """Sends a request, whose head may include its body. Done once the answer's head is there.

        The future raises `aiohttp.ClientError`: a `ClientPayloadError` where it is not HTTP.
        """
        assert self.transport is not None  # noqa: S101 - the pool returns connected ones
        if self._http is None:
            self._http = HttpResponseParser(self)
            # As aiohttp's: mistakes that servers are known to make and that do no harm here.
            self._http.set_dangerous_leniencies(
                lenient_headers=True,
                lenient_optional_cr_before_lf=True,
                lenient_spaces_after_chunk_size=True,
            )
        self.status = self._overhead = 0
        self._is_complete = False
        answered = self._wait()
        if body is None:
            self.transport.write(head)
        else:
            self.transport.writelines((head, body))
        if self._tail:  # sent before any request, as by a server that is full
            early, self._tail = self._tail, b""
            self.data_received(early)
        return answered

    async def read_piece(self) -> bytes:
        """What has arrived of the body, awaited; empty at its end. Raises `ClientError`."""
        while not self._pieces:
            if self._is_complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        if self._is_paused and self.transport is not None:
            self._is_paused = False
            self.transport.resume_reading()
        return self._take()

    def complete_body(self) -> bytes:
        """The whole body, where all of it has arrived and no more; else nothing."""
        if self._is_complete and not self._is_paused and not self._surplus:
            return self._take()
        return b""

    def at_end(self) -> bool:
        """Whether the body is known to be read to its end."""
        return self._is_complete and not self._pieces

    @property
    def has_surplus(self) -> bool:
        """Whether more has arrived than the length that the head gives."""
        return bool(self._surplus)

    @property
    def is_silent(self) -> bool:
        """Whether nothing at all has arrived since the request was sent."""
        return not self.status and not self._overhead

    async def read_surplus(self) -> bytes:
        """What arrives after the body's length, awaited; empty once the connection is closed."""
        self._should_close = self._is_surplus_wanted = True
        while not self._surplus and self._is_sized() and self.transport is not None:
            await self._wait()
        surplus, self._surplus = self._surplus, b""
        return surplus

    def _take(self) -> bytes:
        pieces = self._pieces
        arrived = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        return arrived

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot carry another request. The pool asks too."""
        if self._http is None:
            return super().should_close
        if not self._is_complete or self._buffered or self._should_close or self.transport is None:
            return True
        return self.transport.get_write_buffer_size() > 0  # answered before all was sent

    def data_received(self, data: bytes) -> None:
        parser = self._http
        if parser is None:
            super().data_received(data)
            return
        if self._is_complete or self._error is not None:
            self._should_close = True
            if self._is_surplus_wanted:
                self._surplus += data
                self._wake()
                return
            self.close()  # unrequested, and it must not pass for the next request's answer
            return
        buffered = self._buffered
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            self._should_close = True
        except HttpParserError as error:
            self._not_http(error, data, self._buffered - buffered)
        if self._buffered > buffered:
            self._overhead = 0
            if self._buffered > _HIGH_WATER and not self._is_paused and self.transport is not None:
                self._is_paused = True
                self.transport.pause_reading()
        elif not self._is_complete:
            self._overhead += len(data)
            if self._overhead > _MAX_OVERHEAD:
                self._fail("its headers have no end")
        self._wake()

    # httptools calls these while it is fed.

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._should_close = True  # a second answer to one request, or the start of one

    def on_headers_complete(self) -> None:
        parser = self._http
        assert parser is not None  # noqa: S101 - it calls
        status = parser.get_status_code()
        if not self._is_complete and (status >= _FIRST_FINAL or status == _SWITCHING_PROTOCOLS):
            self.status = status
            self.headers = ResponseHeaders(self._header_lines)
        self._header_lines.clear()

    def on_body(self, piece: bytes) -> None:
        if self.status and not self._is_complete:
            self._pieces.append(piece)
            self._buffered += len(piece)

    def on_message_complete(self) -> None:
        self._header_lines.clear()  # of a trailer
        if self.status:  # else it came before the answer
            assert self._http is not None  # noqa: S101 - it calls
            self._is_complete = True
            self._should_close = self._should_close or not self._http.should_keep_alive()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._is_surplus_wanted:
            self._wake()
        if self._http is None or self._is_complete or self._error is not None:
            return
        if self.status:
            # A body without a length ends with its connection.
            transfer = self.headers.get("transfer-encoding", "identity").strip().lower()
            has_end = "content-length" in self.headers or transfer != "identity"
            if exc is None and not has_end:
                self._is_complete = True
            else:
                self._fail("the connection was closed" if exc is None else str(exc))
        elif isinstance(exc, OSError):
            self._error = aiohttp.ClientOSError(*exc.args)
        else:
            self._error = aiohttp.ServerDisconnectedError()
        self._wake()

    def _not_http(self, error: HttpParserError, data: bytes, size: int) -> None:
        """The parser does not go on, after so many bytes of the body in `data`."""
        self._should_close = True
        if not self._is_complete:
            self._fail(str(error))
        elif self._is_sized():  # the answer is there, with more after it
            self._surplus = _after(data, b"".join(self._pieces), size)

    def _fail(self, reason: str) -> None:
        if self._error is None:
            self._error = aiohttp.ClientPayloadError(reason)
        self._should_close = True

    def _is_sized(self) -> bool:
        """Whether the body's length is what its head gives."""
        return "content-length" in self.headers and "transfer-encoding" not in self.headers

    def _wait(self) -> asyncio.Future[None]:
        self._awaited = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        """Ends the wait, where the head has arrived or never will."""
        waiter = self._awaited
        if waiter is None or waiter.done():
            return
        if self.status:
            self._awaited = None
            waiter.set_result(None)
        elif self._error is not None:
            self._awaited = None
            waiter.set_exception(self._error)


def _after(data: bytes, body: bytes, size: int) -> bytes:
    """What follows the last `size` bytes of `body` in the `data` that ended it."""
    end = body[len(body) - size :]
    start = data.find(end)
    return data[start + size :] if end and start >= 0 else b""
