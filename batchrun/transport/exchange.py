"""One HTTP exchange: a request out, the whole answer back, and each wait has an end.

Content type and first byte decide how a body is read, whatever was asked for (PROTOCOL 0.3).
"""

import asyncio
import errno
import math
import os
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from batchrun.dialects.other_apis import other_api
from batchrun.dialects.responses import StreamAnswer
from batchrun.dialects.sse import SseParser, begins_stream, text_outside
from batchrun.errors import EndpointError, ErrorKind
from batchrun.formats.json_text import is_object, shown
from batchrun.formats.printable import cut
from batchrun.job.sections import EndpointJob
from batchrun.records import STORED_BODY_BYTES, Reply
from batchrun.transport.decompression import (
    ACCEPTED,
    SNIFFED_BYTES,
    Decompressor,
    coding_of,
    is_accepted,
)
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
    content_type_of,
    reported_cost_usd,
    request_id,
    retry_after_s,
    should_retry,
)
from batchrun.transport.limit_headers import AdvertisedLimits
from batchrun.transport.redaction import Redactor

_LINGER_S = 1.0  # for more, where what has arrived may be all
_TAIL = 16  # bytes at the end of a body that are looked at


class HttpAnswer(Protocol):
    """One answer as it arrives, body still compressed."""

    status: int
    headers: ResponseHeaders

    @property
    def has_surplus(self) -> bool:
        """Whether more has arrived than the length that the head gives."""

    def complete_body(self) -> bytes:
        """The whole body, where it is known that all has arrived and no more; else nothing."""

    async def read_piece(self) -> bytes:
        """What has arrived of the body, awaited; empty at its end. Raises `ClientError`."""

    def at_end(self) -> bool:
        """Whether the body is known to be read to its end."""

    async def read_surplus(self) -> bytes:
        """What arrives after the body's length, awaited; empty once the connection is closed."""


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


class Streams(Struct):
    """What is known of an endpoint's streams."""

    have_last_events: bool = False  # one had: where another has none, it was cut


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
    sends_key: bool = True
    streams: Streams = field(default_factory=Streams)


class _Arriving(Struct):
    """An answer as it arrives."""

    settings: EndpointJob
    deadline: Deadline
    share: BufferShare
    streams: Streams
    started_s: float
    size: int = 0  # bytes of the body so far
    pieces: list[bytes] = []  # the first of them, as far as a body that cannot be read is stored
    http_status: int | None = None
    headers: ResponseHeaders | None = None
    content_type: str | None = None
    decompressor: Decompressor | None = None
    stream: StreamAnswer | None = None
    first_token_s: float | None = None


_JSON, _STREAM = "application/json", "text/event-stream"
_ERRORS = 400  # and above
_NOT_THERE = (404, 405, 501)
_UNAUTHORIZED, _PROXY_AUTHENTICATION = 401, 407
_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_URL = 300  # characters of a URL that a message shows
_ERROR_LINGER_S = 5.0  # after an error: some streams go on
_SHOWN = 300  # characters of a server's words in such a message
_WORDS = 1200  # bytes of a stream that are looked at where it holds no event


