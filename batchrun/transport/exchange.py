"""One HTTP exchange: bytes out, the whole answer back, and each wait has an end.

Content type and first byte decide how a body is read, whatever was asked for (PROTOCOL 0.3).
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import aiohttp
import msgspec
from aiohttp.http import HttpProcessingError
from msgspec import Struct
from yarl import URL

from batchrun.dialects.responses import StreamAnswer
from batchrun.dialects.sse import SseParser
from batchrun.errors import EndpointError, ErrorKind
from batchrun.job.sections import EndpointJob
from batchrun.records import Reply
from batchrun.transport.answer_reader import AnswerReader
from batchrun.transport.connections import Connections
from batchrun.transport.exchange_limits import (
    BufferShare,
    Deadline,
    DeadlineWatch,
    ResponseBufferBudget,
)
from batchrun.transport.headers import AdvertisedLimits, hints, request_id
from batchrun.transport.redaction import Redactor


@dataclass(frozen=True, slots=True)
class Wire:
    """One endpoint, connected."""

    connections: Connections  # know the headers, the key among them
    url: URL  # of POST /responses
    settings: EndpointJob
    watch: DeadlineWatch
    limits: AdvertisedLimits
    room: ResponseBufferBudget  # for answers that arrive
    veil: Redactor  # between what comes over the wire and everybody else


_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_PLACE = 300  # characters of an address that a message shows
_LINGER_S = 1.0  # for the end of a connection whose stream has said all
_BLANK = b"\xef\xbb\xbf \t\r\n"
_FIELDS = (b"retry:", b"event:", b"data:", b"id:", b":")  # what a line of a stream begins with


class _Arriving(Struct):
    """An answer while it comes: its status, and for a stream what it has said."""

    started_s: float
    share: BufferShare  # what it holds of the room for answers
    http_status: int | None = None
    stream: StreamAnswer | None = None
    first_token_s: float | None = None
    linger_until_s: float = math.inf  # on the loop's clock


async def exchange(
    wire: Wire, method: str, url: URL, body: bytes | None, client_request_id: str
) -> Reply:
    """The whole answer, whatever its status. Raises `EndpointError`."""
    settings = wire.settings
    arriving = _Arriving(time.perf_counter(), BufferShare(wire.room))
    deadline = Deadline(wire.watch, settings.timeout_s)
    try:
        with deadline:
            reader = wire.connections.idle()
            if reader is None:
                reader = await wire.connections.open()
            try:
                await wire.connections.send(reader, method, url, body, client_request_id)
                arriving.http_status = http_status = reader.status
                headers = reader.headers
                content = reader.rest()
                if content[:1] != b"{" or len(content) > settings.max_response_bytes:
                    # It is still to come, or none of the usual: most come whole with their head.
                    content = await _read(reader, headers, content, deadline, settings, arriving)
            except BaseException:
                wire.connections.drop(reader)
                raise
            wire.connections.keep(reader)
    except EndpointError as error:
        raise _veiled(error, wire) from error
    except TimeoutError as error:
        raise _veiled(_timed_out(deadline, arriving, settings), wire) from error
    except aiohttp.ClientError as error:
        raise _veiled(_broken(error, arriving), wire) from error
    except HttpProcessingError as error:
        text = f"the answer is no HTTP: {error.message}"
        raise _veiled(_failed(ErrorKind.CONNECTION, text, arriving), wire) from error
    except OSError as error:
        raise _veiled(_failed(ErrorKind.CONNECTION, _said(error), arriving), wire) from error
    finally:
        arriving.share.leave()
    if http_status in _REDIRECTS and "location" in headers:
        content = _sent_elsewhere(url, headers["location"])
    said_id, hinted = request_id(headers), hints(headers)
    return Reply(
        http_status=http_status,
        body=wire.veil.hide(content),
        request_id=said_id and wire.veil.hide_in(said_id),
        retry_after_s=hinted.retry_after_s,
        should_retry=hinted.should_retry,
        reported_cost_usd=hinted.reported_cost_usd,
        first_token_s=arriving.first_token_s,
        advertised=wire.limits.read(headers, http_status, deadline.now_s()),
    )


async def _read(
    reader: AnswerReader,
    headers: Mapping[str, str],
    first: bytes,
    deadline: Deadline,
    settings: EndpointJob,
    arriving: _Arriving,
) -> bytes:
    """The whole body, of which `first` has come."""
    now_s = deadline.now_s
    said_stream = _says_stream(headers.get("content-type", ""))
    _check_size(len(first), settings, arriving)
    # A reasoning model may be silent for minutes before its stream says anything.
    deadline.idle_s = deadline.total_s if said_stream else now_s() + settings.idle_timeout_s
    while (is_stream := _is_stream(first, said_stream)) is None:
        piece = await reader.piece()
        if not piece:
            break
        if not said_stream:
            deadline.idle_s = now_s() + settings.idle_timeout_s
        first += piece
        _check_size(len(first), settings, arriving)
        if not reader.is_read and arriving.share.grow(len(piece)):
            await _wait_for_room(deadline, arriving.share)
    if said_stream if is_stream is None else is_stream:
        return await _read_stream(reader, first, deadline, settings, arriving)
    if reader.is_read:
        return first
    pieces = [first]
    size = len(first)
    while piece := await reader.piece():
        deadline.idle_s = now_s() + settings.idle_timeout_s
        size += len(piece)
        _check_size(size, settings, arriving)
        pieces.append(piece)
        if arriving.share.grow(len(piece)):
            await _wait_for_room(deadline, arriving.share)
    return b"".join(pieces)


@lru_cache(maxsize=64)
def _says_stream(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def _is_stream(first: bytes, said_stream: bool) -> bool | None:
    """Whether a body that begins so is a stream; null while that cannot be told."""
    start = first.lstrip(_BLANK)[: len(_FIELDS[0])]
    if not start:
        return None
    if start[:1] in (b"{", b"[", b"<"):
        return False
    if said_stream or start.startswith(_FIELDS):
        return True
    return None if any(field.startswith(start) for field in _FIELDS) else False


async def _read_stream(
    reader: AnswerReader,
    first: bytes,
    deadline: Deadline,
    settings: EndpointJob,
    arriving: _Arriving,
) -> bytes:
    now_s = deadline.now_s
    deadline.idle_s = deadline.total_s
    parser, stream = SseParser(), StreamAnswer()
    arriving.stream = stream
    size, piece = 0, first
    is_error = not 200 <= (arriving.http_status or 0) < 300
    raw: list[bytes] = []
    try:
        while piece:
            size += len(piece)
            _check_size(size, settings, arriving)
            if piece is not first and arriving.share.grow(len(piece)):
                await _wait_for_room(deadline, arriving.share)
            if is_error:
                raw.append(piece)
            for event in parser.feed(piece):
                stream.take(event)
            if stream.has_begun:
                deadline.idle_s = now_s() + settings.idle_timeout_s
                if arriving.first_token_s is None:
                    arriving.first_token_s = time.perf_counter() - arriving.started_s
            if stream.is_finished:
                arriving.linger_until_s = min(arriving.linger_until_s, now_s() + _LINGER_S)
                deadline.idle_s = min(deadline.idle_s, arriving.linger_until_s)
            piece = await reader.piece()
        for event in parser.end():
            stream.take(event)
    # All was said: how the connection ends does not matter any more.
    except aiohttp.ClientError:
        if not stream.is_finished:
            raise
    except asyncio.CancelledError:
        if not (stream.is_finished and deadline.forgive()):
            raise
    body = stream.body()
    if body is None and is_error:
        return b"".join(raw)  # its status says enough, whatever the body calls itself
    if body is None:
        raise _failed(ErrorKind.CUT, "the stream ended without its last event", arriving)
    return body


async def _wait_for_room(deadline: Deadline, share: BufferShare) -> None:
    """While other answers are read first; that time is not the server's, and counts for nothing."""
    now_s = deadline.now_s
    began_s, total_s, idle_s = now_s(), deadline.total_s, deadline.idle_s
    deadline.total_s = deadline.idle_s = math.inf
    await share.wait()
    waited_s = now_s() - began_s
    deadline.total_s, deadline.idle_s = total_s + waited_s, idle_s + waited_s


