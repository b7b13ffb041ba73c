"""The fallback transport: aiohttp's public session, for versions whose inner parts have changed.

Each request has a connection of its own. aiohttp's session would reuse one on which more arrived
than was asked for, and take that for the next request's answer; its public interface has no way
to see it.
"""

from collections.abc import Mapping

import aiohttp
from yarl import URL

from batchrun.transport.headers import ResponseHeaders

_MAX_HEADER_BYTES = 256 * 1024  # of one header: some gateways' are long


class SessionAnswer:
    """One answer as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response, self.status = response, response.status
        lines: dict[bytes, bytes] = {}
        for name, value in response.raw_headers:
            lines.setdefault(name, value)
        self.headers = ResponseHeaders(lines)

    def complete_body(self) -> bytes:
        """Nothing: the public interface does not say what has arrived."""
        return b""

    def at_end(self) -> bool:
        return self.response.content.at_eof()

    async def read_piece(self) -> bytes:
        """What has arrived of the body, awaited; empty at its end. Raises `ClientError`."""
        return await self.response.content.readany()


class SessionConnections:
    """Connections that carry one request each. To be made on the loop that uses them."""

    def __init__(
        self, _url: URL, headers: Mapping[str, str], proxy: URL | None, connect_timeout_s: float
    ) -> None:
        self._proxy = proxy
        self._session = aiohttp.ClientSession(
            # The gate alone counts what is in flight; the pool must not wait a second time.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, force_close=True),
            # The side that closes first keeps the port for a minute: it should be the server.
            headers={**headers, "Connection": "close"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,  # aiohttp unpacks a bomb at once
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )

    async def ask(
        self, method: str, url: URL, body: bytes | None, client_request_id: str
    ) -> SessionAnswer:
        """Sends a request; returns once the head of its answer is there."""
        try:
            response = await self._session.request(
                method,
                url,
                data=body,
                headers={"X-Client-Request-Id": client_request_id},
                allow_redirects=False,
                proxy=self._proxy,
            )
        except aiohttp.ClientHttpProxyError:
            raise
        except aiohttp.ClientResponseError as error:
            raise aiohttp.ClientPayloadError(error.message) from error
        return SessionAnswer(response)

    def drop(self, answer: SessionAnswer) -> None:
        answer.response.close()

    keep = drop

    async def close(self) -> None:
        await self._session.close()