async def exchange(
    wire: Wire, method: str, url: URL, body: bytes | None, client_request_id: str
) -> Reply:
    """The whole answer, whatever its status. Raises `EndpointError`."""
    settings, connections = wire.settings, wire.connections
    deadline = Deadline(wire.watch, settings.timeout_s)
    arriving = _Arriving(
        settings, deadline, BufferShare(wire.budget), wire.streams, time.perf_counter()
    )
    try:
        with deadline:
            asking = connections.ask(method, url, body, client_request_id)
            body = None  # a large one is in memory once while its answer is awaited
            answer = await asking
            try:
                arriving.http_status = http_status = answer.status
                arriving.headers = headers = answer.headers
                content = answer.complete_body()
                # Most answers are a JSON object that arrives together with its head.
                if (
                    content[:1] != b"{"
                    or content[-1:] not in b"}\n"
                    or len(content) > settings.max_response_bytes
                    or "content-encoding" in headers
                ):
                    try:
                        content = await _read(answer, content, arriving)
                    except (EndpointError, aiohttp.ClientError, OSError) as error:
                        if http_status < _ERRORS:
                            raise
                        content = _cut_error(error, arriving)
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
        content_type=arriving.content_type and _hidden(arriving.content_type, wire.redactor),
        context=_context(wire, method, url, http_status) if http_status >= _ERRORS else None,
        first_token_s=arriving.first_token_s,
        advertised=wire.limits.read(headers, http_status, deadline.now_s()),
        said=b"" if arriving.stream is None else wire.redactor.hide(arriving.stream.partial()),
        error_type=headers.get(ERROR_TYPE) if http_status >= _ERRORS else None,
    )


async def _read(answer: HttpAnswer, content: bytes, arriving: _Arriving) -> bytes:
    """The whole body, of which `content` has arrived."""
    deadline, headers = arriving.deadline, answer.headers
    arriving.content_type = content_type_of(headers)
    says_stream = arriving.content_type == _STREAM
    _count(content, arriving)
    # A reasoning model may be silent for minutes before it answers, also where blanks or comments
    # keep its connection open.
    deadline.idle_s = deadline.total_s
    while len(content) < SNIFFED_BYTES:
        if content and not (content.isspace() or says_stream):
            deadline.idle_s = deadline.now_s() + arriving.settings.idle_timeout_s
        if not (piece := await _next_piece(answer, arriving)):
            break
        content += piece
    if coding := coding_of(content[:SNIFFED_BYTES], headers.content_encoding()):
        if not is_accepted(coding):
            with suppress(aiohttp.ClientError, OSError):
                await _read_whole(answer, content, arriving)
            text = f"its Content-Encoding {shown(coding)} is not one of those accepted ({ACCEPTED})"
            raise EndpointError(ErrorKind.UNREADABLE, f"the answer cannot be unpacked: {text}")
        arriving.decompressor = Decompressor(coding)
        arriving.decompressor.add(content)
        arriving.size, arriving.pieces = 0, []
        content = b""
    while (is_stream := begins_stream(content, says_stream=says_stream)) is None:
        if content.isspace():
            content = b""
        elif content and not says_stream:
            deadline.idle_s = deadline.now_s() + arriving.settings.idle_timeout_s
        piece = await _next_piece(answer, arriving)
        if not piece:
            break
        content += piece
    if not (is_stream or (is_stream is None and says_stream)):
        return await _read_whole(answer, content, arriving)
    try:
        return await _read_stream(answer, content, arriving)
    except (aiohttp.ClientError, OSError, EndpointError) as error:
        if (api := _streamed_api(arriving)) is None:
            raise
        text = f"the answer is {api}, not a stream of the Responses API: check --base-url"
        raise EndpointError(ErrorKind.UNREADABLE, text) from error


def _cut_error(error: Exception, arriving: _Arriving) -> bytes:
    """The body of an error answer that cannot be read to its end: its status says enough."""
    if isinstance(error, EndpointError):  # it can be read nowhere
        return msgspec.json.encode({"error": {"message": error.message}})
    return b"".join(arriving.pieces)


