"""A server that queues instead of refusing: whole runs over a socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import batchrun
from tests.raw_sockets import listening, read_body, text_answer
from tests.waiting import HANG_S

_TOKENS = 20


class Server:
    """Answers so many requests at a time, each after so long; who has hung up is left out."""

    def __init__(self, slots: int, answer_s: float) -> None:
        self.requests = 0
        self.most = 0  # at the same time
        self.answer_s = answer_s
        self.base_url = ""
        self._slots = asyncio.Semaphore(slots)
        self._now = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_body(reader)
            self.requests += 1
            self._now += 1
            self.most = max(self.most, self._now)
            async with self._slots:
                if not reader.at_eof():
                    await asyncio.sleep(self.answer_s)
            self._now -= 1
            writer.write(text_answer("42", output_tokens=_TOKENS))
            await writer.drain()


@contextlib.asynccontextmanager
async def _serving(slots: int, answer_s: float) -> AsyncIterator[Server]:
    server = Server(slots, answer_s)
    async with listening(server.answer) as port, asyncio.timeout(HANG_S):
        server.base_url = f"http://127.0.0.1:{port}/v1"
        yield server


@pytest.fixture
def run(run_numbers: Callable[..., Any]) -> Callable[..., Any]:
    return run_numbers


def _attempts(summary: Any) -> list[list[dict[str, Any]]]:
    table = batchrun.open_run(summary.run).responses.to_table(columns=["attempts"])
    return [row["attempts"] for row in table.to_pylist()]


async def test_rows_that_only_waited_for_others_are_not_lost(run: Callable[..., Any]) -> None:
    """16 at first are four times what the server answers within the time-out."""
    async with _serving(1, 0.25) as server:
        summary = await run(server, 40, endpoint__timeout_s=1.0)
    assert (summary.ok, summary.left, summary.exit_code) == (40, 0, 0)
    timed_out = [one for row in _attempts(summary) for one in row if one["error_kind"] == "timeout"]
    assert timed_out
    assert {one["cost_usd"] for one in timed_out} == {None}  # each may be billed


async def test_a_fixed_number_in_flight_is_held_to_and_its_rows_end(
    run: Callable[..., Any],
) -> None:
    async with _serving(1, 0.5) as server:
        summary = await run(server, 24, endpoint__timeout_s=2.0, limits__concurrency=16)
        assert server.most >= 16
    assert summary.left == 0
    assert summary.ok < 24
    table = batchrun.open_run(summary.run).responses.to_table(columns=["error_message"])
    messages = [row["error_message"] for row in table.to_pylist() if row["error_message"]]
    assert all("--timeout" in message for message in messages)
    assert all("lower --concurrency" in message for message in messages)


async def test_auto_stays_a_little_above_what_the_server_works_on(run: Callable[..., Any]) -> None:
    async with _serving(8, 0.05) as server:
        summary = await run(server, 600)
        assert server.most <= 64
    assert (summary.ok, summary.exit_code) == (600, 0)
    assert summary.retries == 0


async def test_a_row_that_takes_long_by_itself_is_not_sent_for_ever(
    run: Callable[..., Any],
) -> None:
    async with _serving(1_000, HANG_S) as server:
        summary = await run(
            server, 2, endpoint__timeout_s=0.3, limits__give_up_after_s=60.0, retry__max_wait_s=0.1
        )
    assert summary.ok == 0
    assert server.requests <= 4
