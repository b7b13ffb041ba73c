"""What clients that others wrote get from the server over real sockets."""

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped] # it ships no types
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from batchrun.simulator.errors import ApiError
from batchrun.simulator.server import Route, find_route, serve
from batchrun.simulator.settings import SimulatorSettings

Start = Callable[..., Awaitable[str]]
Stats = Callable[..., Awaitable[dict[str, Any]]]
Sdk = Callable[[str], AsyncOpenAI]
Http = aiohttp.ClientSession

_BFCL = Path(__file__).parents[3] / "shared" / "data" / "bfcl_parallel.jsonl"
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_CLOCK: dict[str, Any] = {"type": "function", "name": "get_time", "parameters": None}
_WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


async def _post(http: Http, base_url: str, /, **fields: Any) -> tuple[int, Any, Any]:
    body = {"model": "gpt-4.1", "input": "hello", **fields}
    async with http.post(f"{base_url}/responses", json=body) as response:
        return response.status, response.headers, json.loads(await response.read() or b"null")


def _strictly(raw: bytes) -> Response:
    return Response.model_validate_json(raw, strict=True)


async def test_the_sdk_gets_text(start: Start, sdk: Sdk) -> None:
    client = sdk(await start())
    response = await client.responses.create(model="gpt-4.1", input="hello", temperature=0)
    assert response.status == "completed"
    assert response.output_text.startswith("Simulated answer ")
    assert response.usage
    assert response.usage.output_tokens > 0
    again = await client.responses.create(model="gpt-4.1", input="hello", temperature=0)
    assert again.output_text == response.output_text
    assert again.id != response.id


async def test_the_sdk_s_own_model_takes_every_kind_of_answer_strictly(
    start: Start, sdk: Sdk
) -> None:
    client = sdk(await start(refusals=0.2, bad_arguments=0.2, bad_output=0.2))
    schema = _WEATHER["parameters"]
    kinds: list[dict[str, Any]] = [
        {},
        {"tools": [_WEATHER, _CLOCK], "tool_choice": "required"},
        {"tools": [_WEATHER], "parallel_tool_calls": False},
        {"text": {"format": {"type": "json_schema", "name": "w", "schema": schema}}},
        {"text": {"format": {"type": "json_object"}}, "instructions": "JSON, please."},
        {"model": "o4-mini", "reasoning": {"effort": "high", "summary": "auto"}},
        {"max_output_tokens": 16},
        {"model": "gpt-5", "max_output_tokens": 100, "tools": [_WEATHER]},
    ]
    for kind in kinds:
        for row in range(12):
            fields = {"model": "gpt-4.1", "input": f"row {row}", **kind}
            raw = await client.responses.with_raw_response.create(**fields)
            assert re.fullmatch(r"req_[0-9a-f]{32}", raw.headers["x-request-id"])
            strict = _strictly(raw.content)
            assert strict.output == raw.parse().output


async def test_the_sdk_gets_calls_structured_output_refusals_reasoning_and_cut_answers(
    start: Start, sdk: Sdk
) -> None:
    client = sdk(await start())
    tools: Any = [_WEATHER]
    calls = await client.responses.create(
        model="gpt-4.1", input="1", tools=tools, tool_choice="required"
    )
    assert calls.output
    for call in calls.output:
        assert call.type == "function_call"
        jsonschema.validate(json.loads(call.arguments), _WEATHER["parameters"])
    structured = await client.responses.create(
        model="gpt-4.1",
        input="2",
        text={
            "format": {"type": "json_schema", "name": "weather", "schema": _WEATHER["parameters"]}
        },
    )
    jsonschema.validate(json.loads(structured.output_text), _WEATHER["parameters"])
    thinking = await client.responses.create(model="o3", input="3")
    assert [item.type for item in thinking.output] == ["reasoning", "message"]
    assert thinking.usage
    assert thinking.usage.output_tokens_details.reasoning_tokens > 0
    cut = await client.responses.create(model="o3", input="4", max_output_tokens=16)
    assert cut.status == "incomplete"
    assert cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"
    refusing = sdk(await start(refusals=1))
    refused = (await refusing.responses.create(model="gpt-4.1", input="5")).output[0]
    assert refused.type == "message"
    assert refused.content[0].type == "refusal"


