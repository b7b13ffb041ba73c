"""The executor over real sockets: every request gets exactly one outcome, whatever befalls it."""

import asyncio
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress

import pytest
from msgspec.structs import replace

from batchrun.dispatch.dispatcher import Dispatcher
from batchrun.dispatch.gate import Gate
from batchrun.errors import InputError, Interrupted, RunStopped, StopCause
from batchrun.executors import local
from batchrun.executors.local import LargeRows, LocalExecutor
from batchrun.job.sections import EndpointJob, RetryJob
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.pricing.prices import Prices
from batchrun.records import BadRow, Failure, Request
from batchrun.simulator.server import serve
from batchrun.simulator.settings import SimulatorSettings
from batchrun.transport.client import Client
from tests.raw_sockets import listening, read_body
from tests.waiting import HANG_S

_ANSWER = b'{"object":"response","status":"completed","output":[],"output_text":"an answer"}'


def _requests(count: int) -> Iterator[Request | BadRow]:
    for row in range(count):
        body = b'{"model":"m","input":"question %d"}' % row
        yield Request(row, str(row), "file", body, f"{row:016x}", "m", None, ())


@asynccontextmanager
async def _executor(
    behavior: SimulatorSettings, in_flight: int = 8, retry: RetryJob | None = None
) -> AsyncIterator[tuple[LocalExecutor, Gate]]:
    async with serve(behavior) as base_url:
        settings = EndpointJob(base_url=base_url, timeout_s=20)
        async with Client(settings, None, {}, "test") as client:
            scopes = Scopes(in_flight, Patience(1800.0, 60.0))
            gate = Gate([InFlight(in_flight), FirstAlone()], scopes.limits)
            settings_of_retry = retry or RetryJob(max_wait_s=0.05)
            dispatcher = Dispatcher(
                client, gate, scopes, settings_of_retry, Prices({}), key_name="KEY"
            )
            yield LocalExecutor(dispatcher, gate, in_flight), gate


async def test_every_request_gets_one_outcome_under_any_faults() -> None:
    behavior = SimulatorSettings(latency_s=0.001, faults=0.3, retry_after_s=0.01, seed=3)
    async with _executor(behavior, retry=RetryJob(max_wait_s=0.01, max_attempts=30)) as (run, gate):
        rows = []
        async with run.run(_requests(80)) as outcomes:
            async for some in outcomes:
                assert gate.in_flight <= 8
                rows += [outcome.request.row for outcome in some]
        assert sorted(rows) == list(range(80))
        assert gate.in_flight == 0


async def test_a_slot_is_given_back_only_when_the_next_outcome_is_asked_for() -> None:
    async with _executor(SimulatorSettings(latency_s=0.001), in_flight=2) as (run, gate):
        async with run.run(_requests(20)) as outcomes:
            (first,) = await anext(outcomes)
            await asyncio.sleep(0.1)
            assert first.request.row == 0
            assert gate.in_flight == 1  # the first alone, and it is not stored yet
            async for _ in outcomes:
                pass


async def test_bad_rows_come_back_as_outcomes_that_were_never_sent() -> None:
    def rows() -> Iterator[Request | BadRow]:
        yield BadRow(0, "0", "file", 7, "not JSON", "0" * 16)
        yield from list(_requests(3))[1:]

    async with _executor(SimulatorSettings(latency_s=0.001)) as (run, _):
        async with run.run(rows()) as outcomes:
            results = {one.request.row: one async for some in outcomes for one in some}
    assert isinstance(results[0].result, Failure)
    assert (results[0].result.status, results[0].attempts) == ("invalid", ())
    assert results[0].result.message == "file:7: not JSON"
    assert results[1].ok


