"""The simulated server: a port that listens, the routes, and what admits each request.

Paths: `POST /v1/responses`; `GET` (also as a stream) and `DELETE /v1/responses/ID`,
`GET /v1/responses/ID/input_items`, `POST /v1/responses/ID/cancel`;
`POST /v1/responses/input_tokens` and `/v1/responses/compact`; `GET /v1/models` and
`/v1/models/NAME`; `GET /stats` (`?by=body` for the table of bodies). A client that hangs up is no
longer in flight; the answer made for it still counts when it would have been ready.
"""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum

import msgspec
from aiohttp import web

from batchrun.simulator import errors, faults
from batchrun.simulator.attempts import Responder, ServerState, send_events, whole_answer
from batchrun.simulator.errors import ApiError
from batchrun.simulator.replies import make_compaction
from batchrun.simulator.requests import (
    CheckedRequest,
    RequestBody,
    check_compaction,
    check_request,
    count_tokens,
    read_body,
)
from batchrun.simulator.settings import Quirk, SimulatorSettings
from batchrun.simulator.stored_responses import (
    StoredResponse,
    input_items,
    is_set,
    list_items,
    query_number,
)
from batchrun.simulator.streaming import render_stream

_SHUTDOWN_S = 0.1
_MODELS = ("gpt-4.1", "gpt-4.1-mini", "gpt-5", "o4-mini")  # listed where any name is accepted


class Route(StrEnum):
    """What a request can be for."""

    STATS = "stats"
    MODELS = "models"  # the list, or one by its name
    RESPOND = "respond"
    COUNT = "count"
    COMPACT = "compact"
    RETRIEVE = "retrieve"  # a response, by its id, as are the others below
    DELETE = "delete"
    INPUT_ITEMS = "input_items"
    CANCEL = "cancel"


_ROUTES: tuple[tuple[re.Pattern[str], dict[str, Route]], ...] = (  # groups are names and ids
    (re.compile("/stats"), {"GET": Route.STATS}),
    (re.compile("/v1/models(?:/(.+))?"), {"GET": Route.MODELS}),
    (re.compile("/v1/responses"), {"POST": Route.RESPOND}),
    (re.compile("/v1/responses/input_tokens"), {"POST": Route.COUNT}),
    (re.compile("/v1/responses/compact"), {"POST": Route.COMPACT}),
    (re.compile("/v1/responses/([^/]+)"), {"GET": Route.RETRIEVE, "DELETE": Route.DELETE}),
    (re.compile("/v1/responses/([^/]+)/input_items"), {"GET": Route.INPUT_ITEMS}),
    (re.compile("/v1/responses/([^/]+)/cancel"), {"POST": Route.CANCEL}),
)


