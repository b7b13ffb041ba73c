"""Usage in any spelling, and usage that is none (W.12)."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.records import Usage
from tests.processes import run_batchrun

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
WHOLE = Usage(62, 8, None, 18, 4, 80)

_SPELLINGS: dict[str, dict[str, Any]] = {
    "chat": {
        "prompt_tokens": 62,
        "completion_tokens": 18,
        "total_tokens": 80,
        "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
    "chat details": {
        "input_tokens": 62,
        "output_tokens": 18,
        "total_tokens": 80,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
    "both": {
        "input_tokens": 0,
        "prompt_tokens": 62,
        "output_tokens": 0,
        "completion_tokens": 18,
        "total_tokens": 80,
        "input_tokens_details": None,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
    "text": {
        "input_tokens": "62",
        "output_tokens": " 18 ",
        "total_tokens": "80.0",
        "input_tokens_details": {"cached_tokens": "8"},
        "output_tokens_details": {"reasoning_tokens": "4"},
    },
    "flat": {
        "input_tokens": 62,
        "output_tokens": 18,
        "total_tokens": 80,
        "cached_tokens": 8,
        "reasoning_tokens": 4,
    },
    "deepseek": {
        "prompt_tokens": 62,
        "completion_tokens": 18,
        "total_tokens": 80,
        "prompt_cache_hit_tokens": 8,
        "prompt_cache_miss_tokens": 54,
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
    "anthropic within": {
        "input_tokens": 62,
        "output_tokens": 18,
        "total_tokens": 80,
        "cache_read_input_tokens": 8,
        "reasoning_tokens": 4,
    },
    "anthropic beside": {
        "input_tokens": 54,
        "output_tokens": 18,
        "total_tokens": 80,
        "cache_read_input_tokens": 8,
        "reasoning_tokens": 4,
    },
    "camel": {
        "inputTokens": 62,
        "outputTokens": 18,
        "totalTokens": 80,
        "inputTokensDetails": {"cachedTokens": 8},
        "outputTokensDetails": {"reasoningTokens": 4},
    },
    "bedrock": {
        "inputTokens": 54,
        "outputTokens": 18,
        "totalTokens": 80,
        "cacheReadInputTokens": 8,
        "reasoningTokens": 4,
    },
}


@pytest.mark.parametrize("mode", ["plain", "stream"])
@pytest.mark.parametrize("spelling", _SPELLINGS)
async def test_tokens_are_read_in_any_spelling_and_stored_as_received(
    complete: Complete, answer: Make, mode: str, spelling: str
) -> None:
    said = _SPELLINGS[spelling]
    outcome = await complete([{"body": answer(usage=said)}], mode=mode)
    assert outcome.result.usage == WHOLE
    assert json.loads(outcome.result.usage_json) == said
    assert outcome.attempts[0].input_tokens == 62


@pytest.mark.parametrize(
    ("count", "known"),
    [("1,234", 1234), ("many", None), (-1, None), (True, None), (5.5, None), ("", None)],
)
async def test_what_is_no_count_is_none(
    complete: Complete, answer: Make, count: Any, known: int | None
) -> None:
    outcome = await complete([{"body": answer(usage={"input_tokens": count, "output_tokens": 5})}])
    assert outcome.result.usage == Usage(input_tokens=known, output_tokens=5)


@pytest.mark.parametrize(
    ("name", "cost", "dollars"),
    [
        ("cost", 0.25, 0.25),
        ("cost", "0.25", 0.25),
        ("cost", "$0.25", 0.25),
        ("cost", 1, 1.0),
        ("total_cost", "2.5e-1", 0.25),
        ("cost", "free", None),
        ("cost", -1, None),
        ("cost", None, None),
        ("cost", {"total": 1}, None),
        ("cost", "nan", None),
    ],
)
async def test_a_reported_cost_may_be_a_number_or_text(
    complete: Complete, answer: Make, name: str, cost: Any, dollars: float | None
) -> None:
    usage = {**answer()["usage"], name: cost}
    outcome = await complete([{"body": answer(usage=usage)}])
    assert outcome.result.reported_cost_usd == dollars
    assert outcome.result.usage == WHOLE


@pytest.mark.parametrize(
    "beside", ["in the last event", "in an event of its own", "without a type"]
)
@pytest.mark.parametrize("within", [None, {"input_tokens": 0, "output_tokens": 0}])
async def test_usage_beside_the_response_counts_where_the_response_has_none(
    complete: Complete, answer: Make, beside: str, within: Any
) -> None:
    usage = answer()["usage"]
    last: dict[str, Any] = {"type": "response.completed", "response": answer(usage=within)}
    said: list[Any] = [last]
    if beside == "in the last event":
        last["usage"] = usage
    elif beside == "in an event of its own":
        said = [{"type": "response.usage", "usage": usage}, last]
    else:
        said = [last, b"data: " + json.dumps({"usage": usage}).encode() + b"\n\n"]
    outcome = await complete([{"events": said}], mode="stream")
    assert outcome.result.usage == WHOLE
    assert json.loads(outcome.result.usage_json) == usage
    last |= {"usage": {"input_tokens": 1}, "response": answer()}
    assert (await complete([{"events": [last]}], mode="stream")).result.usage == WHOLE


_ZEROS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("mode", ["plain", "stream"])
@pytest.mark.parametrize(
    "usage", [_ZEROS, {"prompt_tokens": 0, "completion_tokens": 0}, {"output_tokens": "0"}, None]
)
async def test_no_tokens_beside_text_are_unknown_and_so_is_the_cost(
    complete: Complete, answer: Make, mode: str, usage: Any
) -> None:
    outcome = await complete([{"body": answer(usage=usage)}], mode=mode)
    assert outcome.ok
    assert outcome.result.usage == Usage()
    assert (outcome.cost_usd, outcome.attempts[0].cost_usd) == (None, None)
    assert json.loads(outcome.result.usage_json or "null") == usage


async def test_a_count_of_none_beside_text_is_unknown_alone(
    complete: Complete, answer: Make
) -> None:
    outcome = await complete([{"body": answer(usage={**_ZEROS, "input_tokens": 62})}])
    assert (outcome.result.usage.input_tokens, outcome.result.usage.output_tokens) == (62, None)


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_unknown_usage_counts_as_reserved_under_a_cap_and_is_said(
    serve: Callable[..., Any],
    environment: dict[str, str],
    tmp_path: Path,
    answer: Make,
    mode: str,
) -> None:
    rows = [{"custom_id": str(row), "input": "x", "max_output_tokens": 1000} for row in range(9)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with serve([{"body": answer(usage=_ZEROS)}]) as server:
        job = f"""
            input.path = "p.jsonl"
            request.model = "m"
            endpoint.base_url = "{server.base_url}"
            endpoint.mode = "{mode}"
            limits.max_cost_usd = 3.5
            limits.concurrency = 1
            pricing.m = {{ input = 1.0, output = 1000.0 }}
        """
        (tmp_path / "job.toml").write_text(job)
        done = await asyncio.to_thread(run_batchrun, tmp_path, environment, "run", "job.toml")
        assert len(server.requests) == 3
    assert done.returncode == 3
    assert "more by attempts whose cost is not known" in done.stderr
    assert "3 attempts reported no usage" in done.stderr
