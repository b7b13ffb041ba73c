"""Responses asked for again over real sockets: stored, in background, as streams; and forgotten."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter

from batchrun.simulator.errors import ApiError
from batchrun.simulator.stats import Delivery, Stats
from batchrun.simulator.stored_responses import StoredResponse, StoredResponses

Start = Callable[..., Awaitable[str]]
FetchStats = Callable[..., Awaitable[dict[str, Any]]]
Sdk = Callable[[str], AsyncOpenAI]
Http = aiohttp.ClientSession

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_BODY = {"model": "gpt-4.1", "input": "hello"}


async def _call(
    http: Http, method: str, url: str, body: dict[str, Any] | None = None
) -> tuple[int, Any]:
    async with http.request(method, url, json=body) as response:
        return response.status, json.loads(await response.read())


async def _events(http: Http, url: str, body: dict[str, Any] | None = None) -> list[Any]:
    """All events of a stream, each of which must pass the SDK's own model strictly."""
    events = []
    async with http.request("POST" if body else "GET", url, json=body) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        for block in (await response.text()).split("\n\n")[:-1]:
            data = block.split("\n")[1].removeprefix("data: ")
            _EVENT.validate_json(data, strict=True)
            events.append(json.loads(data))
    return events


def _text(events: list[Any]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_is_had_again_until_it_is_deleted(
    streams: bool, http: Http, start: Start
) -> None:
    base_url = await start()
    if streams:
        events = await _events(http, f"{base_url}/responses", {**_BODY, "stream": True})
        answer = events[-1]["response"]
    else:
        _, answer = await _call(http, "POST", f"{base_url}/responses", _BODY)
    assert answer["store"] is True
    url = f"{base_url}/responses/{answer['id']}"
    assert await _call(http, "GET", url) == (200, answer)
    deleted = {"id": answer["id"], "object": "response", "deleted": True}
    assert await _call(http, "DELETE", url) == (200, deleted)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        status, said = await _call(http, method, url + path)
        assert (status, said["error"]["type"]) == (404, "invalid_request_error")
        assert answer["id"] in said["error"]["message"]


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_not_to_be_stored_is_not(streams: bool, http: Http, start: Start) -> None:
    base_url = await start()
    body = {**_BODY, "store": False, "stream": streams}
    if streams:
        answer = (await _events(http, f"{base_url}/responses", body))[-1]["response"]
    else:
        _, answer = await _call(http, "POST", f"{base_url}/responses", body)
    assert answer["store"] is False
    assert (await _call(http, "GET", f"{base_url}/responses/{answer['id']}"))[0] == 404


async def test_the_sdk_retrieves_lists_and_deletes(start: Start, sdk: Sdk) -> None:
    client = sdk(await start())
    given: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
        {"type": "function_call", "call_id": "c", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "12:00"},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "And now?"},
    ]
    response = await client.responses.create(model="gpt-4.1", input=given)
    assert await client.responses.retrieve(response.id) == response
    pages = client.responses.input_items.list(response.id, order="asc", limit=4)
    items: list[Any] = [item async for item in pages]
    assert [item.type for item in items] == [
        "message",
        "message",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ]
    assert len({item.id for item in items}) == 6
    assert items[1].content[0].text == "What time is it?"
    assert items[4].content[0].type == "output_text"
    newest = await client.responses.input_items.list(response.id, limit=1)
    assert (newest.data, newest.has_more) == (items[-1:], True)
    raw = await client.responses.input_items.with_raw_response.list(response.id)
    assert ResponseItemList.model_validate_json(raw.content, strict=True).data == items[::-1]
    await client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=0", 400),
        ("limit=101", 400),
        ("limit=x", 400),
        ("order=up", 400),
        ("after=msg_1", 404),
    ],
)
async def test_a_page_that_cannot_be_is_refused(
    query: str, status: int, http: Http, start: Start
) -> None:
    base_url = await start()
    _, answer = await _call(http, "POST", f"{base_url}/responses", _BODY)
    url = f"{base_url}/responses/{answer['id']}/input_items?{query}"
    assert (await _call(http, "GET", url))[0] == status


