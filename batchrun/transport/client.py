"""The door to an endpoint: its connections, its headers, and how each request is made."""

import urllib.request
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from yarl import URL

from batchrun.job.credentials import FROM_ENVIRONMENT
from batchrun.job.sections import EndpointJob
from batchrun.records import Reply, Request
from batchrun.transport.answer_reader import ACCEPTED
from batchrun.transport.connections import Connections
from batchrun.transport.exchange import Wire
from batchrun.transport.exchange_limits import DeadlineWatch, ResponseBufferBudget
from batchrun.transport.headers import AdvertisedLimits
from batchrun.transport.modes import Sink, forget, send_background, send_plain, send_stream
from batchrun.transport.redaction import Redactor

_SWEEPS = 20  # a limit is overrun by at most a twentieth of it
_SLOWEST_SWEEP_S = 0.5


class Client:
    """An endpoint that requests can be sent to while it is entered.

    `sink` is told of each background response that has begun, before it is waited for.
    """

    def __init__(
        self,
        settings: EndpointJob,
        key: str | None,
        headers: Mapping[str, str],
        version: str,
        sink: Sink = forget,
        room: ResponseBufferBudget | None = None,
    ) -> None:
        self.base_url = settings.base_url
        self.via = settings.mode
        self._sink = sink
        self._room = room or ResponseBufferBudget()
        self._settings = settings
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if settings.mode == "stream" else "application/json",
            "Accept-Encoding": ACCEPTED,
            "User-Agent": f"batchrun/{version}",
        }
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._secrets = [*([] if key is None else [key]), *_from_environment(settings, headers)]
        given = {name.lower() for name in headers}
        for name in [name for name in self._headers if name.lower() in given]:
            del self._headers[name]
        self._headers.update(headers)

    async def __aenter__(self) -> Self:
        settings = self._settings
        url = URL(f"{settings.base_url}/responses").update_query(settings.query)
        # Looked up once; `trust_env` would do it, and read .netrc, for each request. Loopback
        # needs none, and no proxy could reach it: the embedded simulator is there.
        proxy = None if settings.is_loopback else _proxy(url)
        connections = Connections(url, self._headers, proxy, settings.connect_timeout_s)
        shortest_s = min(settings.timeout_s, settings.idle_timeout_s)
        watch = DeadlineWatch(min(_SLOWEST_SWEEP_S, shortest_s / _SWEEPS))
        secrets = self._secrets
        if proxy is not None and (password := URL(proxy).password):
            secrets = [*secrets, password]
        self._wire = Wire(
            connections, url, settings, watch, AdvertisedLimits(), self._room, Redactor(secrets)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._wire.watch.close()
        await self._wire.connections.close()

    def send(
        self, request: Request, client_request_id: str, left_s: float
    ) -> Coroutine[Any, Any, Reply]:
        """The whole answer. Raises `EndpointError`. `left_s` is what is left of the row's time.

        No coroutine of its own: each in the chain costs at every step of an answer.
        """
        if self.via == "background" or request.resume_id is not None:
            return send_background(self._wire, request, client_request_id, left_s, self._sink)
        if self.via == "stream":
            return send_stream(self._wire, request, client_request_id)
        return send_plain(self._wire, request, client_request_id)


def _from_environment(settings: EndpointJob, headers: Mapping[str, str]) -> list[str]:
    """Header values that no file may show."""
    return [
        value
        for name, value in headers.items()
        if settings.headers.get(name, "").startswith(FROM_ENVIRONMENT)
    ]


def _proxy(url: URL) -> str | None:
    """The proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY, ...)."""
    host = url.host or ""
    if urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(url.scheme)
