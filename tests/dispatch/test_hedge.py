"""Second copies against a server over a socket, whose slow tries are told by their number."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from batchrun.dispatch.dispatcher import Completed, Dispatcher, Endpoint
from batchrun.dispatch.gate import Gate
from batchrun.errors import ErrorKind, RunStopped, StopCause
from batchrun.job.sections import EndpointJob, PriceJob, RetryJob
from batchrun.limits.budget import Budget
from batchrun.limits.concurrency import InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.limits.verdicts import Limit
from batchrun.pricing.prices import Prices
from batchrun.records import Reply, Request
from batchrun.transport.client import Client
from tests.waiting import HANG_S

ANSWER: dict[str, object] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "an answer"}]}],
    "usage": {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20},
}
WARM = 20  # answers after which the run knows what slow is
PRICES = {"m": PriceJob(input=1.0, output=1.0)}
SLOW = 299  # a good answer after a while


def _request(row: int) -> Request:
    return Request(row, str(row), "file", b'{"model":"m","input":"x"}', "0" * 16, "m", 100, ())


class Setup:
    def __init__(self, dispatcher: Dispatcher, gate: Gate, seen: list[int]) -> None:
        self.dispatcher, self.gate, self.seen = dispatcher, gate, seen

    async def complete(self, row: int) -> Completed:
        async with asyncio.timeout(HANG_S):
            completed = await self.dispatcher.complete(_request(row))
        if completed.slot is not None:
            self.gate.leave(completed.slot, completed.finish)
        return completed


@asynccontextmanager
async def _setup(
    status_of: Callable[[int], int | None],
    limits: Sequence[Limit] = (),
    *,
    hedges: bool = True,
    timeout_s: float = 15.0,
    in_flight: int = 8,
    endpoint_of: Callable[[Client], Endpoint] = lambda client: client,
) -> AsyncIterator[Setup]:
    """`status_of` a request's number; null: it is never answered. A 429 asks to wait for a day."""
    seen: list[int] = []

    async def answer(_: web.Request) -> web.StreamResponse:
        number = len(seen)
        seen.append(number)
        status = status_of(number)
        if status is None:
            await asyncio.sleep(600)
        if status == SLOW:
            await asyncio.sleep(0.5)
            status = 200
        body = ANSWER if status == 200 else {"error": {"message": "no", "type": "server_error"}}
        headers = {"Retry-After": "86400"} if status == 429 else {}
        return web.json_response(body, status=status or 200, headers=headers)

    app = web.Application()
    app.router.add_post("/v1/responses", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    settings = EndpointJob(base_url=f"http://{host}:{port}/v1", timeout_s=timeout_s)
    try:
        async with Client(settings, None, {}, "test") as client:
            gate = Gate([InFlight(in_flight), *limits])
            dispatcher = Dispatcher(
                endpoint_of(client),
                gate,
                Scopes(8, Patience(1800.0, 60.0)),
                RetryJob(max_wait_s=0.01),
                Prices(PRICES),
                key_name="KEY",
                has_budget=True,
                hedges=hedges,
            )
            yield Setup(dispatcher, gate, seen)
    finally:
        await runner.cleanup()


async def _warm(setup: Setup) -> None:
    for row in range(WARM):
        await setup.complete(row)


async def test_a_second_copy_of_the_last_slow_row_is_answered_and_both_are_booked() -> None:
    async with _setup(lambda number: None if number == WARM else 200) as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        completed = await setup.complete(WARM)
        assert setup.gate.in_flight == 0
    outcome = completed.outcome
    assert outcome.ok
    assert [attempt.kind for attempt in outcome.attempts] == ["first", "hedge"]
    assert outcome.counted == 1
    slow, answered = outcome.attempts
    assert "cancelled" in (slow.error_message or "")
    assert slow.cost_usd is None
    assert answered.cost_usd == outcome.cost_usd
    assert outcome.cost_usd is not None


async def test_no_second_copy_goes_while_fresh_rows_are_left() -> None:
    async with _setup(lambda number: None if number == WARM else 200) as setup:
        await _warm(setup)
        slow = asyncio.create_task(setup.complete(WARM))
        await asyncio.sleep(0.5)
        assert len(setup.seen) == WARM + 1
        setup.dispatcher.no_more_rows = True
        assert (await slow).outcome.ok
        assert len(setup.seen) == WARM + 2


async def test_without_hedging_no_second_copy_ever_goes() -> None:
    async with _setup(lambda number: None if number == WARM else 200, hedges=False) as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        slow = asyncio.create_task(setup.complete(WARM))
        await asyncio.sleep(0.5)
        assert len(setup.seen) == WARM + 1
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert setup.gate.in_flight == 0


async def test_a_second_copy_that_fails_leaves_the_first_one_its_time() -> None:
    def status_of(number: int) -> int | None:
        return 200 if number < WARM else None if number == WARM else 400

    async with _setup(status_of) as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        slow = asyncio.create_task(setup.complete(WARM))
        while len(setup.seen) < WARM + 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert not slow.done()
        assert setup.gate.in_flight == 2
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_two_copies_that_both_fail_cost_one_retry() -> None:
    def status_of(number: int) -> int | None:
        return {WARM: None, WARM + 1: 500}.get(number, 200)

    async with _setup(status_of, timeout_s=1.0) as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        completed = await setup.complete(WARM)
        assert setup.gate.in_flight == 0
    assert completed.outcome.ok
    attempts = completed.outcome.attempts
    assert [attempt.kind for attempt in attempts] == ["first", "hedge", "retry"]
    kinds = [attempt.error_kind for attempt in attempts]
    assert kinds == [ErrorKind.TIMEOUT, ErrorKind.SERVER_ERROR, None]


async def test_a_budget_without_room_for_it_sends_no_second_copy() -> None:
    cost, reserved = 20e-6, 125e-6  # of an answer, and of a request in flight
    budget = Budget(WARM * cost + 1.5 * reserved, 0.0)
    async with _setup(lambda number: None if number == WARM else 200, [budget]) as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        slow = asyncio.create_task(setup.complete(WARM))
        await asyncio.sleep(0.5)
        assert len(setup.seen) == WARM + 1
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert setup.gate.in_flight == 0


async def test_a_row_that_fails_while_its_second_copy_waits_for_a_slot_is_sent_again() -> None:
    setting = _setup(lambda number: None if number == WARM else 200, timeout_s=1.0, in_flight=1)
    async with setting as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        completed = await setup.complete(WARM)
        assert setup.gate.in_flight == 0
    assert [attempt.kind for attempt in completed.outcome.attempts] == ["first", "retry"]


async def test_a_row_that_fails_while_the_budget_has_no_room_for_its_second_copy_ends() -> None:
    cost, reserved = 20e-6, 125e-6  # of an answer, and of a request in flight
    budget = Budget(WARM * cost + 1.5 * reserved, 0.0)
    setting = _setup(lambda number: None if number == WARM else 200, [budget], timeout_s=1.0)
    async with setting as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        with pytest.raises(RunStopped, match="the budget is used up"):
            await setup.complete(WARM)
        assert setup.gate.in_flight == 0


async def test_how_long_the_server_asks_a_second_copy_to_wait_holds_nobody_for_a_day() -> None:
    statuses = {WARM: SLOW, WARM + 1: 429}
    async with _setup(lambda number: statuses.get(number, 200)) as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        completed = await setup.complete(WARM)
        kinds = [attempt.error_kind for attempt in completed.outcome.attempts]
        assert kinds == [None, ErrorKind.RATE_LIMIT]
        assert (await setup.complete(WARM + 1)).outcome.ok


class _WithoutSecondKey:
    """The endpoint of a run whose key command fails for the second copy."""

    def __init__(self, client: Client) -> None:
        self._client, self._sent = client, 0
        self.base_url, self.via = client.base_url, client.via

    async def send(
        self, request: Request, client_request_id: str, left_s: float, *_: object
    ) -> Reply:
        self._sent += 1
        if self._sent == WARM + 2:
            raise RunStopped("the command for the key failed", StopCause.KEY)
        return await self._client.send(request, client_request_id, left_s)


async def test_a_second_copy_that_cannot_be_sent_costs_neither_the_first_nor_other_rows() -> None:
    statuses = {WARM: SLOW}
    setting = _setup(lambda number: statuses.get(number, 200), endpoint_of=_WithoutSecondKey)
    async with setting as setup:
        await _warm(setup)
        setup.dispatcher.no_more_rows = True
        completed = await setup.complete(WARM)
        assert completed.outcome.ok
        said = [attempt.error_message for attempt in completed.outcome.attempts]
        assert said == [None, "the command for the key failed"]
        assert (await setup.complete(WARM + 1)).outcome.ok