def _check_size(size: int, settings: EndpointJob, arriving: _Arriving) -> None:
    if size > settings.max_response_bytes:
        raise EndpointError(
            ErrorKind.TOO_LARGE,
            f"the answer is larger than {settings.max_response_bytes} bytes "
            "(endpoint.max_response_bytes)",
            arriving.http_status,
        )


def _sent_elsewhere(url: URL, location: str) -> bytes:
    """What a redirect says, as an error. Its address may hold a ticket, so only its place is told.

    It is not followed: whoever stands there would get the key.
    """
    try:
        place = str(url.join(URL(location)).with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        place = "an address that is none"
    message = f"the server sends to {place[:_LONGEST_PLACE]}, and redirects are not followed"
    return msgspec.json.encode({"error": {"message": message}})


def _veiled(error: EndpointError, wire: Wire) -> EndpointError:
    """The same without secrets: a server that is no HTTP may have its first words in it."""
    hide = wire.veil.hide_in
    response_id = error.response_id and hide(error.response_id)
    return EndpointError(
        error.kind, hide(error.message), error.http_status, response_id, was_sent=error.was_sent
    )


def _timed_out(deadline: Deadline, arriving: _Arriving, settings: EndpointJob) -> EndpointError:
    if not deadline.expired:  # aiohttp's own, for the connection
        return _unconnected(
            f"no connection within {settings.connect_timeout_s:g} s (endpoint.connect_timeout_s)"
        )
    if arriving.http_status is None:
        text = f"no answer within {settings.timeout_s:g} s (endpoint.timeout_s)"
    elif deadline.idle_s < deadline.total_s:
        text = f"the answer stood still for {settings.idle_timeout_s:g} s (endpoint.idle_timeout_s)"
    else:
        text = f"the answer was not whole within {settings.timeout_s:g} s (endpoint.timeout_s)"
    return _failed(ErrorKind.TIMEOUT, text, arriving)


def _broken(error: aiohttp.ClientError, arriving: _Arriving) -> EndpointError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _unconnected(
            "the server's certificate cannot be verified (if an authority of your own made it, "
            f"name that one's file in SSL_CERT_FILE): {error.certificate_error}"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return _unconnected(_said(error))
    if arriving.http_status is not None:
        return _failed(ErrorKind.CUT, f"the answer broke off: {_said(error)}", arriving)
    return _failed(ErrorKind.CONNECTION, _said(error), arriving)


def _failed(kind: ErrorKind, message: str, arriving: _Arriving) -> EndpointError:
    response_id = arriving.stream.response_id if arriving.stream else None
    return EndpointError(kind, message, arriving.http_status, response_id)


def _unconnected(message: str) -> EndpointError:
    return EndpointError(ErrorKind.CONNECTION, message, was_sent=False)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
