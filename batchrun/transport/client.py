"""The entry point: an endpoint that requests can be sent to, and how many at once."""

import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from yarl import URL

from batchrun.dialects.responses import PATH, plain_body, stream_body
from batchrun.job.credentials import FROM_ENVIRONMENT
from batchrun.job.sections import EndpointJob, LimitsJob
from batchrun.records import Reply, Request
from batchrun.retry.error_kinds import NO_WORDS, OwnWords
from batchrun.transport.background import Ask, BackgroundMode, OnBegun
from batchrun.transport.decompression import ACCEPTED
from batchrun.transport.exchange import Wire, exchange
from batchrun.transport.exchange_limits import DeadlineWatch, ResponseBufferBudget
from batchrun.transport.fallback import Connect, choose_connections
from batchrun.transport.key_command import KeyCommand
from batchrun.transport.limit_headers import AdvertisedLimits
from batchrun.transport.redaction import Redactor

_SWEEPS = 20  # a limit is exceeded by at most a twentieth of it
_SLOWEST_SWEEP_S = 0.5
_PER_REQUEST = ("content-length", "transfer-encoding", "x-client-request-id")
_KEYS = ("authorization", "api-key", "x-api-key", "x-goog-api-key")
_AUTO_IN_FLIGHT = 1_000  # the most that `--concurrency auto` goes up to
_OTHER_FILES = 64  # descriptors for files, the terminal, the event loop


class Client:
    """An endpoint that requests can be sent to while it is entered.

    `on_begun` is awaited for each background response that has begun, before the first poll.
    """

    def __init__(
        self,
        settings: EndpointJob,
        key: str | None,
        headers: Mapping[str, str],
        version: str,
        on_begun: OnBegun | None = None,
        budget: ResponseBufferBudget | None = None,
        connect: Connect | None = None,
        words: OwnWords = NO_WORDS,
    ) -> None:
        """`connect`: as `choose_connections` chose it; None: chosen when it is entered.

        `key`: where a command says it, the one that it said first. `words`: of `[retry.words]`.
        """
        self.base_url = settings.base_url
        self.via = settings.mode
        self._on_begun, self._connect = on_begun, connect
        self._budget = budget or ResponseBufferBudget()
        self._settings, self._key, self._words = settings, key, words
        ours = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if settings.mode == "stream" else "application/json",
            "Accept-Encoding": ACCEPTED,
            "User-Agent": f"batchrun/{version}",
        }
        self._secrets = [
            value
            for name, value in headers.items()
            if settings.headers.get(name, "").startswith(FROM_ENVIRONMENT)
        ]
        if key is not None:
            ours["Authorization"] = f"Bearer {key}"
            self._secrets.append(key)
        given = {name.lower() for name in headers}
        self._headers = {name: value for name, value in ours.items() if name.lower() not in given}
        self._headers |= {
            name: value for name, value in headers.items() if name.lower() not in _PER_REQUEST
        }

    async def __aenter__(self) -> Self:
        settings = self._settings
        url = URL(settings.base_url + PATH).update_query(settings.query)
        proxy = None if settings.is_loopback else _proxy(url)
        connect = self._connect or (await choose_connections())[0]
        connections = connect(url, self._headers, proxy, settings.connect_timeout_s)
        shortest_s = min(settings.timeout_s, settings.idle_timeout_s)
        watch = DeadlineWatch(min(_SLOWEST_SWEEP_S, shortest_s / _SWEEPS))
        password = () if proxy is None or not proxy.password else (proxy.password,)
        redactor = Redactor((*self._secrets, *password))
        limits = AdvertisedLimits()
        sends_key = bool(self._secrets) or any(name.lower() in _KEYS for name in self._headers)
        wire = self._wire = Wire(
            connections, url, settings, watch, limits, self._budget, redactor, sends_key
        )
        self._ask: Ask = partial(exchange, wire)
        if settings.api_key_command is not None:
            self._ask = KeyCommand(wire, settings.api_key_command, self._key).ask
        self._background = BackgroundMode(self._ask, url, self._on_begun, self._words)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._wire.watch.close()
        await self._wire.connections.close()

    def send(
        self,
        request: Request,
        client_request_id: str,
        remaining_s: float,
        on_accepted: Callable[[], None] = lambda: None,
    ) -> Coroutine[Any, Any, Reply]:
        """The whole answer. Raises `EndpointError`. `remaining_s` remains of the row's time.

        `on_accepted` is called once the server works on it in background.

        Raises `RunStopped` where the key is refused and its command says none.

        No coroutine of its own: each in the chain costs at every step of an answer.
        """
        if self.via == "background" or request.resume_id is not None:
            return self._background.send(request, client_request_id, remaining_s, on_accepted)
        body = stream_body(request.body) if self.via == "stream" else plain_body(request.body)
        return self._ask("POST", self._wire.url, body, client_request_id)


def _proxy(url: URL) -> URL | None:
    """The proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY, ...).

    Looked up once: aiohttp's `trust_env` does it, and reads .netrc, for each request. Not for
    loopback, which no proxy could reach.
    """
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    proxy = urllib.request.getproxies().get(url.scheme)
    return None if proxy is None else URL(proxy)


def fit_in_flight(limits: LimitsJob, *, here: bool = False) -> tuple[int, str | None]:
    """Requests that may be in flight, and a warning where that is less than asked for.

    `here`: the server is in this process too. The limit on open files is raised where possible.
    """
    asked = limits.concurrency
    wanted = _AUTO_IN_FLIGHT if isinstance(asked, str) else asked
    allowed = _allow_connections(wanted, each=2 if here else 1)
    if isinstance(asked, str) or allowed == wanted:
        return allowed, None
    return allowed, (
        f"the limit on open files allows {allowed:,} requests in flight, not {wanted:,}; raise it "
        "with ulimit -n"
    )


def _allow_connections(wanted: int, *, each: int) -> int:
    """As many of the `wanted` as the system allows; each takes so many descriptors."""
    try:
        import resource  # noqa: PLC0415 - Windows has no such limit
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * each + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):  # refused: the limit is as before
        most = soft
    return max(1, min(wanted, (most - _OTHER_FILES) // each))
