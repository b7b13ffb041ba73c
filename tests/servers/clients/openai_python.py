"""The openai SDK for Python as a client: `openai_python.py BASE_URL REQUESTS`.

So many requests in each mode; every answer must pass the SDK's own models strictly, and be the same
in each mode where the temperature is 0 (a model that thinks takes none). What was done is printed
as JSON; whatever is not as it should be raises.
"""

import asyncio
import json
import sys
from typing import Any

from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response
from pydantic import BaseModel

MODEL = "gpt-4.1"
THINKS = "gpt-6.1-terra"
AT_ZERO = {MODEL: {"temperature": 0}}
MODES = ("plain", "stream", "background", "resumed", "parse", "tools", "stored")
DONE = ("completed", "incomplete", "failed", "cancelled")
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Step(BaseModel):
    """A part of what `parse` asks for."""

    explanation: str
    value: int


class Solution(BaseModel):
    """What `parse` asks for."""

    steps: list[Step]
    answer: str


def check(is_so: object, what: object) -> None:
    if not is_so:
        raise SystemExit(f"not as it should be: {what}")


async def plain(client: AsyncOpenAI, text: str, model: str = MODEL) -> Response:
    raw = await client.responses.with_raw_response.create(
        model=model, input=text, extra_body=AT_ZERO.get(model)
    )
    Response.model_validate_json(raw.content, strict=True)
    response = raw.parse()
    check(response.status == "completed" and response.output_text, response)
    return response


async def stream(client: AsyncOpenAI, text: str, model: str = MODEL) -> Response:
    said = ""
    async with client.responses.stream(
        model=model, input=text, extra_body=AT_ZERO.get(model)
    ) as events:
        async for event in events:
            if event.type == "response.output_text.delta":
                said += event.delta
                check(event.snapshot == said, event)
        final = await events.get_final_response()
    check(final.output_text == said, final)
    return final


async def background(client: AsyncOpenAI, text: str, model: str = MODEL) -> Response:
    response = await client.responses.create(
        model=model, input=text, background=True, extra_body=AT_ZERO.get(model)
    )
    while response.status not in DONE:
        await asyncio.sleep(0.02)
        response = await client.responses.retrieve(response.id)
    return response


async def resumed(client: AsyncOpenAI, text: str, model: str = MODEL) -> Response:
    """Background as a stream that the client leaves and takes up again."""
    events: list[Any] = []
    begun = await client.responses.create(
        model=model, input=text, background=True, stream=True, extra_body=AT_ZERO.get(model)
    )
    async for event in begun:
        events.append(event)
        if len(events) == 5:
            break
    await begun.close()
    id_, last = events[0].response.id, events[-1].sequence_number
    rest = await client.responses.retrieve(id_, stream=True, starting_after=last)
    events += [event async for event in rest]
    check([e.sequence_number for e in events] == list(range(len(events))), id_)
    response: Response = events[-1].response
    return response


async def parsed(client: AsyncOpenAI, text: str) -> None:
    whole = await client.responses.parse(
        model=MODEL, input=text, text_format=Solution, extra_body=AT_ZERO[MODEL]
    )
    check(isinstance(whole.output_parsed, Solution), whole)
    async with client.responses.stream(
        model=MODEL, input=text, text_format=Solution, extra_body=AT_ZERO[MODEL]
    ) as events:
        final = await events.get_final_response()
    check(final.output_parsed == whole.output_parsed, final)


async def tools(client: AsyncOpenAI, text: str) -> None:
    """A call, its result by `previous_response_id`, and an answer in words."""
    called = await client.responses.create(
        model=THINKS, input=text, tools=[TOOL], tool_choice="required"
    )
    calls = [item for item in called.output if item.type == "function_call"]
    check(calls and all(json.loads(call.arguments)["city"] is not None for call in calls), called)
    given: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        for call in calls
    ]
    answer = await client.responses.create(
        model=THINKS, input=given, tools=[TOOL], previous_response_id=called.id
    )
    check(answer.output_text, answer)
    streamed = await client.responses.create(
        model=THINKS, input=text, tools=[TOOL], tool_choice="required", stream=True
    )
    arguments = [e.arguments async for e in streamed if "arguments.done" in e.type]  # type: ignore[union-attr]
    check(arguments and all("city" in json.loads(one) for one in arguments), arguments)


async def stored(client: AsyncOpenAI, text: str) -> None:
    """A response had again, listed, deleted; the log probabilities of its text."""
    response = await client.responses.create(
        model=MODEL, input=text, include=["message.output_text.logprobs"], top_logprobs=3
    )
    content: Any = response.output[0].to_dict()["content"]
    check("".join(one["token"] for one in content[0]["logprobs"]) == response.output_text, text)
    check(await client.responses.retrieve(response.id) == response, response.id)
    items: list[Any] = [one async for one in client.responses.input_items.list(response.id)]
    check(items[0].content[0].text == text, items)
    await client.responses.delete(response.id)
    try:
        await client.responses.retrieve(response.id)
        check(False, "retrieved after delete")  # noqa: FBT003
    except NotFoundError:
        pass
    try:
        await client.responses.create(model=MODEL, input=text, previous_response_id=response.id)
        check(False, "went on from a deleted response")  # noqa: FBT003
    except BadRequestError as error:
        check(error.code == "previous_response_not_found", error)


async def main(base_url: str, requests: int) -> None:
    done = dict.fromkeys(
        ("plain", "stream", "background", "resumed", "parse", "tools", "stored"), 0
    )
    async with AsyncOpenAI(base_url=base_url, api_key="made-up", max_retries=0) as client:

        async def one(row: int) -> None:
            text, model = f"Row {row} asks.", THINKS if row % 2 else MODEL
            first = await plain(client, text, model)
            done["plain"] += 1
            for mode in (stream, background, resumed):
                again = await mode(client, text, model)
                same = again.output_text == first.output_text and again.usage == first.usage
                check(same or model == THINKS, (mode.__name__, again))
                done[mode.__name__] += 1
            await parsed(client, text)
            done["parse"] += 1
            await tools(client, text)
            done["tools"] += 1
            await stored(client, text)
            done["stored"] += 1

        await asyncio.gather(*map(one, range(requests)))
    sys.stdout.write(json.dumps(done))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
