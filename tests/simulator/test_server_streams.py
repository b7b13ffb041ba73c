"""Streams over real sockets: what the API's own client makes of them, and how they end."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings

Start = Callable[..., Awaitable[str]]
Stats = Callable[..., Awaitable[dict[str, Any]]]
Sdk = Callable[[str], AsyncOpenAI]
Http = aiohttp.ClientSession

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
_KINDS: list[dict[str, Any]] = [
    {},
    {"tools": [_WEATHER], "tool_choice": "required"},
    {"tools": [{"type": "web_search"}], "tool_choice": "required"},
    {"model": "o3", "reasoning": {"summary": "auto"}, "tools": [_WEATHER]},
    {"max_output_tokens": 16},
    {"model": "o3", "max_output_tokens": 16},
]


async def _read(http: Http, base_url: str, **fields: Any) -> tuple[Any, bytes]:
    body = {"model": "gpt-4.1", "input": "hello", "stream": True, **fields}
    async with http.post(f"{base_url}/responses", json=body) as response:
        return response.headers, await response.read()


def _events(raw: bytes) -> list[dict[str, Any]]:
    events = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def _plain(http: Http, base_url: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "gpt-4.1", "input": "hello", **fields}
    async with http.post(f"{base_url}/responses", json=body) as response:
        answer: dict[str, Any] = await response.json()
        return answer


def _timeless(response: dict[str, Any]) -> dict[str, Any]:
    return {**response, "created_at": 0, "completed_at": 0}


@pytest.mark.parametrize("fields", _KINDS)
async def test_the_terminal_event_carries_what_a_plain_request_gets(
    fields: dict[str, Any], http: Http, start: Start
) -> None:
    settings = {"refusals": 0.2, "seed": 5}
    streaming, plain = await start(**settings), await start(**settings)
    for row in range(8):
        headers, raw = await _read(http, streaming, **{"input": f"row {row}", **fields})
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["x-request-id"].startswith("req_")
        events = _events(raw)
        for event in events:
            _EVENT.validate_json(json.dumps(event), strict=True)
        answer = await _plain(http, plain, **{"input": f"row {row}", **fields})
        assert _timeless(events[-1]["response"]) == _timeless(answer)


async def test_the_sdk_reads_a_stream_as_it_is_written(start: Start, sdk: Sdk) -> None:
    client = sdk(await start(latency_s=0.2, latency_spread=0))
    said = ""
    fields: dict[str, Any] = {"model": "m", "input": "hello", "temperature": 0}
    async for event in await client.responses.create(**fields, stream=True):
        if event.type == "response.output_text.delta":
            said += event.delta
        elif event.type == "response.completed":
            assert event.response.output_text == said
    assert said == (await client.responses.create(**fields)).output_text


async def test_events_are_spread_over_the_latency(http: Http, start: Start) -> None:
    base_url = await start(latency_s=0.5, latency_spread=0)
    body = {"model": "m", "input": "hello", "stream": True}
    async with http.post(f"{base_url}/responses", json=body) as response:
        pieces = [piece async for piece in response.content.iter_any()]
    assert len(pieces) > 5
    assert b"response.created" in pieces[0]
    assert b"delta" not in pieces[0]
    assert b"response.completed" in pieces[-1]


async def test_padding_is_left_out_where_it_is_not_wanted(http: Http, start: Start) -> None:
    base_url = await start()
    assert b"obfuscation" in (await _read(http, base_url))[1]
    options = {"include_obfuscation": False}
    assert b"obfuscation" not in (await _read(http, base_url, stream_options=options))[1]


async def test_a_stream_is_counted_as_a_plain_answer_is(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start()
    _, raw = await _read(http, base_url)
    usage = _events(raw)[-1]["response"]["usage"]
    counts = await stats(base_url)
    assert (counts["requests"], counts["completions"], counts["destroyed"]) == (1, 1, 0)
    assert counts["tokens"]["output"] == usage["output_tokens"]
    assert (counts["bodies"], counts["in_flight"]) == (1, 0)


async def test_streams_in_flight_are_never_counted_twice(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(latency_s=0.003)
    rows = iter(range(300))

    async def send() -> None:
        for row in rows:
            await _read(http, base_url, input=str(row))

    await asyncio.gather(*(send() for _ in range(8)))
    assert (await stats(base_url))["most_in_flight"] == 8


async def test_a_client_that_leaves_amid_the_stream_is_billed_all_the_same(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(latency_s=0.4, latency_spread=0)
    body = {"model": "m", "input": "hello", "stream": True}
    async with http.post(f"{base_url}/responses", json=body) as response:
        await response.content.readany()
        response.close()
    while not (counts := await stats(base_url))["completions"]:
        await asyncio.sleep(0.01)
    assert counts["destroyed_by"] == {"disconnect": 1}
    assert counts["in_flight"] == 0


async def test_a_server_ends_amid_a_stream(http: Http) -> None:
    async with serve(SimulatorSettings(latency_s=3_600)) as base_url:
        sent = asyncio.create_task(_read(http, base_url))
        await asyncio.sleep(0.1)
    with pytest.raises(aiohttp.ClientError):
        await sent


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("stream_error_nested", "server_error"),
        ("stream_error_null_code", None),
        ("stream_error_renamed", "do_request_failed"),
        ("stream_error_quota", "credit_balance_exhausted"),
        ("stream_error_rate", "too_many_requests"),
    ],
)
async def test_a_nested_error_ends_a_stream_and_bills_nothing(
    fault: str, code: str | None, http: Http, start: Start, sdk: Sdk, stats: Stats
) -> None:
    base_url = await start(fault_rates={fault: 1})
    *before, last = _events((await _read(http, base_url))[1])
    assert last["type"] == ("response.error" if fault == "stream_error_renamed" else "error")
    assert last["error"]["code"] == code
    has_deltas = any(event["type"].endswith("text.delta") for event in before)
    assert has_deltas is (fault not in ("stream_error_quota", "stream_error_rate"))
    with pytest.raises(openai.APIError):
        async for _ in await sdk(base_url).responses.create(model="m", input="x", stream=True):
            pass
    counts = await stats(base_url)
    assert (counts["completions"], counts["in_flight"]) == (0, 0)
    assert counts["faults"] == {fault: 2}


async def test_a_flat_error_ends_a_stream(http: Http, start: Start) -> None:
    last = _events((await _read(http, await start(fault_rates={"stream_error_flat": 1})))[1])[-1]
    _EVENT.validate_json(json.dumps(last), strict=True)
    assert (last["type"], last["code"]) == ("error", "server_error")


async def test_an_error_may_be_followed_by_the_failed_response(http: Http, start: Start) -> None:
    base_url = await start(fault_rates={"stream_error_failed": 1})
    *_, error, last = _events((await _read(http, base_url))[1])
    assert (error["type"], last["type"]) == ("error", "response.failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert last["sequence_number"] == error["sequence_number"] + 1


@pytest.mark.parametrize("fault", ["stream_end", "truncated_json"])
async def test_a_stream_may_end_cleanly_without_a_terminal_event(
    fault: str, http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(fault_rates={fault: 1})
    events = _events((await _read(http, base_url))[1])
    assert events[-1]["type"] == "response.output_text.delta"
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed"]) == (1, 1)
    assert counts["in_flight"] == 0


@pytest.mark.parametrize("fault", ["stream_reset", "reset_within"])
async def test_a_stream_may_be_reset(fault: str, http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(fault_rates={fault: 1})
    with pytest.raises(aiohttp.ClientError):
        await _read(http, base_url)
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed"]) == (1, 1)


@pytest.mark.parametrize("fault", ["stalled_body", "endless_body"])
async def test_a_stream_may_never_end(fault: str, http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(fault_rates={fault: 1})
    body = {"model": "m", "input": "hello", "stream": True}
    raw = b""
    async with http.post(f"{base_url}/responses", json=body) as response:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                async for piece in response.content.iter_any():
                    raw += piece
    assert b"output_text.delta" in raw
    assert b"response.completed" not in raw
    assert (b": PING\n\n" in raw) is (fault == "endless_body")
    assert (await stats(base_url))["destroyed_by"] == {fault: 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "completions"),
    [("failed", "failed", 0), ("failed_prompt", "failed", 0), ("content_filter", "incomplete", 1)],
)
async def test_a_response_may_end_badly_either_way(
    fault: str,
    status: str,
    completions: int,
    stream: bool,
    http: Http,
    start: Start,
    stats: Stats,
) -> None:
    base_url = await start(fault_rates={fault: 1})
    if stream:
        last = _events((await _read(http, base_url))[1])[-1]
        _EVENT.validate_json(json.dumps(last), strict=True)
        assert last["type"] == f"response.{status}"
        answer = last["response"]
    else:
        answer = await _plain(http, base_url)
    assert answer["status"] == status
    if status == "failed":
        assert answer["error"]["code"] in ("server_error", "invalid_prompt")
    else:
        assert answer["incomplete_details"] == {"reason": "content_filter"}
    assert (await stats(base_url))["completions"] == completions
