"""Headers of an answer: hints, ids, costs (PROTOCOL 0.10, B.4)."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from batchrun.errors import ErrorKind, RunStopped
from batchrun.formats.amounts import duration_s
from batchrun.transport.headers import request_id, retry_after_s

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

NOW_S = 1_445_412_470.0  # Wed, 21 Oct 2015 07:27:50 GMT


def _limited(**headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"status": 429, "body": b"", "headers": named}


@pytest.mark.parametrize(
    ("headers", "least_s"),
    [
        ({"retry-after-ms": "150"}, 0.15),
        ({"Retry-After": "1"}, 1.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"RETRY-AFTER-MS": "150", "Retry-After": "500"}, 0.15),
        ({"llm_provider-retry-after": "0.2"}, 0.2),
        ({"retry-after": "20ms"}, 0.02),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "later"}, 0.0),
        ({}, 0.0),
    ],
)
async def test_a_wait_that_the_server_asks_for_is_waited(
    complete: Complete, answer: Make, headers: dict[str, str], least_s: float
) -> None:
    limited = {"status": 429, "body": b"", "headers": headers}
    outcome = await complete([limited, {"body": answer()}])
    first, second = outcome.attempts
    assert second.started_at - first.started_at >= least_s * 1e6
    assert outcome.ok


async def test_a_date_to_wait_for_is_waited_for(complete: Complete, answer: Make) -> None:
    until = datetime.now(UTC) + timedelta(seconds=2)  # the format has whole seconds
    limited = _limited(retry_after=format_datetime(until, usegmt=True))
    outcome = await complete([limited, {"body": answer()}])
    assert outcome.attempts[1].started_at >= int(until.timestamp()) * 1_000_000


async def test_a_wait_longer_than_a_rows_whole_time_stops_the_run(complete: Complete) -> None:
    with pytest.raises(RunStopped, match="wait 86400 s"):
        await complete([_limited(retry_after="86400")])


async def test_a_huge_wait_of_a_server_in_trouble_ends_the_run(complete: Complete) -> None:
    step = {"status": 503, "body": b"", "headers": {"retry-after": "86400"}}
    with pytest.raises(RunStopped, match="86400 s, longer than limits"):
        await complete([step])


async def test_a_huge_wait_that_is_about_one_row_ends_the_row(complete: Complete) -> None:
    step = {"status": 500, "body": b"", "headers": {"retry-after": "86400"}}
    outcome = await complete([step])
    assert (outcome.result.status, len(outcome.attempts)) == ("no_answer", 1)


async def test_the_words_of_a_message_are_a_hint_where_no_header_is(
    complete: Complete, answer: Make
) -> None:
    for words, least_s in (("in 120ms", 0.12), ("in 0.2s.", 0.2), ("in 0m1s", 1.0)):
        error = {"error": {"message": f"Limit 3, Used 3. Please try again {words}", "code": "429"}}
        outcome = await complete([{"status": 429, "body": error}, {"body": answer()}])
        first, second = outcome.attempts
        assert second.started_at - first.started_at >= least_s * 1e6


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-reset-tokens": "1h0m0s"},
        {"llm_provider-x-ratelimit-reset-requests": "6m0s"},
        {"anthropic-ratelimit-requests-reset": "2099-01-01T00:00:00Z"},
        {"X-RateLimit-Reset": "4102444800000"},
        {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "0"},
    ],
)
async def test_when_a_limit_is_full_again_is_no_time_to_wait(
    complete: Complete, answer: Make, headers: dict[str, str]
) -> None:
    assert retry_after_s(headers, NOW_S) is None
    limited = {"status": 429, "body": b"", "headers": headers}
    assert (await complete([limited, {"body": answer()}])).ok


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("9.816s", 9.816),
        ("1h2m3s", 3723.0),
        ("500us", 0.0005),
        ("500µs", 0.0005),
        ("7ns", 7e-9),
        ("6 seconds", 6.0),
        ("1 hour 2 minutes", 3720.0),
        ("", None),
        ("0", None),
        ("-1", None),
        ("1", None),
        ("s", None),
        ("6 months", None),
        ("1s later", None),
        ("9" * 5000 + "s", None),
    ],
)
def test_durations_are_read_as_servers_write_them(text: str, seconds: float | None) -> None:
    assert duration_s(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("status", "said", "tries"), [(500, "false", 1), (429, "false", 1), (400, "true", 3)]
)
async def test_what_the_server_says_about_another_attempt_is_obeyed(
    complete: Complete, answer: Make, status: int, said: str, tries: int
) -> None:
    error = {"error": {"message": "m", "code": None, "type": "x"}}
    step = {"status": status, "body": error, "headers": {"X-Should-Retry": said}}
    outcome = await complete([step, step, {"body": answer()}])
    assert len(outcome.attempts) == tries
    assert outcome.ok is (tries == 3)


@pytest.mark.parametrize(
    "name",
    [
        "x-request-id",
        "X-Oneapi-Request-Id",
        "apim-request-id",
        "request-id",
        "x-litellm-call-id",
        "cf-ray",
    ],
)
@pytest.mark.parametrize("status", [200, 400])
async def test_the_id_to_quote_to_support_is_stored(
    complete: Complete, answer: Make, name: str, status: int
) -> None:
    outcome = await complete([{"status": status, "body": answer(), "headers": {name: "id-7"}}])
    assert outcome.attempts[0].request_id == "id-7"
    assert request_id({"x-request-id": "own", "cf-ray": "edge"}) == "own"


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_what_a_gateway_says_an_answer_cost_is_kept(
    complete: Complete, answer: Make, mode: str
) -> None:
    step = {"body": answer(), "headers": {"x-litellm-response-cost": "0.0125"}}
    outcome = await complete([step], mode=mode)
    assert outcome.result.reported_cost_usd == 0.0125
    inside = answer(usage={"input_tokens": 1, "cost": 0.5})
    outcome = await complete([{"body": inside}], mode=mode)
    assert outcome.result.reported_cost_usd == 0.5


async def test_headers_that_are_missing_or_strange_are_accepted(
    complete: Complete, answer: Make
) -> None:
    strange = {
        "x-ratelimit-limit-requests": "-1",
        "x-ratelimit-remaining-tokens": "many",
        "x-ratelimit-reset-tokens_usage_based": "1d",
        "x-litellm-response-cost": "None",
        "x-should-retry": "perhaps",
        "Set-Cookie": "a=b; Domain=elsewhere",
        "Content-Security-Policy": "x" * 30_000,
    }
    outcome = await complete([{"body": answer(), "headers": strange, "type": None}])
    assert outcome.ok
    limited = await complete([{"status": 429, "headers": strange}, {"body": answer()}])
    assert [attempt.error_kind for attempt in limited.attempts] == [ErrorKind.RATE_LIMIT, None]
