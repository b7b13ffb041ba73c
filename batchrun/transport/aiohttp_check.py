"""Chooses the transport: the fast one, or the fallback where aiohttp's inner parts have changed.

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
from batchrun.transport.session import SessionConnections

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
        raise NotImplementedError(f"{what} is treated differently")
