"""The wire against servers that misbehave: raw sockets that say exactly what a test wants."""

import asyncio
import contextlib
import socket

import pytest

from batchrun.errors import EndpointError, ErrorKind
from batchrun.job.sections import EndpointJob
from batchrun.transport.client import Client
from tests.transport.raw_server import OK, REQUEST, failure, says, send, serving
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")


async def test_an_answer_comes_back_whole_with_the_headers_that_matter() -> None:
    head = OK + b"X-Request-Id: req_1\r\nRetry-After: 1.5\r\nContent-Length: 6\r\n\r\n"
    async with serving(says(head, b'{"a":', b"1")) as base_url:
        reply = await send(base_url)
    assert (reply.http_status, reply.body) == (200, b'{"a":1')
    assert (reply.request_id, reply.retry_after_s) == ("req_1", 1.5)


async def test_what_a_server_says_before_its_answer_is_passed_over() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2
    async with serving(says(hints, OK + b"Content-Length: 2\r\n\r\n{}")) as base_url:
        reply = await send(base_url)
    assert (reply.http_status, reply.body) == (200, b"{}")


async def test_a_connection_carries_one_request_after_the_other(transport: str) -> None:
    ports = []

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            ports.append(writer.get_extra_info("peername")[1])
            writer.write(OK + b"Content-Length: 2\r\n\r\n{}")
            await reader.readuntil(b'"stream":false}')  # the next one

    async with serving(twice) as base_url:
        async with Client(EndpointJob(base_url=base_url), None, {}, "test") as client:
            async with asyncio.timeout(HANG_S):
                for _ in range(2):
                    assert (await client.send(REQUEST, "id", 60)).body == b"{}"
    assert len(ports) == 2
    assert len(set(ports)) == (1 if transport == "fast" else 2)  # the fallback keeps none


async def test_a_server_that_never_sends_headers_ends_at_the_time_for_one_attempt() -> None:
    error = await failure(says(then_waits=True), timeout_s=0.3)
    assert error.kind is ErrorKind.TIMEOUT
    assert "endpoint.timeout_s" in str(error)


async def test_a_server_that_never_sends_the_body_ends_at_the_time_for_one_attempt() -> None:
    head = OK + b"Content-Length: 100\r\n\r\n"
    error = await failure(says(head, then_waits=True), timeout_s=0.3, idle_timeout_s=0.1)
    assert (error.kind, error.http_status) == (ErrorKind.TIMEOUT, 200)
    assert "endpoint.timeout_s" in str(error)


async def test_a_server_that_stops_within_a_chunk_ends_at_the_idle_time() -> None:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    error = await failure(says(head, b"ff\r\n{", then_waits=True), idle_timeout_s=0.3)
    assert error.kind is ErrorKind.TIMEOUT


async def test_a_body_that_trickles_for_ever_ends_at_the_time_for_one_attempt() -> None:
    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\n \r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    error = await failure(trickle, timeout_s=0.5, idle_timeout_s=20)
    assert error.kind is ErrorKind.TIMEOUT
    assert "not complete" in str(error)


async def test_an_address_that_never_answers_the_connection_ends_at_the_connect_time() -> None:
    # A listening socket whose queue is full leaves further connections without an answer.
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        for _ in range(8):
            filler = fillers.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex((host, port))
        with pytest.raises(EndpointError) as caught:
            await send(f"http://{host}:{port}/v1", connect_timeout_s=0.3)
    assert caught.value.kind is ErrorKind.CONNECTION
    assert "endpoint.connect_timeout_s" in str(caught.value)


async def test_a_refused_connection_is_a_connection_error() -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    server.close()
    await server.wait_closed()
    with pytest.raises(EndpointError) as caught:
        await send(f"http://{host}:{port}/v1")
    assert caught.value.kind is ErrorKind.CONNECTION
    assert str(caught.value).startswith(f"cannot connect to {host}:{port}: Connection refused")


async def test_a_reset_before_the_answer_is_a_connection_error() -> None:
    assert (await failure(says())).kind is ErrorKind.CONNECTION


@pytest.mark.parametrize(
    "pieces",
    [
        (OK + b"Content-Length: 100\r\n\r\n", b'{"id":'),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"6\r\n{"),
    ],
)
async def test_a_body_that_breaks_off_is_cut(pieces: tuple[bytes, ...]) -> None:
    error = await failure(says(*pieces))
    assert (error.kind, error.http_status) == (ErrorKind.CUT, 200)


async def test_an_answer_that_is_no_http_is_a_connection_error() -> None:
    assert (await failure(says(b"SSH-2.0-x\r\n\r\n"))).kind is ErrorKind.CONNECTION


async def test_an_answer_above_the_limit_ends_the_attempt() -> None:
    head = OK + b"Content-Length: 1000\r\n\r\n"
    error = await failure(says(head, b" " * 1000), max_response_bytes=999)
    assert error.kind is ErrorKind.TOO_LARGE
    assert "endpoint.max_response_bytes" in str(error)


async def test_a_redirect_is_not_followed() -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\nContent-Length: 0\r\n\r\n"
    async with serving(says(head)) as base_url:
        assert (await send(base_url)).http_status == 302


async def test_the_key_and_extra_headers_go_along_and_the_query_too() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        seen.append(await reader.readuntil(b"}"))
        writer.write(OK + b"Content-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    job = EndpointJob(base_url=f"http://{host}:{port}/v1", query={"api-version": "2026"})
    async with Client(job, "k-1", {"X-Team": "blue"}, "test") as client:
        await client.send(REQUEST, "id-1", 3600.0)
    server.close()
    head = seen[0].decode()
    assert head.startswith("POST /v1/responses?api-version=2026 HTTP/1.1")
    assert "Authorization: Bearer k-1" in head
    assert "X-Team: blue" in head
    assert seen[1] == b'{"model":"m","input":"x","stream":false}'


async def test_a_cancelled_send_is_cancelled_and_no_time_out() -> None:
    async with serving(says(then_waits=True)) as base_url:
        task = asyncio.create_task(send(base_url, timeout_s=20))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
