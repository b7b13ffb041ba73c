"""Background mode: created once, asked about until it ends, whatever the polls meet (PROTOCOL A.6).

The first poll comes a second after the create call, so most tests take up work that has begun.
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.errors import EndpointError, ErrorKind, RunStopped, StopCause
from batchrun.job.sections import EndpointJob, RetryJob
from batchrun.records import Failure, Request, Response
from batchrun.transport.client import Client
from tests.raw_sockets import listening
from tests.waiting import HANG_S

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


MISSING = {"status": 404, "body": {"error": {"message": "no such response", "code": 404}}}


@pytest.fixture
def forgotten_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of 404s is enough, where a run waits for a minute of them."""
    monkeypatch.setattr("batchrun.transport.background.FORGOTTEN_S", 0.5)


@pytest.fixture
def polled_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.transport.background._FIRST_POLL_S", 0.02)
    monkeypatch.setattr("batchrun.transport.background._LONGEST_POLL_S", 0.05)


@pytest.mark.usefixtures("forgotten_soon")
async def test_a_server_that_cannot_be_asked_has_no_background_mode(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    async def asked(status: int, polls: int) -> None:
        script = [_standing(answer, "queued"), {"status": status, "body": ERROR}]
        async with endpoint(script, mode="background") as connected:
            with pytest.raises(EndpointError, match="it has no background mode") as caught:
                await connected.send(request_of())
        assert caught.value.kind is ErrorKind.NOT_FOUND
        assert caught.value.response_id == "resp_1"
        assert len(connected.server.requests) == 1 + polls
        async with endpoint(script, mode="background") as connected:
            with pytest.raises(RunStopped, match="use --mode stream or plain") as stopped:
                await connected.outcome(request_of())
        assert stopped.value.cause is StopCause.KEY

    await asyncio.gather(asked(404, 2), asked(405, 1), asked(501, 1))


@pytest.mark.usefixtures("forgotten_soon")
async def test_until_a_poll_has_known_an_id_one_create_call_goes_out(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    script = [_standing(answer, "queued"), MISSING]
    async with endpoint(script, mode="background") as connected:
        sent = [asyncio.ensure_future(connected.send(request_of())) for _ in range(5)]
        # What waited behind the first creates nothing either, and does not wait as long again.
        async with asyncio.timeout(HANG_S):
            errors = await asyncio.gather(*sent, return_exceptions=True)
        assert [getattr(error, "kind", error) for error in errors] == [ErrorKind.NOT_FOUND] * 5
        assert all("it has no background mode" in str(error) for error in errors)
        assert connected.server.asked.count("POST /v1/responses") == 1

    async with endpoint([{"body": answer(status="queued")}], mode="background") as connected:
        waiting = [asyncio.ensure_future(connected.send(request_of())) for _ in range(5)]
        async with asyncio.timeout(HANG_S):  # the first poll knows it
            while connected.server.asked.count("POST /v1/responses") < 5:
                await asyncio.sleep(0.01)
        assert connected.server.asked[1] == "GET /v1/responses/resp_1"
        for other in waiting:
            other.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize(
    "polls",
    [
        pytest.param([MISSING, MISSING], id="not yet"),
        pytest.param(["in_progress", MISSING], id="by another replica"),
    ],
)
async def test_an_id_that_a_poll_does_not_know_is_asked_about_again(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, polls: list[Any]
) -> None:
    steps = [poll if isinstance(poll, dict) else _standing(answer, poll) for poll in polls]
    script = [_standing(answer, "queued"), *steps, {"body": answer()}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of())
    assert connected.server.asked == ["POST /v1/responses", *["GET /v1/responses/resp_1"] * 3]
    assert (outcome.ok, len(outcome.attempts)) == (True, 1)


@pytest.mark.usefixtures("forgotten_soon")
async def test_work_that_is_forgotten_is_gone_and_sent_again_and_costs_what_nobody_knows(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    known = [_standing(answer, "queued"), {"body": answer()}]
    lost = [_standing(answer, "queued"), MISSING, MISSING, {"body": answer(id="resp_2")}]
    async with endpoint([*known, *lost], mode="background") as connected:
        assert (await connected.outcome(request_of())).ok
        outcome = await connected.outcome(request_of())  # another row: no poll has known its id
    gone, sent = outcome.attempts
    assert (gone.error_kind, gone.response_id, gone.cost_usd) == (ErrorKind.GONE, "resp_1", None)
    assert (sent.kind, sent.response_id, outcome.ok) == ("retry", "resp_2", True)
    assert connected.server.asked.count("POST /v1/responses") == 3


@pytest.mark.usefixtures("forgotten_soon", "polled_often")
async def test_work_that_is_lost_again_and_again_is_not_begun_for_ever(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
) -> None:
    lost = [_standing(answer, "queued"), _standing(answer, "queued"), {"status": 410, "body": b""}]
    retry = RetryJob(max_attempts=1, max_wait_s=0.01)
    async with endpoint([*lost, *lost, *lost, ERROR], mode="background", retry=retry) as connected:
        outcome = await connected.outcome(request_of())
    assert [attempt.error_kind for attempt in outcome.attempts] == [ErrorKind.GONE] * 3
    assert outcome.result.status == "no_answer"
    assert connected.server.asked.count("POST /v1/responses") == 3


@pytest.mark.usefixtures("forgotten_soon", "polled_often")
async def test_a_server_that_restarts_in_mid_run_costs_no_row(
    request_of: Callable[..., Request],
    endpoint: Connect,
    answer: Make,
) -> None:
    """As vLLM does: it forgets its ids, and knows those that it gives from then on."""
    polls: dict[str, int] = {}
    numbers = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        _, _, length = head.lower().partition("content-length: ")
        if length:
            await reader.readexactly(int(length.split("\r\n")[0]))
        status, body = 404, MISSING["body"]
        response_id = head.split(" ")[1].rpartition("/")[2]
        if head.startswith("POST"):
            response_id = f"resp_{next(numbers)}"
            polls[response_id] = 0
            if response_id == "resp_30":
                polls.clear()
        if response_id in polls or head.startswith("POST"):
            polls[response_id] = polls.get(response_id, 0) + 1
            ended = polls[response_id] > 4
            status = 200
            body = answer(id=response_id) if ended else answer(id=response_id, status="queued")
        text = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)

    rows = [replace(request_of(), row=row, custom_id=str(row)) for row in range(40)]
    async with listening(serve) as port, endpoint([ERROR], mode="background") as connected:
        job = EndpointJob(base_url=f"http://127.0.0.1:{port}/v1", mode="background")
        async with Client(job, None, {}, "test") as client:
            before = connected.dispatcher
            connected.dispatcher = Dispatcher(
                client, connected.gate, before.scopes, before.retry, before.prices, key_name="KEY"
            )
            outcomes = await asyncio.gather(*map(connected.outcome_beside_others, rows))
    kinds = [attempt.error_kind for outcome in outcomes for attempt in outcome.attempts]
    assert all(outcome.ok for outcome in outcomes)
    assert set(kinds) == {None, ErrorKind.GONE}
    assert next(numbers) == 40 + kinds.count(ErrorKind.GONE)


@pytest.mark.parametrize(
    "status",
    ["pending", "processing", "CREATED", "Queued", "IN-PROGRESS", "inProgress", "running", None],
)
@pytest.mark.usefixtures("polled_often")
async def test_a_running_status_in_any_spelling_is_polled(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    status: str | None,
) -> None:
    begun: dict[str, Any] = {
        "body": {"id": "resp_1", "object": "response", "status": status, "output": []}
    }
    async with endpoint([begun, begun, {"body": answer()}], mode="background") as connected:
        outcome = await connected.outcome(request_of())
    assert connected.server.asked == ["POST /v1/responses", *["GET /v1/responses/resp_1"] * 2]
    assert (outcome.ok, len(outcome.attempts)) == (True, 1)


@pytest.mark.usefixtures("polled_often")
async def test_work_whose_create_answer_was_cut_short_is_asked_about(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    events: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    cut = json.dumps(answer(status="queued"))[:-20].encode()
    streamed = {"events": events(answer())[:4], "end": "cut"}
    for begun in ({"body": cut}, streamed):
        async with endpoint([begun, {"body": answer()}], mode="background") as connected:
            outcome = await connected.outcome(request_of())
        assert connected.server.asked == ["POST /v1/responses", "GET /v1/responses/resp_1"]
        assert (outcome.ok, len(outcome.attempts)) == (True, 1)


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


@pytest.mark.parametrize(("status", "polls"), [(404, 2), (405, 1), (410, 1), (501, 1)])
@pytest.mark.usefixtures("forgotten_soon")
async def test_work_that_the_server_lost_is_sent_again_and_counted(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    status: int,
    polls: int,
) -> None:
    script = [*[{"status": status, "body": ERROR}] * polls, {"body": answer()}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9"] * polls + ["POST /v1/responses"]
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
    {"status": 400, "body": {"error": {"message": "try later"}}},
    {"status": 401, "body": {"error": {"message": "slow down", "code": "too_many_requests"}}},
    {"body": b"<html>sign in</html>"},
    {"body": {"status": "error", "message": "no route"}},
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


@pytest.mark.usefixtures("polled_often")
async def test_no_number_of_odd_polls_drops_the_work(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    odd = [poll for poll in _POLLS_THAT_FAIL if poll.get("end", "clean") == "clean"] * 2
    async with endpoint([*odd, {"body": answer()}], mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9"] * (len(odd) + 1)
    assert (outcome.ok, len(outcome.attempts)) == (True, 1)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_refused_at_a_poll_stops_the_run_and_not_the_row(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make, status: int
) -> None:
    refused = {"status": status, "body": {"error": {"message": "no", "code": None}}}
    async with endpoint([{"body": answer()}, refused], mode="background") as connected:
        assert (await connected.outcome(request_of())).ok  # the key did before
        with pytest.raises(RunStopped, match="asks about the same work") as stopped:
            await connected.outcome(request_of(resume_id="resp_9"))
    assert stopped.value.cause is StopCause.KEY
    assert len(connected.server.requests) == 2


async def test_a_poll_that_says_what_is_wrong_with_the_work_ends_the_row_at_unknown_cost(
    endpoint: Connect, request_of: Callable[..., Request]
) -> None:
    error = {"error": {"message": "flagged", "code": "content_policy_violation"}}
    async with endpoint([{"status": 400, "body": error}], mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    (attempt,) = outcome.attempts
    assert outcome.result.kind is ErrorKind.CONTENT_POLICY
    assert (attempt.response_id, attempt.cost_usd) == ("resp_9", None)


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


async def test_work_that_was_cancelled_before_it_is_resumed_is_begun_again(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    """An earlier command cancelled it when the row's time was over, and could say no more."""
    script = [{"body": answer(status="cancelled", output=[])}, {"body": answer()}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9", "POST /v1/responses"]
    assert outcome.ok
    assert [one.error_kind for one in outcome.attempts] == [ErrorKind.GONE, None]


async def test_a_done_answer_that_is_too_large_is_asked_for_once(
    endpoint: Connect, request_of: Callable[..., Request], answer: Make
) -> None:
    script = [{"body": answer()}]
    async with endpoint(script, mode="background", max_response_bytes=100) as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9"]
    assert (outcome.result.kind, outcome.result.status) == (ErrorKind.TOO_LARGE, "failed")
    assert outcome.attempts[0].response_id == "resp_9"


async def test_a_done_answer_that_nobody_can_unpack_is_not_begun_again(
    endpoint: Connect,
    request_of: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("batchrun.transport.background._UNREADABLE", 2)
    packed = b"\x1f\x8b\x08\x00" + b"damaged" * 9
    script = [{"body": packed, "headers": {"Content-Encoding": "gzip"}}]
    async with endpoint(script, mode="background") as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9"] * 2
    assert (outcome.result.kind, outcome.result.status) == (ErrorKind.UNREADABLE, "no_answer")


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
