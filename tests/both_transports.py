"""The fast transport and the fallback: tests that ask for `transport` run over both."""

import asyncio

import pytest

from batchrun.transport.fallback import Connect, SessionConnections, choose_connections

has_fast_transport = asyncio.run(choose_connections())[1] is None
only_fast = pytest.mark.skipif(not has_fast_transport, reason="this aiohttp has none")


@pytest.fixture(params=[pytest.param("fast", marks=only_fast), "session"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name; every client of the test uses it."""

    async def session() -> tuple[Connect, str | None]:
        return SessionConnections, None

    if request.param == "session":
        monkeypatch.setattr("batchrun.transport.client.choose_connections", session)
    name: str = request.param
    return name
