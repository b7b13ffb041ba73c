"""A TCP proxy on loopback that cuts every third connection amid what the server says.

`cutting_proxy.py PORT UPSTREAM_PORT`. What is let through grows from cut to cut, so that some end
within the headers and some within the body; every other cut is a reset. After 12 cuts it is a
proxy as any other.
"""

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from itertools import count

_CUTS = 12
_EVERY = 3
_FIRST_BYTES = 150
_MORE_BYTES = 400
_PIECE_BYTES = 65_536
_ARRIVES_S = 0.05  # a reset would overtake what was just written
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing resets


def _bytes_let_through(connection: int) -> int | None:
    """By the server to the client, on this connection, from 1; null: all."""
    nth, rest = divmod(connection, _EVERY)
    return None if rest or nth > _CUTS else _FIRST_BYTES + nth * _MORE_BYTES


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    left: int | None = None,
    *,
    resets: bool = False,
) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece[:left])
            await writer.drain()
            if left is not None:
                left = max(0, left - len(piece))
                if not left:
                    await asyncio.sleep(_ARRIVES_S)
                    link: socket.socket = writer.get_extra_info("socket")
                    if resets:
                        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    break
    writer.close()


async def _serve(port: int, upstream_port: int) -> None:
    numbers = count(1)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", upstream_port)
        except OSError:
            writer.close()
            return
        back = _pass_on(
            from_server, writer, _bytes_let_through(number), resets=number % (2 * _EVERY) == 0
        )
        await asyncio.gather(_pass_on(reader, to_server), back)

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
