"""Connections that end, proxies that ask who is there, and errors that say where they came from."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from batchrun.errors import EndpointError, ErrorKind, RunStopped, StopCause
from batchrun.records import Failure
from tests.both_transports import only_fast

Make = Callable[..., dict[str, Any]]
Complete = Callable[..., Any]
Connect = Callable[..., AbstractAsyncContextManager[Any]]
RequestOf = Callable[..., Any]
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@only_fast
@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
@pytest.mark.parametrize("end", [{"hangs_up": 0.0}, {"hangs_up": 0.1}])
async def test_a_request_that_a_closing_connection_took_is_sent_again_and_costs_no_attempt(
    endpoint: Connect, answer: Make, request_of: RequestOf, mode: str, end: dict[str, Any]
) -> None:
    kept = {"body": answer(), "keep": True}
    async with endpoint([kept, end, {"body": answer()}], mode=mode) as connected:
        for _ in range(2):
            outcome = await connected.outcome(request_of())
            assert outcome.ok
            (attempt,) = outcome.attempts
            assert attempt.error_kind is None
    assert len(connected.server.requests) == 3
    ids = [seen.headers["x-client-request-id"] for seen in connected.server.requests]
    assert ids[1] == ids[2]


@only_fast
async def test_a_closing_connection_is_replaced_once_and_a_new_one_that_closes_is_a_failure(
    endpoint: Connect, answer: Make, request_of: RequestOf
) -> None:
    script = [{"body": answer(), "keep": True}, *[{"hangs_up": 0.0}] * 3, {"body": answer()}]
    async with endpoint(script) as connected:
        await connected.outcome(request_of())
        outcome = await connected.outcome(request_of())
    assert outcome.ok
    first, second, last = outcome.attempts
    assert (first.error_kind, second.error_kind) == (ErrorKind.CONNECTION,) * 2
    assert first.cost_usd is None, "the second server may have begun"
    assert last.error_kind is None
    assert len(connected.server.requests) == 5


@only_fast
async def test_a_kept_connection_that_ends_late_or_within_an_answer_is_a_failure(
    endpoint: Connect, answer: Make, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had the request in its hands."""
    monkeypatch.setattr("batchrun.transport.connections._CLOSING_S", 0.1)
    kept = {"body": answer(), "keep": True}
    for end in ({"hangs_up": 0.5}, {"raw": [b'{"id":'], "headers": {"Content-Length": "99"}}):
        async with endpoint([kept, end, {"body": answer()}]) as connected:
            await connected.outcome(request_of())
            outcome = await connected.outcome(request_of())
        assert outcome.ok
        assert len(outcome.attempts) == 2
        assert outcome.attempts[0].cost_usd is None


@only_fast
async def test_a_server_that_dies_under_a_kept_connection_is_a_failure_of_unknown_cost(
    endpoint: Connect, answer: Make, request_of: RequestOf
) -> None:
    script = [{"body": answer(), "keep": True}, {"hangs_up": 0.0}]
    async with endpoint(script, retry=None) as connected:
        await connected.outcome(request_of())
        real = connected._client._wire.connections._open

        async def refused() -> Any:
            raise ConnectionRefusedError

        connected._client._wire.connections._open = refused
        with pytest.raises(EndpointError, match="ServerDisconnected") as caught:
            await connected.send(request_of())
        connected._client._wire.connections._open = real
    assert caught.value.was_sent


@pytest.mark.usefixtures("transport")
async def test_a_moment_in_retry_after_is_waited_for(complete: Complete, answer: Make) -> None:
    moment = int(time.time()) + 2
    refused = {"status": 429, "body": {}, "headers": {"Retry-After": str(moment)}}
    outcome = await complete([refused, {"body": answer()}])
    assert outcome.ok
    assert len(outcome.attempts) == 2
    assert outcome.attempts[1].started_at >= moment * 1_000_000 - 50_000


@pytest.fixture
def through_proxy(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends what is not for loopback to a proxy at this port."""
    for name in (*_PROXIES, *(name.upper() for name in _PROXIES)):
        monkeypatch.delenv(name, raising=False)

    def set_port(port: int) -> None:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")

    return set_port


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
async def test_a_proxy_that_asks_for_a_password_stops_the_run(
    serve: Connect,
    endpoint: Connect,
    request_of: RequestOf,
    through_proxy: Callable[[int], None],
    scheme: str,
    mode: str,
) -> None:
    refusal = {"status": 407, "raw": [b"who?"], "headers": {"Content-Length": "4"}, "type": None}
    async with serve([refusal]) as proxy:
        through_proxy(proxy.port)
        base_url = f"{scheme}://api.example.invalid/v1"
        async with endpoint([], base_url=base_url, mode=mode) as connected:
            with pytest.raises(RunStopped, match="HTTPS_PROXY=http://NAME:PASSWORD@") as stopped:
                await connected.outcome(request_of())
    assert stopped.value.cause is StopCause.ENDPOINT
    assert "HTTP 407" in str(stopped.value)
    assert len(proxy.requests) == 1


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
async def test_a_404_shows_the_url_that_was_asked(
    endpoint: Connect, answer: Make, request_of: RequestOf, mode: str
) -> None:
    nowhere = {"status": 404, "body": {"detail": "Not Found"}}
    query = {"api-key": "a-secret-of-the-url"}
    async with endpoint([nowhere], mode=mode, query=query) as connected:
        url = f"{connected.server.base_url}/responses"
        with pytest.raises(RunStopped) as stopped:
            await connected.outcome(request_of())
    assert f"Not Found (POST {url}) (HTTP 404)" in str(stopped.value)
    assert "--base-url" in str(stopped.value)
    async with endpoint([{"body": answer()}, nowhere], mode=mode) as connected:
        connected.dispatcher.no_more_rows = True
        await connected.outcome(request_of())
        outcome = await connected.outcome(request_of())
    assert isinstance(outcome.result, Failure)
    assert outcome.result.message == f"Not Found (POST {connected.server.base_url}/responses)"


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    ("key", "headers", "is_sent"),
    [
        (None, {}, False),
        (None, {"X-Team": "ours"}, False),
        ("k-1", {}, True),
        (None, {"api-key": "ours"}, True),
        (None, {"Authorization": "ours"}, True),
    ],
)
async def test_a_401_without_a_key_says_that_none_was_sent(
    endpoint: Connect, request_of: RequestOf, key: str | None, headers: Any, is_sent: bool
) -> None:
    refused = {"status": 401, "body": {"error": {"message": "Unauthorized"}}}
    async with endpoint([refused], key=key, headers=headers) as connected:
        with pytest.raises(RunStopped) as stopped:
            async with asyncio.timeout(60):
                await connected.outcome(request_of())
    assert ("no key was sent" in str(stopped.value)) is not is_sent
    assert ("--api-key-env" in str(stopped.value)) is not is_sent
