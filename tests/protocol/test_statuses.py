"""Statuses in other words than the API's, in all modes (W.6), and limits that do not cut (W.19)."""

from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.job.sections import RetryJob

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
Events = Callable[[dict[str, Any]], list[dict[str, Any]]]


def _script(mode: str, whole: dict[str, Any]) -> list[dict[str, Any]]:
    if mode == "background":
        return [
            {"body": {"id": "resp_1", "object": "response", "status": "queued"}},
            {"body": whole},
        ]
    if mode == "stream":
        return [{"events": [{"type": "response.completed", "response": whole}]}]
    return [{"body": whole}]


@pytest.mark.parametrize("mode", ["plain", "stream"])
@pytest.mark.parametrize(
    ("said", "status", "reason", "truncated"),
    [
        ("COMPLETED", "completed", None, False),
        ("success", "completed", None, False),
        ("stop", "completed", None, False),
        ("end_turn", "completed", None, False),
        ("some new word", "completed", None, False),
        ("length", "incomplete", "length", True),
        ("max_tokens", "incomplete", "max_tokens", True),
        ("MAX_TOKENS", "incomplete", "MAX_TOKENS", True),
        ("content_filter", "incomplete", "content_filter", False),
        ("Incomplete", "incomplete", None, True),
        ("canceled", "cancelled", None, False),
    ],
)
async def test_a_status_in_other_words_is_understood(
    complete: Complete,
    answer: Make,
    mode: str,
    said: str,
    status: str,
    reason: str | None,
    truncated: bool,
) -> None:
    outcome = await complete(_script(mode, answer(status=said)), mode=mode)
    result = outcome.result
    assert (result.status, result.incomplete_reason) == (status, reason)
    assert (result.truncated, outcome.ok) == (truncated, status == "completed")
    assert (result.output_text, len(outcome.attempts)) == ("forty-two", 1)


@pytest.mark.parametrize(("said", "status"), [("success", "completed"), ("length", "incomplete")])
async def test_a_status_in_other_words_ends_background_work(
    complete: Complete, answer: Make, said: str, status: str
) -> None:
    outcome = await complete(_script("background", answer(status=said)), mode="background")
    assert (outcome.result.status, outcome.result.output_text) == (status, "forty-two")
    assert len(outcome.attempts) == 1


@pytest.mark.parametrize("said", ["error", "FAILED", "expired"])
@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_a_word_for_a_failure_is_no_answer(
    complete: Complete, answer: Make, mode: str, said: str
) -> None:
    retry = RetryJob(max_attempts=2, max_wait_s=0.01)
    outcome = await complete(_script(mode, answer(status=said)), mode=mode, retry=retry)
    assert (outcome.result.status, outcome.failure.kind) == ("no_answer", ErrorKind.SERVER_ERROR)


@pytest.mark.parametrize("said", ["PROCESSING", "pending", "in_progress", "some new word"])
async def test_a_running_status_or_an_unknown_one_without_output_is_no_answer(
    complete: Complete, answer: Make, said: str
) -> None:
    output = [] if said == "some new word" else answer()["output"]
    odd = answer(status=said, output=output)
    outcome = await complete([{"body": odd}, {"body": answer()}])
    assert outcome.attempts[0].error_kind is ErrorKind.UNREADABLE
    assert said in outcome.attempts[0].error_message
    assert outcome.ok


@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
@pytest.mark.parametrize(
    ("details", "reason", "truncated"),
    [
        ({"reason": "max_tokens"}, "max_tokens", True),
        ({"reason": "length"}, "length", True),
        ("length", "length", True),
        ({"reason": "content_filter"}, "content_filter", False),
        ({"reason": "some_new_reason"}, "some_new_reason", False),
    ],
)
@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_reason_makes_an_answer_incomplete_whatever_its_status(
    complete: Complete,
    answer: Make,
    mode: str,
    details: Any,
    reason: str,
    truncated: bool,
    status: str,
) -> None:
    whole = answer(status=status, incomplete_details=details)
    outcome = await complete(_script(mode, whole), mode=mode)
    result = outcome.result
    assert (outcome.ok, result.status) == (False, "incomplete")
    assert (result.incomplete_reason, result.truncated) == (reason, truncated)


@pytest.mark.parametrize("details", [{}, {"reason": None}, {"reason": ""}, {"reason": "stop"}, 5])
async def test_a_reason_that_is_none_leaves_an_answer_completed(
    complete: Complete, answer: Make, details: Any
) -> None:
    outcome = await complete([{"body": answer(incomplete_details=details)}])
    assert (outcome.ok, outcome.result.incomplete_reason) == (True, None)


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_an_answer_as_long_as_its_limit_is_whole_where_the_server_knows_incomplete(
    endpoint: Callable[..., Any],
    request_of: Callable[..., Any],
    answer: Make,
    events: Events,
    mode: str,
) -> None:
    """Not before it has said so: `incomplete_details` is sent by servers that never use it."""
    cut = answer(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    filtered = answer(status="incomplete", incomplete_details={"reason": "content_filter"})
    steps = [answer(), filtered, answer(), cut, answer()]
    script = [{"body": one} if mode == "plain" else {"events": events(one)} for one in steps]
    body = {"model": "m", "input": "x", "max_output_tokens": 18}
    async with endpoint(script, mode=mode) as connected:
        outcomes = [await connected.outcome(request_of(body)) for _ in steps]
    assert [one.result.truncated for one in outcomes] == [True, False, True, True, False]
    assert [one.ok for one in outcomes] == [False, False, False, False, True]
