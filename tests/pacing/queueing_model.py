"""Servers that queue instead of refusing, as self-hosted ones do. No clock, no I/O.

Up to `slots` answers are made at the same time, in the order in which they came; the others wait.
An answer of `MEAN` tokens takes `base_s` alone, and `slope_s` more for each other one that is made
with it: none on a server of so many independent slots, some on one that batches.

Drawn at random, evenly on a logarithmic scale: 2 to 200 slots, the way there and back 2 to 200 ms.

- fixed capacity: answers take 0.3 to 4 s
- batching: 64, 128 or 256 slots; an answer takes 0.3 to 2 s alone, 3 to 21 times that with all
- changing: half the slots, or half the speed, from the 120th to the 240th second
- unlimited: answers of 20 to 60 s, as many at a time as anyone asks for

They answer 4 to 120 requests a second (8 where capacity changes): with fewer, some hundred answers
of such uneven lengths in two minutes say little of any speed.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

MEAN = 200.0  # tokens of an answer
SIGMA = 0.7  # of the logarithm of their number
MOST = 1_000  # in flight
_GRID = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320)
_FLAT = 3  # numbers in flight in a row that bring no more
_AS_GOOD = 0.985  # of the best throughput; of these the one with the fewest in flight is the best


@dataclass(frozen=True)
class Plan:
    """How a server works."""

    base_s: float
    slots: int
    slope_s: float = 0.0
    way_s: float = 0.02  # there and back
    # From a second on: so many times the slots, so many times the speed.
    changes: tuple[tuple[float, float, float], ...] = ()


def draw_fixed(seed: int) -> Plan:
    draw = random.Random(f"fixed {seed}")
    slots = round(_log(draw, 2, 200))
    base_s = _log(draw, max(0.3, slots / 120), min(4.0, slots / 4))
    return Plan(base_s, slots, way_s=_log(draw, 0.002, 0.2))


def draw_batching(seed: int) -> Plan:
    draw = random.Random(f"batching {seed}")
    slots, times = draw.choice((64, 128, 256)), _log(draw, 2, 20)
    least_s, most_s = slots / 120 / (1 + times), slots / 4 / (1 + times)
    base_s = _log(draw, max(0.3, least_s), min(2.0, most_s))
    return Plan(base_s, slots, base_s * times / slots, _log(draw, 0.002, 0.2))


def draw_changing(seed: int) -> Plan:
    draw = random.Random(f"changing {seed}")
    slots = round(_log(draw, 8, 200))
    base_s = _log(draw, max(0.3, slots / 100), min(3.0, slots / 8))
    half = draw.choice(((0.5, 1.0), (1.0, 0.5)))
    changes = ((120.0, *half), (240.0, 1.0, 1.0))
    return Plan(base_s, slots, way_s=_log(draw, 0.002, 0.2), changes=changes)


def draw_unlimited(seed: int) -> Plan:
    draw = random.Random(f"unlimited {seed}")
    return Plan(draw.uniform(20, 60), 10 * MOST)


def lengths(seed: int) -> Iterator[int]:
    """Tokens of answers, without end; lognormal."""
    draw = random.Random(seed).lognormvariate
    mu = math.log(MEAN) - SIGMA**2 / 2
    while True:
        yield max(1, round(draw(mu, SIGMA)))


class QueueingServer:
    """Answers in the making share one clock of tokens: each gets as many as every other."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
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
        """The client has hung up: its answer is not made any further."""
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
            _, slots, self._speed = self._changes.popleft()
            self._slots = max(1, round(slots * self._plan.slots))
        self._fill()
        return keys

    def _go_on(self, now_s: float) -> None:
        if self._making:
            self._made += (now_s - self._at_s) / self._token_s()
        self._at_s = now_s

    def _token_s(self) -> float:
        others = len(self._making) - 1
        return (self._plan.base_s + self._plan.slope_s * others) / MEAN / self._speed

    def _fill(self) -> None:
        while self._waiting and len(self._making) < self._slots:
            key, tokens = self._waiting.popleft()
            heapq.heappush(self._making, (self._made + tokens, key))


@dataclass
class Answers:
    """What came back: of each answer when it was complete, its latency and its tokens."""

    all: list[tuple[float, float, int]] = field(default_factory=list)
    in_flight: list[tuple[float, int]] = field(default_factory=list)  # at each answer
    timed_out: int = 0

    def rate(self, from_s: float, until_s: float) -> float:
        """Tokens a second."""
        tokens = sum(tokens for at_s, _, tokens in self.all if from_s <= at_s < until_s)
        return tokens / (until_s - from_s)

    def latency_s(self, from_s: float, until_s: float) -> float:
        found = [latency_s for at_s, latency_s, _ in self.all if from_s <= at_s < until_s]
        return sum(found) / len(found)


def play_fixed(plan: Plan, in_flight: int, until_s: float, seed: int, timeout_s: float) -> Answers:
    """A run with so many in flight all the time."""
    server, sizes, answers = QueueingServer(plan), lengths(seed), Answers()
    sent: dict[int, tuple[float, int]] = {}
    arrivals: list[tuple[float, int]] = [(0.0, key) for key in range(in_flight)]
    keys = itertools.count(in_flight)
    while True:
        next_s = server.next_s()
        if arrivals and arrivals[0][0] <= next_s:
            now_s, key = heapq.heappop(arrivals)
            sent[key] = now_s, next(sizes)
            server.take(key, sent[key][1], now_s)
            continue
        if next_s >= until_s:
            return answers
        for key in server.done(next_s):
            sent_s, tokens = sent.pop(key)
            latency_s = next_s - sent_s + plan.way_s
            answers.timed_out += latency_s > timeout_s
            answers.all.append((next_s + plan.way_s / 2, latency_s, tokens))
            heapq.heappush(arrivals, (next_s + plan.way_s, next(keys)))


def best_fixed(plan: Plan, from_s: float, until_s: float, seed: int, timeout_s: float) -> Answers:
    """The run with the fewest in flight of those with about the highest throughput."""
    runs: list[tuple[float, Answers]] = []
    for in_flight in _GRID:
        answers = play_fixed(plan, in_flight, until_s, seed, timeout_s)
        runs.append((answers.rate(from_s, until_s), answers))
        latest = [rate for rate, _ in runs[-_FLAT - 1 :]]
        if len(latest) > _FLAT and max(latest) <= 1.003 * latest[0]:
            break
    best = max(rate for rate, _ in runs)
    return next(answers for rate, answers in runs if rate >= _AS_GOOD * best)


def _log(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))
