import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.simulator.errors import render_duration, retry_headers
from batchrun.simulator.rate_limits import LimitExceeded, ModelRateLimits
from batchrun.simulator.settings import SimulatorSettings


@given(
    st.floats(min_value=1, max_value=6_000),
    st.floats(min_value=0.5, max_value=60),
    st.lists(st.floats(min_value=0, max_value=5), max_size=200),
)
def test_no_span_of_time_lets_more_in_than_a_full_bucket_and_what_flows_in(
    rate: float, burst_s: float, pauses: list[float]
) -> None:
    limits = ModelRateLimits(SimulatorSettings(requests_per_minute=rate, burst_s=burst_s))
    now_s, let_in = 0.0, []
    for pause in pauses:
        now_s += pause
        if limits.admit("m", 1, now_s) is None:
            let_in.append(now_s)
    capacity = max(rate * burst_s / 60, 1)
    for first, start_s in enumerate(let_in):
        for last, end_s in enumerate(let_in[first:], first):
            assert last - first + 1 <= capacity + (end_s - start_s) * rate / 60 + 1e-6


@given(st.floats(min_value=1, max_value=6_000), st.integers(min_value=1, max_value=50))
def test_a_refused_request_comes_in_after_the_wait_it_was_given(rate: float, sent: int) -> None:
    limits = ModelRateLimits(SimulatorSettings(requests_per_minute=rate, burst_s=1))
    refusals = [limits.admit("m", 1, 0.0) for _ in range(sent)]
    refusal = next((one for one in refusals if one is not None), None)
    if refusal is not None:
        assert refusal.wait_s is not None
        assert limits.admit("m", 1, refusal.wait_s + 1e-6) is None


def test_each_model_has_its_own_limit() -> None:
    limits = ModelRateLimits(SimulatorSettings(requests_per_minute=1))
    assert limits.admit("a", 1, 0.0) is None
    assert limits.admit("a", 1, 0.0) is not None
    assert limits.admit("b", 1, 0.0) is None


def test_a_request_larger_than_the_whole_limit_never_fits() -> None:
    refusal = ModelRateLimits(SimulatorSettings(tokens_per_minute=100)).admit("m", 101, 0.0)
    assert refusal is not None
    assert refusal.wait_s is None
    assert refusal.error("m", hints=True).message == (
        "Request too large for m on tokens per min (TPM): Limit 100, Requested 101."
    )


def test_what_was_reserved_and_not_used_is_given_back() -> None:
    limits = ModelRateLimits(SimulatorSettings(tokens_per_minute=100))
    assert limits.admit("m", 90, 0.0) is None
    assert limits.headers("m", 0.0)["x-ratelimit-remaining-tokens"] == "10"
    limits.settle("m", 90, 20)
    assert limits.headers("m", 0.0)["x-ratelimit-remaining-tokens"] == "80"
    limits.settle("m", 20, 500)
    assert limits.headers("m", 0.0)["x-ratelimit-remaining-tokens"] == "0"


def test_headers_tell_the_limit_what_is_left_and_when_it_is_full_again() -> None:
    limits = ModelRateLimits(SimulatorSettings(requests_per_minute=60, tokens_per_minute=600))
    assert limits.admit("m", 100, 0.0) is None
    assert limits.headers("m", 0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10s",
    }
    assert ModelRateLimits(SimulatorSettings()).headers("m", 0.0) == {}


def test_a_refusal_says_what_is_used_and_when_to_come_back_unless_it_may_not() -> None:
    error = LimitExceeded("requests", 3, 3, 1, 20.0).error("gpt-4.1", hints=True)
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert error.message == (
        "Rate limit reached for gpt-4.1 on requests per min (RPM): Limit 3, Used 3, Requested 1. "
        "Please try again in 20s."
    )
    bare = LimitExceeded("tokens", 3, 3, 1, 20.0).error("gpt-4.1", hints=False)
    assert bare.message == "Rate limit reached."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0115, "12ms"),
        (0.9999, "1s"),
        (1.5, "1.5s"),
        (9.816, "9.816s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3_605.25, "1h0m5.25s"),
    ],
)
def test_durations_are_written_as_the_api_does(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_retry_after_is_whole_seconds_and_the_exact_wait_stands_beside_it() -> None:
    assert retry_headers(0.2) == {"Retry-After": "1", "retry-after-ms": "200"}
    assert retry_headers(20) == {"Retry-After": "20", "retry-after-ms": "20000"}
