"""A response as server-sent events, spread over its latency, sent on a connection."""

import asyncio
from random import Random

from aiohttp import web

from batchrun.simulator import bending, draws, events, sse, wire
from batchrun.simulator.delivery import Delivery
from batchrun.simulator.kinds import Fault, Quirk
from batchrun.simulator.requests import Asked

_BREAKS_OFF = (Fault.STREAM_RESET, Fault.STALLED_BODY, Fault.ENDLESS_BODY)


def render_stream(
    asked: Asked, response: bending.Item, quirks: tuple[Quirk, ...], fault: Fault | None
) -> list[bytes]:
    """The bytes of each event, in order. Pure."""
    options = asked.fields.get("stream_options") or {}
    told = events.make_events(response, padded=options.get("include_obfuscation") is not False)
    if quirks or fault is not None:
        told = bending.bend_events(told, response, quirks, fault)
    return sse.frames(told, quirks, is_whole=fault is None)


async def send_stream(
    request: web.BaseRequest,
    frames: list[bytes],
    headers: dict[str, str],
    latency_s: float,
    delivery: Delivery,
    quirks: tuple[Quirk, ...],
    fault: Fault | None,
) -> web.StreamResponse:
    """Counts the answer before its last bytes go out, as plain answers are."""
    response = web.StreamResponse(headers={"Content-Type": sse.CONTENT_TYPE, **headers})
    rng = draws.source(0, frames[-1], "cuts") if Quirk.CUT_BYTES in quirks else None
    begun_s = asyncio.get_running_loop().time()
    *before, last = sse.bursts(frames, events.OPENING, latency_s)
    for at_s, data in before:
        await _until(begun_s + at_s)
        if not response.prepared:
            await response.prepare(request)
        await _write(response, data, rng)
    await _until(begun_s + last[0])
    if not response.prepared:
        await response.prepare(request)
    delivery.leave(request, fault)
    if fault is None or fault not in _BREAKS_OFF:
        delivery.end()
    await _write(response, last[1], rng)
    if fault is not None and fault in _BREAKS_OFF:
        await wire.go_wrong(request, response, fault, sse.PING)
    if Quirk.STAYS_OPEN in quirks:
        await wire.hang()
    return response


async def _until(at_s: float) -> None:
    wait_s = at_s - asyncio.get_running_loop().time()
    if wait_s > 0:
        await asyncio.sleep(wait_s)


async def _write(response: web.StreamResponse, data: bytes, rng: Random | None) -> None:
    if rng is None:
        await response.write(data)
        return
    for piece in sse.cuts(data, rng):
        await response.write(piece)
        await asyncio.sleep(0)  # a piece by itself, so far as sockets allow
