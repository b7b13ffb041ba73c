"""One HTTP exchange: a request out, the whole answer back, and each wait has an end.

Content type and first byte decide how a body is read, whatever was asked for (PROTOCOL 0.3).
"""

import asyncio
import math
import time
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from batchrun.dialects.responses import StreamAnswer
from batchrun.dialects.sse import SseParser, begins_stream, text_outside
from batchrun.errors import EndpointError, ErrorKind
from batchrun.formats.printable import cut
from batchrun.job.sections import EndpointJob
from batchrun.records import Reply
from batchrun.transport.exchange_limits import (
    BufferShare,
    Deadline,
    DeadlineWatch,
    ResponseBufferBudget,
)
from batchrun.transport.headers import (
    ERROR_TYPE,
    HINTS,
    ResponseHeaders,
    reported_cost_usd,
    request_id,
    retry_after_s,
    should_retry,
)
from batchrun.transport.limit_headers import AdvertisedLimits
from batchrun.transport.redaction import Redactor

ACCEPTED = "gzip, deflate"
_GZIP = ("gzip", "x-gzip")
_PIECE_BYTES = 256 * 1024  # unpacked at once, at most
_GZIP_WINDOW, _ZLIB_WINDOW, _RAW_WINDOW = 31, 15, -15  # what zlib calls wbits
_METHOD, _DEFLATE = 0x0F, 8  # in the first byte of a zlib header


class Decompressor:
    """Unpacks one body as it arrives."""

    def __init__(self, encoding: str) -> None:
        """Raises `aiohttp.ClientPayloadError` for an encoding that was not asked for."""
        if encoding not in (*_GZIP, "deflate"):
            raise aiohttp.ClientPayloadError(
                f"its Content-Encoding {encoding!r} is not one of those accepted ({ACCEPTED})"
            )
        self._is_gzip = encoding in _GZIP
        self._codec: zlib._Decompress | None = None  # None: nothing has arrived yet
        self._packed = b""

    def add(self, packed: bytes) -> None:
        self._packed += packed

    def take(self) -> bytes:
        """The next piece; empty where more has to arrive. Raises `ClientPayloadError`."""
        while self._packed:
            codec = self._codec
            if codec is not None and codec.eof and not self._is_gzip:
                self._packed = b""  # what follows the end does not belong to the body
                break
            if codec is None or codec.eof:  # gzip may have several members
                codec = self._codec = zlib.decompressobj(self._window(self._packed[0]))
            try:
                piece = codec.decompress(self._packed, _PIECE_BYTES)
            except zlib.error as error:
                raise aiohttp.ClientPayloadError(f"it cannot be unpacked: {error}") from error
            self._packed = codec.unused_data if codec.eof else codec.unconsumed_tail
            if piece:
                return piece
        return b""

    def _window(self, first: int) -> int:
        if self._is_gzip:
            return _GZIP_WINDOW
        # "deflate" is sent with a zlib header or without.
        return _ZLIB_WINDOW if first & _METHOD == _DEFLATE else _RAW_WINDOW

    def end(self) -> None:
        """Raises `ClientPayloadError` where the body ended before its compressed data did."""
        if self._codec is not None and not self._codec.eof:
            raise aiohttp.ClientPayloadError("its compressed body is cut off")


class HttpAnswer(Protocol):
    """One answer as it arrives, body still compressed."""

    status: int
    headers: ResponseHeaders

    def complete_body(self) -> bytes:
        """The whole body, where it is known that all has arrived; else nothing."""

    async def read_piece(self) -> bytes:
        """What has arrived of the body, awaited; empty at its end. Raises `ClientError`."""

    def at_end(self) -> bool:
        """Whether the body is known to be read to its end."""


class HttpConnections(Protocol):
    """Connections to one endpoint, which know its headers. Each answer is kept or dropped."""

    async def ask(
        self, method: str, url: URL, body: bytes | None, client_request_id: str
    ) -> HttpAnswer:
        """Sends a request; returns once the head of its answer is there.

        Raises `aiohttp.ClientError`, a `ClientPayloadError` where it is not HTTP, `OSError`, and
        `TimeoutError` where no connection is made in time.
        """

    def set_header(self, name: str, value: str) -> None:
        """Sends one of the headers with another value from now on."""

    def keep(self, answer: Any, /) -> None: ...
    def drop(self, answer: Any, /) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Wire:
    """One endpoint, connected."""

    connections: HttpConnections
    url: URL  # of the dialect's path
    settings: EndpointJob
    watch: DeadlineWatch
    limits: AdvertisedLimits
    budget: ResponseBufferBudget
    redactor: Redactor  # everything that the server says goes through it


class _Arriving(Struct):
    """An answer as it arrives."""

    settings: EndpointJob
    deadline: Deadline
    share: BufferShare
    started_s: float
    size: int = 0  # bytes of the body so far
    http_status: int | None = None
    headers: ResponseHeaders | None = None
    decompressor: Decompressor | None = None
    stream: StreamAnswer | None = None
    first_token_s: float | None = None


