"""What people write themselves: a semaphore, tenacity around each request, aiohttp.

`python -m benchmarks.plain_loop FILE URL CONCURRENCY` sends each row of a JSON Lines file, waits
out `Retry-After` and backs off exponentially with jitter, six tries a row. On the end, or on
SIGINT, it prints `Tally` as JSON. Nothing is stored.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

_TRIES = 6
_backoff = wait_random_exponential(multiplier=1, max=60)


class Tally(msgspec.Struct):
    """What became of the rows so far."""

    ok: int = 0
    lost: int = 0  # out of tries


class Refused(Exception):  # noqa: N818 - what the server did
    """An answer that is worth another try."""

    def __init__(self, status: int, retry_after_s: float | None) -> None:
        super().__init__(status)
        self.retry_after_s = retry_after_s


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    hint_s = error.retry_after_s if isinstance(error, Refused) else None
    return _backoff(state) if hint_s is None else hint_s


async def _send(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    async with session.post(url, data=body) as response:
        if response.status != 200:
            after = response.headers.get("retry-after")
            raise Refused(response.status, float(after) if after else None)
        await response.json()


async def _row(session: aiohttp.ClientSession, url: str, body: bytes, tally: Tally) -> None:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type((Refused, aiohttp.ClientError)),
        stop=stop_after_attempt(_TRIES),
        wait=_wait_s,
    )
    try:
        await retrying(_send, session, url, body)
        tally.ok += 1
    except RetryError:
        tally.lost += 1


async def main(rows: list[dict[str, object]], base_url: str, concurrency: int) -> Tally:
    """All rows; cut short by SIGINT."""
    tally, places = Tally(), asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"content-type": "application/json"}

    async def placed(row: dict[str, object]) -> None:
        body = {key: value for key, value in row.items() if key != "custom_id"}
        async with places:
            await _row(session, f"{base_url}/responses", json.dumps(body).encode(), tally)

    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        work = asyncio.gather(*[placed(row) for row in rows])
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, work.cancel)
        await asyncio.wait([work])
    return tally


if __name__ == "__main__":
    asked = [json.loads(line) for line in Path(sys.argv[1]).read_bytes().splitlines()]
    ended = uvloop.run(main(asked, sys.argv[2], int(sys.argv[3])))
    print(msgspec.json.encode(ended).decode())
