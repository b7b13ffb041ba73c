"""Limits that headers advertise by the second, the hour or the day (PROTOCOL B.4, D)."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.limits.rate import AdvertisedRate
from batchrun.limits.scopes import scope_limits
from batchrun.limits.verdicts import Wait
from batchrun.records import AdvertisedLimit, Finish, Need, Request, Scope, Slot
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")

Connect = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

KONG = {
    "X-RateLimit-Limit-Second": "50",
    "X-RateLimit-Remaining-Second": "49",
    "X-RateLimit-Limit-Hour": "10000",
    "X-RateLimit-Remaining-Hour": "9999",
    "X-RateLimit-Limit-Day": "100000",
    "X-RateLimit-Remaining-Day": "99999",
    "RateLimit-Limit": "50",
    "RateLimit-Remaining": "49",
    "RateLimit-Reset": "1",
}
SOON_FULL = {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "49", "X-RateLimit-Reset": "1"}
GROQ = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-remaining-requests": "14370",
    "x-ratelimit-reset-requests": "2m59.56s",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-tokens": "17997",
    "x-ratelimit-reset-tokens": "7.66s",
}
ANTHROPIC = {
    "anthropic-ratelimit-input-tokens-limit": "30000",
    "anthropic-ratelimit-input-tokens-remaining": "29000",
    "anthropic-ratelimit-output-tokens-limit": "8000",
    "anthropic-ratelimit-output-tokens-remaining": "7000",
}


@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
@pytest.mark.parametrize(
    ("headers", "rates"),
    [
        (KONG, {"requests": 50}),
        (SOON_FULL, {}),
        ({"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "49"}, {"requests": 50 / 60}),
        ({"RateLimit-Limit": "100, 100;w=10"}, {"requests": 10}),
        (
            {"RateLimit-Policy": '"default";q=1200;w=60', "RateLimit": '"default";r=50;t=30'},
            {"requests": 20},
        ),
        ({"RateLimit-Policy": '"default";q=9000;w=86400'}, {}),
        ({"X-RateLimit-Limit-Hour": "600", "X-RateLimit-Remaining-Hour": "500"}, {}),
        (
            {
                "X-RateLimit-Limit-Hour": "7200",
                "X-RateLimit-Remaining-Hour": "1800",
                "X-RateLimit-Reset-Hour": "1800",
            },
            {"requests": 1},
        ),
        (GROQ, {"tokens": 300}),
        ({"x-ratelimit-limit-tokens": "150,000"}, {"tokens": 2500}),
        (ANTHROPIC, {"input tokens": 500}),  # what the first answer used is paid for there
    ],
)
async def test_the_rate_is_that_of_the_window_which_the_headers_are_about(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    mode: str,
    headers: dict[str, str],
    rates: dict[str, float],
) -> None:
    async with endpoint([{"body": answer(), "headers": headers}], mode=mode) as connected:
        assert (await connected.outcome(request_of())).ok
        statuses = connected.gate.statuses()
    found = {one.of: one.per_s for one in statuses if "ratelimit" in one.name.lower()}
    assert found == pytest.approx(rates)


async def test_a_limit_by_the_day_that_is_used_up_is_waited_for_as_the_server_asks(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    headers = {
        "X-RateLimit-Limit-Day": "100",
        "X-RateLimit-Remaining-Day": "0",
        "Retry-After": "1",
    }
    limited = {"status": 429, "body": b"", "headers": headers}
    async with endpoint([limited, {"body": answer()}]) as connected:
        outcome = await connected.outcome(request_of())
    first, second = outcome.attempts
    assert second.started_at - first.started_at >= 1_000_000
    assert outcome.ok


def test_input_and_output_tokens_are_paced_each_for_itself() -> None:
    limit, need = AdvertisedRate("tokens"), Need(Scope("", "K", "m"), 1_000, output_tokens=900)
    advertised = (
        AdvertisedLimit("anthropic-ratelimit-input-tokens-limit", "input tokens", 60_000.0),
        AdvertisedLimit("anthropic-ratelimit-output-tokens-limit", "output tokens", 6_000.0),
    )
    limit.started(need, 0.0)
    limit.finished(Slot(need, 0.0), Finish(advertised=advertised, tokens=1_000), 0.0)
    assert limit.rate == 100.0
    limit.started(need, 1.0)

    def until_s(now_s: float) -> float:
        verdict = limit.verdict(need, now_s)
        assert isinstance(verdict, Wait)
        return verdict.until_s

    assert until_s(1.0) == pytest.approx(1.0 + 900 / 99.5, abs=0.2)  # for its output
    # Less than was reserved was used, and the next one goes sooner.
    limit.finished(Slot(need, 1.0), Finish(tokens=200, output_tokens=100), 1.5)
    assert until_s(1.5) == pytest.approx(1.0 + 100 / 99.5, abs=0.2)


@pytest.mark.parametrize("of", ["requests", "tokens"])
def test_what_the_user_gives_replaces_what_headers_say_of_the_same_limit(of: str) -> None:
    limits = [one for one in scope_limits(8, (of,)) if isinstance(one, AdvertisedRate)]
    need = Need(Scope("", "K", "m"), 10)
    said = tuple(AdvertisedLimit(f"limit-{one}", one, 60.0) for one in ("requests", "tokens"))
    for limit in limits:
        limit.started(need, 0.0)
        limit.finished(Slot(need, 0.0), Finish(advertised=said), 0.1)
    rates = dict(zip(("requests", "tokens"), (limit.rate for limit in limits), strict=True))
    assert rates.pop(of) == float("inf")
    assert set(rates.values()) == {1.0}


async def test_a_run_with_its_own_rate_does_not_wait_for_the_one_in_headers(
    serve: Callable[..., Any], answer: Make, tmp_path: Path
) -> None:
    """At one request a minute, as the headers have it, it would take ten minutes."""
    (tmp_path / "prompts.jsonl").write_text('{"input": "x"}\n' * 10, encoding="utf-8")
    headers = {"x-ratelimit-limit-requests": "1", "x-ratelimit-limit-tokens": "1"}
    async with serve([{"body": answer(), "headers": headers}]) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "batchrun", "run", "prompts.jsonl", "-o", "run", "--quiet"),
            *("--model", "m", "--base-url", server.base_url, "--rpm", "6000", "--tpm", "600000"),
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if "OPENAI" not in name},
            stdin=asyncio.subprocess.DEVNULL,
        )
        assert await asyncio.wait_for(process.wait(), HANG_S) == 0
        assert len(server.requests) == 10
