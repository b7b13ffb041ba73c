"""The bare aiohttp loop that batchrun is measured against: sends, reads the answer, drops it.

`python -m benchmarks.bare_loop FILE URL IN_FLIGHT ROWS` is tuned as far as aiohttp goes; with
`--defaults` at the end the session is as aiohttp makes it, but for the pool's limit of 100, which
would hold back what is asked for. Both run on uvloop. The bodies of the first lines are sent again
and again, so that nothing is measured but the sending.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from yarl import URL

from benchmarks.batch_lines import read_bodies
from benchmarks.peers.told import tell

_BODIES = 1000


def freeze_collector() -> None:
    """What is there stays; cycles are looked for once in 50,000 new objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def bare_session(*, tuned: bool) -> aiohttp.ClientSession:
    headers = {"Content-Type": "application/json"}
    if not tuned:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        headers=headers,
    )


async def main(bodies: list[bytes], base_url: str, in_flight: int, rows: int, tuned: bool) -> None:
    """All rows, by as many workers as may be in flight."""
    url = URL(f"{base_url}/responses")
    left: Iterator[bytes] = islice(cycle(bodies), rows)
    ok = 0

    async def work() -> None:
        nonlocal ok
        for body in left:
            async with session.post(url, data=body) as response:
                await response.read()
                ok += response.status == 200

    async with bare_session(tuned=tuned) as session:
        if tuned:
            freeze_collector()
        first_at = time.time()
        await asyncio.gather(*[work() for _ in range(in_flight)])
        tell(ok, first_at, time.time())


if __name__ == "__main__":
    file, url, in_flight, rows, *rest = sys.argv[1:]
    encoded = [msgspec.json.encode(body) for body in read_bodies(Path(file), _BODIES)]
    uvloop.run(main(encoded, url, int(in_flight), int(rows), tuned="--defaults" not in rest))
