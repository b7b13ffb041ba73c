"""A server that says, byte by byte, what a test wants, and a client and dispatcher against it.

A script is a list of steps, one for each request in the order they come; the last one holds for
all that follow. A step is a dict:

    status, headers, type  of the answer (200, none, JSON or a stream as the body is)
    body                   bytes, or a value sent as JSON
    events                 a stream: dicts (`type` names them), or bytes as they are
    named                  whether events have their `event:` line (true)
    pieces                 the body in pieces; a number waits so many seconds
    cuts                   the size of the pieces that any body is cut into
    raw                    the same without chunks around them; headers then give the length
    end                    clean, cut (no last chunk), reset, or open (nothing more comes)
    keep                   whether the connection takes another request (false)
    hangs_up               nothing is said: the connection is closed after so many seconds
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import msgspec
import pytest

from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.dispatch.gate import Gate
from batchrun.job.sections import EndpointJob, RetryJob
from batchrun.limits.concurrency import InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.pricing.prices import Prices
from batchrun.records import Outcome, Reply, Request
from batchrun.transport.client import Client
from tests.both_transports import transport
from tests.raw_sockets import listening, reset
from tests.waiting import HANG_S

__all__ = ["transport"]
Step = dict[str, Any]
_REASONS = {200: "OK"}


class Seen(NamedTuple):
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: Any


class Server:
    """Goes through a script, and remembers what it was asked."""

    def __init__(self, script: Sequence[Step]) -> None:
        self.requests: list[Seen] = []
        self.base_url = ""
        self.port = 0
        self._script = script

    @property
    def asked(self) -> list[str]:
        """Methods and paths, in order."""
        return [f"{seen.method} {seen.target}" for seen in self.requests]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await self._answer(reader, writer)).get("keep"):
            pass

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Step:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        step = self._script[min(len(self.requests), len(self._script) - 1)]
        self.requests.append(Seen(method, target, headers, json.loads(body) if body else None))
        if "hangs_up" in step:
            await asyncio.sleep(step["hangs_up"])
        else:
            await _say(step, writer)
        return step


async def _say(step: Step, writer: asyncio.StreamWriter) -> None:
    status = step.get("status", 200)
    pieces = list(_pieces(step))
    is_stream = "events" in step
    headers = {
        "Content-Type": step.get("type", "text/event-stream" if is_stream else "application/json"),
        "Transfer-Encoding": None if "raw" in step else "chunked",
        "Connection": "keep-alive" if step.get("keep") else "close",
        **step.get("headers", {}),
    }
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Other')}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    writer.write(head.encode() + b"\r\n")
    for piece in pieces:
        if isinstance(piece, int | float):
            await asyncio.sleep(piece)
        else:
            writer.write(piece if "raw" in step else b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
    end = step.get("end", "clean")
    if end == "clean" and "raw" in step:
        return
    if end == "clean":
        writer.write(b"0\r\n\r\n")
    elif end == "open":
        await asyncio.sleep(600)
    elif end == "reset":
        await asyncio.sleep(0.05)  # what was said before arrives before
        reset(writer)


def _pieces(step: Step) -> list[Any]:
    if "pieces" in step or "raw" in step:
        return list(step["raw" if "raw" in step else "pieces"])
    if "events" in step:
        named = step.get("named", True)
        whole = b"".join(_framed(event, named=named) for event in step["events"])
    else:
        body = step.get("body", b"")
        whole = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = step.get("cuts", len(whole) or 1)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _framed(event: Any, *, named: bool) -> bytes:
    if isinstance(event, bytes):
        return event
    name = f"event: {event['type']}\n" if named else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


@contextlib.asynccontextmanager
async def _served(script: Sequence[Step]) -> AsyncIterator[Server]:
    served = Server(script)
    async with listening(served.answer) as port:
        served.port, served.base_url = port, f"http://127.0.0.1:{port}/v1"
        yield served


@pytest.fixture
def serve() -> Callable[[Sequence[Step]], AbstractAsyncContextManager[Any]]:
    """A server for a script; has `base_url`, `port`, `requests` and `asked`."""
    return _served


class Endpoint:
    """A client and a dispatcher against a scripted server."""

    def __init__(self, server: Server, client: Client, retry: RetryJob) -> None:
        self.server = server
        scopes = Scopes(8, Patience(1800.0, 60.0))
        self.gate = Gate([InFlight(8)], scopes.limits)
        self.dispatcher = Dispatcher(client, self.gate, scopes, retry, Prices({}), key_name="KEY")
        self._client = client

    async def send(self, request: Request, left_s: float = 3600.0) -> Reply:
        async with asyncio.timeout(HANG_S):
            return await self._client.send(request, "client-1", left_s)

    async def outcome(self, request: Request) -> Outcome:
        """The end of the request; its slot is given back as when it is stored."""
        outcome = await self.outcome_beside_others(request)
        assert self.gate.in_flight == 0
        return outcome

    async def outcome_beside_others(self, request: Request) -> Outcome:
        async with asyncio.timeout(HANG_S):
            completed = await self.dispatcher.complete(request)
        if completed.slot is not None:
            self.gate.leave(completed.slot, completed.finish)
        return completed.outcome


@pytest.fixture
def endpoint() -> Callable[..., AbstractAsyncContextManager[Any]]:
    """`endpoint(script, mode=..., key=..., headers=..., retry=..., on_begun=..., **settings)`."""

    @contextlib.asynccontextmanager
    async def connect(
        script: Sequence[Step],
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        retry: RetryJob | None = None,
        on_begun: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[Endpoint]:
        async with _served(script) as server:
            fields: dict[str, Any] = {"base_url": server.base_url, **settings}
            job = EndpointJob(**fields)
            rules = retry or RetryJob(max_wait_s=0.01)
            async with Client(
                job, key, headers or {}, "test", on_begun, words=rules.words
            ) as client:
                yield Endpoint(server, client, rules)

    return connect


@pytest.fixture
def complete(
    endpoint: Callable[..., AbstractAsyncContextManager[Any]],
) -> Callable[..., Any]:
    """The outcome of one request against a script."""

    async def completed(script: Sequence[Step], body: Any = None, **settings: Any) -> Outcome:
        async with endpoint(script, **settings) as connected:
            outcome: Outcome = await connected.outcome(_request(body))
        return outcome

    return completed


def _request(body: Any = None, **fields: Any) -> Request:
    body = {"model": "m", "input": "x"} if body is None else body
    most = body.get("max_output_tokens")
    request = Request(0, "row-0", "f", json.dumps(body).encode(), "0" * 16, "m", most, ())
    return msgspec.structs.replace(request, **fields)


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A request with a body, ready to be sent."""
    return _request


