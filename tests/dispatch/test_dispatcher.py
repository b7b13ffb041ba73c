"""Tries against a scripted server: a real socket that answers as each test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from msgspec.structs import replace

from batchrun.dispatch.dispatcher import Completed, Dispatcher, Endpoint, Unfinished
from batchrun.dispatch.gate import Gate, GateClosed, no_limits
from batchrun.errors import EndpointError, ErrorKind, RunStopped, StopCause
from batchrun.job.sections import EndpointJob, PriceJob, RetryJob
from batchrun.limits import tuning
from batchrun.limits.concurrency import InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.pricing.prices import Prices
from batchrun.records import (
    Answered,
    Failure,
    Outcome,
    Reply,
    Request,
    Response,
    UnreadableBody,
)
from batchrun.transport.client import Client
from tests.waiting import HANG_S

REQUEST = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
ANSWER: dict[str, object] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "an answer"}]}],
    "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
}
Step = tuple[int, object] | tuple[int, object, dict[str, str]]
FAST = RetryJob(max_wait_s=0.01)


def _error(code: str | None, error_type: str = "server_error") -> dict[str, object]:
    return {"error": {"message": f"because {code}", "type": error_type, "code": code}}


class Setup:
    """A dispatcher against a server that goes through `script`, its last step for ever."""

    def __init__(self, dispatcher: Dispatcher, gate: Gate) -> None:
        self.dispatcher = dispatcher
        self.gate = gate
        self.sent = 0

    async def complete(self, row: int = 0) -> Completed:
        async with asyncio.timeout(HANG_S):
            return await self.dispatcher.complete(replace(REQUEST, row=row))

    async def outcome(self, row: int = 0) -> Outcome:
        completed = await self.complete(row)
        if completed.slot is not None:
            self.gate.leave(completed.slot, completed.finish)
        return completed.outcome


@asynccontextmanager
async def _setup(
    script: Sequence[Step],
    retry: RetryJob = FAST,
    timeout_s: float = 5.0,
    *,
    has_limits: bool = True,
    endpoint_of: Callable[[Client], Endpoint] = lambda client: client,
    prices: Prices | None = None,
    unfinished: Unfinished | None = None,
) -> AsyncIterator[Setup]:
    """`prices`: dollars are capped."""

    async def answer(_: web.Request) -> web.StreamResponse:
        step = script[min(setup.sent, len(script) - 1)]
        setup.sent += 1
        status, body = step[0], step[1]
        headers = step[2] if len(step) > 2 else {}
        if body is None:
            await asyncio.sleep(600)
        if isinstance(body, bytes):
            return web.Response(status=status, body=body, headers=headers)
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_post("/v1/responses", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    settings = EndpointJob(base_url=f"http://{host}:{port}/v1", timeout_s=timeout_s)
    try:
        async with Client(settings, None, {}, "test") as client:
            scopes = Scopes(4, Patience(1800.0, 60.0))
            gate = Gate([InFlight(4)], scopes.limits if has_limits else no_limits)
            dispatcher = Dispatcher(
                endpoint_of(client),
                gate,
                scopes,
                retry,
                prices or Prices({}),
                key_name="KEY",
                has_budget=prices is not None,
                unfinished=unfinished,
            )
            setup = Setup(dispatcher, gate)
            yield setup
    finally:
        await runner.cleanup()


async def test_a_first_answer_is_one_attempt_and_its_slot_is_held_until_it_is_stored() -> None:
    async with _setup([(200, ANSWER)]) as setup:
        completed = await setup.complete()
        assert setup.gate.in_flight == 1
        assert completed.slot is not None
        setup.gate.leave(completed.slot, completed.finish)
        assert setup.gate.in_flight == 0
    outcome = completed.outcome
    assert outcome.ok
    assert [attempt.kind for attempt in outcome.attempts] == ["first"]
    assert outcome.attempts[0].input_tokens == 3


async def test_each_try_stands_in_attempts_with_its_reason() -> None:
    script: list[Step] = [(500, _error(None)), (502, b"<html>"), (200, b'{"id":'), (200, ANSWER)]
    async with _setup(script) as setup:
        outcome = await setup.outcome()
        assert setup.gate.in_flight == 0
        assert setup.dispatcher.retrying == 0
    assert outcome.ok
    kinds = [attempt.error_kind for attempt in outcome.attempts]
    assert kinds == [ErrorKind.SERVER_ERROR, ErrorKind.SERVER_ERROR, ErrorKind.UNREADABLE, None]
    assert [attempt.kind for attempt in outcome.attempts] == ["first", "retry", "retry", "retry"]
    assert [attempt.http_status for attempt in outcome.attempts] == [500, 502, 200, 200]


async def test_tries_run_out_and_the_row_has_no_answer() -> None:
    async with _setup([(500, _error(None))], RetryJob(max_attempts=3, max_wait_s=0.01)) as setup:
        outcome = await setup.outcome()
    assert setup.sent == 3
    assert isinstance(outcome.result, Failure)
    assert outcome.result.status == "no_answer"
    assert "3 attempts (retry.max_attempts)" in outcome.result.message


async def test_rate_limits_use_up_no_try() -> None:
    limited: Step = (429, _error("rate_limit_exceeded"), {"retry-after-ms": "1"})
    script: list[Step] = [limited] * 9 + [(500, _error(None)), (200, ANSWER)]
    async with _setup(script, RetryJob(max_attempts=2, max_wait_s=0.01)) as setup:
        outcome = await setup.outcome()
    assert outcome.ok
    assert len(outcome.attempts) == 11


async def test_a_hint_is_waited_for() -> None:
    script: list[Step] = [(429, _error("rate_limit_exceeded"), {"Retry-After": "0.4"})]
    async with _setup([*script, (200, ANSWER)]) as setup:
        outcome = await setup.outcome()
    first, second = outcome.attempts
    assert second.started_at - first.started_at >= 400_000


async def test_a_row_that_is_refused_among_many_answers_waits_alone() -> None:
    limited: Step = (429, _error("rate_limit_exceeded"), {"Retry-After": "0.6"})
    answered: list[Step] = [(200, ANSWER)] * 40
    retry = RetryJob(max_wait_s=0.01, max_elapsed_s=0.5)  # the wait is none of the row's time
    async with _setup([*answered, limited, (200, ANSWER)], retry) as setup:
        for row in range(40):
            await setup.outcome(row)
        refused = asyncio.create_task(setup.outcome(40))
        async with asyncio.timeout(HANG_S):
            while not setup.dispatcher.retrying:
                await asyncio.sleep(0.001)
        other = await setup.outcome(41)
        first, second = (await refused).attempts
    assert second.started_at - first.started_at >= 600_000
    assert other.attempts[0].started_at < first.started_at + 600_000


async def test_a_time_out_is_tried_once_more_and_the_message_advises() -> None:
    async with _setup([(200, None)], timeout_s=0.2) as setup:
        outcome = await setup.outcome()
    assert setup.sent == 2
    assert isinstance(outcome.result, Failure)
    assert (outcome.result.kind, outcome.result.status) == (ErrorKind.TIMEOUT, "no_answer")
    assert "--timeout (endpoint.timeout_s) allows more" in outcome.result.message
    assert "stream or background" in outcome.result.message


async def test_an_unreadable_answer_is_tried_twice_more_and_its_beginning_is_kept() -> None:
    async with _setup([(200, b'{"id":"resp_9", "outp')]) as setup:
        outcome = await setup.outcome()
    assert setup.sent == 3
    assert isinstance(outcome.result, Failure)
    assert outcome.result.kind is ErrorKind.UNREADABLE
    assert '{"id":"resp_9", "outp' in outcome.result.message


async def test_a_bad_request_fails_the_row_with_the_servers_words() -> None:
    async with _setup([(400, _error("unknown_parameter", "invalid_request_error"))]) as setup:
        outcome = await setup.outcome()
    assert setup.sent == 1
    assert outcome.result == Failure(
        ErrorKind.BAD_REQUEST, "because unknown_parameter", "unknown_parameter", 400, "failed"
    )


async def test_a_refused_key_stops_the_run_before_any_success_and_fails_rows_after() -> None:
    refused: Step = (401, _error("invalid_api_key", "invalid_request_error"))
    async with _setup([refused]) as setup:
        with pytest.raises(RunStopped, match="check the variable or the command"):
            await setup.outcome()
        assert setup.gate.in_flight == 0
    async with _setup([(200, ANSWER), refused]) as setup:
        setup.dispatcher.no_more_rows = True  # no other row could show whether it is the endpoint
        assert (await setup.outcome()).ok
        for row in range(19):
            outcome = await setup.outcome(row)
            assert isinstance(outcome.result, Failure)
            assert outcome.result.status == "failed"
        with pytest.raises(RunStopped, match="20 consecutive rows"):
            await setup.outcome(19)


async def test_a_success_between_refusals_begins_the_count_anew() -> None:
    refused: Step = (404, _error("model_not_found", "invalid_request_error"))
    script: list[Step] = [(200, ANSWER), *[refused] * 19, (200, ANSWER), *[refused] * 19]
    async with _setup(script) as setup:
        setup.dispatcher.no_more_rows = True
        outcomes = [await setup.outcome(row) for row in range(len(script))]
    assert sum(outcome.ok for outcome in outcomes) == 2


async def test_used_up_quota_stops_the_run_after_any_success() -> None:
    async with _setup([(200, ANSWER), (429, _error("insufficient_quota"))]) as setup:
        await setup.outcome()
        with pytest.raises(RunStopped, match="top up"):
            await setup.outcome()


async def test_a_failed_response_is_tried_again_or_kept_as_its_code_says() -> None:
    failed = {**ANSWER, "status": "failed", "error": {"code": "server_error", "message": "m"}}
    refused = {**ANSWER, "status": "failed", "error": {"code": "invalid_prompt", "message": "m"}}
    async with _setup([(200, failed), (200, refused)]) as setup:
        outcome = await setup.outcome()
    assert isinstance(outcome.result, Response)
    assert (outcome.result.status, outcome.result.usage.total_tokens) == ("failed", 5)
    assert outcome.result.failure is not None
    assert outcome.result.failure.kind is ErrorKind.CONTENT_POLICY
    assert outcome.attempts[0].input_tokens == 3


async def test_an_error_in_a_200_is_tried_again() -> None:
    async with _setup([(200, _error("server_error")), (200, ANSWER)]) as setup:
        assert (await setup.outcome()).ok


async def test_a_row_that_backs_off_holds_no_slot_and_goes_home_when_the_gate_closes() -> None:
    script: list[Step] = [(503, _error(None), {"Retry-After": "600"})]
    async with _setup(script) as setup:
        task = asyncio.create_task(setup.complete())
        while setup.dispatcher.retrying == 0:
            await asyncio.sleep(0.01)
        assert setup.gate.in_flight == 0
        setup.gate.close()
        with pytest.raises(GateClosed):
            await task


async def test_an_endless_failure_ends_at_the_rows_own_time() -> None:
    limited: Step = (429, json.dumps(_error("rate_limit_exceeded")).encode())
    settings = RetryJob(max_wait_s=0.05, max_elapsed_s=0.5)
    async with _setup([limited], settings, has_limits=False) as setup:
        outcome = await setup.outcome()
    assert isinstance(outcome.result, Failure)
    assert outcome.result.status == "no_answer"
    assert "retry.max_elapsed_s" in outcome.result.message


class _Stalled:
    """Answers the first row; of the others it ends no work within the time that they have."""

    def __init__(self, client: Client) -> None:
        self._client, self.base_url, self.via = client, client.base_url, client.via
        self.left_s: list[float] = []

    async def send(
        self, request: Request, client_request_id: str, left_s: float, *_: object
    ) -> Reply:
        if request.row == 0:
            return await self._client.send(request, client_request_id, left_s)
        self.left_s.append(left_s)
        await asyncio.sleep(left_s)
        raise EndpointError(ErrorKind.TIMEOUT, "not done in the row's time")


async def test_what_an_outage_took_is_none_of_the_rows_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else work would be begun with no time left for it, and be cancelled at once."""
    monkeypatch.setattr(tuning, "OUTAGE_LEAST_S", 0.1)
    stalled: list[_Stalled] = []

    def stall(client: Client) -> _Stalled:
        stalled.append(_Stalled(client))
        return stalled[0]

    settings = RetryJob(max_wait_s=0.01, max_elapsed_s=0.2)
    async with _setup([(200, ANSWER)], settings, endpoint_of=stall) as setup:
        await setup.outcome(0)
        rows = [asyncio.create_task(setup.outcome(row)) for row in range(1, 13)]
        async with asyncio.timeout(HANG_S):
            while len(stalled[0].left_s) < 20:
                await asyncio.sleep(0.05)
        setup.gate.close()
        await asyncio.gather(*rows, return_exceptions=True)
    assert min(stalled[0].left_s[12:]) > 0.1


