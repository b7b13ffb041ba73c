"""The errors of gateways, byte by byte where it matters, and over real sockets."""

import json
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from batchrun.simulator.errors import GATEWAY_FAULTS, GatewayError, fault_error
from batchrun.simulator.settings import SPREAD, Fault

Start = Callable[..., Awaitable[str]]
Stats = Callable[..., Awaitable[dict[str, Any]]]
Http = aiohttp.ClientSession

_KINDS = [fault for fault in Fault if fault in GATEWAY_FAULTS]


def _answer(fault: Fault, retry_after_s: float = 1.0) -> GatewayError:
    answer = fault_error(fault, retry_after_s)
    assert answer
    return answer


def _error(fault: Fault, retry_after_s: float = 1.0) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(_answer(fault, retry_after_s).body)["error"]
    return error


def test_a_429_says_when_in_many_ways() -> None:
    assert _answer(Fault.RATE_LIMIT_MS, 0.25).headers == {"retry-after-ms": "250"}
    assert _answer(Fault.RATE_LIMIT_FLOAT, 0.25).headers == {"Retry-After": "0.250"}
    assert _answer(Fault.RATE_LIMIT_RENAMED, 0.25).headers == {"llm_provider-retry-after": "0.25"}
    assert _answer(Fault.RATE_LIMIT_DAY).headers == {"Retry-After": "86400"}
    date = parsedate_to_datetime(_answer(Fault.RATE_LIMIT_DATE, 30.0).headers["Retry-After"])
    assert 29 < date.timestamp() - time.time() < 32
    for fault in (Fault.RATE_LIMIT_WORDS, Fault.RATE_LIMIT_AZURE, Fault.RATE_LIMIT_EMPTY):
        assert _answer(fault).headers == {}
    assert _error(Fault.RATE_LIMIT_WORDS, 0.02)["message"].endswith("Please try again in 20ms.")
    azure = _error(Fault.RATE_LIMIT_AZURE, 6.0)
    assert azure["code"] == "429"
    assert azure["message"].endswith("Please retry after 6 seconds.")
    assert _answer(Fault.RATE_LIMIT_EMPTY).body == b""


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.SLOW_DOWN, 429, "slow_down"),
        (Fault.TOO_LARGE_FOR_LIMIT, 429, "rate_limit_exceeded"),
        (Fault.CREDIT, 429, "credit_balance_exhausted"),
        (Fault.USER_QUOTA, 403, "insufficient_user_quota"),
        (Fault.CHARGE_QUOTA, 403, "pre_consume_token_quota_failed"),
        (Fault.KEY, 401, "invalid_api_key"),
        (Fault.NO_CHANNEL, 503, "model_not_found"),
        (Fault.CONVERT, 500, "convert_request_failed"),
        (Fault.LLAMA, 400, 400),
    ],
)
def test_codes_are_those_of_the_real_ones(fault: Fault, status: int, code: str | int) -> None:
    assert (_answer(fault).status, _error(fault)["code"]) == (status, code)


def test_a_quota_may_be_hidden_in_a_flattened_message() -> None:
    error = _error(Fault.QUOTA_FLATTENED)
    assert (error["code"], error["type"]) == ("429", "throttling_error")
    assert '"code": "insufficient_quota"' in error["message"]


def test_a_quota_may_be_stated_in_chinese_alone() -> None:
    error = _error(Fault.KEY_QUOTA)
    assert error["code"] == ""
    assert "额度已用尽" in error["message"]
    assert "额度不足" in _error(Fault.USER_QUOTA)["message"]


def test_bodies_have_every_shape() -> None:
    assert json.loads(_answer(Fault.DETAIL_TEXT).body)["detail"].startswith("Unexpected")
    assert json.loads(_answer(Fault.DETAIL_LIST).body)["detail"][0]["loc"] == ["body", "input"]
    assert json.loads(_answer(Fault.CLOUDFLARE_PROBLEM).body)["status"] == 524
    assert json.loads(_answer(Fault.ERROR_TEXT).body)["error"] == "the upstream went away"
    assert json.loads(_answer(Fault.SUCCESS_FALSE).body)["success"] is False
    assert json.loads(_answer(Fault.RESPONSE_ERROR).body)["response"]["error"]["code"]
    sse = _answer(Fault.SSE_500)
    assert sse.content_type.startswith("text/event-stream")
    assert sse.body.startswith(b'data: {"error":{')
    assert sse.body.endswith(b"}}\n\ndata: [DONE]\n\n")


def test_a_header_may_say_whether_to_retry() -> None:
    assert _answer(Fault.SHOULD_RETRY).headers == {"x-should-retry": "true"}
    assert _answer(Fault.SHOULD_NOT_RETRY).headers == {"x-should-retry": "false"}


def test_none_of_them_is_spread_over() -> None:
    assert not set(_KINDS) & set(SPREAD)


@pytest.mark.parametrize("way", [{}, {"stream": True}, {"background": True}])
@pytest.mark.parametrize("kind", _KINDS)
async def test_each_comes_over_the_wire_whatever_the_way_and_completes_nothing(
    kind: Fault, way: dict[str, Any], start: Start, http: Http, stats: Stats
) -> None:
    base_url = await start(fault_rates={kind: 1}, retry_after_s=0.5)
    expected = _answer(kind, 0.5)
    body = {"model": "m", "input": "x", **way}
    async with http.post(f"{base_url}/responses", json=body, allow_redirects=False) as response:
        raw = await response.read()
        assert response.status == expected.status
        assert raw == expected.body
        for name in expected.headers:
            assert name in response.headers
        if expected.content_type:
            assert response.headers["Content-Type"] == expected.content_type
        assert ("x-request-id" in response.headers) is (expected.content_type == "application/json")
    counts = await stats(base_url)
    assert (counts["completions"], counts["in_flight"]) == (0, 0)
    assert counts["faults"] == {kind: 1}
