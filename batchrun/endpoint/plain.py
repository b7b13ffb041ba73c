"""One request, one whole JSON answer."""

import asyncio
import ssl

import aiohttp

from batchrun.endpoint.deadlines import Deadline
from batchrun.endpoint.headers import reported_cost_usd, request_id, retry_after_s
from batchrun.endpoint.wire import Wire
from batchrun.errors import EndpointError, ErrorKind
from batchrun.job import EndpointJob
from batchrun.records import Reply, Request


async def send_plain(wire: Wire, request: Request) -> Reply:
    """The whole answer, whatever its status. Raises `EndpointError`; the time has an end."""
    settings = wire.settings
    deadline = Deadline(wire.watch, asyncio.get_running_loop().time() + settings.timeout_s)
    status: int | None = None
    try:
        with deadline:
            async with wire.session.post(
                wire.url, data=_plain_body(request.body), allow_redirects=False
            ) as response:
                status = response.status
                body = await _read(response, deadline, settings)
                return Reply(
                    http_status=status,
                    content_type=response.content_type,
                    body=body,
                    request_id=request_id(response.headers),
                    retry_after_s=retry_after_s(response.headers),
                    reported_cost_usd=reported_cost_usd(response.headers),
                )
    except TimeoutError as error:
        raise _timed_out(deadline, status, settings) from error
    except aiohttp.ClientError as error:
        raise _broken(error, status, settings) from error
    except (OSError, ssl.SSLError) as error:
        raise EndpointError(ErrorKind.CONNECTION, _said(error), status) from error


def _plain_body(body: bytes) -> bytes:
    """The body as meant, with `stream` said outright: some servers stream when it is absent."""
    joint = b"," if len(body) > 2 else b""
    return b"%b%b" % (body[:-1], joint + b'"stream":false}')


async def _read(
    response: aiohttp.ClientResponse, deadline: Deadline, settings: EndpointJob
) -> bytes:
    now_s = asyncio.get_running_loop().time
    pieces: list[bytes] = []
    size = 0
    deadline.idle_s = now_s() + settings.idle_timeout_s
    while piece := await response.content.readany():
        deadline.idle_s = now_s() + settings.idle_timeout_s
        size += len(piece)
        if size > settings.max_response_bytes:
            response.close()
            raise EndpointError(
                ErrorKind.TOO_LARGE,
                f"the answer is larger than {settings.max_response_bytes} bytes "
                "(endpoint.max_response_bytes)",
                response.status,
            )
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _timed_out(deadline: Deadline, status: int | None, settings: EndpointJob) -> EndpointError:
    if not deadline.expired:  # aiohttp's own, for the connection
        return EndpointError(ErrorKind.CONNECTION, _no_connection(settings), status)
    if status is None:
        said = f"no answer within {settings.timeout_s:g} s (endpoint.timeout_s)"
    elif deadline.idle_s < deadline.total_s:
        said = f"the answer stood still for {settings.idle_timeout_s:g} s (endpoint.idle_timeout_s)"
    else:
        said = f"the answer was not whole within {settings.timeout_s:g} s (endpoint.timeout_s)"
    return EndpointError(ErrorKind.TIMEOUT, said, status)


def _broken(error: aiohttp.ClientError, status: int | None, settings: EndpointJob) -> EndpointError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return EndpointError(ErrorKind.CONNECTION, _no_connection(settings), status)
    if status is not None:
        return EndpointError(ErrorKind.CUT, f"the answer broke off: {_said(error)}", status)
    return EndpointError(ErrorKind.CONNECTION, _said(error), status)


def _no_connection(settings: EndpointJob) -> str:
    return f"no connection within {settings.connect_timeout_s:g} s (endpoint.connect_timeout_s)"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
