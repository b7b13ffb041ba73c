"""A listening socket whose connections a test handles byte by byte."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[int]:
    """Its port. A connection is closed when its answer has ended or the client has gone."""
    handlers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    """The head of a request in lower case, and how long its body is."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return head, int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)


async def read_body(reader: asyncio.StreamReader) -> bytes:
    """The body of the next request."""
    return await reader.readexactly((await read_head(reader))[1])


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def http_answer(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def text_answer(text: str, input_tokens: int = 3, output_tokens: int = 2) -> bytes:
    """A good answer with its head."""
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    total = input_tokens + output_tokens
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total}
    fields = {"id": "resp_1", "object": "response", "status": "completed", "model": "m"}
    return http_answer(200, json.dumps({**fields, "output": [message], "usage": usage}).encode())
