"""A server that answers every request at once with the same Responses API body; one process.

`python -m benchmarks.constant_server` prints its port and serves until it is ended. It is used
where nginx is not installed; `lean_answers.py` holds what is answered. Clients that send a second
request on a connection before the first is answered are not provided for.
"""

import asyncio
import re
from typing import cast

import uvloop

from benchmarks.lean_answers import BODY, HEADERS

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:\s*(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:\s*chunked")
_ANSWER = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    + f"Content-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
_REFUSED = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client's connection, kept alive."""

    def __init__(self) -> None:
        self._head = b""  # of a request whose head has not come whole
        self._left = 0  # bytes of a body that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head, head = b"", data[:end]
            if _CHUNKED.search(head):
                self._transport.write(_REFUSED)
                self._transport.close()
                return
            found = _LENGTH.search(head)
            self._left = (int(found[1]) if found else 0) - (len(data) - end - 4)
        if self._left <= 0:
            self._left = 0
            self._transport.write(_ANSWER)


async def serve() -> None:
    """Prints the port, then serves for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
