"""Rows that would fail, each in its own words, after others were answered. In virtual time."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.dispatch.hold import MOST_HELD
from batchrun.job.sections import RetryJob
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.pricing.prices import Prices
from batchrun.records import Reply, Request
from tests.pacing import virtual_loop

REQUEST = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
ANSWER = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "an answer"}]}],
    "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
}
NAMES = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=3)]


class Server:
    """Answers each request as `say` says, by its row."""

    base_url, via = "http://127.0.0.1/v1", "plain"

    def __init__(self, say: Callable[[int], tuple[int, object]]) -> None:
        self.say, self.sent = say, 0

    def send(
        self, request: Request, _id: str, _left_s: float, _accepted: Callable[[], None], /
    ) -> Awaitable[Reply]:
        return self._answer(request.row)

    async def _answer(self, row: int) -> Reply:
        self.sent += 1
        await asyncio.sleep(0.05)
        status, body = self.say(row)
        return Reply(status, json.dumps(body).encode(), None, None, None)


def _refusal(name: str) -> tuple[int, object]:
    message = f"Failed to download image from https://cdn.example/{name}.jpg"
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": None}}


class Rows:
    """All rows at once, so that only limits and the hold keep any back."""

    def __init__(self, server: Server, rows: int) -> None:
        scopes = Scopes(8, Patience(1800.0, 60.0))
        self.gate = Gate([InFlight(8), FirstAlone()], scopes.limits)
        retry = RetryJob(max_wait_s=0.01)
        self.dispatcher = Dispatcher(server, self.gate, scopes, retry, Prices({}), key_name="KEY")
        self.ended: dict[int, bool] = {}  # row to whether it is ok
        self.tasks = [asyncio.create_task(self._complete(row)) for row in range(rows)]

    async def _complete(self, row: int) -> None:
        completed = await self.dispatcher.complete(replace(REQUEST, row=row))
        if completed.slot is not None:
            self.gate.leave(completed.slot, completed.finish)
        self.ended[row] = completed.outcome.ok


def test_rows_that_fail_in_ways_of_their_own_are_held_by_the_hundred_and_not_all() -> None:
    async def run() -> None:
        server = Server(lambda row: (200, ANSWER) if row == 0 else _refusal(NAMES[row]))
        rows = Rows(server, 900)
        await asyncio.sleep(60)
        assert server.sent == 900
        assert rows.dispatcher.held == MOST_HELD
        assert sorted(rows.ended) == list(range(900 - MOST_HELD))  # those that waited longest
        rows.dispatcher.no_more_rows = True
        await asyncio.wait_for(asyncio.gather(*rows.tasks), 1.0)
        assert rows.dispatcher.held == 0
        assert sum(rows.ended.values()) == 1

    virtual_loop.run(run())


def test_rows_that_are_held_end_once_a_later_request_is_answered() -> None:
    async def run() -> None:
        rows = Rows(Server(lambda row: (200, ANSWER) if row == 0 else _refusal(NAMES[row])), 20)
        await asyncio.sleep(60)
        assert (rows.dispatcher.held, len(rows.ended)) == (19, 1)
        later = asyncio.create_task(rows._complete(0))
        await asyncio.wait_for(asyncio.gather(later, *rows.tasks), 1.0)
        assert len(rows.ended) == 20

    virtual_loop.run(run())


def test_rows_that_are_held_have_no_outcome_where_the_run_stops() -> None:
    async def run() -> None:
        rows = Rows(Server(lambda row: (200, ANSWER) if row == 0 else _refusal(NAMES[row])), 20)
        await asyncio.sleep(60)
        rows.gate.close()
        ends = await asyncio.gather(*rows.tasks, return_exceptions=True)
        assert [isinstance(end, GateClosed) for end in ends] == [False] + [True] * 19
        assert list(rows.ended) == [0]

    virtual_loop.run(run())


@pytest.mark.parametrize("rows", [150, 600])
def test_rows_that_fail_in_one_way_are_held_and_sent_again(rows: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 60.0

        def say(row: int) -> tuple[int, object]:
            is_up = row == 0 or loop.time() > until_s
            return (200, ANSWER) if is_up else _refusal("the")

        server = Server(say)
        await asyncio.wait_for(asyncio.gather(*Rows(server, rows).tasks), 200.0)
        assert server.sent < rows + 150

    virtual_loop.run(run())
