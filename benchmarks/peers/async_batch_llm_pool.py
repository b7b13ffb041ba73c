"""async-batch-llm's pool over its own OpenAI strategy, which sends to the Responses API."""

import asyncio
import time

from async_batch_llm import OpenAIModel, OpenAIStrategy, process_prompts

from benchmarks.batch_lines import MODEL
from benchmarks.peers.told import asked, tell


async def main() -> None:
    bodies, url, in_flight = asked()
    model = OpenAIModel.from_api_key(MODEL, "none", base_url=url)
    strategy = OpenAIStrategy(model, temperature=0.7)
    prompts = [body["input"] for body in bodies]
    first_at = time.time()
    batch = await process_prompts(strategy, prompts, concurrency=in_flight)
    tell(batch.succeeded, first_at, time.time())


if __name__ == "__main__":
    asyncio.run(main())