_REDIRECTS = (301, 302, 303, 307, 308)
_ERRORS = 400  # and above
_LONGEST_URL = 300  # characters of a redirect's target that a message shows
_LINGER_S = 1.0  # for the end of a connection whose stream has sent its last event
_ERROR_LINGER_S = 5.0  # after an error: some streams go on
_SHOWN = 300  # characters of a server's words in such a message
_WORDS = 1200  # bytes of a stream that are looked at where it holds no event


async def exchange(
    wire: Wire, method: str, url: URL, body: bytes | None, client_request_id: str
) -> Reply:
    """The whole answer, whatever its status. Raises `EndpointError`."""
    settings, connections = wire.settings, wire.connections
    deadline = Deadline(wire.watch, settings.timeout_s)
    arriving = _Arriving(settings, deadline, BufferShare(wire.budget), time.perf_counter())
    try:
        with deadline:
            answer = await connections.ask(method, url, body, client_request_id)
            try:
                arriving.http_status = http_status = answer.status
                arriving.headers = headers = answer.headers
                content = answer.complete_body()
                # Most answers are a JSON object that arrives together with its head.
                if (
                    content[:1] != b"{"
                    or len(content) > settings.max_response_bytes
                    or "content-encoding" in headers
                ):
                    content = await _read(answer, content, arriving)
            except BaseException:
                connections.drop(answer)
                raise
            connections.keep(answer)
    except (EndpointError, aiohttp.ClientError, OSError) as error:
        raise _endpoint_error(error, arriving, wire.redactor) from error
    finally:
        arriving.share.release()
    if http_status in _REDIRECTS and "location" in headers:
        content = _redirect_error(url, headers["location"])
    server_request_id, has_hints = request_id(headers), headers.has_any(HINTS)
    return Reply(
        http_status=http_status,
        body=wire.redactor.hide(content),
        request_id=server_request_id and wire.redactor.hide_in(server_request_id),
        retry_after_s=retry_after_s(headers) if has_hints else None,
        reported_cost_usd=reported_cost_usd(headers) if has_hints else None,
        should_retry=should_retry(headers) if has_hints else None,
        first_token_s=arriving.first_token_s,
        advertised=wire.limits.read(headers, http_status, deadline.now_s()),
        said=b"" if arriving.stream is None else wire.redactor.hide(arriving.stream.partial()),
        error_type=headers.get(ERROR_TYPE) if http_status >= _ERRORS else None,
    )


async def _read(answer: HttpAnswer, content: bytes, arriving: _Arriving) -> bytes:
    """The whole body, of which `content` has arrived."""
    deadline, idle_timeout_s = arriving.deadline, arriving.settings.idle_timeout_s
    content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    says_stream = content_type == "text/event-stream"
    if encoding := answer.headers.content_encoding():
        arriving.decompressor = Decompressor(encoding)
        arriving.decompressor.add(content)
        content = b""
    _count(len(content), arriving)
    # A reasoning model may be silent for minutes before its stream begins.
    deadline.idle_s = deadline.total_s if says_stream else deadline.now_s() + idle_timeout_s
    while (is_stream := begins_stream(content, says_stream=says_stream)) is None:
        piece = await _next_piece(answer, arriving)
        if not piece:
            break
        if not says_stream:
            deadline.idle_s = deadline.now_s() + idle_timeout_s
        content += piece
    if is_stream or (is_stream is None and says_stream):
        return await _read_stream(answer, content, arriving)
    pieces = [content]
    while piece := await _next_piece(answer, arriving):
        deadline.idle_s = deadline.now_s() + idle_timeout_s
        pieces.append(piece)
    return b"".join(pieces)


