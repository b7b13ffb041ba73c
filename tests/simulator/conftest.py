"""Real servers and real clients for the tests of the simulator."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from tests.waiting import HANG_S

Start = Callable[..., Awaitable[str]]
Stats = Callable[[str], Awaitable[dict[str, Any]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers that end with the test; they answer at once unless set otherwise."""
    async with AsyncExitStack() as stack:

        async def start_one(**settings: Any) -> str:
            behavior = SimulatorSettings(**{"latency_s": 0.0, **settings})
            return await stack.enter_async_context(serve(behavior))

        yield start_one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


@pytest.fixture
async def sdk() -> AsyncIterator[Callable[[str], AsyncOpenAI]]:
    """The API's own client, written by others; it never retries here."""
    async with AsyncExitStack() as stack:

        def make(base_url: str) -> AsyncOpenAI:
            client = AsyncOpenAI(
                base_url=base_url, api_key="made-up", max_retries=0, timeout=HANG_S
            )
            stack.push_async_callback(client.close)
            return client

        yield make


@pytest.fixture
def stats(http: aiohttp.ClientSession) -> Stats:
    async def fetch(base_url: str, by: str = "") -> dict[str, Any]:
        address = base_url.removesuffix("/v1") + "/stats" + (f"?by={by}" if by else "")
        async with http.get(address) as response:
            counts: dict[str, Any] = await response.json()
            return counts

    return fetch
