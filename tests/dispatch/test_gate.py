import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.errors import RunStopped
from batchrun.policy.concurrency import FirstAlone, InFlight
from batchrun.policy.verdicts import Stop, Verdict, Wait
from batchrun.records import Need, Scope

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"), 10)


class _Stops(InFlight):
    def verdict(self, need: Need, now_s: float) -> Verdict:
        return Stop("the budget is spent")


class _OpensAt(InFlight):
    def __init__(self, at_s: float) -> None:
        super().__init__(1000)
        self.at_s = at_s

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return super().verdict(need, now_s) if now_s >= self.at_s else Wait(self.at_s)


async def test_first_come_first_in() -> None:
    gate = Gate([InFlight(1)])
    order: list[int] = []

    async def attempt(number: int) -> None:
        await gate.enter(NEED)
        order.append(number)
        await asyncio.sleep(0)
        gate.leave(NEED, answered=True)

    await asyncio.gather(*(attempt(number) for number in range(50)))
    assert order == list(range(50))
    assert gate.in_flight == 0


async def test_a_closed_gate_sends_home_who_waits_and_who_comes() -> None:
    gate = Gate([InFlight(1)])
    await gate.enter(NEED)
    waiter = asyncio.create_task(gate.enter(NEED))
    sleeper = asyncio.create_task(gate.pause(600))
    await asyncio.sleep(0)
    gate.close()
    for task in (waiter, sleeper):
        with pytest.raises(GateClosed):
            await task
    with pytest.raises(GateClosed):
        await gate.enter(NEED)
    assert gate.in_flight == 1


async def test_a_limit_that_stops_ends_the_run_for_all_who_wait() -> None:
    gate = Gate([_Stops(1)])
    with pytest.raises(RunStopped, match="the budget is spent"):
        await gate.enter(NEED)


async def test_a_wait_with_an_end_needs_no_other_attempt_to_end() -> None:
    loop = asyncio.get_running_loop()
    gate = Gate([_OpensAt(loop.time() + 0.05)])
    async with asyncio.timeout(10):
        await asyncio.gather(*(gate.enter(NEED) for _ in range(5)))
    assert gate.in_flight == 5


async def test_the_first_goes_alone_and_the_others_follow_its_answer() -> None:
    gate = Gate([InFlight(10), FirstAlone(patience_s=600)])
    await gate.enter(NEED)
    others = [asyncio.create_task(gate.enter(NEED)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert gate.in_flight == 1
    gate.leave(NEED, answered=True)
    async with asyncio.timeout(10):
        await asyncio.gather(*others)
    assert gate.in_flight == 4


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60),
)
def test_whoever_is_cancelled_no_slot_is_lost_and_the_limit_holds(
    most: int, visits: list[tuple[int, bool]]
) -> None:
    async def scenario() -> None:
        gate = Gate([InFlight(most)])
        seen = 0

        async def visit(turns: int) -> None:
            nonlocal seen
            await gate.enter(NEED)
            seen = max(seen, gate.in_flight)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                gate.leave(NEED, answered=True)

        tasks = []
        for turns, is_cancelled in visits:
            task = asyncio.create_task(visit(turns))
            tasks.append(task)
            await asyncio.sleep(0)
            if is_cancelled:
                tasks[len(tasks) // 2].cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.in_flight == 0
        assert seen <= most

    asyncio.run(scenario())