async def test_a_response_may_go_on_from_one_that_is_stored(start: Start, sdk: Sdk) -> None:
    client = sdk(await start())
    first = await client.responses.create(model="gpt-4.1", input="My name is Alice.")
    alone = await client.responses.create(model="gpt-4.1", input="Who am I?")
    second = await client.responses.create(
        model="gpt-4.1", input="Who am I?", previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    assert first.usage
    assert alone.usage
    assert second.usage
    assert second.usage.input_tokens > alone.usage.input_tokens + first.usage.total_tokens - 1


async def test_a_response_before_that_is_unknown_is_refused_as_the_api_does(
    http: Http, start: Start, stats: FetchStats
) -> None:
    base_url = await start()
    _, unstored = await _call(http, "POST", f"{base_url}/responses", {**_BODY, "store": False})
    for id_ in ("resp_none", unstored["id"]):
        for mode in ({}, {"stream": True}, {"background": True}):
            body = {**_BODY, "previous_response_id": id_, **mode}
            status, said = await _call(http, "POST", f"{base_url}/responses", body)
            assert (status, said["error"]) == (
                400,
                {
                    "message": f"Previous response with id '{id_}' not found.",
                    "type": "invalid_request_error",
                    "param": "previous_response_id",
                    "code": "previous_response_not_found",
                },
            )
    counts = await stats(base_url)
    assert (counts["rejected"], counts["completions"]) == ({"400": 6}, 1)


async def test_work_in_background_is_streamed_from_queued_to_its_end(
    http: Http, start: Start, stats: FetchStats
) -> None:
    base_url = await start(latency_s=0.3, latency_spread=0)
    asked = {**_BODY, "temperature": 0}
    body = {**asked, "background": True, "stream": True}
    events = await _events(http, f"{base_url}/responses", body)
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert [event["response"]["status"] for event in events[:3]] == [
        "queued",
        "queued",
        "in_progress",
    ]
    done = events[-1]["response"]
    assert (events[-1]["type"], done["background"]) == ("response.completed", True)
    assert await _call(http, "GET", f"{base_url}/responses/{done['id']}") == (200, done)
    _, plain = await _call(http, "POST", f"{base_url}/responses", asked)
    assert _text(events) == plain["output"][0]["content"][0]["text"]
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed"], counts["in_flight"]) == (2, 0, 0)
    assert counts["background"]["created"] == 1


async def test_a_stream_is_taken_up_where_it_broke_off(
    start: Start, sdk: Sdk, stats: FetchStats
) -> None:
    base_url = await start(latency_s=0.4, latency_spread=0)
    client = sdk(base_url)
    whole: list[Any] = []
    stream = await client.responses.create(model="m", input="hello", background=True, stream=True)
    async for event in stream:
        whole.append(event)
        if len(whole) == 6:
            break
    await stream.close()
    id_ = whole[0].response.id
    rest = await client.responses.retrieve(
        id_, stream=True, starting_after=whole[-1].sequence_number
    )
    whole += [event async for event in rest]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    said = "".join(e.delta for e in whole if e.type == "response.output_text.delta")
    assert whole[-1].type == "response.completed"
    assert whole[-1].response.output_text == said
    again = [event async for event in await client.responses.retrieve(id_, stream=True)]
    assert again == whole
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed"], counts["in_flight"]) == (1, 0, 0)


async def test_the_sdk_s_accumulator_follows_a_response_by_its_id(start: Start, sdk: Sdk) -> None:
    client = sdk(await start(latency_s=0.2, latency_spread=0))
    begun = await client.responses.create(model="m", input="hello", background=True)
    async with client.responses.stream(response_id=begun.id, starting_after=3) as stream:
        seen = [event.sequence_number async for event in stream]
        final = await stream.get_final_response()
    assert seen[0] == 4
    assert final.status == "completed"
    assert final.output_text == (await client.responses.retrieve(begun.id)).output_text


async def test_a_stream_ends_where_its_work_is_cancelled(
    http: Http, start: Start, stats: FetchStats
) -> None:
    base_url = await start(latency_s=2.0, latency_spread=0)
    url = f"{base_url}/responses"
    async with http.post(url, json={**_BODY, "background": True, "stream": True}) as response:
        first = json.loads((await response.content.readuntil(b"\n\n")).split(b"data: ")[1])
        id_ = first["response"]["id"]
        status, cancelled = await _call(http, "POST", f"{url}/{id_}/cancel")
        assert (status, cancelled["status"]) == (200, "cancelled")
        assert b"response.completed" not in await response.read()
    assert (await _call(http, "GET", f"{url}/{id_}"))[1]["status"] == "cancelled"
    counts = await stats(base_url)
    assert (counts["completions"], counts["in_flight"]) == (0, 0)


@pytest.mark.parametrize("fault", ["stream_reset", "stream_end", "stalled_body"])
async def test_work_goes_on_though_its_stream_is_cut(
    fault: str, http: Http, start: Start, stats: FetchStats
) -> None:
    base_url = await start(fault_rates={fault: 1}, latency_s=0.1, latency_spread=0)
    url = f"{base_url}/responses"
    async with http.post(url, json={**_BODY, "background": True, "stream": True}) as response:
        first = json.loads((await response.content.readuntil(b"\n\n")).split(b"data: ")[1])
        response.close()
    events = await _events(http, f"{url}/{first['response']['id']}?stream=true&starting_after=0")
    assert events[-1]["type"] == "response.completed"
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed"]) == (1, 0)


async def test_what_cannot_be_streamed_or_cancelled_is_refused(http: Http, start: Start) -> None:
    base_url = await start()
    _, plain = await _call(http, "POST", f"{base_url}/responses", _BODY)
    _, begun = await _call(http, "POST", f"{base_url}/responses", {**_BODY, "background": True})
    wrong = [
        ("GET", f"{plain['id']}?stream=true", "stream", "background=true"),
        ("GET", f"{begun['id']}?stream=1", "stream", "a boolean"),
        ("GET", f"{begun['id']}?stream=true&starting_after=x", "starting_after", "an integer"),
        ("POST", f"{plain['id']}/cancel", None, "Cannot cancel a synchronous response."),
    ]
    for method, path, param, message in wrong:
        status, said = await _call(http, method, f"{base_url}/responses/{path}")
        assert (status, said["error"]["param"]) == (400, param)
        assert message in said["error"]["message"]


async def test_a_gateway_changes_what_is_had_again_as_it_changed_the_answer(
    http: Http, start: Start
) -> None:
    base_url = await start(quirks=("null_usage", "nan", "surrogates", "renamed_model"))
    async with http.post(f"{base_url}/responses", json=_BODY) as response:
        raw = await response.read()
    id_ = json.loads(raw)["id"]
    async with http.get(f"{base_url}/responses/{id_}") as response:
        assert await response.read() == raw


async def test_a_failed_response_is_stored_as_failed(http: Http, start: Start) -> None:
    base_url = await start(fault_rates={"failed": 1})
    _, failed = await _call(http, "POST", f"{base_url}/responses", _BODY)
    assert failed["status"] == "failed"
    assert await _call(http, "GET", f"{base_url}/responses/{failed['id']}") == (200, failed)


async def test_a_conversation_is_compacted(http: Http, start: Start, sdk: Sdk) -> None:
    base_url = await start()
    given: Any = [
        {"role": "user", "content": "Launch on Tuesday."},
        {"role": "assistant", "content": "Understood."},
    ]
    raw = await sdk(base_url).responses.with_raw_response.compact(model="gpt-4.1", input=given)
    assert raw.parse().object == "response.compaction"
    items = json.loads(raw.content)["output"]
    assert [item["type"] for item in items] == ["message", "compaction"]
    then = await sdk(base_url).responses.create(model="gpt-4.1", input=[*items, given[0]])
    assert then.status == "completed"
    for body, param in (({"input": given}, "model"), ({"model": "m", "stream": True}, "stream")):
        status, said = await _call(http, "POST", f"{base_url}/responses/compact", body)
        assert (status, said["error"]["param"]) == (400, param)


def _stored(number: int, size: int = 10) -> StoredResponse:
    return StoredResponse(f"resp_{number}", b"", b"x" * size, 5)


def _known(responses: StoredResponses, count: int) -> list[int]:
    known = []
    for number in range(count):
        try:
            responses.find(f"resp_{number}")
        except ApiError:
            continue
        known.append(number)
    return known


def test_the_oldest_are_forgotten_where_there_are_too_many() -> None:
    responses = StoredResponses(most_responses=3)
    for number in range(10):
        responses.add(_stored(number))
    assert _known(responses, 10) == [7, 8, 9]


def test_the_oldest_are_forgotten_where_they_are_too_large() -> None:
    responses = StoredResponses(most_bytes=100)
    for number in range(20):
        responses.add(_stored(number))
    assert _known(responses, 20) == list(range(10, 20))
    responses.delete("resp_12")
    responses.add(_stored(20))
    assert 10 in _known(responses, 21)  # what was deleted no longer counts
    responses.add(_stored(21, size=95))
    assert _known(responses, 22) == [21]
    responses.add(_stored(22, size=101))
    assert _known(responses, 23) == []


async def test_what_is_done_displaces_nothing_that_is_still_made() -> None:
    responses = StoredResponses(most_responses=2)
    stats = Stats()
    responses.begin(_stored(0), Delivery(stats, b"key"), 0.05, None)
    for number in range(1, 9):
        responses.add(_stored(number))
    assert _known(responses, 9) == [0, 7, 8]
    while stats.in_flight:
        await asyncio.sleep(0.01)
    assert _known(responses, 9) == [0, 8]  # now the newest of what is done