class _Spent:
    """Of attempts that are not on disk."""

    def __init__(self) -> None:
        self.dollars = 0.0

    def answered(self, _request: Request) -> Answered | None:
        return None

    def ask_again(self, _answered: Answered) -> None: ...
    def store_unreadable(self, _body: UnreadableBody) -> None: ...
    def add_spent(self, dollars: float) -> None:
        self.dollars += dollars


async def test_what_a_failed_attempt_cost_is_noted_until_its_row_has_an_outcome() -> None:
    failed: Step = (200, {**ANSWER, **_error("server_error"), "status": "failed"})
    spent, prices = _Spent(), Prices({"m": PriceJob(input=1e6, output=1e6)})
    script = [failed, (200, ANSWER), failed]
    setting = _setup(script, RetryJob(max_wait_s=600.0), prices=prices, unfinished=spent)
    async with setting as setup:
        completed = await setup.outcome()
        assert [one.cost_usd for one in completed.attempts] == [5.0, 5.0]
        assert spent.dollars == 0.0
        stopped = asyncio.create_task(setup.complete(1))
        async with asyncio.timeout(HANG_S):
            while not setup.dispatcher.retrying:
                await asyncio.sleep(0.01)
        setup.gate.close()
        with pytest.raises(GateClosed):
            await stopped
    assert spent.dollars == 5.0


