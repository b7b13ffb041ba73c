"""The way of a request through the server: who is let in, and who answers.

Paths: `POST /v1/responses`, `GET /v1/responses/ID` and `POST /v1/responses/ID/cancel` for what was
begun in background, `POST /v1/responses/input_tokens`, `GET /v1/models` and `/v1/models/NAME`,
`GET /stats` (`?by=body` for the table of bodies). A client that hangs up is no longer in flight;
the answer made for it still counts when it would have been ready.
"""

import asyncio
import time

from aiohttp import web

from batchrun.simulator import api_errors, bending, wire
from batchrun.simulator.api_errors import ApiError
from batchrun.simulator.attempts import Attempts
from batchrun.simulator.background import Works, stand
from batchrun.simulator.behavior import Behavior
from batchrun.simulator.faults import Drawer
from batchrun.simulator.gateway_errors import html_page
from batchrun.simulator.headers import Headers
from batchrun.simulator.kinds import Quirk
from batchrun.simulator.limits import Limits, retry_headers
from batchrun.simulator.requests import Asked, count_tokens, judge, read_body
from batchrun.simulator.routes import Route, find_route
from batchrun.simulator.stats import Stats

_MODELS = ("gpt-4.1", "gpt-4.1-mini", "gpt-5", "o4-mini")  # listed where any name will do


class Service:
    """One server's memory, and its answers."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior
        self._stats = Stats()
        self._limits = Limits(behavior)
        self._headers = Headers(behavior, self._limits)
        self._drawer = Drawer(behavior)
        self._works = Works()
        self._attempts = Attempts(behavior, self._stats, self._limits, self._headers, self._works)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            route, name = find_route(request.method, request.path)
            if route is Route.RESPOND:
                return await self._respond(request)
            if route is Route.STATS:
                return self._counts(request)
            self._check_key(request)
            if route is Route.MODELS:
                return self._models(name)
            if route is Route.COUNT:
                count = count_tokens(read_body(await request.content.read()))
                return self._json({"object": "response.input_tokens", "input_tokens": count})
            return self._stored(name, cancels=route is Route.CANCEL)
        except ApiError as error:
            return wire.answer(error.render(), error.status, self._headers.request_id())

    def _json(self, value: object) -> web.Response:
        body = bending.encode(value, self._behavior.quirks)
        return wire.answer(body, headers=self._headers.request_id())

    def _counts(self, request: web.BaseRequest) -> web.Response:
        by_body = request.query.get("by") == "body"
        return self._json(self._stats.by_body() if by_body else self._stats.totals())

    def _models(self, name: str) -> web.Response:
        known = self._behavior.models or _MODELS
        listed = [
            {"id": known_name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
            for known_name in known
        ]
        if not name:
            return self._json({"object": "list", "data": listed})
        if name not in known:
            raise api_errors.unknown_model(name)
        return self._json(listed[known.index(name)])

    def _stored(self, id_: str, *, cancels: bool) -> web.Response:
        """A background response as it stands, after it was cancelled if so asked."""
        work = self._works.find(id_)
        if work is None:
            raise api_errors.unknown_response(id_)
        now_s = asyncio.get_running_loop().time()
        quirks = self._behavior.quirks
        if cancels:
            if self._works.cancel(work, now_s):
                self._stats.cancelled(work.key)
        else:
            self._stats.polled(work.key)
            work.polls += 1
            if Quirk.FLAKY_POLLS in quirks and work.polls % 2:
                return wire.answer(html_page("502 Bad Gateway"), 502, type_="text/html")
        if Quirk.LOST_BACKGROUND in quirks:
            raise api_errors.unknown_response(id_)
        return self._json(stand(work, now_s))

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
        return await self._attempts.respond(request, asked, turn, fault)

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
        reserved = self._attempts.reserved(asked)
        refusal = self._limits.admit(asked.model, reserved, time.monotonic())
        if refusal is None:
            return None
        self._stats.refused(refusal.of, now_s)
        error = refusal.error(asked.model, hints=behavior.hints)
        headers = {**self._headers.request_id(), **self._headers.limits(asked.model)}
        if behavior.hints and refusal.wait_s is not None:
            headers |= retry_headers(refusal.wait_s)
        return wire.answer(error.render(), error.status, headers)
