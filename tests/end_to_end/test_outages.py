"""Servers that fail for a while, and rows that always fail: which is which, and what it costs."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import batchrun
from tests.raw_sockets import http_answer, listening, read_body, reset, text_answer
from tests.runs import read_record
from tests.waiting import HANG_S

Clothes = bytes | None  # an answer, or a reset
_PAGE = b"<html><head><title>Service temporarily unavailable</title></head></html>"


def _error(status: int, message: str, **more: Any) -> bytes:
    return http_answer(status, json.dumps({"error": {"message": message, **more}}).encode())


_OK = text_answer("42")
_CLOTHES: dict[str, Clothes] = {
    "503": _error(503, "no server is ready"),
    "500": _error(500, "worker died"),
    "424": _error(424, "failed dependency"),
    "page_200": http_answer(200, _PAGE, "text/html"),
    "page_403": http_answer(403, _PAGE, "text/html"),
    "empty_200": http_answer(200, b""),
    "reset": None,
    "403": _error(403, "the deployment is not available"),
    "404": _error(404, "the deployment does not exist"),
    "400": _error(400, "backend request failed"),
}


class Server:
    """Answers each request as `say` says, and counts them by the row that they are of."""

    def __init__(self, say: Callable[[int], Clothes]) -> None:
        self.say = say
        self.requests: Counter[int] = Counter()
        self.base_url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            row = int(json.loads(await read_body(reader))["input"])
            self.requests[row] += 1
            said = self.say(row)
            await asyncio.sleep(0.002)
            if said is None:
                reset(writer)
                return
            writer.write(said)
            await writer.drain()


@contextlib.asynccontextmanager
async def _serving(say: Callable[[int], Clothes]) -> AsyncIterator[Server]:
    server = Server(say)
    async with listening(server.answer) as port, asyncio.timeout(HANG_S):
        server.base_url = f"http://127.0.0.1:{port}/v1"
        yield server


@pytest.fixture
def run(run_numbers: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run_numbers, limits__concurrency=64)


def _statuses(summary: Any) -> dict[str, int]:
    rows = batchrun.open_run(summary.run).responses.to_table(columns=["status"]).to_pylist()
    return dict(Counter(row["status"] for row in rows))


_LASTS_S = 2.0
_ROWS = 1_500


def _clothes(*short: str, long: Sequence[str]) -> list[Any]:
    """Clothes, and those of the long form."""
    return [*short, *(pytest.param(one, marks=pytest.mark.long) for one in long)]


@pytest.mark.parametrize(
    "clothes",
    _clothes(
        *("503", "page_200", "empty_200", "reset", "403"),
        long=("500", "424", "page_403", "404", "400"),
    ),
)
async def test_an_outage_in_any_clothes_costs_no_row_and_few_requests(
    run: Callable[..., Any], clothes: str
) -> None:
    await _outage(run, clothes, _ROWS, _LASTS_S)


@pytest.mark.long
@pytest.mark.parametrize("clothes", _CLOTHES)
async def test_an_outage_of_eight_seconds_costs_no_row_and_few_requests(
    run: Callable[..., Any], clothes: str
) -> None:
    await _outage(run, clothes, 3_000, 8.0)


async def _outage(run: Callable[..., Any], clothes: str, rows: int, lasts_s: float) -> None:
    loop = asyncio.get_running_loop()
    asked, failed, until_s = 0, 0, float("inf")

    def say(_row: int) -> Clothes:
        nonlocal asked, failed, until_s
        asked += 1
        if asked == rows // 3:
            until_s = loop.time() + lasts_s
        if asked < rows // 3 or loop.time() >= until_s:
            return _OK
        failed += 1
        return _CLOTHES[clothes]

    async with _serving(say) as server:
        summary = await run(server, rows)
    assert (summary.ok, summary.exit_code) == (rows, 0)
    assert failed < 64 + 200  # those in flight when it began, and what was sent into it


@pytest.mark.parametrize(
    "clothes", _clothes("500", "reset", "page_200", "400", long=("503", "424", "empty_200"))
)
@pytest.mark.parametrize("bad", [(3, 11, 29), (37, 38, 39)], ids=["among", "last"])
async def test_rows_that_always_fail_end_without_an_answer_and_the_run_ends(
    run: Callable[..., Any], clothes: str, bad: tuple[int, ...]
) -> None:
    async with _serving(lambda row: _CLOTHES[clothes] if row in bad else _OK) as server:
        summary = await run(server, 40, retry__max_wait_s=0.05)
        assert (summary.ok, summary.left, summary.exit_code) == (37, 0, 4)
        # A kept connection that dies at once is replaced within the attempt.
        most = 12 if clothes == "reset" else 6
        assert all(server.requests[row] <= most for row in bad)
        again = await run(server, 40, batchrun.Resend(failed=True), retry__max_wait_s=0.05)
    assert (again.ok, again.left, again.exit_code) == (37, 0, 4)
    assert all(server.requests[row] <= 2 * most for row in bad)
    assert sum(server.requests[row] for row in range(40) if row not in bad) == 37


@pytest.mark.parametrize("clothes", _clothes("500", "400", long=("503", "reset", "403")))
async def test_many_first_rows_that_always_fail_are_no_outage_at_the_end(
    run: Callable[..., Any], clothes: str
) -> None:
    """They look like an outage until others are answered, and again once no others are left."""
    bad = range(1, 31)
    async with _serving(lambda row: _CLOTHES[clothes] if row in bad else _OK) as server:
        summary = await run(server, 100, limits__concurrency=16, retry__max_wait_s=0.05)
    assert (summary.ok, summary.left, summary.exit_code) == (70, 0, 4)


async def test_a_server_that_fails_from_the_start_is_told_as_what_it_says(
    run: Callable[..., Any],
) -> None:
    async with _serving(lambda _row: _CLOTHES["500"]) as server:
        summary = await run(server, 200, limits__give_up_after_s=1.5)
    assert summary.exit_code == 3
    assert "every request has failed" in summary.message
    assert "worker died" in summary.message
    assert "nothing has answered" not in summary.message


@pytest.mark.parametrize("clothes", _clothes("403", long=("404", "400")))
async def test_a_refusal_of_all_rows_holds_the_run_and_a_second_command_ends_them(
    run: Callable[..., Any], clothes: str, tmp_path: Path
) -> None:
    def say(row: int) -> Clothes:
        return _OK if row < 100 or not is_refusing else _CLOTHES[clothes]

    is_refusing = True
    async with _serving(say) as server:
        first = await run(server, 200, limits__give_up_after_s=1.5)
        assert (first.exit_code, first.ok) == (3, 100)
        assert _statuses(first) == {"completed": 100}  # the others have no outcome
        assert "consecutive rows failed in the same way" in first.message
        assert read_record(tmp_path / "run")["met_error"]
        second = await run(server, 200, limits__give_up_after_s=1.5)
        assert (second.exit_code, second.left) == (4, 0)
        assert _statuses(second) == {"completed": 100, "failed": 100}
        assert read_record(tmp_path / "run")["met_error"] is None


async def test_rows_that_still_fail_after_an_outage_end_as_failed(
    run: Callable[..., Any],
) -> None:
    """Twenty-five rows in a row fail while the server refuses all; five of them ever after."""
    loop = asyncio.get_running_loop()
    until_s = float("inf")

    def say(row: int) -> Clothes:
        nonlocal until_s
        if row == 200 and until_s == float("inf"):
            until_s = loop.time() + 1.0
        if loop.time() < until_s < float("inf") or 200 <= row < 205:
            return _CLOTHES["403"]
        return _OK

    async with _serving(say) as server:
        summary = await run(server, 400)
    assert (summary.ok, summary.left, summary.exit_code) == (395, 0, 4)
    assert _statuses(summary) == {"completed": 395, "failed": 5}


async def test_rows_that_fail_each_in_its_own_words_end_while_others_are_sent(
    run: Callable[..., Any],
) -> None:
    """Whoever counts failures sees them before the whole input is sent."""

    def say(row: int) -> Clothes:
        name = str(row).translate(str.maketrans("0123456789", "abcdefghij"))
        return (
            _OK if row < 50 else _error(400, f"failed to download https://cdn.example/{name}.jpg")
        )

    async with _serving(say) as server:
        summary = await run(server, 1_000, limits__concurrency=16, limits__max_failures=100)
    assert (summary.exit_code, summary.ok) == (3, 50)
    assert sum(server.requests.values()) < 600
