"""The fast transport: kept connections to one endpoint, made by aiohttp's pool.

The pool brings TLS, proxies and servers with many addresses. Requests do not go through aiohttp's
session: what that does for each of them (headers merged and written anew, cookies, redirects, a
task that writes) is the same for all or not wanted here, and takes more than half of an exchange's
CPU, 45 of 73 µs where it was measured alone. `fallback` tests what is used of aiohttp's inner
parts.
"""

import asyncio
import math
from base64 import b64encode
from collections.abc import Mapping
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from batchrun.transport.answer_reader import AnswerReader

_MAX_IDLE_S = 15.0  # a connection that was idle for longer may have been closed silently
_CLOSING_S = 1.0  # a server that closes an idle connection is heard of within a round trip
_COPIED_BYTES = 64 * 1024  # of a body: below it, one piece is quicker than two


class Connections:
    """Connections that carry one request at a time each. To be made on the loop that uses them."""

    def __init__(
        self, url: URL, headers: Mapping[str, str], proxy: URL | None, connect_timeout_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        self._connector = _Connector(loop)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        # What the pool wants to know of a request is the same for all of them. The headers are not
        # given to a proxy: the key is not for it.
        self._request = aiohttp.ClientRequest("POST", url, headers=headers, proxy=proxy, loop=loop)
        headers = self._request.headers
        self._headers = {name: headers[name] for name in headers if name != "Content-Length"}
        self._names_host = proxy is not None and not self._request.is_ssl()
        if self._names_host and proxy is not None and proxy.user is not None:
            credentials = b64encode(f"{proxy.user}:{proxy.password or ''}".encode("latin-1"))
            self._headers["Proxy-Authorization"] = f"Basic {credentials.decode()}"
        self._header_lines = _lines(self._headers)
        # Kept here, not by the pool: the last one used is the first to be used again, while it is
        # still in the processor's caches, and 3 µs of an exchange are saved.
        self._idle: list[AnswerReader] = []
        self._now_s = loop.time

    async def ask(
        self, method: str, url: URL, body: bytes | None, client_request_id: str
    ) -> AnswerReader:
        """Sends a request; returns once the head of its answer is there."""
        target = str(url) if self._names_host else url.raw_path_qs
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = (
            f"{method} {target} HTTP/1.1\r\n{self._header_lines}"
            f"X-Client-Request-Id: {client_request_id}\r\n{length}\r\n"
        ).encode()
        if body is not None and len(body) <= _COPIED_BYTES:
            head, body = head + body, None
        while self._idle:
            reader, sent_s = self._idle.pop(), self._now_s()
            if sent_s - reader.idle_since_s <= _MAX_IDLE_S and reader.is_connected():
                break
            self.drop(reader)
        else:
            reader, sent_s = await self._open(), -math.inf
        try:
            await reader.send(head, body)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            self.drop(reader)
            if not reader.is_silent or self._now_s() - sent_s > _CLOSING_S:
                raise
            lost = error
        except BaseException:
            self.drop(reader)
            raise
        else:
            return reader
        return await self._send_anew(head, body, lost)

    async def _send_anew(
        self, head: bytes, body: bytes | None, lost: aiohttp.ClientError
    ) -> AnswerReader:
        """Sends a request once more, over a new connection, since a kept one was being closed.

        The server closed it while the request was on its way and has not read that (RFC 9112,
        9.3.1): one that it works on is lost later, or on the new connection, and then it is a
        failure. Raises `lost` where no connection can be made: the server died, and may have begun.
        """
        try:
            reader = await self._open()
        except (aiohttp.ClientError, OSError):
            raise lost from None
        try:
            answered = reader.send(head, body)
            body = None  # the connection has it
            await answered
        except BaseException:
            self.drop(reader)
            raise
        return reader

    def set_header(self, name: str, value: str) -> None:
        """Sends one of the headers with another value from now on."""
        self._headers[name] = value
        self._header_lines = _lines(self._headers)

    async def _open(self) -> AnswerReader:
        connection = await self._connector.connect(self._request, [], self._timeout)
        reader = connection.protocol
        assert isinstance(reader, AnswerReader)  # noqa: S101 - made by `_Connector`
        reader.connection = connection
        return reader

    def keep(self, reader: AnswerReader) -> None:
        """The answer is read: another request may follow, where the answer permits it."""
        if reader.should_close:
            self.drop(reader)
        else:
            reader.idle_since_s = self._now_s()
            self._idle.append(reader)

    def drop(self, reader: AnswerReader) -> None:
        if reader.connection is not None:
            reader.connection.close()

    async def close(self) -> None:
        for reader in self._idle:
            self.drop(reader)
        self._idle.clear()
        await self._connector.close()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


class _Connector(aiohttp.TCPConnector):
    """aiohttp's pool, of connections whose answers are read by `AnswerReader`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # The gate alone counts what is in flight; the pool must not wait a second time.
        super().__init__(limit=0, ttl_dns_cache=300)
        self._factory = partial(_reader, loop)


def _reader(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return AnswerReader(loop)
