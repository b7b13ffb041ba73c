"""What becomes of a request that was let in: an error, an answer in one piece, a stream.

What was asked for in background is begun here; `service` tells how it stands.
"""

import asyncio
import time

from aiohttp import web

from batchrun.simulator import bending, draws, faults, sse, standing, streaming, wire
from batchrun.simulator.background import Works
from batchrun.simulator.behavior import Behavior
from batchrun.simulator.delivery import Delivery
from batchrun.simulator.gateway_errors import JSON, ErrorAnswer
from batchrun.simulator.headers import Headers
from batchrun.simulator.kinds import NEVER_ENDING, Fault, Quirk
from batchrun.simulator.limits import Limits
from batchrun.simulator.replies import Answer, make_answer
from batchrun.simulator.requests import Asked
from batchrun.simulator.stats import Stats

_WITHOUT_ANSWER = (Fault.RESET_BEFORE, Fault.NO_HEADERS)
_BREAKS_OFF = NEVER_ENDING | {Fault.RESET_WITHIN}
_NOT_BILLED = frozenset(
    {
        Fault.FAILED,
        Fault.FAILED_PROMPT,
        *(fault for fault in Fault if fault.startswith("stream_error_")),
    }
)


class Attempts:
    """Answers requests that were let in."""

    def __init__(
        self, behavior: Behavior, stats: Stats, limits: Limits, headers: Headers, works: Works
    ) -> None:
        self._behavior = behavior
        self._quirks = behavior.quirks
        self._stats = stats
        self._limits = limits
        self._headers = headers
        self._works = works

    def reserved(self, asked: Asked) -> float:
        """Tokens counted at the door: the most that the answer may take, where that is known."""
        most = asked.fields.get("max_output_tokens")
        return asked.input_tokens + (most or self._behavior.output_tokens)

    async def respond(
        self, request: web.BaseRequest, asked: Asked, turn: int, fault: Fault | None
    ) -> web.StreamResponse:
        """Whatever the request gets, in the way that it asks for."""
        end = self._stats.begun()
        behind = asked.fields.get("background") and Quirk.AT_ONCE not in self._quirks
        streams = not behind and self._streams(asked)
        if fault is not None:
            fault = faults.as_struck(fault, streams=streams)
        latency_s = self._latency_s(asked, turn)
        try:
            if fault is not None:
                error = faults.error_answer(fault, self._behavior.retry_after_s)
                if error is not None or fault in _WITHOUT_ANSWER:
                    if faults.takes_work(fault) and not behind:
                        await asyncio.sleep(latency_s)
                    return await self._fail(request, asked, error, fault)
            answer = self._answer(asked, turn, latency_s, fault)
            delivery = Delivery(self._stats, asked, answer, end, is_billed=fault not in _NOT_BILLED)
            if behind:
                end = _nothing  # the work goes on after this request, in flight until it is done
                return await self._begin(request, asked, answer, delivery, latency_s, fault)
            due_s = asyncio.get_running_loop().time() + latency_s
            try:
                if streams:
                    return await self._stream(request, asked, answer, delivery, latency_s, fault)
                return await self._send(request, asked, answer, delivery, latency_s, fault)
            except asyncio.CancelledError:
                delivery.go_on_alone(due_s)
                raise
            except ConnectionError:  # the client was faster
                delivery.go_on_alone(due_s)
                return web.Response()
        finally:
            # The last bytes are written after this, so that no client which has its answer and
            # sends the next request is counted twice.
            end()

    def _streams(self, asked: Asked) -> bool:
        if asked.fields.get("stream"):
            return not {Quirk.JSON_FOR_SSE, Quirk.JSON_AS_SSE}.intersection(self._quirks)
        return Quirk.SSE_FOR_JSON in self._quirks

    def _latency_s(self, asked: Asked, turn: int) -> float:
        behavior = self._behavior
        share = draws.uniform(behavior.seed, asked.key, "latency", turn)
        return draws.lognormal(share, behavior.latency_s, behavior.latency_spread)

    def _answer(self, asked: Asked, turn: int, latency_s: float, fault: Fault | None) -> Answer:
        """What the model says, as a fault and gateways leave it."""
        answer = make_answer(asked, self._behavior, turn, time.time(), latency_s)
        self._limits.settle(
            asked.model, self.reserved(asked), answer.input_tokens + answer.output_tokens
        )
        if not self._quirks and fault not in standing.OUTCOMES:
            return answer
        response = answer.response
        if fault is not None and fault in standing.OUTCOMES:
            response = standing.ended_by(response, fault)
        response = bending.bend(response, self._quirks)
        return answer.with_response(response, bending.encode(response, self._quirks))

    async def _fail(
        self, request: web.BaseRequest, asked: Asked, error: ErrorAnswer | None, fault: Fault
    ) -> web.StreamResponse:
        if error is None:
            if fault is Fault.RESET_BEFORE:
                wire.reset(request)
            return await wire.hang()
        headers = dict(error.headers)
        if error.content_type == JSON:
            headers |= self._headers.request_id()
        if error.tells_limits:
            headers |= self._headers.limits(asked.model)
        return wire.answer(error.body, error.status, headers, error.content_type)

    async def _send(
        self,
        request: web.BaseRequest,
        asked: Asked,
        answer: Answer,
        delivery: Delivery,
        latency_s: float,
        fault: Fault | None,
    ) -> web.StreamResponse:
        if latency_s:
            await asyncio.sleep(latency_s)
        headers = self._headers.of_answer(asked.model, latency_s)
        if fault is not None and fault in _BREAKS_OFF:
            delivery.count(fault)
            return await wire.break_off(request, answer.body, headers, fault)
        is_cut = fault is Fault.TRUNCATED_JSON
        delivery.leave(request, fault if is_cut else None)
        type_ = JSON
        if Quirk.JSON_AS_SSE in self._quirks and asked.fields.get("stream"):
            type_ = sse.CONTENT_TYPE
        body = answer.body[: len(answer.body) * 3 // 5] if is_cut else answer.body
        return wire.answer(body, headers=headers, type_=type_)

    async def _stream(
        self,
        request: web.BaseRequest,
        asked: Asked,
        answer: Answer,
        delivery: Delivery,
        latency_s: float,
        fault: Fault | None,
    ) -> web.StreamResponse:
        if fault in standing.OUTCOMES:
            fault = None  # the terminal event tells it
        frames = streaming.render_stream(asked, answer.response, self._quirks, fault)
        headers = self._headers.of_answer(asked.model, latency_s)
        return await streaming.send_stream(
            request, frames, headers, latency_s, delivery, self._quirks, fault
        )

    async def _begin(
        self,
        request: web.BaseRequest,
        asked: Asked,
        answer: Answer,
        delivery: Delivery,
        latency_s: float,
        fault: Fault | None,
    ) -> web.StreamResponse:
        """The answer to a create call; the work is done at its time whoever asks for it."""
        if fault in standing.OUTCOMES:
            fault = None
        self._stats.created(asked.key)
        created = self._works.begin(asked.key, answer, delivery, latency_s, fault)
        if fault is not None:
            delivery.end()  # to the client it is over, as where it hangs up
        body = bending.encode(created, self._quirks)
        headers = self._headers.of_answer(asked.model, 0.0)
        if fault is not None and fault in _BREAKS_OFF:
            return await wire.break_off(request, body, headers, fault)
        return wire.answer(body if fault is None else body[: len(body) * 3 // 5], headers=headers)


def _nothing() -> None:
    """In the place of what another has to do."""