async def test_the_sdk_knows_each_error_for_what_it_is(start: Start, sdk: Sdk) -> None:
    client = sdk(await start(models=("gpt-4.1",)))
    with pytest.raises(openai.BadRequestError) as bad:
        await client.responses.create(model="gpt-4.1", input="x", extra_body={"bogus": 1})
    assert (bad.value.code, bad.value.param) == ("unknown_parameter", "bogus")
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.responses.create(model="gpt-9", input="x")
    assert unknown.value.code == "model_not_found"
    limited = sdk(await start(requests_per_minute=1))
    await limited.responses.create(model="gpt-4.1", input="x")
    with pytest.raises(openai.RateLimitError) as rate:
        await limited.responses.create(model="gpt-4.1", input="x")
    assert (rate.value.code, rate.value.type) == ("rate_limit_exceeded", "requests")
    assert rate.value.response.headers["retry-after"] == "60"
    locked = sdk(await start(api_key="the right one"))
    with pytest.raises(openai.AuthenticationError) as key:
        await locked.responses.create(model="gpt-4.1", input="x")
    assert key.value.code == "invalid_api_key"
    assert "made-up" not in str(key.value)
    full = sdk(await start(max_in_flight=0))
    with pytest.raises(openai.InternalServerError) as busy:
        await full.responses.create(model="gpt-4.1", input="x")
    assert (busy.value.status_code, busy.value.code) == (503, "server_is_overloaded")


async def test_models_are_listed(start: Start, sdk: Sdk) -> None:
    client = sdk(await start(models=("a", "vendor/b")))
    assert [model.id async for model in client.models.list()] == ["a", "vendor/b"]
    assert (await client.models.retrieve("a")).owned_by == "simulator"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("c")


async def test_the_right_key_opens_and_none_or_another_does_not(start: Start, http: Http) -> None:
    base_url = await start(api_key="sk-made-up-0123456789")
    body = json.dumps({"model": "m", "input": "x"})
    given = {
        "Bearer sk-made-up-0123456789": 200,
        "bearer sk-made-up-0123456789": 200,
        "Bearer sk-another-0123456789": 401,
        "Basic sk-made-up-0123456789": 401,
        "": 401,
    }
    for value, status in given.items():
        headers = {"Authorization": value} if value else {}
        for method, path in (("POST", "responses"), ("GET", "models")):
            async with http.request(
                method, f"{base_url}/{path}", data=body, headers=headers
            ) as response:
                assert response.status == status


async def test_bytes_paths_and_methods_that_are_wrong_get_the_api_s_errors(
    start: Start, http: Http
) -> None:
    base_url = await start()
    wrong = [
        ("POST", "/responses", b"{", 400, "parse the JSON body"),
        ("POST", "/responses", b"", 400, "parse the JSON body"),
        ("POST", "/responses", b"{}", 400, "'model'"),
        ("GET", "/responses", b"", 405, "Not allowed to GET on /v1/responses"),
        ("POST", "/models", b"", 405, "Not allowed to POST on /v1/models"),
        ("POST", "/chat/completions", b"{}", 404, "Invalid URL (POST /v1/chat/completions)"),
        ("GET", "/responses/resp_1", b"", 404, "Response with id 'resp_1' not found."),
        ("GET", "/responses/resp_1/x", b"", 404, "Invalid URL (GET /v1/responses/resp_1/x)"),
        ("GET", "/responses/input_tokens", b"", 405, "Not allowed to GET"),
    ]
    for method, path, data, status, message in wrong:
        async with http.request(method, base_url + path, data=data) as response:
            assert response.status == status
            error = (await response.json())["error"]
            assert message in error["message"]
            assert error["type"] == "invalid_request_error"


async def test_a_body_of_many_megabytes_is_read(start: Start, http: Http) -> None:
    body = json.dumps({"model": "m", "input": "x" * 8_000_000}).encode()
    async with http.post(f"{await start()}/responses", data=io.BytesIO(body)) as response:
        assert response.status == 200
        assert (await response.json())["usage"]["input_tokens"] > 2_000_000


