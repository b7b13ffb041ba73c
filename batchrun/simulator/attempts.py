"""What happens to a request that was admitted: an error, an answer in one piece, a stream.

Background responses begin here, and are stored as all others are; `server` answers the requests
that ask for them later.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import msgspec
from aiohttp import web

from batchrun.simulator import faults, random_values, streaming
from batchrun.simulator.errors import JSON, GatewayError, fault_error
from batchrun.simulator.rate_limits import ModelRateLimits
from batchrun.simulator.replies import SimulatedAnswer, make_answer
from batchrun.simulator.requests import CheckedRequest
from batchrun.simulator.settings import NEVER_ENDING, Fault, Quirk, SimulatorSettings
from batchrun.simulator.stats import Delivery, Stats
from batchrun.simulator.stored_responses import BackgroundWork, StoredResponse, StoredResponses

Item = dict[str, Any]
_WITHOUT_ANSWER = (Fault.RESET_BEFORE, Fault.NO_HEADERS)
_BREAKS_OFF = NEVER_ENDING | {Fault.RESET_WITHIN, Fault.STREAM_RESET}
_EXTRA_HEADERS = {"x-litellm-response-cost": "0.00042", "x-litellm-model-id": "simulated"}
_PIECE_EVERY_S = 0.05  # of a body that never ends
_BEFORE_RESET_S = 0.02  # so that what was sent is read before the reset overtakes it
_NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST and drops what is unsent


class ServerState:
    """What one server is set to, remembers and counts."""

    def __init__(self, settings: SimulatorSettings) -> None:
        """Raises `ValueError` where the file of answers cannot be read."""
        self.settings = settings
        self.stats = Stats()
        self.limits = ModelRateLimits(settings)
        self.sampler = faults.FaultSampler(settings)
        self.stored = StoredResponses()
        self.known = settings.known_answers()
        self._extra_headers = _EXTRA_HEADERS if Quirk.EXTRAS in settings.quirks else {}
        is_other = Quirk.OTHER_REQUEST_ID in settings.quirks
        self._id_header = "x-oneapi-request-id" if is_other else "x-request-id"

    def reserved_tokens(self, request: CheckedRequest) -> float:
        """What is reserved when a request is admitted: its maximum, where that is known."""
        most = request.fields.get("max_output_tokens")
        return request.input_tokens + (most or self.settings.output_tokens)

    def request_id(self) -> dict[str, str]:
        """A header with a new id."""
        return {self._id_header: f"req_{os.urandom(16).hex()}"}

    def answer_headers(self, model: str, latency_s: float) -> dict[str, str]:
        return {
            **self.request_id(),
            **self.limits.headers(model, time.monotonic()),
            **self._extra_headers,
            "openai-processing-ms": str(round(latency_s * 1000)),
        }


class Responder:
    """Answers one request."""

    def __init__(
        self, state: ServerState, http_request: web.BaseRequest, request: CheckedRequest
    ) -> None:
        settings = state.settings
        self._state = state
        self._quirks = settings.quirks
        self._http_request = http_request
        self._request = request
        self._number = state.stats.admitted(request.key)
        self._in_background = bool(request.fields.get("background")) and (
            Quirk.AT_ONCE not in self._quirks
        )
        self._streams = self._is_stream()
        fault = state.sampler.draw(request.key, self._number)
        if fault is not None:
            state.stats.faulted(fault)
            # in background an error comes before the work has begun
            is_early = self._in_background and fault in faults.NOT_BILLED
            fault = faults.equivalent_fault(fault, streams=self._streams and not is_early)
        self._fault = fault
        share = random_values.uniform(settings.seed, request.key, "latency", self._number)
        self._latency_s = random_values.lognormal(
            share, settings.latency_s, settings.latency_spread
        )
        self._delivery = Delivery(state.stats, request.key)

    async def respond(self) -> web.StreamResponse:
        """An error or an answer, in the mode that the request asks for."""
        is_begun = False  # in background: then it is in flight until its work is done
        try:
            fault = self._fault
            if fault is not None:
                error = fault_error(fault, self._state.settings.retry_after_s)
                if error is not None or fault in _WITHOUT_ANSWER:
                    if faults.takes_work(fault) and not self._in_background:
                        await asyncio.sleep(self._latency_s)
                    return await self._fail(error)
            answer = self._make_answer()
            loop = asyncio.get_running_loop()
            due_s = loop.time() + self._latency_s
            try:
                if self._in_background:
                    is_begun = True
                    return await self._begin(answer)
                return await (self._stream(answer) if self._streams else self._send(answer))
            except (asyncio.CancelledError, ConnectionError) as error:
                # the client has hung up; the work goes on until it is due, and is billed then
                if not is_begun:
                    loop.call_at(due_s, self._complete, answer, "disconnect")
                if isinstance(error, ConnectionError):
                    return web.Response()
                raise
        finally:
            # The last bytes are written after this, so that no client which has its answer and
            # sends the next request is counted twice.
            if not is_begun:
                self._delivery.end()

    def _is_stream(self) -> bool:
        if self._request.fields.get("stream"):
            return not {Quirk.JSON_FOR_SSE, Quirk.JSON_AS_SSE}.intersection(self._quirks)
        return Quirk.SSE_FOR_JSON in self._quirks and not self._in_background

    def _make_answer(self) -> SimulatedAnswer:
        """The answer as the model leaves it, before what a gateway changes in it."""
        state, request = self._state, self._request
        answer = make_answer(
            request,
            state.settings,
            self._number,
            time.time(),
            self._latency_s,
            before=state.stats.answered(request.key),
            known=state.known,
        )
        used = answer.tokens[0] + answer.tokens[1]
        state.limits.settle(request.model, state.reserved_tokens(request), used)
        if self._fault not in faults.NOT_BILLED:
            self._delivery.billed = answer.tokens
        if self._fault in faults.RESPONSE_FAULTS:
            response = faults.end_response(answer.response, self._fault)
            self._fault = None  # it changes nothing else
            body = faults.encode(response)
            return msgspec.structs.replace(answer, response=response, body=body)
        return answer

    async def _fail(self, error: GatewayError | None) -> web.StreamResponse:
        if error is None:
            if self._fault is Fault.RESET_BEFORE:
                _reset(self._http_request)
            return await wait_forever()
        headers = dict(error.headers)
        if error.content_type == JSON:
            headers |= self._state.request_id()
        if error.has_limit_headers:
            headers |= self._state.limits.headers(self._request.model, time.monotonic())
        return whole_answer(error.body, error.status, headers, error.content_type)

    async def _send(self, answer: SimulatedAnswer) -> web.StreamResponse:
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        self._count(answer)
        is_stream = Quirk.JSON_AS_SSE in self._quirks and self._request.fields.get("stream")
        content_type = streaming.CONTENT_TYPE if is_stream else JSON
        body = answer.body
        if self._quirks:
            body = faults.encode(self._passed_on(answer), self._quirks)
        return await self._send_body(body, self._latency_s, content_type)

    async def _begin(self, answer: SimulatedAnswer) -> web.StreamResponse:
        """The answer to a create call; the work is done at its time whoever asks for it."""
        state = self._state
        state.stats.created(self._request.key)
        stored = self._to_store(answer)
        if self._streams:  # its first events tell the id
            work = state.stored.begin(stored, self._delivery, self._latency_s, None)
            return await self._stream(answer, work)
        state.stored.begin(stored, self._delivery, self._latency_s, self._fault)
        if self._fault is not None:
            self._delivery.end()  # to the client it is over, as where it hangs up
        created = faults.unfinished(self._passed_on(answer), "queued")
        return await self._send_body(faults.encode(created, self._quirks), 0.0)

    def _passed_on(self, answer: SimulatedAnswer) -> Item:
        return faults.change_response(answer.response, self._quirks)

    def _to_store(self, answer: SimulatedAnswer) -> StoredResponse:
        tokens = answer.tokens[0] + answer.tokens[1]
        return StoredResponse(answer.response["id"], self._request.data, answer.body, tokens)

    async def _send_body(
        self, body: bytes, latency_s: float, content_type: str = JSON
    ) -> web.StreamResponse:
        """The body whole, truncated, or only its first half before the connection goes wrong."""
        headers = self._state.answer_headers(self._request.model, latency_s)
        if self._fault not in _BREAKS_OFF:
            if self._fault is Fault.TRUNCATED_JSON:
                body = body[: len(body) * 3 // 5]
            return whole_answer(body, headers=headers, content_type=content_type)
        response = web.StreamResponse(headers={"Content-Type": JSON, **headers})
        if self._fault is not Fault.ENDLESS_BODY:
            response.content_length = len(body)
        with suppress(ConnectionError):  # where the client was faster
            await response.prepare(self._http_request)
            await response.write(body[: len(body) // 2])
            await self._break_off(response, b" ")
        return response

    async def _stream(
        self, answer: SimulatedAnswer, work: BackgroundWork | None = None
    ) -> web.StreamResponse:
        """Counts the answer before its last bytes are sent, as plain answers are.

        With `work` it is counted at its time, whether or not the stream arrives.
        """

        def count() -> None:
            if work is not None:
                self._delivery.finish()
                return
            self._count(answer)
            if self._fault not in _BREAKS_OFF:
                self._delivery.end()

        options = self._request.fields.get("stream_options", {})
        events = streaming.render_stream(
            self._passed_on(answer), options, self._quirks, self._fault
        )
        headers = self._state.answer_headers(self._request.model, self._latency_s)
        response = await send_events(
            self._http_request, headers, events, self._latency_s, self._quirks, count, work
        )
        if self._fault in _BREAKS_OFF:
            await self._break_off(response, streaming.PING)
        if Quirk.STAYS_OPEN in self._quirks:
            await wait_forever()
        return response

    def _count(self, answer: SimulatedAnswer) -> None:
        """The answer is made and sent now; the client may be gone."""
        transport = self._http_request.transport
        is_gone = transport is None or transport.is_closing()
        self._complete(answer, self._fault or ("disconnect" if is_gone else None))

    def _complete(self, answer: SimulatedAnswer, destroyed_by: str | None) -> None:
        """The answer is made; only the first call counts."""
        if self._delivery.is_counted:
            return
        self._delivery.count(destroyed_by)
        is_lost = self._fault in faults.NOT_BILLED  # an error event ended it
        if self._request.fields.get("store", True) and not is_lost:
            self._state.stored.add(self._to_store(answer))

    async def _break_off(self, response: web.StreamResponse, piece: bytes) -> None:
        """What follows a first piece: a reset, small pieces without end, or silence."""
        while self._fault is Fault.ENDLESS_BODY:
            await asyncio.sleep(_PIECE_EVERY_S)
            await response.write(piece)
        if self._fault in (Fault.RESET_WITHIN, Fault.STREAM_RESET):
            await asyncio.sleep(_BEFORE_RESET_S)
            _reset(self._http_request)
        await wait_forever()


async def send_events(
    http_request: web.BaseRequest,
    headers: dict[str, str],
    events: list[bytes],
    latency_s: float,
    quirks: tuple[Quirk, ...],
    before_last: Callable[[], None] | None = None,
    work: BackgroundWork | None = None,
    first: int = 0,
) -> web.StreamResponse:
    """Sends the events from the number `first` on, each at its time.

    With `work` their times are those of the work, and they end where it is cancelled.
    """
    response = web.StreamResponse(headers={"Content-Type": streaming.CONTENT_TYPE, **headers})
    cuts = Quirk.CUT_BYTES in quirks
    rng = random_values.random_source(0, events[-1], "cuts") if cuts else None
    loop = asyncio.get_running_loop()
    begun_s = loop.time() if work is None else work.begun_s
    for at_s, data, is_last in streaming.bursts(events, latency_s, first=first):
        wait_s = begun_s + at_s - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if work is not None and work.is_cancelled:
            break
        if not response.prepared:
            await response.prepare(http_request)
        if is_last and before_last is not None:
            before_last()
        for piece in (data,) if rng is None else streaming.cut_anywhere(data, rng):
            await response.write(piece)
            if rng is not None:
                await asyncio.sleep(0)  # a piece by itself, so far as sockets allow
    return response


def whole_answer(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None, content_type: str = JSON
) -> web.Response:
    """An answer in one piece; no Content-Type where that is empty."""
    if content_type:
        headers = {"Content-Type": content_type, **(headers or {})}
    return web.Response(body=body, status=status, headers=headers)


async def wait_forever() -> NoReturn:
    """Never returns: a lost connection, or the server's end, cancels it."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


def _reset(http_request: web.BaseRequest) -> None:
    transport = http_request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
