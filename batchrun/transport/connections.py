"""Kept connections to one endpoint: aiohttp's pool, with its TLS, proxies and many addresses.

Requests do not go through aiohttp's session. What that does for each of them (headers merged and
written anew, cookies, redirects, a task that writes) is the same for all or not wanted here, and
takes more than half of an exchange's CPU, 45 of 73 µs where it was measured alone.
"""

import asyncio
from collections.abc import Mapping
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from batchrun.job.sections import LimitsJob
from batchrun.transport.answer_reader import AnswerReader

AUTO_IN_FLIGHT = 1_000  # the most that `--concurrency auto` goes up to
_KEPT = 64  # descriptors for files, the terminal, the event loop


def fit_in_flight(limits: LimitsJob, *, here: bool = False) -> tuple[int, str | None]:
    """Requests that may be in flight, and a warning where that is less than asked for.

    `here`: the server is in this process too. The limit on open files is raised where it may be.
    """
    asked = limits.concurrency
    wanted = AUTO_IN_FLIGHT if isinstance(asked, str) else asked
    allowed = _allow_connections(wanted, each=2 if here else 1)
    if isinstance(asked, str) or allowed == wanted:
        return allowed, None
    return allowed, (
        f"the limit on open files allows {allowed:,} requests in flight, not {wanted:,}; raise it "
        "with ulimit -n"
    )


def _allow_connections(wanted: int, *, each: int) -> int:
    """As many of the `wanted` as the system allows; `each` takes so many descriptors."""
    try:
        import resource  # noqa: PLC0415 - Windows has no such limit
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * each + _KEPT
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):  # refused: the limit stays as it is
        most = soft
    return max(1, min(wanted, (most - _KEPT) // each))


_KEPT_S = 15.0  # a connection that was idle for longer may be gone without a word
_COPIED_BYTES = 64 * 1024  # of a body: below it, one piece is quicker than two
# What each request says for itself.
_OWN = ("content-length", "transfer-encoding", "x-client-request-id")


class Connections:
    """Connections that carry one request at a time each. To be made on the loop that uses them."""

    def __init__(
        self, url: URL, headers: Mapping[str, str], proxy: str | None, connect_timeout_s: float
    ) -> None:
        # The gate alone counts what is in flight; the pool must not wait a second time.
        self._connector = _Connector(limit=0, ttl_dns_cache=300)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        # What the pool wants to know of a request is the same for all of them. A proxy is told
        # none of the headers: the key is not for it.
        self._any = aiohttp.ClientRequest(
            "POST",
            url,
            headers=headers,
            proxy=None if proxy is None else URL(proxy),
            loop=asyncio.get_running_loop(),
        )
        # Kept here, not by the pool: the last one used is the first to be used again, while it is
        # still in the processor's caches, and 3 µs of an exchange are saved.
        self._idle: list[AnswerReader] = []
        self._now_s = asyncio.get_running_loop().time
        self._headers = ""
        self._tells_proxy = proxy is not None and not self._any.is_ssl()

    def idle(self) -> AnswerReader | None:
        """A kept connection for one request; null where there is none."""
        while self._idle:
            reader = self._idle.pop()
            if self._now_s() - reader.idle_since_s <= _KEPT_S and reader.is_connected():
                return reader
            self.drop(reader)
        return None

    async def open(self) -> AnswerReader:
        """A new connection for one request: to be kept after its whole answer, else dropped.

        Raises `aiohttp.ClientError`, `TimeoutError` and `OSError` where there is none.
        """
        connection = await self._connector.connect(self._any, [], self._timeout)
        made = connection.protocol
        assert isinstance(made, AnswerReader)  # noqa: S101 - the pool's, made a moment ago
        made.connection = connection
        return made

    def keep(self, reader: AnswerReader) -> None:
        """For the next request, where the answer leaves it fit for one."""
        if reader.should_close:
            self.drop(reader)
        else:
            reader.idle_since_s = self._now_s()
            self._idle.append(reader)

    def drop(self, reader: AnswerReader) -> None:
        """Closed, not kept."""
        if reader.connection is not None:
            reader.connection.close()

    def send(
        self,
        reader: AnswerReader,
        method: str,
        url: URL,
        body: bytes | None,
        client_request_id: str,
    ) -> asyncio.Future[None]:
        """Head and body at once; `reader` has the answer when this is done, as `ask` says."""
        # Not before the first connection: with it the pool adds what a proxy wants to see.
        self._headers = self._headers or _lines(self._any.headers)
        target = str(url) if self._tells_proxy else url.raw_path_qs
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = (
            f"{method} {target} HTTP/1.1\r\n{self._headers}"
            f"X-Client-Request-Id: {client_request_id}\r\n{length}\r\n"
        )
        if body is None or len(body) <= _COPIED_BYTES:
            return reader.ask(head.encode() + (body or b""))
        return reader.ask(head.encode(), body)

    async def close(self) -> None:
        for reader in self._idle:
            self.drop(reader)
        self._idle.clear()
        await self._connector.close()


class _Connector(aiohttp.TCPConnector):
    """aiohttp's pool, of connections whose answers are read here."""

    def __init__(self, *, limit: int, ttl_dns_cache: int) -> None:
        super().__init__(limit=limit, ttl_dns_cache=ttl_dns_cache)
        self._factory = partial(_reader, self._loop)


def _reader(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return AnswerReader(loop)


def _lines(headers: Mapping[str, str]) -> str:
    """As they go out. What they may hold was seen to where the job was read."""
    named = ((name, value) for name, value in headers.items() if name.lower() not in _OWN)
    return "".join(f"{name}: {value}\r\n" for name, value in named)
