"""The openai SDK behind a semaphore; `--aiohttp` at the end: on aiohttp in place of httpx."""

import asyncio
import sys

from openai import AsyncOpenAI, DefaultAioHttpClient

from benchmarks.peers.told import Body, asked, send_all


async def main() -> None:
    bodies, url, in_flight = asked()
    http = DefaultAioHttpClient() if "--aiohttp" in sys.argv else None
    async with AsyncOpenAI(base_url=url, api_key="none", http_client=http) as client:

        async def send(body: Body) -> bool:
            answer = await client.responses.create(**body)
            return answer.status == "completed"

        await send_all(send, bodies, in_flight)


if __name__ == "__main__":
    asyncio.run(main())
