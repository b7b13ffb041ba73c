"""Failures by chance, a small share of all answers, are no sign of a limit: the run goes on."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Finish, Slot
from tests.pacing import virtual_loop
from tests.pacing.client import Traffic, play
from tests.pacing.queueing_client import QueueingClient, WaitingRow
from tests.pacing.queueing_model import best_fixed, draw_fixed
from tests.pacing.server_model import HEADERS, Plan, Server

SPAN_S = 10.0
OVERLOADED, RATE_LIMIT = ErrorKind.OVERLOADED, ErrorKind.RATE_LIMIT


class Flaky(Server):
    """Refuses, or fails, a share of all requests, whatever is sent."""

    def __init__(
        self,
        plan: Plan,
        share: float,
        kind: ErrorKind,
        hint_s: float | None = None,
        seed: int = 1,
        until_s: float = math.inf,
    ) -> None:
        super().__init__(plan, seed)
        self._share, self._kind, self._hint_s, self._until_s = share, kind, hint_s, until_s

    def take(self, tokens: int, now_s: float) -> tuple[float, Finish]:
        if now_s > self._until_s or self._random.random() >= self._share:
            return super().take(tokens, now_s)
        is_answer = self._kind is not ErrorKind.CONNECTION
        told = self._told() if is_answer else ()
        return self.plan.refusal_s, Finish(
            self._kind, answered=is_answer, hint_s=self._hint_s, advertised=told, tokens=0
        )


def run(server: Server, until_s: float = 60.0, most: int = 1000, rows: int = 40_000) -> Traffic:
    return play(server, ((0, 0),) * rows, most=most, until_s=until_s)


def slowest(traffic: Traffic, until_s: float, from_s: float = 0.0) -> float:
    """Answered rows a second, in the worst ten seconds."""
    spans = range(round(from_s / SPAN_S), round(until_s / SPAN_S))
    return min(
        traffic.between(traffic.accepted, span * SPAN_S, (span + 1) * SPAN_S) / SPAN_S
        for span in spans
    )


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize(
    "kind", [OVERLOADED, RATE_LIMIT, ErrorKind.SERVER_ERROR, ErrorKind.CONNECTION]
)
def test_failures_by_chance_take_nothing_of_what_is_in_flight(
    kind: ErrorKind, share: float
) -> None:
    for most, latency_s in ((4, 0.3), (16, 1.0)):
        plan = Plan(latency_s=latency_s, spread=0.0)
        for seed in range(1, 5):
            traffic = run(Flaky(plan, share, kind, seed=seed), 120.0, most)
            assert slowest(traffic, 120.0) >= 0.85 * most / latency_s, seed


@pytest.mark.parametrize("kind", [OVERLOADED, RATE_LIMIT])
def test_a_refusal_by_chance_that_says_how_long_to_wait_stops_its_row_alone(
    kind: ErrorKind,
) -> None:
    """Thousands a second are possible; a pause of 0.3 s for each refusal left 170 of them."""
    plan = Plan(latency_s=0.05, spread=0.0)
    plain, flaky = (
        run(server, 100.0, 100, 15_000)
        for server in (Server(plan, 1), Flaky(plan, 0.01, kind, 0.3))
    )
    assert sum(flaky.accepted) == 15_000
    assert flaky.end_s <= 1.1 * plain.end_s + 0.3 + 1.0


@pytest.mark.parametrize(("share", "hint_s"), [(0.01, 1.0), (0.05, 1.0), (0.05, None)])
def test_a_limit_told_in_headers_is_used_though_some_are_refused_by_chance(
    share: float, hint_s: float | None
) -> None:
    plan = Plan(requests=200, hints=HEADERS, latency_s=0.2)
    traffic = run(Flaky(plan, share, RATE_LIMIT, hint_s))
    assert slowest(traffic, 60.0) >= 0.85 * 200


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_what_a_server_takes_in_flight_is_used_though_some_are_refused_by_chance(
    share: float,
) -> None:
    plan = Plan(in_flight=32, latency_s=1.0, spread=0.0)
    traffic = run(Flaky(plan, share, OVERLOADED), 90.0)
    assert slowest(traffic, 90.0, from_s=10.0) >= 0.8 * 32
    assert sum(traffic.refused) <= (share + 0.03) * sum(traffic.accepted)


@pytest.mark.parametrize("kind", [OVERLOADED, RATE_LIMIT])
def test_after_failures_by_chance_a_limit_is_still_followed_down(kind: ErrorKind) -> None:
    """A server that takes as much as comes, and then a quarter of it."""
    changes = ((30.0, 0.25),)
    plan = Plan(in_flight=64, latency_s=1.0, changes=changes)
    if kind is RATE_LIMIT:
        plan = replace(plan, in_flight=None, requests=80, latency_s=0.2)
    most, level = (64, 16) if kind is OVERLOADED else (12, 20)
    traffic = run(Flaky(plan, 0.02, kind, until_s=30.0), 90.0, most)
    assert slowest(traffic, 30.0) >= 0.75 * min(64, most / plan.latency_s)
    assert traffic.between(traffic.accepted, 40, 90) >= 0.93 * level * 50
    assert sum(traffic.refused) <= 0.05 * sum(traffic.accepted)


class FlakyGateway(QueueingClient):
    """Two in a hundred requests are refused on the way to a server that queues."""

    _draw = random.Random(3)

    def send(self, tokens: int, slot: Slot) -> None:
        if self._draw.random() >= 0.02:
            super().send(tokens, slot)
            return
        self._loop.call_later(0.05, self._refused, tokens, slot)
        self._loop.call_soon(self._more)

    def _refused(self, tokens: int, slot: Slot) -> None:
        self.gate.leave(slot, Finish(OVERLOADED))
        self._loop.call_later(1.0, partial(WaitingRow(self, tokens).enter, again=True))


def test_a_server_that_queues_is_still_known_though_some_are_refused_by_chance() -> None:
    plan = draw_fixed(3)
    client = FlakyGateway(plan, 180.0, 1, 120.0, says_tokens=True)
    ours = virtual_loop.run(client.run(), seed=1, late_s=0.001)
    best = best_fixed(plan, 60.0, 180.0, 1, 120.0)
    assert ours.rate(60.0, 180.0) >= 0.9 * best.rate(60.0, 180.0)
    assert ours.latency_s(60.0, 180.0) <= 2.0 * best.latency_s(60.0, 180.0)
