"""What holds for any schedule, with the real gate and limits on a virtual clock."""

import asyncio
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.dispatch.gate import Gate
from batchrun.errors import ErrorKind
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.rate import MinuteLimit
from batchrun.limits.scopes import scope_limits
from batchrun.limits.verdicts import GO, Limit, LimitStatus, Verdict
from batchrun.records import AdvertisedLimit, Finish, Need, Scope, Slot
from tests.pacing.virtual_loop import run

MINUTE_S = 60.0
SCOPES = tuple(Scope("http://127.0.0.1/v1", "KEY", model) for model in ("a", "b"))
TOLD = AdvertisedLimit("x-ratelimit-limit-requests", "requests", 1200.0, 3.0, 0.2)


@dataclass(frozen=True)
class Visit:
    """One attempt of a schedule."""

    scope: int
    after_s: float  # the one before it came
    reserved: int
    used: int | None
    lasts_s: float
    ends: str  # answer, told, rate_limit, overloaded, connection or cancelled
    hint_s: float | None
    patience_s: float  # then it is cancelled while it waits
    again: bool = False  # the row was let in before


VISITS = st.builds(
    Visit,
    scope=st.integers(0, 1),
    after_s=st.sampled_from((0.0, 0.0, 0.01, 0.3, 5.0, 70.0)),
    reserved=st.integers(0, 400),
    used=st.none() | st.integers(0, 500),
    lasts_s=st.sampled_from((0.0, 0.02, 1.0, 20.0, 90.0)),
    ends=st.sampled_from(
        ("answer", "answer", "told", "rate_limit", "overloaded", "connection", "cancelled")
    ),
    hint_s=st.none() | st.sampled_from((0.005, 1.0, 7.5)),
    patience_s=st.sampled_from((1e9, 1e9, 1e9, 0.5, 30.0)),
    again=st.booleans(),
)


@dataclass
class Start:
    """An attempt that was let in."""

    at_s: float
    reserved: int
    counts: int  # tokens: as reserved, then as used
    is_over: bool = False


class Witness:
    """Counts for itself, at the moment the gate decides, and checks each start."""

    def __init__(self, most: int, requests: int, tokens: int) -> None:
        self.most, self.requests, self.tokens = most, requests, tokens
        self.starts: list[Start] = []
        self.in_flight = 0

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return GO

    def started(self, need: Need, now_s: float) -> None:
        minute = [start for start in self.starts if now_s - start.at_s < MINUTE_S]
        before = sum(start.counts for start in minute)
        assert self.in_flight + 1 <= self.most
        assert len(minute) + 1 <= self.requests
        if need.tokens > self.tokens:
            assert before == 0
        else:
            assert before + need.tokens <= self.tokens
        self.starts.append(Start(now_s, need.tokens, need.tokens))
        self.in_flight += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        self.in_flight -= 1
        mine = (slot.started_s, slot.need.tokens)
        start = next(
            one for one in self.starts if not one.is_over and (one.at_s, one.reserved) == mine
        )
        start.is_over = True
        if finish.tokens is not None:
            start.counts = finish.tokens

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("the witness")


def finish_of(visit: Visit) -> Finish:
    match visit.ends:
        case "answer":
            return Finish(tokens=visit.used)
        case "told":
            return Finish(tokens=visit.used, advertised=(TOLD,))
        case "rate_limit":
            return Finish(ErrorKind.RATE_LIMIT, hint_s=visit.hint_s, tokens=visit.used)
        case "overloaded":
            return Finish(ErrorKind.OVERLOADED, hint_s=visit.hint_s)
        case "connection":
            return Finish(ErrorKind.CONNECTION, answered=False, is_retry=True)
        case _:
            return Finish(answered=False)


class Schedule:
    """Plays visits under the limits of a user."""

    def __init__(self, most: int, requests: int, tokens: int) -> None:
        self.witness = Witness(most, requests, tokens)
        self.minutes = [MinuteLimit("requests", requests), MinuteLimit("tokens", tokens)]
        self.ended = 0
        self.waiting: dict[Scope, tuple[deque[int], deque[int]]] = {
            scope: (deque(), deque()) for scope in SCOPES
        }

    async def play(self, visits: list[Visit]) -> Gate:
        shared: list[Limit] = [
            InFlight(self.witness.most),
            *self.minutes,
            FirstAlone(),
            self.witness,
        ]
        gate = Gate(shared, lambda _scope: scope_limits(1000))
        tasks = []
        for number, visit in enumerate(visits):
            await asyncio.sleep(visit.after_s)
            tasks.append(asyncio.create_task(self._visit(gate, number, visit)))
        await asyncio.gather(*tasks)
        return gate

    async def _visit(self, gate: Gate, number: int, visit: Visit) -> None:
        scope = SCOPES[visit.scope]
        need = Need(scope, visit.reserved)
        fresh, again = self.waiting[scope]
        line = again if visit.again else fresh
        line.append(number)
        enters = asyncio.ensure_future(gate.enter(scope, lambda: need, again=visit.again))
        done, _ = await asyncio.wait((enters,), timeout=visit.patience_s)
        if not done:
            line.remove(number)
            enters.cancel()
            await asyncio.gather(enters, return_exceptions=True)
            self.ended += 1
            return
        slot = enters.result()
        assert line.popleft() == number  # first come, first in
        await asyncio.sleep(visit.lasts_s)
        self.ended += 1
        gate.leave(slot, finish_of(visit))


def test_the_witness_sees_a_limit_that_is_too_wide() -> None:
    visits = [Visit(0, 0.0, 300, None, 0.02, "answer", None, 1e9) for _ in range(20)]
    schedule = Schedule(6, 30, 1000)
    schedule.minutes[1] = MinuteLimit("tokens", 2000)
    with pytest.raises(AssertionError):
        run(schedule.play(visits))


@settings(max_examples=120, deadline=None)
@given(
    st.lists(VISITS, min_size=1, max_size=50),
    st.integers(1, 6),
    st.integers(1, 30),
    st.integers(50, 1500),
    st.integers(0, 3),
)
def test_no_limit_is_exceeded_nobody_is_forgotten_and_who_comes_first_goes_in_first(
    visits: list[Visit], most: int, requests: int, tokens: int, seed: int
) -> None:
    schedule = Schedule(most, requests, tokens)
    run(schedule.play(visits), seed=seed, late_s=0.005 * seed)
    assert schedule.ended == len(visits)
    assert schedule.witness.in_flight == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(VISITS, min_size=1, max_size=30), st.integers(0, 3))
def test_a_minute_after_the_last_start_nothing_is_reserved_any_more(
    visits: list[Visit], seed: int
) -> None:
    schedule = Schedule(4, 20, 1000)

    async def play_on() -> None:
        gate = await schedule.play(visits)
        assert gate.in_flight == gate.waiting == 0
        await asyncio.sleep(MINUTE_S + 1)
        now_s = asyncio.get_running_loop().time()
        assert [limit.status(now_s).used for limit in schedule.minutes] == [0, 0]
        assert [one.used for one in gate.statuses() if one.name.endswith("in flight")] == [0] * (
            1 + len({visit.scope for visit in visits})
        )

    run(play_on(), seed=seed, late_s=0.002 * seed)
