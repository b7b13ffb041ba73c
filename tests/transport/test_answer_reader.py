"""Answers off a kept connection: each way of framing, packing and ending them, byte by byte."""

import asyncio
import random
import zlib
from inspect import signature
from itertools import pairwise

import pytest
from aiohttp import ClientSession

from batchrun.errors import ErrorKind
from batchrun.job.sections import EndpointJob
from batchrun.records import Reply
from batchrun.transport.client import Client
from tests.raw_sockets import Answer, listening
from tests.transport.raw_server import OK, REQUEST, failure, says, send, serving
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")
CLOSED = b"Connection: close\r\n\r\n"


def _sized(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return OK + lines + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def _packed(body: bytes, window: int) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(body) + packer.flush()


async def _send_all(answer: Answer, requests: int) -> list[Reply]:
    """One after the other, so that a connection that may be kept is used again."""
    async with serving(answer) as base_url, asyncio.timeout(HANG_S):
        async with Client(EndpointJob(base_url=base_url), None, {}, "test") as client:
            replies = []
            for _ in range(requests):
                replies.append(await client.send(REQUEST, "id", 60))
                await _pause()  # for what nobody asked for
            return replies


async def _pause() -> None:
    """What was written is read meanwhile, however late this process gets its turns."""
    for _ in range(5):
        await asyncio.sleep(0.005)


def _conversation(*answers: tuple[bytes, ...]) -> Answer:
    """On each connection the answers that are left, in pieces that arrive apart."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            for piece in left.pop(0):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.002)
            await reader.readuntil(b'"stream":false}')  # the next one

    return answer


def _at_once(transport: str, *pieces: bytes) -> Answer:
    """An answer that arrives whole; for the fallback apart.

    aiohttp's parser drops what came before a broken frame in the same read.
    """

    async def apart(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await _pause()

    return says(b"".join(pieces)) if transport == "fast" else apart


def _framed(body: bytes, dice: random.Random) -> bytes:
    """A whole answer on a connection that is kept."""
    coding = dice.choice([None, b"gzip", b"deflate", b"bare"])
    window = {None: 0, b"gzip": 31, b"deflate": 15, b"bare": -15}[coding]
    sent = _packed(body, window) if coding else body
    lines = [b"X-Request-Id: of %d" % len(body)]
    if coding:
        lines.append(b"Content-Encoding: " + (b"deflate" if coding == b"bare" else coding))
    if dice.random() < 0.5:
        return _sized(sent, *lines)
    head = OK + b"".join(line + b"\r\n" for line in lines) + b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b""
    while sent:
        size = dice.randrange(1, len(sent) + 1)
        chunks += b"%x;an=extension\r\n%b\r\n" % (size, sent[:size])
        sent = sent[size:]
    return head + chunks + b"0\r\nX-Request-Id: of nobody\r\n\r\n"


@pytest.mark.parametrize("seed", range(8))
async def test_answers_in_any_frame_and_any_pieces_come_whole_one_after_the_other(
    seed: int,
) -> None:
    dice = random.Random(seed)
    bodies = [b'"%b"' % dice.randbytes(dice.choice([0, 5, 3000])).hex().encode() for _ in range(12)]
    answers = []
    for body in bodies:
        whole = _framed(body, dice)
        cuts = sorted(dice.randrange(len(whole)) for _ in range(dice.randrange(6)))
        edges = [0, *cuts, len(whole)]
        answers.append(tuple(whole[a:b] for a, b in pairwise(edges)))
    replies = await _send_all(_conversation(*answers), len(bodies))
    assert [reply.body for reply in replies] == bodies
    assert [reply.request_id for reply in replies] == [f"of {len(body)}" for body in bodies]


async def test_a_body_without_a_size_ends_with_its_connection() -> None:
    reply = await _send_all(says(OK + b"\r\n", b'{"a":', b"1}"), 2)
    assert [one.body for one in reply] == [b'{"a":1}'] * 2


async def test_a_server_that_closes_after_each_answer_gets_a_new_connection() -> None:
    reply = await _send_all(says(OK + b"Content-Length: 2\r\n" + CLOSED + b"{}"), 3)
    assert [one.body for one in reply] == [b"{}"] * 3


async def test_a_connection_that_was_closed_while_nobody_used_it_is_replaced() -> None:
    reply = await _send_all(says(_sized(b"{}")), 3)
    assert [one.body for one in reply] == [b"{}"] * 3


@pytest.mark.parametrize(("idle_s", "connections"), [(15.0, 1), (0.0, 3)])
async def test_a_connection_that_was_idle_for_long_is_replaced(
    idle_s: float, connections: int, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.transport.connections._MAX_IDLE_S", idle_s)
    ports = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        while True:
            writer.write(_sized(b"{}"))
            await reader.readuntil(b'"stream":false}')

    await _send_all(answer, 3)
    assert len(ports) == (connections if transport == "fast" else 3)  # the fallback keeps none


@pytest.mark.parametrize("is_at_once", [True, False])
async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next(
    is_at_once: bool,
) -> None:
    first, stale, second = _sized(b"1"), _sized(b"666"), _sized(b"2")
    pieces = (first + stale,) if is_at_once else (first, stale)
    replies = await _send_all(_conversation(pieces, (second,)), 2)
    assert [reply.body for reply in replies] == [b"1", b"2"]


async def test_the_start_of_an_answer_that_nobody_asked_for_spoils_its_connection() -> None:
    first, stale, second = _sized(b"1"), _sized(b"666"), _sized(b"2")
    answers = iter([(first + stale[:30], stale[30:]), (second, b"")])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now, after = next(answers)
        writer.write(now)
        await reader.readuntil(b'"stream":false}')  # the next one
        writer.write(after)

    replies = await _send_all(answer, 2)
    assert [reply.body for reply in replies] == [b"1", b"2"]


async def test_a_server_that_answers_before_it_is_asked_is_heard() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Full\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")
        await reader.read()

    async with listening(refuse) as port:
        reply = await send(f"http://127.0.0.1:{port}/v1")
    assert (reply.http_status, reply.retry_after_s) == (503, 7.0)


async def test_what_is_said_before_an_answer_lends_it_no_body() -> None:
    early = b"HTTP/1.1 150 Odd\r\nContent-Length: 3\r\n\r\nabc"
    replies = await _send_all(says(early + _sized(b"{}")), 1)
    assert replies[0].body == b"{}"


@pytest.mark.parametrize("transfer", [b"chunked \r\n", b"gzip\r\nTransfer-Encoding: chunked\r\n"])
async def test_a_chunked_body_is_cut_however_its_header_is_spelled(transfer: bytes) -> None:
    head = OK + b"Transfer-Encoding: " + transfer + b"\r\n"
    assert (await failure(says(head, b'5\r\n{"a":\r\n'))).kind is ErrorKind.CUT


async def test_a_frame_that_breaks_is_cut(transport: str) -> None:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = _at_once(transport, head, b'2\r\n{"\r\n', b"no chunk\r\n")
    error = await failure(answer, idle_timeout_s=0.5)
    # aiohttp's parser does not tell the reader of the body; the idle time ends it.
    kind = ErrorKind.CUT if transport == "fast" else ErrorKind.TIMEOUT
    assert (error.kind, error.http_status) == (kind, 200)


async def test_a_stream_that_has_said_all_is_whole_whatever_follows_it(transport: str) -> None:
    event = b'data: {"type":"response.completed","response":{"id":"r","object":"response"}}\n\n'
    head = OK.replace(b"application/json", b"text/event-stream")
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    answer = _at_once(transport, head, chunk, b"<html>not a chunk</html>\r\n")
    replies = await _send_all(answer, 1)
    assert replies[0].body.startswith(b'{"id":"r","object":"response"')


async def test_what_is_said_before_an_answer_lends_it_no_headers() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nX-Request-Id: early\r\n\r\n"
    replies = await _send_all(_conversation((early, early + _sized(b"{}"))), 1)
    assert [(reply.body, reply.request_id) for reply in replies] == [(b"{}", None)]


async def test_the_first_header_of_a_name_counts_in_whatever_case() -> None:
    replies = await _send_all(
        says(_sized(b"{}", b"X-REQUEST-ID: one", b"x-request-id: two", b"x-a: \xe9")), 1
    )
    assert replies[0].request_id == "one"


async def test_a_server_that_changes_to_another_protocol_has_said_its_last_word() -> None:
    head = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n"
    replies = await _send_all(says(head + b"not HTTP any more"), 2)
    assert [(reply.http_status, reply.body) for reply in replies] == [(101, b"")] * 2


async def _for_ever(writer: asyncio.StreamWriter, piece: bytes) -> None:
    while True:
        writer.write(piece)
        await writer.drain()


async def test_headers_without_end_end_the_attempt(transport: str) -> None:
    if transport == "session" and "max_headers" not in signature(ClientSession).parameters:
        pytest.skip("this aiohttp reads any number of headers")

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await _for_ever(writer, b"X-More: " + b"x" * 1000 + b"\r\n")

    error = await failure(answer)
    assert error.kind is ErrorKind.CONNECTION
    assert ("no end" if transport == "fast" else "headers") in str(error)


@pytest.mark.parametrize("start", [b"0\r\n", b'2\r\n{"\r\n0\r\nX-One: ', b"2;"])
async def test_what_never_ends_behind_or_beside_a_body_ends_the_attempt(
    start: bytes, transport: str
) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n" + start)
        await _for_ever(writer, b"x" * 1000)

    if transport == "fast":
        assert (await failure(answer)).kind is ErrorKind.CUT
    else:  # aiohttp's parser goes on, or finds that the line is too long; the time ends it
        error = await failure(answer, idle_timeout_s=0.5, timeout_s=0.5)
        assert error.kind in (ErrorKind.TIMEOUT, ErrorKind.CUT)


async def test_a_body_packed_in_several_members_is_unpacked_whole() -> None:
    members = _packed(b'{"a":', 31) + _packed(b"", 31) + _packed(b"1}", 31)
    reply = await _send_all(says(_sized(members, b"Content-Encoding: GZIP")), 1)
    assert reply[0].body == b'{"a":1}'


async def test_a_packed_body_may_be_empty() -> None:
    reply = await _send_all(says(_sized(b"", b"Content-Encoding: gzip")), 1)
    assert reply[0].body == b""


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", _packed(b'{"a":1}' * 9, 31)[:-9]),
        (b"deflate", _packed(b'{"a":1}' * 9, 15)[:-5]),
    ],
)
async def test_a_packed_body_that_breaks_off_is_cut(coding: bytes, body: bytes) -> None:
    error = await failure(says(_sized(body, b"Content-Encoding: " + coding)))
    assert (error.kind, error.http_status) == (ErrorKind.CUT, 200)
    assert "cut off" in str(error)


async def test_only_codings_that_are_understood_are_asked_for() -> None:
    seen = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b'"stream":false}')
        seen.append(head)
        writer.write(_sized(b"{}"))

    async with listening(answer) as port:
        await send(f"http://127.0.0.1:{port}/v1")
    assert b"\r\nAccept-Encoding: gzip, deflate\r\n" in seen[0]
