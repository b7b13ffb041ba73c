"""litellm's `aresponses` behind a semaphore."""

import asyncio

import litellm

from benchmarks.peers.told import Body, asked, send_all


async def main() -> None:
    bodies, url, in_flight = asked()

    async def send(body: Body) -> bool:
        answer = await litellm.aresponses(
            **{**body, "model": f"openai/{body['model']}"}, api_base=url, api_key="none"
        )
        return bool(answer.status == "completed")

    await send_all(send, bodies, in_flight)


if __name__ == "__main__":
    asyncio.run(main())
