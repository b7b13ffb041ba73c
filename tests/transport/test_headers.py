import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from batchrun.records import AdvertisedLimit
from batchrun.transport.headers import (
    ResponseHeaders,
    reported_cost_usd,
    request_id,
    retry_after_s,
)
from batchrun.transport.limit_headers import AdvertisedLimits, advertised_limits

NOW_S = 1_445_412_470.0  # Wed, 21 Oct 2015 07:27:50 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "150", "retry-after": "9"}, 0.15),
        ({"llm_provider-retry-after": "3"}, 3.0),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": f"{NOW_S + 30:.0f}"}, 30.0),
        ({"retry-after": f"{NOW_S - 30:.0f}"}, 0.0),
        ({"retry-after": f"{1000 * (NOW_S + 30):.0f}"}, 30.0),
        ({"retry-after-ms": f"{1000 * (NOW_S + 30):.0f}"}, 30.0),
        ({"llm_provider-retry-after": f"{NOW_S + 30:.0f}"}, 30.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "soon", "llm_provider-retry-after": "3"}, 3.0),
    ],
)
def test_every_form_of_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW_S) == seconds


def test_the_id_to_quote_to_support_is_found_under_its_many_names() -> None:
    assert request_id({"x-request-id": "a", "cf-ray": "b"}) == "a"
    assert request_id({"apim-request-id": "c"}) == "c"
    assert request_id({}) is None


def test_a_gateways_cost_is_read() -> None:
    assert reported_cost_usd({"x-litellm-response-cost": "0.0012"}) == 0.0012
    assert reported_cost_usd({"x-litellm-response-cost": "None"}) is None


def _limit(
    header: str,
    of: str,
    limit: float | None = None,
    remaining: float | None = None,
    reset_s: float | None = None,
    window_s: float | None = None,
) -> AdvertisedLimit:
    return AdvertisedLimit(header, of, limit, remaining, reset_s, window_s)


OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}


