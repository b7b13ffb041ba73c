"""A server of raw sockets that says exactly what a test wants, and requests sent to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from batchrun.errors import EndpointError
from batchrun.job.sections import EndpointJob
from batchrun.records import Reply, Request
from batchrun.transport.client import Client
from tests.raw_sockets import Answer, listening
from tests.waiting import HANG_S

REQUEST = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """The base URL of a server that answers once the first request is read."""

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b'"stream":false}')
        await answer(reader, writer)

    async with listening(asked) as port:
        yield f"http://127.0.0.1:{port}/v1"


async def send(base_url: str, **settings: float) -> Reply:
    job = EndpointJob(base_url=base_url, **settings)  # type: ignore[arg-type]
    async with asyncio.timeout(HANG_S), Client(job, None, {}, "test") as client:
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
