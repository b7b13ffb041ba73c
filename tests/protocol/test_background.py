"""Background mode: created once, asked about until it ends, whatever the polls meet (PROTOCOL A.6).

The first poll comes a second after the create call, so most tests take up work that has begun.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import EndpointError, ErrorKind
from batchrun.job.sections import RetryJob
from batchrun.records import Failure, Request, Response

pytestmark = pytest.mark.usefixtures("transport")

Connect = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

ERROR = {"error": {"message": "oops", "type": "server_error", "code": None}}
LIMITED = {"status": 429, "body": b"", "headers": {"retry-after-ms": "1"}}


def _standing(answer: Make, status: str, **fields: Any) -> dict[str, Any]:
    return {"body": answer(status=status, output=[], usage=None, **fields)}


async def test_work_is_created_once_and_asked_about_until_it_ends(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    told: list[tuple[str, str, int]] = []

    async def on_begun(request: Request, response_id: str) -> None:
        told.append((request.custom_id, response_id, len(connected.server.requests)))

    script = [
        _standing(answer, "queued"),
        _standing(answer, "in_progress"),
        {"body": answer()},
    ]
    body = {"model": "m", "store": False, "input": "x", "unknown": [1.50]}
    async with endpoint(
        script, mode="background", on_begun=on_begun, query={"api-version": "1"}
    ) as connected:
        outcome = await connected.outcome(request_of(body))
    assert connected.server.asked == [
        "POST /v1/responses?api-version=1",
        "GET /v1/responses/resp_1?api-version=1",
        "GET /v1/responses/resp_1?api-version=1",
    ]
    sent = connected.server.requests[0].body
    # Said outright, since a server may forget the answer within minutes without it.
    assert sent == {**body, "store": True, "background": True, "stream": False}
    assert told == [("row-0", "resp_1", 1)]  # before the first poll
    assert (outcome.ok, outcome.via, len(outcome.attempts)) == (True, "background", 1)
    assert outcome.result.usage.total_tokens == 80


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_server_that_answers_at_once_is_not_asked_again(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, status: str
) -> None:
    script = [{"body": answer(status=status)}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of())
    assert connected.server.asked == ["POST /v1/responses"]
    assert (outcome.result.status, outcome.result.id) == (status, "resp_1")


async def test_an_error_of_the_create_call_is_retried_as_in_any_mode(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    script = [{"status": 500, "body": ERROR}, LIMITED, {"body": answer()}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of())
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert kinds == [ErrorKind.SERVER_ERROR, ErrorKind.RATE_LIMIT, None]
    assert outcome.ok


async def test_a_server_that_cannot_be_asked_has_no_background_mode(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    async def asked(status: int) -> None:
        script = [_standing(answer, "queued"), {"status": status, "body": ERROR}]
        async with endpoint(script, mode="background") as connected:
            with pytest.raises(EndpointError, match="it has no background mode") as caught:
                await connected.send(request_of())
        assert caught.value.kind is ErrorKind.NOT_FOUND
        assert caught.value.response_id == "resp_1"
        assert len(connected.server.requests) == 2

    await asyncio.gather(*map(asked, (404, 405, 501)))


async def test_work_that_has_begun_is_taken_up_without_a_second_create_call(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    script = [{"body": answer(id="resp_9")}]
    for mode in ("background", "plain", "stream"):
        async with endpoint(script, mode=mode) as connected:
            outcome = await connected.outcome(request_of(resume_id="resp_9"))
        assert connected.server.asked == ["GET /v1/responses/resp_9"]
        assert outcome.ok
        assert outcome.attempts[0].response_id == "resp_9"


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_work_that_the_server_lost_is_sent_again_and_counted(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, status: int
) -> None:
    script = [{"status": status, "body": ERROR}, {"body": answer()}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9", "POST /v1/responses"]
    gone, sent = outcome.attempts
    assert (gone.error_kind, gone.http_status) == (ErrorKind.GONE, status)
    assert gone.response_id == "resp_9"
    assert (sent.kind, sent.error_kind) == ("retry", None)
    assert outcome.ok


_POLLS_THAT_FAIL: list[dict[str, Any]] = [
    {"status": 500, "body": ERROR},
    {"status": 503, "body": b"<html>busy</html>"},
    LIMITED,
    {"status": 409, "body": b""},
    {"pieces": [b'{"id"'], "end": "reset"},
    {"pieces": [b'{"id"'], "end": "cut"},
    {"pieces": [], "end": "open"},
    {"body": b'{"id":"resp_9","status":"comp'},
    {"body": b""},
    {"body": ERROR},
    {"status": 403, "body": b"<html>are you a robot?</html>"},
    {"body": b'{"id":"resp_9","status":"in_progress","x":"\\ud83d"}'},
]


async def test_a_poll_that_fails_costs_no_second_create_call(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    async def polled(poll: dict[str, Any]) -> None:
        script = [poll, {"body": answer()}]
        async with endpoint(script, mode="background", timeout_s=2.0) as connected:
            outcome = await connected.outcome(request_of(resume_id="resp_9"))
        assert connected.server.asked == ["GET /v1/responses/resp_9"] * 2, poll
        assert outcome.ok
        assert len(outcome.attempts) == 1

    await asyncio.gather(*map(polled, _POLLS_THAT_FAIL))


async def test_a_key_refused_at_a_poll_is_not_asked_again(
    endpoint: Connect, request_of: Callable[..., Request]
) -> None:
    error = {"error": {"message": "no", "code": "invalid_api_key"}}
    async with endpoint([{"status": 401, "body": error}], mode="background") as connected:
        reply = await connected.send(request_of(resume_id="resp_9"))
    assert reply.http_status == 401
    assert len(connected.server.requests) == 1


async def test_failed_work_is_judged_as_any_failed_response(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    failed = answer(status="failed", error={"code": "invalid_prompt", "message": "no"})
    async with endpoint([{"body": failed}], mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert isinstance(outcome.result, Response)
    assert outcome.result.failure is not None
    assert outcome.result.failure.kind is ErrorKind.CONTENT_POLICY


async def test_work_is_cancelled_when_the_rows_time_is_over(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    script = [_standing(answer, "queued"), _standing(answer, "in_progress"), {"body": ERROR}]
    retry = RetryJob(max_elapsed_s=0.3)
    async with endpoint(script, mode="background", retry=retry) as connected:
        outcome = await connected.outcome(request_of())
    assert connected.server.asked == [
        "POST /v1/responses",
        "GET /v1/responses/resp_1",
        "POST /v1/responses/resp_1/cancel",
    ]
    assert isinstance(outcome.result, Failure)
    assert (outcome.result.kind, outcome.result.status) == (ErrorKind.TIMEOUT, "no_answer")
    assert "retry.max_elapsed_s" in outcome.result.message
    assert outcome.attempts[0].response_id == "resp_1"


async def test_an_answer_that_came_just_before_it_was_cancelled_counts(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    script = [_standing(answer, "in_progress"), {"body": answer()}]
    async with endpoint(script, mode="background") as connected:
        reply = await connected.send(request_of(resume_id="resp_9"), left_s=0.0)
    assert connected.server.asked[-1] == "POST /v1/responses/resp_9/cancel"
    assert b'"forty-two"' in reply.body


async def test_a_poll_waits_as_long_as_the_server_asks(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    hinted = {**LIMITED, "headers": {"Retry-After": "2.5"}}
    async with endpoint([hinted, {"body": answer()}], mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert outcome.attempts[0].latency_s >= 2.5