def _cut(limit: int) -> dict[str, object]:
    return {
        **ANSWER,
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 3, "output_tokens": limit, "total_tokens": 3 + limit},
    }


async def test_a_truncated_answer_is_asked_for_again_and_each_ask_stands_in_attempts() -> None:
    raise_limit = RetryJob(max_wait_s=0.01, on_incomplete="raise_limit")
    script: list[Step] = [(200, _cut(16)), (500, _error(None)), (200, ANSWER)]
    async with _setup(script, raise_limit) as setup:
        outcome = await setup.outcome()
        assert setup.gate.in_flight == 0
    assert outcome.ok
    assert [attempt.kind for attempt in outcome.attempts] == ["first", "reask", "retry"]
    assert [attempt.output_tokens for attempt in outcome.attempts] == [16, None, 2]
    assert outcome.request == REQUEST


async def test_a_row_between_two_asks_keeps_its_slot() -> None:
    raise_limit = RetryJob(on_incomplete="raise_limit")
    async with _setup([(200, _cut(16)), (200, None)], raise_limit) as setup:
        task = asyncio.create_task(setup.complete())
        while setup.sent < 2:
            assert setup.gate.in_flight <= 1
            await asyncio.sleep(0.005)
        assert setup.gate.in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert setup.gate.in_flight == 0