async def test_a_stop_while_rows_are_read_ends_the_run() -> None:
    is_read, is_stopped = threading.Event(), threading.Event()

    def rows() -> Iterator[Request | BadRow]:
        for request in _requests(1_000):
            if request.row == 100:  # of the second time that some are read
                is_read.set()
                assert is_stopped.wait(HANG_S)
            yield request

    async with _executor(SimulatorSettings(latency_s=0.001)) as (run, _):
        stop = Interrupted("stop", 130)
        async with run.run(rows()) as outcomes, asyncio.timeout(HANG_S):
            async for _ in outcomes:
                if is_read.is_set() and not run.causes:
                    run.stop(stop)
                    asyncio.get_running_loop().call_later(0.2, is_stopped.set)
    assert run.causes == [stop]


async def test_rows_go_out_while_further_ones_are_long_in_coming() -> None:
    goes_on = threading.Event()

    def rows() -> Iterator[Request | BadRow | None]:
        requests = _requests(10)
        yield from (next(requests) for _ in range(3))
        yield None
        assert goes_on.wait(HANG_S)
        yield None
        yield from requests

    async with _executor(SimulatorSettings(latency_s=0.001)) as (run, _):
        done = 0
        async with run.run(rows()) as outcomes, asyncio.timeout(HANG_S):
            async for some in outcomes:
                done += len(some)
                if done == 3:
                    goes_on.set()
        assert done == 10


async def test_an_error_of_the_server_ends_the_wait_for_further_rows() -> None:
    stopped = threading.Event()

    def rows() -> Iterator[Request | BadRow | None]:
        yield from _requests(3)
        yield None
        assert stopped.wait(HANG_S)

    behavior = SimulatorSettings(latency_s=0.001, quota=1)
    async with _executor(behavior, in_flight=1) as (run, _):  # so that only one is refused
        run.on_stop = stopped.set
        async with run.run(rows()) as outcomes, asyncio.timeout(HANG_S):
            assert sum([len(some) async for some in outcomes]) == 1
    assert [cause.cause for cause in run.causes if isinstance(cause, RunStopped)] == [
        StopCause.QUOTA
    ]


async def test_the_last_rows_are_known_where_no_others_are_to_come() -> None:
    may_end = threading.Event()

    def rows() -> Iterator[Request | BadRow | None]:
        yield from _requests(1)
        yield None
        may_end.wait(HANG_S)

    async with _executor(SimulatorSettings(latency_s=0.5, latency_spread=0)) as (run, _):
        async with run.run(rows()) as outcomes, asyncio.timeout(HANG_S):
            waiting = asyncio.ensure_future(anext(outcomes))
            await asyncio.sleep(0.1)
            before = run.status().oldest
            run.note_last(is_last=True)
            after = run.status().oldest
            may_end.set()
            await waiting
    assert (len(before), len(after)) == (0, 1)


async def test_a_stop_lets_what_is_in_flight_land() -> None:
    async with _executor(SimulatorSettings(latency_s=0.05), in_flight=4) as (run, _):
        rows = []
        async with run.run(_requests(1000)) as outcomes:
            async for some in outcomes:
                rows += [outcome.request.row for outcome in some]
                if len(rows) >= 20:
                    run.stop(Interrupted("a test", 130))
    assert 20 < len(rows) <= 27
    assert {str(cause) for cause in run.causes} == {"a test"}


async def test_a_drop_ends_what_never_ends() -> None:
    behavior = SimulatorSettings(latency_s=0.001, fault_rates={"no_headers": 1.0})
    async with _executor(behavior) as (run, _):
        stop = Interrupted("a test", 130)
        async with asyncio.timeout(HANG_S), run.run(_requests(10)) as outcomes:
            asyncio.get_running_loop().call_later(0.2, run.stop, stop)
            asyncio.get_running_loop().call_later(0.4, run.drop)
            async for _ in outcomes:
                pytest.fail("nothing is ever answered")
    assert run.causes == [stop]


