"""openai-agents as a client: `openai_agents.py BASE_URL REQUESTS`.

So many runs of an agent in each mode: plain, stream, with a typed output, with a tool in a loop,
and with the conversation stored by the server. What was done is printed as JSON.
"""

import asyncio
import json
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

CALLED: list[str] = []


class Report(BaseModel):
    """The typed output of an agent."""

    title: str
    points: list[str]


def get_weather(city: str) -> str:
    """The weather in a city."""
    CALLED.append(city)
    return f"It is sunny in {city}."


def check(is_so: object, what: object) -> None:
    if not is_so:
        raise SystemExit(f"not as it should be: {what}")


async def main(base_url: str, requests: int) -> None:
    set_tracing_disabled(True)
    done = dict.fromkeys(("plain", "stream", "typed", "tools", "stored"), 0)
    async with AsyncOpenAI(base_url=base_url, api_key="made-up", max_retries=0) as client:
        model = OpenAIResponsesModel("gpt-6.1-terra", client)
        writer = Agent("Writer", instructions="Be brief.", model=model)
        reporter = Agent("Reporter", model=model, output_type=Report)
        caller = Agent(
            "Caller",
            model=model,
            tools=[function_tool(get_weather)],
            model_settings=ModelSettings(tool_choice="required"),
        )

        async def one(row: int) -> None:
            text = f"Row {row} asks about the weather."
            first = await Runner.run(writer, text)
            check(first.final_output.startswith("Simulated answer"), first)
            done["plain"] += 1
            streamed = Runner.run_streamed(writer, text)
            said = ""
            async for event in streamed.stream_events():
                if event.type == "raw_response_event" and event.data.type.endswith("text.delta"):
                    said += event.data.delta
            # A model that thinks takes no temperature, and so says something else each time.
            check(said == streamed.final_output and said.startswith("Simulated answer"), said)
            done["stream"] += 1
            typed = await Runner.run(reporter, text)
            check(isinstance(typed.final_output, Report), typed)
            done["typed"] += 1
            before = len(CALLED)
            looped = await Runner.run(caller, text)  # the choice is free again after a call
            check(len(CALLED) > before and looped.final_output, looped)
            done["tools"] += 1
            then = await Runner.run(
                writer, "And then?", previous_response_id=first.last_response_id
            )
            check(then.final_output, then)
            done["stored"] += 1

        await asyncio.gather(*map(one, range(requests)))
    sys.stdout.write(json.dumps(done))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