async def _read_whole(answer: HttpAnswer, content: bytes, arriving: _Arriving) -> bytes:
    """A body that is no stream, of which `content` has arrived.

    What is one whole JSON object is the answer, however the frame around it ends: servers count
    its letters and not its bytes, leave out the last chunk, or keep the connection open.
    """
    deadline, idle_timeout_s = arriving.deadline, arriving.settings.idle_timeout_s
    pieces, piece, may_be_whole = [content], content, False
    while True:
        heard_s = deadline.now_s()
        if not piece.isspace():
            may_be_whole = piece[-_TAIL:].rstrip()[-1:] == b"}"
        while True:
            patience_s = min(_LINGER_S, idle_timeout_s) if may_be_whole else idle_timeout_s
            deadline.idle_s = heard_s + patience_s
            try:
                piece = await _next_piece(answer, arriving)
                break
            except asyncio.CancelledError:
                if not (may_be_whole and deadline.forgive()):
                    raise
                if is_object(whole := b"".join(pieces)):
                    return whole
                may_be_whole = False
            except (aiohttp.ClientError, OSError, EndpointError):
                if is_object(whole := b"".join(pieces)):
                    return whole
                raise
        if not piece:
            break
        pieces.append(piece)
    whole = b"".join(pieces)
    begins_object = whole.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    if begins_object and (answer.has_surplus or whole[-_TAIL:].rstrip()[-1:] != b"}"):
        return await _with_surplus(answer, whole, arriving)
    return whole


async def _with_surplus(answer: HttpAnswer, content: bytes, arriving: _Arriving) -> bytes:
    """The body with what came after the length that its head gives, if both together are whole."""
    deadline, whole = arriving.deadline, content
    deadline.idle_s = deadline.now_s() + _LINGER_S
    try:
        while not is_object(whole):
            piece = await answer.read_surplus()
            if not piece:
                return content
            _count(piece, arriving)
            whole += piece
    except asyncio.CancelledError:
        if not deadline.forgive():
            raise
        return content
    return whole


async def _read_stream(answer: HttpAnswer, content: bytes, arriving: _Arriving) -> bytes:
    """The answer that the events carry."""
    deadline, idle_timeout_s = arriving.deadline, arriving.settings.idle_timeout_s
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
            # Before text, and after reasoning or a tool's work, a model may think for minutes.
            is_text = stream.is_writing_text
            deadline.idle_s = deadline.now_s() + idle_timeout_s if is_text else deadline.total_s
            if stream.has_begun and arriving.first_token_s is None:
                arriving.first_token_s = time.perf_counter() - arriving.started_s
            if stream.is_finished:
                linger_s = _ERROR_LINGER_S if stream.ends_in_error else _LINGER_S
                linger_until_s = min(linger_until_s, deadline.now_s() + linger_s)
                deadline.idle_s = min(deadline.idle_s, linger_until_s)
            elif linger_until_s < math.inf:  # it went on after an error
                linger_until_s = math.inf
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
    streams = arriving.streams
    streams.have_last_events = streams.have_last_events or stream.has_last_event
    body = stream.body(sends_last_events=streams.have_last_events)
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
    _count(piece, arriving)
    is_last = not piece or (decompressor is None and answer.at_end())
    if not is_last and arriving.share.grow(len(piece)):
        await arriving.share.wait(arriving.deadline)
    return piece


def _count(piece: bytes, arriving: _Arriving) -> None:
    if arriving.size <= STORED_BODY_BYTES:
        arriving.pieces.append(piece)
    arriving.size += len(piece)
    most = arriving.settings.max_response_bytes
    if arriving.size > most:
        text = f"the answer is larger than {most} bytes (endpoint.max_response_bytes)"
        raise EndpointError(ErrorKind.TOO_LARGE, text)


def _streamed_api(arriving: _Arriving) -> str | None:
    """Which other API's events these are, in words."""
    parser = SseParser()
    events = [*parser.feed(b"".join(arriving.pieces)), *parser.end()]
    return next((api for event in events if (api := other_api(event.data)) is not None), None)


def _context(wire: Wire, method: str, url: URL, http_status: int) -> str | None:
    """What helps to understand an error beside what the server says."""
    if http_status in _NOT_THERE:
        return f"{method} {_without_secrets(url)}"
    if http_status == _UNAUTHORIZED and not wire.sends_key:
        return "no key was sent; name the variable that holds one with --api-key-env"
    return None


