"""The simulated server itself: sockets in and out; what is answered is decided by the other rooms.

`serve` runs in the caller's event loop. Paths: `POST /v1/responses`, `GET /v1/models` and
`/v1/models/NAME`, `GET /stats` (`?by=body` for the table of bodies). A client that hangs up is no
longer in flight; the answer made for it still counts when it would have been ready.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
from aiohttp import web

from batchrun.simulator import api_errors, draws
from batchrun.simulator.api_errors import ApiError
from batchrun.simulator.behavior import Behavior, Fault
from batchrun.simulator.faults import Drawer, ErrorAnswer, error_answer
from batchrun.simulator.limits import Limits, retry_headers
from batchrun.simulator.replies import Answer, make_answer
from batchrun.simulator.requests import Asked, judge, read_body
from batchrun.simulator.stats import Stats

_JSON = "application/json"
_MODELS = ("gpt-4.1", "gpt-4.1-mini", "gpt-5", "o4-mini")  # listed where any name will do
_METHODS = {"/v1/responses": "POST", "/v1/models": "GET", "/stats": "GET"}
_PIECE_EVERY_S = 0.05  # of a body that never ends
_BEFORE_RESET_S = 0.02  # so that what was sent is read before the reset overtakes it
_SHUTDOWN_S = 0.1
_NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST and drops what is unsent


@asynccontextmanager
async def serve(behavior: Behavior, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The base URL, ending in `/v1`, of a server that lives as long as the context does.

    Port 0 picks a free one. Leaving drops what is in flight. Raises `OSError` where the port is
    taken.
    """
    if not behavior.accepts:
        with _deaf(host, port) as address:
            yield address
        return
    service = _Service(behavior)
    server = web.Server(service.answer, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=4096).start()
        yield _base_url(host, runner.addresses[0][1])
    finally:
        for connection in server.connections:
            connection.force_close()
        await runner.cleanup()


