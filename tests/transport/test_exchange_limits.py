"""Many large answers at once: what is held of them has a budget, and all come through."""

import asyncio
import random
import tracemalloc
import zlib
from contextlib import suppress

import pytest

from batchrun.errors import EndpointError, ErrorKind
from batchrun.job.sections import EndpointJob
from batchrun.records import Request
from batchrun.transport.client import Client
from batchrun.transport.exchange_limits import BufferShare, ResponseBufferBudget
from tests.waiting import HANG_S

_PIECE = 1_000
_LARGEST_READ = 512 * 1024  # bytes that one read may bring, well above what aiohttp buffers


async def _read(share: BufferShare, size: int, pieces: random.Random) -> None:
    """An answer of `size` bytes, piece by piece; some break off on the way."""
    try:
        for _ in range(size // _PIECE):
            await asyncio.sleep(0)
            if share.grow(_PIECE):
                await share.budget.wait(share)
            if pieces.random() < 0.001:
                return
    finally:
        share.release()


@pytest.mark.parametrize("seed", range(20))
async def test_no_answer_is_forgotten_and_the_budget_is_kept(seed: int) -> None:
    dice = random.Random(seed)
    budget = ResponseBufferBudget(100 * _PIECE)
    largest, readers = 150, 40
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, budget.held)
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    reading: list[asyncio.Task[None]] = []
    async with asyncio.timeout(HANG_S):
        for _ in range(200):
            while sum(not task.done() for task in reading) >= readers:
                await asyncio.sleep(0)
            size = dice.randrange(1, largest) * _PIECE
            reading.append(asyncio.create_task(_read(BufferShare(budget), size, dice)))
            if dice.random() < 0.1:
                dice.choice(reading).cancel()
        ends = await asyncio.gather(*reading, return_exceptions=True)
    watcher.cancel()
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
    assert budget.held == 0
    # One answer may go beyond it, and each reader has a piece in its hand.
    assert most <= budget.size + (largest + readers) * _PIECE


@pytest.mark.usefixtures("transport")
async def test_large_answers_over_sockets_wait_for_the_budget_and_lose_nothing() -> None:
    size, answers = 3_000_000, 30
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size + 2}\r\n\r\n"
    )
    body = head.encode() + b'"' + b"x" * size + b'"'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"stream":false}')
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
    host, port = server.sockets[0].getsockname()[:2]
    # Answers that wait for the budget do not stall: the server is not to blame.
    job = EndpointJob(base_url=f"http://{host}:{port}/v1", idle_timeout_s=20.0)
    budget = ResponseBufferBudget(4_000_000)
    most = 0
    async with (
        server,
        asyncio.timeout(HANG_S),
        Client(job, None, {}, "test", budget=budget) as client,
    ):

        async def send(number: int) -> int:
            nonlocal most
            request = Request(
                number, str(number), "file", b'{"input":"x"}', "0" * 16, "m", None, ()
            )
            reply = await client.send(request, str(number), 3600.0)
            most = max(most, budget.held)
            return len(reply.body)

        assert await asyncio.gather(*map(send, range(answers))) == [size + 2] * answers
    assert budget.held == 0
    assert budget.size < most <= budget.size + size + answers * _LARGEST_READ


@pytest.mark.usefixtures("transport")
async def test_time_spent_waiting_for_the_budget_ends_no_answer() -> None:
    size = 2_000_000
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"stream":false}')
        writer.write(head.encode() + b"x" * size)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    job = EndpointJob(base_url=f"http://{host}:{port}/v1", idle_timeout_s=0.2, timeout_s=0.5)
    request = Request(1, "1", "file", b'{"input":"x"}', "0" * 16, "m", None, ())
    budget = ResponseBufferBudget(1_000_000)
    first = BufferShare(budget)
    assert first.grow(budget.size + 1)
    await first.budget.wait(first)  # reads on, beyond the budget
    async with (
        server,
        asyncio.timeout(HANG_S),
        Client(job, None, {}, "test", budget=budget) as client,
    ):
        waiting = asyncio.create_task(client.send(request, "1", 3600.0))
        await asyncio.sleep(1.2)
        assert not waiting.done()
        first.release()
        assert len((await waiting).body) == size


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_bomb_ends_at_the_limit_and_does_not_fill_memory(encoding: str) -> None:
    """200 kB on the wire, 200 MB unpacked; what is held of it is counted after unpacking."""
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: {encoding}\r\nContent-Length: {len(bomb)}\r\n\r\n"
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"stream":false}')
        writer.write(head.encode() + bomb)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    job = EndpointJob(base_url=f"http://{host}:{port}/v1", max_response_bytes=1_000_000)
    request = Request(1, "1", "file", b'{"input":"x"}', "0" * 16, "m", None, ())
    tracemalloc.start()
    try:
        async with server, asyncio.timeout(HANG_S), Client(job, None, {}, "test") as client:
            with pytest.raises(EndpointError) as caught:
                await client.send(request, "1", 3600.0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.kind is ErrorKind.TOO_LARGE
    assert most < 50_000_000
