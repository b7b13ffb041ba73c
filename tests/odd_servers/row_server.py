"""A server on loopback that answers each row as its case says, and remembers what it was asked."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from tests.odd_servers.cases import Case, Wire
from tests.raw_sockets import listening, reset

_FORGOTTEN = Wire(b'{"error":{"message":"Response not found"}}', 404)
_SETTLE_S = 0.03  # what was said before a reset arrives before it


class Served(NamedTuple):
    """One request of a row and what it got."""

    method: str
    client_request_id: str
    request_id: str
    wire: Wire


class RowServer:
    """Answers by row."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self.base_url = ""
        self.log: dict[str, list[Served]] = {case.id: [] for case in cases}
        self.unanswered = 0  # requests on connections that died of themselves
        self.strangers: list[str] = []  # requests that belong to no row
        self._cases = {case.id: case for case in cases}
        self._posts: Counter[str] = Counter()
        self._polls: Counter[tuple[str, int]] = Counter()
        self._served = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_dying = False
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip("\r\n").split("\r\n")
            method, target, _ = first.split(" ", 2)
            fields = (line.split(":", 1) for line in lines)
            headers = {name.lower(): value.strip() for name, value in fields}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if is_dying:
                self.unanswered += 1
                return
            case = self._case(target, body)
            if case is None:
                self.strangers.append(f"{method} {target}")
                return
            wire = self._wire(case, method)
            self._served += 1
            request_id = f"req_{self._served}"
            client_id = headers["x-client-request-id"]
            self.log[case.id].append(Served(method, client_id, request_id, wire))
            await _say(wire, request_id, writer)
            if wire.end == "reset":
                await asyncio.sleep(_SETTLE_S)
                reset(writer)
                return
            if wire.end == "close" or headers.get("connection") == "close":
                return
            is_dying = wire.closes_next

    def _case(self, target: str, body: bytes) -> Case | None:
        if body:
            return self._cases.get(_name_in(json.loads(body)))
        return self._cases.get(target.partition("/resp_")[2].partition("/")[0])

    def _wire(self, case: Case, method: str) -> Wire:
        if method == "POST":
            number = self._posts[case.id]
            self._posts[case.id] += 1
            if number < len(case.before):
                return case.before[number]
            return case.create if case.mode == "background" and not case.instead else case.wire
        work = self._posts[case.id] - len(case.before) - 1  # the number of the work asked about
        poll = self._polls[case.id, work]
        self._polls[case.id, work] += 1
        if work < case.forgets:
            return case.polls[0] if case.polls and poll == 0 else _FORGOTTEN
        if poll < len(case.polls):
            return case.polls[poll]
        if work == case.forgets and case.failed_poll is not None:
            return case.failed_poll
        return case.wire


def _name_in(body: dict[str, object]) -> str:
    name = body.get("user")
    return name if isinstance(name, str) else ""


async def _say(wire: Wire, request_id: str, writer: asyncio.StreamWriter) -> None:
    if wire.is_silent:
        return
    headers = {"X-Request-Id": request_id, **wire.headers}
    if wire.type is not None:
        headers["Content-Type"] = wire.type
    if wire.framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    elif wire.framing == "length" and wire.status != 204:
        headers["Content-Length"] = str(max(0, len(wire.body) + wire.more))
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" if "X-Early" in headers else b""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(early + f"HTTP/1.1 {wire.status} OK\r\n{head}\r\n".encode())
    size = wire.cut or len(wire.body) or 1
    for start in range(0, len(wire.body), size):
        piece = wire.body[start : start + size]
        chunked = wire.framing == "chunked"
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if wire.cut:
            await asyncio.sleep(0)
    if wire.framing == "chunked" and wire.has_end:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


@contextlib.asynccontextmanager
async def serving(cases: Iterable[Case]) -> AsyncIterator[RowServer]:
    """A server for these rows."""
    server = RowServer(cases)
    async with listening(server.answer) as port:
        server.base_url = f"http://127.0.0.1:{port}/v1"
        yield server