async def _read_stream(answer: HttpAnswer, content: bytes, arriving: _Arriving) -> bytes:
    """The answer that the events carry."""
    deadline, idle_timeout_s = arriving.deadline, arriving.settings.idle_timeout_s
    deadline.idle_s = deadline.total_s
    parser, stream = SseParser(), StreamAnswer()
    arriving.stream = stream
    is_error = not 200 <= (arriving.http_status or 0) < 300
    raw: list[bytes] = []
    piece, linger_until_s, beginning = content, math.inf, b""
    try:
        while piece:
            if is_error:
                raw.append(piece)
            if len(beginning) < _WORDS and stream.is_silent:
                beginning += piece[:_WORDS]
            for event in parser.feed(piece):
                stream.take(event)
            if stream.has_begun:
                deadline.idle_s = deadline.now_s() + idle_timeout_s
                if arriving.first_token_s is None:
                    arriving.first_token_s = time.perf_counter() - arriving.started_s
            if stream.is_finished:
                linger_s = _ERROR_LINGER_S if stream.ends_in_error else _LINGER_S
                linger_until_s = min(linger_until_s, deadline.now_s() + linger_s)
                deadline.idle_s = min(deadline.idle_s, linger_until_s)
            elif linger_until_s < math.inf:  # it went on after an error
                linger_until_s = math.inf
                if not stream.has_begun:
                    deadline.idle_s = deadline.total_s
            piece = await _next_piece(answer, arriving)
        for event in parser.end():
            stream.take(event)
    # After the last event it does not matter how the connection ends.
    except aiohttp.ClientError:
        if not stream.is_finished:
            raise
    except asyncio.CancelledError:
        if not (stream.is_finished and deadline.forgive()):
            raise
    body = stream.body()
    if body is None and is_error:
        return b"".join(raw)  # its status says enough, whatever the body calls itself
    if body is not None:
        return body
    words = stream.words or text_outside(beginning)
    if words and stream.is_silent:
        return msgspec.json.encode({"error": {"message": words.decode(errors="replace")}})
    said = stream.error_message or stream.words.decode(errors="replace")
    more = f"; the server said: {cut(said, _SHOWN)}" if said else ""
    raise EndpointError(ErrorKind.CUT, f"the stream ended without its last event{more}")


async def _next_piece(answer: HttpAnswer, arriving: _Arriving) -> bytes:
    """More of the body, empty at its end; returned once the buffer budget allows to go on."""
    decompressor = arriving.decompressor
    if decompressor is None:
        piece = await answer.read_piece()
    else:
        while not (piece := decompressor.take()):
            if not (packed := await answer.read_piece()):
                decompressor.end()
                break
            decompressor.add(packed)
    _count(len(piece), arriving)
    is_last = not piece or (decompressor is None and answer.at_end())
    if not is_last and arriving.share.grow(len(piece)):
        await arriving.share.wait(arriving.deadline)
    return piece


def _count(size: int, arriving: _Arriving) -> None:
    arriving.size += size
    most = arriving.settings.max_response_bytes
    if arriving.size > most:
        text = f"the answer is larger than {most} bytes (endpoint.max_response_bytes)"
        raise EndpointError(ErrorKind.TOO_LARGE, text)


def _redirect_error(url: URL, location: str) -> bytes:
    """What a redirect says, as an error: its target, without the parts that may hold a secret.

    It is not followed: the target would get the key.
    """
    try:
        target = str(url.join(URL(location)).with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        target = "an invalid URL"
    message = f"the server redirects to {target[:_LONGEST_URL]}; redirects are not followed"
    return msgspec.json.encode({"error": {"message": message}})


def _endpoint_error(error: Exception, arriving: _Arriving, redactor: Redactor) -> EndpointError:
    """The failure without secrets: where a server is not HTTP its first words are in it."""
    kind, message, was_sent = _described(error, arriving)
    stream, headers = arriving.stream, arriving.headers
    response_id = stream.response_id if stream else None
    server_request_id = request_id(headers) if headers else None
    return EndpointError(
        kind,
        redactor.hide_in(message),
        arriving.http_status,
        response_id and redactor.hide_in(response_id),
        was_sent=was_sent,
        request_id=server_request_id and redactor.hide_in(server_request_id),
        said=redactor.hide(stream.partial()) if stream else b"",
    )


def _described(error: Exception, arriving: _Arriving) -> tuple[ErrorKind, str, bool]:
    """Kind and message, and whether the request may have been sent."""
    settings, deadline = arriving.settings, arriving.deadline
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    has_head = arriving.http_status is not None
    if isinstance(error, EndpointError):
        return error.kind, error.message, True
    if isinstance(error, TimeoutError) and not deadline.expired:  # aiohttp's, for the connection
        text = f"no connection within {settings.connect_timeout_s:g} s (endpoint.connect_timeout_s)"
        return ErrorKind.CONNECTION, text, False
    if isinstance(error, TimeoutError):
        idle_s, total_s = settings.idle_timeout_s, settings.timeout_s
        if not has_head:
            text = f"no answer within {total_s:g} s (endpoint.timeout_s)"
        elif deadline.idle_s < deadline.total_s:
            text = f"the answer stalled for {idle_s:g} s (endpoint.idle_timeout_s)"
        else:
            text = f"the answer was not complete within {total_s:g} s (endpoint.timeout_s)"
        return ErrorKind.TIMEOUT, text, True
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        text = (
            "the server's certificate cannot be verified (if your own authority issued it, name "
            f"that authority's file in SSL_CERT_FILE): {error.certificate_error}"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return ErrorKind.CONNECTION, text, False
    if has_head and isinstance(error, aiohttp.ClientError):
        return ErrorKind.CUT, f"the answer broke off: {text}", True
    if isinstance(error, aiohttp.ClientPayloadError):
        text = f"the answer is not HTTP: {error}"
    return ErrorKind.CONNECTION, text, True