@pytest.fixture
def answer() -> Callable[..., dict[str, Any]]:
    """An answer as the API gives it, with other fields where a test says so."""

    def make(text: str = "forty-two", **fields: Any) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1_756_108_120,
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "model": "m-2026",
            "output": [
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [part],
                }
            ],
            "usage": {
                "input_tokens": 62,
                "input_tokens_details": {"cached_tokens": 8},
                "output_tokens": 18,
                "output_tokens_details": {"reasoning_tokens": 4},
                "total_tokens": 80,
            },
            **fields,
        }

    return make


@pytest.fixture
def events() -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """The events of an answer whose first item is a message, in order, numbered."""

    def make(whole: dict[str, Any]) -> list[dict[str, Any]]:
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        item = whole["output"][0]
        text = item["content"][0]["text"]
        said: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message"}},
            {"type": "response.content_part.added", "output_index": 0, "content_index": 0},
            *(
                {"type": "response.output_text.delta", "output_index": 0, "delta": letter}
                for letter in text
            ),
            {"type": "response.output_text.done", "output_index": 0, "text": text},
            {"type": "response.content_part.done", "output_index": 0, "content_index": 0},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{whole['status']}", "response": whole},
        ]
        return [{**event, "sequence_number": number} for number, event in enumerate(said)]

    return make