async def test_limits_are_sent_in_headers_and_refuse_with_a_hint(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(requests_per_minute=2, tokens_per_minute=10_000)
    for left in ("1", "0"):
        status, headers, _ = await _post(http, base_url)
        assert status == 200
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == left
        assert headers["x-ratelimit-limit-tokens"] == "10000"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 10_000
        assert re.fullmatch(r"(\d+m)?[\d.]+s", headers["x-ratelimit-reset-requests"])
    status, headers, answer = await _post(http, base_url)
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 30
    assert int(headers["retry-after-ms"]) <= 30_000
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "Please try again in" in answer["error"]["message"]
    assert (await stats(base_url))["refused"] == {"requests": 1}


async def test_limits_without_hints_refuse_barely(start: Start, http: Http) -> None:
    base_url = await start(requests_per_minute=1, hints=False)
    _, first, _ = await _post(http, base_url)
    status, headers, answer = await _post(http, base_url)
    assert status == 429
    assert not [name for name in [*first, *headers] if "limit" in name.lower()]
    assert "Retry-After" not in headers
    assert answer["error"]["message"] == "Rate limit reached."


async def test_tokens_a_minute_count_what_an_answer_may_take(start: Start, http: Http) -> None:
    base_url = await start(tokens_per_minute=5_000)
    status, _, answer = await _post(http, base_url, max_output_tokens=6_000)
    assert (status, answer["error"]["type"]) == (429, "tokens")
    assert "Request too large" in answer["error"]["message"]
    status, headers, answer = await _post(http, base_url, max_output_tokens=4_000)
    assert status == 200
    assert int(headers["x-ratelimit-remaining-tokens"]) >= 5_000 - answer["usage"]["total_tokens"]


async def test_quota_is_used_up_after_so_many_answers(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(quota=2)
    answers = [await _post(http, base_url, input=str(row)) for row in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 429, 429]
    assert answers[-1][2]["error"]["code"] == "insufficient_quota"
    assert (await stats(base_url))["refused"] == {"quota": 2}


async def test_one_more_than_the_most_in_flight_gets_503(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(max_in_flight=3, latency_s=1, latency_spread=0)
    answers = await asyncio.gather(*(_post(http, base_url, input=str(row)) for row in range(10)))
    statuses = sorted(status for status, _, _ in answers)
    assert statuses == [200] * 3 + [503] * 7
    counts = await stats(base_url)
    assert (counts["most_in_flight"], counts["in_flight"]) == (3, 0)
    assert counts["refused"] == {"in_flight": 7}


async def test_a_client_with_so_many_requests_in_flight_is_seen_with_no_more(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(latency_s=0.002)
    rows = iter(range(400))

    async def send() -> None:
        for row in rows:
            assert (await _post(http, base_url, input=str(row)))[0] == 200

    await asyncio.gather(*(send() for _ in range(8)))
    assert (await stats(base_url))["most_in_flight"] == 8


async def test_stats_count_by_body_and_by_second(start: Start, http: Http, stats: Stats) -> None:
    base_url = await start()
    for text in ("a", "b", "a"):
        await _post(http, base_url, input=text, stream=False)
    await _post(http, base_url, bogus=1)
    counts = await stats(base_url)
    assert (counts["requests"], counts["completions"], counts["destroyed"]) == (4, 3, 0)
    assert counts["rejected"] == {"400": 1}
    assert counts["bodies"] == 3
    by_second = counts["by_second"].values()
    assert sum(second["requests"] for second in by_second) == 4
    assert sum(second["completions"] for second in by_second) == 3
    bodies = await stats(base_url, by="body")
    assert sorted(body["requests"] for body in bodies.values()) == [1, 1, 2]
    assert sum(body["completions"] for body in bodies.values()) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in bodies)


async def test_the_tokens_billed_are_those_that_answers_tell(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start()
    answers = [(await _post(http, base_url, model="o3", input=str(row)))[2] for row in range(5)]
    usages = [answer["usage"] for answer in answers]
    assert (await stats(base_url))["tokens"] == {
        "input": sum(usage["input_tokens"] for usage in usages),
        "output": sum(usage["output_tokens"] for usage in usages),
        "reasoning": sum(usage["output_tokens_details"]["reasoning_tokens"] for usage in usages),
    }


async def test_latencies_differ_from_attempt_to_attempt_and_repeat_with_the_seed(
    http: Http,
) -> None:
    async def times() -> list[str]:
        async with serve(SimulatorSettings(latency_s=0.01, latency_spread=1)) as base_url:
            answers = [await _post(http, base_url) for _ in range(5)]
            return [headers["openai-processing-ms"] for _, headers, _ in answers]

    first = await times()
    assert len(set(first)) > 1
    assert first == await times()


async def test_an_answer_whose_client_has_gone_counts_as_completed_and_destroyed(
    start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(latency_s=0.5, latency_spread=0)
    sent = asyncio.create_task(_post(http, base_url))
    while not (await stats(base_url))["in_flight"]:
        await asyncio.sleep(0.01)
    sent.cancel()
    while (await stats(base_url))["in_flight"]:
        await asyncio.sleep(0.01)
    while not (counts := await stats(base_url))["completions"]:
        await asyncio.sleep(0.01)
    assert counts["destroyed_by"] == {"disconnect": 1}
    (body,) = (await stats(base_url, by="body")).values()
    assert (body["requests"], body["completions"], body["destroyed"]) == (1, 1, 1)


async def test_leaving_drops_what_is_in_flight(http: Http) -> None:
    async with serve(SimulatorSettings(latency_s=3_600)) as base_url:
        waiting = [asyncio.create_task(_post(http, base_url, input=str(row))) for row in range(5)]
        await asyncio.sleep(0.1)
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, aiohttp.ClientError)


async def test_two_servers_do_not_share_a_port(start: Start) -> None:
    base_url = await start()
    port = int(base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(OSError, match="address already in use"):
        async with serve(SimulatorSettings(), port=port):
            pass


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("POST", "/v1/responses", (Route.RESPOND, "")),
        ("POST", "/v1/responses/", (Route.RESPOND, "")),
        ("POST", "/v1/responses/input_tokens", (Route.COUNT, "")),
        ("POST", "/v1/responses/compact", (Route.COMPACT, "")),
        ("GET", "/v1/responses/resp_1", (Route.RETRIEVE, "resp_1")),
        ("DELETE", "/v1/responses/resp_1", (Route.DELETE, "resp_1")),
        ("GET", "/v1/responses/resp_1/input_items", (Route.INPUT_ITEMS, "resp_1")),
        ("POST", "/v1/responses/resp_1/cancel", (Route.CANCEL, "resp_1")),
        ("GET", "/v1/models", (Route.MODELS, "")),
        ("GET", "/v1/models/vendor/b", (Route.MODELS, "vendor/b")),
        ("GET", "/stats", (Route.STATS, "")),
    ],
)
def test_each_path_is_known_by_its_method(method: str, path: str, found: tuple[Route, str]) -> None:
    assert find_route(method, path) == found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses", 405),
        ("PATCH", "/v1/responses/resp_1", 405),
        ("DELETE", "/v1/responses", 405),
        ("GET", "/v1/responses/resp_1/cancel", 405),
        ("POST", "/v1/responses/resp_1/input_items", 405),
        ("GET", "/v1/responses/compact", 405),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/", 404),
    ],
)
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        find_route(method, path)
    assert caught.value.status == status


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": re.sub(r"[^a-zA-Z0-9_-]", "_", function["name"]),
        "description": function["description"],
        "parameters": _schema(function["parameters"]),
    }


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    made = dict(schema)
    if made.get("type") == "any":
        del made["type"]
    elif "type" in made:
        made["type"] = _TYPES.get(made["type"], made["type"])
    if "properties" in made:
        made["properties"] = {name: _schema(one) for name, one in made["properties"].items()}
    if "items" in made:
        made["items"] = _schema(made["items"])
    return made


@pytest.mark.skipif(not _BFCL.exists(), reason=f"{_BFCL} is not there")
async def test_calls_for_real_prompts_fit_their_schemas(start: Start, http: Http) -> None:
    base_url = await start()
    counts = set()
    for line in _BFCL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tools = [_tool(function) for function in row["function"]]
        schemas = {tool["name"]: tool["parameters"] for tool in tools}
        status, _, answer = await _post(
            http, base_url, input=row["question"][0], tools=tools, tool_choice="required"
        )
        assert status == 200, answer
        counts.add(len(answer["output"]))
        for call in answer["output"]:
            jsonschema.Draft202012Validator(schemas[call["name"]]).validate(
                json.loads(call["arguments"])
            )
    assert counts == {1, 2, 3, 4}
