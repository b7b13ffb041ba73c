"""What goes out on a connection: answers in one piece, answers that break off, and resets."""

import asyncio
import socket
import struct
from typing import NoReturn

from aiohttp import web

from batchrun.simulator.gateway_errors import JSON
from batchrun.simulator.kinds import Fault

_PIECE_EVERY_S = 0.05  # of a body that never ends
_BEFORE_RESET_S = 0.02  # so that what was sent is read before the reset overtakes it
_NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST and drops what is unsent


def answer(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None, type_: str = JSON
) -> web.Response:
    """A whole answer; no Content-Type where `type_` is empty."""
    if type_:
        headers = {"Content-Type": type_, **(headers or {})}
    return web.Response(body=body, status=status, headers=headers)


async def break_off(
    request: web.BaseRequest, body: bytes, headers: dict[str, str], fault: Fault
) -> web.StreamResponse:
    """A first piece of the body; then a reset, silence, or pieces without end."""
    response = web.StreamResponse(headers={"Content-Type": JSON, **headers})
    if fault is not Fault.ENDLESS_BODY:
        response.content_length = len(body)
    try:
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        await go_wrong(request, response, fault, b" ")
    except ConnectionError:  # the client was faster
        pass
    return response


async def go_wrong(
    request: web.BaseRequest, response: web.StreamResponse, fault: Fault, piece: bytes
) -> None:
    """What follows a first piece: a reset, a piece now and then without end, or silence."""
    while fault is Fault.ENDLESS_BODY:
        await asyncio.sleep(_PIECE_EVERY_S)
        await response.write(piece)
    if fault in (Fault.RESET_WITHIN, Fault.STREAM_RESET):
        await asyncio.sleep(_BEFORE_RESET_S)
        reset(request)
    await hang()


async def hang() -> NoReturn:
    """Never returns: a lost connection, or the server's end, cancels it."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


def reset(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