@asynccontextmanager
async def serve(
    settings: SimulatorSettings, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """The base URL, ending in `/v1`, of a server that lives as long as the context does.

    Port 0 picks a free one. It runs in the caller's event loop; leaving drops what is in flight.
    Raises `OSError` where the port is taken.
    """
    if not settings.accepts:
        with _never_accepting(host, port) as address:
            yield address
        return
    service = Service(settings)
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


def _base_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


@contextmanager
def _never_accepting(host: str, port: int) -> Iterator[str]:
    """A port where no connection is made: its queue is full, and nothing accepts from it."""
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


def find_route(method: str, path: str) -> tuple[Route, str]:
    """What is asked for, and the name or id in the path. Raises `ApiError`."""
    path = path.rstrip("/")
    for pattern, routes in _ROUTES:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        if method not in routes:
            message = (
                f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different "
                "HTTP method?)"
            )
            raise ApiError(message, code="method_not_supported", status=405)
        return routes[method], next(iter(found.groups("")), "")
    raise ApiError(f"Invalid URL ({method} {path})", status=404)


class Service:
    """One server's state, and its answers."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._state = ServerState(settings)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            route, name = find_route(request.method, request.path)
            if route is Route.RESPOND:
                return await self._respond(request)
            if route is Route.STATS:
                stats = self._state.stats
                is_by_body = request.query.get("by") == "body"
                return self._json(stats.by_body() if is_by_body else stats.totals())
            self._check_key(request)
            match route:
                case Route.MODELS:
                    return self._models(name)
                case Route.COUNT:
                    count = count_tokens(read_body(await request.content.read()))
                    return self._json({"object": "response.input_tokens", "input_tokens": count})
                case Route.COMPACT:
                    return self._compact(read_body(await request.content.read()))
                case Route.DELETE:
                    return self._json(self._state.stored.delete(name))
                case Route.INPUT_ITEMS:
                    return self._json(list_items(self._state.stored.find(name), request.query))
                case Route.CANCEL:
                    return self._cancel(self._state.stored.find(name))
            return await self._retrieve(self._state.stored.find(name), request)
        except ApiError as error:
            headers = {**self._state.request_id(), **error.headers}
            return whole_answer(error.render(), error.status, headers)

    def _json(self, value: object) -> web.Response:
        body = faults.encode(value, self._state.settings.quirks)
        return whole_answer(body, headers=self._state.request_id())

    def _models(self, name: str) -> web.Response:
        known = self._state.settings.models or _MODELS
        about = {"object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
        if not name:
            models = [{"id": known_name, **about} for known_name in known]
            return self._json({"object": "list", "data": models})
        if name not in known:
            raise errors.unknown_model(name)
        return self._json({"id": name, **about})

    def _compact(self, body: RequestBody) -> web.Response:
        check_compaction(body, self._state.settings.models)
        items = input_items(body.fields.get("input"), body.key.hex())
        kept = [item for item in items if item.get("role") == "user"]
        number = self._state.stats.admitted(body.key)
        return self._json(make_compaction(body, kept, number, time.time()))

    async def _retrieve(
        self, stored: StoredResponse, request: web.BaseRequest
    ) -> web.StreamResponse:
        """A response as it is now, or its events from one on, and those still to come."""
        quirks, work = self._state.settings.quirks, stored.work
        if work is not None:
            self._state.stats.polled(work.key)
            work.polls += 1
            if Quirk.FLAKY_POLLS in quirks and work.polls % 2:
                page = errors.html_page("502 Bad Gateway")
                return whole_answer(page, 502, content_type="text/html")
            if Quirk.LOST_BACKGROUND in quirks:
                raise errors.unknown_response(stored.id)
        if not is_set(request.query, "stream"):
            return self._as_it_is(stored)
        if work is None:
            message = "This response cannot be streamed: it was not created with background=true."
            raise ApiError(message, "stream")
        first = query_number(request.query, "starting_after", -1) + 1
        is_padded = is_set(request.query, "include_obfuscation", default=True)
        response = faults.change_response(msgspec.json.decode(stored.response), quirks)
        events = render_stream(response, {"include_obfuscation": is_padded}, quirks, None)
        headers, latency_s = self._state.request_id(), work.latency_s
        return await send_events(
            request, headers, events, latency_s, quirks, work=work, first=first
        )

    def _cancel(self, stored: StoredResponse) -> web.Response:
        if stored.work is None:
            raise ApiError("Cannot cancel a synchronous response.")
        if stored.work.cancel(asyncio.get_running_loop().time()):
            self._state.stats.cancelled(stored.work.key)
        if Quirk.LOST_BACKGROUND in self._state.settings.quirks:
            raise errors.unknown_response(stored.id)
        return self._as_it_is(stored)

    def _as_it_is(self, stored: StoredResponse) -> web.Response:
        """Stored bytes are sent as they are where nothing has to be changed in them."""
        quirks, work = self._state.settings.quirks, stored.work
        status = work.status(asyncio.get_running_loop().time()) if work is not None else None
        body = stored.response
        if quirks or status is not None:
            response = faults.change_response(msgspec.json.decode(body), quirks)
            if status is not None:
                response = faults.unfinished(response, status)
            body = faults.encode(response, quirks)
        return whole_answer(body, headers=self._state.request_id())

    def _check_key(self, request: web.BaseRequest) -> None:
        if self._state.settings.api_key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise errors.refused_key(None)
        if given.strip() != self._state.settings.api_key:
            raise errors.refused_key(given.strip())

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        stats = self._state.stats
        stats.arrived(time.time())
        try:
            self._check_key(request)
            body = read_body(await request.content.read())
            stats.read(body.key)
            checked = check_request(body, self._state.settings.models)
            checked = self._state.stored.with_context(checked)
        except ApiError as error:
            stats.rejected(error.status)
            raise
        self._admit(checked)
        return await Responder(self._state, request, checked).respond()

    def _admit(self, request: CheckedRequest) -> None:
        """Raises `ApiError` where a limit refuses the request."""
        state, now_s = self._state, time.time()
        settings = state.settings
        most, quota = settings.max_in_flight, settings.quota
        if most is not None and state.stats.in_flight >= most:
            state.stats.refused("in_flight", now_s)
            raise ApiError(
                "The server is currently overloaded with other requests. Please try again later.",
                code="server_is_overloaded",
                status=503,
                type="service_unavailable_error",
            )
        if quota is not None and state.stats.completions >= quota:
            state.stats.refused("quota", now_s)
            raise errors.quota_used_up()
        reserved = state.reserved_tokens(request)
        exceeded = state.limits.admit(request.model, reserved, time.monotonic())
        if exceeded is not None:
            state.stats.refused(exceeded.name, now_s)
            error = exceeded.error(request.model, hints=settings.hints)
            error.headers |= state.limits.headers(request.model, time.monotonic())
            raise error
