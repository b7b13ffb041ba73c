"""Chooses the transport: the fast one, or the fallback where aiohttp's inner parts have changed.

`connections` and `answer_reader` use parts of aiohttp that it does not promise to keep. They are
tried here without a network: each name, each signature, and an exchange over a transport that is
made up. Whatever fails, the run goes on with aiohttp's public session.
"""

import asyncio
from collections.abc import Callable, Mapping
from inspect import signature

import aiohttp
from yarl import URL

from batchrun.transport.exchange import HttpConnections
from batchrun.transport.session import SessionConnections

Connect = Callable[[URL, Mapping[str, str], URL | None, float], HttpConnections]
_USED = ("_loop", "_tail", "_should_close", "transport", "close", "is_connected", "connection_made")
_OVERRIDDEN = {"should_close", "data_received", "connection_lost"}
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def choose_connections() -> tuple[Connect, str | None]:
    """What makes connections, and a warning where that is the fallback."""
    try:
        await _try_pool()
        _try_exchange()
        from batchrun.transport.connections import Connections  # noqa: PLC0415 - see `_try_pool`
    except Exception as error:  # noqa: BLE001 - whatever a changed library raises
        return SessionConnections, (
            f"aiohttp {aiohttp.__version__} differs from the versions that batchrun's fast "
            f"transport knows ({type(error).__name__}: {error}): requests go through aiohttp's "
            "own session, which takes more CPU and a new connection for each"
        )
    return Connections, None


async def _try_pool() -> None:
    # Imported here: what these modules are, or import from aiohttp, may be missing.
    from aiohttp.client_proto import ResponseHandler  # noqa: PLC0415
    from aiohttp.connector import Connection  # noqa: PLC0415

    from batchrun.transport.answer_reader import AnswerReader  # noqa: PLC0415

    loop, url = asyncio.get_running_loop(), URL("http://127.0.0.1/")
    handler = ResponseHandler(loop)
    for name in _USED:
        getattr(handler, name)
    for name in ("protocol", "close"):
        getattr(Connection, name)
    own = {name for name in vars(AnswerReader) if not name.startswith("__")}
    _expect(own & set(dir(handler)) == _OVERRIDDEN, "the names of ResponseHandler")
    signature(aiohttp.TCPConnector.connect).bind(None, "request", [], "timeout")
    request = aiohttp.ClientRequest("POST", url, headers={"A": "b"}, proxy=url, loop=loop)
    _expect(request.headers["A"] == "b" and request.is_ssl() is False, "ClientRequest")
    async with aiohttp.TCPConnector(limit=0, ttl_dns_cache=300) as pool:
        made = pool._factory()  # noqa: SLF001 - replaced by `_Connector`
        _expect(isinstance(made, ResponseHandler), "TCPConnector._factory")


def _try_exchange() -> None:
    """A request and its answer, and what arrives when nobody asked."""
    from batchrun.transport.answer_reader import AnswerReader  # noqa: PLC0415 - see `_try_pool`

    reader, transport = AnswerReader(asyncio.get_running_loop()), _Transport()
    reader.connection_made(transport)
    reader.data_received(_OK)
    _expect(reader.status == 0 and reader.is_connected(), "an answer before a request")
    answered = reader.send(b"request")
    _expect(answered.done() and transport.written == [b"request"], "a request")
    _expect((reader.status, reader.complete_body()) == (200, b"{}"), "an answer")
    _expect(not reader.should_close, "a kept connection")
    reader.data_received(_OK)
    _expect(transport.is_closed and reader.should_close, "a second answer")
    reader.connection_lost(None)
    _expect(not reader.is_connected(), "a closed connection")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise NotImplementedError(f"{what} is treated differently")


class _Transport(asyncio.Transport):
    """Remembers what is written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True

    close = abort
