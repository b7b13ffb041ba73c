"""Answers as servers send them, priced on the way from the wire to `batchrun cost`."""

import json
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from genai_prices import calc_price, extract_usage
from genai_prices.types import Usage as ListUsage

from batchrun.dispatch.attempt_result import AttemptResult, attempt_result
from batchrun.pricing.prices import Prices
from batchrun.records import Attempt, Outcome, Reply, Request, Response
from batchrun.reports.bill.cost import CostLine, read_costs
from batchrun.store.run_dir import RunDir
from tests.runs import run_record

AT = 1_795_000_000_000_000  # in November 2026

MODELS = {
    **dict.fromkeys(("gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o", "gpt-4o-mini"), "openai"),
    **dict.fromkeys(("gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.2", "gpt-5.4"), "openai"),
    **dict.fromkeys(("gpt-5.6-sol", "gpt-6-astra", "gpt-6.1-terra", "o3", "o4-mini"), "openai"),
    **dict.fromkeys(("claude-sonnet-4-5", "claude-haiku-4-5"), "anthropic"),
    **dict.fromkeys(("gemini-2.5-pro", "gemini-2.5-flash"), "google"),
    "mistral-large-latest": "mistral",
}
TIERS: dict[str, dict[str, str] | None] = {
    "default": {"service_tier": "default"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
    "batch": {"processing": "batch"},
}
# input, cached, written, output, reasoning, searches of the web, of files
MIXES = (
    (1_234, None, None, 567, None, 0, 0),
    (20_480, 18_432, 0, 901, 640, 0, 0),
    (8_000, 2_048, 4_096, 33, 0, 3, 0),
    (301_007, 250_112, 1_024, 12_345, 9_999, 0, 2),
    (200_001, 0, 150_000, 4_096, 4_096, 1, 1),
)


def _body(name: str, model: str, tier: str, mix: tuple[int | None, ...]) -> dict[str, Any]:
    tokens, cached, written, output, reasoning, web, files = mix
    assert tokens is not None
    assert output is not None
    found = [{"type": "web_search_call", "id": "ws", "action": {"type": "search"}}] * (web or 0)
    opened = [{"type": "web_search_call", "id": "ws", "action": {"type": "open_page"}}]
    files_found = [{"type": "file_search_call", "id": "fs", "queries": ["a"]}] * (files or 0)
    says = {"tool_usage": {"web_search": {"num_requests": web}}} if web == 3 else {}
    return {
        "id": f"resp_{name}",
        "object": "response",
        "status": "completed",
        "model": model,
        "service_tier": "default" if tier == "batch" else tier,
        "output": [*found, *(opened if web else []), *files_found],
        "usage": {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": tokens + output,
        },
        **says,
    }


def _of_the_library(
    body: dict[str, Any], model: str, tier: str, searches: tuple[int, int]
) -> float:
    """The library's own reading of the answer, and its own figure."""
    known = {**body, "model": "gpt-4.1"}  # its reader of this API wants a model of OpenAI's
    usage = extract_usage(known, provider_id="openai", api_flavor="responses").usage
    usage = usage + ListUsage(web_searches=searches[0], storage_searches=searches[1])
    cost = calc_price(
        usage,
        model,
        provider_id=MODELS[model],
        price_context=TIERS[tier],
        genai_request_timestamp=datetime.fromtimestamp(AT / 1e6, UTC),
    )
    return float(cost.total_price)


def _tried(body: dict[str, Any], model: str, via: str, row: int) -> tuple[Request, AttemptResult]:
    request = Request(row, f"id-{row}", "a.jsonl", b"{}", f"{row:016x}", model, None, ())
    begun = Attempt(AT + row, 0.0, "first", client_request_id="c")
    reply = Reply(200, json.dumps(body).encode(), "req_1", None, None)
    return request, attempt_result(reply, request, begun, 0.0, via, Prices({}))


def _store(path: Path, outcomes: list[Outcome], *, sealed: bool) -> None:
    """A run directory of these outcomes, some in parts and, unless sealed, some in the journal."""
    run_dir = RunDir.open(path)
    run_dir.save(run_record(state="finished", rows=len(outcomes), started_at=AT))
    run_dir.start(part_rows=200, part_bytes=1 << 26)
    for outcome in outcomes:
        run_dir.store(outcome)
    run_dir.close(seal=sealed)


async def test_500_recorded_usages_cost_what_the_library_says(tmp_path: Path) -> None:
    outcomes, by_model, by_tier = [], dict.fromkeys(MODELS, 0.0), dict.fromkeys(TIERS, 0.0)
    for row, (model, tier, mix) in enumerate(product(MODELS, TIERS, MIXES)):
        via = "batch" if tier == "batch" else "plain"
        body = _body(str(row), model, tier, mix)
        request, tried = _tried(body, model, via, row)
        cost = tried.attempt.cost_usd
        expected = _of_the_library(body, model, tier, (mix[5] or 0, mix[6] or 0))
        assert cost == pytest.approx(expected, rel=1e-12), (model, tier, mix)
        assert isinstance(tried.result, Response)
        outcomes.append(
            Outcome(
                request,
                tried.result,
                (tried.attempt,),
                "https://gateway.example/v1",
                via,
                cost_usd=cost,
                priced_as=tried.priced_as,
            )
        )
        by_model[model] += expected
        by_tier[tier] += expected
    assert len(outcomes) == 500
    for sealed in (False, True):
        path = tmp_path / f"run-{sealed}"
        _store(path, outcomes, sealed=sealed)
        (run,) = read_costs([path]).runs
        assert run.total.cost_usd == pytest.approx(sum(by_model.values()), rel=1e-9)
        assert run.total.cost_usd == pytest.approx(run.recorded_usd, rel=1e-9)
        assert _costs(run.by["model"]) == pytest.approx(by_model, rel=1e-9)
        tiers = {"standard": by_tier["default"], **by_tier}
        del tiers["default"]
        assert _costs(run.by["tier"]) == pytest.approx(tiers, rel=1e-9)
        assert (run.total.rows, run.total.attempts, run.total.unpriced) == (500, 500, 0)
        assert (run.total.web_searches, run.total.file_searches) == (400, 300)


async def test_an_answer_of_an_unknown_model_has_no_price_and_is_counted(tmp_path: Path) -> None:
    outcomes = []
    for row, model in enumerate(("house-model", "gpt-4.1", "house-model")):
        body = _body(str(row), model, "default", MIXES[0])
        request, tried = _tried(body, model, "plain", row)
        assert (tried.attempt.cost_usd is None) == (model == "house-model")
        outcome = Outcome(request, tried.result, (tried.attempt,), "e", "plain")
        outcomes.append(
            msgspec.structs.replace(
                outcome, cost_usd=tried.attempt.cost_usd, priced_as=tried.priced_as
            )
        )
    _store(tmp_path / "run", outcomes, sealed=True)
    (run,) = read_costs([tmp_path / "run"]).runs
    assert run.total.unpriced == 2
    assert _costs(run.by["model"])["house-model"] is None
    assert any("no price for house-model" in note and "2 attempts" in note for note in run.notes)


def _costs(lines: tuple[CostLine, ...]) -> dict[str | None, float | None]:
    return {line.name: line.cost_usd for line in lines}
