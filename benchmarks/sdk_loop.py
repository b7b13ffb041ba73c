"""The openai SDK behind a semaphore, with its own retries and time-out.

`python -m benchmarks.sdk_loop FILE URL CONCURRENCY TIMEOUT_S` sends each row of a JSON Lines file
of bodies, and prints `Tally` as JSON.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import msgspec
import openai


class Tally(msgspec.Struct):
    """What became of the rows."""

    tokens: int = 0  # of output
    lost: int = 0  # rows
    seconds: float = 0.0


async def main(lines: list[str], url: str, concurrency: int, timeout_s: float) -> Tally:
    tally, most = Tally(), asyncio.Semaphore(concurrency)
    bodies = [json.loads(line) for line in lines]
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=timeout_s) as client:

        async def send(body: dict[str, object]) -> None:
            async with most:
                try:
                    answer = await client.responses.create(
                        model=str(body["model"]),
                        input=str(body["input"]),
                        max_output_tokens=int(str(body["max_output_tokens"])),
                    )
                except openai.APIError:
                    tally.lost += 1
                else:
                    tally.tokens += answer.usage.output_tokens if answer.usage else 0

        began_s = time.perf_counter()
        await asyncio.gather(*map(send, bodies))
        tally.seconds = time.perf_counter() - began_s
    return tally


if __name__ == "__main__":
    file, url, concurrency, timeout_s = sys.argv[1:]
    tally = asyncio.run(
        main(Path(file).read_text().splitlines(), url, int(concurrency), float(timeout_s))
    )
    print(msgspec.json.encode(tally).decode())
