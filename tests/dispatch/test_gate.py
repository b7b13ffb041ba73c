import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.dispatch.gate import Gate, GateClosed
from batchrun.errors import ErrorKind, RunStopped, StopCause
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.pauses import Breaker, Patience
from batchrun.limits.verdicts import Limit, Stop, Verdict, Wait
from batchrun.records import Finish, Need, Scope, Slot
from tests.pacing import virtual_loop
from tests.waiting import HANG_S

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
OTHER = Scope("http://127.0.0.1/v1", "KEY", "n")
NEED = Need(SCOPE, 10)
ANSWER = Finish()


async def enter(gate: Gate, scope: Scope = SCOPE, tokens: int = 10) -> Slot:
    return await gate.enter(scope, lambda: Need(scope, tokens))


class _Stops(InFlight):
    def verdict(self, need: Need, now_s: float) -> Verdict:
        return Stop("the budget is spent", StopCause.BUDGET)


class _OpensAt(InFlight):
    def __init__(self, at_s: float) -> None:
        super().__init__(1000)
        self.at_s = at_s

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return super().verdict(need, now_s) if now_s >= self.at_s else Wait(self.at_s)


class _NoMoreThan(InFlight):
    """A limit on one need: larger ones wait for ten minutes."""

    def __init__(self, tokens: int) -> None:
        super().__init__(1000)
        self.tokens = tokens

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return Wait(now_s + 600) if need.tokens > self.tokens else super().verdict(need, now_s)


async def test_first_come_first_in() -> None:
    gate = Gate([InFlight(1)])
    order: list[int] = []

    async def attempt(number: int) -> None:
        slot = await enter(gate)
        order.append(number)
        await asyncio.sleep(0)
        gate.leave(slot, ANSWER)

    await asyncio.gather(*(attempt(number) for number in range(50)))
    assert order == list(range(50))
    assert gate.in_flight == 0


async def test_a_slot_says_what_was_needed_and_when_it_was_given() -> None:
    gate = Gate([InFlight(1)])
    before_s = asyncio.get_running_loop().time()
    slot = await enter(gate, tokens=77)
    assert slot.need == Need(SCOPE, 77)
    assert before_s <= slot.started_s <= asyncio.get_running_loop().time()


async def test_what_is_needed_is_asked_when_it_is_ones_turn() -> None:
    gate = Gate([InFlight(1)])
    tokens = 10
    first = await enter(gate)
    waiter = asyncio.create_task(gate.enter(SCOPE, lambda: Need(SCOPE, tokens)))
    await asyncio.sleep(0)
    tokens = 99
    gate.leave(first, ANSWER)
    assert (await waiter).need.tokens == 99


async def test_one_that_was_let_in_before_goes_in_after_five_fresh_ones() -> None:
    gate = Gate([InFlight(1)])
    slot = await enter(gate)
    order: list[str] = []

    async def come(name: str) -> None:
        slot = await gate.enter(SCOPE, lambda: Need(SCOPE, 1), again=name.startswith("again"))
        order.append(name)
        gate.leave(slot, ANSWER)

    fresh, again = [f"fresh {number}" for number in range(7)], ["again 0", "again 1"]
    tasks = [asyncio.create_task(come(name)) for name in (*fresh, *again)]
    await asyncio.sleep(0)
    gate.leave(slot, ANSWER)
    await asyncio.gather(*tasks)
    assert [name for name in order if name in fresh] == fresh
    assert [name for name in order if name in again] == again
    assert order.index("again 0") == 4  # the slot above was the first of five
    assert order.index("again 1") == 8  # no more fresh ones were left
    assert gate.in_flight == gate.waiting == 0


async def test_a_closed_gate_sends_home_who_waits_and_who_comes() -> None:
    gate = Gate([InFlight(1)])
    await enter(gate)
    waiter = asyncio.create_task(enter(gate))
    sleeper = asyncio.create_task(gate.pause(600))
    await asyncio.sleep(0)
    gate.close()
    for task in (waiter, sleeper):
        with pytest.raises(GateClosed):
            await task
    with pytest.raises(GateClosed):
        await enter(gate)
    assert gate.in_flight == 1
    assert gate.waiting == 0


@pytest.mark.parametrize("is_shared", [True, False])
async def test_a_limit_that_stops_ends_the_run_for_all_who_wait(*, is_shared: bool) -> None:
    stops: list[Limit] = [_Stops(1)]
    gate = Gate(stops) if is_shared else Gate([], lambda _scope: stops)
    with pytest.raises(RunStopped, match="the budget is spent"):
        await enter(gate)


async def test_a_wait_with_an_end_needs_no_other_attempt_to_end() -> None:
    loop = asyncio.get_running_loop()
    gate = Gate([_OpensAt(loop.time() + 0.05)])
    async with asyncio.timeout(HANG_S):
        await asyncio.gather(*(enter(gate) for _ in range(5)))
    assert gate.in_flight == 5


