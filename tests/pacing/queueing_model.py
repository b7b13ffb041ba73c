"""A server that queues instead of refusing, as self-hosted ones do. No clock, no I/O.

Up to `slots` answers are made at the same time, in the order in which they came; the others wait.
An answer of `MEAN` tokens takes `base_s` alone and `slope_s` more for each other one that is made
with it: 0 for a server of so many independent slots, more for one that batches.
"""

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass

MEAN = 200.0  # tokens of an answer
SIGMA = 0.7  # of the logarithm of their number


@dataclass(frozen=True)
class Plan:
    """How a server works."""

    base_s: float
    slots: int
    slope_s: float = 0.0
    way_s: float = 0.02  # there and back
    # From then on: so many times the slots, so many times the speed.
    changes: tuple[tuple[float, float, float], ...] = ()


def lengths(seed: int) -> "itertools.starmap[int]":
    """Tokens of answers, without end; lognormal."""
    draw = random.Random(seed).lognormvariate
    mu = math.log(MEAN) - SIGMA**2 / 2
    return itertools.starmap(lambda: max(1, round(draw(mu, SIGMA))), itertools.repeat(()))


class QueueingServer:
    """Answers in the making share one clock of tokens: each gets as many as every other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._waiting: deque[tuple[int, int]] = deque()  # key and tokens
        self._making: list[tuple[float, int]] = []  # when it is done, in tokens; key: a heap
        self._made = 0.0  # tokens of each one in the making, since the start
        self._at_s = 0.0
        self._changes = deque(plan.changes)
        self._slots, self._speed = plan.slots, 1.0

    def take(self, key: int, tokens: int, now_s: float) -> None:
        self._go_on(now_s)
        self._waiting.append((key, tokens))
        self._fill()

    def drop(self, key: int, now_s: float) -> None:
        """The client has hung up: what is in the making is stopped, as vLLM does it."""
        self._go_on(now_s)
        self._waiting = deque(one for one in self._waiting if one[0] != key)
        self._making = [one for one in self._making if one[1] != key]
        heapq.heapify(self._making)
        self._fill()

    def next_s(self) -> float:
        """When something happens next, should nothing else arrive."""
        next_s = math.inf
        if self._making:
            next_s = self._at_s + max(0.0, self._making[0][0] - self._made) * self._token_s()
        return min(next_s, self._changes[0][0]) if self._changes else next_s

    def done(self, now_s: float) -> list[int]:
        """What is complete by then."""
        self._go_on(now_s)
        keys = []
        while self._making and self._making[0][0] <= self._made + 1e-6:
            keys.append(heapq.heappop(self._making)[1])
        if self._changes and self._changes[0][0] <= now_s:
            _, slots, speed = self._changes.popleft()
            self._slots, self._speed = max(1, round(slots * self.plan.slots)), speed
        self._fill()
        return keys

    def _go_on(self, now_s: float) -> None:
        if self._making:
            self._made += (now_s - self._at_s) / self._token_s()
        self._at_s = now_s

    def _token_s(self) -> float:
        others = len(self._making) - 1
        return (self.plan.base_s + self.plan.slope_s * others) / MEAN / self._speed

    def _fill(self) -> None:
        while self._waiting and len(self._making) < self._slots:
            key, tokens = self._waiting.popleft()
            heapq.heappush(self._making, (self._made + tokens, key))


@dataclass
class Traffic:
    """What came of a run: for each answer, when it was complete, its latency and its tokens."""

    answers: list[tuple[float, float, int]]
    timed_out: int = 0

    def rate(self, from_s: float, until_s: float) -> float:
        """Tokens a second."""
        return sum(one[2] for one in self.answers if from_s <= one[0] < until_s) / (
            until_s - from_s
        )

    def latency_s(self, from_s: float, until_s: float) -> float:
        found = [one[1] for one in self.answers if from_s <= one[0] < until_s]
        return sum(found) / max(1, len(found))


def fixed(plan: Plan, in_flight: int, until_s: float, seed: int, timeout_s: float) -> Traffic:
    """A run with so many in flight all the time."""
    server, sizes, traffic = QueueingServer(plan), lengths(seed), Traffic([])
    sent: dict[int, tuple[float, int]] = {}
    events: list[tuple[float, int]] = [(0.0, key) for key in range(in_flight)]  # arrivals
    keys = itertools.count(in_flight)
    while True:
        next_s = server.next_s()
        if events and events[0][0] <= next_s:
            now_s, key = heapq.heappop(events)
            tokens = next(sizes)
            sent[key] = (now_s, tokens)
            server.take(key, tokens, now_s)
            continue
        if next_s >= until_s:
            return traffic
        for key in server.done(next_s):
            began_s, tokens = sent.pop(key)
            latency_s = next_s - began_s + plan.way_s
            traffic.timed_out += latency_s > timeout_s
            traffic.answers.append((next_s + plan.way_s / 2, latency_s, tokens))
            heapq.heappush(events, (next_s + plan.way_s, next(keys)))
