"""Background mode: work is begun, asked about until it ends, and cancelled when time is up.

The response's id is on disk before the first poll, so that a crash costs no second call.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from yarl import URL

from batchrun.dialects.responses import background_body, background_state
from batchrun.dialects.statuses import END_STATUSES, RUNNING
from batchrun.errors import EndpointError, ErrorKind
from batchrun.records import Reply, Request
from batchrun.transport.exchange import Wire, exchange

OnBegun = Callable[[Request, str], Awaitable[None]]
_FIRST_POLL_S = 1.0
_LONGEST_POLL_S = 15.0
_GROWTH = 1.5
_MOST_ODD = 5  # polls in a row that say nothing about the work: the last one is the answer then


async def send_background(
    wire: Wire,
    request: Request,
    client_request_id: str,
    remaining_s: float,
    on_begun: OnBegun | None,
) -> Reply:
    """The whole answer, once the work is done. Raises `EndpointError`.

    The work is cancelled after `remaining_s` seconds, what remains of the row's time. `on_begun`
    is awaited before the first poll.
    """
    until_s = time.monotonic() + remaining_s
    response_id, is_resumed = request.resume_id, request.resume_id is not None
    if response_id is None:
        body = background_body(request.body)
        created = await exchange(wire, "POST", wire.url, body, client_request_id)
        response_id, status = background_state(created.body)
        if created.http_status >= 300 or status not in RUNNING or response_id is None:
            return created  # an error, or a server that answers at once
        if on_begun is not None:
            await on_begun(request, response_id)
    return await _poll(wire, response_id, client_request_id, until_s, is_resumed=is_resumed)


async def _poll(
    wire: Wire, response_id: str, client_request_id: str, until_s: float, *, is_resumed: bool
) -> Reply:
    url = _url(wire, response_id)
    wait_s = 0.0 if is_resumed else _FIRST_POLL_S
    odd = 0
    while True:
        await asyncio.sleep(max(0.0, min(wait_s, until_s - time.monotonic())))
        wait_s = min(max(wait_s, _FIRST_POLL_S) * _GROWTH, _LONGEST_POLL_S)
        try:
            reply = await exchange(wire, "GET", url, None, client_request_id)
        except EndpointError:
            reply = None  # the work goes on without us: ask again
        if reply is not None:
            http_status = reply.http_status
            if http_status in (404, 405, 501):
                raise _unknown(response_id, http_status, is_resumed=is_resumed)
            is_passing = http_status in (408, 409, 425, 429) or http_status >= 500
            _, status = background_state(reply.body)
            if is_passing or status in RUNNING:
                odd = 0
            else:
                # A page of a firewall, or half an answer, does not undo work that is paid for.
                is_odd = http_status < 300 or reply.body.lstrip()[:1] == b"<"
                odd = odd + 1 if is_odd and status not in END_STATUSES else _MOST_ODD
                if odd >= _MOST_ODD:
                    return reply
            wait_s = max(wait_s, reply.retry_after_s or 0.0)
        if time.monotonic() >= until_s:
            return await _cancel(wire, response_id, client_request_id)


async def _cancel(wire: Wire, response_id: str, client_request_id: str) -> Reply:
    """The answer, if it ended just before it was cancelled. Raises `EndpointError`."""
    http_status = None
    try:
        url = _url(wire, response_id, "cancel")
        reply = await exchange(wire, "POST", url, b"", client_request_id)
        http_status = reply.http_status
        if background_state(reply.body)[1] in ("completed", "incomplete"):
            return reply
    except EndpointError:
        pass  # it was asked to, and that is all that can be done
    raise EndpointError(
        ErrorKind.TIMEOUT,
        "the background response was not done in the row's time (retry.max_elapsed_s); cancelled",
        http_status,
        response_id,
    )


def _url(wire: Wire, *parts: str) -> URL:
    return wire.url.with_query(None).joinpath(*parts).with_query(wire.url.query)


def _unknown(response_id: str, http_status: int, *, is_resumed: bool) -> EndpointError:
    kind = ErrorKind.GONE if is_resumed else ErrorKind.NOT_FOUND
    message = (
        f"the server no longer knows {response_id}, begun by an earlier command"
        if is_resumed
        else "the server began a background response and does not know it: it has no background "
        "mode; use --mode stream or plain"
    )
    return EndpointError(kind, message, http_status, response_id)
