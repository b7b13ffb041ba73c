"""Each quirk as it looks to a client."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from batchrun.simulator.settings import Quirk

Start = Callable[..., Awaitable[str]]
Stats = Callable[..., Awaitable[dict[str, Any]]]
Sdk = Callable[[str], AsyncOpenAI]
Http = aiohttp.ClientSession

_OF_STREAMS = [
    Quirk.NO_EVENT_LINES,
    Quirk.PINGS,
    Quirk.CRLF,
    Quirk.NO_SPACE,
    Quirk.SPLIT_DATA,
    Quirk.CUT_BYTES,
    Quirk.DONE,
    Quirk.NO_SEQUENCE_NUMBERS,
    Quirk.REPEATED_CREATED,
]


async def _send(http: Http, base_url: str, **fields: Any) -> tuple[Any, bytes]:
    body = {"model": "gpt-4.1", "input": "hello", **fields}
    async with http.post(f"{base_url}/responses", json=body) as response:
        assert response.status == 200
        return response.headers, await response.read()


async def _plain(http: Http, base_url: str, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await _send(http, base_url, **fields))[1])
    return answer


async def _stream(http: Http, base_url: str, **fields: Any) -> bytes:
    return (await _send(http, base_url, stream=True, **fields))[1]


def _data(raw: bytes) -> list[dict[str, Any]]:
    """The data of each event, for streams with LF and one `data: ` line an event."""
    lines = [line for line in raw.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line[6:]) for line in lines]


@pytest.mark.parametrize("quirk", _OF_STREAMS)
async def test_the_sdk_reads_the_same_through_every_quirk_of_writing(
    quirk: Quirk, start: Start, sdk: Sdk
) -> None:
    plain = await sdk(await start()).responses.create(model="m", input="hello")
    client = sdk(await start(quirks=(quirk,)))
    said, final = "", None
    async for event in await client.responses.create(model="m", input="hello", stream=True):
        if event.type == "response.output_text.delta":
            said += event.delta
        elif event.type == "response.completed":
            final = event.response
    assert said == plain.output_text
    assert final
    assert final.output == plain.output


async def test_all_quirks_of_writing_may_come_together(start: Start, sdk: Sdk) -> None:
    client = sdk(await start(quirks=tuple(_OF_STREAMS), latency_s=0.1))
    async for event in await client.responses.create(model="m", input="hello", stream=True):
        last = event.type
    assert last == "response.completed"


async def test_a_stream_may_have_no_event_lines(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("no_event_lines",)))
    assert raw.startswith(b"data: {")
    assert b"\nevent:" not in raw


async def test_comments_may_come_before_events(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("pings",)))
    assert raw.startswith(b": PING\n\nevent: response.created\n")
    assert raw.count(b": PING\n\n") == len(_data(raw))


async def test_lines_may_end_in_crlf(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("crlf",)))
    assert raw.count(b"\r\n") == raw.count(b"\n") > 10


async def test_a_space_after_the_colon_may_be_missing(http: Http, start: Start) -> None:
    assert b"\ndata:{" in await _stream(http, await start(quirks=("no_space",)))


async def test_an_event_may_take_several_data_lines(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("split_data",)))
    assert raw.count(b"\ndata: ") == 3 * raw.count(b"event: ")
    first = raw.split(b"\n\n")[0].split(b"\n")[1:]
    data = b"\n".join(line.removeprefix(b"data: ") for line in first)
    assert json.loads(data)["type"] == "response.created"


async def test_pieces_may_end_anywhere_and_amid_a_character(http: Http, start: Start) -> None:
    base_url = await start(quirks=("cut_bytes",), output_tokens=2_000)
    body = {"model": "m", "input": "hello", "stream": True}
    ends_amid = 0
    async with http.post(f"{base_url}/responses", json=body) as response:
        pieces = [piece async for piece, _ in response.content.iter_chunks()]
    for piece in pieces:
        try:
            piece.decode()
        except UnicodeDecodeError:
            ends_amid += 1
    assert len(pieces) > 100
    assert ends_amid
    assert b"response.completed" in b"".join(pieces)


async def test_done_may_end_a_stream(http: Http, start: Start) -> None:
    assert (await _stream(http, await start(quirks=("done",)))).endswith(b"}\n\ndata: [DONE]\n\n")


async def test_the_last_blank_line_may_be_missing(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("no_last_blank",)))
    assert raw.endswith(b"}\n")
    assert _data(raw)[-1]["type"] == "response.completed"


async def test_a_connection_may_stay_open_after_the_terminal_event(
    http: Http, start: Start, stats: Stats
) -> None:
    base_url = await start(quirks=("stays_open",))
    body = {"model": "m", "input": "hello", "stream": True}
    raw = b""
    async with http.post(f"{base_url}/responses", json=body) as response:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                async for piece in response.content.iter_any():
                    raw += piece
    assert _data(raw)[-1]["type"] == "response.completed"
    counts = await stats(base_url)
    assert (counts["completions"], counts["destroyed"], counts["in_flight"]) == (1, 0, 0)


async def test_sequence_numbers_may_be_missing(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("no_sequence_numbers",)))
    assert b"sequence_number" not in raw


async def test_the_first_event_may_be_repeated(http: Http, start: Start) -> None:
    raw = await _stream(http, await start(quirks=("repeated_created",)))
    assert raw.count(b"event: response.created\n") == 3


async def test_the_terminal_event_may_lack_the_output(http: Http, start: Start) -> None:
    events = _data(await _stream(http, await start(quirks=("no_final_output",))))
    assert "output" not in events[-1]["response"]
    assert any(event["type"] == "response.output_item.done" for event in events)


async def test_a_completed_event_may_carry_an_incomplete_response(http: Http, start: Start) -> None:
    base_url = await start(quirks=("completed_incomplete",), output_tokens=500)
    last = _data(await _stream(http, base_url, max_output_tokens=16))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.completed", "incomplete")


async def test_a_stream_may_come_where_none_was_asked_for(http: Http, start: Start) -> None:
    headers, raw = await _send(http, await start(quirks=("sse_for_json",)), stream=False)
    assert headers["Content-Type"].startswith("text/event-stream")
    assert _data(raw)[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("quirk", "type_"),
    [("json_for_sse", "application/json"), ("json_as_sse", "text/event-stream; charset=utf-8")],
)
async def test_json_may_come_where_a_stream_was_asked_for(
    quirk: str, type_: str, http: Http, start: Start
) -> None:
    headers, raw = await _send(http, await start(quirks=(quirk,)), stream=True)
    assert headers["Content-Type"] == type_
    assert json.loads(raw)["status"] == "completed"


async def test_usage_may_be_missing_null_or_nothing(http: Http, start: Start, stats: Stats) -> None:
    base_url = await start(quirks=("no_usage",))
    assert "usage" not in await _plain(http, base_url)
    assert (await stats(base_url))["tokens"]["output"] > 0
    assert (await _plain(http, await start(quirks=("null_usage",))))["usage"] is None
    zero = (await _plain(http, await start(quirks=("zero_usage",))))["usage"]
    assert (zero["input_tokens"], zero["output_tokens"], zero["total_tokens"]) == (0, 0, 0)
    null = (await _plain(http, await start(quirks=("null_details",))))["usage"]
    assert null["output_tokens_details"] == {"reasoning_tokens": None}
    assert null["output_tokens"] > 0
    none = (await _plain(http, await start(quirks=("no_details",))))["usage"]
    assert set(none) == {"input_tokens", "output_tokens", "total_tokens"}


async def test_a_cut_answer_may_be_said_to_be_completed(http: Http, start: Start) -> None:
    base_url = await start(quirks=("completed_though_cut",), output_tokens=500)
    answer = await _plain(http, base_url, max_output_tokens=16)
    assert (answer["status"], answer["incomplete_details"]) == ("completed", None)
    assert answer["usage"]["output_tokens"] == 16
    last = _data(await _stream(http, base_url, max_output_tokens=16))[-1]
    assert last["type"] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_nan_and_lone_surrogates_may_stand_in_the_json(
    stream: bool, http: Http, start: Start
) -> None:
    base_url = await start(quirks=("nan", "surrogates"))
    _, raw = await _send(http, base_url, stream=stream)
    assert b'"temperature":NaN' in raw
    assert b"\\ud83d" in raw
    answer = _data(raw)[-1]["response"] if stream else json.loads(raw)
    assert math.isnan(answer["temperature"])
    assert answer["output"][0]["content"][0]["text"].endswith("\ud83d")
    if stream:
        deltas = [e["delta"] for e in _data(raw) if e["type"] == "response.output_text.delta"]
        assert "".join(deltas) == answer["output"][0]["content"][0]["text"]


async def test_a_gateway_may_rename_models_and_add_fields_and_headers(
    http: Http, start: Start
) -> None:
    base_url = await start(
        quirks=("renamed_model", "float_times", "extras", "unknown_item", "other_request_id")
    )
    headers, raw = await _send(http, base_url)
    answer = json.loads(raw)
    assert answer["model"] == "gpt-4.1-data"
    assert isinstance(answer["created_at"], float)
    assert answer["content_filters"] is None
    assert answer["output_text"] == answer["output"][0]["content"][0]["text"]
    assert answer["usage"]["cost"] == 0.00042
    assert headers["x-litellm-response-cost"] == "0.00042"
    assert answer["output"][-1]["type"] == "telepathy_call"
    assert headers["x-oneapi-request-id"]
    assert "x-request-id" not in headers
    last = _data(await _stream(http, base_url))[-1]["response"]
    assert last["output"][-1]["type"] == "telepathy_call"


async def test_the_echo_may_be_that_of_another_request(http: Http, start: Start) -> None:
    base_url = await start(quirks=("other_echo",))
    tool = {"type": "function", "name": "random_generator", "parameters": None}
    answer = await _plain(http, base_url, tools=[tool], tool_choice="required")
    assert [tool["name"] for tool in answer["tools"]] == ["get_horoscope"]
    assert answer["output"][0]["name"] == "random_generator"


@pytest.mark.parametrize("quirk", list(Quirk))
@pytest.mark.parametrize("way", [{}, {"stream": True}, {"background": True}])
async def test_every_quirk_lets_every_way_through(
    quirk: Quirk, way: dict[str, Any], start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(quirks=(quirk,))
    body = {"model": "o3", "input": "hello", "reasoning": {"summary": "auto"}, **way}
    raw = b""
    async with http.post(f"{base_url}/responses", json=body) as response:
        assert response.status == 200
        async for piece in response.content.iter_any():
            raw += piece
            if quirk is Quirk.STAYS_OPEN and b"event: response.completed" in raw:
                break
    assert raw
    while not (counts := await stats(base_url))["completions"]:
        await asyncio.sleep(0.01)
    assert (counts["completions"], counts["destroyed"]) == (1, 0)
