"""The simulated server itself: a port that listens as long as it is wanted.

`serve` runs in the caller's event loop. What is answered is decided by `service`.
"""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from batchrun.simulator.behavior import Behavior
from batchrun.simulator.service import Service

_SHUTDOWN_S = 0.1


@asynccontextmanager
async def serve(behavior: Behavior, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The base URL, ending in `/v1`, of a server that lives as long as the context does.

    Port 0 picks a free one. Leaving drops what is in flight. Raises `OSError` where the port is
    taken.
    """
    if not behavior.accepts:
        with _deaf(host, port) as address:
            yield address
        return
    service = Service(behavior)
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
def _deaf(host: str, port: int) -> Iterator[str]:
    """A port where a connection never comes about: its queue is full, and nobody takes from it."""
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
