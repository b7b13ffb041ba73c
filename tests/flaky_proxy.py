"""A proxy on loopback between clients and a server that stalls, cuts and refuses as it is told."""

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.raw_sockets import http_answer, listening, reset
from tests.waiting import HANG_S

_NUMBER = re.compile(r"\d+")  # the first in the text of a row tells it from the others


class Way(Enum):
    """What becomes of a request; the late ones end amid the answer, which the server has made."""

    ANSWER = "it is answered"
    STALL = "nothing comes any more"
    STALL_LATE = "nothing more comes"
    RESET = "the connection is reset"
    RESET_LATE = "the connection is reset amid the answer"
    HALF_CLOSE = "the proxy sends no more, and goes on reading"
    HALF_CLOSE_LATE = "the same amid the answer"
    RATE_LIMIT = "429"
    UNAVAILABLE = "503"
    NOT_FOUND = "404"
    KEY = "401"


LATE = (Way.STALL_LATE, Way.RESET_LATE, Way.HALF_CLOSE_LATE)


def _refusal(status: int, message: str, code: str) -> bytes:
    return http_answer(status, json.dumps({"error": {"message": message, "code": code}}).encode())


_REFUSALS = {
    Way.RATE_LIMIT: _refusal(429, "too many requests", "rate_limit_exceeded").replace(
        b"\r\n\r\n", b"\r\nretry-after-ms: 150\r\n\r\n", 1
    ),
    Way.UNAVAILABLE: _refusal(503, "no server is ready", "unavailable"),
    Way.NOT_FOUND: _refusal(404, "there is no such prompt", "not_found"),
    Way.KEY: _refusal(401, "this key was revoked this morning", "invalid_api_key"),
}


class Asked(NamedTuple):
    """A request that has arrived."""

    row: int
    attempt: int  # of the row, from 0
    client: str  # the process that sends it
    nth: int  # of that process, from 0


class FlakyProxy:
    """Counts what became of the requests of each row."""

    def __init__(self, upstream: str, say: Callable[[Asked], Way]) -> None:
        self._say = say
        place = urlsplit(upstream)
        self._upstream = place.hostname, place.port
        self._open: set[asyncio.StreamWriter] = set()
        self._is_down = False
        self.base_url = ""
        self.asked, self.of_clients = Counter[int](), Counter[str]()
        self.ways = Counter[Way]()
        self.forwarded = Counter[int]()  # by row: requests that the server saw
        self.lost = Counter[int]()  # of them, those whose answer did not arrive
        self.answered = 0  # requests whose answer went out whole

    def cut(self, lasts_s: float) -> None:
        """All connections are reset, and new ones too, for a while; to be called by `say`."""
        self._is_down = True
        loop = asyncio.get_running_loop()
        loop.call_later(lasts_s, setattr, self, "_is_down", False)  # noqa: FBT003
        for one in list(self._open):
            _reset(one)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        if self._is_down:
            _reset(writer)
            return
        self._open.add(writer)
        try:
            while await self._pass_on(reader, writer):
                pass
        finally:
            self._open.discard(writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether another may follow on this connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_length(head))
        asked = self._note(head, body)
        way = self._say(asked)
        self.ways[way] += 1
        if self._is_down:
            _reset(writer)
            return False
        if way in _REFUSALS:
            writer.write(_REFUSALS[way])
            await writer.drain()
            return True
        data = b""
        if way is Way.ANSWER or way in LATE:
            answer = await self._forward(reader, asked.row, head + body)
            if answer is None or self._is_down:
                self.lost[asked.row] += 1
                return False
            data = answer if way is Way.ANSWER else answer[: len(answer) // 2]
        self.lost[asked.row] += way in LATE
        writer.write(data)
        await writer.drain()
        if way is Way.ANSWER:
            self.answered += 1
            return True
        if way in (Way.RESET, Way.RESET_LATE):
            await asyncio.sleep(0.02 if data else 0)  # a reset overtakes what was just written
            _reset(writer)
            return False
        if way in (Way.HALF_CLOSE, Way.HALF_CLOSE_LATE):
            writer.write_eof()
        await reader.read()  # until the client gives up
        return False

    def _note(self, head: bytes, body: bytes) -> Asked:
        text = json.loads(body)["input"]
        found = _NUMBER.search(text)
        assert found is not None, text
        row = int(found[0])
        name = re.search(rb"(?i)x-client-request-id: ([^\r]*)-", head)
        assert name is not None, head
        client = name[1].decode()
        asked = Asked(row, self.asked[row], client, self.of_clients[client])
        self.asked[row] += 1
        self.of_clients[client] += 1
        return asked

    async def _forward(
        self, reader: asyncio.StreamReader, row: int, request: bytes
    ) -> bytes | None:
        """The server's answer; null where the client has hung up meanwhile."""
        self.forwarded[row] += 1
        from_server, to_server = await asyncio.open_connection(*self._upstream)
        try:
            to_server.write(request)
            answering = asyncio.create_task(_whole(from_server))
            leaving = asyncio.create_task(_end_of(reader))
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                answering.cancel()
                await asyncio.wait((answering,))
                return None
            leaving.cancel()
            await asyncio.wait((leaving,))
            return await answering
        finally:
            to_server.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # it is closed
        reset(writer)


async def _end_of(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        await reader.read(1)


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)


async def _whole(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(_length(head))


@contextmanager
def flaky_proxy(upstream: str, say: Callable[[Asked, FlakyProxy], Way]) -> Iterator[FlakyProxy]:
    """Listens in a thread; `upstream`: the base URL of the server behind it."""
    proxy = FlakyProxy(upstream, lambda asked: say(asked, proxy))
    loop, ready, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with listening(proxy.answer) as port:
            proxy.base_url = f"http://127.0.0.1:{port}/v1"
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(HANG_S)
    try:
        yield proxy
    finally:
        with suppress(RuntimeError):  # it has failed, and its thread has ended
            loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