def _without_secrets(url: URL) -> str:
    """The URL without the parts that may hold a secret."""
    return str(url.with_user(None).with_query(None).with_fragment(None))[:_LONGEST_URL]


def _redirect_error(url: URL, location: str) -> bytes:
    """What a redirect says, as an error: its target, without the parts that may hold a secret.

    It is not followed: the target would get the key.
    """
    try:
        target = _without_secrets(url.join(URL(location)))
    except ValueError:
        target = "an invalid URL"
    message = f"the server redirects to {target}; redirects are not followed"
    return msgspec.json.encode({"error": {"message": message}})


def _endpoint_error(error: Exception, arriving: _Arriving, redactor: Redactor) -> EndpointError:
    """The failure without secrets: where a server is not HTTP its first words are in it."""
    kind, message, was_sent = _described(error, arriving)
    stream, headers = arriving.stream, arriving.headers
    response_id = stream.response_id if stream else None
    server_request_id = request_id(headers) if headers else None
    http_status, body = arriving.http_status, b"".join(arriving.pieces)
    if isinstance(error, aiohttp.ClientHttpProxyError):  # a proxy's answer to CONNECT
        http_status = error.status
    if isinstance(error, EndpointError) and error.body:
        body = error.body
    return EndpointError(
        kind,
        redactor.hide_in(message),
        http_status,
        response_id and redactor.hide_in(response_id),
        was_sent=was_sent,
        request_id=server_request_id and redactor.hide_in(server_request_id),
        said=redactor.hide(stream.partial()) if stream else b"",
        body=redactor.hide(body),
        content_type=arriving.content_type and _hidden(arriving.content_type, redactor),
    )


def _hidden(content_type: str, redactor: Redactor) -> str:
    """Without secrets, which the two that are known are free of."""
    return content_type if content_type in (_JSON, _STREAM) else redactor.hide_in(content_type)


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
        return ErrorKind.TIMEOUT, _timeout_in_words(settings, deadline, has_head=has_head), True
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        text = f"the server's certificate cannot be verified: {error.certificate_error}"
        return ErrorKind.CERTIFICATE, text, False
    if isinstance(error, aiohttp.ClientHttpProxyError):  # it made no connection
        is_login = error.status == _PROXY_AUTHENTICATION
        text = f"the proxy answers {error.status} {error.message}".rstrip()
        return ErrorKind.PROXY if is_login else ErrorKind.CONNECTION, text, False
    if isinstance(error, aiohttp.ClientConnectorError):
        text = f"cannot connect to {error.host}:{error.port}: {_reason(error.os_error)}"
        return ErrorKind.CONNECTION, text, False
    if has_head and isinstance(error, aiohttp.ClientError):
        return ErrorKind.CUT, f"the answer broke off: {text}", True
    if isinstance(error, aiohttp.ClientPayloadError):
        text = f"the answer is not HTTP: {error}"
    return ErrorKind.CONNECTION, text, True


def _reason(error: OSError) -> str:
    """Why no connection was made: by its number, since asyncio's own words repeat the address."""
    has_words = isinstance(error, socket.gaierror | ssl.SSLError)  # their numbers are others
    if has_words or error.errno is None or error.errno not in errno.errorcode:
        return error.strerror or str(error) or type(error).__name__
    return os.strerror(error.errno)


def _timeout_in_words(settings: EndpointJob, deadline: Deadline, *, has_head: bool) -> str:
    """What did not come in time, and the setting that says how long that is."""
    if has_head and deadline.idle_s < deadline.total_s:
        seconds, longer = settings.idle_timeout_s, "--idle-timeout (endpoint.idle_timeout_s)"
        return f"the answer stalled for {seconds:g} s; {longer} allows more"
    what = "the answer was not complete" if has_head else "no answer"
    text = f"{what} within {settings.timeout_s:g} s; --timeout (endpoint.timeout_s) allows more"
    is_plain = settings.mode == "plain"
    return f"{text}; for long answers use stream or background mode" if is_plain else text
