"""The door to an endpoint: one session, its headers, and how each request is made."""

import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from batchrun.endpoint.deadlines import DeadlineWatch
from batchrun.endpoint.plain import send_plain
from batchrun.endpoint.wire import Wire
from batchrun.job import EndpointJob
from batchrun.records import Reply, Request

_SWEEPS = 20  # a limit is overrun by at most a twentieth of it
_SLOWEST_SWEEP_S = 0.5


class Client:
    """An endpoint that requests can be sent to while it is entered."""

    via = "plain"

    def __init__(
        self, settings: EndpointJob, key: str | None, headers: Mapping[str, str], version: str
    ) -> None:
        self.base_url = settings.base_url
        self._settings = settings
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"batchrun/{version}",
        }
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._headers.update(headers)

    async def __aenter__(self) -> Self:
        settings = self._settings
        url = URL(f"{settings.base_url}/responses").update_query(settings.query)
        session = aiohttp.ClientSession(
            # The gate alone counts what is in flight; the pool must not wait a second time.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            headers=self._headers,
            # Looked up once; `trust_env` would do it, and read .netrc, for each request.
            proxy=_proxy(url),
        )
        shortest_s = min(settings.timeout_s, settings.idle_timeout_s)
        watch = DeadlineWatch(min(_SLOWEST_SWEEP_S, shortest_s / _SWEEPS))
        self._wire = Wire(session, url, settings, watch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._wire.watch.close()
        await self._wire.session.close()

    async def send(self, request: Request) -> Reply:
        """The whole answer. Raises `EndpointError`."""
        return await send_plain(self._wire, request)


def _proxy(url: URL) -> str | None:
    """The proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY, ...)."""
    host = url.host or ""
    if urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(url.scheme)
