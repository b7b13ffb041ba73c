"""lm-deluge's own client, its limits beyond reach but for requests in flight."""

import asyncio
import time

from lm_deluge import LLMClient
from lm_deluge.models import register_model

from benchmarks.batch_lines import MODEL
from benchmarks.peers.told import asked, tell

_NAME = "benchmark"
_BEYOND_REACH = 10**12


async def main() -> None:
    bodies, url, in_flight = asked()
    register_model(
        id=_NAME,
        name=MODEL,
        api_base=url,
        api_key_env_var="OPENAI_API_KEY",
        api_spec="openai",
        supports_responses=True,
        regions=[],
    )
    client = LLMClient(
        _NAME,
        max_requests_per_minute=_BEYOND_REACH,
        max_tokens_per_minute=_BEYOND_REACH,
        max_concurrent_requests=in_flight,
        use_responses_api=True,
        max_new_tokens=512,
        temperature=0.7,
        progress="manual",
    )
    prompts = [body["input"] for body in bodies]
    first_at = time.time()
    answers = await client.process_prompts_async(prompts, show_progress=False)
    last_at = time.time()
    tell(sum(bool(answer and answer.completion) for answer in answers), first_at, last_at)


if __name__ == "__main__":
    asyncio.run(main())
