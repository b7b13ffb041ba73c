"""The simulated server: a port that listens, the routes, and what admits each request.

Paths: `POST /v1/responses`, `GET /v1/responses/ID` and `POST /v1/responses/ID/cancel` for what was
begun in background, `POST /v1/responses/input_tokens`, `GET /v1/models` and `/v1/models/NAME`,
`GET /stats` (`?by=body` for the table of bodies). A client that hangs up is no longer in flight;
the answer made for it still counts when it would have been ready.
"""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum

from aiohttp import web

from batchrun.simulator import errors, faults
from batchrun.simulator.attempts import Responder, ServerState, whole_answer
from batchrun.simulator.errors import ApiError
from batchrun.simulator.requests import CheckedRequest, check_request, count_tokens, read_body
from batchrun.simulator.settings import Quirk, SimulatorSettings

_SHUTDOWN_S = 0.1
_MODELS = ("gpt-4.1", "gpt-4.1-mini", "gpt-5", "o4-mini")  # listed where any name is accepted


class Route(StrEnum):
    """What a request can be for."""

    STATS = "stats"
    MODELS = "models"  # the list, or one by its name
    RESPOND = "respond"
    COUNT = "count"
    RETRIEVE = "retrieve"  # a background response
    CANCEL = "cancel"


_ROUTES = (  # the first that matches; groups are names and ids
    ("GET", re.compile("/stats"), Route.STATS),
    ("GET", re.compile("/v1/models(?:/(.+))?"), Route.MODELS),
    ("POST", re.compile("/v1/responses"), Route.RESPOND),
    ("POST", re.compile("/v1/responses/input_tokens"), Route.COUNT),
    ("GET", re.compile("/v1/responses/([^/]+)"), Route.RETRIEVE),
    ("POST", re.compile("/v1/responses/([^/]+)/cancel"), Route.CANCEL),
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
    for allowed, pattern, route in _ROUTES:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        if method != allowed:
            message = (
                f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different "
                "HTTP method?)"
            )
            raise ApiError(message, code="method_not_supported", status=405)
        return route, next(iter(found.groups("")), "")
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
            if route is Route.MODELS:
                return self._models(name)
            if route is Route.COUNT:
                count = count_tokens(read_body(await request.content.read()))
                return self._json({"object": "response.input_tokens", "input_tokens": count})
            return self._stored(name, cancels=route is Route.CANCEL)
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

    def _stored(self, id_: str, *, cancels: bool) -> web.Response:
        """A background response as it is now, or as it is after being cancelled."""
        found, stats = self._state.background.get(id_), self._state.stats
        if found is None:
            raise errors.unknown_response(id_)
        now_s = asyncio.get_running_loop().time()
        quirks = self._state.settings.quirks
        if cancels:
            if found.cancel(now_s):
                stats.cancelled(found.key)
        else:
            stats.polled(found.key)
            found.polls += 1
            if Quirk.FLAKY_POLLS in quirks and found.polls % 2:
                page = errors.html_page("502 Bad Gateway")
                return whole_answer(page, 502, content_type="text/html")
        if Quirk.LOST_BACKGROUND in quirks:
            raise errors.unknown_response(id_)
        return self._json(found.at(now_s))

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