async def test_used_up_quota_stops_the_run_and_keeps_what_was_answered() -> None:
    async with _executor(SimulatorSettings(latency_s=0.001, quota=50)) as (run, _):
        rows = set()
        async with run.run(_requests(500)) as outcomes:
            async for some in outcomes:
                assert all(outcome.ok for outcome in some)
                rows |= {outcome.request.row for outcome in some}
    assert run.causes
    for cause in run.causes:
        assert isinstance(cause, RunStopped)
        assert cause.cause is StopCause.QUOTA
    assert 50 <= len(rows) < 50 + 8  # what was in flight when the quota ran out


async def test_an_error_of_the_input_ends_the_run_after_what_is_in_flight() -> None:
    def rows() -> Iterator[Request | BadRow]:
        yield from _requests(30)
        raise InputError("the file changed")

    async with _executor(SimulatorSettings(latency_s=0.01)) as (run, _):
        count = 0
        async with run.run(rows()) as outcomes:
            async for some in outcomes:
                count += len(some)
    assert count <= 30
    assert [type(cause) for cause in run.causes] == [InputError]


async def test_rows_that_wait_for_another_try_keep_no_slot_from_those_behind_them() -> None:
    asked: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):
            while body := await read_body(reader):
                row = int(re.findall(rb"question (\d+)", body)[0])
                is_busy = row < 6 and asked.count(row) == 0
                asked.append(row)
                status = b"500 Oh" if is_busy else b"200 OK"
                body = b'{"error":{"message":"oh"}}' if is_busy else _ANSWER
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
                writer.write(body)

    answering: list[asyncio.Task[None]] = []
    server = await asyncio.start_server(
        lambda *both: answering.append(asyncio.create_task(answer(*both))), "127.0.0.1", 0
    )
    base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, Client(EndpointJob(base_url=base_url), None, {}, "test") as client:
        scopes = Scopes(2, Patience(1800.0, 60.0))
        gate = Gate([InFlight(2)], scopes.limits)
        dispatcher = Dispatcher(client, gate, scopes, RetryJob(), Prices({}), key_name="KEY")
        run = LocalExecutor(dispatcher, gate, 2)
        async with asyncio.timeout(HANG_S), run.run(_requests(30)) as outcomes:
            rows = [one.request.row async for some in outcomes for one in some]
    await asyncio.gather(*answering)
    assert sorted(rows) == list(range(30))
    assert asked[:30] == list(range(30))  # every row was sent once before one was sent again


async def test_rows_that_cannot_be_sent_leave_the_loop_its_turns() -> None:
    bad = [BadRow(row, str(row), "file", 7, "not JSON", "0" * 16) for row in range(5_000)]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with _executor(SimulatorSettings(latency_s=0.001), in_flight=2) as (run, _):
        async with run.run(iter(bad)) as outcomes:
            counting = asyncio.create_task(count_turns())
            batches = [len(some) async for some in outcomes]
            counting.cancel()
    assert sum(batches) == 5_000
    assert max(batches) <= 256
    assert turns > len(batches)


@pytest.mark.parametrize("in_flight", [1, 2, 7])
async def test_no_row_is_left_behind_however_the_input_comes(in_flight: int) -> None:
    draw = random.Random(in_flight)
    count = 400

    def rows() -> Iterator[Request | BadRow]:
        for request in _requests(count):
            if draw.random() < 0.1:
                time.sleep(draw.random() * 0.01)  # a disk that is slow now and then
            is_bad = draw.random() < 0.3
            row = request.row
            yield BadRow(row, str(row), "file", 7, "no", "0" * 16) if is_bad else request

    async with _executor(SimulatorSettings(latency_s=0.0), in_flight=in_flight) as (run, gate):
        async with asyncio.timeout(HANG_S), run.run(rows()) as outcomes:
            settled = [one.request.row async for some in outcomes for one in some]
        assert sorted(settled) == list(range(count))
        assert gate.in_flight == 0