async def test_an_answer_in_hand_is_kept_when_asking_again_fails() -> None:
    raise_limit = RetryJob(max_wait_s=0.01, on_incomplete="raise_limit")
    then: Step = (400, _error("bad", "invalid_request_error"))
    async with _setup([(200, _cut(16)), then], raise_limit) as setup:
        outcome = await setup.outcome()
        assert setup.gate.in_flight == 0
    assert isinstance(outcome.result, Response)
    assert outcome.result.truncated
    assert len(outcome.attempts) == 2
    assert outcome.attempts[outcome.counted].http_status == 200


async def test_a_stop_while_an_answer_is_asked_for_again_is_a_stop() -> None:
    """The row has no outcome: the next command asks again. The answer is on disk by then."""
    raise_limit = RetryJob(max_wait_s=0.01, on_incomplete="raise_limit")
    then: Step = (429, _error("insufficient_quota"))
    async with _setup([(200, _cut(16)), then], raise_limit) as setup:
        with pytest.raises(RunStopped) as stopped:
            await setup.outcome()
        assert stopped.value.cause is StopCause.QUOTA
        assert setup.gate.in_flight == 0


async def test_each_attempt_has_a_client_request_id_of_its_own() -> None:
    async with _setup([(500, _error(None)), (200, ANSWER)]) as setup:
        outcome = await setup.outcome()
    ids = [attempt.client_request_id for attempt in outcome.attempts]
    assert len(set(ids)) == 2
    assert None not in ids