class _Service:
    """One server's memory, and the way of a request through it."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior
        self._stats = Stats()
        self._limits = Limits(behavior)
        self._drawer = Drawer(behavior)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/")
        try:
            method = _METHODS.get("/v1/models" if path.startswith("/v1/models/") else path)
            if method is None:
                raise api_errors.unknown_path(request.method, path)
            if request.method != method:
                raise api_errors.wrong_method(request.method, path)
            if path == "/stats":
                return self._counts(request)
            if path == "/v1/responses":
                return await self._respond(request)
            self._check_key(request)
            return self._models(path.removeprefix("/v1/models").removeprefix("/"))
        except ApiError as error:
            return _json(error.render(), error.status)

    def _counts(self, request: web.BaseRequest) -> web.Response:
        by_body = request.query.get("by") == "body"
        counts = self._stats.by_body() if by_body else self._stats.totals()
        return _json(msgspec.json.encode(counts))

    def _models(self, name: str) -> web.Response:
        known = self._behavior.models or _MODELS
        listed = [
            {"id": known_name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
            for known_name in known
        ]
        if not name:
            return _json(msgspec.json.encode({"object": "list", "data": listed}))
        if name not in known:
            raise api_errors.unknown_model(name)
        return _json(msgspec.json.encode(listed[known.index(name)]))

    def _check_key(self, request: web.BaseRequest) -> None:
        if self._behavior.api_key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise api_errors.refused_key(None)
        if given.strip() != self._behavior.api_key:
            raise api_errors.refused_key(given.strip())

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        self._stats.arrived(time.time())
        try:
            self._check_key(request)
            body = read_body(await request.content.read())
            self._stats.asked(body.key)
            asked = judge(body, self._behavior.models)
        except ApiError as error:
            self._stats.rejected(error.status)
            raise
        refused = self._refusal(asked)
        if refused is not None:
            return refused
        turn = self._stats.admitted(asked.key)
        fault = self._drawer.draw(asked.key, turn)
        if fault is not None:
            self._stats.met(fault)
        self._stats.begun()
        try:
            return await self._work(request, asked, turn, fault)
        finally:
            # The last bytes are written after this, so that no client which has its answer and
            # sends the next request is counted twice.
            self._stats.ended()

    def _refusal(self, asked: Asked) -> web.Response | None:
        """What a limit answers; null where the request is let in."""
        behavior, now_s = self._behavior, time.time()
        most = behavior.max_in_flight
        if most is not None and self._stats.in_flight >= most:
            self._stats.refused("in_flight", now_s)
            raise api_errors.overloaded()
        if behavior.quota is not None and self._stats.completions >= behavior.quota:
            self._stats.refused("quota", now_s)
            raise api_errors.used_up()
        refusal = self._limits.admit(asked.model, self._reserved(asked), time.monotonic())
        if refusal is None:
            return None
        self._stats.refused(refusal.of, now_s)
        error = refusal.error(asked.model, hints=behavior.hints)
        headers = self._limit_headers(asked)
        if behavior.hints and refusal.wait_s is not None:
            headers |= retry_headers(refusal.wait_s)
        return _json(error.render(), error.status, headers)

    def _reserved(self, asked: Asked) -> float:
        """Tokens counted at the door: the most that the answer may take, where that is known."""
        most = asked.fields.get("max_output_tokens")
        return asked.input_tokens + (most or self._behavior.output_tokens)

    def _limit_headers(self, asked: Asked) -> dict[str, str]:
        if not self._behavior.hints:
            return {}
        return self._limits.headers(asked.model, time.monotonic())

    async def _work(
        self, request: web.BaseRequest, asked: Asked, turn: int, fault: Fault | None
    ) -> web.StreamResponse:
        behavior = self._behavior
        if fault in (Fault.RATE_LIMIT_HINT, Fault.RATE_LIMIT_BARE, Fault.QUOTA):
            latency_s = 0.0  # a refusal takes no work
        else:
            share = draws.uniform(behavior.seed, asked.key, "latency", turn)
            latency_s = draws.lognormal(share, behavior.latency_s, behavior.latency_spread)
        if fault is not None:
            error = error_answer(fault, behavior.retry_after_s)
            if error is not None or fault in (Fault.RESET_BEFORE, Fault.NO_HEADERS):
                await asyncio.sleep(latency_s)
                return await self._fail(request, asked, error, fault)
        answer = make_answer(asked, behavior, turn, time.time(), latency_s)
        self._limits.settle(
            asked.model, self._reserved(asked), answer.input_tokens + answer.output_tokens
        )
        loop = asyncio.get_running_loop()
        due_s = loop.time() + latency_s
        try:
            if latency_s:
                await asyncio.sleep(latency_s)
        except asyncio.CancelledError:  # the client has hung up; the work goes on and is billed
            loop.call_at(due_s, self._complete, asked, answer, "disconnect")
            raise
        headers = self._limit_headers(asked)
        headers["openai-processing-ms"] = str(round(latency_s * 1000))
        if fault is None or fault is Fault.TRUNCATED_JSON:
            body = answer.body if fault is None else answer.body[: len(answer.body) * 3 // 5]
            gone = request.transport is None or request.transport.is_closing()
            self._complete(asked, answer, "disconnect" if gone else fault)
            return _json(body, headers=headers)
        self._complete(asked, answer, fault)
        return await _break_off(request, answer, headers, fault)

    async def _fail(
        self, request: web.BaseRequest, asked: Asked, error: ErrorAnswer | None, fault: Fault
    ) -> web.StreamResponse:
        if error is None:
            if fault is Fault.RESET_BEFORE:
                _reset(request)
            return await _hang()
        if error.content_type != _JSON:
            return web.Response(
                status=error.status,
                body=error.body,
                headers={"Content-Type": error.content_type} if error.content_type else None,
            )
        hinted = {} if fault is Fault.RATE_LIMIT_BARE else self._limit_headers(asked)
        return _json(error.body, error.status, hinted | error.headers)

    def _complete(self, asked: Asked, answer: Answer, destroyed_by: str | None) -> None:
        tokens = (answer.input_tokens, answer.output_tokens, answer.reasoning_tokens)
        self._stats.completed(asked.key, tokens, time.time(), destroyed_by)


async def _break_off(
    request: web.BaseRequest, answer: Answer, headers: dict[str, str], fault: Fault
) -> web.StreamResponse:
    """A first piece of the answer; then a reset, silence, or pieces without end."""
    response = web.StreamResponse(headers={"Content-Type": _JSON, **_request_id(), **headers})
    if fault is not Fault.ENDLESS_BODY:
        response.content_length = len(answer.body)
    try:
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
        while fault is Fault.ENDLESS_BODY:
            await asyncio.sleep(_PIECE_EVERY_S)
            await response.write(b" ")
        if fault is Fault.RESET_WITHIN:
            await asyncio.sleep(_BEFORE_RESET_S)
            _reset(request)
    except ConnectionError:  # the client was faster
        return response
    return await _hang()


async def _hang() -> web.StreamResponse:
    """Never returns: a lost connection, or the server's end, cancels it."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


def _reset(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=body,
        status=status,
        headers={"Content-Type": _JSON, **_request_id(), **(headers or {})},
    )


def _request_id() -> dict[str, str]:
    return {"x-request-id": f"req_{os.urandom(16).hex()}"}


def _base_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


@contextmanager
def _deaf(host: str, port: int) -> Iterator[str]:
    """A port where a connection never comes about: its queue is full, and nobody takes from it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(8)]
    listener, *waiting = sockets
    try:
        listener.bind((host, port))
        listener.listen(0)
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(listener.getsockname())
        yield _base_url(host, listener.getsockname()[1])
    finally:
        for one in sockets:
            one.close()