@asynccontextmanager
async def _answering(
    status_of: Callable[[int, int], bytes], in_flight: int = 8
) -> AsyncIterator[LocalExecutor]:
    """An executor against a server that answers with the status for a row and its attempt."""
    asked: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while body := await read_body(reader):
                row = int(re.findall(rb"question (\d+)", body)[0])
                status = status_of(row, asked.count(row))
                asked.append(row)
                body = _ANSWER if status.startswith(b"200") else b'{"error":{"message":"oh"}}'
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
                writer.write(body)

    async with (
        listening(answer) as port,
        Client(EndpointJob(base_url=f"http://127.0.0.1:{port}/v1"), None, {}, "test") as client,
    ):
        scopes = Scopes(in_flight, Patience(1800.0, 60.0))
        gate = Gate([InFlight(in_flight)], scopes.limits)
        retry = RetryJob(max_wait_s=0.05)
        dispatcher = Dispatcher(client, gate, scopes, retry, Prices({}), key_name="KEY")
        yield LocalExecutor(dispatcher, gate, in_flight)


@pytest.fixture
def _one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row fills the budget, and is read alone."""
    for name in ("_ROW_BYTES", "_LARGE_BYTES", "_READ_BYTES"):
        monkeypatch.setattr(local, name, 1)


@pytest.mark.usefixtures("_one_row_at_a_time")
async def test_rows_above_the_budget_are_read_when_those_before_are_stored() -> None:
    read: list[int] = []

    def rows() -> Iterator[Request | BadRow]:
        for request in _requests(20):
            read.append(request.row)
            yield request

    async with _answering(lambda _row, _attempt: b"200 OK") as run:
        stored: list[int] = []
        async with asyncio.timeout(HANG_S), run.run(rows()) as outcomes:
            async for some in outcomes:
                assert len(read) <= len(stored) + 1
                stored += [outcome.request.row for outcome in some]
    assert stored == list(range(20))


@pytest.mark.usefixtures("_one_row_at_a_time")
async def test_rows_that_wait_for_others_do_not_keep_them_out_of_a_full_budget() -> None:
    """A row that would end as failed needs another one that is answered."""

    def status_of(row: int, _attempt: int) -> bytes:
        return b"404 Not Found" if row in (5, 6, 7, 19) else b"200 OK"

    async with _answering(status_of) as run:
        async with asyncio.timeout(HANG_S), run.run(_requests(20)) as outcomes:
            rows = {one.request.row: one.ok async for some in outcomes for one in some}
    assert sorted(rows) == list(range(20))
    assert sorted(row for row, ok in rows.items() if not ok) == [5, 6, 7, 19]


@pytest.mark.usefixtures("_one_row_at_a_time")
async def test_a_row_that_is_sent_again_stays_in_the_budget() -> None:
    def status_of(row: int, attempt: int) -> bytes:
        return b"500 Oh" if row % 3 == 0 and attempt < 2 else b"200 OK"

    async with _answering(status_of) as run:
        async with asyncio.timeout(HANG_S), run.run(_requests(20)) as outcomes:
            rows = [one.request.row async for some in outcomes for one in some]
    assert sorted(rows) == list(range(20))


def test_the_size_of_a_row_is_that_of_its_body_and_of_what_it_carries() -> None:
    large = LargeRows(100_000)
    (small,) = _requests(1)
    carried = ("x" * 20_000, b"y" * 20_000, {"bytes": b"z" * 20_000, "path": None}, ["w" * 20_000])
    bad = BadRow(1, "1", "file", 7, "no", "0" * 16, ("x" * 30_000,))
    large.add([small, bad])
    assert (bool(large), large.is_full) == (True, False)
    large.add([replace(small, body=b"x", carried=(*carried, 5, None, True))])
    assert (bool(large), large.is_full) == (True, True)
    keys = (bad.key, replace(small, sample=1).key, small.key)
    assert [large.stored(key) for key in keys] == [True, False, True]
    assert (bool(large), large.is_full) == (False, False)
