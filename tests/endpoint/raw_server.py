"""A server of raw sockets that says exactly what a test wants, and requests sent to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from batchrun.endpoint.client import Client
from batchrun.errors import EndpointError
from batchrun.job import EndpointJob
from batchrun.records import Reply, Request

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REQUEST = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    handlers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b'"stream":false}')
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def send(base_url: str, **settings: float) -> Reply:
    job = EndpointJob(base_url=base_url, **settings)  # type: ignore[arg-type]
    async with asyncio.timeout(30), Client(job, None, {}, "test") as client:
        return await client.send(REQUEST, "id-1", 3600.0)


async def failure(answer: Answer, **settings: float) -> EndpointError:
    async with serving(answer) as base_url:
        with pytest.raises(EndpointError) as caught:
            await send(base_url, **settings)
    return caught.value


def says(*pieces: bytes, then_waits: bool = False) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_waits:
            await asyncio.sleep(600)

    return answer
