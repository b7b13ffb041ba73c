"""The transport over aiohttp's public session, and the choice of it where inner parts have changed.

Each request has a connection of its own. aiohttp's session would reuse one on which more arrived
than was asked for, and take that for the next request's answer; its public interface has no way
to see it.

`connections` and `answer_reader` use parts of aiohttp that it does not promise to keep. They are
tried here without a network: each name, each signature, and an exchange over a transport that is
made up. Whatever fails, the run goes on with aiohttp's public session.
"""

import asyncio
from collections.abc import Callable, Mapping
from inspect import signature
from types import SimpleNamespace
from typing import cast

import aiohttp
from yarl import URL

from batchrun.transport.exchange import HttpConnections
from batchrun.transport.headers import ResponseHeaders

_MAX_HEADER_BYTES = 256 * 1024  # of one header: some gateways' are long


class SessionAnswer:
    """One answer as it arrives."""

    has_surplus = False  # aiohttp passes over what follows a body

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response, self.status = response, response.status
        lines: dict[bytes, bytes] = {}
        for name, value in response.raw_headers:
            lines.setdefault(name, value)
        self.headers = ResponseHeaders(lines)

    def complete_body(self) -> bytes:
        """Nothing: the public interface does not say what has arrived."""
        return b""

    def at_end(self) -> bool:
        return self.response.content.at_eof()

    async def read_piece(self) -> bytes:
        """What has arrived of the body, awaited; empty at its end. Raises `ClientError`."""
        return await self.response.content.readany()

    async def read_surplus(self) -> bytes:
        return b""


class SessionConnections:
    """Connections that carry one request each. To be made on the loop that uses them."""

    def __init__(
        self, _url: URL, headers: Mapping[str, str], proxy: URL | None, connect_timeout_s: float
    ) -> None:
        self._proxy = proxy
        self._session = aiohttp.ClientSession(
            # The gate alone counts what is in flight; the pool must not wait a second time.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, force_close=True),
            # The side that closes first keeps the port for a minute: it should be the server.
            headers={**headers, "Connection": "close"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,  # aiohttp unpacks a bomb at once
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )

    async def ask(
        self, method: str, url: URL, body: bytes | None, client_request_id: str
    ) -> SessionAnswer:
        """Sends a request; returns once the head of its answer is there."""
        try:
            response = await self._session.request(
                method,
                url,
                data=body,
                headers={"X-Client-Request-Id": client_request_id},
                allow_redirects=False,
                proxy=self._proxy,
            )
        except aiohttp.ClientHttpProxyError:
            raise
        except aiohttp.ClientResponseError as error:
            raise aiohttp.ClientPayloadError(error.message) from error
        return SessionAnswer(response)

    def set_header(self, name: str, value: str) -> None:
        """Sends one of the headers with another value from now on."""
        self._session.headers[name] = value

    def drop(self, answer: SessionAnswer) -> None:
        answer.response.close()

    keep = drop

    async def close(self) -> None:
        await self._session.close()


Connect = Callable[[URL, Mapping[str, str], URL | None, float], HttpConnections]
_USED = ("_loop", "_tail", "_should_close", "transport", "close", "is_connected", "connection_made")
_OVERRIDDEN = {"should_close", "data_received", "connection_lost"}
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def choose_connections() -> tuple[Connect, str | None]:
    """What makes connections, and a warning where that is the fallback."""
    try:
        await _try_inner_parts()
        from batchrun.transport.connections import Connections  # noqa: PLC0415 - it may fail
    except Exception as error:  # noqa: BLE001 - whatever a changed library raises
        return SessionConnections, (
            f"aiohttp {aiohttp.__version__} differs from the versions that batchrun's fast "
            f"transport knows ({type(error).__name__}: {error}): requests go through aiohttp's "
            "own session, which takes more CPU and a new connection for each"
        )
    return Connections, None


async def _try_inner_parts() -> None:
    """Raises where the fast transport could not rely on them."""
    # Imported here: these modules may be missing, or what `answer_reader` imports from them.
    from aiohttp.client_proto import ResponseHandler  # noqa: PLC0415
    from aiohttp.connector import Connection  # noqa: PLC0415

    from batchrun.transport.answer_reader import AnswerReader  # noqa: PLC0415

    loop, url = asyncio.get_running_loop(), URL("http://127.0.0.1/")
    handler = ResponseHandler(loop)
    for owner, names in ((handler, _USED), (Connection, ("protocol", "close"))):
        for name in names:
            getattr(owner, name)
    own = {name for name in vars(AnswerReader) if not name.startswith("__")}
    _expect(own & set(dir(handler)) == _OVERRIDDEN, "the names of ResponseHandler")
    signature(aiohttp.TCPConnector.connect).bind(None, "request", [], "timeout")
    request = aiohttp.ClientRequest("POST", url, headers={"A": "b"}, proxy=url, loop=loop)
    _expect(request.headers["A"] == "b" and request.is_ssl() is False, "ClientRequest")
    async with aiohttp.TCPConnector(limit=0, ttl_dns_cache=300) as pool:
        made = pool._factory()  # noqa: SLF001 - replaced by `Connections`
        _expect(isinstance(made, ResponseHandler), "TCPConnector._factory")

    written: list[bytes] = []
    transport = SimpleNamespace(
        write=written.append,
        get_write_buffer_size=lambda: 0,
        get_extra_info=lambda _name: None,
        is_closing=lambda: False,
        close=written.clear,
    )
    reader = AnswerReader(loop)
    reader.connection_made(cast(asyncio.Transport, transport))
    reader.data_received(_ANSWER)
    _expect(reader.status == 0 and reader.is_connected(), "an answer before a request")
    answered = reader.send(b"request")
    _expect(answered.done() and written == [b"request"], "a request")
    _expect((reader.status, reader.complete_body()) == (200, b"{}"), "an answer")
    _expect(not reader.should_close, "a kept connection")
    reader.data_received(_ANSWER)
    _expect(not written and reader.should_close, "a second answer")
    reader.connection_lost(None)
    _expect(not reader.is_connected(), "a lost connection")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"{what} is treated differently")
