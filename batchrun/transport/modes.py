"""The ways to make a request: plain, as a stream, or in the background.

The response's id is on disk before the first question, so that a crash costs no second call.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.errors import EndpointError, ErrorKind
from batchrun.formats.json_text import repaired, text
from batchrun.records import Reply, Request
from batchrun.transport.exchange import Wire, exchange


def send_plain(wire: Wire, request: Request, client_request_id: str) -> Coroutine[Any, Any, Reply]:
    """The whole answer. Raises `EndpointError`."""
    body = with_fields(request.body, b'"stream":false')
    return exchange(wire, "POST", wire.url, body, client_request_id)


def send_stream(wire: Wire, request: Request, client_request_id: str) -> Coroutine[Any, Any, Reply]:
    """The answer that the stream's events carry. Raises `EndpointError`."""
    body = with_fields(request.body, b'"stream":true')
    return exchange(wire, "POST", wire.url, body, client_request_id)


def with_fields(body: bytes, fields: bytes) -> bytes:
    """The body as meant, with transport fields. Some servers stream when `stream` is absent."""
    return b"%b%b%b}" % (body[:-1], b"," if len(body) > 2 else b"", fields)


FIRST_POLL_S = 1.0
LONGEST_POLL_S = 15.0
_GROWTH = 1.5
_RUNNING = ("queued", "in_progress")
_ENDS = ("completed", "incomplete", "failed", "cancelled")
_MOST_ODD = 5  # polls in a row that say nothing about the work: the last one is the answer then

Sink = Callable[[Request, str], Awaitable[None]]


async def forget(_request: Request, _response_id: str) -> None:
    """A sink for whoever keeps nothing."""


class _Standing(Struct):
    """What a poll is read for."""

    id: Any = None
    status: Any = None


_standing_decoder = msgspec.json.Decoder(_Standing)


async def send_background(
    wire: Wire, request: Request, client_request_id: str, left_s: float, sink: Sink
) -> Reply:
    """The whole answer, once the work is done. Raises `EndpointError`.

    The work is cancelled when `left_s` seconds, what is left of the row's time, are over.
    """
    until_s = time.monotonic() + left_s
    response_id = request.resume_id
    if response_id is None:
        created = await exchange(wire, "POST", wire.url, _body(request.body), client_request_id)
        standing = _standing(created)
        response_id = text(standing.id)
        has_begun = created.http_status < 300 and text(standing.status) in _RUNNING
        if not has_begun or response_id is None:
            return created  # an error, or a server that answers at once
        await sink(request, response_id)
    return await _poll(
        wire, response_id, client_request_id, until_s, resumed=request.resume_id is not None
    )


async def _poll(
    wire: Wire, response_id: str, client_request_id: str, until_s: float, *, resumed: bool
) -> Reply:
    url = wire.url.with_query(None) / response_id
    url = url.with_query(wire.url.query)
    wait_s = 0.0 if resumed else FIRST_POLL_S
    odd = 0
    while True:
        await asyncio.sleep(max(0.0, min(wait_s, until_s - time.monotonic())))
        wait_s = min(max(wait_s, FIRST_POLL_S) * _GROWTH, LONGEST_POLL_S)
        try:
            reply = await exchange(wire, "GET", url, None, client_request_id)
        except EndpointError:
            reply = None  # the work goes on without us: ask again
        if reply is not None:
            if reply.http_status in (404, 405, 501):
                raise _not_known(response_id, reply.http_status, resumed=resumed)
            passing = reply.http_status in (408, 409, 425, 429) or reply.http_status >= 500
            status = text(_standing(reply).status)
            if not passing and status not in _RUNNING:
                # A page of a firewall, or half an answer, does not undo work that is paid for.
                is_odd = reply.http_status < 300 or reply.body.lstrip()[:1] == b"<"
                odd = odd + 1 if is_odd and status not in _ENDS else _MOST_ODD
                if odd >= _MOST_ODD:
                    return reply
            else:
                odd = 0
            wait_s = max(wait_s, reply.retry_after_s or 0.0)
        if time.monotonic() >= until_s:
            return await _cancelled(wire, response_id, client_request_id)


async def _cancelled(wire: Wire, response_id: str, client_request_id: str) -> Reply:
    """The answer, if it came just before it was cancelled. Raises `EndpointError`."""
    url = wire.url.with_query(None) / response_id / "cancel"
    try:
        reply = await exchange(wire, "POST", url.with_query(wire.url.query), b"", client_request_id)
    except EndpointError:
        reply = None
    if reply is not None and text(_standing(reply).status) in ("completed", "incomplete"):
        return reply
    raise EndpointError(
        ErrorKind.TIMEOUT,
        "the background response was not done in the row's time (retry.max_elapsed_s); cancelled",
        None if reply is None else reply.http_status,
        response_id,
    )


def _not_known(response_id: str, http_status: int, *, resumed: bool) -> EndpointError:
    if resumed:
        return EndpointError(
            ErrorKind.GONE,
            f"the server does not know {response_id} any more, begun by an earlier command",
            http_status,
            response_id,
        )
    return EndpointError(
        ErrorKind.NOT_FOUND,
        "the server began a background response and does not know it: it has no background mode; "
        "use --mode stream or plain",
        http_status,
        response_id,
    )


def _standing(reply: Reply) -> _Standing:
    try:
        return _standing_decoder.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # once more, repaired
    try:
        return _standing_decoder.decode(repaired(reply.body))
    except (ValueError, RecursionError):
        return _Standing()


def _body(body: bytes) -> bytes:
    """`store` is said outright: without it a server may forget the answer within minutes."""
    if b'"store"' in body:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields.pop("store", None)
        body = msgspec.json.encode(fields)
    return with_fields(body, b'"stream":false,"background":true,"store":true')
