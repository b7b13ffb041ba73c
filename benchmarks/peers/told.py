"""What a client tells of its sending, and the loop that people write around an SDK.

Only the standard library: peers run in environments of their own.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.batch_lines import read_bodies

Body = dict[str, Any]


def tell(ok: int, first_at: float, last_at: float) -> None:
    """The last line of standard output: rows answered, and the Unix times of sending."""
    print(json.dumps({"ok": ok, "first_at": first_at, "last_at": last_at}), flush=True)


def asked() -> tuple[list[Body], str, int]:
    """Bodies, base URL and requests in flight, from the command line: FILE URL IN_FLIGHT ROWS."""
    file, url, in_flight, rows = sys.argv[1:5]
    return read_bodies(Path(file), int(rows)), url, int(in_flight)


async def send_all(
    send: Callable[[Body], Awaitable[bool]], bodies: list[Body], in_flight: int
) -> None:
    """All rows at once behind a semaphore; `send` says whether the row was answered."""
    places = asyncio.Semaphore(in_flight)

    async def placed(body: Body) -> bool:
        async with places:
            return await send(body)

    first_at = time.time()
    ok = await asyncio.gather(*[placed(body) for body in bodies])
    tell(sum(ok), first_at, time.time())