async def test_the_first_goes_alone_and_the_others_follow_its_answer() -> None:
    gate = Gate([InFlight(10), FirstAlone(patience_s=600)])
    first = await enter(gate)
    others = [asyncio.create_task(enter(gate)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert gate.in_flight == 1
    gate.leave(first, ANSWER)
    async with asyncio.timeout(HANG_S):
        await asyncio.gather(*others)
    assert gate.in_flight == 4


async def test_the_first_of_each_scope_goes_alone_and_holds_up_no_other() -> None:
    def limits(scope: Scope) -> list[Limit]:
        first = FirstAlone(patience_s=600)
        first.on_open = lambda: gate.drop(first, scope)
        return [first]

    gate = Gate([InFlight(10)], limits)
    async with asyncio.timeout(HANG_S):
        first, other = await enter(gate), await enter(gate, OTHER)
        waits = [asyncio.create_task(enter(gate, scope)) for scope in (SCOPE, OTHER)]
        await asyncio.sleep(0.01)
        assert (gate.in_flight, len(gate.statuses())) == (2, 3)
        gate.leave(other, ANSWER)
        await waits[1]
        assert (waits[0].done(), len(gate.statuses())) == (False, 2)
        gate.leave(first, ANSWER)
        await waits[0]
    assert (gate.in_flight, [one.name for one in gate.statuses()]) == (2, ["requests in flight"])


async def test_a_scope_that_waits_does_not_hold_up_another() -> None:
    gate = Gate([InFlight(10)], lambda scope: [InFlight(1 if scope == SCOPE else 5)])
    await enter(gate)
    waits = asyncio.create_task(enter(gate))
    await asyncio.sleep(0)
    async with asyncio.timeout(HANG_S):
        await asyncio.gather(*(enter(gate, OTHER) for _ in range(5)))
    assert not waits.done()
    gate.close()
    with pytest.raises(GateClosed):
        await waits


async def test_a_limit_of_the_whole_run_lets_nobody_overtake() -> None:
    gate = Gate([_NoMoreThan(50)], lambda _scope: [InFlight(10)])
    large = asyncio.create_task(enter(gate, SCOPE, 100))
    await asyncio.sleep(0)
    small = asyncio.create_task(enter(gate, OTHER, 1))
    await asyncio.sleep(0.01)
    assert not large.done()
    assert not small.done()
    gate.close()
    await asyncio.gather(large, small, return_exceptions=True)


async def test_where_the_first_in_line_goes_away_the_next_one_does_not_wait_for_its_time() -> None:
    gate = Gate([_NoMoreThan(50)])
    large = asyncio.create_task(enter(gate, SCOPE, 100))
    small = asyncio.create_task(enter(gate, SCOPE, 1))
    await asyncio.sleep(0)
    large.cancel()
    async with asyncio.timeout(HANG_S):
        assert (await small).need.tokens == 1
    assert gate.waiting == 0


async def test_the_limit_that_holds_up_the_first_in_line_stands_before_the_others() -> None:
    gate = Gate([InFlight(10)], lambda _scope: [FirstAlone(600)])
    await enter(gate)
    waits = asyncio.create_task(enter(gate))
    await asyncio.sleep(0)
    assert [one.name for one in gate.statuses()] == ["the first answer", "requests in flight"]
    gate.close()
    await asyncio.gather(waits, return_exceptions=True)


async def test_limits_hear_how_each_attempt_ended() -> None:
    heard: list[tuple[str, Slot, Finish]] = []

    class Hears(InFlight):
        def __init__(self, name: str) -> None:
            super().__init__(5)
            self.name = name

        def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
            super().finished(slot, finish, now_s)
            heard.append((self.name, slot, finish))

    gate = Gate([Hears("run")], lambda scope: [Hears(scope.model)])
    slot = await enter(gate, OTHER)
    finish = Finish(ErrorKind.RATE_LIMIT, hint_s=3.0)
    gate.leave(slot, finish)
    assert heard == [("run", slot, finish), ("n", slot, finish)]


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
            slot = await enter(gate)
            seen = max(seen, gate.in_flight)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                gate.leave(slot, ANSWER)

        tasks = []
        for turns, is_cancelled in visits:
            task = asyncio.create_task(visit(turns))
            tasks.append(task)
            await asyncio.sleep(0)
            if is_cancelled:
                tasks[len(tasks) // 2].cancel()
        async with asyncio.timeout(HANG_S):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert gate.in_flight == 0
        assert gate.waiting == 0
        assert seen <= most

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", ["refused", "down"])
def test_a_run_that_is_to_stop_does_so_however_long_another_limit_makes_it_wait(
    fails: str,
) -> None:
    async def wait() -> tuple[float, str]:
        began_s = asyncio.get_running_loop().time()
        breaker, until_s = Breaker(Patience(1800.0, 1800.0)), began_s + 36_000.0
        gate = Gate([InFlight(50)], lambda _scope: [breaker, _OpensAt(until_s)])
        for row in range(20):
            failed = Finish(ErrorKind.SERVER_ERROR, endpoint_error="500", row=row)
            refused = Finish(ErrorKind.RATE_LIMIT)
            finish = refused if fails == "refused" else failed
            breaker.finished(Slot(NEED, began_s + row), finish, began_s + row)
        with pytest.raises(RunStopped) as stopped:
            await enter(gate)
        return asyncio.get_running_loop().time() - began_s, str(stopped.value)

    waited_s, said = virtual_loop.run(wait())
    assert waited_s == pytest.approx(1800.0)
    assert "for 1800 s" in said