@pytest.mark.parametrize(
    ("headers", "advertised"),
    [
        ({}, []),
        ({"x-request-id": "a", "openai-processing-ms": "12"}, []),
        (
            OPENAI,
            [
                _limit("x-ratelimit-limit-requests", "requests", 60, 59, 1),
                _limit("x-ratelimit-limit-tokens", "tokens", 150_000, 149_984, 360),
            ],
        ),
        (
            {f"llm_provider-{name}": value for name, value in OPENAI.items()},
            [
                _limit("llm_provider-x-ratelimit-limit-requests", "requests", 60, 59, 1),
                _limit("llm_provider-x-ratelimit-limit-tokens", "tokens", 150_000, 149_984, 360),
            ],
        ),
        (
            {
                "x-ratelimit-limit-tokens": "1e6",
                "x-ratelimit-limit-tokens_usage_based": "90000",
                "x-ratelimit-remaining-tokens_usage_based": "7.5",
                "x-ratelimit-limit-project-tokens": "1000",
                "x-ratelimit-remaining-project-tokens": "0",
                "x-ratelimit-reset-project-tokens": "59",
            },
            [
                _limit("x-ratelimit-limit-tokens", "tokens", 1_000_000),
                _limit("x-ratelimit-limit-tokens_usage_based", "tokens", 90_000, 7.5),
                _limit("x-ratelimit-limit-project-tokens", "tokens", 1000, 0, 59),
            ],
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2015-10-21T07:28:00Z",
                "anthropic-ratelimit-tokens-limit": "100000",
                "anthropic-ratelimit-tokens-reset": "2015-10-21T09:28:00.5+02:00",
                "anthropic-ratelimit-input-tokens-limit": "80000",
                "anthropic-ratelimit-output-tokens-limit": "20000",
                "anthropic-ratelimit-output-tokens-remaining": "20000",
            },
            [
                _limit("anthropic-ratelimit-requests-limit", "requests", 50, 49, 10),
                _limit("anthropic-ratelimit-tokens-limit", "tokens", 100_000, None, 10.5),
                _limit("anthropic-ratelimit-input-tokens-limit", "input tokens", 80_000),
                _limit("anthropic-ratelimit-output-tokens-limit", "output tokens", 20_000, 20_000),
            ],
        ),
        *(
            (
                {
                    "X-RateLimit-Limit": "20",
                    "X-RateLimit-Remaining": "3",
                    "X-RateLimit-Reset": reset,
                },
                [_limit("X-RateLimit-Limit", "requests", 20, 3, reset_s)],
            )
            for reset, reset_s in (
                ("1445412480000", 10),
                ("1445412480", 10),
                ("1445412000", 0),
                ("10", 10),
                ("Wed, 21 Oct 2015 07:28:00 GMT", 10),
                ("2015-10-21T07:28:00", 10),
                ("in a while", None),
                ("", None),
            )
        ),
        (
            {
                "ratelimit-limit": "100, 100;w=60",
                "ratelimit-remaining": "9",
                "ratelimit-reset": "5",
            },
            [_limit("ratelimit-limit", "requests", 100, 9, 5, 60)],
        ),
        (
            {"RateLimit-Limit": "5000, 5000;w=3600", "RateLimit-Remaining": "9"},
            [_limit("RateLimit-Limit", "requests", 5000, 9, None, 3600)],
        ),
        ({"RateLimit-Limit": "5000, 5000;w=86400", "RateLimit-Remaining": "9"}, []),
        (
            {"X-RateLimit-Limit": '10, 10;w=1;name="a, b", 1000;w=3600'},
            [
                _limit("X-RateLimit-Limit;w=3600", "requests", 1000, None, None, 3600),
                _limit("X-RateLimit-Limit", "requests", 10, None, None, 1),
            ],
        ),
        (  # Kong: the plain ones repeat the tightest of those with their windows
            {
                "X-RateLimit-Limit-Second": "50",
                "X-RateLimit-Remaining-Second": "49",
                "X-RateLimit-Limit-Hour": "10,000",
                "X-RateLimit-Remaining-Hour": "9,999",
                "X-RateLimit-Limit-Day": "100000",
                "X-RateLimit-Limit-Month": "1000000",
                "RateLimit-Limit": "50",
                "RateLimit-Remaining": "49",
                "RateLimit-Reset": "1",
            },
            [
                _limit("X-RateLimit-Limit-Second", "requests", 50, 49, None, 1),
                _limit("X-RateLimit-Limit-Hour", "requests", 10_000, 9_999, None, 3600),
            ],
        ),
        (
            {
                "RateLimit-Policy": '"default";q=100;w=60, "daily";q=9;w=86400, "b";qu="bytes";q=9',
                "RateLimit": '"default";r=50;t=30',
            },
            [_limit('ratelimit-policy "default"', "requests", 100, 50, 30, 60)],
        ),
        (
            {"RateLimit-Policy": "100;w=10", "RateLimit": "limit=100, remaining=40, reset=5"},
            [_limit("ratelimit-policy;w=10", "requests", 100, 40, 5, 10)],
        ),
        (
            {
                "RateLimit-Policy": "100;w=10, 1000;w=3600",
                "RateLimit-Limit": "100",
                "RateLimit-Remaining": "40",
                "RateLimit-Reset": "5",
            },
            [
                _limit("RateLimit-Limit", "requests", 100, 40, 5, 10),
                _limit("ratelimit-policy;w=3600", "requests", 1000, None, None, 3600),
            ],
        ),
        (
            {"x-ratelimit-limit-requests-per-second": "5", "x-ratelimit-limit-tokens": "150,000"},
            [
                _limit("x-ratelimit-limit-requests-per-second", "requests", 5, window_s=1),
                _limit("x-ratelimit-limit-tokens", "tokens", 150_000),
            ],
        ),
        (
            {"x-ratelimit-limit-tokens-minute": "9", "x-ratelimit-limit-tokens-day": "900"},
            [_limit("x-ratelimit-limit-tokens-minute", "tokens", 9, window_s=60)],
        ),
        ({"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "0"}, []),
        ({"x-ratelimit-limit-requests": "0", "x-ratelimit-reset-requests": "0"}, []),
        ({"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "nan"}, []),
        (
            {"x-ratelimit-limit-tokens": "8", "x-ratelimit-remaining-tokens": "-1"},
            [_limit("x-ratelimit-limit-tokens", "tokens", 8)],
        ),
        (
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "12ms"},
            [_limit("x-ratelimit-remaining-tokens", "tokens", None, 0, 0.012)],
        ),
        ({"x-ratelimit-limit-images": "5", "x-ratelimit-limit": "7"}, ["x-ratelimit-limit"]),
    ],
)
def test_the_limits_that_a_server_advertises_are_read_in_all_spellings(
    headers: dict[str, str], advertised: list[AdvertisedLimit | str]
) -> None:
    found = advertised_limits(CIMultiDict(headers), NOW_S)
    if advertised and isinstance(advertised[0], str):
        assert [one.header for one in found] == advertised
    else:
        assert list(found) == advertised


_parts = st.sampled_from(
    [
        "x",
        "ratelimit",
        "rate",
        "limit",
        "remaining",
        "reset",
        "requests",
        "tokens",
        "project",
        "llm_provider",
        "anthropic",
        "input",
        "output",
        "second",
        "minute",
        "day",
        "policy",
    ]
)
_names = st.lists(_parts, max_size=6).map("-".join) | st.sampled_from(list(OPENAI)) | st.text()
_values = (
    st.text()
    | st.integers().map(str)
    | st.floats().map(str)
    | st.datetimes().map(str)
    | st.from_regex(r"[0-9.]{0,4}(ms|s|m|h|Z|;w=60|, )?[0-9]{0,15}(ms|s)?", fullmatch=True)
    | st.from_regex(r'("a"|limit=)?[0-9]{0,4}(;[qrtw]=[0-9]{0,9}){0,4}(, )?"?', fullmatch=True)
)


@given(st.dictionaries(_names, _values), st.floats(0, 1e10))
def test_any_headers_can_be_read(headers: dict[str, str], now_s: float) -> None:
    plain = {"x-ratelimit-limit-requests": "1"}
    advertised = advertised_limits(CIMultiDict({**headers, **plain}), now_s)
    for one in advertised:
        assert one.of in {"requests", "tokens", "input tokens", "output tokens"}
        assert one.limit is not None or one.remaining is not None
        assert all(
            value is None or (value >= 0 and math.isfinite(value))
            for value in (one.limit, one.remaining, one.reset_s, one.window_s)
        )
    assert any(one.header.lower() == "x-ratelimit-limit-requests" for one in advertised)


def test_of_answers_with_the_same_limits_a_hundred_a_second_are_read_and_errors_always() -> None:
    limits = AdvertisedLimits()

    def read(size: int, http_status: int, now_s: float) -> int:
        headers = ResponseHeaders({b"X-RateLimit-Limit-Requests": str(size).encode()})
        return len(limits.read(headers, http_status, now_s))

    assert [read(60, 200, now_s) for now_s in (5.0, 5.004, 5.009, 5.011)] == [1, 0, 0, 1]
    assert [read(30, 200, now_s) for now_s in (5.012, 5.013)] == [1, 0]
    assert [read(60, 429, now_s) for now_s in (5.014, 5.015)] == [1, 1]
    assert [read(size, 200, 5.016) for size in range(1000, 1200)] == [1] * 200
