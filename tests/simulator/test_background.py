"""Background responses over real sockets: created once, asked after, cancelled, counted."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

Start = Callable[..., Awaitable[str]]
Stats = Callable[..., Awaitable[dict[str, Any]]]
Sdk = Callable[[str], AsyncOpenAI]
Http = aiohttp.ClientSession

_BODY = {"model": "gpt-4.1", "input": "hello", "background": True}


async def _call(http: Http, method: str, url: str, **fields: Any) -> tuple[int, Any]:
    async with http.request(method, url, json=fields or None) as response:
        raw = await response.read()
        if response.status == 200:
            Response.model_validate_json(raw, strict=True)
        return response.status, json.loads(raw)


async def _done(http: Http, base_url: str, id_: str) -> dict[str, Any]:
    while True:
        status, answer = await _call(http, "GET", f"{base_url}/responses/{id_}")
        assert status == 200
        if answer["status"] not in ("queued", "in_progress"):
            return dict(answer)
        await asyncio.sleep(0.02)


async def test_the_sdk_creates_asks_and_gets_what_a_plain_request_gets(
    start: Start, sdk: Sdk, stats: Stats
) -> None:
    base_url = await start(latency_s=1.0, latency_spread=0)
    client = sdk(base_url)
    response = await client.responses.create(
        model="m", input="hello", temperature=0, background=True
    )
    assert (response.status, response.background, response.output) == ("queued", True, [])
    seen = [str(response.status)]
    while response.status in ("queued", "in_progress"):
        await asyncio.sleep(0.02)
        response = await client.responses.retrieve(response.id)
        if seen[-1] != response.status:
            seen.append(str(response.status))
    assert seen == ["queued", "in_progress", "completed"]
    plain = await client.responses.create(model="m", input="hello", temperature=0)
    assert plain.output_text == response.output_text
    assert plain.usage == response.usage
    counts = await stats(base_url)
    assert (counts["completions"], counts["bodies"], counts["in_flight"]) == (2, 1, 0)
    assert counts["background"]["created"] == 1
    assert counts["background"]["polls"] >= 2


async def test_work_is_done_at_its_time_whether_or_not_anyone_asks(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(latency_s=0.2, latency_spread=0)
    _, created = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    counts = await stats(base_url)
    assert (counts["completions"], counts["in_flight"]) == (0, 1)
    while not (counts := await stats(base_url))["completions"]:
        await asyncio.sleep(0.02)
    assert (counts["in_flight"], counts["destroyed"]) == (0, 0)
    assert counts["background"] == {"created": 1, "polls": 0, "cancelled": 0}
    assert (await _done(http, base_url, created["id"]))["status"] == "completed"
    assert (await stats(base_url))["completions"] == 1


async def test_bodies_tell_which_was_created_twice(http: Http, start: Start, stats: Stats) -> None:
    base_url = await start()
    for text in ("a", "b", "a"):
        await _call(http, "POST", f"{base_url}/responses", **{**_BODY, "input": text})
    bodies = (await stats(base_url, by="body")).values()
    assert sorted(body["background"]["created"] for body in bodies) == [1, 2]


async def test_cancelled_work_is_never_done_and_may_be_cancelled_again(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(latency_s=0.3, latency_spread=0)
    _, created = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    url = f"{base_url}/responses/{created['id']}"
    for _ in range(2):
        status, answer = await _call(http, "POST", f"{url}/cancel")
        assert (status, answer["status"], answer["output"]) == (200, "cancelled", [])
    await asyncio.sleep(0.4)
    assert (await _call(http, "GET", url))[1]["status"] == "cancelled"
    counts = await stats(base_url)
    assert (counts["completions"], counts["in_flight"]) == (0, 0)
    assert counts["background"] == {"created": 1, "polls": 1, "cancelled": 1}


async def test_what_is_done_cannot_be_cancelled_any_more(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start()
    _, created = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    done = await _done(http, base_url, created["id"])
    url = f"{base_url}/responses/{created['id']}/cancel"
    assert await _call(http, "POST", url) == (200, done)
    assert (await stats(base_url))["background"]["cancelled"] == 0


async def test_an_unknown_response_is_not_found(start: Start, sdk: Sdk) -> None:
    base_url = await start()
    plain = await sdk(base_url).responses.create(model="m", input="x", store=False)
    for id_ in ("resp_unknown", plain.id):
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk(base_url).responses.retrieve(id_)
        assert "not found" in caught.value.message
        with pytest.raises(openai.NotFoundError):
            await sdk(base_url).responses.cancel(id_)


async def test_background_needs_store(http: Http, start: Start) -> None:
    base_url = await start()
    status, answer = await _call(http, "POST", f"{base_url}/responses", **_BODY, store=False)
    assert (status, answer["error"]["param"]) == (400, "store")


async def test_work_counts_as_in_flight_until_it_is_done(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(latency_s=0.3, latency_spread=0, max_in_flight=2)
    statuses = [
        (await _call(http, "POST", f"{base_url}/responses", **{**_BODY, "input": str(row)}))[0]
        for row in range(4)
    ]
    assert statuses == [200, 200, 503, 503]
    while (await stats(base_url))["in_flight"]:
        await asyncio.sleep(0.02)
    assert (await _call(http, "POST", f"{base_url}/responses", **_BODY))[0] == 200


@pytest.mark.parametrize("fault", ["failed", "failed_prompt"])
async def test_work_may_fail(fault: str, http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(fault_rates={fault: 1})
    _, created = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    done = await _done(http, base_url, created["id"])
    assert done["status"] == "failed"
    assert done["error"]
    assert (await stats(base_url))["completions"] == 0


async def test_an_error_begins_nothing(http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(fault_rates={"500_json": 1})
    assert (await _call(http, "POST", f"{base_url}/responses", **_BODY))[0] == 500
    counts = await stats(base_url)
    assert (counts["background"]["created"], counts["in_flight"]) == (0, 0)


@pytest.mark.parametrize("fault", ["reset_within", "truncated_json"])
async def test_work_whose_id_was_lost_is_done_and_destroyed(
    fault: str, http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(fault_rates={fault: 1}, latency_s=0.3, latency_spread=0)
    with pytest.raises((aiohttp.ClientError, json.JSONDecodeError)):
        async with http.post(f"{base_url}/responses", json=_BODY) as response:
            json.loads(await response.read())
    assert (await stats(base_url))["in_flight"] == 0
    while not (counts := await stats(base_url))["completions"]:
        await asyncio.sleep(0.01)
    assert counts["background"]["created"] == 1
    assert counts["destroyed_by"] == {fault: 1}


async def test_a_gateway_may_answer_at_once(http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(quirks=("at_once",))
    status, answer = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    assert (status, answer["status"]) == (200, "completed")
    assert (await stats(base_url))["background"]["created"] == 0


async def test_a_gateway_may_not_know_what_it_began(http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(quirks=("lost_background",))
    _, created = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    assert created["status"] == "queued"
    assert (await _call(http, "GET", f"{base_url}/responses/{created['id']}"))[0] == 404
    assert (await stats(base_url))["background"]["polls"] == 1


async def test_polls_may_fail_at_times(http: Http, start: Start) -> None:
    base_url = await start(quirks=("flaky_polls",))
    _, created = await _call(http, "POST", f"{base_url}/responses", **_BODY)
    statuses = []
    for _ in range(4):
        async with http.get(f"{base_url}/responses/{created['id']}") as response:
            statuses.append(response.status)
    assert statuses == [502, 200, 502, 200]


async def test_input_tokens_are_counted_as_they_are_billed(
    start: Start, sdk: Sdk, stats: Stats
) -> None:
    base_url = await start()
    client = sdk(base_url)
    counted = await client.responses.input_tokens.count(model="m", input="hello " * 100)
    assert counted.object == "response.input_tokens"
    answer = await client.responses.create(model="m", input="hello " * 100)
    assert answer.usage
    assert counted.input_tokens == answer.usage.input_tokens
    assert (await stats(base_url))["requests"] == 1
    for wrong in ({"bogus": 1}, {"tools": "none"}, {"input": [1]}):
        with pytest.raises(openai.BadRequestError):
            await client.responses.input_tokens.count(model="m", extra_body=wrong)
